//! Which output to work towards next.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::adjacency::Adjacency;
use super::rank::RankedGraph;
use super::roots::SetId;

/// Leaves that need the same roots always have the same number of roots left to
/// load, so they are tracked together.
#[derive(Debug)]
struct Class {
    /// Roots that must still be loaded. Falls only when a whole block of roots
    /// is loaded, so it never is too low.
    degree: u32,
    /// The next entry of this class in `Targets::leaves` that may be unfinished.
    next_leaf: u32,
    end_leaf: u32,
    /// Leaves that touch what was already run, smallest on top; may hold
    /// finished ones.
    reachable: BinaryHeap<Reverse<u32>>,
    is_changed: bool,
}

/// Candidates compare by degree, then touching what was already run, then rank.
type Candidate = (u32, bool, u32);

/// The leaves that are not finished, by how much they still need.
///
/// Same as `leafs_per_degree` in `dask.order`, without its quadratic cases: the
/// number of (root, leaf) pairs is cut by tracking classes of leaves instead of
/// leaves, and blocks of roots instead of roots when there still are too many.
#[derive(Debug)]
pub(super) struct Targets {
    classes: Vec<Class>,
    leaves: Vec<u32>,
    /// By rank; only leaves that are not roots have one.
    class_of: Vec<u32>,
    /// Roots per block, as a shift.
    block_shift: u32,
    block_left: Vec<u32>,
    /// For each block the classes that need some of its roots.
    block_classes: Adjacency<'static>,
    /// How many of the block's roots, in the order of `block_classes`.
    block_weights: Adjacency<'static>,
    /// Classes whose candidate may differ from the one in the queue.
    changed: Vec<u32>,
    queue: BinaryHeap<Reverse<(Candidate, u32)>>,
}

const NO_CLASS: u32 = u32::MAX;

impl Targets {
    pub(super) fn new(graph: &RankedGraph<'_>) -> Self {
        let mut class_of_set: Vec<u32> = Vec::new();
        let mut sets: Vec<SetId> = Vec::new();
        let mut class_of = vec![NO_CLASS; graph.len()];
        let leaves = || {
            let all = 0..graph.len() as u32;
            all.filter(|&task| graph.is_leaf(task) && !graph.is_root(task))
        };
        for leaf in leaves() {
            let set = graph.root_set[leaf as usize];
            if class_of_set.len() <= set as usize {
                class_of_set.resize(set as usize + 1, NO_CLASS);
            }
            let class = &mut class_of_set[set as usize];
            if *class == NO_CLASS {
                *class = sets.len() as u32;
                sets.push(set);
            }
            class_of[leaf as usize] = *class;
        }
        let by_class = Adjacency::from_pairs(sets.len(), || {
            leaves().map(|leaf| (class_of[leaf as usize], leaf))
        });

        let block_shift = block_shift(graph, &sets);
        let block_count = (graph.root_count as usize).div_ceil(1 << block_shift);
        let mut block_left = vec![1u32 << block_shift; block_count];
        if let Some(last) = block_left.last_mut() {
            *last = graph.root_count - ((block_count as u32 - 1) << block_shift);
        }
        let overlaps = || {
            sets.iter().enumerate().flat_map(|(class, &set)| {
                graph.root_sets.spans(set).iter().flat_map(move |span| {
                    let blocks = span.start >> block_shift..=(span.end - 1) >> block_shift;
                    blocks.map(move |block| {
                        let start = span.start.max(block << block_shift);
                        let end = u64::from(span.end).min((u64::from(block) + 1) << block_shift);
                        (block, class as u32, end as u32 - start)
                    })
                })
            })
        };
        let mut next_leaf = 0;
        let classes = (0..sets.len() as u32)
            .map(|class| {
                let start = next_leaf;
                next_leaf += by_class.degree(class);
                Class {
                    degree: graph.root_sets.size(sets[class as usize]),
                    next_leaf: start,
                    end_leaf: next_leaf,
                    reachable: BinaryHeap::new(),
                    is_changed: true,
                }
            })
            .collect();
        Self {
            classes,
            leaves: (0..sets.len() as u32)
                .flat_map(|class| by_class.of(class).iter().copied())
                .collect(),
            class_of,
            block_shift,
            block_left,
            block_classes: Adjacency::from_pairs(block_count, || {
                overlaps().map(|(block, class, _)| (block, class))
            }),
            block_weights: Adjacency::from_pairs(block_count, || {
                overlaps().map(|(block, _, weight)| (block, weight))
            }),
            changed: (0..sets.len() as u32).collect(),
            queue: BinaryHeap::new(),
        }
    }

