//! In which part of its life a worker is.

/// `Status` of distributed, as far as a worker takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Not registered yet.
    Init,
    /// Registered.
    Running,
    /// Starts no tasks and fetches nothing for want of memory.
    Paused,
    /// Its data is being moved away.
    ClosingGracefully,
    /// It is shutting down.
    Closing,
    /// It is gone.
    Closed,
}

impl Status {
    /// Dask's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::ClosingGracefully => "closing_gracefully",
            Self::Closing => "closing",
            Self::Closed => "closed",
        }
    }

    /// The status of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [
            Self::Init,
            Self::Running,
            Self::Paused,
            Self::ClosingGracefully,
            Self::Closing,
            Self::Closed,
        ]
        .into_iter()
        .find(|status| status.name() == name)
    }

    /// `WORKER_ANY_RUNNING` in distributed.
    pub fn is_any_running(self) -> bool {
        matches!(self, Self::Running | Self::Paused | Self::ClosingGracefully)
    }
}
