//! The running scheduler as its pages see it.
//!
//! What a page needs is copied on the scheduler's thread, between two events, and
//! written out here.

mod events;
mod literal;
mod numbers;
mod process;
mod tasks;
mod workers;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use oxidask_http::info::{
    CallStack, Counts, ErredTask, Error, Metrics, StreamEvent, Task, Worker, WorkerRow, Workers,
};
use oxidask_http::{Reply, Retire, SchedulerInfo};
use oxidask_scheduler::{Failure, Scheduler};
use oxidask_server::config::{Config, ConfigError};
use oxidask_server::scheduler::{Info, View};
use oxidask_wire::{Value, map};
use tokio::sync::mpsc;

use crate::json;
use tasks::TaskCopy;
use workers::WorkerCopy;

/// How long a page waits for a worker. Chosen: as long as Dask waits for a
/// connection (`distributed.comm.timeouts.connect`).
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Answers pages by short looks at the scheduler between two of its events.
pub(crate) struct Pages {
    info: Info,
    /// How long present work may take, for `desired_workers`.
    target_duration: Duration,
}

impl Pages {
    pub(crate) fn new(info: Info, config: &Config) -> Result<Self, ConfigError> {
        let target_duration = config.duration("distributed.adaptive.target-duration")?;
        Ok(Self {
            info,
            target_duration,
        })
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Scheduler) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let answer = self
            .info
            .read(move |view: View<'_>| read(view.scheduler))
            .await;
        answer.ok_or(Error::Closing)
    }

    async fn desired_workers(&self) -> Result<usize, Error> {
        let target = self.info.adaptive_target(self.target_duration).await;
        // It fails only without a target duration, or while the scheduler closes.
        target.map_err(|_| Error::Closing)
    }

    async fn has_worker(&self, address: &str) -> Result<bool, Error> {
        let address = address.to_owned();
        self.read(move |scheduler| scheduler.worker_id(&address).is_some())
            .await
    }
}

impl SchedulerInfo for Pages {
    fn counts(&self) -> Reply<'_, Counts> {
        Box::pin(async {
            let desired_workers = self.desired_workers().await?;
            let counts = self.read(numbers::counts).await?;
            Ok(Counts {
                desired_workers,
                ..counts
            })
        })
    }

    fn identity(&self) -> Reply<'_, serde_json::Value> {
        Box::pin(async {
            let identity = self.info.identity().await.ok_or(Error::Closing)?;
            Ok(json::from_map(&identity))
        })
    }

    fn workers(&self) -> Reply<'_, Workers> {
        Box::pin(async {
            let now = now();
            let rows = self.read(move |scheduler| {
                let workers = scheduler.workers();
                workers
                    .map(|(id, worker)| workers::row(scheduler, id, worker, now))
                    .collect()
            });
            let mut rows: Vec<WorkerRow> = rows.await?;
            rows.sort_by(|left, right| left.name.cmp(&right.name));
            Ok(Workers {
                scheduler: self.info.address().to_owned(),
                rows,
            })
        })
    }

    fn worker<'a>(&'a self, address: &'a str) -> Reply<'a, Option<Worker>> {
        Box::pin(async move {
            let (address, now) = (address.to_owned(), now());
            let copy = self.read(move |scheduler| WorkerCopy::of(scheduler, &address, now));
            Ok(copy.await?.map(WorkerCopy::write_out))
        })
    }

    fn task<'a>(&'a self, key: &'a str) -> Reply<'a, Option<Task>> {
        Box::pin(async move {
            let (key, now) = (key.to_owned(), now());
            let copy = self.read(move |scheduler| {
                Some(TaskCopy::of(scheduler, tasks::find(scheduler, &key)?, now))
            });
            Ok(copy.await?.map(TaskCopy::write_out))
        })
    }

    fn exceptions(&self) -> Reply<'_, Vec<ErredTask>> {
        Box::pin(async {
            let tasks = self.read(|scheduler| scheduler.erred_tasks().cloned().collect::<Vec<_>>());
            Ok(tasks.await?.iter().map(tasks::erred).collect())
        })
    }

    fn logs(&self) -> Reply<'_, Vec<String>> {
        let lines = self
            .info
            .logs()
            .into_iter()
            .map(|record| record.line)
            .collect();
        Box::pin(async { Ok(lines) })
    }

    fn worker_logs<'a>(&'a self, address: &'a str) -> Reply<'a, Option<Vec<String>>> {
        Box::pin(async move {
            if !self.has_worker(address).await? {
                return Ok(None);
            }
            let records = answer(self.info.worker_logs(address)).await?;
            Ok(Some(log_lines(&records)?))
        })
    }

    fn worker_call_stacks<'a>(&'a self, address: &'a str) -> Reply<'a, Option<Vec<CallStack>>> {
        Box::pin(async move {
            if !self.has_worker(address).await? {
                return Ok(None);
            }
            let stacks = answer(self.info.worker_call_stack(address)).await?;
            Ok(Some(call_stacks(address, &stacks)?))
        })
    }

    fn task_call_stacks<'a>(&'a self, key: &'a str) -> Reply<'a, Option<Vec<CallStack>>> {
        Box::pin(async move {
            let text = key.to_owned();
            let key = self.read(move |scheduler| Some(tasks::find(scheduler, &text)?.key.clone()));
            let Some(key) = key.await? else {
                return Ok(None);
            };
            let workers = answer(self.info.call_stack(&[key])).await?;
            let mut stacks = Vec::new();
            for (worker, tasks) in workers.as_map().into_iter().flat_map(|map| map.iter()) {
                stacks.append(&mut call_stacks(&json::text(worker), tasks)?);
            }
            Ok(Some(stacks))
        })
    }

    fn metrics(&self) -> Reply<'_, Metrics> {
        Box::pin(async {
            let desired_workers = self.desired_workers().await?;
            let turns = self.info.turns().await.ok_or(Error::Closing)?;
            let metrics = self
                .info
                .read(|view: View<'_>| numbers::metrics(&view))
                .await;
            let metrics = metrics.ok_or(Error::Closing)?;
            Ok(Metrics {
                time: now(),
                process: process::metrics(),
                desired_workers,
                tick_duration_max: turns.duration_max.as_secs_f64(),
                tick_count: turns.count,
                ..metrics
            })
        })
    }

    fn desired_workers(&self) -> Reply<'_, usize> {
        Box::pin(self.desired_workers())
    }

    fn idle_since(&self) -> Reply<'_, Option<f64>> {
        Box::pin(async { self.info.idle_since().await.ok_or(Error::Closing) })
    }

    fn retire_workers(&self, which: Retire) -> Reply<'_, serde_json::Value> {
        let arguments = match which {
            Retire::Count(count) => map! { "n" => count },
            Retire::Named(workers) => {
                map! { "workers" => workers.into_iter().map(Value::from).collect::<Vec<_>>() }
            }
        };
        Box::pin(async {
            let retired = self.info.retire_workers(arguments).await;
            let retired = retired.map_err(|failure| Error::Refused(failure.text))?;
            Ok(retired
                .as_map()
                .map_or_else(|| serde_json::json!({}), json::from_map))
        })
    }

    fn subscribe(&self) -> Reply<'_, Option<mpsc::Receiver<StreamEvent>>> {
        Box::pin(async {
            let happenings = self.info.subscribe().await.ok_or(Error::Closing)?;
            let (sender, receiver) = mpsc::channel(events::WAITING_MAX);
            // Ends with the receiver, or with the scheduler.
            tokio::spawn(events::forward(self.info.clone(), happenings, sender));
            Ok(Some(receiver))
        })
    }
}

