//! The end of a task.

use std::mem::take;

use oxidask_wire::Value;

use crate::graph::RunSpec;
use crate::id::TaskId;
use crate::instruction::{Instruction, ToClient};
use crate::scheduler::{Cx, Scheduler};
use crate::task::State;

impl Scheduler {
    /// `released` or `memory` to `forgotten`.
    pub(super) fn forget(&mut self, task: TaskId, cx: &mut Cx<'_>) {
        if self.tasks[task].actor {
            let holders = self.tasks[task].who_has.clone();
            for worker in &holders {
                self.workers[worker].actors.remove(task);
            }
        }
        self.set_state(task, State::Forgotten);

        let dependents = take(&mut self.tasks[task].dependents);
        for dependent in &dependents {
            self.forget_need(task, dependent);
            let dts = &mut self.tasks[dependent];
            dts.has_lost_dependencies = true;
            dts.dependencies.remove(task);
            dts.waiting_on.remove(task);
            if !matches!(dts.state, State::Memory | State::Erred) {
                self.recommend(dependent, State::Forgotten);
            }
        }
        self.tasks[task].waiters.clear();

        let dependencies = take(&mut self.tasks[task].dependencies);
        for dependency in &dependencies {
            let dts = &mut self.tasks[dependency];
            dts.dependents.remove(task);
            dts.waiters.remove(task);
            if dts.dependents.is_empty() && !dts.is_wanted() {
                self.recommend(dependency, State::Forgotten);
            }
        }
        self.tasks[task].waiting_on.clear();

        self.free_on_holders(task, cx);
        self.remove_all_replicas(task);

        let ts = &self.tasks[task];
        self.tell_who_wants(task, cx.out, || ToClient::CancelledKeys {
            keys: vec![ts.key.clone()],
            as_set: false,
            reason: Value::from("already forgotten"),
            msg: Value::Nil,
        });
        let who_wants = take(&mut self.tasks[task].who_wants);
        for client in &who_wants {
            self.clients[client].wants_what.remove(task);
            self.drop_idle_client(client);
        }
        let ts = &self.tasks[task];
        if self.announced.contains(&ts.key) {
            let key = ts.key.clone();
            cx.out.push(Instruction::TaskForgotten { key });
        }
        self.story.keep_key(task, ts.birth, &ts.key);
        self.tasks.remove(task);
    }

    /// A dependent in processing stops counting a lost dependency among what its
    /// worker has to fetch. (Stock leaks it; here the id is going to be reused.)
    fn forget_need(&mut self, task: TaskId, dependent: TaskId) {
        if let Some(worker) = self.tasks[dependent].processing_on {
            self.decrease_need(worker, task);
        }
    }

    /// Frees what a forgotten task holds. Its key stays until the slot is reused:
    /// pending recommendations are logged by it.
    pub(super) fn release_forgotten(&mut self, task: TaskId) {
        let ts = &mut self.tasks[task];
        let run_spec = take(&mut ts.run_spec);
        ts.extras = None;
        ts.annotations = None;
        ts.failure = None;
        ts.r#type = None;
        if let RunSpec::Bundle { bundle, .. } = run_spec {
            self.bundles.release(bundle);
        }
    }
}
