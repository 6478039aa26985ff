//! Memory back to the system after a burst.
//!
//! Taking in a large graph needs several times the memory that its tasks keep.
//! Allocators return such memory late or never; the program that chose the
//! allocator says here how to ask for it.

use std::sync::OnceLock;

static RELEASE: OnceLock<fn()> = OnceLock::new();

/// Sets what returns the unused memory of the calling thread to the system. The
/// first call counts.
pub fn on_release(release: fn()) {
    let _ = RELEASE.set(release);
}

/// Returns unused memory of this thread to the system; takes milliseconds.
pub(crate) fn release() {
    if let Some(release) = RELEASE.get() {
        release();
    }
}
