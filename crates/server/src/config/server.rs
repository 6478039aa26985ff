//! The values that the scheduler's shell, not its core, honours.

use std::path::PathBuf;
use std::time::Duration;

use super::{Config, ConfigError, Value};
use crate::options::{Security, TlsSource, TlsVersion};

/// Settings of sockets, logs and pages.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerConfig {
    /// Time to establish a connection, `distributed.comm.timeouts.connect`.
    pub connect_timeout: Duration,
    /// Time after which a silent connection is dead, `distributed.comm.timeouts.tcp`.
    pub tcp_timeout: Duration,
    /// Scheme of addresses that name none, `distributed.comm.default-scheme`.
    pub default_scheme: String,
    /// Connections that may wait to be accepted, `distributed.comm.socket-backlog`.
    pub socket_backlog: u32,
    /// Largest frame, in bytes, before a message is split, `distributed.comm.shard`.
    pub shard_nbytes: u64,
    /// The same for WebSocket connections, `distributed.comm.websockets.shard`.
    pub websocket_shard_nbytes: u64,
    /// Attempts beyond the first at gathering data, `distributed.comm.retry.count`.
    pub retry_count: usize,
    /// Shortest pause between attempts.
    pub retry_delay_min: Duration,
    /// Longest pause between attempts.
    pub retry_delay_max: Duration,
    /// Whether broadcasts keep their connection, `distributed.scheduler.reuse-broadcast-comm`.
    pub reuse_broadcast_comm: bool,
    /// Operations that are refused, `distributed.scheduler.blocked-handlers`.
    pub blocked_handlers: Vec<String>,
    /// Python modules to run beside the scheduler, `distributed.scheduler.preload`.
    pub preload: Vec<String>,
    /// Time without heartbeat after which a worker is removed; `None` never.
    pub worker_ttl: Option<Duration>,
    /// Time without work after which the scheduler closes.
    pub idle_timeout: Option<Duration>,
    /// Log records kept for `get_logs`.
    pub log_length: usize,
    /// Python's format string of a log line.
    pub log_format: String,
    /// Template of the dashboard's link: `{scheme}`, `{host}`, `{port}` and
    /// environment variables.
    pub dashboard_link: String,
    /// First part of Prometheus names.
    pub prometheus_namespace: String,
    /// Certificate, key and authority of an HTTPS dashboard; `None` is HTTP.
    pub dashboard_tls: Option<DashboardTls>,
    /// Patterns of origins that may open WebSockets of the dashboard.
    pub websocket_origins: Vec<String>,
    /// Groups of pages, as names of distributed's modules.
    pub http_routes: Vec<String>,
}

/// `distributed.scheduler.dashboard.tls`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DashboardTls {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM; `None` if it is in `cert`.
    pub key: Option<PathBuf>,
    /// Authority, PEM.
    pub ca_file: Option<PathBuf>,
}

