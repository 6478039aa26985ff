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

/// As [`release`], and what Python and C libraries in this process have freed.
/// Takes longer the more there is.
pub(crate) fn release_all() {
    release();
    release_libc();
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "the allocator's own interface is C")]
fn release_libc() {
    // SAFETY: `malloc_trim` may be called at any time from any thread; it takes the
    // locks of the allocator and touches only memory that nobody owns.
    unsafe { nix::libc::malloc_trim(0) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn release_libc() {}
