//! What a scheduler process is started with.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::ifaddrs::getifaddrs;

use crate::config::Config;
use crate::graph_helper::Threads;

/// Port of `dask scheduler` when none is asked for.
pub const DEFAULT_SCHEDULER_PORT: u16 = 8786;

/// Everything that decides how a scheduler is started: command line and
/// configuration together, the command line having the last word.
#[derive(Debug, Clone)]
pub struct SchedulerOptions {
    /// Where to listen, one entry per listener; never empty. The address that
    /// workers and clients are told is that of the first one, as in Dask.
    pub listen: Vec<ListenOptions>,
    /// Address announced instead of the one listened on, for a scheduler behind
    /// a forwarded port (`distributed.scheduler.contact-address`).
    pub contact_address: Option<String>,
    /// TLS files and rules.
    pub security: Security,
    /// The HTTP server of the scheduler.
    pub dashboard: DashboardOptions,
    /// File that tells others the address, as JSON; removed at exit.
    pub scheduler_file: Option<PathBuf>,
    /// File with the process id; removed at exit.
    pub pid_file: Option<PathBuf>,
    /// Close after this much time without work (`--idle-timeout`, else
    /// `distributed.scheduler.idle-timeout`).
    pub idle_timeout: Option<Duration>,
    /// Modules to load beside the scheduler (`--preload`).
    pub preload: Vec<String>,
    /// Arguments for them.
    pub preload_argv: Vec<String>,
    /// The interpreter that runs the graph helper.
    pub python: PythonCommand,
    /// Makes graph helpers that are threads of this process.
    pub graph_threads: Option<Arc<dyn Threads>>,
    /// Dask's configuration.
    pub config: Config,
}

/// One listener in the words of the command line. [`ListenOptions::address`]
/// turns it into an address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListenOptions {
    /// Host name, IP or a whole address such as `tls://10.0.0.1:8786`.
    pub host: Option<String>,
    /// Port; `Some(0)` lets the system choose.
    pub port: Option<u16>,
    /// `tcp`, `tls`, `ws` or `wss`, with or without `://`.
    pub protocol: Option<String>,
    /// Name of the network interface whose IPv4 address is used as host.
    pub interface: Option<String>,
}

/// TLS files and rules: `Security` in distributed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Security {
    /// Refuses plain connections other than local ones
    /// (`distributed.comm.require-encryption`, else whether the command line
    /// names TLS files).
    pub require_encryption: bool,
    /// Certificates of the authorities that peers must be signed by.
    pub ca_file: Option<TlsSource>,
    /// Certificate chain of this scheduler.
    pub cert: Option<TlsSource>,
    /// Private key; may be appended to `cert` instead.
    pub key: Option<TlsSource>,
    /// OpenSSL cipher string, `distributed.comm.tls.ciphers`.
    pub ciphers: Option<String>,
    /// Oldest version spoken.
    pub min_version: TlsVersion,
    /// Newest version spoken; `None` is the newest known.
    pub max_version: Option<TlsVersion>,
    /// Name that servers are told when connecting (`--scheduler-sni`).
    pub server_name: Option<String>,
}

/// A TLS file, or its content as `Security.temporary()` passes it on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsSource {
    /// Path of a PEM file.
    File(PathBuf),
    /// PEM text itself.
    Pem(String),
}

/// Versions that `distributed.comm.tls.min-version` and `max-version` accept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2, the oldest one allowed.
    #[default]
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// The HTTP server: `/health`, `/info`, `/json`, `/status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DashboardOptions {
    /// `--no-dashboard` turns the dashboard's page off. Health, info and JSON
    /// pages are served all the same, as in Dask.
    pub enabled: bool,
    /// Where to listen, in order; the first one that is bound is announced.
    pub addresses: Vec<DashboardAddress>,
    /// Path in front of every page; without slashes at the ends.
    pub prefix: String,
}

/// One address of the HTTP server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DashboardAddress {
    /// Host or IP to bind; `None` means every interface.
    pub host: Option<String>,
    /// Port; 0 lets the system choose.
    pub port: u16,
}

/// The interpreter that runs graph helpers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PythonCommand {
    /// Path or name of the interpreter.
    pub executable: PathBuf,
    /// `sys.prefix` and `sys.exec_prefix` of that interpreter, if known; their
    /// `etc/dask` folders hold configuration.
    pub prefixes: Vec<PathBuf>,
}

