//! Which task goes first.

use crate::error::Error;

/// Elements of a priority as the scheduler sends it; the worker appends one.
const FROM_SCHEDULER_MAX: usize = 3;

/// A tuple of numbers, smaller first, compared as Python compares tuples.
///
/// Held as integers in the order of the floats, zero where the tuple has ended:
/// a tuple that is the beginning of another one is smaller. Integers above 2⁵³
/// have lost precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority([u64; FROM_SCHEDULER_MAX + 1]);

impl Priority {
    /// Of a replica that the scheduler asked for: `(1,)`, after everything with
    /// the default or a high user priority, before everything with a low one.
    pub const ACQUIRE_REPLICAS: Self = Self([1.0_f64.to_bits() | 1 << 63, 0, 0, 0]);

    /// As the scheduler sends it: `(−user priority, generation, position in the graph)`.
    ///
    /// # Errors
    /// More than three elements, or one that is not a number.
    pub fn from_scheduler(elements: &[f64]) -> Result<Self, Error> {
        let mut ranks = [0; FROM_SCHEDULER_MAX + 1];
        if elements.len() > FROM_SCHEDULER_MAX || elements.iter().any(|value| value.is_nan()) {
            return Err(Error::InvalidPriority {
                elements: elements.to_vec(),
            });
        }
        for (rank, &element) in ranks.iter_mut().zip(elements) {
            *rank = ordered(element);
        }
        Ok(Self(ranks))
    }

    /// With the worker's own generation as the last element.
    pub(crate) fn with_generation(mut self, generation: i64) -> Self {
        let end = self
            .0
            .iter()
            .position(|&rank| rank == 0)
            .expect("a priority from the scheduler leaves room for the generation");
        self.0[end] = ordered(generation as f64);
        self
    }
}

/// Positive integers in the order of floats.
fn ordered(value: f64) -> u64 {
    // `-0.0 + 0.0` is `0.0`: Python's order does not tell them apart.
    let bits = (value + 0.0).to_bits();
    if bits >> 63 == 0 {
        bits | 1 << 63
    } else {
        !bits
    }
}

#[cfg(test)]
mod tests {
    use super::Priority;

    fn priority(elements: &[f64]) -> Priority {
        Priority::from_scheduler(elements).unwrap()
    }

    #[test]
    fn compares_as_tuples() {
        assert!(priority(&[0.0, 1.0]) < priority(&[0.0, 2.0]));
        assert!(priority(&[-1.0]) < priority(&[-0.5]));
        assert!(priority(&[0.0]) < priority(&[0.0, -7.0]));
        assert!(priority(&[0.0, 9.0, 9.0]) < priority(&[1.0]));
        assert!(priority(&[f64::NEG_INFINITY]) > priority(&[]));
        assert_eq!(priority(&[-0.0]), priority(&[0.0]));
        assert_eq!(priority(&[1.0]), Priority::ACQUIRE_REPLICAS);
    }

    #[test]
    fn later_generations_go_first() {
        let first = priority(&[0.0, 1.0, 5.0]).with_generation(0);
        let second = priority(&[0.0, 1.0, 5.0]).with_generation(-1);
        assert!(second < first);
        assert!(first < priority(&[0.0, 1.0, 6.0]).with_generation(-9));
    }

    #[test]
    fn what_is_no_priority_is_refused() {
        assert!(Priority::from_scheduler(&[0.0; 4]).is_err());
        assert!(Priority::from_scheduler(&[f64::NAN]).is_err());
    }
}
