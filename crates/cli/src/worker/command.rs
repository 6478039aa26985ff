//! Commands that start other processes: a nanny's worker, and stock's worker.

use std::ffi::OsString;
use std::process::Command;

use oxidask_server::options::PythonCommand;
use oxidask_wire::Value;

use crate::arguments::{DEFAULT_WORKER_CLASS, WorkerArguments};

/// Names of the worker that this program is.
const OWN_CLASSES: [&str; 4] = [
    DEFAULT_WORKER_CLASS,
    "distributed.Worker",
    "distributed.worker.Worker",
    "oxidask.Worker",
];

/// What a nanny has decided for its worker.
pub(super) struct Child<'a> {
    pub(super) scheduler: &'a str,
    pub(super) name: &'a Value,
    pub(super) ports: &'a [u16],
    pub(super) nthreads: usize,
    pub(super) memory_limit: Option<u64>,
}

/// Whether `--worker-class` means the worker that this program is.
pub(super) fn is_own_class(name: &str) -> bool {
    OWN_CLASSES.contains(&name)
}

/// Stock's `dask worker` with the same arguments.
pub(super) fn stock(python: &PythonCommand, given: &[OsString]) -> Command {
    let mut command = Command::new(&python.executable);
    command
        .args(["-m", "distributed.cli.dask_worker"])
        .args(given);
    command
}

/// The arguments of a worker that a nanny starts: those of the nanny except what is
/// its own business.
pub(super) fn child(arguments: &WorkerArguments, child: &Child<'_>) -> Vec<OsString> {
    let mut command = [child.scheduler, "--no-nanny"].map(OsString::from).to_vec();
    let mut option = |name: &str, value: &OsString| {
        let mut argument = OsString::from(format!("--{name}="));
        argument.push(value);
        command.push(argument);
    };
    option("nthreads", &child.nthreads.to_string().into());
    // Bytes, whatever their number: a small one alone would be a fraction.
    let limit = child
        .memory_limit
        .map_or("0".to_owned(), |limit| format!("{limit}B"));
    option("memory-limit", &limit.into());
    if !child.name.is_nil() {
        let text = child.name.as_str().map(str::to_owned);
        let number = child.name.as_i64().unwrap_or_default();
        option("name", &text.unwrap_or_else(|| number.to_string()).into());
    }
    if !child.ports.is_empty() && arguments.listen_address.is_none() {
        let ports: Vec<String> = child.ports.iter().map(u16::to_string).collect();
        option("worker-port", &ports.join(",").into());
    }
    let texts = [
        ("dashboard-address", Some(&arguments.dashboard_address)),
        ("listen-address", arguments.listen_address.as_ref()),
        ("contact-address", arguments.contact_address.as_ref()),
        ("host", arguments.host.as_ref()),
        ("interface", arguments.interface.as_ref()),
        ("protocol", arguments.protocol.as_ref()),
        ("resources", arguments.resources.as_ref()),
        ("death-timeout", arguments.death_timeout.as_ref()),
        ("lifetime", arguments.lifetime.as_ref()),
        ("lifetime-stagger", arguments.lifetime_stagger.as_ref()),
        ("scheduler-sni", arguments.scheduler_sni.as_ref()),
    ];
    for (name, value) in texts {
        if let Some(value) = value {
            option(name, &value.into());
        }
    }
    let paths = [
        ("tls-ca-file", &arguments.tls_ca_file),
        ("tls-cert", &arguments.tls_cert),
        ("tls-key", &arguments.tls_key),
        ("local-directory", &arguments.local_directory),
    ];
    for (name, path) in paths {
        if let Some(path) = path {
            option(name, &path.into());
        }
    }
    for module in &arguments.preload {
        option("preload", &module.into());
    }
    let flags = [
        ("--no-dashboard", arguments.no_dashboard),
        ("--lifetime-restart", arguments.lifetime_restart),
        ("--no-lifetime-restart", arguments.no_lifetime_restart),
    ];
    for (flag, is_set) in flags {
        if is_set {
            command.push(flag.into());
        }
    }
    if !arguments.preload_argv.is_empty() {
        command.push("--".into());
        command.extend(arguments.preload_argv.iter().map(OsString::from));
    }
    command
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::arguments::{Command, Oxidask};

    fn parse(line: &[OsString]) -> WorkerArguments {
        let words = ["oxidask", "worker"].map(OsString::from);
        let parsed = Oxidask::try_parse_from(words.iter().chain(line));
        match parsed.unwrap().command {
            Command::Worker(arguments) => *arguments,
            Command::Scheduler(_) => unreachable!("the line is of a worker"),
        }
    }

    /// What the nanny's worker makes of its arguments.
    fn passed_on(line: &str, name: &Value, ports: &[u16]) -> WorkerArguments {
        let line: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        let arguments = parse(&line);
        parse(&child(
            &arguments,
            &Child {
                scheduler: "tcp://b:2",
                name,
                ports,
                nthreads: 3,
                memory_limit: None,
            },
        ))
    }

    #[test]
    fn a_worker_hears_what_its_nanny_was_told() {
        let line = "tcp://a:1 --tls-ca-file a --tls-cert b --tls-key c --dashboard-address :5 \
                    --no-dashboard --host h --interface lo --protocol tls --nworkers 2 \
                    --nanny-port 7 --pid-file p --local-directory d --resources A=1 \
                    --scheduler-file f --death-timeout 5 --lifetime 1h --lifetime-stagger 1m \
                    --lifetime-restart --preload x --preload y --scheduler-sni s --announce q \
                    -- --own 1";
        let passed = passed_on(line, &"n-1".into(), &[8, 9]);
        let expected = "tcp://b:2 --no-nanny --tls-ca-file a --tls-cert b --tls-key c \
                        --dashboard-address :5 --no-dashboard --host h --interface lo \
                        --protocol tls --local-directory d --resources A=1 --death-timeout 5 \
                        --lifetime 1h --lifetime-stagger 1m --lifetime-restart --preload x \
                        --preload y --scheduler-sni s --nthreads 3 --memory-limit 0 --name n-1 \
                        --worker-port 8,9 -- --own 1";
        let expected: Vec<OsString> = expected.split_whitespace().map(OsString::from).collect();
        assert_eq!(format!("{passed:?}"), format!("{:?}", parse(&expected)));
    }

    #[test]
    fn names_and_addresses() {
        let passed = passed_on("tcp://a:1", &Value::Nil, &[]);
        assert_eq!((passed.name, passed.worker_port), (None, None));
        let passed = passed_on("tcp://a:1", &Value::Int(-5), &[]);
        assert_eq!(passed.name.as_deref(), Some("-5"));
        let line = "tcp://a:1 --listen-address tcp://:9 --contact-address tcp://c:9";
        let passed = passed_on(line, &Value::Nil, &[9]);
        assert_eq!(passed.worker_port, None);
        assert_eq!(passed.contact_address.as_deref(), Some("tcp://c:9"));
    }

    #[test]
    fn classes() {
        assert!(is_own_class("dask.distributed.Worker"));
        assert!(!is_own_class("dask_cuda.CUDAWorker"));
        let python = PythonCommand::new("/usr/bin/python3");
        let command = stock(&python, &["tcp://a:1".into(), "--nthreads=1".into()]);
        let arguments: Vec<_> = command.get_args().collect();
        let expected = [
            "-m",
            "distributed.cli.dask_worker",
            "tcp://a:1",
            "--nthreads=1",
        ];
        assert_eq!(arguments, expected);
    }
}
