//! What can be meant by the memory of a worker.

use crate::worker::MemoryState;

/// A figure of a [`MemoryState`], named as in Dask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Resident memory of the process.
    Process,
    /// Results in memory.
    Managed,
    /// Results in memory and on disk.
    ManagedTotal,
    /// Results on disk.
    Spilled,
    /// What is no result.
    Unmanaged,
    /// Of that, what has been there for half a minute.
    UnmanagedOld,
    /// Of that, the rest.
    UnmanagedRecent,
    /// What is likely to stay in use.
    Optimistic,
}

impl Measure {
    /// Every measure, sorted by name.
    pub const ALL: [Self; 8] = [
        Self::Managed,
        Self::ManagedTotal,
        Self::Optimistic,
        Self::Process,
        Self::Spilled,
        Self::Unmanaged,
        Self::UnmanagedOld,
        Self::UnmanagedRecent,
    ];

    /// By its name in the configuration.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|measure| measure.name() == name)
    }

    /// The attribute of Dask's `MemoryState`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Managed => "managed",
            Self::ManagedTotal => "managed_total",
            Self::Spilled => "spilled",
            Self::Unmanaged => "unmanaged",
            Self::UnmanagedOld => "unmanaged_old",
            Self::UnmanagedRecent => "unmanaged_recent",
            Self::Optimistic => "optimistic",
        }
    }

    /// The figure, in bytes.
    pub fn of(self, memory: &MemoryState) -> i64 {
        match self {
            Self::Process => memory.process,
            Self::Managed => memory.managed,
            Self::ManagedTotal => memory.managed + memory.spilled,
            Self::Spilled => memory.spilled,
            Self::Unmanaged => memory.process - memory.managed,
            Self::UnmanagedOld => memory.unmanaged_old,
            Self::UnmanagedRecent => memory.unmanaged_recent(),
            Self::Optimistic => memory.optimistic(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_memory_add_up() {
        let memory = MemoryState {
            process: 100,
            managed: 30,
            unmanaged_old: 20,
            spilled: 7,
        };
        let figure = |name: &str| {
            let measure = Measure::from_name(name).expect("it is a name of MemoryState");
            measure.of(&memory)
        };
        assert_eq!(figure("process"), figure("managed") + figure("unmanaged"));
        assert_eq!(
            figure("unmanaged"),
            figure("unmanaged_old") + figure("unmanaged_recent")
        );
        assert_eq!(
            figure("managed_total"),
            figure("managed") + figure("spilled")
        );
        assert_eq!(figure("optimistic"), 50);
        assert_eq!(Measure::from_name("sum"), None);
    }
}
