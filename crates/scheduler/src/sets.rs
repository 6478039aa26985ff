//! Sets of ids that cost little when small and stay fast when huge.
//!
//! Most tasks have a handful of neighbours, some have a million. Iteration
//! follows insertion, so that nothing observable depends on a hash.

use std::fmt;

use hashbrown::HashMap;

use crate::id::Id;

const INLINE: usize = 3;
/// Up to here a linear search beats a hash index.
const LINEAR: usize = 16;
const HOLE: u32 = u32::MAX;

/// An insertion-ordered set of ids in 16 bytes; up to three need no allocation.
#[derive(Clone)]
pub struct IdSet<T> {
    repr: Repr,
    id: std::marker::PhantomData<T>,
}

#[derive(Clone)]
enum Repr {
    Inline(u8, [u32; INLINE]),
    #[expect(
        clippy::box_collection,
        reason = "a vector would make every set 8 bytes larger"
    )]
    Linear(Box<Vec<u32>>),
    Indexed(Box<Indexed>),
}

const _: () = assert!(size_of::<IdSet<crate::TaskId>>() == 16);

impl<T> Default for IdSet<T> {
    fn default() -> Self {
        Self {
            repr: Repr::Inline(0, [HOLE; INLINE]),
            id: std::marker::PhantomData,
        }
    }
}

impl<T: Id> IdSet<T> {
    /// Number of members.
    pub fn len(&self) -> usize {
        match &self.repr {
            Repr::Inline(len, _) => usize::from(*len),
            Repr::Linear(ids) => ids.len(),
            Repr::Indexed(set) => set.len(),
        }
    }

    /// Whether there are no members.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether `id` is a member.
    pub fn contains(&self, id: T) -> bool {
        let id = id.index();
        match &self.repr {
            Repr::Inline(len, ids) => ids[..usize::from(*len)].contains(&id),
            Repr::Linear(ids) => ids.contains(&id),
            Repr::Indexed(set) => set.contains(id),
        }
    }

    /// Adds `id`; false if it was a member.
    pub fn insert(&mut self, id: T) -> bool {
        let id = id.index();
        match &mut self.repr {
            Repr::Inline(len, ids) => {
                let n = usize::from(*len);
                if ids[..n].contains(&id) {
                    return false;
                }
                if n < INLINE {
                    ids[n] = id;
                    *len += 1;
                } else {
                    let mut vec = Vec::with_capacity(2 * INLINE);
                    vec.extend_from_slice(ids);
                    vec.push(id);
                    self.repr = Repr::Linear(Box::new(vec));
                }
                true
            }
            Repr::Linear(ids) => {
                if ids.contains(&id) {
                    return false;
                }
                if ids.len() < LINEAR {
                    ids.push(id);
                } else {
                    let mut set = Indexed::default();
                    for &old in ids.iter() {
                        set.insert(old);
                    }
                    set.insert(id);
                    self.repr = Repr::Indexed(Box::new(set));
                }
                true
            }
            Repr::Indexed(set) => set.insert(id),
        }
    }

    /// Removes `id`; false if it was no member.
    pub fn remove(&mut self, id: T) -> bool {
        let id = id.index();
        match &mut self.repr {
            Repr::Inline(len, ids) => {
                let n = usize::from(*len);
                let Some(at) = ids[..n].iter().position(|&other| other == id) else {
                    return false;
                };
                ids.copy_within(at + 1..n, at);
                *len -= 1;
                true
            }
            Repr::Linear(ids) => {
                let Some(at) = ids.iter().position(|&other| other == id) else {
                    return false;
                };
                ids.remove(at);
                if ids.is_empty() {
                    self.clear();
                }
                true
            }
            Repr::Indexed(set) => {
                let removed = set.remove(id);
                if set.len() == 0 {
                    self.clear();
                }
                removed
            }
        }
    }

    /// Removes every member and frees the memory.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// The first member.
    pub fn first(&self) -> Option<T> {
        self.iter().next()
    }

    /// The members in order of insertion.
    pub fn iter(&self) -> Iter<'_, T> {
        let slots = match &self.repr {
            Repr::Inline(len, ids) => &ids[..usize::from(*len)],
            Repr::Linear(ids) => ids.as_slice(),
            Repr::Indexed(set) => set.slots.as_slice(),
        };
        Iter {
            slots: slots.iter(),
            id: std::marker::PhantomData,
        }
    }

    /// Bytes on the heap.
    pub fn heap_nbytes(&self) -> usize {
        match &self.repr {
            Repr::Inline(..) => 0,
            Repr::Linear(ids) => size_of::<Vec<u32>>() + 4 * ids.capacity(),
            Repr::Indexed(set) => {
                size_of::<Indexed>() + 4 * set.slots.capacity() + 9 * set.index.capacity()
            }
        }
    }
}

impl<T: Id> Extend<T> for IdSet<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, ids: I) {
        for id in ids {
            self.insert(id);
        }
    }
}

impl<T: Id> FromIterator<T> for IdSet<T> {
    fn from_iter<I: IntoIterator<Item = T>>(ids: I) -> Self {
        let mut set = Self::default();
        set.extend(ids);
        set
    }
}

impl<'a, T: Id> IntoIterator for &'a IdSet<T> {
    type Item = T;
    type IntoIter = Iter<'a, T>;

    fn into_iter(self) -> Iter<'a, T> {
        self.iter()
    }
}

