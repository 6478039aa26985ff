//! What a nanny decides: events in, effects out. No processes, clocks or sockets.

use std::path::PathBuf;
use std::time::Duration;

use super::death::Exit;

/// Part of a timeout that a worker gets before it is killed, as in stock.
const GRACE_FRACTION: f64 = 0.8;

/// A worker that lived shorter than this counts as failing. Chosen: longer than any
/// worker needs to run into what killed the last one.
const SHORT_RUN: Duration = Duration::from_secs(10);

/// Failing workers that are replaced at once. Chosen: as many as a task may kill
/// (`distributed.scheduler.allowed-failures`) before it is given up.
const IMMEDIATE_COUNT: u32 = 3;

/// First pause after those, doubled each time.
const PAUSE_MIN: Duration = Duration::from_millis(500);

/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// How a closing nanny treats its worker: `Nanny.close(timeout=5)`.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// `Nanny.status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// The first worker has not started yet.
    Init,
    Running,
    /// The next death of the worker is the nanny's end.
    ClosingGracefully,
    Closing,
    Closed,
}

impl Status {
    /// As Python prints it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Init => "Status.init",
            Self::Running => "Status.running",
            Self::ClosingGracefully => "Status.closing_gracefully",
            Self::Closing => "Status.closing",
            Self::Closed => "Status.closed",
        }
    }
}

/// A worker that has registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Worker {
    pub(super) address: String,
    pub(super) directory: PathBuf,
}

/// The worker's process. Times are since the nanny's start.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Process {
    None,
    /// The scheduler is told that the last one is gone.
    Unregistering {
        pause: Duration,
    },
    Pausing {
        until: Duration,
    },
    Starting {
        since: Duration,
    },
    Running {
        worker: Worker,
        since: Duration,
    },
    Stopping {
        worker: Option<Worker>,
        kill_at: Option<Duration>,
    },
}

/// What happens.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Event {
    /// The scheduler knows the nanny.
    Start,
    /// The worker has registered.
    Ready(Worker),
    /// The worker says why it could not start.
    Failed { text: String, timed_out: bool },
    /// The worker has closed in order, and its process will end.
    Leaving,
    /// The worker's process is gone; also if there could be none.
    Exited(Exit),
    /// The scheduler knows that the worker is gone, or cannot be told.
    Unregistered,
    /// Bytes in memory of the worker's process.
    Resident(u64),
    /// Somebody asks for a running worker.
    Instantiate,
    /// Somebody asks for an end of this worker.
    Kill { timeout: Duration, reason: String },
    /// The worker will leave and shall not be replaced.
    CloseGracefully { reason: String },
    /// The nanny itself shall end.
    Close { timeout: Duration, reason: String },
    /// [`Core::deadline`] has come.
    Time,
}

/// What to do, in order.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Effect {
    /// Start a process.
    Spawn,
    /// Ask the worker to close.
    Stop { timeout: Duration, reason: String },
    /// SIGTERM, because of its memory.
    Terminate { nbytes: u64 },
    /// SIGKILL.
    Kill(Why),
    /// Tell the scheduler.
    Unregister { address: String },
    /// Tell people why the worker has died by itself.
    ReportDeath { worker: Option<Worker>, exit: Exit },
    /// Remove what the worker left.
    RemoveDirectory(PathBuf),
    /// The worker runs: answer who waits for that.
    Started,
    /// There will be no worker: as `Started`.
    NotStarted { text: String, timed_out: bool },
    /// The process is gone: answer who waits for that.
    Stopped,
    /// The worker is started again after a pause, because it keeps dying.
    Pause(Duration),
    /// Log that a worker is started again.
    LogRestart(Status),
    /// Log that the nanny closes.
    LogClosing { reason: String, gracefully: bool },
    /// The end.
    Closed,
}

/// Why a worker is killed rather than asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// It did not close in this time.
    Slow(Duration),
    /// It needs too much memory and ignored SIGTERM.
    Memory,
}

/// What does not change.
#[derive(Clone, Debug, Default)]
pub(super) struct Limits {
    /// Bytes in memory above which a worker is ended: `memory_limit` times
    /// `distributed.worker.memory.terminate`.
    pub(super) resident_nbytes_max: Option<u64>,
    /// `--death-timeout`.
    pub(super) death_timeout: Option<Duration>,
}

