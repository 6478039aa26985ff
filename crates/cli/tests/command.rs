//! The binary from outside: what it logs, writes, serves and leaves behind.

#![expect(clippy::unwrap_used, reason = "a step that fails fails its test")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// Longest wait for anything; it passes in a fraction of that.
const TIMEOUT: Duration = Duration::from_secs(30);

struct Scheduler {
    process: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Scheduler {
    fn start(options: &[&str]) -> Self {
        let mut process = command()
            .args(["scheduler", "--host", "127.0.0.1", "--port", "0"])
            .args(["--dashboard-address", "127.0.0.1:0"])
            // Any program: no test here sends a graph.
            .args(["--python", "true"])
            .args(options)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = process.stderr.take().unwrap();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines() {
                // Nobody reads any more when a test has failed.
                let _ = sender.send(line.unwrap());
            }
        });
        Self {
            process,
            lines,
            seen: Vec::new(),
        }
    }

    /// The first line with `text`, among those seen or to come.
    fn line(&mut self, text: &str) -> String {
        loop {
            if let Some(line) = self.seen.iter().find(|line| line.contains(text)) {
                return line.clone();
            }
            match self.lines.recv_timeout(TIMEOUT) {
                Ok(line) => self.seen.push(line),
                Err(error) => panic!("no `{text}`: {error} after {:#?}", self.seen),
            }
        }
    }

    fn dashboard(&mut self) -> String {
        let line = self.line("dashboard at:");
        let (_, address) = line.split_once("http://").unwrap();
        address.trim_end_matches("/status").to_owned()
    }

    fn signal(&self, name: &str) {
        let pid = self.process.id().to_string();
        assert!(
            Command::new("kill")
                .args([name, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Waits for the end and returns everything logged, without times, ports and
    /// what the interpreter that is none gave rise to.
    fn finish(mut self) -> (ExitStatus, Vec<String>) {
        loop {
            match self.lines.recv_timeout(TIMEOUT) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it goes on: {:#?}", self.seen),
            }
        }
        let status = self.process.wait().unwrap();
        let lines = self
            .seen
            .iter()
            .filter(|line| !line.contains("graph helper"));
        let lines =
            lines.map(|line| without_port(line.split_once(" - ").map_or(line, |(_, rest)| rest)));
        (status, lines.collect())
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        // It has ended already unless the test failed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oxidask"));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("DASK_")) {
            command.env_remove(name);
        }
    }
    // Nothing of the user's or the machine's own configuration.
    command
        .env("HOME", "/nonexistent")
        .env("DASK_ROOT_CONFIG", "/nonexistent");
    command
}

fn without_port(line: &str) -> String {
    match line.split_once("127.0.0.1:") {
        Some((before, after)) => {
            let after = after.trim_start_matches(|next: char| next.is_ascii_digit());
            format!("{before}127.0.0.1:PORT{after}")
        }
        None => line.to_owned(),
    }
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// Waits for a file by looking for it between log lines.
fn read_when_there(scheduler: &mut Scheduler, path: &Path) -> String {
    let asked = std::time::Instant::now();
    while !path.exists() {
        assert!(asked.elapsed() < TIMEOUT, "no {}", path.display());
        if let Ok(line) = scheduler.lines.recv_timeout(Duration::from_millis(10)) {
            scheduler.seen.push(line);
        }
    }
    std::fs::read_to_string(path).unwrap()
}

fn output(arguments: &[&str]) -> (i32, String) {
    let output = command().args(arguments).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), text)
}

#[test]
fn it_serves_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (file, pid_file) = (folder.path().join("s.json"), folder.path().join("pid"));
    let mut scheduler = Scheduler::start(&[
        "--scheduler-file",
        file.to_str().unwrap(),
        "--pid-file",
        pid_file.to_str().unwrap(),
    ]);
    let content = read_when_there(&mut scheduler, &file);
    let identity: serde_json::Value = serde_json::from_str(&content).unwrap();
    let address = scheduler.line("Scheduler at:");
    let (_, address) = address.rsplit_once(' ').unwrap();
    assert_eq!(identity["address"], address);
    assert_eq!(
        std::fs::read_to_string(&pid_file).unwrap(),
        scheduler.process.id().to_string()
    );

    let dashboard = scheduler.dashboard();
    assert!(dashboard.ends_with(&format!(":{}", identity["services"]["dashboard"])));
    assert_eq!(get(&dashboard, "/health"), "ok");
    let page = get(&dashboard, "/info/main/workers.html");
    assert!(page.contains(address), "{page}");
    let counts: serde_json::Value =
        serde_json::from_str(&get(&dashboard, "/json/counts.json")).unwrap();
    assert_eq!(counts["workers"], 0);
    assert!(get(&dashboard, "/metrics").contains("dask_scheduler_desired_workers 0"));

    scheduler.signal("-INT");
    let (status, lines) = scheduler.finish();
    assert_eq!(status.code(), Some(0));
    assert_eq!(
        lines,
        [
            "distributed.scheduler - INFO - -----------------------------------------------",
            "distributed.scheduler - INFO - -----------------------------------------------",
            "distributed.scheduler - INFO -   Scheduler at:     tcp://127.0.0.1:PORT",
            "distributed.scheduler - INFO -   dashboard at:  http://127.0.0.1:PORT/status",
            "distributed._signals - INFO - Received signal SIGINT (2)",
            "distributed.scheduler - INFO - Closing scheduler. Reason: signal-2",
            "distributed.scheduler - INFO - Scheduler closing all comms",
            "distributed.scheduler - INFO - Stopped scheduler at 'tcp://127.0.0.1:PORT'",
            "distributed.scheduler - INFO - End scheduler",
        ]
    );
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
}

