//! Options of the commands: those of `dask scheduler` and `dask worker`, and `--python`.

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
    /// Launch a Dask worker attached to an existing scheduler
    #[command(version, args_override_self = true)]
    Worker(Box<WorkerArguments>),
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

/// Same names, defaults and meanings as in `dask worker`.
#[derive(Debug, Clone, Args)]
pub(crate) struct WorkerArguments {
    /// Address of the scheduler
    pub(crate) scheduler: Option<String>,

    /// CA cert(s) file for TLS (in PEM format)
    #[arg(long, value_name = "PATH")]
    pub(crate) tls_ca_file: Option<PathBuf>,

    /// Certificate file for TLS (in PEM format)
    #[arg(long, value_name = "PATH")]
    pub(crate) tls_cert: Option<PathBuf>,

    /// Private key file for TLS (in PEM format)
    #[arg(long, value_name = "PATH")]
    pub(crate) tls_key: Option<PathBuf>,

    /// Serving computation port, defaults to random. With --nworkers, a range like
    /// 3000:3026 has the workers take one each
    #[arg(long, value_name = "TEXT")]
    pub(crate) worker_port: Option<String>,

    /// Serving nanny port, defaults to random; a range as for --worker-port
    #[arg(long, value_name = "TEXT")]
    pub(crate) nanny_port: Option<String>,

    /// Address on which to listen for health pages
    #[arg(long, value_name = "TEXT", default_value = ":0")]
    pub(crate) dashboard_address: String,

    /// Launch the dashboard [default]
    #[arg(long, overrides_with = "no_dashboard")]
    pub(crate) dashboard: bool,

    /// Do not launch the dashboard; health pages stay
    #[arg(long, overrides_with = "dashboard")]
    pub(crate) no_dashboard: bool,

    /// The address to which the worker binds. Example: tcp://0.0.0.0:9000 or
    /// tcp://:9000 for IPv4+IPv6
    #[arg(long, value_name = "TEXT")]
    pub(crate) listen_address: Option<String>,

    /// The address the worker advertises to the scheduler for communication with it
    /// and other workers. Example: tcp://127.0.0.1:9000
    #[arg(long, value_name = "TEXT")]
    pub(crate) contact_address: Option<String>,

    /// Serving host: an ip address that is visible to the scheduler and other workers
    #[arg(long, value_name = "TEXT")]
    pub(crate) host: Option<String>,

    /// Network interface like 'eth0' or 'ib0'
    #[arg(long, value_name = "TEXT")]
    pub(crate) interface: Option<String>,

    /// Protocol like tcp, tls, or ws
    #[arg(long, value_name = "TEXT")]
    pub(crate) protocol: Option<String>,