impl<T: Id> fmt::Debug for IdSet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// Members of an [`IdSet`].
#[derive(Clone, Debug)]
pub struct Iter<'a, T> {
    slots: std::slice::Iter<'a, u32>,
    id: std::marker::PhantomData<T>,
}

impl<T: Id> Iterator for Iter<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.slots
            .find(|&&slot| slot != HOLE)
            .map(|&slot| T::from_index(slot))
    }
}

impl<T: Id> DoubleEndedIterator for Iter<'_, T> {
    fn next_back(&mut self) -> Option<T> {
        self.slots
            .rfind(|&&slot| slot != HOLE)
            .map(|&slot| T::from_index(slot))
    }
}

/// Members in order of insertion with holes where some were removed, and an index into them.
#[derive(Clone, Default)]
struct Indexed {
    slots: Vec<u32>,
    index: HashMap<u32, u32, foldhash::fast::FixedState>,
}

impl Indexed {
    fn len(&self) -> usize {
        self.index.len()
    }

    fn contains(&self, id: u32) -> bool {
        self.index.contains_key(&id)
    }

    fn insert(&mut self, id: u32) -> bool {
        let at = self.slots.len() as u32;
        if self.index.contains_key(&id) {
            return false;
        }
        self.index.insert(id, at);
        self.slots.push(id);
        true
    }

    fn remove(&mut self, id: u32) -> bool {
        let Some(at) = self.index.remove(&id) else {
            return false;
        };
        let at = at as usize;
        if at + 1 == self.slots.len() {
            self.slots.pop();
        } else {
            self.slots[at] = HOLE;
        }
        // Amortised O(1): compaction walks as many slots as removals made holes.
        if self.slots.len() > 2 * self.index.len() + LINEAR {
            self.compact();
        }
        true
    }

    fn compact(&mut self) {
        self.slots.retain(|&slot| slot != HOLE);
        self.slots.shrink_to(2 * self.slots.len() + LINEAR);
        if self.index.capacity() > 8 * self.index.len() + 64 {
            self.index.shrink_to(2 * self.index.len());
        }
        for (at, &slot) in self.slots.iter().enumerate() {
            self.index.insert(slot, at as u32);
        }
    }
}

/// A set of small numbers as a bitmap, iterated in ascending order.
///
/// Holds workers by their rank in the order of addresses: `SortedDict` of stock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RankSet {
    words: Vec<u64>,
    len: usize,
}

impl RankSet {
    /// Number of members.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no members.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether `rank` is a member.
    pub fn contains(&self, rank: u32) -> bool {
        self.words
            .get(rank as usize / 64)
            .is_some_and(|word| word >> (rank % 64) & 1 == 1)
    }

    /// Adds `rank`; false if it was a member.
    pub fn insert(&mut self, rank: u32) -> bool {
        let at = rank as usize / 64;
        if at >= self.words.len() {
            self.words.resize(at + 1, 0);
        }
        let bit = 1 << (rank % 64);
        let new = self.words[at] & bit == 0;
        self.words[at] |= bit;
        self.len += usize::from(new);
        new
    }

    /// Removes `rank`; false if it was no member.
    pub fn remove(&mut self, rank: u32) -> bool {
        let Some(word) = self.words.get_mut(rank as usize / 64) else {
            return false;
        };
        let bit = 1 << (rank % 64);
        let old = *word & bit != 0;
        *word &= !bit;
        self.len -= usize::from(old);
        old
    }

    /// Removes every member.
    pub fn clear(&mut self) {
        self.words.clear();
        self.len = 0;
    }

    /// The `n`-th member in ascending order.
    pub fn nth(&self, mut n: usize) -> Option<u32> {
        for (at, &word) in self.words.iter().enumerate() {
            let count = word.count_ones() as usize;
            if n < count {
                let mut word = word;
                for _ in 0..n {
                    word &= word - 1;
                }
                return Some(at as u32 * 64 + word.trailing_zeros());
            }
            n -= count;
        }
        None
    }

    /// Members in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.words.iter().enumerate().flat_map(|(at, &word)| {
            let mut word = word;
            std::iter::from_fn(move || {
                if word == 0 {
                    return None;
                }
                let bit = word.trailing_zeros();
                word &= word - 1;
                Some(at as u32 * 64 + bit)
            })
        })
    }

    /// Keeps what is in `other` as well.
    pub fn intersect(&mut self, other: &Self) {
        self.words.truncate(other.words.len());
        for (word, other) in self.words.iter_mut().zip(&other.words) {
            *word &= other;
        }
        self.len = self
            .words
            .iter()
            .map(|word| word.count_ones() as usize)
            .sum();
    }

    /// Makes room at `rank`: members from there on move up by one.
    pub fn open_gap(&mut self, rank: u32) {
        let moved: Vec<u32> = self.iter().filter(|&member| member >= rank).collect();
        for &member in &moved {
            self.remove(member);
        }
        for member in moved {
            self.insert(member + 1);
        }
    }

    /// Takes `rank` out: members above it move down by one.
    pub fn close_gap(&mut self, rank: u32) {
        self.remove(rank);
        let moved: Vec<u32> = self.iter().filter(|&member| member > rank).collect();
        for &member in &moved {
            self.remove(member);
        }
        for member in moved {
            self.insert(member - 1);
        }
    }
}