/// Options that contradict each other or cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// `--interface` and `--host` name two different places.
    #[error("cannot listen on both host `{host}` and interface `{interface}`")]
    HostAndInterface {
        /// Value of `--host`.
        host: String,
        /// Value of `--interface`.
        interface: String,
    },
    /// No such network interface.
    #[error("`{name}` is not a valid network interface; valid network interfaces are {known}")]
    UnknownInterface {
        /// Value of `--interface`.
        name: String,
        /// Names of this machine's interfaces.
        known: String,
    },
    /// The interface has no IPv4 address.
    #[error("interface `{name}` does not have an IPv4 address")]
    InterfaceWithoutAddress {
        /// Value of `--interface`.
        name: String,
    },
    /// The system did not list its interfaces.
    #[error("cannot list the network interfaces of this machine")]
    Interfaces(#[source] nix::Error),
    /// A port that is no number between 0 and 65535.
    #[error("invalid port `{value}` in {option}: expected a number between 0 and 65535")]
    Port {
        /// The text in question.
        value: String,
        /// The option it came with.
        option: &'static str,
    },
    /// `--protocol a,b` needs as many ports.
    #[error("--protocol and --port must both be lists of equal length")]
    ListsDiffer,
    /// More than one colon outside brackets.
    #[error("invalid dashboard address `{0}`: expected `PORT`, `:PORT` or `HOST:PORT`")]
    DashboardAddress(String),
}

impl ListenOptions {
    /// The address to listen on, such as `tcp://:8786` or `tls://10.0.0.1:0`.
    ///
    /// Same as `address_from_user_args` in distributed.
    ///
    /// # Errors
    ///
    /// When host and interface are both given, or the interface has no address.
    pub fn address(
        &self,
        security: &Security,
        default_scheme: &str,
    ) -> Result<String, OptionsError> {
        let protocol = match &self.protocol {
            Some(protocol) => Some(protocol.trim_end_matches("://").to_owned()),
            None if security.require_encryption => Some("tls".to_owned()),
            None => None,
        };
        let host = match (&self.host, &self.interface) {
            (Some(host), Some(interface)) => {
                return Err(OptionsError::HostAndInterface {
                    host: host.clone(),
                    interface: interface.clone(),
                });
            }
            (Some(host), None) => host.clone(),
            (None, Some(interface)) => interface_address(interface)?.to_string(),
            (None, None) => String::new(),
        };
        let (own_scheme, location) = match host.split_once("://") {
            Some((scheme, location)) => (Some(scheme), location),
            None => (None, host.as_str()),
        };
        let scheme = protocol.as_deref().or(own_scheme).unwrap_or(default_scheme);
        if scheme == "inproc" {
            return Ok(format!("{scheme}://{location}"));
        }
        let (host, own_port) = split_host_port(location)?;
        let port = self.port.or(own_port).unwrap_or(DEFAULT_SCHEDULER_PORT);
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host
        };
        Ok(format!("{scheme}://{host}:{port}"))
    }

    /// Listeners from the comma-separated lists of the command line.
    ///
    /// Without a port, in `--port` or in `--host`, the first listener gets 8786
    /// and the others any.
    ///
    /// # Errors
    ///
    /// When protocols and ports are lists of different lengths, or a port is no
    /// number.
    pub fn from_arguments(
        host: Option<&str>,
        port: Option<&str>,
        protocol: Option<&str>,
        interface: Option<&str>,
    ) -> Result<Vec<Self>, OptionsError> {
        let interfaces = split_list(interface);
        let protocols = split_list(protocol);
        let mut ports = Vec::new();
        for text in split_list(port) {
            let port = text.trim().parse().map_err(|_| OptionsError::Port {
                value: text.clone(),
                option: "--port",
            })?;
            ports.push(Some(port));
        }
        let host = host.filter(|host| !host.is_empty());
        if ports.is_empty() && !host.is_some_and(names_port) {
            ports.push(Some(DEFAULT_SCHEDULER_PORT));
            for _ in 1..protocols.len() {
                ports.push(Some(0));
            }
        }
        let several = protocols.len() > 1 || ports.len() > 1;
        if several && protocols.len() != ports.len() {
            return Err(OptionsError::ListsDiffer);
        }
        let count = protocols.len().max(ports.len()).max(1);
        let count = match interfaces.len() {
            0 | 1 => count,
            // Python's zip over the lists: the shortest list ends it, and single
            // values repeat.
            listed if several => listed.min(count),
            listed => listed,
        };
        let mut listeners = Vec::with_capacity(count);
        for index in 0..count {
            listeners.push(Self {
                host: host.map(str::to_owned),
                port: pick(&ports, index).flatten(),
                protocol: pick(&protocols, index),
                interface: pick(&interfaces, index),
            });
        }
        Ok(listeners)
    }
}

