//! The plain pages of `/info`.

use crate::html::{Escaped, Page, format_bytes, format_time, format_timestamp, link, text};
use crate::info::{
    CallStack, ErredTask, LIST_LENGTH_MAX, Task, Transition, Worker, WorkerRow, Workers,
};

/// Seconds without a message after which a worker is marked.
const LATE_AFTER: f64 = 60.0;

pub(crate) fn workers(workers: &Workers) -> String {
    let mut page = Page::new(&format!("Scheduler {}", workers.scheduler), 2);
    page.heading("Workers");
    worker_table(&mut page, &workers.rows);
    page.finish()
}

pub(crate) fn worker(worker: &Worker) -> String {
    let mut page = Page::new(&format!("Worker: {}", worker.row.address), 2);
    worker_table(&mut page, std::slice::from_ref(&worker.row));
    page.raw(format_args!("<div class=\"columns\">\n<div>\n"));
    page.heading("In memory");
    let shown = worker.in_memory.iter().take(LIST_LENGTH_MAX);
    page.table(
        &["Task", "Bytes"],
        shown.map(|(key, nbytes)| vec![link("../task/", key), format_bytes(*nbytes)]),
    );
    page.cut(LIST_LENGTH_MAX, worker.in_memory.len());
    page.raw(format_args!("</div>\n<div>\n"));
    page.heading("Processing");
    page.raw(format_args!(
        "<p><a href=\"../call-stacks/{}.html\">Call stacks</a></p>\n",
        crate::html::Quoted(&worker.row.address)
    ));
    let shown = worker.processing.iter().take(LIST_LENGTH_MAX);
    page.table(
        &["Task", "Priority"],
        shown.map(|(key, priority)| vec![link("../task/", key), text(priority)]),
    );
    page.cut(LIST_LENGTH_MAX, worker.processing.len());
    page.raw(format_args!("</div>\n</div>\n"));
    if !worker.resources.is_empty() {
        page.heading("Resources");
        page.table(
            &["Resource", "Consumed", "Total"],
            worker
                .resources
                .iter()
                .map(|(name, used, total)| vec![text(name), used.to_string(), total.to_string()]),
        );
    }
    page.finish()
}

pub(crate) fn task(task: &Task) -> String {
    let mut page = Page::new(&format!("Task: {}", task.key), 2);
    let mut rows = vec![vec!["Status".to_owned(), text(&task.state)]];
    let mut row = |name: &str, cell: String| rows.push(vec![text(name), cell]);
    if let Some(worker) = &task.processing_on {
        row("Processing on", link("../worker/", worker));
        row(
            "Call stack",
            format!(
                "<a href=\"../call-stack/{}.html\">Call stack</a>",
                crate::html::Quoted(&task.key)
            ),
        );
    }
    if let Some(name) = &task.type_name {
        row("Type", text(name));
    }
    if let Some(nbytes) = task.nbytes {
        row("Bytes", format_bytes(nbytes));
    }
    for key in task.waiting_on.iter().take(LIST_LENGTH_MAX) {
        row("Waiting on", link("", key));
    }
    row("Priority", text(&task.priority));
    for (name, value) in &task.properties {
        row(name, text(value));
    }
    page.table(&["", ""], rows);
    if let Some((exception, traceback)) = &task.exception {
        page.heading("Exception");
        page.raw(format_args!(
            "<p><code>{}</code></p>\n<details>\n<summary>Traceback</summary>\n\
             <pre><code>{}</code></pre>\n</details>\n",
            Escaped(exception),
            Escaped(traceback)
        ));
    }
    page.raw(format_args!("<div class=\"columns\">\n"));
    for (title, tasks) in [
        ("Dependencies", &task.dependencies),
        ("Dependents", &task.dependents),
    ] {
        page.raw(format_args!("<div>\n"));
        page.heading(title);
        let shown = tasks.iter().take(LIST_LENGTH_MAX);
        page.table(
            &["Key", "State"],
            shown.map(|(key, state)| vec![link("", key), text(state)]),
        );
        page.cut(LIST_LENGTH_MAX, tasks.len());
        page.raw(format_args!("</div>\n"));
    }
    page.raw(format_args!("</div>\n"));
    if !task.who_has.is_empty() {
        page.heading("Workers with data");
        worker_table(&mut page, &task.who_has);
    }
    if !task.who_wants.is_empty() {
        page.heading("Clients with future");
        page.raw(format_args!("<ul>\n"));
        for client in &task.who_wants {
            page.raw(format_args!("<li>{}</li>\n", Escaped(client)));
        }
        page.raw(format_args!("</ul>\n"));
    }
    story(&mut page, &task.story);
    page.finish()
}

pub(crate) fn exceptions(tasks: &[ErredTask]) -> String {
    let mut page = Page::new("Exceptions", 2);
    if tasks.is_empty() {
        page.paragraph("No task has failed.");
    }
    for task in tasks {
        page.raw(format_args!("<section>\n<h2>Task: "));
        page.link("../task/", &task.key);
        page.raw(format_args!("</h2>\n<p>Workers: "));
        for (index, worker) in task.workers.iter().enumerate() {
            page.raw(format_args!("{}", if index == 0 { "" } else { ", " }));
            page.link("../worker/", worker);
        }
        page.raw(format_args!(
            "</p>\n<p>Exception: <code>{}</code></p>\n<details>\n<summary>Traceback</summary>\n\
             <pre><code>{}</code></pre>\n</details>\n</section>\n",
            Escaped(&task.exception),
            Escaped(&task.traceback)
        ));
    }
    page.finish()
}

