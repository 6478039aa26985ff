//! Bundles: tasks whose pickles are made only when a worker has been chosen.

use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashMap;
use oxidask_wire::{Str, Value};

use crate::failure::{Raised, runtime_error};
use crate::graph::RunSpec;
use crate::id::{StimulusId, TaskId};
use crate::instruction::{Instruction, Instructions, ToWorker};
use crate::scheduler::{Cx, Scheduler};
use crate::task::{State, TaskFailure};
use crate::transitions::Detail;

/// Every bundle that some task refers to.
#[derive(Debug, Default)]
pub(crate) struct Bundles {
    by_id: HashMap<u32, Bundle, foldhash::fast::FixedState>,
    last_id: u32,
    /// Pickles that were sent with the last event.
    sent: Vec<(u32, u32)>,
}

#[derive(Debug)]
struct Bundle {
    blob: Bytes,
    /// Tasks that refer to it.
    task_count: u32,
    /// More may come to.
    is_coming: bool,
    requested: bool,
    /// Pickles by index, until sent.
    specs: Vec<RunSpec>,
    /// Tasks in processing that wait for it. Some may have moved on.
    waiting: Vec<TaskId>,
}

impl Bundles {
    /// Takes a bundle in; tasks are counted by [`Bundles::retain`].
    pub(crate) fn insert(&mut self, blob: Bytes) -> u32 {
        self.last_id = self.last_id.wrapping_add(1);
        let bundle = Bundle {
            blob,
            task_count: 0,
            is_coming: true,
            requested: false,
            specs: Vec::new(),
            waiting: Vec::new(),
        };
        self.by_id.insert(self.last_id, bundle);
        self.last_id
    }

    /// One more task refers to it.
    pub(crate) fn retain(&mut self, bundle: u32) {
        if let Some(bundle) = self.by_id.get_mut(&bundle) {
            bundle.task_count += 1;
        }
    }

    /// One task less refers to it; the last one drops it, if its graph is taken in.
    pub(crate) fn release(&mut self, bundle: u32) {
        if let Some(entry) = self.by_id.get_mut(&bundle) {
            entry.task_count = entry.task_count.saturating_sub(1);
            if entry.task_count == 0 && !entry.is_coming {
                self.by_id.remove(&bundle);
            }
        }
    }

    /// The bundle as the helper packed it.
    pub(crate) fn blob(&self, bundle: u32) -> Option<Bytes> {
        self.by_id.get(&bundle).map(|bundle| bundle.blob.clone())
    }

    /// No more tasks come to refer to a bundle; drops it if there are none.
    pub(crate) fn drop_unused(&mut self, bundle: u32) {
        if let Some(entry) = self.by_id.get_mut(&bundle) {
            entry.is_coming = false;
            if entry.task_count == 0 {
                self.by_id.remove(&bundle);
            }
        }
    }

    /// The pickle of a task, if it is at hand.
    pub(crate) fn spec(&self, bundle: u32, index: u32) -> Option<&RunSpec> {
        self.by_id
            .get(&bundle)?
            .specs
            .get(index as usize)
            .filter(|spec| !matches!(spec, RunSpec::None))
    }

    /// True if the task's pickle can be sent now; otherwise the task waits for the helper.
    pub(crate) fn request(
        &mut self,
        bundle: u32,
        index: u32,
        task: TaskId,
        out: &mut Instructions,
    ) -> bool {
        if self.spec(bundle, index).is_some() {
            self.sent.push((bundle, index));
            return true;
        }
        if let Some(entry) = self.by_id.get_mut(&bundle) {
            entry.waiting.push(task);
            if !entry.requested {
                entry.requested = true;
                out.push(Instruction::ExplodeBundle {
                    bundle,
                    blob: entry.blob.clone(),
                });
            }
        }
        false
    }

