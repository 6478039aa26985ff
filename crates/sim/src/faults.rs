//! The steps of a plan.

use oxidask_scheduler::Event;

use crate::cluster::{AtWorker, Cluster, Happening, Submission};
use crate::plan::Action;
use crate::worker::NANNY_PAUSE;

impl Cluster<'_> {
    pub(crate) fn step(&mut self, number: usize) {
        let action = &self.plan.steps[number].action;
        self.tally.disturbances += u32::from(action.is_disturbance());
        match action {
            Action::Submit {
                client,
                tasks,
                wanted,
                expansion,
            } => {
                if let Some(client) = self.seats[*client] {
                    let submission = Submission {
                        tasks: tasks.clone(),
                        wanted: wanted.clone(),
                        expansion: *expansion,
                        submitting_task: None,
                    };
                    self.submit(client, submission);
                }
            }
            Action::Release { client, tasks } => {
                if let Some(client) = self.seats[*client] {
                    self.release(client, tasks);
                }
            }
            Action::Cancel {
                client,
                tasks,
                force,
            } => {
                if let Some(client) = self.seats[*client] {
                    self.cancel(client, tasks, *force);
                }
            }
            Action::Retry { client, tasks } => {
                if let Some(client) = self.seats[*client] {
                    let keys = self.keys_of(tasks);
                    let node = &mut self.clients[client];
                    let delay = node.up.delay(&self.plan.settings);
                    let client = node.name.clone();
                    self.agenda.after(delay, Happening::Retry { client, keys });
                }
            }
            Action::FireAndForget { client, tasks } => {
                if let Some(client) = self.seats[*client] {
                    self.fire_and_forget(client, tasks);
                }
            }
            Action::Scatter {
                client,
                task,
                machine,
            } => {
                if let (Some(client), Some(worker)) = (self.seats[*client], self.ready(*machine)) {
                    let task = *task;
                    self.send_aside(worker, AtWorker::Scatter { client, task });
                }
            }
            Action::Disconnect { client } => {
                if let Some(client) = self.seats[*client] {
                    self.disconnect(client);
                }
            }
            Action::Connect { client } => {
                if self.seats[*client].is_none() {
                    self.connect(*client, None);
                }
            }
            Action::Start { machine } => self.start(*machine, false, None),
            Action::StartTwice { machine, noticed } => self.start(*machine, false, Some(*noticed)),
            Action::Crash {
                machine,
                flushed,
                returns,
                same_address,
            } => {
                if let Some(worker) = self.machines[*machine] {
                    self.die(worker, *flushed);
                    if let Some(returns) = returns {
                        let machine = *machine;
                        let same_address = *same_address;
                        self.agenda.after(
                            *returns,
                            Happening::Start {
                                machine,
                                same_address,
                            },
                        );
                    }
                }
            }
            Action::Break { machine, noticed } => {
                if let Some(worker) = self.ready(*machine) {
                    self.break_stream(worker, *noticed);
                }
            }
            Action::Freeze { machine, time } => {
                if let Some(worker) = self.machines[*machine] {
                    self.workers[worker].is_frozen = true;
                    self.agenda.after(*time, Happening::Thaw { worker });
                }
            }
            Action::Stall { time } => {
                self.stalled.get_or_insert_default();
                self.agenda.after(*time, Happening::GoOn);
            }
            Action::Pause { machine, time } => {
                if let Some(worker) = self.ready(*machine) {
                    let until = self.agenda.now + time;
                    let node = &mut self.workers[worker];
                    node.short_until = node.short_until.max(until);
                    self.observe_memory(worker);
                    let what = AtWorker::ObserveMemory;
                    self.agenda.at(until, Happening::AtWorker { worker, what });
                }
            }
            Action::SlowDisk {
                machine,
                read,
                time,
            } => {
                if let Some(worker) = self.machines[*machine] {
                    self.workers[worker].disk = (*read, self.agenda.now + time);
                }
            }
            Action::Damage { machine, task } => {
                let key = &self.keys[*task];
                if let Some(worker) = self.machines[*machine]
                    && self.workers[worker].store.contains_key(key)
                {
                    self.workers[worker].damaged.insert(key.clone());
                }
            }
            Action::Cut { from, to, time } => {
                let until = self.agenda.now + time;
                self.cuts.push((*from, *to, until));
            }
            Action::Retire { machine } => {
                if let Some(worker) = self.machines[*machine] {
                    let node = &mut self.workers[worker];
                    let addresses = vec![node.address.clone()];
                    let delay = node.aside.delay(&self.plan.settings);
                    self.agenda.after(delay, Happening::Retire { addresses });
                }
            }
            Action::Adapt => self.agenda.after(0, Happening::Adaptive),
            Action::Replicate { machine, task } => {
                if let Some(worker) = self.machines[*machine] {
                    let address = self.workers[worker].address.clone();
                    let key = self.keys[*task].clone();
                    self.agenda.after(0, Happening::Replicate { address, key });
                }
            }
            Action::Restart => self.restart(),
        }
    }

    /// A worker that can be spoken to and is not standing still.
    fn ready(&self, machine: usize) -> Option<usize> {
        let worker = self.machines[machine]?;
        let node = &self.workers[worker];
        (!node.is_frozen && !node.is_closing).then_some(worker)
    }

    /// What is under way is lost; the scheduler notices at once, the worker later.
    fn break_stream(&mut self, worker: usize, noticed: u64) {
        let node = &mut self.workers[worker];
        if node.is_cut_off || node.id.is_none() {
            return;
        }
        node.is_cut_off = true;
        node.down.on_its_way += 1;
        self.agenda.after(
            noticed,
            Happening::AtWorker {
                worker,
                what: AtWorker::StreamEnded,
            },
        );
        let delay = self.workers[worker].aside.delay(&self.plan.settings);
        self.agenda.after(delay, Happening::WorkerGone { worker });
    }

    /// Tasks are cleared, then nannies start every worker anew.
    fn restart(&mut self) {
        let stimulus_id = self.stimulus("restart").into();
        self.scheduler_event(Event::Restart { stimulus_id });
        for machine in 0..self.machines.len() {
            if let Some(worker) = self.machines[machine] {
                self.die(worker, true);
                let start = Happening::Start {
                    machine,
                    same_address: false,
                };
                self.agenda.after(NANNY_PAUSE, start);
            }
        }
    }

    /// All faults are over, and a new worker comes that can run everything.
    pub(crate) fn heal(&mut self) {
        self.go_on();
        self.cuts.clear();
        for worker in 0..self.workers.len() {
            self.thaw(worker);
            self.workers[worker].short_until = 0;
            if self.workers[worker].is_alive && !self.workers[worker].is_closing {
                self.observe_memory(worker);
            }
        }
        self.start(self.plan.machines.len(), false, None);
    }
}