pub(crate) fn logs(title: &str, depth: usize, lines: &[String]) -> String {
    let mut page = Page::new(title, depth);
    page.raw(format_args!("<div class=\"lines\">\n"));
    for line in lines {
        page.paragraph(line);
    }
    page.raw(format_args!("</div>\n"));
    page.finish()
}

pub(crate) fn call_stacks(title: &str, stacks: &[CallStack]) -> String {
    let mut page = Page::new(title, 2);
    let mut worker = None;
    for stack in stacks {
        if worker != Some(&stack.worker) {
            page.heading(&format!("Worker: {}", stack.worker));
            worker = Some(&stack.worker);
        }
        page.raw(format_args!(
            "<h3>Key: {}</h3>\n<div class=\"lines\">\n",
            Escaped(&stack.key)
        ));
        for frame in &stack.frames {
            page.paragraph(frame);
        }
        page.raw(format_args!("</div>\n"));
    }
    page.finish()
}

pub(crate) fn nothing_running(key: &str) -> String {
    let mut page = Page::new(&format!("Call stack: {key}"), 2);
    page.paragraph("Task not actively running. It may be finished or not yet started");
    page.finish()
}

/// `/status` until there is an interactive dashboard.
pub(crate) fn status() -> String {
    let mut page = Page::new("Status", 0);
    page.paragraph(
        "The interactive dashboard is not built yet. These pages show the state of the cluster \
         at the moment they are loaded:",
    );
    page.raw(format_args!(
        "<ul>\n<li><a href=\"info/main/workers.html\">Workers</a> and what they hold and run</li>\n\
         <li><a href=\"info/main/exceptions.html\">Exceptions</a> of tasks that failed</li>\n\
         <li><a href=\"info/main/logs.html\">Logs</a> of the scheduler</li>\n\
         <li><a href=\"json/index.html\">JSON</a> for programs</li>\n\
         <li><a href=\"metrics\">Metrics</a> for Prometheus</li>\n</ul>\n"
    ));
    page.finish()
}

pub(crate) fn json_index() -> String {
    let mut page = Page::new("Index of JSON routes", 1);
    page.paragraph("For automated services that query the state of the scheduler.");
    page.raw(format_args!(
        "<ul>\n<li><a href=\"counts.json\">counts.json</a></li>\n\
         <li><a href=\"identity.json\">identity.json</a></li>\n</ul>\n"
    ));
    page.finish()
}

/// Where a worker's own pages are: the scheduler does not pass them on.
pub(crate) fn proxy(host: &str, port: u16, path: &str) -> String {
    let mut page = Page::new("Pages of a worker", 3);
    let address = format!("{host}:{port}/{path}");
    page.raw(format_args!(
        "<p>This scheduler does not pass on the pages of its workers. If the worker can be \
         reached from here, its page is <a href=\"http://{0}\">{0}</a>.</p>\n",
        Escaped(&address)
    ));
    page.finish()
}

fn worker_table(page: &mut Page, rows: &[WorkerRow]) {
    let columns = [
        "Worker",
        "Name",
        "Status",
        "Threads",
        "Memory",
        "Memory use",
        "Occupancy",
        "Processing",
        "In memory",
        "Services",
        "Logs",
        "Last seen",
    ];
    let shown = rows.iter().take(LIST_LENGTH_MAX);
    page.table(&columns, shown.map(worker_cells));
    page.cut(LIST_LENGTH_MAX, rows.len());
}

fn worker_cells(row: &WorkerRow) -> Vec<String> {
    let memory_use = match row.memory_limit {
        Some(limit) if limit > 0 => format!(
            "<progress value=\"{}\" max=\"{limit}\"></progress> {}",
            row.memory,
            format_bytes(row.memory)
        ),
        Some(_) | None => format_bytes(row.memory),
    };
    let services = match &row.dashboard {
        Some((host, port)) => format!(
            "<a href=\"../../proxy/{port}/{}/status\">dashboard</a>",
            crate::html::Quoted(host)
        ),
        None => String::new(),
    };
    let last_seen = if row.last_seen > LATE_AFTER {
        format!("<span class=\"late\">{}</span>", format_time(row.last_seen))
    } else {
        format_time(row.last_seen)
    };
    vec![
        link("../worker/", &row.address),
        text(&row.name),
        text(&row.status),
        row.nthreads.to_string(),
        row.memory_limit.map(format_bytes).unwrap_or_default(),
        memory_use,
        format_time(row.occupancy),
        row.processing_count.to_string(),
        row.in_memory_count.to_string(),
        services,
        format!(
            "<a href=\"../logs/{}.html\">logs</a>",
            crate::html::Quoted(&row.address)
        ),
        last_seen,
    ]
}

fn story(page: &mut Page, story: &[Transition]) {
    page.heading("Transition log");
    let mut rows = Vec::new();
    for transition in story {
        rows.push(vec![
            format_timestamp(transition.timestamp),
            link("", &transition.key),
            text(&transition.start),
            text(&transition.finish),
            text(&transition.stimulus_id),
            String::new(),
            String::new(),
        ]);
        for (key, state) in &transition.recommendations {
            let mut row = vec![String::new(); 5];
            row.push(link("", key));
            row.push(text(state));
            rows.push(row);
        }
    }
    page.table(
        &[
            "Time (UTC)",
            "Key",
            "Start",
            "Finish",
            "Stimulus ID",
            "Recommended key",
            "Recommended action",
        ],
        rows,
    );
}
