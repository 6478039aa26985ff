//! Tasks: what the scheduler's thread copies, and the pages made of it.

use std::sync::Arc;

use oxidask_http::info::{ErredTask, Task, Transition, WorkerRow};
use oxidask_scheduler::sets::IdSet;
use oxidask_scheduler::task::{self, Extras, Priority, TaskFailure};
use oxidask_scheduler::transitions::story;
use oxidask_scheduler::{Number, Scheduler, State, TaskId, TaskState};
use oxidask_wire::python::{float_repr, str_repr};
use oxidask_wire::{Key, Value};

use super::literal;
use super::workers::{LISTED_MAX, row};

/// Lines of a story on a page, recommendations included.
const STORY_LENGTH_MAX: usize = LISTED_MAX;

/// A task by what Python prints for its key: a str key first, then the key that
/// is written so. Stock prints every key it has in search of the text.
pub(super) fn find<'a>(scheduler: &'a Scheduler, text: &str) -> Option<&'a TaskState> {
    let found = scheduler.find_task(&Key::from_str_key(text));
    found.or_else(|| scheduler.find_task(&literal::key(text)?))
}

/// A task as it was at one moment, to be written out elsewhere.
pub(super) struct TaskCopy {
    key: Key,
    state: State,
    processing_on: Option<Arc<str>>,
    type_name: Option<Arc<str>>,
    nbytes: i64,
    waiting_on: Vec<(Key, State)>,
    priority: Option<Priority>,
    has_lost_dependencies: bool,
    loose_restrictions: bool,
    suspicious: u32,
    retries: i64,
    extras: Option<Box<Extras>>,
    failure: Option<Arc<TaskFailure>>,
    dependencies: Vec<(Key, State)>,
    dependents: Vec<(Key, State)>,
    who_has: Vec<WorkerRow>,
    who_wants: Vec<Arc<str>>,
    story: Vec<story::Transition>,
}

impl TaskCopy {
    /// `now` in seconds since the epoch.
    pub(super) fn of(scheduler: &Scheduler, task: &TaskState, now: f64) -> Self {
        let states = |ids: &IdSet<TaskId>| -> Vec<(Key, State)> {
            let tasks = ids
                .iter()
                .take(LISTED_MAX)
                .filter_map(|id| scheduler.task(id));
            tasks.map(|task| (task.key.clone(), task.state)).collect()
        };
        let processing_on = task
            .processing_on
            .and_then(|worker| scheduler.worker(worker));
        let is_waiting = task.state == State::Waiting;
        let holders = task.who_has.iter().take(LISTED_MAX);
        let clients = task.who_wants.iter().take(LISTED_MAX);
        Self {
            key: task.key.clone(),
            state: task.state,
            processing_on: processing_on.map(|worker| worker.address.clone()),
            type_name: task.r#type.clone(),
            nbytes: task.nbytes,
            waiting_on: if is_waiting {
                states(&task.waiting_on)
            } else {
                Vec::new()
            },
            priority: task.priority,
            has_lost_dependencies: task.has_lost_dependencies,
            loose_restrictions: task.loose_restrictions,
            suspicious: task.suspicious,
            retries: task.retries,
            extras: task.extras.clone(),
            failure: task.failure.clone(),
            dependencies: states(&task.dependencies),
            dependents: states(&task.dependents),
            who_has: holders
                .filter_map(|id| Some(row(scheduler, id, scheduler.worker(id)?, now)))
                .collect(),
            who_wants: clients
                .filter_map(|client| Some(scheduler.client(client)?.name.clone()))
                .collect(),
            story: last_lines(&scheduler.story(std::slice::from_ref(&task.key), &[])),
        }
    }

    pub(super) fn write_out(self) -> Task {
        let properties = self.properties();
        let texts = |tasks: Vec<(Key, State)>| {
            let tasks = tasks.into_iter();
            tasks
                .map(|(key, state)| (key.python_str(), state.name().to_owned()))
                .collect()
        };
        Task {
            key: self.key.python_str(),
            state: self.state.name().to_owned(),
            processing_on: self.processing_on.map(|worker| worker.to_string()),
            type_name: self.type_name.map(|name| name.to_string()),
            nbytes: u64::try_from(self.nbytes).ok(),
            waiting_on: self
                .waiting_on
                .into_iter()
                .map(|(key, _)| key.python_str())
                .collect(),
            priority: priority_text(self.priority),
            properties,
            exception: self.failure.map(|failure| {
                (
                    failure.exception_text.to_string(),
                    failure.traceback_text.to_string(),
                )
            }),
            dependencies: texts(self.dependencies),
            dependents: texts(self.dependents),
            who_has: self.who_has,
            who_wants: self
                .who_wants
                .into_iter()
                .map(|name| name.to_string())
                .collect(),
            story: self.story.iter().map(transition).collect(),
        }
    }

