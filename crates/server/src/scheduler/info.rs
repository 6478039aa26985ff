//! Read access for pages and metrics.

use std::sync::Arc;
use std::time::Duration;

use oxidask_scheduler::extensions::SemaphoreMetrics;
use oxidask_scheduler::task::TaskRecord;
use oxidask_scheduler::{Failure, Instruction, Scheduler};
use oxidask_wire::{Key, Map, Value, map};
use tokio::sync::broadcast;

use super::args::{Args, os_error};
use super::shell::{Shell, ShellHandle};

/// Asks the running scheduler; cheap to clone.
#[derive(Clone, Debug)]
pub struct Info {
    shell: ShellHandle,
}

/// The state at one moment.
#[expect(missing_debug_implementations, reason = "a borrowed view, never kept")]
pub struct View<'a> {
    /// Tasks, workers, clients.
    pub scheduler: &'a Scheduler,
    shell: &'a Shell,
}

impl Info {
    pub(super) fn new(shell: ShellHandle) -> Self {
        Self { shell }
    }

    /// Runs `read` between two events; it must be quick, the scheduler waits for it.
    /// `None` when the scheduler is shutting down.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl for<'a> FnOnce(View<'a>) -> T + Send + 'static,
    ) -> Option<T> {
        self.shell
            .call(|shell| {
                read(View {
                    scheduler: &shell.core,
                    shell,
                })
            })
            .await
            .ok()
    }

    /// `Scheduler.identity`.
    pub async fn identity(&self) -> Option<Map> {
        self.shell
            .call(|shell| super::rpc::identity(shell, usize::MAX, false))
            .await
            .ok()
    }

    /// `Scheduler.adaptive_target`: the number of workers that the present work
    /// calls for, if it may take `target_duration`.
    ///
    /// # Errors
    ///
    /// When `target_duration` is zero, or the scheduler is shutting down.
    pub async fn adaptive_target(&self, target_duration: Duration) -> Result<usize, Failure> {
        let args = map! { "target_duration" => target_duration.as_secs_f64() };
        let target =
            super::rpc::extension_reply(&self.shell, "adaptive_target", Args(args)).await?;
        Ok(target
            .as_u64()
            .and_then(|target| usize::try_from(target).ok())
            .unwrap_or(0))
    }

    /// `Scheduler.check_idle`: since when there has been nothing to do, in seconds
    /// since the epoch. `None` on the outside when the scheduler is shutting down.
    pub async fn idle_since(&self) -> Option<Option<f64>> {
        self.shell
            .call(|shell| shell.check_idle(super::shell::now()))
            .await
            .ok()
    }

    /// `Scheduler.retire_workers` with these arguments; the workers that left, by address.
    ///
    /// # Errors
    ///
    /// When an argument is wrong, or the scheduler is shutting down.
    pub async fn retire_workers(&self, arguments: Map) -> Result<Value, Failure> {
        super::rpc::extension_reply(&self.shell, "retire_workers", Args(arguments)).await
    }

    /// The scheduler's log, newest first.
    pub fn logs(&self) -> Vec<crate::logging::LogRecord> {
        self.shell.settings.logs.records(0.0, None)
    }

    /// The reply of a worker to `get_logs`: `[[level, line], …]`, newest first.
    ///
    /// # Errors
    ///
    /// When the worker cannot be asked.
    pub async fn worker_logs(&self, worker: &str) -> Result<Value, Failure> {
        self.ask(worker, "get_logs", Map::new()).await
    }

    /// The reply of a worker to `call_stack` for everything it runs: `{key: [frame, …]}`.
    ///
    /// # Errors
    ///
    /// When the worker cannot be asked.
    pub async fn worker_call_stack(&self, worker: &str) -> Result<Value, Failure> {
        self.ask(worker, "call_stack", map! { "keys" => Value::Nil })
            .await
    }

    /// The reply to `call_stack` for these tasks: `{worker: {key: [frame, …]}}`.
    ///
    /// # Errors
    ///
    /// When a key is unknown or a worker cannot be asked.
    pub async fn call_stack(&self, keys: &[Key]) -> Result<Value, Failure> {
        let args = map! { "keys" => keys.iter().map(Value::from).collect::<Value>() };
        super::rpc::call_stack(&self.shell, Args(args)).await
    }

    async fn ask(&self, worker: &str, op: &str, fields: Map) -> Result<Value, Failure> {
        let reply = self.shell.peers.call(worker, op, fields).await;
        reply.map_err(|error| os_error(&format!("cannot ask `{worker}` for {op}: {error}")))
    }

    /// Address that peers are told.
    pub fn address(&self) -> &str {
        self.shell.settings.address()
    }

    /// What happens from now on. A receiver that falls behind by [`FEED_LENGTH`]
    /// loses the oldest. `None` when the scheduler is shutting down.
    pub async fn subscribe(&self) -> Option<broadcast::Receiver<Arc<Happening>>> {
        self.shell.call(|shell| shell.feed.subscribe()).await.ok()
    }

    /// How long inputs had to wait, since the last call of this function.
    /// `None` when the scheduler is shutting down.
    pub async fn turns(&self) -> Option<Turns> {
        self.shell.call(|shell| shell.turns.take()).await.ok()
    }

    /// Waits until the scheduler begins to shut down.
    pub async fn closing(&self) {
        self.shell.closing().await;
    }
}

