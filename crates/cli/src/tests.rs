//! The command line without running anything.

use clap::{CommandFactory as _, Parser as _};

use crate::arguments::{Command, Oxidask, SchedulerArguments, refusal, with_preload_argv};
use crate::*;

fn arguments(line: &str) -> Vec<OsString> {
    with_subcommand(line.split_whitespace().map(OsString::from).collect())
}

fn parse(line: &str) -> Result<SchedulerArguments, clap::Error> {
    match Oxidask::try_parse_from(arguments(line))?.command {
        Command::Scheduler(arguments) => Ok(*arguments),
        Command::Worker(_) => panic!("{line} is no scheduler"),
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
    assert!(refused("oxidask scheduler --preload=foo").is_none());
    assert!(refused("oxidask scheduler --jupyter").is_some());
    assert!(refused("oxidask scheduler --jupyter --no-jupyter").is_none());
    assert!(refused("oxidask scheduler").is_none());
}

#[test]
fn options_of_preloads_are_left_to_them() {
    let parse = |line: &str| {
        let command = Oxidask::command();
        let arguments = with_preload_argv(arguments(line), &command);
        let matches = command.try_get_matches_from(arguments)?;
        match Oxidask::from_arg_matches(&matches)?.command {
            Command::Scheduler(arguments) => Ok((
                arguments.preload.join(" "),
                arguments.preload_argv.join(" "),
                arguments.port,
            )),
            Command::Worker(_) => unreachable!("the line is of a scheduler"),
        }
    };
    let parsed = |line: &str| parse(line).map_err(|error: clap::Error| error.kind());
    let expected = |preload: &str, argv: &str, port: Option<&str>| {
        Ok((preload.to_owned(), argv.to_owned(), port.map(str::to_owned)))
    };
    assert_eq!(
        parsed("oxidask scheduler --preload a --own 1 --port 2 word --flag --preload=b"),
        expected("a b", "--own 1 word --flag", Some("2"))
    );
    assert_eq!(
        parsed("oxidask scheduler --preload a -- --port 2"),
        expected("a", "--port 2", None)
    );
    assert_eq!(
        parsed("oxidask scheduler word"),
        Err(clap::error::ErrorKind::MissingRequiredArgument)
    );
    assert_eq!(
        parsed("oxidask scheduler --own 1"),
        Err(clap::error::ErrorKind::UnknownArgument)
    );
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
fn every_option_of_dask_worker_is_there() {
    let line = "oxidask worker tcp://a:1 --tls-ca-file a --tls-cert b --tls-key c --worker-port 1:2 \
                --nanny-port 3 --dashboard-address :0 --dashboard --no-dashboard \
                --listen-address a --contact-address b --host h --interface lo --protocol tcp \
                --nthreads 2 --nworkers -1 --name -n --memory-limit 1GB --no-nanny --nanny \
                --pid-file p --local-directory d --resources A=1 --scheduler-file f \
                --death-timeout 1 --dashboard-prefix x --lifetime 1 --lifetime-stagger 1 \
                --no-lifetime-restart --lifetime-restart --worker-class x --preload a \
                --preload-nanny b --scheduler-sni s";
    match Oxidask::try_parse_from(arguments(line)).unwrap().command {
        Command::Worker(parsed) => {
            assert!(parsed.nanny && !parsed.no_nanny, "the last one counts");
            assert!(parsed.lifetime_restart && !parsed.no_lifetime_restart);
            assert_eq!(parsed.nworkers.as_deref(), Some("-1"));
            assert_eq!(parsed.name.as_deref(), Some("-n"));
        }
        Command::Scheduler(_) => panic!("{line} is no worker"),
    }
}

#[test]
fn the_old_name_is_the_worker() {
    let line = with_subcommand(arguments("/usr/bin/dask-worker tcp://a:1"));
    assert_eq!(line[1], "worker");
    let line = with_subcommand(arguments("dask-worker worker tcp://a:1"));
    assert_eq!(line.len(), 3);
}

#[test]
fn options_of_a_workers_preloads_are_left_to_them() {
    let parsed = |line: &str| {
        let command = Oxidask::command();
        let arguments = with_preload_argv(arguments(line), &command);
        let matches = command.try_get_matches_from(arguments).unwrap();
        match Oxidask::from_arg_matches(&matches).unwrap().command {
            Command::Worker(arguments) => (arguments.scheduler, arguments.preload_argv.join(" ")),
            Command::Scheduler(_) => panic!("{line} is no worker"),
        }
    };
    let address = Some("tcp://a:1".to_owned());
    assert_eq!(
        parsed("oxidask worker tcp://a:1 --preload m --own 1 --nthreads 2 word"),
        (address, "--own 1 word".to_owned())
    );
    assert_eq!(
        parsed("oxidask worker --scheduler-file f --preload m --own 1"),
        (None, "--own 1".to_owned())
    );
}

#[test]
fn without_python_workers_are_refused_with_a_remedy() {
    let python = PythonCommand::new("python3");
    let line = "oxidask worker tcp://127.0.0.1:8786 --nthreads 1";
    assert_eq!(main(arguments(line), python, None), 2);
}
