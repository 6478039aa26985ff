//! Limits of the process.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::debug;

/// Lets this process open as many files as the system allows: each worker costs
/// the scheduler two. Stock goes to half of it.
pub(crate) fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft >= hard {
            return Ok(());
        }
        // macOS names an infinite limit and then refuses it.
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
            .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, soft.max(10_240), hard))
    });
    if let Err(error) = raised {
        debug!(%error, "cannot raise the limit of open files");
    }
}

/// Tells the server how this program's allocator returns memory to the system.
pub(crate) fn return_memory() {
    oxidask_server::memory::on_release(collect);
}

#[expect(unsafe_code, reason = "the allocator's own interface is C")]
fn collect() {
    // SAFETY: `mi_collect` may be called at any time from any thread; it touches
    // only memory that nobody owns.
    unsafe { libmimalloc_sys::mi_collect(true) }
}
