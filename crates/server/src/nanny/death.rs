//! How a worker's process ended, in words.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// It called `exit`.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// It could not be started.
    NotStarted,
}

/// Kills that only the kernel or somebody else can have sent.
const SIGKILL: i32 = 9;

/// What is known about a death beside the exit status.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Circumstances {
    /// Bytes in memory, and the bytes at which a worker is ended, if that is why.
    pub(super) over_memory: Option<(u64, u64)>,
    /// Processes in the worker's cgroup that the kernel killed meanwhile because
    /// memory ran out; `None` where the kernel does not count them.
    pub(super) oom_kill_count: Option<u64>,
}

impl Exit {
    pub(super) fn of(status: ExitStatus) -> Self {
        match status.code() {
            Some(code) => Self::Code(code),
            None => Self::Signal(status.signal().unwrap_or_default()),
        }
    }

    /// The line that stock logs; nothing for a success.
    pub(super) fn stock_message(self, pid: u32) -> Option<String> {
        match self {
            Self::Code(0) | Self::NotStarted => None,
            Self::Code(255) => Some(format!("Worker process {pid} was killed by unknown signal")),
            Self::Code(code) => Some(format!("Worker process {pid} exited with status {code}")),
            Self::Signal(signal) => Some(format!(
                "Worker process {pid} was killed by signal {signal}"
            )),
        }
    }

    /// Why, as well as can be known: `it …`.
    pub(super) fn reason(self, circumstances: Circumstances) -> String {
        let Circumstances {
            over_memory,
            oom_kill_count,
        } = circumstances;
        if let (Some((nbytes, limit)), Self::Signal(_)) = (over_memory, self) {
            let mib = |nbytes: u64| nbytes as f64 / f64::from(1 << 20);
            return format!(
                "was ended because it had {:.1} MiB in memory; the limit is {:.1} MiB",
                mib(nbytes),
                mib(limit)
            );
        }
        match self {
            Self::NotStarted => "could not be started".to_owned(),
            Self::Code(0) => "left without being asked to".to_owned(),
            Self::Code(code) => format!("exited with status {code}"),
            Self::Signal(SIGKILL) if oom_kill_count.is_some_and(|count| count > 0) => {
                "was killed by the kernel because memory ran out (SIGKILL)".to_owned()
            }
            Self::Signal(SIGKILL) => {
                "was killed by SIGKILL: by somebody, or by the kernel because \
                                      memory ran out"
                    .to_owned()
            }
            Self::Signal(signal) => match name(signal) {
                Some(name) => format!("was killed by {name} (signal {signal})"),
                None => format!("was killed by signal {signal}"),
            },
        }
    }
}

/// Signals that end processes, where their numbers are the same everywhere.
fn name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL, an illegal instruction",
        6 => "SIGABRT, an abort",
        8 => "SIGFPE, an arithmetic error",
        11 => "SIGSEGV, a segmentation fault",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stock_lines() {
        let line = |exit: Exit| exit.stock_message(7).unwrap_or_default();
        assert_eq!(line(Exit::Code(0)), "");
        assert_eq!(line(Exit::Code(3)), "Worker process 7 exited with status 3");
        assert_eq!(
            line(Exit::Code(255)),
            "Worker process 7 was killed by unknown signal"
        );
        assert_eq!(
            line(Exit::Signal(11)),
            "Worker process 7 was killed by signal 11"
        );
    }

    #[test]
    fn reasons() {
        let reason = |exit: Exit, oom_kill_count, over_memory| {
            exit.reason(Circumstances {
                over_memory,
                oom_kill_count,
            })
        };
        assert_eq!(reason(Exit::Code(3), None, None), "exited with status 3");
        let text = reason(Exit::Signal(11), Some(0), None);
        assert_eq!(
            text,
            "was killed by SIGSEGV, a segmentation fault (signal 11)"
        );
        let text = reason(Exit::Signal(9), Some(1), None);
        assert!(text.contains("by the kernel because"), "{text}");
        for count in [Some(0), None] {
            let text = reason(Exit::Signal(9), count, None);
            assert!(text.contains("by somebody, or by the kernel"), "{text}");
        }
        let text = reason(Exit::Signal(15), None, Some((3 << 20, 2 << 20)));
        assert_eq!(
            text,
            "was ended because it had 3.0 MiB in memory; the limit is 2.0 MiB"
        );
        // It went by itself after all.
        let text = reason(Exit::Code(1), None, Some((3 << 20, 2 << 20)));
        assert_eq!(text, "exited with status 1");
        assert_eq!(
            reason(Exit::Signal(60), None, None),
            "was killed by signal 60"
        );
    }
}