impl DashboardOptions {
    /// Reads `--dashboard-address`: a comma-separated list of `PORT`, `:PORT`
    /// or `HOST:PORT`. Same as `clean_dashboard_address` in distributed.
    ///
    /// # Errors
    ///
    /// When an entry has neither form or its port is no number.
    pub fn parse_addresses(text: &str) -> Result<Vec<DashboardAddress>, OptionsError> {
        let mut addresses = Vec::new();
        for part in text.split(',') {
            let part = part.trim();
            let (host, port) = match part.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None if part.bytes().all(|byte| byte.is_ascii_digit()) => ("", Some(part)),
                None => (part, None),
            };
            let host = match host.strip_prefix('[') {
                Some(bracketed) => bracketed.strip_suffix(']').unwrap_or(bracketed),
                None if host.contains(':') => {
                    return Err(OptionsError::DashboardAddress(part.to_owned()));
                }
                None => host,
            };
            let port = match port {
                Some(port) => port.parse().map_err(|_| OptionsError::Port {
                    value: port.to_owned(),
                    option: "--dashboard-address",
                })?,
                None => 0,
            };
            addresses.push(DashboardAddress {
                host: (!host.is_empty()).then(|| host.to_owned()),
                port,
            });
        }
        Ok(addresses)
    }
}

impl Default for DashboardOptions {
    fn default() -> Self {
        Self {
            enabled: true,
            addresses: vec![DashboardAddress {
                host: None,
                port: 8787,
            }],
            prefix: String::new(),
        }
    }
}

impl Security {
    /// Whether there is enough to speak TLS: an authority and a certificate.
    #[must_use]
    pub fn has_tls(&self) -> bool {
        self.ca_file.is_some() && self.cert.is_some()
    }
}

impl TlsSource {
    /// Text with a line break is PEM, anything else a path: the rule by which
    /// distributed tells them apart.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        if text.contains('\n') {
            Self::Pem(text.to_owned())
        } else {
            Self::File(PathBuf::from(text))
        }
    }
}

impl PythonCommand {
    /// The interpreter at `executable`, with its prefixes guessed from where it
    /// lies, because asking it would take longer than the scheduler's start.
    ///
    /// A virtual environment is recognised by `pyvenv.cfg` beside `bin`; any
    /// other interpreter is taken to lie in `PREFIX/bin` after its symbolic
    /// links are followed.
    #[must_use]
    pub fn new(executable: impl Into<PathBuf>) -> Self {
        let executable = executable.into();
        let located = find_command(&executable);
        let prefix = located.as_deref().and_then(|path| {
            let environment = path.parent()?.parent()?;
            if environment.join("pyvenv.cfg").is_file() {
                return Some(environment.to_owned());
            }
            let real = path.canonicalize().ok()?;
            Some(real.parent()?.parent()?.to_owned())
        });
        Self {
            executable,
            prefixes: prefix.into_iter().collect(),
        }
    }

    /// Where the interpreter is; `None` if there is no such file or command.
    #[must_use]
    pub fn locate(&self) -> Option<PathBuf> {
        find_command(&self.executable)
    }
}

/// Finds a command as a shell would: as it is when it has a slash, else in `PATH`.
fn find_command(executable: &Path) -> Option<PathBuf> {
    if executable.components().count() > 1 {
        return executable.exists().then(|| executable.to_owned());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(executable))
        .find(|candidate| candidate.is_file())
}

/// The first IPv4 address of a network interface, as `get_ip_interface` in distributed.
fn interface_address(name: &str) -> Result<IpAddr, OptionsError> {
    let mut known: Vec<String> = Vec::new();
    for interface in getifaddrs().map_err(OptionsError::Interfaces)? {
        if interface.interface_name == name
            && let Some(address) = interface
                .address
                .as_ref()
                .and_then(|address| address.as_sockaddr_in())
        {
            return Ok(IpAddr::V4(address.ip()));
        }
        if !known.contains(&interface.interface_name) {
            known.push(interface.interface_name);
        }
    }
    if known.iter().any(|known| known == name) {
        return Err(OptionsError::InterfaceWithoutAddress {
            name: name.to_owned(),
        });
    }
    Err(OptionsError::UnknownInterface {
        name: name.to_owned(),
        known: known.join(", "),
    })
}

fn split_list(text: Option<&str>) -> Vec<String> {
    match text {
        None | Some("") => Vec::new(),
        Some(text) => text.split(',').map(str::to_owned).collect(),
    }
}

/// A single value stands for every listener.
fn pick<T: Clone>(values: &[T], index: usize) -> Option<T> {
    match values {
        [single] => Some(single.clone()),
        several => several.get(index).cloned(),
    }
}