    /// Drops the pickles that the last event sent: a re-run explodes the bundle again.
    pub(crate) fn drop_sent(&mut self) {
        for (bundle, index) in self.sent.drain(..) {
            if let Some(entry) = self.by_id.get_mut(&bundle)
                && let Some(spec) = entry.specs.get_mut(index as usize)
            {
                *spec = RunSpec::None;
            }
        }
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Tasks that wait for an answer about this bundle.
    fn answered(&mut self, bundle: u32) -> Option<(&mut Bundle, Vec<TaskId>)> {
        let entry = self.by_id.get_mut(&bundle)?;
        entry.requested = false;
        let waiting = std::mem::take(&mut entry.waiting);
        Some((entry, waiting))
    }

    /// Tasks per bundle, for `validate`.
    pub(crate) fn task_counts(&self) -> impl Iterator<Item = (u32, u32)> {
        self.by_id
            .iter()
            .map(|(&id, bundle)| (id, bundle.task_count))
    }
}

impl Scheduler {
    pub(crate) fn bundle_exploded(
        &mut self,
        now: f64,
        bundle: u32,
        specs: Vec<RunSpec>,
        out: &mut Instructions,
    ) {
        let Some((entry, waiting)) = self.bundles.answered(bundle) else {
            return;
        };
        entry.specs = specs;
        let mut missing = Vec::new();
        for task in waiting {
            let Some(index) = self.awaiting(task, bundle) else {
                continue;
            };
            if self.bundles.spec(bundle, index).is_none() {
                missing.push(task);
                continue;
            }
            self.bundles.sent.push((bundle, index));
            let stimulus_id = self.compute_stimulus(now);
            let ts = &mut self.tasks[task];
            ts.awaits_bundle = false;
            if let Some(worker) = ts.processing_on {
                out.push(Instruction::ToWorker {
                    worker,
                    message: ToWorker::ComputeTask {
                        task,
                        run_id: ts.run_id,
                        stimulus_id,
                    },
                });
            }
        }
        if !missing.is_empty() {
            let (exception, exception_text) =
                runtime_error("the graph helper left a task out of its bundle");
            let raised = Raised {
                exception,
                traceback: Value::Nil,
                exception_text,
                traceback_text: Str::default(),
            };
            self.fail_bundled(now, &missing, &raised, out);
        }
    }

    pub(crate) fn bundle_failed(
        &mut self,
        now: f64,
        bundle: u32,
        raised: &Raised,
        out: &mut Instructions,
    ) {
        let Some((_, waiting)) = self.bundles.answered(bundle) else {
            return;
        };
        let waiting: Vec<TaskId> = waiting
            .into_iter()
            .filter(|&task| self.awaiting(task, bundle).is_some())
            .collect();
        self.fail_bundled(now, &waiting, raised, out);
    }

    fn fail_bundled(
        &mut self,
        now: f64,
        tasks: &[TaskId],
        raised: &Raised,
        out: &mut Instructions,
    ) {
        let stimulus_id = StimulusId::from(format!("bundle-failed-{now}"));
        let cx = &mut Cx {
            now,
            stimulus_id: &stimulus_id,
            out,
        };
        for &task in tasks {
            if !self.tasks[task].awaits_bundle {
                continue;
            }
            let failure = Arc::new(TaskFailure {
                cause: self.tasks[task].key.clone(),
                exception: raised.exception.clone(),
                traceback: raised.traceback.clone(),
                exception_text: raised.exception_text.clone(),
                traceback_text: raised.traceback_text.clone(),
            });
            self.transition(
                task,
                State::Erred,
                Detail::Failed {
                    failure,
                    worker: None,
                },
                cx,
            );
        }
        self.transitions(cx);
        self.queue_slots_maybe_opened(cx);
    }

    /// The task's index in the bundle if it still waits for it. Its id may have
    /// been given to another task meanwhile.
    fn awaiting(&self, task: TaskId, bundle: u32) -> Option<u32> {
        let ts = self.tasks.get(task)?;
        match ts.run_spec {
            RunSpec::Bundle { bundle: own, index } if own == bundle && ts.awaits_bundle => {
                Some(index)
            }
            RunSpec::None
            | RunSpec::Pickle(_)
            | RunSpec::Buffers(_)
            | RunSpec::Call { .. }
            | RunSpec::Bundle { .. } => None,
        }
    }
}
