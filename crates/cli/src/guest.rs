//! Scheduler and workers as guests: on threads of a process that is somebody else's.
//!
//! A guest leaves signals, limits, standard streams and the exit of the process alone.
//! Whoever starts it says so on a thread that belongs to it until it has closed.

use std::ffi::OsString;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::{CommandFactory as _, FromArgMatches as _};
use oxidask_server::config::Inputs;
use oxidask_server::graph_helper::Threads;
use oxidask_server::logging::Forwarded;
use oxidask_server::options::PythonCommand;
use oxidask_server::worker::ExecutorFactory;
use tokio::sync::mpsc;

use crate::arguments::{self, Command, Oxidask};
use crate::{scheduler, worker};

/// Asks a guest to close.
#[derive(Clone, Debug)]
pub struct Host(mpsc::UnboundedSender<Order>);

/// What a guest is asked.
#[derive(Debug)]
pub struct Orders(pub(crate) mpsc::UnboundedReceiver<Order>);

#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) reason: String,
    /// Of a worker: whether it waits for running tasks.
    pub(crate) executor_wait: bool,
}

impl Host {
    /// For one guest.
    #[must_use]
    pub fn new() -> (Self, Orders) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), Orders(receiver))
    }

    /// Begins the shutdown; without effect on a guest that has gone.
    pub fn close(&self, reason: &str, executor_wait: bool) {
        let _ = self.0.send(Order {
            reason: reason.to_owned(),
            executor_wait,
        });
    }
}

impl Orders {
    /// Waits for the next one; for ever once nobody can give any. Cancel safe.
    pub(crate) async fn next(&mut self) -> Order {
        match self.0.recv().await {
            Some(order) => order,
            None => std::future::pending().await,
        }
    }
}

/// What guests need of the process that they are in.
pub struct Home<'a> {
    /// Of which configuration is read.
    pub inputs: Inputs,
    /// The interpreter, for a plug-in host.
    pub python: PythonCommand,
    /// Makes graph helpers.
    pub graph_threads: Arc<dyn Threads>,
    /// Makes executors of workers.
    pub executors: &'a dyn ExecutorFactory,
    /// Takes what is logged.
    pub log: fn(Forwarded),
    /// Hears the address once it can be used.
    pub running: Box<dyn FnOnce(&str) + Send + 'a>,
}

impl std::fmt::Debug for Home<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Home").finish_non_exhaustive()
    }
}

/// Runs a scheduler or a worker until it closes. `arguments` are those of the command
/// line, with the program's name in front.
///
/// # Errors
/// Wrong arguments, or why it could not be started.
pub fn run(arguments: Vec<OsString>, home: Home<'_>, orders: Orders) -> anyhow::Result<()> {
    let arguments = arguments::with_preload_argv(arguments, &Oxidask::command());
    let parsed = Oxidask::command()
        .try_get_matches_from(arguments)
        .and_then(|matches| Oxidask::from_arg_matches(&matches))
        .context("cannot use the arguments")?;
    match parsed.command {
        Command::Scheduler(arguments) => scheduler::run_as_guest(*arguments, home, orders),
        Command::Worker(arguments) if arguments.no_nanny => {
            worker::run_as_guest(&arguments, home, orders)
        }
        Command::Worker(_) => bail!("a worker within this process has no nanny"),
    }
}
