//! One round of stealing: which task goes from whom to whom.
//!
//! Stock looks at every stealable task of every victim and at every thief for each.
//! Here thieves are kept in the order in which they could start a task whose data
//! they lack, so that a task looks at the first of them and at the holders of its
//! data; and a round ends after so many tasks. The next round goes on where it ended.

use std::collections::BTreeSet;
use std::sync::Arc;

use oxidask_wire::Value;

use super::LEVELS;
use crate::id::{TaskId, WorkerId};
use crate::placement::{AHEAD_SECONDS, Holders};
use crate::scheduler::{Cx, Scheduler};
use crate::sets::RankSet;
use crate::task::{TaskState, ordered};

/// Requests in one round. Chosen: a round takes a few milliseconds (bench `stealing`).
const REQUESTS_MAX: usize = 500;

/// Tasks looked at in one round, chosen likewise; more than [`IN_VAIN_MAX`] for every
/// level of [`FEW`] victims, so that none of few victims is ever left out.
const LOOKS_MAX: usize = 5_000;

/// Tasks of one victim and level looked at in vain before others have their turn. Those
/// of a level cost about the same, so that what is impossible for many is so for the rest.
const IN_VAIN_MAX: usize = 16;

/// Workers in the restrictions of a task that take as long to compare as another look.
/// Measured (bench `stealing`): 500 take a microsecond, a look otherwise 0.3.
const RESTRICTIONS_PER_LOOK: usize = 160;

/// Seconds between two rounds of which the first ended early. Chosen: others have their turn.
pub(super) const PAUSE: f64 = 0.010;

/// Up to here victims are sorted by what they have to do (fixed in distributed, too).
const FEW: usize = 20;

/// Workers looked at while none is saturated (fixed in distributed, too).
const UNSATURATED_MAX: usize = 10;

/// Seconds of work below which a worker that is not saturated is left alone (fixed in
/// distributed, too).
const OCCUPANCY_MIN: f64 = 0.2;

/// Soonest start first: combined occupancy per thread as an ordered integer, bytes held, rank.
type Place = (u64, i64, u32);

/// A round while it lasts. Vectors are by rank, which does not change meanwhile.
struct Round {
    /// Seconds of work of each worker, requests under way included.
    occupancies: Vec<f64>,
    /// Seconds of work per thread, of the whole cluster.
    average: f64,
    thieves: RankSet,
    order: BTreeSet<Place>,
    /// Where the inputs of the present task are.
    holders: Holders,
    /// The restrictions looked at last, and which workers satisfy them.
    valid: Option<(Restrictions, RankSet)>,
    looks_left: usize,
    requests_left: usize,
    /// Some tasks were not looked at because others of their kind were in vain.
    has_skipped: bool,
    log: Vec<Value>,
}

/// Restrictions of a task, to tell whether another one has the same.
struct Restrictions {
    workers: Vec<Arc<str>>,
    hosts: Vec<Arc<str>>,
    resources: Vec<(Arc<str>, f64)>,
}

impl Restrictions {
    fn of(ts: &TaskState) -> Self {
        Self {
            workers: ts.worker_restrictions().to_vec(),
            hosts: ts.host_restrictions().to_vec(),
            resources: ts.resource_restrictions().to_vec(),
        }
    }

    /// Addresses of workers are shared texts, so that none has to be read.
    fn are_those_of(&self, ts: &TaskState) -> bool {
        let workers = ts.worker_restrictions();
        let same = |(left, right): (&Arc<str>, &Arc<str>)| Arc::ptr_eq(left, right);
        self.workers.len() == workers.len()
            && self.workers.iter().zip(workers).all(same)
            && self.hosts == ts.host_restrictions()
            && self.resources == ts.resource_restrictions()
    }
}

impl Round {
    /// Which workers may run a task, unless any of them may.
    fn valid_workers(&mut self, scheduler: &Scheduler, task: TaskId) -> Option<&RankSet> {
        let ts = &scheduler.tasks[task];
        ts.extras.as_ref()?;
        let is_known = |(known, _): &(Restrictions, RankSet)| known.are_those_of(ts);
        if !self.valid.as_ref().is_some_and(is_known) {
            let valid = scheduler.valid_workers(task)?;
            self.valid = Some((Restrictions::of(ts), valid));
        }
        self.valid.as_ref().map(|(_, valid)| valid)
    }

    fn place(&self, scheduler: &Scheduler, rank: u32) -> Place {
        let ws = &scheduler.workers[scheduler.workers.ranked(rank)];
        let start = self.occupancies[rank as usize] / f64::from(ws.nthreads.max(1));
        (ordered(start), ws.nbytes, rank)
    }

    fn is_over(&self) -> bool {
        self.thieves.is_empty() || self.looks_left == 0 || self.requests_left == 0
    }

