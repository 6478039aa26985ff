//! The `oxidask` command, as a library.
//!
//! The binary without Python and the console script of the Python package both
//! call [`main`]; they differ in the interpreter that they bring for the graph
//! helper, and in whether they bring one that runs tasks.

mod arguments;
mod files;
mod json;
mod limits;
mod link;
mod pages;
mod scheduler;

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::path::Path;

use clap::{CommandFactory as _, FromArgMatches as _};
use oxidask_server::options::PythonCommand;
use oxidask_server::worker::ExecutorFactory;

use arguments::{Command, Oxidask};

/// Runs the command line and returns the exit status: 0 for success, 1 for a
/// failure, 2 for wrong usage.
///
/// `arguments` begin with the program's name. Under the name `dask-scheduler`
/// they are those of `oxidask scheduler`. `python` is the interpreter for the
/// graph helper unless `--python` names another. `executors` makes what runs the
/// tasks of `oxidask worker`; without it there is no such command.
#[must_use]
pub fn main(
    arguments: Vec<OsString>,
    python: PythonCommand,
    executors: Option<&dyn ExecutorFactory>,
) -> i32 {
    let arguments = with_subcommand(arguments);
    if let Some(message) = arguments::refusal(&arguments) {
        report(&message);
        return 2;
    }
    let arguments = arguments::with_preload_argv(arguments, &Oxidask::command());
    let parsed = Oxidask::command()
        .try_get_matches_from(arguments)
        .and_then(|matches| Oxidask::from_arg_matches(&matches));
    let oxidask = match parsed {
        Ok(oxidask) => oxidask,
        Err(error) => {
            // Help and version go to stdout with status 0, errors to stderr with 2.
            let _ = error.print();
            return error.exit_code();
        }
    };
    let result = match oxidask.command {
        Command::Scheduler(arguments) => scheduler::run(*arguments, python),
        Command::Worker { .. } => {
            // Nothing is done with them yet.
            let _ = executors;
            report(
                "there is no `oxidask worker` yet\n\nhint: start stock workers with \
                 `dask worker SCHEDULER_ADDRESS`; they work with `oxidask scheduler`",
            );
            return 2;
        }
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            report(&format!("{error:#}"));
            1
        }
    }
}

/// Puts `scheduler` before the arguments of a program called `dask-scheduler`.
fn with_subcommand(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let is_scheduler = arguments
        .first()
        .and_then(|program| Path::new(program).file_stem())
        .is_some_and(|name| name == "dask-scheduler");
    let has_subcommand = arguments.get(1).is_some_and(|first| first == "scheduler");
    if is_scheduler && !has_subcommand {
        arguments.insert(1, "scheduler".into());
    }
    arguments
}

#[expect(clippy::print_stderr, reason = "the command line speaks to its user")]
fn report(message: &str) {
    eprintln!("error: {message}");
}
