//! Keys that had other names once.

/// Old and new names that `dask` itself renames in every file and in the
/// environment, with a warning. Later entries may rename the target of an
/// earlier one, so the order counts.
pub(super) const DASK: [(&str, &str); 19] = [
    ("fuse-ave-width", "optimization.fuse.ave-width"),
    ("fuse-max-height", "optimization.fuse.max-height"),
    ("fuse-max-width", "optimization.fuse.max-width"),
    ("fuse-rename-keys", "optimization.fuse.rename-keys"),
    (
        "fuse-max-depth-new-edges",
        "optimization.fuse.max-depth-new-edges",
    ),
    ("ucx.cuda-copy", "distributed.ucx.cuda_copy"),
    ("ucx.tcp", "distributed.ucx.tcp"),
    ("ucx.nvlink", "distributed.ucx.nvlink"),
    ("ucx.infiniband", "distributed.ucx.infiniband"),
    ("ucx.rdmacm", "distributed.ucx.rdmacm"),
    ("ucx.net-devices", "distributed.ucx.net-devices"),
    ("ucx.reuse-endpoints", "distributed.ucx.reuse-endpoints"),
    ("rmm.pool-size", "distributed.rmm.pool-size"),
    ("shuffle", "dataframe.shuffle.algorithm"),
    ("array.rechunk-threshold", "array.rechunk.threshold"),
    ("dataframe.shuffle.algorithm", "dataframe.shuffle.method"),
    (
        "dataframe.shuffle-compression",
        "dataframe.shuffle.compression",
    ),
    ("admin.traceback.shorten.what", "admin.traceback.shorten"),
    (
        "array.shuffle.chunksize-tolerance",
        "array.chunk-size-tolerance",
    ),
];

/// Old and new names that `distributed` renames in the merged configuration,
/// without a word.
pub(super) const DISTRIBUTED: [(&str, &str); 34] = [
    ("allowed-failures", "distributed.scheduler.allowed-failures"),
    ("bandwidth", "distributed.scheduler.bandwidth"),
    (
        "default-data-size",
        "distributed.scheduler.default-data-size",
    ),
    ("work-stealing", "distributed.scheduler.work-stealing"),
    ("worker-ttl", "distributed.scheduler.worker-ttl"),
    (
        "multiprocessing-method",
        "distributed.worker.multiprocessing-method",
    ),
    ("use-file-locking", "distributed.worker.use-file-locking"),
    ("profile-interval", "distributed.worker.profile.interval"),
    ("profile-cycle-interval", "distributed.worker.profile.cycle"),
    ("worker-memory-target", "distributed.worker.memory.target"),
    ("worker-memory-spill", "distributed.worker.memory.spill"),
    ("worker-memory-pause", "distributed.worker.memory.pause"),
    (
        "worker-memory-terminate",
        "distributed.worker.memory.terminate",
    ),
    ("heartbeat-interval", "distributed.client.heartbeat"),
    ("compression", "distributed.comm.compression"),
    ("connect-timeout", "distributed.comm.timeouts.connect"),
    ("tcp-timeout", "distributed.comm.timeouts.tcp"),
    ("default-scheme", "distributed.comm.default-scheme"),
    ("socket-backlog", "distributed.comm.socket-backlog"),
    ("diagnostics-link", "distributed.dashboard.link"),
    ("bokeh-export-tool", "distributed.dashboard.export-tool"),
    ("tick-time", "distributed.admin.tick.interval"),
    ("tick-maximum-delay", "distributed.admin.tick.limit"),
    ("log-length", "distributed.admin.log-length"),
    ("log-format", "distributed.admin.log-format"),
    ("pdb-on-err", "distributed.admin.pdb-on-err"),
    ("ucx", "distributed.comm.ucx"),
    ("rmm", "distributed.rmm"),
    (
        "transition-log-length",
        "distributed.admin.low-level-log-length",
    ),
    (
        "distributed.scheduler.transition-log-length",
        "distributed.admin.low-level-log-length",
    ),
    (
        "distributed.scheduler.events-log-length",
        "distributed.admin.low-level-log-length",
    ),
    (
        "recent-messages-log-length",
        "distributed.admin.low-level-log-length",
    ),
    (
        "distributed.comm.recent-messages-log-length",
        "distributed.admin.low-level-log-length",
    ),
    ("distributed.p2p.disk", "distributed.p2p.storage.disk"),
];
