//! A worker that runs a few fixed functions, for tests against stock's scheduler:
//! `toy_worker SCHEDULER DIRECTORY NAME`.

#[path = "../tests/worker/executor.rs"]
#[expect(dead_code, reason = "tests in Rust use more of it")]
mod executor;

use std::sync::Arc;

use oxidask_server::config::Config;
use oxidask_server::logging;
use oxidask_server::worker::{self, WorkerOptions};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut argument = || arguments.next().ok_or("expected SCHEDULER DIRECTORY NAME");
    let (scheduler, directory, name) = (argument()?, argument()?, argument()?);
    let config = Config::defaults();
    let logs = logging::init(&config)?;
    let mut options = WorkerOptions::new(scheduler, directory, config)?;
    options.name = Some(name.into());
    options.validate = true;
    let worker = worker::start(options, Arc::new(executor::Toy::default()), logs).await?;
    worker.wait().await;
    Ok(())
}
