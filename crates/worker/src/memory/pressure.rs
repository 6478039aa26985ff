//! The memory of the process against the worker's limit.

/// Fractions of the memory limit, `worker.memory.*`; `None` turns one off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fractions {
    /// Where spilling ends once it has begun.
    pub target: Option<f64>,
    /// Above this, values leave memory.
    pub spill: Option<f64>,
    /// Above this, the worker pauses.
    pub pause: Option<f64>,
}

/// Watches the memory of the process. `WorkerMemoryManager.memory_monitor` in distributed.
#[derive(Clone, Debug)]
pub struct Pressure {
    limit: u64,
    fractions: Fractions,
    /// Above `spill`, and not below `target` since.
    is_spilling: bool,
}

/// What follows from one look at the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// The worker is to pause or to go on.
    pub change: Option<Change>,
    /// Bytes of values that are to leave memory.
    pub demand: u64,
    /// Garbage is to be collected.
    pub collect: bool,
}

/// A change of the worker's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// From running to paused.
    Pause,
    /// From paused to running.
    Resume,
}

impl Pressure {
    /// For a limit in bytes.
    pub fn new(limit: u64, fractions: Fractions) -> Self {
        Self {
            limit,
            fractions,
            is_spilling: false,
        }
    }

    /// Bytes of values that may be in memory before the first one leaves:
    /// [`Limits::target`](super::Limits::target).
    pub fn target(&self) -> Option<u64> {
        let target = self.fractions.target.filter(|fraction| *fraction != 0.0);
        target.map(|fraction| (self.limit as f64 * fraction) as u64)
    }

    /// Whether values are spilled at all. Stock keeps a plain dictionary otherwise.
    pub fn is_enabled(&self) -> bool {
        let is_set = |fraction: Option<f64>| fraction.is_some_and(|fraction| fraction != 0.0);
        is_set(self.fractions.target) || is_set(self.fractions.spill)
    }

    /// The memory limit in bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Per cent of the limit, cut as Python's `int` does it.
    pub fn per_cent(&self, process: u64) -> u64 {
        (process as f64 / self.limit as f64 * 100.0) as u64
    }

    /// Looks at a process of so many resident bytes. `ending` bytes of them belong to
    /// values that are on disk already and whose memory is about to be freed.
    /// `is_paused` is `None` for a worker that is neither running nor paused.
    pub fn observe(&mut self, process: u64, ending: u64, is_paused: Option<bool>) -> Observation {
        let fraction = process as f64 / self.limit as f64;
        let mut observation = Observation::default();
        if let Some(pause) = self.fractions.pause {
            let is_above = fraction > pause;
            observation.collect = is_above;
            observation.change = match is_paused {
                Some(false) if is_above => Some(Change::Pause),
                Some(true) if !is_above => Some(Change::Resume),
                Some(_) | None => None,
            };
        }
        let Some(spill) = self.fractions.spill else {
            return observation;
        };
        // Without a target there is no hysteresis.
        let target = self.fractions.target.filter(|fraction| *fraction != 0.0);
        let target = self.limit as f64 * target.unwrap_or(spill);
        self.is_spilling = fraction > spill || (self.is_spilling && process as f64 > target);
        if self.is_spilling {
            let excess = (process as f64 - target).max(0.0).ceil() as u64;
            observation.demand = excess.saturating_sub(ending);
        }
        observation
    }

    /// Nothing more can leave: spilling begins anew above the `spill` fraction.
    pub fn give_up(&mut self) {
        self.is_spilling = false;
    }
}

/// When unused memory is given back to the system.
#[derive(Clone, Debug)]
pub struct Trimming {
    /// Bytes freed since the last time.
    freed: u64,
    /// Worth it.
    freed_min: u64,
    last: f64,
}

/// Freed bytes that are worth the milliseconds which giving them back takes.
/// Chosen: 1/64 of the limit, and never less than 8 MiB or more than 256 MiB.
const FREED_MIN: (u64, u64) = (8 << 20, 256 << 20);

/// Seconds between two times. Chosen: giving back costs page faults afterwards.
const PAUSE: f64 = 1.0;

