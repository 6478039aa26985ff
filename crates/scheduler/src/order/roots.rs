//! Which roots (tasks without dependencies) each task needs.
//!
//! A set of roots is a sorted list of spans of root numbers, and equal sets are
//! stored once. Roots are numbered so that those needed together stand together
//! ([`Shape`](super::shape::Shape)), which makes most sets a span or two: a
//! cumulative sum over `n` chunks needs `n` spans instead of `n²/2` entries.
//!
//! A set has at most [`RootSets::span_limit`] spans; beyond it the narrowest gaps
//! are filled and the set becomes an upper bound. That keeps time and memory
//! linear for graphs without any structure.

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use std::hash::BuildHasher;

/// Root numbers `start..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) end: u32,
}

impl Span {
    pub(super) fn len(self) -> u32 {
        self.end - self.start
    }
}

/// The identity of one stored set: equal ids, equal sets.
pub(super) type SetId = u32;

/// All distinct sets of roots of one graph.
#[derive(Debug)]
pub(super) struct RootSets {
    spans: Vec<Span>,
    offsets: Vec<u32>,
    sizes: Vec<u32>,
    by_content: HashTable<SetId>,
    span_limit: usize,
    /// For every set the last union it took part in, to skip repetitions.
    last_union: Vec<u32>,
    union_count: u32,
    merged: Vec<Span>,
    gaps: Vec<(u32, u32)>,
}

impl RootSets {
    /// Sets for a graph of `task_count` tasks.
    pub(super) fn new(task_count: usize) -> Self {
        // Two million spans (16 MB) over all tasks, and never fewer than 8 for a
        // set: graphs up to 1400 tasks or so are always exact.
        const SPAN_BUDGET: usize = 1 << 21;
        Self {
            spans: Vec::new(),
            offsets: vec![0],
            sizes: Vec::new(),
            by_content: HashTable::new(),
            span_limit: (SPAN_BUDGET / task_count.max(1)).max(8),
            last_union: Vec::new(),
            union_count: 0,
            merged: Vec::new(),
            gaps: Vec::new(),
        }
    }

    pub(super) fn spans(&self, set: SetId) -> &[Span] {
        let start = self.offsets[set as usize] as usize;
        let end = self.offsets[set as usize + 1] as usize;
        &self.spans[start..end]
    }

    /// How many roots the set has.
    pub(super) fn size(&self, set: SetId) -> u32 {
        self.sizes[set as usize]
    }

    pub(super) fn singleton(&mut self, root: u32) -> SetId {
        self.merged.clear();
        self.merged.push(Span {
            start: root,
            end: root + 1,
        });
        self.intern_merged()
    }

    /// The union of at least one set.
    pub(super) fn union(&mut self, sets: &[SetId]) -> SetId {
        let first = sets[0];
        if sets.iter().all(|&set| set == first) {
            return first;
        }
        self.union_count += 1;
        self.merged.clear();
        for &set in sets {
            let last_union = &mut self.last_union[set as usize];
            if *last_union == self.union_count {
                continue;
            }
            *last_union = self.union_count;
            let start = self.offsets[set as usize] as usize;
            let end = self.offsets[set as usize + 1] as usize;
            self.merged.extend_from_slice(&self.spans[start..end]);
        }
        // A stable sort merges the sorted runs it is made of in linear time.
        self.merged.sort_by_key(|span| span.start);
        self.merged.dedup_by(|next, last| {
            let touches = next.start <= last.end;
            if touches {
                last.end = last.end.max(next.end);
            }
            touches
        });
        self.fill_narrow_gaps();
        self.intern_merged()
    }

    fn fill_narrow_gaps(&mut self) {
        if self.merged.len() <= self.span_limit {
            return;
        }
        let surplus = self.merged.len() - self.span_limit;
        self.gaps.clear();
        for (index, pair) in self.merged.windows(2).enumerate() {
            self.gaps.push((pair[1].start - pair[0].end, index as u32));
        }
        self.gaps.select_nth_unstable(surplus - 1);
        let widest_filled = self.gaps[surplus - 1];
        let mut index = 0;
        self.merged.dedup_by(|next, last| {
            // `last.end` is still the end of the span right before `next`.
            let fill = (next.start - last.end, index) <= widest_filled;
            index += 1;
            if fill {
                last.end = next.end;
            }
            fill
        });
    }

    fn intern_merged(&mut self) -> SetId {
        let Self {
            spans,
            offsets,
            merged,
            ..
        } = self;
        let spans_of =
            |set: SetId| &spans[offsets[set as usize] as usize..offsets[set as usize + 1] as usize];
        let hasher = FixedState::default();
        let hash = hasher.hash_one(&merged[..]);
        if let Some(&set) = self
            .by_content
            .find(hash, |&set| spans_of(set) == &merged[..])
        {
            return set;
        }
        let set = self.sizes.len() as SetId;
        self.by_content
            .insert_unique(hash, set, |&set| hasher.hash_one(spans_of(set)));
        self.sizes.push(merged.iter().map(|span| span.len()).sum());
        self.last_union.push(0);
        self.spans.extend_from_slice(&self.merged);
        self.offsets.push(self.spans.len() as u32);
        set
    }
}
