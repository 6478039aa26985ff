//! Options of the commands: those of `dask scheduler`, and `--python`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{Args, Parser, Subcommand};

/// Dask's distributed engine in Rust.
#[derive(Debug, Parser)]
#[command(name = "oxidask", version, disable_help_subcommand = true)]
pub(crate) struct Oxidask {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Launch a Dask scheduler
    #[command(version, args_override_self = true)]
    Scheduler(Box<SchedulerArguments>),
    /// Not there yet: start stock workers with `dask worker`
    #[command(disable_help_flag = true)]
    Worker {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        arguments: Vec<OsString>,
    },
}

/// Same names, defaults and meanings as in `dask scheduler`.
#[derive(Debug, Args)]
pub(crate) struct SchedulerArguments {
    /// URI, IP or hostname of this server
    #[arg(long, value_name = "TEXT")]
    pub(crate) host: Option<String>,

    /// Serving port [default: 8786]; a list if --protocol is one
    #[arg(long, value_name = "TEXT")]
    pub(crate) port: Option<String>,

    /// Preferred network interface like 'eth0' or 'ib0'
    #[arg(long, value_name = "TEXT")]
    pub(crate) interface: Option<String>,

    /// Protocol like tcp, tls, or ws; or a list, such as tcp,ws
    #[arg(long, value_name = "TEXT")]
    pub(crate) protocol: Option<String>,

    /// CA cert(s) file for TLS (in PEM format)
    #[arg(long, value_name = "PATH")]
    pub(crate) tls_ca_file: Option<PathBuf>,

    /// Certificate file for TLS (in PEM format)
    #[arg(long, value_name = "PATH")]
    pub(crate) tls_cert: Option<PathBuf>,

    /// Private key file for TLS (in PEM format)
    #[arg(long, value_name = "PATH")]
    pub(crate) tls_key: Option<PathBuf>,

    /// Address on which to listen for diagnostics dashboard
    #[arg(long, value_name = "TEXT", default_value = ":8787")]
    pub(crate) dashboard_address: String,

    /// Launch the dashboard [default]
    #[arg(long, overrides_with = "no_dashboard")]
    pub(crate) dashboard: bool,

    /// Do not launch the dashboard; health, info and JSON pages stay
    #[arg(long, overrides_with = "dashboard")]
    pub(crate) no_dashboard: bool,

    /// Not supported: run Jupyter beside the scheduler as a program of its own
    #[arg(long, overrides_with = "no_jupyter")]
    pub(crate) jupyter: bool,

    /// Do not start a Jupyter server [default]
    #[arg(long, overrides_with = "jupyter")]
    pub(crate) no_jupyter: bool,

    /// Show web UI (DEPRECATED, has no effect)
    #[arg(long, overrides_with = "no_show")]
    pub(crate) show: bool,

    /// Do not show web UI (DEPRECATED, has no effect)
    #[arg(long, overrides_with = "show")]
    pub(crate) no_show: bool,

    /// Prefix for the dashboard app
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) dashboard_prefix: String,

    /// Use xheaders in dashboard app (DEPRECATED, has no effect)
    #[arg(long, value_name = "BOOLEAN", value_parser = BoolishValueParser::new())]
    pub(crate) use_xheaders: Option<bool>,

    /// File to write the process PID
    #[arg(long, value_name = "PATH")]
    pub(crate) pid_file: Option<PathBuf>,

    /// File to write connection information. This may be a good way to share
    /// connection information if your cluster is on a shared network file system
    #[arg(long, value_name = "PATH")]
    pub(crate) scheduler_file: Option<PathBuf>,

    /// Module that should be loaded beside the scheduler, like "foo.bar" or
    /// "/path/to/foo.py"; it runs in a Python process of its own
    #[arg(long, value_name = "TEXT")]
    pub(crate) preload: Vec<String>,

    /// Arguments for the preloaded modules
    #[arg(hide = true, requires = "preload")]
    pub(crate) preload_argv: Vec<String>,

    /// Time of inactivity after which to kill the scheduler
    #[arg(long, value_name = "TEXT")]
    pub(crate) idle_timeout: Option<String>,

    /// Python interpreter that unpickles the clients' graphs, with the packages
    /// that they need [default: the one this command belongs to, else python3]
    #[arg(long, value_name = "PATH")]
    pub(crate) python: Option<PathBuf>,
}

/// Why the command line cannot be carried out although stock's could: said
/// before anything else.
pub(crate) fn refusal(arguments: &[OsString]) -> Option<String> {
    let mut options = arguments
        .iter()
        .skip(1)
        .filter_map(|option| option.to_str());
    if options.next() != Some("scheduler") {
        return None;
    }
    let mut jupyter = false;
    for option in options {
        match option {
            "--" => break,
            "--jupyter" => jupyter = true,
            "--no-jupyter" => jupyter = false,
            _ => {}
        }
    }
    jupyter.then(|| {
        "the option --jupyter is not supported: there is no Python in this scheduler\n\nhint: run \
         `jupyter lab` as a program of its own, with DASK_SCHEDULER_ADDRESS set to the \
         scheduler's address"
            .to_owned()
    })
}

/// With `--preload`, moves options that are not ours to the end, behind `--`:
/// they are for the preloaded module, as on stock.
pub(crate) fn with_preload_argv(
    arguments: Vec<OsString>,
    command: &clap::Command,
) -> Vec<OsString> {
    let is_scheduler = arguments.get(1).is_some_and(|first| first == "scheduler");
    let preloads = |argument: &OsString| {
        let argument = argument.to_str().unwrap_or_default();
        argument == "--preload" || argument.starts_with("--preload=")
    };
    let Some(command) = command.find_subcommand("scheduler") else {
        return arguments;
    };
    if !is_scheduler || !arguments.iter().any(preloads) {
        return arguments;
    }
    let mut arguments = arguments.into_iter();
    let mut ours: Vec<OsString> = arguments.by_ref().take(2).collect();
    let mut others = Vec::new();
    while let Some(argument) = arguments.next() {
        let text = argument.to_str().unwrap_or_default();
        if text == "--" {
            others.extend(arguments);
            break;
        }
        let name = text.strip_prefix("--").map(|option| {
            let name = option.split('=').next().unwrap_or(option);
            (name, option.contains('='))
        });
        let known = name.and_then(|(name, has_value)| {
            let builtin = matches!(name, "help" | "version");
            let known = command
                .get_arguments()
                .find(|known| known.get_long() == Some(name));
            match known {
                Some(known) => Some(known.get_action().takes_values() && !has_value),
                None => builtin.then_some(false),
            }
        });
        match known {
            Some(takes_next) => {
                ours.push(argument);
                if takes_next {
                    ours.extend(arguments.next());
                }
            }
            None if matches!(text, "-h" | "-V") => ours.push(argument),
            None => others.push(argument),
        }
    }
    if !others.is_empty() {
        ours.push("--".into());
        ours.extend(others);
    }
    ours
}