impl View<'_> {
    /// Figures of every semaphore.
    pub fn semaphores(&self) -> impl Iterator<Item = SemaphoreMetrics> + '_ {
        self.shell.extensions.semaphores()
    }

    /// When the scheduler started, in seconds since the epoch.
    pub fn started(&self) -> f64 {
        self.shell.started
    }
}

/// Turns of the scheduler's event loop: what arrives during one waits for its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turns {
    /// Turns since the start.
    pub count: u64,
    /// The longest one since it was last asked for.
    pub duration_max: Duration,
}

impl Turns {
    pub(super) fn add(&mut self, duration: Duration) {
        self.count += 1;
        self.duration_max = self.duration_max.max(duration);
    }

    fn take(&mut self) -> Self {
        let turns = *self;
        self.duration_max = Duration::ZERO;
        turns
    }
}

/// Happenings that wait for a slow subscriber. Chosen: a second of a busy
/// scheduler's runs is more than a page can draw.
pub const FEED_LENGTH: usize = 4096;

/// What happens in the cluster, for subscribers.
#[derive(Clone, Debug, PartialEq)]
pub enum Happening {
    /// All tasks were cleared.
    Restarted,
    /// A worker with this address registered.
    WorkerAdded(Arc<str>),
    /// The worker with this address is gone.
    WorkerRemoved(Arc<str>),
    /// A client with this name connected.
    ClientAdded(Arc<str>),
    /// The client with this name left.
    ClientRemoved(Arc<str>),
    /// Tasks of the client with this name were taken in.
    GraphAdded(Arc<str>),
    /// A worker finished a run.
    TaskRan(Box<TaskRecord>),
}

/// Tells subscribers what happens; nothing is looked at while there are none.
#[derive(Debug, Default)]
pub(super) struct Feed(Option<broadcast::Sender<Arc<Happening>>>);

impl Feed {
    fn subscribe(&mut self) -> broadcast::Receiver<Arc<Happening>> {
        self.0
            .get_or_insert_with(|| broadcast::Sender::new(FEED_LENGTH))
            .subscribe()
    }

    /// Reads what the core has just done, before the extensions take their part of it.
    pub(super) fn publish(&mut self, core: &Scheduler, instructions: &[Instruction]) {
        let Some(sender) = &self.0 else { return };
        if sender.receiver_count() == 0 {
            self.0 = None;
            return;
        }
        for happening in instructions
            .iter()
            .filter_map(|instruction| happening(core, instruction))
        {
            // The last subscriber may have just gone.
            let _ = sender.send(Arc::new(happening));
        }
    }
}