/// Whether the host carries its own port: a colon before a digit, Dask's rule.
fn names_port(host: &str) -> bool {
    host.as_bytes()
        .windows(2)
        .any(|pair| pair[0] == b':' && pair[1].is_ascii_digit())
}

fn split_host_port(location: &str) -> Result<(String, Option<u16>), OptionsError> {
    let parse = |port: &str| {
        if port.is_empty() {
            return Ok(None);
        }
        port.parse().map(Some).map_err(|_| OptionsError::Port {
            value: port.to_owned(),
            option: "--host",
        })
    };
    if let Some(rest) = location.strip_prefix('[')
        && let Some((host, port)) = rest.split_once(']')
    {
        return Ok((host.to_owned(), parse(port.trim_start_matches(':'))?));
    }
    match location.split_once(':') {
        // Two colons and no brackets is a bare IPv6 address.
        Some((_, rest)) if rest.contains(':') => Ok((location.to_owned(), None)),
        Some((host, port)) => Ok((host.to_owned(), parse(port)?)),
        None => Ok((location.to_owned(), None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(
        host: Option<&str>,
        port: Option<&str>,
        protocol: Option<&str>,
        interface: Option<&str>,
    ) -> Result<Vec<String>, String> {
        let listeners = ListenOptions::from_arguments(host, port, protocol, interface)
            .map_err(|error| error.to_string())?;
        listeners
            .iter()
            .map(|listener| {
                listener
                    .address(&Security::default(), "tcp")
                    .map_err(|error| error.to_string())
            })
            .collect()
    }

    #[test]
    fn listeners_follow_the_rules_of_dask() {
        let ok = |list: &[&str]| {
            Ok(list
                .iter()
                .map(|text| (*text).to_owned())
                .collect::<Vec<_>>())
        };
        assert_eq!(addresses(None, None, None, None), ok(&["tcp://:8786"]));
        assert_eq!(addresses(Some(""), None, None, None), ok(&["tcp://:8786"]));
        assert_eq!(addresses(None, Some("0"), None, None), ok(&["tcp://:0"]));
        assert_eq!(
            addresses(Some("127.0.0.1:1234"), None, None, None),
            ok(&["tcp://127.0.0.1:1234"])
        );
        assert_eq!(
            addresses(Some("tls://"), None, None, None),
            ok(&["tls://:8786"])
        );
        assert_eq!(
            addresses(Some("::1"), Some("9"), None, None),
            ok(&["tcp://[::1]:9"])
        );
        assert_eq!(
            addresses(None, None, Some("tcp,ws"), None),
            ok(&["tcp://:8786", "ws://:0"])
        );
        assert_eq!(
            addresses(None, Some("1,2"), Some("tcp://,ws"), None),
            ok(&["tcp://:1", "ws://:2"])
        );
        assert_eq!(
            addresses(None, Some("5"), None, Some("lo")),
            ok(&["tcp://127.0.0.1:5"])
        );
        assert!(addresses(None, Some("1,2"), None, None).is_err());
        assert_eq!(
            addresses(
                Some("inproc://10.0.0.1/12/3"),
                Some("0"),
                Some("inproc"),
                None
            ),
            ok(&["inproc://10.0.0.1/12/3"])
        );
        assert!(addresses(None, Some("x"), None, None).is_err());
        assert!(addresses(Some("h"), None, None, Some("lo")).is_err());
        assert!(
            addresses(None, None, None, Some("nonesuch"))
                .unwrap_err()
                .contains("valid network interfaces are")
        );
    }

    #[test]
    fn encryption_alone_chooses_tls() {
        let security = Security {
            require_encryption: true,
            ..Security::default()
        };
        let listener = ListenOptions::default();
        assert_eq!(listener.address(&security, "tcp").unwrap(), "tls://:8786");
    }

    #[test]
    fn dashboard_addresses() {
        let read = |text| {
            DashboardOptions::parse_addresses(text).map(|list| {
                list.into_iter()
                    .map(|address| (address.host, address.port))
                    .collect::<Vec<_>>()
            })
        };
        assert_eq!(read(":8787").unwrap(), [(None, 8787)]);
        assert_eq!(read("8787").unwrap(), [(None, 8787)]);
        assert_eq!(read("foo:8787").unwrap(), [(Some("foo".to_owned()), 8787)]);
        assert_eq!(read("[::1]:0").unwrap(), [(Some("::1".to_owned()), 0)]);
        assert_eq!(read(":8787,:8887").unwrap(), [(None, 8787), (None, 8887)]);
        assert_eq!(
            read("localhost").unwrap(),
            [(Some("localhost".to_owned()), 0)]
        );
        assert!(read("a:b:c").is_err());
        assert!(read(":99999").is_err());
    }
}