impl Trimming {
    /// For a limit in bytes, if there is one.
    pub fn new(limit: Option<u64>) -> Self {
        let (least, most) = FREED_MIN;
        let freed_min = limit.map_or(most, |limit| (limit / 64).clamp(least, most));
        Self {
            freed: 0,
            freed_min,
            last: f64::NEG_INFINITY,
        }
    }

    /// Values of so many bytes were let go of.
    pub fn freed(&mut self, nbytes: u64) {
        self.freed = self.freed.saturating_add(nbytes);
    }

    /// Whether now is the time, `now` in seconds: when nothing runs, or when memory
    /// is short.
    pub fn is_due(&mut self, now: f64, is_idle: bool, is_short: bool) -> bool {
        let is_due = self.freed >= self.freed_min && (is_idle || is_short);
        if !is_due || now < self.last + PAUSE {
            return false;
        }
        self.freed = 0;
        self.last = now;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRACTIONS: Fractions = Fractions {
        target: Some(0.6),
        spill: Some(0.7),
        pause: Some(0.8),
    };

    fn demands(pressure: &mut Pressure, process: &[u64]) -> Vec<u64> {
        let look = |&process: &u64| pressure.observe(process, 0, None).demand;
        process.iter().map(look).collect()
    }

    #[test]
    fn spilling_begins_above_one_fraction_and_ends_below_the_other() {
        let mut pressure = Pressure::new(1000, FRACTIONS);
        let process = [700, 701, 650, 600, 650, 701];
        assert_eq!(
            demands(&mut pressure, &process),
            [0, 101, 50, 0, 0, 101],
            "at {process:?}"
        );
        pressure.give_up();
        assert_eq!(demands(&mut pressure, &[650, 900]), [0, 300]);
    }

    #[test]
    fn without_a_target_there_is_no_hysteresis() {
        for target in [None, Some(0.0)] {
            let fractions = Fractions {
                target,
                ..FRACTIONS
            };
            let mut pressure = Pressure::new(1000, fractions);
            assert_eq!(demands(&mut pressure, &[710, 700, 690]), [10, 0, 0]);
            assert_eq!(pressure.target(), None);
            assert!(pressure.is_enabled());
        }
    }

    #[test]
    fn what_is_about_to_be_freed_is_not_asked_for_again() {
        let mut pressure = Pressure::new(1000, FRACTIONS);
        assert_eq!(pressure.observe(800, 150, None).demand, 50);
        assert_eq!(pressure.observe(800, 900, None).demand, 0);
    }

    #[test]
    fn a_worker_pauses_above_its_fraction_only() {
        let mut pressure = Pressure::new(1000, FRACTIONS);
        let mut change = |process, is_paused| pressure.observe(process, 0, is_paused).change;
        assert_eq!(change(800, Some(false)), None);
        assert_eq!(change(801, Some(false)), Some(Change::Pause));
        assert_eq!(change(801, Some(true)), None);
        assert_eq!(change(800, Some(true)), Some(Change::Resume));
        assert_eq!(change(900, None), None);
        let fractions = Fractions {
            pause: None,
            ..FRACTIONS
        };
        let observation = Pressure::new(1000, fractions).observe(999, 0, Some(false));
        assert_eq!((observation.change, observation.collect), (None, false));
    }

    #[test]
    fn everything_can_be_turned_off() {
        let fractions = Fractions {
            target: None,
            spill: None,
            pause: None,
        };
        let mut pressure = Pressure::new(1000, fractions);
        assert!(!pressure.is_enabled());
        assert_eq!(
            pressure.observe(2000, 0, Some(true)),
            Observation::default()
        );
        assert_eq!(pressure.per_cent(829), 82);
    }

    #[test]
    fn memory_is_given_back_when_it_pays() {
        let mut trimming = Trimming::new(Some(1 << 30));
        trimming.freed(16 << 20);
        assert!(!trimming.is_due(1.0, false, false));
        assert!(trimming.is_due(1.0, true, false));
        assert!(!trimming.is_due(5.0, true, true));
        trimming.freed(8 << 20);
        assert!(!trimming.is_due(5.0, true, true));
        trimming.freed(8 << 20);
        assert!(trimming.is_due(5.0, false, true));
        trimming.freed(1 << 30);
        assert!(!trimming.is_due(5.5, true, true));
        assert!(trimming.is_due(6.0, true, true));
    }
}
