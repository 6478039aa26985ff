//! The `oxidask` command, as a library.
//!
//! The binary without Python and the console script of the Python package both
//! call [`main`]; they differ in the interpreter that they bring for the graph
//! helper, and in whether they bring one that runs tasks.

mod arguments;
mod files;
pub mod guest;
mod json;
mod limits;
mod link;
mod pages;
mod scheduler;
mod signals;
mod worker;

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
/// `arguments` begin with the program's name. Under the names `dask-scheduler` and
/// `dask-worker` they are those of `oxidask scheduler` and `oxidask worker`. `python` is the interpreter for the
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
    let given = arguments.get(2..).unwrap_or_default().to_vec();
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
        Command::Worker(arguments) => match executors {
            Some(executors) => {
                return worker::run(&arguments, &given, &python, executors).unwrap_or_else(
                    |error| {
                        report(&format!("{error:#}"));
                        1
                    },
                );
            }
            None => {
                report(
                    "`oxidask worker` runs Python, and there is none in this program\n\nhint: \
                     `pip install oxidask` in the environment of your programs, and run the \
                     `oxidask worker` of that environment",
                );
                return 2;
            }
        },
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            report(&format!("{error:#}"));
            1
        }
    }
}

/// Puts `scheduler` before the arguments of a program called `dask-scheduler`, and
/// `worker` before those of `dask-worker`.
fn with_subcommand(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let program = arguments
        .first()
        .and_then(|program| Path::new(program).file_stem());
    let command = match program.and_then(|name| name.to_str()) {
        Some("dask-scheduler") => "scheduler",
        Some("dask-worker") => "worker",
        Some(_) | None => return arguments,
    };
    if arguments.get(1).is_none_or(|first| first != command) {
        arguments.insert(1, command.into());
    }
    arguments
}

#[expect(clippy::print_stderr, reason = "the command line speaks to its user")]
fn report(message: &str) {
    eprintln!("error: {message}");
}
