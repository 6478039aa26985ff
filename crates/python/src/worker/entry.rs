//! One worker without the command line.

use std::path::PathBuf;
use std::sync::Arc;

use oxidask_server::config::Config;
use oxidask_server::logging;
use oxidask_server::worker::{self, ExecutorSettings, WorkerOptions};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use super::executor::PythonExecutor;

/// Runs one worker in this process until something closes it.
#[pyfunction]
#[pyo3(signature = (scheduler, local_directory, *, nthreads=1, name=None, preload=vec![], preload_argv=vec![], resources=vec![]))]
#[expect(clippy::too_many_arguments, reason = "called once, by name")]
pub(crate) fn run_worker(
    py: Python<'_>,
    scheduler: String,
    local_directory: PathBuf,
    nthreads: usize,
    name: Option<String>,
    preload: Vec<String>,
    preload_argv: Vec<String>,
    resources: Vec<(String, f64)>,
) -> PyResult<()> {
    let run = move || -> Result<(), Box<dyn std::error::Error>> {
        let config = Config::defaults();
        let logs = logging::init(&config)?;
        let mut options = WorkerOptions::new(scheduler, local_directory, config)?;
        options.name = name.map(Into::into);
        options.nthreads = nthreads;
        options.validate = true;
        let resources = resources.into_iter();
        options.resources = resources
            .map(|(name, amount)| (name.into(), amount))
            .collect();
        let executor = PythonExecutor::new(ExecutorSettings {
            nthreads,
            name: options.name.clone().unwrap_or_default(),
            local_directory: options.local_directory.clone(),
            scheduler_address: options.scheduler.clone(),
            preload,
            preload_argv,
            resources: options.resources.clone(),
            memory_limit: options.memory_limit,
            nanny: None,
            security: options.security.clone(),
            config: options.config.clone(),
        })?;
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(async {
            let worker = worker::start(options, Arc::new(executor), logs).await?;
            worker.wait().await;
            Ok(())
        })
    };
    let done = py.detach(|| run().map_err(|error| error.to_string()));
    done.map_err(PyRuntimeError::new_err)
}
