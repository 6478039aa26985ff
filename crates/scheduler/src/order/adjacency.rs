//! Lists of neighbours, packed into two vectors.

use std::borrow::Cow;

/// For each of `0..len()` a list of neighbours (CSR).
#[derive(Debug)]
pub(super) struct Adjacency<'a> {
    offsets: Cow<'a, [u32]>,
    neighbours: Cow<'a, [u32]>,
}

impl<'a> Adjacency<'a> {
    /// Wraps lists that are packed already, see [`OrderInput`](super::OrderInput).
    pub(super) fn from_parts(offsets: &'a [u32], neighbours: &'a [u32]) -> Self {
        Self {
            offsets: Cow::Borrowed(offsets),
            neighbours: Cow::Borrowed(neighbours),
        }
    }

    /// Groups `(owner, neighbour)` pairs by owner and keeps the order in which
    /// each owner's neighbours appear. `pairs` is called twice.
    pub(super) fn from_pairs<I>(len: usize, pairs: impl Fn() -> I) -> Self
    where
        I: Iterator<Item = (u32, u32)>,
    {
        let mut offsets = vec![0u32; len + 1];
        for (owner, _) in pairs() {
            offsets[owner as usize + 1] += 1;
        }
        for index in 1..=len {
            offsets[index] += offsets[index - 1];
        }
        let mut neighbours = vec![0u32; offsets[len] as usize];
        let mut next = offsets.clone();
        for (owner, neighbour) in pairs() {
            let slot = &mut next[owner as usize];
            neighbours[*slot as usize] = neighbour;
            *slot += 1;
        }
        Self {
            offsets: Cow::Owned(offsets),
            neighbours: Cow::Owned(neighbours),
        }
    }

    /// The same edges seen from the other end, each list ascending.
    pub(super) fn reversed(&self) -> Adjacency<'static> {
        Adjacency::from_pairs(self.len(), || {
            (0..self.len() as u32)
                .flat_map(|owner| self.of(owner).iter().map(move |&other| (other, owner)))
        })
    }

    pub(super) fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    pub(super) fn of(&self, owner: u32) -> &[u32] {
        let start = self.offsets[owner as usize] as usize;
        let end = self.offsets[owner as usize + 1] as usize;
        &self.neighbours[start..end]
    }

    pub(super) fn degree(&self, owner: u32) -> u32 {
        self.offsets[owner as usize + 1] - self.offsets[owner as usize]
    }
}