impl Config {
    /// Checks and converts what the shell honours.
    ///
    /// # Errors
    ///
    /// The first value that is wrong.
    pub fn server(&self) -> Result<ServerConfig, ConfigError> {
        let backlog_key = "distributed.comm.socket-backlog";
        let tls = "distributed.scheduler.dashboard.tls";
        let path = |key: &str| -> Result<Option<PathBuf>, ConfigError> {
            Ok(self.optional_text(key)?.map(PathBuf::from))
        };
        let dashboard_tls = match path(&format!("{tls}.cert"))? {
            Some(cert) => Some(DashboardTls {
                cert,
                key: path(&format!("{tls}.key"))?,
                ca_file: path(&format!("{tls}.ca-file"))?,
            }),
            None => None,
        };
        if matches!(
            self.get("distributed.scheduler.pickle"),
            Some(Value::Bool(false))
        ) {
            return Err(self.invalid(
                "distributed.scheduler.pickle",
                "Pickling can no longer be disabled; remove the key",
            ));
        }
        Ok(ServerConfig {
            connect_timeout: self.duration("distributed.comm.timeouts.connect")?,
            tcp_timeout: self.duration("distributed.comm.timeouts.tcp")?,
            default_scheme: self.text("distributed.comm.default-scheme")?,
            socket_backlog: u32::try_from(self.count(backlog_key)?)
                .map_err(|_| self.invalid(backlog_key, "expected a number below 2^32"))?,
            shard_nbytes: self.bytes("distributed.comm.shard")?,
            websocket_shard_nbytes: self.bytes("distributed.comm.websockets.shard")?,
            retry_count: self.count("distributed.comm.retry.count")?,
            retry_delay_min: self.duration("distributed.comm.retry.delay.min")?,
            retry_delay_max: self.duration("distributed.comm.retry.delay.max")?,
            reuse_broadcast_comm: self.bool("distributed.scheduler.reuse-broadcast-comm")?,
            blocked_handlers: self.texts("distributed.scheduler.blocked-handlers")?,
            preload: self.texts("distributed.scheduler.preload")?,
            worker_ttl: self.optional_duration("distributed.scheduler.worker-ttl")?,
            idle_timeout: self.optional_duration("distributed.scheduler.idle-timeout")?,
            log_length: self.log_length("distributed.admin.log-length")?,
            log_format: self.text("distributed.admin.log-format")?,
            dashboard_link: self.text("distributed.dashboard.link")?,
            prometheus_namespace: self
                .optional_text("distributed.dashboard.prometheus.namespace")?
                .unwrap_or_default(),
            dashboard_tls,
            websocket_origins: self.texts(
                "distributed.scheduler.dashboard.bokeh-application.allow_websocket_origin",
            )?,
            http_routes: self.texts("distributed.scheduler.http.routes")?,
        })
    }

    /// TLS settings, with what the command line gave in place of the
    /// configuration's. Same as `Security` in distributed.
    ///
    /// # Errors
    ///
    /// When a TLS version is none of 1.2 and 1.3, or a value is no text.
    pub fn security(
        &self,
        ca_file: Option<TlsSource>,
        cert: Option<TlsSource>,
        key: Option<TlsSource>,
    ) -> Result<Security, ConfigError> {
        self.security_of("scheduler", ca_file, cert, key)
    }

    /// As [`security`](Self::security), for a worker.
    ///
    /// # Errors
    ///
    /// As [`security`](Self::security).
    pub fn worker_security(
        &self,
        ca_file: Option<TlsSource>,
        cert: Option<TlsSource>,
        key: Option<TlsSource>,
    ) -> Result<Security, ConfigError> {
        self.security_of("worker", ca_file, cert, key)
    }

    fn security_of(
        &self,
        role: &str,
        ca_file: Option<TlsSource>,
        cert: Option<TlsSource>,
        key: Option<TlsSource>,
    ) -> Result<Security, ConfigError> {
        let tls = "distributed.comm.tls";
        let given = ca_file.is_some() || cert.is_some() || key.is_some();
        let require_encryption = match self.get("distributed.comm.require-encryption") {
            None | Some(Value::Null) => given,
            Some(_) => self.bool("distributed.comm.require-encryption")?,
        };
        let or_configured = |source: Option<TlsSource>, name: &str| match source {
            Some(source) => Ok(Some(source)),
            None => Ok(self
                .optional_text(&format!("{tls}.{name}"))?
                .as_deref()
                .map(TlsSource::from_text)),
        };
        Ok(Security {
            require_encryption,
            ca_file: or_configured(ca_file, "ca-file")?,
            cert: or_configured(cert, &format!("{role}.cert"))?,
            key: or_configured(key, &format!("{role}.key"))?,
            ciphers: self.optional_text(&format!("{tls}.ciphers"))?,
            min_version: self
                .tls_version(&format!("{tls}.min-version"))?
                .unwrap_or_default(),
            max_version: self.tls_version(&format!("{tls}.max-version"))?,
            server_name: None,
        })
    }

    fn tls_version(&self, key: &str) -> Result<Option<TlsVersion>, ConfigError> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Float(1.2)) => Ok(Some(TlsVersion::Tls12)),
            Some(Value::Float(1.3)) => Ok(Some(TlsVersion::Tls13)),
            Some(
                Value::Bool(_)
                | Value::Int(_)
                | Value::Float(_)
                | Value::Str(_)
                | Value::List(_)
                | Value::Map(_),
            ) => Err(self.invalid(key, "expected 1.2 or 1.3")),
        }
    }
}