    /// Says that a root, by its number, has run.
    pub(super) fn root_done(&mut self, root_number: u32) {
        let block = root_number >> self.block_shift;
        self.block_left[block as usize] -= 1;
        if self.block_left[block as usize] > 0 {
            return;
        }
        let classes = self.block_classes.of(block);
        for (&class, &weight) in classes.iter().zip(self.block_weights.of(block)) {
            self.classes[class as usize].degree -= weight;
            mark_changed(&mut self.classes, &mut self.changed, class);
        }
    }

    /// Says that one of the dependencies of a task has run. Ignores everything
    /// but leaves.
    pub(super) fn task_reachable(&mut self, task: u32) {
        let class = self.class_of[task as usize];
        if class != NO_CLASS {
            self.classes[class as usize].reachable.push(Reverse(task));
            mark_changed(&mut self.classes, &mut self.changed, class);
        }
    }

    /// Says that a task has run. Ignores everything but leaves.
    pub(super) fn task_done(&mut self, task: u32) {
        let class = self.class_of[task as usize];
        if class != NO_CLASS {
            mark_changed(&mut self.classes, &mut self.changed, class);
        }
    }

    /// The unfinished leaf with the fewest roots to load, at least one.
    pub(super) fn cheapest(&mut self, is_done: &[bool]) -> Option<u32> {
        while let Some(class) = self.changed.pop() {
            self.classes[class as usize].is_changed = false;
            if let Some(candidate) = self.candidate(class, is_done) {
                self.queue.push(Reverse((candidate, class)));
            }
        }
        while let Some(&Reverse((candidate, class))) = self.queue.peek() {
            if self.candidate(class, is_done) == Some(candidate) {
                return Some(candidate.2);
            }
            // A class whose candidate changes is queued anew, so this one is old.
            self.queue.pop();
        }
        None
    }

    fn candidate(&mut self, class: u32, is_done: &[bool]) -> Option<Candidate> {
        let class = &mut self.classes[class as usize];
        if class.degree == 0 {
            return None;
        }
        while let Some(&Reverse(leaf)) = class.reachable.peek() {
            if !is_done[leaf as usize] {
                return Some((class.degree, false, leaf));
            }
            class.reachable.pop();
        }
        while class.next_leaf < class.end_leaf {
            let leaf = self.leaves[class.next_leaf as usize];
            if !is_done[leaf as usize] {
                return Some((class.degree, true, leaf));
            }
            class.next_leaf += 1;
        }
        None
    }
}

fn mark_changed(classes: &mut [Class], changed: &mut Vec<u32>, class: u32) {
    if !classes[class as usize].is_changed {
        classes[class as usize].is_changed = true;
        changed.push(class);
    }
}

/// The smallest blocks that keep the number of (block, class) pairs linear.
fn block_shift(graph: &RankedGraph<'_>, sets: &[SetId]) -> u32 {
    // Two updates per task cost about as much as the rest of the walk; small
    // graphs can afford to be exact.
    let limit = (2 * graph.len() as u64).max(1 << 17);
    let pair_count = |shift: u32| -> u64 {
        let spans = sets.iter().flat_map(|&set| graph.root_sets.spans(set));
        spans
            .map(|span| u64::from(((span.end - 1) >> shift) - (span.start >> shift) + 1))
            .sum()
    };
    let mut shift = 0;
    while shift < 31 && pair_count(shift) > limit && (graph.root_count >> shift) > 0 {
        shift += 1;
    }
    shift
}
