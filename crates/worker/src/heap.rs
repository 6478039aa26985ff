//! Tasks by priority.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use hashbrown::HashMap;

use crate::id::TaskId;
use crate::priority::Priority;
use crate::sets::{IdSet, Iter};
use crate::tasks::Tasks;

/// Entries of tasks that are gone are put up with until there are this many
/// more than members. Chosen so that rebuilding the heap costs little per task.
const STALE_MAX: usize = 1024;

/// A set whose best member is found quickly; of equal ones the oldest.
///
/// Same as `HeapSet` in distributed, peculiarities included: a task stands
/// where its priority put it when it was added, and one that was discarded and
/// added again stands at the better of its two places while other members keep
/// the heap alive. Except: stock never drops entries of discarded tasks that
/// do not come to the top.
#[derive(Debug, Default)]
pub(crate) struct HeapSet {
    members: IdSet<TaskId>,
    heap: BinaryHeap<Reverse<Entry>>,
    /// Additions so far.
    sequence: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    priority: Priority,
    sequence: u64,
    task: TaskId,
    /// Tells a task from a later one with the same id.
    birth: u64,
}

impl HeapSet {
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub(crate) fn contains(&self, task: TaskId) -> bool {
        self.members.contains(task)
    }

    /// The members in order of insertion.
    pub(crate) fn iter(&self) -> Iter<'_, TaskId> {
        self.members.iter()
    }

    /// Adds a task, which has a priority.
    pub(crate) fn add(&mut self, task: TaskId, tasks: &Tasks) {
        if !self.members.insert(task) {
            return;
        }
        let ts = &tasks[task];
        self.heap.push(Reverse(Entry {
            priority: ts.priority.expect("a task to run or fetch has a priority"),
            sequence: self.sequence,
            task,
            birth: ts.birth,
        }));
        self.sequence += 1;
        if self.heap.len() > 2 * self.members.len() + STALE_MAX {
            self.drop_stale(tasks);
        }
    }

    /// Removes a task if it is a member.
    pub(crate) fn discard(&mut self, task: TaskId) {
        self.members.remove(task);
        if self.members.is_empty() {
            self.heap.clear();
        }
    }

    /// The best member.
    pub(crate) fn peek(&mut self, tasks: &Tasks) -> Option<TaskId> {
        if self.members.is_empty() {
            return None;
        }
        while let Some(Reverse(entry)) = self.heap.peek() {
            if self.is_member(entry, tasks) {
                return Some(entry.task);
            }
            self.heap.pop();
        }
        unreachable!("every member has an entry in the heap")
    }

    /// The best members, in the order in which [`pop`](Self::pop) would give them.
    pub(crate) fn best(&self, count: usize, tasks: &Tasks) -> Vec<TaskId> {
        let entries = self.heap.as_slice();
        let mut best = Vec::with_capacity(count.min(self.members.len()));
        // What a heap holds below an entry comes after it.
        let mut open: BinaryHeap<Reverse<(Entry, usize)>> = BinaryHeap::new();
        let open_up = |open: &mut BinaryHeap<_>, at: usize| {
            if let Some(Reverse(entry)) = entries.get(at) {
                open.push(Reverse((*entry, at)));
            }
        };
        open_up(&mut open, 0);
        let may_repeat = entries.len() > self.members.len();
        while best.len() < count
            && let Some(Reverse((entry, at))) = open.pop()
        {
            if self.is_member(&entry, tasks) && !(may_repeat && best.contains(&entry.task)) {
                best.push(entry.task);
            }
            open_up(&mut open, 2 * at + 1);
            open_up(&mut open, 2 * at + 2);
        }
        best
    }

    /// Removes the best member.
    pub(crate) fn pop(&mut self, tasks: &Tasks) -> Option<TaskId> {
        let task = self.peek(tasks)?;
        self.heap.pop();
        self.discard(task);
        Some(task)
    }

    fn is_member(&self, entry: &Entry, tasks: &Tasks) -> bool {
        self.members.contains(entry.task) && tasks[entry.task].birth == entry.birth
    }

    /// Keeps the best entry of each member.
    fn drop_stale(&mut self, tasks: &Tasks) {
        let mut best: HashMap<TaskId, Entry, foldhash::fast::FixedState> = HashMap::default();
        for Reverse(entry) in std::mem::take(&mut self.heap) {
            if self.is_member(&entry, tasks) {
                let kept = best.entry(entry.task).or_insert(entry);
                *kept = entry.min(*kept);
            }
        }
        self.heap = best.into_values().map(Reverse).collect();
    }
}

