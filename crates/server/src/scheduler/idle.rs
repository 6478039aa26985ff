//! `check_idle`: has the scheduler had nothing to do for long enough to close?

use std::time::Duration;

use tracing::info;

use super::shell::{Shell, ShellHandle, now};

/// How often stock looks.
const INTERVAL: Duration = Duration::from_millis(250);

/// Since when there has been nothing to do.
#[derive(Debug, Default)]
pub(super) struct Idle {
    transition_counter: u64,
    since: Option<f64>,
}

impl Shell {
    /// Seconds since the epoch at which the scheduler became idle, if it is.
    pub(crate) fn check_idle(&mut self, now: f64) -> Option<f64> {
        let counter = self.core.transition_counter();
        let busy = counter != self.idle.transition_counter
            || self.graph_updates_active > 0
            || !self.core.has_no_work();
        self.idle.transition_counter = counter;
        if busy {
            self.idle.since = None;
        } else if self.idle.since.is_none() {
            self.idle.since = Some(now);
        }
        self.idle.since
    }
}

/// Closes the scheduler once it has been idle for `distributed.scheduler.idle-timeout`.
pub(super) async fn watch(shell: ShellHandle, timeout: Duration) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        let Ok(idle) = shell
            .call(|shell| shell.check_idle(now()).map(|since| now() - since))
            .await
        else {
            return;
        };
        if idle.is_some_and(|idle| idle > timeout.as_secs_f64()) {
            info!(
                target: "distributed.scheduler",
                "Scheduler closing after being idle for {:.2} s", timeout.as_secs_f64()
            );
            shell.close("idle-timeout-exceeded");
            return;
        }
    }
}