/// A nanny's state.
#[derive(Debug)]
pub(super) struct Core {
    limits: Limits,
    status: Status,
    process: Process,
    /// SIGTERM was sent to this process for its memory.
    is_over_memory: bool,
    /// This worker has closed in order.
    is_leaving: bool,
    /// Workers in a row that died young.
    short_runs: u32,
    grace: Duration,
}

impl Core {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            status: Status::Init,
            process: Process::None,
            is_over_memory: false,
            is_leaving: false,
            short_runs: 0,
            grace: CLOSE_TIMEOUT,
        }
    }

    pub(super) fn status(&self) -> Status {
        self.status
    }

    /// The worker that runs or is being stopped.
    pub(super) fn worker(&self) -> Option<&Worker> {
        match &self.process {
            Process::Running { worker, .. } => Some(worker),
            Process::Stopping { worker, .. } => worker.as_ref(),
            Process::None
            | Process::Unregistering { .. }
            | Process::Pausing { .. }
            | Process::Starting { .. } => None,
        }
    }

    /// The worker has registered and nobody has asked it to close.
    pub(super) fn is_running(&self) -> bool {
        matches!(self.process, Process::Running { .. })
    }

    /// There is a process.
    pub(super) fn has_process(&self) -> bool {
        match self.process {
            Process::Starting { .. } | Process::Running { .. } | Process::Stopping { .. } => true,
            Process::None | Process::Unregistering { .. } | Process::Pausing { .. } => false,
        }
    }

    /// When [`Event::Time`] is due, since the nanny's start.
    pub(super) fn deadline(&self) -> Option<Duration> {
        match &self.process {
            Process::Pausing { until } => Some(*until),
            Process::Starting { since } => Some(*since + self.limits.death_timeout?),
            Process::Stopping { kill_at, .. } => *kill_at,
            Process::None | Process::Unregistering { .. } | Process::Running { .. } => None,
        }
    }

    /// Takes an event in. `now` is the time since the nanny's start.
    pub(super) fn handle(&mut self, now: Duration, event: Event) -> Vec<Effect> {
        let mut out = Vec::new();
        match event {
            Event::Start => self.spawn(now, &mut out),
            Event::Ready(worker) => self.ready(now, worker, &mut out),
            Event::Failed { text, timed_out } => self.failed(now, text, timed_out, &mut out),
            Event::Leaving => self.is_leaving = self.has_process(),
            Event::Exited(exit) => self.exited(now, exit, &mut out),
            Event::Unregistered => self.unregistered(now, &mut out),
            Event::Resident(nbytes) => self.resident(nbytes, &mut out),
            Event::Instantiate => self.instantiate(now, &mut out),
            Event::Kill { timeout, reason } => self.kill(now, timeout, reason, &mut out),
            Event::CloseGracefully { reason } => self.close_gracefully(now, reason, &mut out),
            Event::Close { timeout, reason } => self.close(now, timeout, reason, &mut out),
            Event::Time => self.time(now, &mut out),
        }
        out
    }

    fn is_closing(&self) -> bool {
        match self.status {
            Status::Closing | Status::Closed => true,
            Status::Init | Status::Running | Status::ClosingGracefully => false,
        }
    }

    fn spawn(&mut self, now: Duration, out: &mut Vec<Effect>) {
        if self.is_closing() || self.has_process() {
            return;
        }
        self.process = Process::Starting { since: now };
        self.is_over_memory = false;
        self.is_leaving = false;
        out.push(Effect::Spawn);
    }

    fn ready(&mut self, now: Duration, worker: Worker, out: &mut Vec<Effect>) {
        match &mut self.process {
            Process::Starting { .. } => {
                self.process = Process::Running { worker, since: now };
                if self.status == Status::Init {
                    self.status = Status::Running;
                }
                out.push(Effect::Started);
            }
            // It was asked to close while it started.
            Process::Stopping { worker: known, .. } => *known = Some(worker),
            Process::None
            | Process::Unregistering { .. }
            | Process::Pausing { .. }
            | Process::Running { .. } => {}
        }
    }

    /// A worker that cannot start is not tried again, as in stock.
    fn failed(&mut self, now: Duration, text: String, timed_out: bool, out: &mut Vec<Effect>) {
        if !matches!(self.process, Process::Starting { .. }) {
            return;
        }
        out.push(Effect::NotStarted { text, timed_out });
        let reason = match self.status {
            Status::Init => "nanny-start-failed",
            Status::Running | Status::ClosingGracefully | Status::Closing | Status::Closed => {
                "nanny-instantiate-failed"
            }
        };
        self.close(now, CLOSE_TIMEOUT, reason.to_owned(), out);
    }

    fn exited(&mut self, now: Duration, exit: Exit, out: &mut Vec<Effect>) {
        let process = std::mem::replace(&mut self.process, Process::None);
        let (worker, since, was_asked) = match process {
            Process::Starting { since } => (None, since, false),
            Process::Running { worker, since } => (Some(worker), since, false),
            Process::Stopping { worker, .. } => (worker, now, true),
            Process::None | Process::Unregistering { .. } | Process::Pausing { .. } => {
                self.process = process;
                return;
            }
        };
        let leaves = self.is_leaving && exit == Exit::Code(0);
        if !was_asked && !leaves {
            out.push(Effect::ReportDeath {
                worker: worker.clone(),
                exit,
            });
        }
        if let Some(worker) = &worker {
            out.push(Effect::RemoveDirectory(worker.directory.clone()));
        }
        out.push(Effect::Stopped);
        match self.status {
            Status::Init => {
                let text = "Nanny failed to start worker process".to_owned();
                out.push(Effect::NotStarted {
                    text,
                    timed_out: false,
                });
                self.close(now, CLOSE_TIMEOUT, "nanny-start-failed".to_owned(), out);
            }
            Status::Running => {
                let pause = self.pause(was_asked, now.saturating_sub(since));
                self.process = Process::Unregistering { pause };
                match worker {
                    Some(worker) => out.push(Effect::Unregister {
                        address: worker.address,
                    }),
                    None => self.unregistered(now, out),
                }
            }
            Status::ClosingGracefully => {
                let reason = "nanny-close-gracefully".to_owned();
                self.close(now, CLOSE_TIMEOUT, reason, out);
            }
            Status::Closing | Status::Closed => self.closed(out),
        }
    }

    /// How long to wait before the next worker.
    fn pause(&mut self, was_asked: bool, lived: Duration) -> Duration {
        if was_asked {
            return Duration::ZERO;
        }
        if lived >= SHORT_RUN {
            self.short_runs = 0;
        }
        self.short_runs = self.short_runs.saturating_add(1);
        match self.short_runs.checked_sub(IMMEDIATE_COUNT + 1) {
            None => Duration::ZERO,
            Some(doublings) => PAUSE_MIN
                .saturating_mul(2_u32.saturating_pow(doublings))
                .min(PAUSE_MAX),
        }
    }

    fn unregistered(&mut self, now: Duration, out: &mut Vec<Effect>) {
        let Process::Unregistering { pause } = self.process else {
            return;
        };
        self.process = Process::None;
        match self.status {
            Status::ClosingGracefully => {
                let reason = "nanny-close-gracefully".to_owned();
                self.close(now, CLOSE_TIMEOUT, reason, out);
            }
            Status::Init | Status::Running if pause.is_zero() => {
                out.push(Effect::LogRestart(self.status));
                self.spawn(now, out);
            }
            Status::Init | Status::Running => {
                self.process = Process::Pausing { until: now + pause };
                out.push(Effect::Pause(pause));
            }
            Status::Closing | Status::Closed => {}
        }
    }

    fn resident(&mut self, nbytes: u64, out: &mut Vec<Effect>) {
        let watched = match self.process {
            Process::Starting { .. } | Process::Running { .. } => true,
            Process::None
            | Process::Unregistering { .. }
            | Process::Pausing { .. }
            | Process::Stopping { .. } => false,
        };
        let limit = self.limits.resident_nbytes_max;
        if !watched || self.status != Status::Running || limit.is_none_or(|limit| nbytes <= limit) {
            return;
        }
        if self.is_over_memory {
            out.push(Effect::Kill(Why::Memory));
        } else {
            self.is_over_memory = true;
            out.push(Effect::Terminate { nbytes });
        }
    }

    fn instantiate(&mut self, now: Duration, out: &mut Vec<Effect>) {
        match self.process {
            Process::Running { .. } => out.push(Effect::Started),
            Process::None | Process::Pausing { .. } => {
                self.process = Process::None;
                self.spawn(now, out);
            }
            // Comes by itself.
            Process::Unregistering { .. } | Process::Starting { .. } | Process::Stopping { .. } => {
            }
        }
    }

    fn kill(&mut self, now: Duration, timeout: Duration, reason: String, out: &mut Vec<Effect>) {
        let grace = timeout.mul_f64(GRACE_FRACTION);
        let kill_at = now.saturating_add(grace);
        let worker = match &mut self.process {
            Process::None | Process::Unregistering { .. } | Process::Pausing { .. } => {
                out.push(Effect::Stopped);
                return;
            }
            Process::Stopping { kill_at: known, .. } => {
                *known = known.map(|known| known.min(kill_at));
                return;
            }
            Process::Starting { .. } => None,
            Process::Running { worker, .. } => Some(worker.clone()),
        };
        self.grace = grace;
        self.process = Process::Stopping {
            worker,
            kill_at: Some(kill_at),
        };
        out.push(Effect::Stop {
            timeout: grace,
            reason,
        });
    }

    fn close_gracefully(&mut self, now: Duration, reason: String, out: &mut Vec<Effect>) {
        if self.is_closing() {
            return;
        }
        self.status = Status::ClosingGracefully;
        out.push(Effect::LogClosing {
            reason: reason.clone(),
            gracefully: true,
        });
        if !self.has_process() {
            self.close(now, CLOSE_TIMEOUT, reason, out);
        }
    }

    fn close(&mut self, now: Duration, timeout: Duration, reason: String, out: &mut Vec<Effect>) {
        if !self.is_closing() {
            self.status = Status::Closing;
            out.push(Effect::LogClosing {
                reason: reason.clone(),
                gracefully: false,
            });
        }
        if self.has_process() {
            self.kill(now, timeout, reason, out);
        } else {
            self.closed(out);
        }
    }

    fn closed(&mut self, out: &mut Vec<Effect>) {
        self.process = Process::None;
        if self.status != Status::Closed {
            self.status = Status::Closed;
            out.push(Effect::Closed);
        }
    }

    fn time(&mut self, now: Duration, out: &mut Vec<Effect>) {
        if self.deadline().is_none_or(|deadline| deadline > now) {
            return;
        }
        match &mut self.process {
            Process::Pausing { .. } => {
                self.process = Process::None;
                out.push(Effect::LogRestart(self.status));
                self.spawn(now, out);
            }
            Process::Starting { .. } => {
                let timeout = self.limits.death_timeout.unwrap_or(CLOSE_TIMEOUT);
                out.push(Effect::NotStarted {
                    text: "the worker did not register in time".to_owned(),
                    timed_out: true,
                });
                self.close(now, timeout, "nanny-instantiate-timeout".to_owned(), out);
            }
            Process::Stopping { kill_at, .. } => {
                *kill_at = None;
                out.push(Effect::Kill(Why::Slow(self.grace)));
            }
            Process::None | Process::Unregistering { .. } | Process::Running { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KILLED: Exit = Exit::Signal(9);

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn worker() -> Worker {
        Worker {
            address: "tcp://a".to_owned(),
            directory: "/tmp/worker-a".into(),
        }
    }

    fn starting(limits: Limits) -> Core {
        let mut core = Core::new(limits);
        assert_eq!(core.handle(seconds(0.0), Event::Start), [Effect::Spawn]);
        core
    }

    fn running(limits: Limits) -> Core {
        let mut core = starting(limits);
        let out = core.handle(seconds(1.0), Event::Ready(worker()));
        assert_eq!(out, [Effect::Started]);
        assert_eq!(core.status(), Status::Running);
        core
    }

    fn unregister() -> Effect {
        Effect::Unregister {
            address: "tcp://a".to_owned(),
        }
    }

    fn remove() -> Effect {
        Effect::RemoveDirectory("/tmp/worker-a".into())
    }

    fn died(exit: Exit) -> Effect {
        Effect::ReportDeath {
            worker: Some(worker()),
            exit,
        }
    }

    fn closing(reason: &str) -> Effect {
        Effect::LogClosing {
            reason: reason.to_owned(),
            gracefully: false,
        }
    }

    fn stop(timeout: f64, reason: &str) -> Effect {
        Effect::Stop {
            timeout: seconds(timeout),
            reason: reason.to_owned(),
        }
    }

    fn restarted(core: &mut Core, at: f64) {
        let out = core.handle(seconds(at), Event::Unregistered);
        assert_eq!(out, [Effect::LogRestart(Status::Running), Effect::Spawn]);
    }

    #[test]
    fn a_worker_that_dies_is_replaced() {
        let mut core = running(Limits::default());
        let out = core.handle(seconds(20.0), Event::Exited(KILLED));
        assert_eq!(out, [died(KILLED), remove(), Effect::Stopped, unregister()]);
        restarted(&mut core, 20.0);
        // Also one that ends without a word, and one that leaves in order.
        core.handle(seconds(21.0), Event::Ready(worker()));
        let out = core.handle(seconds(50.0), Event::Exited(Exit::Code(0)));
        assert_eq!(out[0], died(Exit::Code(0)));
        restarted(&mut core, 50.0);
        core.handle(seconds(51.0), Event::Ready(worker()));
        assert_eq!(core.handle(seconds(52.0), Event::Leaving), []);
        let out = core.handle(seconds(52.0), Event::Exited(Exit::Code(0)));
        assert_eq!(out, [remove(), Effect::Stopped, unregister()]);
    }

    #[test]
    fn workers_that_keep_dying_are_replaced_more_slowly() {
        let mut core = running(Limits::default());
        let mut now = 1.0;
        let mut pauses = Vec::new();
        for _ in 0..11 {
            core.handle(seconds(now), Event::Exited(KILLED));
            let out = core.handle(seconds(now), Event::Unregistered);
            if let [Effect::Pause(pause)] = out[..] {
                pauses.push(pause.as_secs_f64());
                assert_eq!(core.handle(seconds(now), Event::Time), []);
                now = core.deadline().unwrap().as_secs_f64();
                let out = core.handle(seconds(now), Event::Time);
                assert_eq!(out, [Effect::LogRestart(Status::Running), Effect::Spawn]);
            } else {
                pauses.push(0.0);
            }
            core.handle(seconds(now), Event::Ready(worker()));
        }
        let expected = [0.0, 0.0, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0];
        assert_eq!(pauses, expected);
        // One that lived long ends the series.
        core.handle(seconds(now + 10.0), Event::Exited(KILLED));
        restarted(&mut core, now + 10.0);
    }

    #[test]
    fn a_restart_that_is_asked_for_waits_for_nothing() {
        let mut core = running(Limits::default());
        for number in 0..10 {
            let kill = Event::Kill {
                timeout: seconds(5.0),
                reason: "restart".to_owned(),
            };
            let now = seconds(f64::from(number) + 2.0);
            assert_eq!(core.handle(now, kill), [stop(4.0, "restart")]);
            let out = core.handle(now, Event::Exited(Exit::Code(0)));
            assert_eq!(out, [remove(), Effect::Stopped, unregister()]);
            restarted(&mut core, now.as_secs_f64());
            core.handle(now, Event::Ready(worker()));
        }
    }

    #[test]
    fn a_worker_that_does_not_close_is_killed() {
        let mut core = running(Limits::default());
        let kill = Event::Kill {
            timeout: seconds(5.0),
            reason: "r".to_owned(),
        };
        core.handle(seconds(10.0), kill);
        assert_eq!(core.deadline(), Some(seconds(14.0)));
        assert_eq!(core.handle(seconds(13.9), Event::Time), []);
        let out = core.handle(seconds(14.0), Event::Time);
        assert_eq!(out, [Effect::Kill(Why::Slow(seconds(4.0)))]);
        assert_eq!(core.deadline(), None);
    }

    #[test]
    fn a_worker_that_leaves_takes_its_nanny_along() {
        let mut core = running(Limits::default());
        let reason = "worker-close".to_owned();
        let out = core.handle(seconds(2.0), Event::CloseGracefully { reason });
        let expected = Effect::LogClosing {
            reason: "worker-close".to_owned(),
            gracefully: true,
        };
        assert_eq!(out, [expected]);
        core.handle(seconds(3.0), Event::Leaving);
        let out = core.handle(seconds(3.0), Event::Exited(Exit::Code(0)));
        let reason = "nanny-close-gracefully";
        assert_eq!(
            out,
            [remove(), Effect::Stopped, closing(reason), Effect::Closed]
        );
    }

    #[test]
    fn closing_ends_the_worker_first() {
        let mut core = running(Limits::default());
        let close = |timeout| Event::Close {
            timeout: seconds(timeout),
            reason: "signal-15".to_owned(),
        };
        let out = core.handle(seconds(2.0), close(10.0));
        assert_eq!(out, [closing("signal-15"), stop(8.0, "signal-15")]);
        // A second wish only hastens it.
        assert_eq!(core.handle(seconds(3.0), close(0.0)), []);
        assert_eq!(core.deadline(), Some(seconds(3.0)));
        let out = core.handle(seconds(4.0), Event::Exited(Exit::Code(0)));
        assert_eq!(out, [remove(), Effect::Stopped, Effect::Closed]);
        assert_eq!(core.handle(seconds(5.0), close(1.0)), []);
        assert_eq!(core.handle(seconds(5.0), Event::Instantiate), []);
    }

    #[test]
    fn a_first_worker_that_cannot_start_is_the_end() {
        let mut core = starting(Limits::default());
        let text = "no".to_owned();
        let failed = Event::Failed {
            text: text.clone(),
            timed_out: false,
        };
        let not_started = Effect::NotStarted {
            text,
            timed_out: false,
        };
        let reason = "nanny-start-failed";
        let out = core.handle(seconds(1.0), failed);
        assert_eq!(out, [not_started, closing(reason), stop(4.0, reason)]);
        let out = core.handle(seconds(2.0), Event::Exited(Exit::Code(1)));
        assert_eq!(out, [Effect::Stopped, Effect::Closed]);

        let mut core = starting(Limits::default());
        let out = core.handle(seconds(1.0), Event::Exited(KILLED));
        assert!(out.contains(&Effect::Closed), "{out:?}");
    }

    #[test]
    fn a_worker_killed_while_it_starts_again_is_tried_again() {
        let mut core = running(Limits::default());
        core.handle(seconds(20.0), Event::Exited(KILLED));
        restarted(&mut core, 20.0);
        let out = core.handle(seconds(21.0), Event::Exited(KILLED));
        let death = Effect::ReportDeath {
            worker: None,
            exit: KILLED,
        };
        let restart = Effect::LogRestart(Status::Running);
        assert_eq!(out, [death, Effect::Stopped, restart, Effect::Spawn]);
    }

    #[test]
    fn too_much_memory_is_terminated_and_then_killed() {
        let limits = Limits {
            resident_nbytes_max: Some(100),
            death_timeout: None,
        };
        let mut core = running(limits);
        assert_eq!(core.handle(seconds(2.0), Event::Resident(100)), []);
        let out = core.handle(seconds(2.1), Event::Resident(101));
        assert_eq!(out, [Effect::Terminate { nbytes: 101 }]);
        let out = core.handle(seconds(2.2), Event::Resident(102));
        assert_eq!(out, [Effect::Kill(Why::Memory)]);
        core.handle(seconds(2.3), Event::Exited(KILLED));
        assert_eq!(core.handle(seconds(2.3), Event::Resident(200)), []);
        restarted(&mut core, 2.3);
        let out = core.handle(seconds(2.4), Event::Resident(101));
        assert_eq!(out, [Effect::Terminate { nbytes: 101 }]);
    }

    #[test]
    fn death_timeout() {
        let mut core = starting(Limits {
            resident_nbytes_max: None,
            death_timeout: Some(seconds(3.0)),
        });
        assert_eq!(core.deadline(), Some(seconds(3.0)));
        let out = core.handle(seconds(3.0), Event::Time);
        assert!(
            matches!(
                out[0],
                Effect::NotStarted {
                    timed_out: true,
                    ..
                }
            ),
            "{out:?}"
        );
        assert_eq!(core.status(), Status::Closing);
    }

    #[test]
    fn a_worker_can_be_asked_for_at_once_instead_of_after_a_pause() {
        let mut core = running(Limits::default());
        assert_eq!(
            core.handle(seconds(2.0), Event::Instantiate),
            [Effect::Started]
        );
        for _ in 0..4 {
            core.handle(seconds(2.0), Event::Exited(KILLED));
            core.handle(seconds(2.0), Event::Unregistered);
            core.handle(seconds(2.0), Event::Ready(worker()));
        }
        assert!(!core.has_process());
        assert_eq!(
            core.handle(seconds(2.1), Event::Instantiate),
            [Effect::Spawn]
        );
    }

    #[test]
    fn a_worker_is_stopped_also_while_it_starts() {
        let mut core = starting(Limits::default());
        let close = Event::Close {
            timeout: seconds(10.0),
            reason: "signal-2".to_owned(),
        };
        core.handle(seconds(1.0), close);
        assert_eq!(core.handle(seconds(2.0), Event::Ready(worker())), []);
        let out = core.handle(seconds(3.0), Event::Exited(Exit::Code(0)));
        assert_eq!(out, [remove(), Effect::Stopped, Effect::Closed]);
    }
}