    /// Number of threads per process [default: all processors, shared among the
    /// processes]
    #[arg(
        long,
        value_name = "INTEGER",
        default_value_t = 0,
        hide_default_value = true
    )]
    pub(crate) nthreads: usize,

    /// Number of worker processes to launch [default: 1]. If negative, then (CPU_COUNT
    /// + 1 + nworkers) is used. 'auto' sets nworkers and nthreads by CPU_COUNT
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) nworkers: Option<String>,

    /// A unique name for this worker like 'worker-1'. With --nworkers the process
    /// number is appended like name-0, name-1, name-2, ...
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) name: Option<String>,

    /// Bytes of memory per process that the worker can use: an integer (bytes; 0 for no
    /// memory management), a float (fraction of total system memory), a string (like 5GB
    /// or 5000M), or 'auto'
    #[arg(long, value_name = "TEXT", default_value = "auto")]
    pub(crate) memory_limit: String,

    /// Start workers in nanny process for management [default]
    #[arg(long, overrides_with = "no_nanny")]
    pub(crate) nanny: bool,

    /// Start the worker in this process, without a nanny
    #[arg(long, overrides_with = "nanny")]
    pub(crate) no_nanny: bool,

    /// File to write the process PID
    #[arg(long, value_name = "PATH")]
    pub(crate) pid_file: Option<PathBuf>,

    /// Directory to place worker files
    #[arg(long, value_name = "PATH")]
    pub(crate) local_directory: Option<PathBuf>,

    /// Resources for task constraints like "GPU=2 MEM=10e9", for each worker process
    #[arg(long, value_name = "TEXT")]
    pub(crate) resources: Option<String>,

    /// Filename to JSON encoded scheduler information. Use with
    /// oxidask scheduler --scheduler-file
    #[arg(long, value_name = "PATH")]
    pub(crate) scheduler_file: Option<PathBuf>,

    /// Seconds to wait for a scheduler before closing
    #[arg(long, value_name = "TEXT")]
    pub(crate) death_timeout: Option<String>,

    /// Prefix for the dashboard (DEPRECATED, has no effect)
    #[arg(long, value_name = "TEXT")]
    pub(crate) dashboard_prefix: Option<String>,

    /// If provided, shut down the worker after this duration
    #[arg(long, value_name = "TEXT")]
    pub(crate) lifetime: Option<String>,

    /// Random amount by which to stagger lifetime values
    #[arg(long, value_name = "TEXT")]
    pub(crate) lifetime_stagger: Option<String>,

    /// Restart the worker after the lifetime lapses; needs --lifetime and a nanny
    #[arg(long, overrides_with = "no_lifetime_restart")]
    pub(crate) lifetime_restart: bool,

    /// Do not restart the worker after the lifetime lapses
    #[arg(long, overrides_with = "lifetime_restart")]
    pub(crate) no_lifetime_restart: bool,

    /// Worker class used to instantiate workers from. With any other than this, stock's
    /// `dask worker` is started instead
    #[arg(long, value_name = "TEXT", default_value = DEFAULT_WORKER_CLASS)]
    pub(crate) worker_class: String,

    /// Module that should be loaded by each worker process like "foo.bar" or
    /// "/path/to/foo.py"
    #[arg(long, value_name = "TEXT")]
    pub(crate) preload: Vec<String>,

    /// Module that should be loaded by each nanny like "foo.bar" or "/path/to/foo.py"; it
    /// runs in a Python process of its own
    #[arg(long, value_name = "TEXT")]
    pub(crate) preload_nanny: Vec<String>,

    /// Scheduler SNI (if different from scheduler hostname)
    #[arg(long, value_name = "TEXT")]
    pub(crate) scheduler_sni: Option<String>,

    /// The nanny that has started this process, and listens at its standard input
    #[arg(long, value_name = "TEXT", hide = true)]
    pub(crate) nanny_address: Option<String>,

    /// File that is there as long as the worker runs
    #[arg(long, value_name = "PATH", hide = true)]
    pub(crate) announce: Option<PathBuf>,

    /// Arguments for the preloaded modules
    #[arg(last = true, hide = true, requires = "preload")]
    pub(crate) preload_argv: Vec<String>,
}

/// `--worker-class` of `dask worker`.
pub(crate) const DEFAULT_WORKER_CLASS: &str = "dask.distributed.Worker";

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
    let Some(name) = arguments.get(1).and_then(|first| first.to_str()) else {
        return arguments;
    };
    let mut room_for_address = name == "worker";
    let preloads = |argument: &OsString| {
        let argument = argument.to_str().unwrap_or_default();
        argument == "--preload" || argument.starts_with("--preload=")
    };
    let Some(command) = command.find_subcommand(name) else {
        return arguments;
    };
    if !arguments.iter().any(preloads) {
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
            // The first word is the scheduler's address, unless it may belong to an
            // option of the module.
            None if room_for_address && !text.starts_with('-') => {
                room_for_address = false;
                ours.push(argument);
            }
            None => {
                room_for_address = false;
                others.push(argument);
            }
        }
    }
    if !others.is_empty() {
        ours.push("--".into());
        ours.extend(others);
    }
    ours
}
