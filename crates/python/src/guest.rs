//! Scheduler and workers on threads of the program that uses them.
//!
//! ```text
//!  LocalCluster ──► thread of Python: Guest.run(arguments) ──► oxidask_cli::guest::run
//!               ──► Guest.close()                                 │ what is logged
//!  thread of Python: take_logs() ◄────────────────────────────────┘
//!  thread of Python: a graph helper ◄── GraphThreads
//! ```

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::IntoRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use oxidask_cli::guest::{self, Home, Host, Orders};
use oxidask_server::config::Inputs;
use oxidask_server::graph_helper::Threads;
use oxidask_server::logging::Forwarded;
use oxidask_server::options::PythonCommand;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::worker;

/// A scheduler or worker of this process.
#[pyclass(frozen)]
pub(crate) struct Guest {
    host: Host,
    orders: Mutex<Option<Orders>>,
}

#[pymethods]
impl Guest {
    #[new]
    fn new() -> Self {
        let (host, orders) = Host::new();
        Self {
            host,
            orders: Mutex::new(Some(orders)),
        }
    }

    /// Runs the command line `arguments`, which begin with the program's name, until it
    /// closes; can be called once. `variables` are the environment of which configuration
    /// is read; `running` is called with the address once there is one.
    fn run(
        &self,
        py: Python<'_>,
        arguments: Vec<OsString>,
        variables: Vec<(String, String)>,
        running: Py<PyAny>,
    ) -> PyResult<()> {
        let orders = self
            .orders
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let orders = orders.ok_or_else(|| PyRuntimeError::new_err("it has run already"))?;
        let python = interpreter(py)?;
        let home = Home {
            inputs: Inputs {
                variables,
                prefixes: python.prefixes.clone(),
                home: std::env::home_dir(),
            },
            python,
            graph_threads: Arc::new(GraphThreads),
            executors: &worker::Factory,
            log,
            running: Box::new(move |address| {
                // Nobody waits for it if the interpreter is gone.
                let _ = Python::try_attach(|py| {
                    if let Err(error) = running.call1(py, (address,)) {
                        error.write_unraisable(py, None);
                    }
                });
            }),
        };
        let ended = py.detach(|| guest::run(arguments, home, orders));
        ended.map_err(|error| PyRuntimeError::new_err(format!("{error:#}")))
    }

    /// Begins the shutdown; a worker waits for its tasks if `executor_wait`.
    fn close(&self, reason: &str, executor_wait: bool) {
        self.host.close(reason, executor_wait);
    }
}

/// The interpreter of this process.
pub(crate) fn interpreter(py: Python<'_>) -> PyResult<PythonCommand> {
    let sys = py.import("sys")?;
    let path = |name: &str| -> PyResult<PathBuf> { sys.getattr(name)?.extract() };
    Ok(PythonCommand {
        executable: path("executable")?,
        prefixes: vec![path("prefix")?, path("exec_prefix")?],
    })
}

/// Graph helpers that are threads: `oxidask._graph_threads`.
#[derive(Debug)]
struct GraphThreads;

impl Threads for GraphThreads {
    fn start(&self, stream: UnixStream, directory: &Path) -> io::Result<()> {
        let started = Python::try_attach(|py| {
            let module = py.import("oxidask._graph_threads")?;
            module.call_method1("start", (stream.into_raw_fd(), directory.as_os_str()))?;
            PyResult::Ok(())
        });
        match started {
            Some(started) => started.map_err(io::Error::other),
            None => Err(io::Error::other("the interpreter is gone")),
        }
    }
}

/// Records that may wait. Chosen: more than ever come at a time.
const RECORDS_COUNT_MAX: usize = 10_000;

static RECORDS: Mutex<Records> = Mutex::new(Records {
    waiting: VecDeque::new(),
    is_read: false,
});
static HAS_RECORDS: Condvar = Condvar::new();

/// What was logged, for the thread that hands it to Python's logging.
struct Records {
    waiting: VecDeque<Forwarded>,
    /// There is such a thread.
    is_read: bool,
}

fn log(record: Forwarded) {
    let mut records = RECORDS.lock().unwrap_or_else(PoisonError::into_inner);
    if records.is_read {
        if records.waiting.len() >= RECORDS_COUNT_MAX {
            records.waiting.pop_front();
        }
        records.waiting.push_back(record);
        HAS_RECORDS.notify_one();
    }
}

/// Says whether some thread calls [`take_logs`].
#[pyfunction]
pub(crate) fn read_logs(is_read: bool) {
    let mut records = RECORDS.lock().unwrap_or_else(PoisonError::into_inner);
    records.is_read = is_read;
    HAS_RECORDS.notify_all();
}

/// Waits for what guests log: logger, level and message of each record. Empty once
/// nobody reads any more.
#[pyfunction]
pub(crate) fn take_logs(py: Python<'_>) -> Vec<(String, i64, String)> {
    let records = py.detach(|| {
        let records = RECORDS.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = HAS_RECORDS.wait_while(records, |records| {
            records.is_read && records.waiting.is_empty()
        });
        let mut records = waited.unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut records.waiting)
    });
    let records = records.into_iter();
    records
        .map(|record| (record.logger, record.level, record.message))
        .collect()
}