    /// Properties that few tasks have, under stock's titles and in stock's order.
    fn properties(&self) -> Vec<(String, String)> {
        let mut properties = Vec::new();
        let mut add = |name: &str, value: String| properties.push((name.to_owned(), value));
        let none = Extras::default();
        let extras = self.extras.as_deref().unwrap_or(&none);
        if self.has_lost_dependencies {
            add("Has Lost Dependencies", "True".to_owned());
        }
        if !extras.host_restrictions.is_empty() {
            add("Host Restrictions", names(&extras.host_restrictions));
        }
        if !extras.worker_restrictions.is_empty() {
            add("Worker Restrictions", names(&extras.worker_restrictions));
        }
        if !extras.resource_restrictions.is_empty() {
            add(
                "Resource Restrictions",
                amounts(&extras.resource_restrictions),
            );
        }
        if self.loose_restrictions {
            add("Loose Restrictions", "True".to_owned());
        }
        if self.suspicious > 0 {
            add("Suspicious", self.suspicious.to_string());
        }
        if self.retries > 0 {
            add("Retries", self.retries.to_string());
        }
        if !extras.metadata.is_empty() {
            add(
                "Metadata",
                literal::repr(&Value::Map(extras.metadata.clone())),
            );
        }
        if let Some(failure) = self
            .failure
            .as_ref()
            .filter(|failure| failure.cause != self.key)
        {
            add("Exception Blame", failure.cause.python_str());
        }
        properties
    }
}

/// A task that failed, as it is remembered.
pub(super) fn erred(task: &task::ErredTask) -> ErredTask {
    ErredTask {
        key: task.key.python_str(),
        workers: task
            .erred_on
            .iter()
            .map(|worker| worker.to_string())
            .collect(),
        exception: task.exception_text.to_string(),
        traceback: task.traceback_text.to_string(),
    }
}

/// A priority as Python prints it.
pub(super) fn priority_text(priority: Option<Priority>) -> String {
    let Some(priority) = priority else {
        return "None".to_owned();
    };
    let parts = priority.elements().map(|part| match part {
        Number::Int(number) => number.to_string(),
        Number::Float(number) => {
            let mut text = String::new();
            float_repr(number, &mut text);
            text
        }
    });
    format!("({})", parts.join(", "))
}

/// The end of a story, cut where a page would have more lines than it shows.
fn last_lines(story: &[story::Transition]) -> Vec<story::Transition> {
    let mut line_count = 0;
    let mut last: Vec<story::Transition> = Vec::new();
    for transition in story.iter().rev() {
        line_count += 1 + transition.recommendations.len();
        if line_count > STORY_LENGTH_MAX {
            break;
        }
        last.push(transition.clone());
    }
    last.reverse();
    last
}

fn transition(transition: &story::Transition) -> Transition {
    let recommendations = transition.recommendations.iter();
    Transition {
        timestamp: transition.timestamp,
        key: transition.key.python_str(),
        start: transition.start.name().to_owned(),
        finish: transition.finish.name().to_owned(),
        stimulus_id: transition.stimulus_id.to_string(),
        recommendations: recommendations
            .map(|(key, state)| (key.python_str(), state.name().to_owned()))
            .collect(),
    }
}

/// A set of names as Python prints it.
fn names(names: &[Arc<str>]) -> String {
    let mut text = String::from("{");
    for (index, name) in names.iter().enumerate() {
        text.push_str(if index == 0 { "" } else { ", " });
        str_repr(name, &mut text);
    }
    text.push('}');
    text
}

/// A dict of amounts; whole ones without the `.0` that people do not write.
fn amounts(amounts: &[(Arc<str>, f64)]) -> String {
    let mut text = String::from("{");
    for (index, (name, amount)) in amounts.iter().enumerate() {
        text.push_str(if index == 0 { "" } else { ", " });
        str_repr(name, &mut text);
        text.push_str(&format!(": {amount}"));
    }
    text.push('}');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_read_as_tuples() {
        let priority = Priority::new(Number::Int(1), Number::Int(3), 7);
        assert_eq!(priority_text(Some(priority)), "(-1, 3, 7)");
        let priority = Priority::new(Number::Float(0.5), Number::Float(2.0), 7);
        assert_eq!(priority_text(Some(priority)), "(-0.5, 2.0, 7)");
        assert_eq!(priority_text(None), "None");
    }

    #[test]
    fn restrictions_read_as_sets_and_dicts() {
        assert_eq!(names(&["a".into(), "it's".into()]), "{'a', \"it's\"}");
        assert_eq!(
            amounts(&[("GPU".into(), 1.0), ("mem".into(), 0.5)]),
            "{'GPU': 1, 'mem': 0.5}"
        );
    }

    #[test]
    fn a_long_story_keeps_its_end() {
        let transition = |timestamp: f64, recommendation_count: usize| story::Transition {
            key: "x".into(),
            start: State::Waiting,
            finish: State::Processing,
            recommendations: vec![(Key::from("y"), State::Released); recommendation_count],
            stimulus_id: "test".into(),
            timestamp,
        };
        let story = [
            transition(1.0, 0),
            transition(2.0, STORY_LENGTH_MAX - 2),
            transition(3.0, 0),
        ];
        let last = last_lines(&story);
        let timestamps: Vec<f64> = last.iter().map(|transition| transition.timestamp).collect();
        assert_eq!(timestamps, [2.0, 3.0]);
    }
}
