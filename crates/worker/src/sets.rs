//! Sets of ids that iterate in the order of insertion, so that nothing
//! observable depends on a hash.

use std::fmt;
use std::marker::PhantomData;

use hashbrown::HashMap;

use crate::id::Id;

/// Up to here a linear search beats a hash index.
const LINEAR: usize = 16;
const HOLE: u32 = u32::MAX;

/// An insertion-ordered set of ids.
#[derive(Clone)]
pub struct IdSet<T> {
    /// Members; with an index, also holes where some were removed.
    slots: Vec<u32>,
    /// Positions in `slots`, once there were more than a few members.
    index: Option<Box<HashMap<u32, u32, foldhash::fast::FixedState>>>,
    id: PhantomData<T>,
}

impl<T> Default for IdSet<T> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            index: None,
            id: PhantomData,
        }
    }
}

impl<T: Id> IdSet<T> {
    /// Number of members.
    pub fn len(&self) -> usize {
        match &self.index {
            Some(index) => index.len(),
            None => self.slots.len(),
        }
    }

    /// Whether there are no members.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether `id` is a member.
    pub fn contains(&self, id: T) -> bool {
        match &self.index {
            Some(index) => index.contains_key(&id.index()),
            None => self.slots.contains(&id.index()),
        }
    }

    /// Adds `id`; false if it was a member.
    pub fn insert(&mut self, id: T) -> bool {
        if self.contains(id) {
            return false;
        }
        if self.index.is_none() && self.slots.len() == LINEAR {
            self.index = Some(Box::new(self.slots.iter().copied().zip(0..).collect()));
        }
        if let Some(index) = &mut self.index {
            index.insert(id.index(), self.slots.len() as u32);
        }
        self.slots.push(id.index());
        true
    }

    /// Removes `id`; false if it was no member.
    pub fn remove(&mut self, id: T) -> bool {
        let Some(index) = &mut self.index else {
            let at = self.slots.iter().position(|&other| other == id.index());
            return at.map(|at| self.slots.remove(at)).is_some();
        };
        let Some(at) = index.remove(&id.index()) else {
            return false;
        };
        if index.is_empty() {
            self.clear();
            return true;
        }
        self.slots[at as usize] = HOLE;
        // Amortised O(1): compaction walks as many slots as removals made holes.
        if self.slots.len() > 2 * index.len() + LINEAR {
            self.slots.retain(|&slot| slot != HOLE);
            index.clear();
            index.extend(self.slots.iter().copied().zip(0..));
        }
        true
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
        Iter {
            slots: self.slots.iter(),
            id: PhantomData,
        }
    }
}

/// Python's equality of sets: order does not matter.
impl<T: Id> PartialEq for IdSet<T> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().all(|id| other.contains(id))
    }
}

impl<T: Id> Eq for IdSet<T> {}

impl<T: Id> FromIterator<T> for IdSet<T> {
    fn from_iter<I: IntoIterator<Item = T>>(ids: I) -> Self {
        let mut set = Self::default();
        for id in ids {
            set.insert(id);
        }
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
    id: PhantomData<T>,
}

impl<T: Id> Iterator for Iter<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.slots
            .find(|&&slot| slot != HOLE)
            .map(|&slot| T::from_index(slot))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::IdSet;
    use crate::id::TaskId;

    proptest! {
        #[test]
        fn behaves_as_a_list_without_duplicates(steps in prop::collection::vec((any::<bool>(), 0..60u32), 0..400)) {
            let mut set = IdSet::default();
            let mut list: Vec<TaskId> = Vec::new();
            for (is_insert, id) in steps {
                let id = TaskId(id);
                let at = list.iter().position(|&other| other == id);
                if is_insert {
                    prop_assert_eq!(set.insert(id), at.is_none());
                    if at.is_none() {
                        list.push(id);
                    }
                } else {
                    prop_assert_eq!(set.remove(id), at.is_some());
                    if let Some(at) = at {
                        list.remove(at);
                    }
                }
                prop_assert_eq!(set.len(), list.len());
                prop_assert_eq!(set.iter().collect::<Vec<_>>(), list.clone());
            }
        }
    }
}
