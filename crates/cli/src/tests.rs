//! The command line without running anything.

use clap::{CommandFactory as _, Parser as _};

use crate::arguments::{Command, Oxidask, SchedulerArguments, refusal};
use crate::*;

fn arguments(line: &str) -> Vec<OsString> {
    with_subcommand(line.split_whitespace().map(OsString::from).collect())
}

fn parse(line: &str) -> Result<SchedulerArguments, clap::Error> {
    match Oxidask::try_parse_from(arguments(line))?.command {
        Command::Scheduler(arguments) => Ok(*arguments),
        Command::Worker { .. } => panic!("{line} is no scheduler"),
    }
}

#[test]
fn the_definition_is_consistent() {
    Oxidask::command().debug_assert();
}

#[test]
fn every_option_of_dask_scheduler_is_there() {
    let parsed = parse(
        "oxidask scheduler --host 10.0.0.1 --port 1 --interface lo --protocol tcp --tls-ca-file a \
         --tls-cert b --tls-key c --dashboard-address :0 --no-dashboard --dashboard --no-jupyter \
         --show --no-show --dashboard-prefix /x --use-xheaders False --pid-file p \
         --scheduler-file f --idle-timeout 1h --python /usr/bin/python3",
    )
    .unwrap();
    assert!(
        parsed.dashboard && !parsed.no_dashboard,
        "the last one counts"
    );
    assert!(parsed.no_show && !parsed.show);
    assert_eq!(parsed.use_xheaders, Some(false));
}

#[test]
fn an_option_given_twice_has_its_last_value() {
    assert_eq!(
        parse("oxidask scheduler --port 1 --port 2")
            .unwrap()
            .port
            .as_deref(),
        Some("2")
    );
}

#[test]
fn the_old_name_is_the_scheduler() {
    assert!(parse("/usr/bin/dask-scheduler --port 0").is_ok());
    assert!(parse("dask-scheduler scheduler --port 0").is_ok());
    assert!(parse("oxidask --port 0").is_err());
}

#[test]
fn what_needs_python_is_refused_with_a_remedy() {
    let refused = |line: &str| refusal(&arguments(line));
    let message = refused("dask-scheduler --preload foo --own-option 1").unwrap();
    assert!(message.contains("--preload is not supported") && message.contains("hint:"));
    assert!(refused("oxidask scheduler --preload=foo").is_some());
    assert!(refused("oxidask scheduler --jupyter").is_some());
    assert!(refused("oxidask scheduler --jupyter --no-jupyter").is_none());
    assert!(refused("oxidask scheduler").is_none());
}

#[test]
fn unknown_options_are_errors() {
    let error = parse("oxidask scheduler --nonesuch").unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("--nonesuch"));
}

#[test]
fn the_version_is_ours() {
    let error = parse("oxidask --version").unwrap_err();
    assert_eq!(error.exit_code(), 0);
    assert_eq!(
        error.to_string(),
        format!("oxidask {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn workers_are_refused_with_a_remedy() {
    let python = PythonCommand::new("python3");
    assert_eq!(
        main(
            arguments("oxidask worker tcp://127.0.0.1:8786 --nthreads 1"),
            python
        ),
        2
    );
}