fn happening(core: &Scheduler, instruction: &Instruction) -> Option<Happening> {
    match instruction {
        Instruction::TaskRecord(record) => Some(Happening::TaskRan(record.clone())),
        Instruction::WorkerAdded { worker } => Some(Happening::WorkerAdded(
            core.worker(*worker)?.address.clone(),
        )),
        Instruction::WorkerRemoved { address, .. } => {
            Some(Happening::WorkerRemoved(address.clone()))
        }
        Instruction::Restarted => Some(Happening::Restarted),
        Instruction::LogEvent { topics, message } => client_happening(topics, message.as_map()?),
        Instruction::ToWorker { .. }
        | Instruction::ToClient { .. }
        | Instruction::ExplodeBundle { .. }
        | Instruction::Reply { .. }
        | Instruction::BarrierLeft { .. }
        | Instruction::TaskForgotten { .. }
        | Instruction::CreateShuffleRun(_)
        | Instruction::ShuffleInputsDone { .. }
        | Instruction::Log { .. } => None,
    }
}

/// Clients and their graphs are told of by events alone: on the topics `all` or
/// `scheduler`, and the client's own.
fn client_happening(topics: &[Arc<str>], message: &Map) -> Option<Happening> {
    let [topic, client] = topics else { return None };
    let text = |name: &str| message.get(name).and_then(Value::as_str);
    match (&**topic, text("action")?) {
        ("all", "add-client") => Some(Happening::ClientAdded(client.clone())),
        ("all", "remove-client") => Some(Happening::ClientRemoved(client.clone())),
        ("scheduler", "update-graph") if text("status") == Some("OK") => {
            Some(Happening::GraphAdded(client.clone()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client_event(topic: &str, message: Map) -> Instruction {
        let topics = vec![topic.into(), "Client-1".into()];
        Instruction::LogEvent {
            topics,
            message: message.into(),
        }
    }

    #[test]
    fn subscribers_hear_of_clients_and_graphs() {
        let core = Scheduler::new(oxidask_scheduler::Config::default());
        let mut feed = Feed::default();
        let mut heard = feed.subscribe();
        feed.publish(
            &core,
            &[
                client_event(
                    "all",
                    map! { "action" => "add-client", "client" => "Client-1" },
                ),
                client_event(
                    "scheduler",
                    map! { "action" => "update-graph", "status" => "error" },
                ),
                client_event(
                    "scheduler",
                    map! { "action" => "update-graph", "status" => "OK" },
                ),
                Instruction::Restarted,
                client_event(
                    "all",
                    map! { "action" => "remove-client", "client" => "Client-1" },
                ),
            ],
        );
        let expected = [
            Happening::ClientAdded("Client-1".into()),
            Happening::GraphAdded("Client-1".into()),
            Happening::Restarted,
            Happening::ClientRemoved("Client-1".into()),
        ];
        for happening in expected {
            assert_eq!(*heard.try_recv().unwrap(), happening);
        }
        assert!(heard.try_recv().is_err());
    }

    #[test]
    fn the_feed_ends_with_its_last_subscriber() {
        let core = Scheduler::new(oxidask_scheduler::Config::default());
        let mut feed = Feed::default();
        drop(feed.subscribe());
        feed.publish(&core, &[Instruction::Restarted]);
        assert!(feed.0.is_none());
    }

    #[test]
    fn the_longest_turn_is_told_once() {
        let mut turns = Turns::default();
        turns.add(Duration::from_millis(2));
        turns.add(Duration::from_millis(1));
        assert_eq!(
            turns.take(),
            Turns {
                count: 2,
                duration_max: Duration::from_millis(2)
            }
        );
        assert_eq!(
            turns.take(),
            Turns {
                count: 2,
                duration_max: Duration::ZERO
            }
        );
    }
}
