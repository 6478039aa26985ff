//! File descriptors.

use nix::sys::resource::{Resource, getrlimit};

/// Connections to others that are kept: half of what the process may open, as on stock.
pub fn connections_max() -> usize {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    usize::try_from(soft / 2).unwrap_or(512).max(64)
}