/// What workers say, if they say it in time.
async fn answer(question: impl Future<Output = Result<Value, Failure>>) -> Result<Value, Error> {
    match tokio::time::timeout(ANSWER_TIMEOUT, question).await {
        Ok(answer) => answer.map_err(|failure| Error::Worker(failure.text)),
        Err(_elapsed) => {
            let seconds = ANSWER_TIMEOUT.as_secs();
            Err(Error::Worker(format!(
                "a worker did not answer within {seconds} s"
            )))
        }
    }
}

/// The lines of `[[level, line], …]`.
fn log_lines(records: &Value) -> Result<Vec<String>, Error> {
    refused(records)?;
    let records = records.as_array().unwrap_or_default();
    let line = |record: &Value| record.as_array()?.last().map(json::text);
    Ok(records.iter().filter_map(line).collect())
}

/// `{key: [frame, …]}` of one worker.
fn call_stacks(worker: &str, tasks: &Value) -> Result<Vec<CallStack>, Error> {
    refused(tasks)?;
    let tasks = tasks.as_map().into_iter().flat_map(|map| map.iter());
    let stacks = tasks.map(|(key, frames)| CallStack {
        worker: worker.to_owned(),
        key: json::text(key),
        frames: frames
            .as_array()
            .unwrap_or_default()
            .iter()
            .map(json::text)
            .collect(),
    });
    Ok(stacks.collect())
}

/// A worker's `{status: "error", text: …}` in place of an answer.
fn refused(answer: &Value) -> Result<(), Error> {
    let field = |name: &str| answer.as_map().and_then(|map| map.get(name)?.as_str());
    match field("status") {
        Some("error") => {
            let text = field("text").unwrap_or("the worker could not answer");
            Err(Error::Worker(text.to_owned()))
        }
        Some(_) | None => Ok(()),
    }
}

fn now() -> f64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    since_epoch.unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use oxidask_wire::Map;

    use super::*;

    #[test]
    fn keys_of_call_stacks_are_what_python_prints() {
        let mut tasks = Map::new();
        tasks.push(
            Value::Array(vec!["x".into(), 0.into()]),
            Value::Array(vec!["a".into(), "b".into()]),
        );
        tasks.push("status", Value::Array(vec!["c".into()]));
        let stack = |key: &str, frames: &[&str]| CallStack {
            worker: "tcp://10.0.0.3:1".to_owned(),
            key: key.to_owned(),
            frames: frames.iter().map(|frame| (*frame).to_owned()).collect(),
        };
        let expected = vec![stack("('x', 0)", &["a", "b"]), stack("status", &["c"])];
        assert_eq!(call_stacks("tcp://10.0.0.3:1", &tasks.into()), Ok(expected));
    }

    #[test]
    fn of_a_log_the_lines_are_shown() {
        let record = |line: &str| Value::Array(vec!["INFO".into(), line.into()]);
        let records = Value::Array(vec![record("second"), record("first")]);
        assert_eq!(
            log_lines(&records),
            Ok(vec!["second".to_owned(), "first".to_owned()])
        );
    }

    #[test]
    fn an_error_of_a_worker_is_told() {
        let answer = map! { "status" => "error", "text" => "no" };
        assert_eq!(
            log_lines(&answer.into()),
            Err(Error::Worker("no".to_owned()))
        );
    }
}
