//! Functions that cross a stream once and then go by numbers.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use crate::{Error, Result};

/// Functions that both ends remember, the latest ones. Part of version 1 of
/// [`Handshake::native`](crate::handshake::Handshake).
const FUNCTIONS_MAX: usize = 1000;

/// Bytes of pickles that both ends remember; the latest function always is. Part of
/// version 1 as well.
const FUNCTIONS_NBYTES_MAX: usize = 32 << 20;

/// The sender's side: which functions the receiver of one stream knows.
#[derive(Debug, Default)]
pub struct FunctionNumbers {
    numbers: HashMap<Bytes, u32, foldhash::fast::FixedState>,
    window: Window,
}

/// The receiver's side: the functions of one stream.
#[derive(Debug, Default)]
pub struct Functions {
    window: Window,
}

/// Functions with consecutive numbers. Both ends drop the oldest ones by the same
/// rule, so that nothing has to be said about it.
#[derive(Debug, Default)]
struct Window {
    /// Number of the oldest one.
    first: u32,
    pickles: VecDeque<Bytes>,
    nbytes: usize,
}

impl Window {
    /// Takes a function in; returns its number and calls `drop` with every old one
    /// that has to go.
    fn push(&mut self, pickle: Bytes, mut drop: impl FnMut(&Bytes)) -> u32 {
        self.nbytes += pickle.len();
        self.pickles.push_back(pickle);
        while self.pickles.len() > FUNCTIONS_MAX
            || (self.nbytes > FUNCTIONS_NBYTES_MAX && self.pickles.len() > 1)
        {
            if let Some(oldest) = self.pickles.pop_front() {
                self.nbytes -= oldest.len();
                self.first = self.first.wrapping_add(1);
                drop(&oldest);
            }
        }
        self.next().wrapping_sub(1)
    }

    /// The number that the next function gets.
    fn next(&self) -> u32 {
        self.first.wrapping_add(self.pickles.len() as u32)
    }

    fn get(&self, number: u32) -> Option<&Bytes> {
        self.pickles.get(number.wrapping_sub(self.first) as usize)
    }
}

impl FunctionNumbers {
    /// The number of a function, given as its pickle; true if it is new, so that the
    /// pickle has to go with it.
    pub fn number(&mut self, pickle: &Bytes) -> (u32, bool) {
        if let Some(&number) = self.numbers.get(pickle) {
            return (number, false);
        }
        let numbers = &mut self.numbers;
        let number = self.window.push(pickle.clone(), |oldest| {
            numbers.remove(oldest);
        });
        self.numbers.insert(pickle.clone(), number);
        (number, true)
    }
}

impl Functions {
    /// The pickle of a function, by its number and what came with it.
    ///
    /// # Errors
    /// A number that was never given out or is forgotten, or a new function under
    /// another number than the next one.
    pub fn resolve(&mut self, number: u32, pickle: Option<Bytes>) -> Result<Bytes> {
        let wrong = || Error::Inconsistent {
            field: "number of a function",
            value: number.into(),
        };
        match pickle {
            Some(_) if number != self.window.next() => Err(wrong()),
            Some(pickle) => {
                self.window.push(pickle.clone(), |_| ());
                Ok(pickle)
            }
            None => self.window.get(number).cloned().ok_or_else(wrong),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends functions over a stream; returns how many went with their pickle.
    fn send(functions: impl IntoIterator<Item = Bytes>) -> usize {
        let mut sender = FunctionNumbers::default();
        let mut receiver = Functions::default();
        let mut sent_count = 0;
        for function in functions {
            let (number, is_new) = sender.number(&function);
            let pickle = is_new.then(|| function.clone());
            assert_eq!(receiver.resolve(number, pickle), Ok(function));
            sent_count += usize::from(is_new);
        }
        assert_eq!(sender.window.pickles, receiver.window.pickles);
        assert_eq!(sender.numbers.len(), sender.window.pickles.len());
        sent_count
    }

    fn small(number: usize) -> Bytes {
        Bytes::from(number.to_string())
    }

    #[test]
    fn a_function_is_sent_once() {
        assert_eq!(send((0..10_000).map(|i| small(i % 7))), 7);
    }

    #[test]
    fn both_ends_forget_the_same_ones() {
        let twice = (0..2).flat_map(|_| 0..=FUNCTIONS_MAX);
        assert_eq!(send(twice.map(small)), 2 * (FUNCTIONS_MAX + 1));
    }

    #[test]
    fn large_ones_are_forgotten_by_their_bytes() {
        let large = |number: u8| Bytes::from(vec![number; FUNCTIONS_NBYTES_MAX / 2]);
        assert_eq!(send([0, 1, 0, 1].map(large)), 2);
        assert_eq!(send([0, 1, 2, 0].map(large)), 4);
        let huge = Bytes::from(vec![9; FUNCTIONS_NBYTES_MAX + 1]);
        assert_eq!(send([huge.clone(), huge, small(1)]), 2);
    }

    #[test]
    fn numbers_out_of_step_are_refused() {
        let mut functions = Functions::default();
        assert!(functions.resolve(0, None).is_err());
        assert!(functions.resolve(1, Some(small(1))).is_err());
        assert_eq!(functions.resolve(0, Some(small(0))), Ok(small(0)));
        assert!(functions.resolve(0, Some(small(0))).is_err());
        assert!(functions.resolve(u32::MAX, None).is_err());
    }
}