#[cfg(test)]
mod tests {
    use oxidask_wire::Key;

    use super::HeapSet;
    use crate::counter::PrefixId;
    use crate::id::TaskId;
    use crate::priority::Priority;
    use crate::task::TaskState;
    use crate::tasks::Tasks;

    fn add_task(tasks: &mut Tasks, key: &str, priority: f64) -> TaskId {
        let mut ts = TaskState::new(Key::from(key), PrefixId(0));
        ts.priority = Some(Priority::from_scheduler(&[priority]).unwrap());
        tasks.insert(ts)
    }

    #[test]
    fn best_first_then_oldest() {
        let mut tasks = Tasks::default();
        let ids = [2.0, 1.0, 1.0, 0.0].map(|p| add_task(&mut tasks, &format!("x-{p}"), p));
        let mut heap = HeapSet::default();
        for id in ids {
            heap.add(id, &tasks);
        }
        let mut order = Vec::new();
        while let Some(task) = heap.pop(&tasks) {
            order.push(task);
        }
        assert_eq!(order, [ids[3], ids[1], ids[2], ids[0]]);
    }

    #[test]
    fn the_best_are_those_that_pop_gives() {
        let mut tasks = Tasks::default();
        let mut heap = HeapSet::default();
        for number in 0..50_u32 {
            let id = add_task(
                &mut tasks,
                &format!("x-{number}"),
                f64::from(number * 7 % 20),
            );
            heap.add(id, &tasks);
            if number % 3 == 0 {
                heap.discard(id);
            }
            if number % 6 == 0 {
                heap.add(id, &tasks);
            }
        }
        let best = heap.best(20, &tasks);
        assert_eq!(best.len(), 20);
        let popped: Vec<_> = std::iter::from_fn(|| heap.pop(&tasks)).collect();
        assert_eq!(best, popped[..20]);
        assert_eq!(heap.best(20, &tasks), []);
    }

    #[test]
    fn a_task_added_again_stands_at_its_better_place() {
        let mut tasks = Tasks::default();
        let a = add_task(&mut tasks, "a", 1.0);
        let b = add_task(&mut tasks, "b", 2.0);
        let mut heap = HeapSet::default();
        heap.add(a, &tasks);
        heap.add(b, &tasks);
        heap.discard(a);
        tasks[a].priority = Some(Priority::from_scheduler(&[3.0]).unwrap());
        heap.add(a, &tasks);
        assert_eq!(heap.peek(&tasks), Some(a));
    }

    #[test]
    fn the_place_of_a_forgotten_task_is_not_inherited() {
        let mut tasks = Tasks::default();
        let a = add_task(&mut tasks, "a", 1.0);
        let b = add_task(&mut tasks, "b", 2.0);
        let mut heap = HeapSet::default();
        heap.add(a, &tasks);
        heap.add(b, &tasks);
        heap.discard(a);
        tasks.remove(a);
        tasks.reclaim();
        let c = add_task(&mut tasks, "c", 3.0);
        assert_eq!(c, a);
        heap.add(c, &tasks);
        assert_eq!(heap.pop(&tasks), Some(b));
        assert_eq!(heap.pop(&tasks), Some(c));
    }

    #[test]
    fn entries_of_discarded_tasks_are_bounded() {
        let mut tasks = Tasks::default();
        let best = add_task(&mut tasks, "best", 0.0);
        let other = add_task(&mut tasks, "other", 1.0);
        let mut heap = HeapSet::default();
        heap.add(best, &tasks);
        for _ in 0..10_000 {
            heap.add(other, &tasks);
            heap.discard(other);
        }
        assert!(heap.heap.len() < 2_000);
        heap.add(other, &tasks);
        assert_eq!(heap.pop(&tasks), Some(best));
        assert_eq!(heap.pop(&tasks), Some(other));
        assert_eq!(heap.pop(&tasks), None);
    }
}