    /// The thief where the task, whose inputs are located, can start the soonest.
    fn thief(&mut self, scheduler: &Scheduler, task: TaskId) -> Option<u32> {
        let ts = &scheduler.tasks[task];
        let mut pool = None;
        if let Some(mut valid) = self.valid_workers(scheduler, task).cloned() {
            valid.intersect(&self.thieves);
            if !valid.is_empty() {
                pool = Some(valid);
            } else if !ts.loose_restrictions {
                return None;
            } else if let Some(mut valid) = scheduler.loosely_valid_workers(task) {
                valid.intersect(&self.thieves);
                pool = Some(valid);
            }
        }
        let pool = pool.as_ref().unwrap_or(&self.thieves);
        let objective = |rank: u32| {
            let ws = &scheduler.workers[scheduler.workers.ranked(rank)];
            let start = self.occupancies[rank as usize] / f64::from(ws.nthreads.max(1))
                + self.holders.communication(scheduler, rank);
            let actors = if ts.actor { ws.actors.len() } else { 0 };
            (actors, ordered(start), ws.nbytes, rank)
        };
        if ts.actor || pool.len() <= FEW {
            return pool.iter().min_by_key(|&rank| objective(rank));
        }
        let in_pool = |rank: &u32| pool.contains(*rank);
        let ranks = self.order.iter().map(|&(_, _, rank)| rank);
        let without_data = ranks.filter(in_pool).take(1);
        let holders = self.holders.ranks().filter(in_pool);
        without_data
            .chain(holders)
            .min_by_key(|&rank| objective(rank))
    }
}