#[test]
fn it_ends_on_sigterm_and_when_it_is_idle() {
    let mut scheduler = Scheduler::start(&[]);
    scheduler.dashboard();
    scheduler.signal("-TERM");
    let (status, lines) = scheduler.finish();
    assert_eq!(status.code(), Some(0));
    assert!(
        lines.iter().any(|line| line.ends_with("Reason: signal-15")),
        "{lines:#?}"
    );

    let (status, lines) = Scheduler::start(&["--idle-timeout", "100ms"]).finish();
    assert_eq!(status.code(), Some(0));
    assert!(
        lines
            .iter()
            .any(|line| line.ends_with("Reason: idle-timeout-exceeded")),
        "{lines:#?}"
    );
}

#[test]
fn without_dashboard_the_other_pages_stay() {
    let mut scheduler = Scheduler::start(&["--no-dashboard", "--dashboard-prefix", "/me"]);
    let dashboard = scheduler.dashboard();
    assert_eq!(get(&dashboard, "/health"), "ok");
    assert_eq!(get(&dashboard, "/me/health"), "ok");
    assert_eq!(get(&dashboard, "/me/status"), "");
    scheduler.signal("-TERM");
    scheduler.finish();
}

#[test]
fn errors_say_what_to_do() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (status, text) = output(&["scheduler", "--host", &address, "--dashboard-address", ":0"]);
    assert_eq!(status, 1);
    assert!(
        text.contains("error: cannot listen on") && text.contains("hint:"),
        "{text}"
    );

    for (arguments, status, expected) in [
        (
            &["scheduler", "--port", "x"][..],
            1,
            "invalid port `x` in --port",
        ),
        (&["scheduler", "--python", "/nonexistent"], 1, "of --python"),
        (&["scheduler", "--nonesuch"], 2, "--nonesuch"),
        (
            &["worker", "tcp://127.0.0.1:8786"],
            2,
            "pip install oxidask",
        ),
    ] {
        let (code, text) = output(arguments);
        assert_eq!(code, status, "{text}");
        assert!(
            text.starts_with("error: ") && text.contains(expected),
            "{text}"
        );
    }
}