impl Scheduler {
    /// Asks victims for tasks that a thief could start sooner. True if there is more
    /// to be done at once.
    pub(super) fn balance(&mut self, cx: &mut Cx<'_>) -> bool {
        let idle = &self.workers.idle;
        if idle.is_empty() || idle.len() == self.workers.len() {
            return false;
        }
        let mut round = self.begin_round();
        let (victims, are_saturated) = self.victims(&round);
        if victims.is_empty() {
            return false;
        }
        let are_many = victims.len() >= FEW;
        'round: for level in 0..LEVELS {
            for &victim in &victims {
                let rank = self.workers[victim].rank;
                if self.workers[victim].stealable.0[level].is_empty() {
                    continue;
                }
                // What was taken from it before has made it one like the others.
                if are_many && are_saturated && !self.workers.saturated.contains(rank) {
                    continue;
                }
                self.steal_from(&mut round, victim, level, cx);
                if round.is_over() {
                    if are_many {
                        self.stealing.turn = rank as usize;
                    }
                    break 'round;
                }
            }
        }
        self.stealing.skipped = if round.has_skipped {
            self.stealing.skipped + IN_VAIN_MAX
        } else {
            0
        };
        if round.log.is_empty() {
            return false;
        }
        let is_cut_short = !round.thieves.is_empty() && round.is_over();
        let entry = vec!["request".into(), Value::Array(round.log)];
        cx.event(["stealing".into()], Value::Array(entry));
        is_cut_short
    }

    fn begin_round(&self) -> Round {
        let ids = self.workers.ids();
        let occupancies = ids
            .iter()
            .map(|&worker| self.occupancy(worker) + self.stealing.load(worker).occupancy)
            .collect();
        let mut round = Round {
            occupancies,
            average: self.total_occupancy() / self.workers.total_nthreads.max(1) as f64,
            thieves: self.workers.idle.clone(),
            order: BTreeSet::new(),
            holders: Holders::default(),
            valid: None,
            looks_left: LOOKS_MAX,
            requests_left: REQUESTS_MAX,
            has_skipped: false,
            log: Vec::new(),
        };
        for rank in round.thieves.iter() {
            let place = round.place(self, rank);
            round.order.insert(place);
        }
        round
    }

    /// Tasks of a worker, requests under way included.
    fn combined_nprocessing(&self, worker: WorkerId) -> i64 {
        self.workers[worker].processing.len() as i64 + self.stealing.load(worker).task_count
    }

    /// Who has too much to do, and whether that means saturated workers.
    fn victims(&self, round: &Round) -> (Vec<WorkerId>, bool) {
        let occupancy = |&rank: &u32| round.occupancies[rank as usize];
        let busiest_first = |ranks: &mut Vec<u32>| {
            ranks.sort_by(|left, right| occupancy(right).total_cmp(&occupancy(left)));
        };
        let mut ranks: Vec<u32> = self.workers.saturated.iter().collect();
        let are_saturated = !ranks.is_empty();
        if !are_saturated {
            ranks = (0..self.workers.len() as u32).collect();
            if ranks.len() > UNSATURATED_MAX {
                ranks.select_nth_unstable_by(UNSATURATED_MAX, |left, right| {
                    let by_occupancy = occupancy(right).total_cmp(&occupancy(left));
                    by_occupancy.then(left.cmp(right))
                });
                ranks.truncate(UNSATURATED_MAX);
                ranks.sort_unstable();
            }
            ranks.retain(|&rank| {
                let worker = self.workers.ranked(rank);
                let nthreads = f64::from(self.workers[worker].nthreads);
                // What was handed out ahead of need is done before a request is answered;
                // twice that, since durations are but averages.
                let occupancy_min = OCCUPANCY_MIN.max(2.0 * AHEAD_SECONDS * nthreads);
                round.occupancies[rank as usize] > occupancy_min
                    && self.combined_nprocessing(worker) as f64 > nthreads
                    && !round.thieves.contains(rank)
            });
        }
        if ranks.len() < FEW {
            busiest_first(&mut ranks);
        } else {
            let turn = self.stealing.turn;
            let first = ranks.partition_point(|&rank| (rank as usize) < turn);
            let count = ranks.len();
            ranks.rotate_left(first % count);
        }
        let victims = ranks.iter().map(|&rank| self.workers.ranked(rank));
        (victims.collect(), are_saturated)
    }

    /// Takes tasks of one level from one victim, as long as that helps. Those assigned
    /// last come first: they are the least likely to have begun.
    fn steal_from(&mut self, round: &mut Round, victim: WorkerId, level: usize, cx: &mut Cx<'_>) {
        let mut tasks = Vec::with_capacity(IN_VAIN_MAX);
        loop {
            let stealable = &self.workers[victim].stealable.0[level];
            let has_more = stealable.len() > IN_VAIN_MAX;
            let skipped = if has_more {
                self.stealing.skipped % stealable.len()
            } else {
                0
            };
            tasks.clear();
            tasks.extend(stealable.iter().rev().skip(skipped).take(IN_VAIN_MAX));
            let mut has_stolen = false;
            for &task in &tasks {
                if round.is_over() {
                    break;
                }
                let restrictions = self.tasks[task].worker_restrictions().len();
                let looks = 1 + restrictions / RESTRICTIONS_PER_LOOK;
                round.looks_left = round.looks_left.saturating_sub(looks);
                has_stolen |= self.steal(round, task, victim, level, cx);
            }
            round.has_skipped |= has_more && !has_stolen;
            if !has_more || !has_stolen || round.is_over() {
                break;
            }
        }
        let occupancy = round.occupancies[self.workers[victim].rank as usize];
        self.check_idle_saturated_with(victim, occupancy);
    }

    /// Asks for one task if a thief could start it sooner.
    fn steal(
        &mut self,
        round: &mut Round,
        task: TaskId,
        victim: WorkerId,
        level: usize,
        cx: &mut Cx<'_>,
    ) -> bool {
        let ts = &self.tasks[task];
        if ts.awaits_bundle {
            // Its worker has not been told of it yet.
            return false;
        }
        round.holders.locate(self, task);
        let Some(thief) = round.thief(self, task) else {
            return false;
        };
        let victim_rank = self.workers[victim].rank;
        let occupancy_thief = round.occupancies[thief as usize];
        let occupancy_victim = round.occupancies[victim_rank as usize];
        let communication_thief = round.holders.communication(self, thief);
        let communication_victim = round.holders.communication(self, victim_rank);
        let compute = self.prefix_duration(self.groups[ts.group].prefix);
        if occupancy_thief + communication_thief + compute
            > occupancy_victim - (communication_victim + compute) / 2.0
        {
            return false;
        }

        let thief_id = self.workers.ranked(thief);
        let cost = compute + communication_victim;
        round.log.push(Value::Array(vec![
            cx.now.into(),
            level.into(),
            Value::from(&ts.key),
            cost.into(),
            Value::from(&self.workers[victim].address),
            occupancy_victim.into(),
            Value::from(&self.workers[thief_id].address),
            occupancy_thief.into(),
        ]));
        self.stealing.metrics.request_count_total[level] += 1;
        self.stealing.metrics.request_cost_total[level] += cost;
        let durations = (cost, compute + communication_thief);
        self.request_move(task, victim, thief_id, durations, cx);

        round.requests_left -= 1;
        let place = round.place(self, thief);
        round.order.remove(&place);
        round.occupancies[victim_rank as usize] -= durations.0;
        round.occupancies[thief as usize] += durations.1;
        let nthreads = f64::from(self.workers[thief_id].nthreads);
        let is_unoccupied = (self.combined_nprocessing(thief_id) as f64) < nthreads
            || round.occupancies[thief as usize] < nthreads * round.average / 2.0;
        if is_unoccupied {
            let place = round.place(self, thief);
            round.order.insert(place);
        } else {
            round.thieves.remove(thief);
        }
        true
    }
}
