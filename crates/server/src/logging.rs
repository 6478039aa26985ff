//! Log lines as stock Dask writes them, and the last of them kept for `get_logs`.
//!
//! A record's logger is its `tracing` target, so
//! `info!(target: "distributed.scheduler", "Lost all workers")` reads
//! `2026-11-20 13:00:00,123 - distributed.scheduler - INFO - Lost all workers`.
//! Structured fields follow the message as ` name=value`.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use crate::config::{Config, ConfigError, Value};

/// Levels of loggers where `distributed.logging` says nothing.
const DEFAULT_LEVELS: [(&str, PythonLevel); 7] = [
    ("distributed", PythonLevel(20)),
    ("distributed.client", PythonLevel(30)),
    ("distributed.gc", PythonLevel(30)),
    ("bokeh", PythonLevel(40)),
    ("tornado", PythonLevel(50)),
    ("tornado.application", PythonLevel(40)),
    ("oxidask", PythonLevel(20)),
];

/// Level of every other logger: that of Python's root.
const ROOT_LEVEL: PythonLevel = PythonLevel(30);

/// Loggers whose records `get_logs` returns. Stock's scheduler keeps those of
/// `distributed.scheduler`, its worker those of `distributed.worker`, its nanny those
/// of `distributed.nanny`, and a process is one of them; ours say as much.
const KEPT_LOGGERS: [&str; 4] = [
    "distributed.scheduler",
    "distributed.worker",
    "distributed.nanny",
    "oxidask",
];

/// The log records kept in memory. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Logs {
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug)]
struct Kept {
    records: VecDeque<LogRecord>,
    length_max: usize,
}

/// One record as `get_logs` returns it.
#[derive(Debug, Clone, PartialEq)]
pub struct LogRecord {
    /// Seconds since 1970.
    pub timestamp: f64,
    /// Python's name of the level, such as `WARNING`.
    pub level: Cow<'static, str>,
    /// The formatted line, as it was written to stderr.
    pub line: String,
}

/// Starts logging for this process: lines to stderr, records into [`Logs`].
///
/// A second call returns the first one's records: the process has one log.
///
/// # Errors
///
/// When format, length or levels in the configuration are wrong.
pub fn init(config: &Config) -> Result<Logs, ConfigError> {
    start(config, None)
}

/// As [`init`], in a process that has its own log: `forward` takes what would go to stderr.
///
/// # Errors
///
/// As [`init`].
pub fn init_within(config: &Config, forward: fn(Forwarded)) -> Result<Logs, ConfigError> {
    start(config, Some(forward))
}

/// A record for the log of somebody else.
#[derive(Debug, Clone, PartialEq)]
pub struct Forwarded {
    /// Whose it is, such as `distributed.worker`.
    pub logger: String,
    /// As Python counts: 10 is DEBUG, 50 is CRITICAL.
    pub level: i64,
    /// The message.
    pub message: String,
}

fn start(config: &Config, forward: Option<fn(Forwarded)>) -> Result<Logs, ConfigError> {
    static LOGS: OnceLock<Logs> = OnceLock::new();
    if let Some(logs) = LOGS.get() {
        return Ok(logs.clone());
    }
    let format_key = "distributed.admin.log-format";
    let format = Format::parse(&config.text(format_key)?)
        .map_err(|reason| config.invalid(format_key, &reason))?;
    let levels = Levels::from_config(config)?;
    let logs = Logs {
        kept: Arc::new(Mutex::new(Kept {
            records: VecDeque::new(),
            length_max: config.log_length("distributed.admin.log-length")?,
        })),
    };
    let layer = StockLayer {
        format,
        levels,
        time_zone: TimeZone::system(),
        started: SystemTime::now(),
        logs: logs.clone(),
        forward,
    };
    let subscriber = tracing_subscriber::registry().with(layer);
    // Another subscriber is there already only in a program that embeds this
    // crate and logs in its own way; then that way is kept.
    let _ = tracing::subscriber::set_global_default(subscriber);
    // Python's own logging does what these say.
    let is_ours = forward.is_none();
    for key in ["distributed.logging-file-config", "logging-file-config"] {
        if is_ours && config.get(key).is_some() {
            tracing::warn!(
                target: "distributed.scheduler",
                "Ignoring `{key}`: it configures Python's logging; use `distributed.logging` \
                 with a level per logger instead"
            );
        }
    }
    if is_ours && logging_map(config).is_some_and(|(_, map)| map.contains_key("version")) {
        tracing::warn!(
            target: "distributed.scheduler",
            "Ignoring `distributed.logging`: a configuration with `version` is for Python's \
             logging; use a level per logger instead"
        );
    }
    for warning in config.warnings() {
        tracing::warn!(target: "distributed.scheduler", "{warning}");
    }
    Ok(LOGS.get_or_init(|| logs).clone())
}

impl Logs {
    /// Kept records, newest first: at most `count_max`, and none older than
    /// `start` seconds since 1970. Same as `ServerNode.get_logs` in distributed.
    #[must_use]
    pub fn records(&self, start: f64, count_max: Option<usize>) -> Vec<LogRecord> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.records
            .iter()
            .rev()
            .take_while(|record| record.timestamp >= start)
            // Python's `if n and …`: zero means no limit.
            .take(count_max.filter(|count| *count > 0).unwrap_or(usize::MAX))
            .cloned()
            .collect()
    }

    /// Adds a record that somebody else has written.
    pub fn keep(&self, record: LogRecord) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.length_max == 0 {
            return;
        }
        if kept.records.len() >= kept.length_max {
            kept.records.pop_front();
        }
        kept.records.push_back(record);
    }
}

/// A level as Python counts them: 10 is DEBUG, 50 is CRITICAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct PythonLevel(i64);

impl PythonLevel {
    fn of(level: Level) -> Self {
        match level {
            Level::ERROR => Self(40),
            Level::WARN => Self(30),
            Level::INFO => Self(20),
            Level::DEBUG => Self(10),
            Level::TRACE => Self(5),
        }
    }

    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Int(number) => Some(Self(*number)),
            Value::Str(name) => Some(Self(match name.to_ascii_uppercase().as_str() {
                "CRITICAL" | "FATAL" => 50,
                "ERROR" => 40,
                "WARN" | "WARNING" => 30,
                "INFO" => 20,
                "DEBUG" => 10,
                "TRACE" => 5,
                "NOTSET" => 0,
                _ => return None,
            })),
            Value::Null | Value::Bool(_) | Value::Float(_) | Value::List(_) | Value::Map(_) => None,
        }
    }

    /// The most verbose of our levels that passes this one.
    fn filter(self) -> LevelFilter {
        match self.0 {
            ..=5 => LevelFilter::TRACE,
            6..=10 => LevelFilter::DEBUG,
            11..=20 => LevelFilter::INFO,
            21..=30 => LevelFilter::WARN,
            31..=40 => LevelFilter::ERROR,
            41.. => LevelFilter::OFF,
        }
    }
}

/// Python's names; TRACE is one of ours, DEBUG the nearest of Python's.
fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR",
        Level::WARN => "WARNING",
        Level::INFO => "INFO",
        Level::DEBUG | Level::TRACE => "DEBUG",
    }
}

/// Levels per logger; a logger without one has that of its nearest parent.
#[derive(Debug)]
struct Levels {
    by_name: Vec<(String, PythonLevel)>,
}

impl Levels {
    fn from_config(config: &Config) -> Result<Self, ConfigError> {
        let mut by_name: Vec<(String, PythonLevel)> = DEFAULT_LEVELS
            .iter()
            .map(|(name, level)| ((*name).to_owned(), *level))
            .collect();
        if let Some((key, map)) = logging_map(config)
            && !map.contains_key("version")
        {
            for (name, value) in map {
                let level = PythonLevel::from_value(value).ok_or_else(|| {
                    config.invalid(
                        key,
                        &format!("`{name}` is set to {value}, expected a level such as 'info'"),
                    )
                })?;
                match by_name.iter_mut().find(|(own, _)| own == name) {
                    Some((_, own)) => *own = level,
                    None => by_name.push((name.clone(), level)),
                }
            }
        }
        Ok(Self { by_name })
    }

    fn of(&self, logger: &str) -> PythonLevel {
        let mut name = logger;
        loop {
            // NOTSET passes the question on to the parent.
            if let Some((_, level)) = self.by_name.iter().find(|(own, _)| own == name)
                && level.0 > 0
            {
                return *level;
            }
            match name.rsplit_once('.') {
                Some((parent, _)) => name = parent,
                None => return ROOT_LEVEL,
            }
        }
    }

    fn allow(&self, metadata: &Metadata<'_>) -> bool {
        PythonLevel::of(*metadata.level()) >= self.of(&logger_name(metadata.target()))
    }
}

/// `distributed.logging`, or `logging` if `distributed` has none.
fn logging_map(config: &Config) -> Option<(&'static str, &crate::config::Map)> {
    ["distributed.logging", "logging"]
        .into_iter()
        .find_map(|key| Some((key, config.get(key)?.as_map()?)))
}

/// The logger of a target. Crates and modules of ours become `oxidask.server.…`.
fn logger_name(target: &str) -> String {
    match target.strip_prefix("oxidask_") {
        Some(path) => format!("oxidask.{}", path.replace("::", ".")),
        None => target.replace("::", "."),
    }
}

/// A parsed `%`-format of Python's `logging`.
#[derive(Debug, Clone, PartialEq)]
struct Format {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(String),
    Field {
        attribute: Attribute,
        left: bool,
        zeros: bool,
        width: usize,
        precision: Option<usize>,
    },
}

/// Attributes of a Python log record that mean something here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attribute {
    Time,
    Created,
    Milliseconds,
    SinceStart,
    Logger,
    LevelName,
    LevelNumber,
    Message,
    Process,
    ProcessName,
    Thread,
    ThreadName,
    FileName,
    PathName,
    Module,
    Function,
    Line,
}

impl Attribute {
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "asctime" => Self::Time,
            "created" => Self::Created,
            "msecs" => Self::Milliseconds,
            "relativeCreated" => Self::SinceStart,
            "name" => Self::Logger,
            "levelname" => Self::LevelName,
            "levelno" => Self::LevelNumber,
            "message" => Self::Message,
            "process" => Self::Process,
            "processName" => Self::ProcessName,
            "thread" => Self::Thread,
            "threadName" => Self::ThreadName,
            "filename" => Self::FileName,
            "pathname" => Self::PathName,
            "module" => Self::Module,
            "funcName" => Self::Function,
            "lineno" => Self::Line,
            _ => return None,
        })
    }
}

/// What a line is made of.
struct Line<'a> {
    timestamp: Timestamp,
    time_zone: &'a TimeZone,
    since_start_ms: f64,
    logger: &'a str,
    level: Level,
    message: &'a str,
    file: &'a str,
    line: u32,
}

impl Format {
    fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('%') {
            plain.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('%') {
                plain.push('%');
                rest = after;
                continue;
            }
            let (name, after) = rest
                .strip_prefix('(')
                .and_then(|rest| rest.split_once(')'))
                .ok_or_else(|| "expected `%(name)s` after `%`".to_owned())?;
            let attribute = Attribute::from_name(name)
                .ok_or_else(|| format!("unknown log record attribute `{name}`"))?;
            let flags_end = after
                .find(|next: char| !matches!(next, '-' | '0' | '+' | ' ' | '#'))
                .unwrap_or(after.len());
            let (flags, after) = after.split_at(flags_end);
            let width_end = after
                .find(|next: char| !next.is_ascii_digit())
                .unwrap_or(after.len());
            let (width, mut after) = after.split_at(width_end);
            let mut precision = None;
            if let Some(decimals) = after.strip_prefix('.') {
                let end = decimals
                    .find(|next: char| !next.is_ascii_digit())
                    .unwrap_or(decimals.len());
                precision = Some(decimals[..end].parse().unwrap_or(0));
                after = &decimals[end..];
            }
            rest = after
                .strip_prefix(['s', 'd', 'i', 'f', 'r'])
                .ok_or_else(|| format!("`%({name})` has no conversion such as `s`"))?;
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            // A width that does not fit a number is not worth an error of its own.
            let width: usize = width.parse().unwrap_or(0);
            parts.push(Part::Field {
                attribute,
                left: flags.contains('-'),
                zeros: flags.contains('0'),
                width: width.min(1000),
                precision,
            });
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Self { parts })
    }

    fn write(&self, line: &Line<'_>) -> String {
        let mut text = String::with_capacity(line.message.len() + 64);
        for part in &self.parts {
            match part {
                Part::Text(plain) => text.push_str(plain),
                Part::Field {
                    attribute,
                    left,
                    zeros,
                    width,
                    precision,
                } => {
                    let value = line.value(*attribute, *precision);
                    let fill = width.saturating_sub(value.chars().count());
                    if *left {
                        text.push_str(&value);
                        text.extend(std::iter::repeat_n(' ', fill));
                    } else {
                        let filler = if *zeros { '0' } else { ' ' };
                        text.extend(std::iter::repeat_n(filler, fill));
                        text.push_str(&value);
                    }
                }
            }
        }
        text
    }
}

impl Line<'_> {
    fn value(&self, attribute: Attribute, precision: Option<usize>) -> String {
        let milliseconds = self.timestamp.subsec_millisecond();
        let file_name = self.file.rsplit('/').next().unwrap_or(self.file);
        let decimals = |number: f64| match precision {
            Some(count) => format!("{number:.count$}"),
            None => format!("{number}"),
        };
        match attribute {
            Attribute::Time => {
                let zoned = self.timestamp.to_zoned(self.time_zone.clone());
                format!("{},{milliseconds:03}", zoned.strftime("%Y-%m-%d %H:%M:%S"))
            }
            Attribute::Created => decimals(self.timestamp.as_duration().as_secs_f64()),
            Attribute::Milliseconds => milliseconds.to_string(),
            Attribute::SinceStart => decimals(self.since_start_ms.floor()),
            Attribute::Logger => self.logger.to_owned(),
            Attribute::LevelName => level_name(self.level).to_owned(),
            Attribute::LevelNumber => PythonLevel::of(self.level).0.to_string(),
            Attribute::Message => self.message.to_owned(),
            Attribute::Process => std::process::id().to_string(),
            Attribute::ProcessName => "MainProcess".to_owned(),
            Attribute::Thread | Attribute::ThreadName => std::thread::current()
                .name()
                .unwrap_or("MainThread")
                .to_owned(),
            Attribute::FileName => file_name.to_owned(),
            Attribute::PathName => self.file.to_owned(),
            Attribute::Module => file_name.trim_end_matches(".rs").to_owned(),
            Attribute::Function => String::new(),
            Attribute::Line => self.line.to_string(),
        }
    }
}

struct StockLayer {
    format: Format,
    levels: Levels,
    time_zone: TimeZone,
    started: SystemTime,
    logs: Logs,
    forward: Option<fn(Forwarded)>,
}

impl<S: Subscriber> Layer<S> for StockLayer {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if metadata.is_event() && self.levels.allow(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        metadata.is_event() && self.levels.allow(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let levels = self.levels.by_name.iter().map(|(_, level)| *level);
        // NOTSET takes the parent's level, so it opens nothing by itself.
        let lowest = levels.filter(|level| level.0 > 0).min();
        Some(lowest.unwrap_or(ROOT_LEVEL).min(ROOT_LEVEL).filter())
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut message = Message::default();
        event.record(&mut message);
        let message = message.finish();
        let now = SystemTime::now();
        let logger = logger_name(metadata.target());
        let level = *metadata.level();
        let mut line = self.format.write(&Line {
            timestamp: Timestamp::try_from(now).unwrap_or_default(),
            time_zone: &self.time_zone,
            since_start_ms: now
                .duration_since(self.started)
                .unwrap_or_default()
                .as_secs_f64()
                * 1e3,
            logger: &logger,
            level,
            message: &message,
            file: metadata.file().unwrap_or("?"),
            line: metadata.line().unwrap_or(0),
        });
        let is_kept = KEPT_LOGGERS.iter().any(|kept| {
            logger
                .strip_prefix(kept)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        });
        if is_kept {
            let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
            self.logs.keep(LogRecord {
                timestamp: since_epoch.as_secs_f64(),
                level: level_name(level).into(),
                line: line.clone(),
            });
        }
        if let Some(forward) = self.forward {
            forward(Forwarded {
                logger,
                level: PythonLevel::of(level).0,
                message,
            });
            return;
        }
        line.push('\n');
        // A closed stderr must not stop the scheduler, and there is no other
        // place to say it.
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
    }
}

/// Collects the message and the other fields of an event.
#[derive(Default)]
struct Message {
    text: String,
    fields: String,
}

impl Message {
    fn finish(mut self) -> String {
        if self.text.is_empty() {
            self.fields.trim_start().to_owned()
        } else {
            self.text.push_str(&self.fields);
            self.text
        }
    }
}

impl Visit for Message {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.text.push_str(value);
        } else {
            self.record_debug(field, &value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let written = if field.name() == "message" {
            write!(self.text, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
        written.expect("writing to a string cannot fail");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Inputs;

    fn line<'a>(time_zone: &'a TimeZone, message: &'a str) -> Line<'a> {
        Line {
            timestamp: "2026-11-20T13:00:00.123Z".parse().unwrap(),
            time_zone,
            since_start_ms: 1.5,
            logger: "distributed.scheduler",
            level: Level::WARN,
            message,
            file: "crates/server/src/x.rs",
            line: 7,
        }
    }

    fn written(format: &str) -> String {
        let time_zone = TimeZone::UTC;
        Format::parse(format)
            .unwrap()
            .write(&line(&time_zone, "hello"))
    }

    fn config(variables: &[(&str, &str)]) -> Config {
        let variables = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::load(&Inputs {
            variables: variables
                .chain([("DASK_ROOT_CONFIG".to_owned(), "/nonexistent".to_owned())])
                .collect(),
            ..Inputs::default()
        })
        .unwrap()
    }

    #[test]
    fn the_default_format_is_that_of_dask() {
        let format = Config::defaults()
            .text("distributed.admin.log-format")
            .unwrap();
        assert_eq!(
            written(&format),
            "2026-11-20 13:00:00,123 - distributed.scheduler - WARNING - hello"
        );
    }

    #[test]
    fn widths_flags_and_percent_signs() {
        assert_eq!(
            written("%(levelname)-9s|%(lineno)04d|%%"),
            "WARNING  |0007|%"
        );
        assert_eq!(written("%(message)8s %(module)s"), "   hello x");
        assert!(
            Format::parse("%(nonesuch)s")
                .unwrap_err()
                .contains("nonesuch")
        );
        assert!(Format::parse("%d").is_err());
        assert!(Format::parse("%(name)").is_err());
    }

    #[test]
    fn a_logger_without_a_level_has_that_of_its_parent() {
        let config = config(&[(
            "DASK_DISTRIBUTED__LOGGING",
            "{'distributed.scheduler': 'error', 'distributed.core': 10, 'x': 'debug'}",
        )]);
        let levels = Levels::from_config(&config).unwrap();
        assert_eq!(levels.of("distributed.scheduler"), PythonLevel(40));
        assert_eq!(levels.of("distributed.scheduler.part"), PythonLevel(40));
        assert_eq!(levels.of("distributed.core"), PythonLevel(10));
        assert_eq!(levels.of("distributed.nanny"), PythonLevel(20));
        assert_eq!(levels.of("x.y.z"), PythonLevel(10));
        assert_eq!(levels.of("hyper"), ROOT_LEVEL);
        assert_eq!(
            levels.of(&logger_name("oxidask_server::graph_helper")),
            PythonLevel(20)
        );
    }

    #[test]
    fn a_wrong_level_is_an_error() {
        let config = config(&[("DASK_DISTRIBUTED__LOGGING", "{'distributed': 'loud'}")]);
        let error = Levels::from_config(&config).unwrap_err().to_string();
        assert!(error.contains("`distributed` is set to 'loud'"), "{error}");
    }

    #[test]
    fn records_are_newest_first_and_bounded() {
        let logs = Logs {
            kept: Arc::new(Mutex::new(Kept {
                records: VecDeque::new(),
                length_max: 3,
            })),
        };
        for number in 0..5 {
            logs.keep(LogRecord {
                timestamp: f64::from(number),
                level: "INFO".into(),
                line: number.to_string(),
            });
        }
        let lines = |start, count| {
            logs.records(start, count)
                .into_iter()
                .map(|record| record.line)
                .collect::<Vec<_>>()
        };
        assert_eq!(lines(0.0, None), ["4", "3", "2"]);
        assert_eq!(lines(0.0, Some(0)), ["4", "3", "2"]);
        assert_eq!(lines(0.0, Some(2)), ["4", "3"]);
        assert_eq!(lines(4.0, Some(2)), ["4"]);
    }

    #[test]
    fn events_are_written_with_their_fields() {
        let logs = Logs {
            kept: Arc::new(Mutex::new(Kept {
                records: VecDeque::new(),
                length_max: 10,
            })),
        };
        let layer = StockLayer {
            format: Format::parse("%(name)s %(levelname)s %(message)s").unwrap(),
            levels: Levels::from_config(&config(&[])).unwrap(),
            time_zone: TimeZone::UTC,
            started: SystemTime::now(),
            logs: logs.clone(),
            forward: None,
        };
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "distributed.scheduler", "Lost all workers");
            tracing::debug!(target: "distributed.scheduler", "not shown");
            tracing::info!(target: "distributed.core", "shown, not kept");
            tracing::warn!(target: "oxidask_server::graph_helper", worker = %"tcp://a", "late");
        });
        let lines: Vec<String> = logs
            .records(0.0, None)
            .into_iter()
            .map(|record| record.line)
            .collect();
        assert_eq!(
            lines,
            [
                "oxidask.server.graph_helper WARNING late worker=tcp://a",
                "distributed.scheduler INFO Lost all workers",
            ]
        );
    }

    #[test]
    fn events_go_to_somebody_elses_log() {
        static FORWARDED: Mutex<Vec<Forwarded>> = Mutex::new(Vec::new());
        let logs = Logs {
            kept: Arc::new(Mutex::new(Kept {
                records: VecDeque::new(),
                length_max: 10,
            })),
        };
        let layer = StockLayer {
            format: Format::parse("%(message)s").unwrap(),
            levels: Levels::from_config(&config(&[])).unwrap(),
            time_zone: TimeZone::UTC,
            started: SystemTime::now(),
            logs: logs.clone(),
            forward: Some(|record| FORWARDED.lock().unwrap().push(record)),
        };
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(target: "distributed.worker", count = 3, "late");
        });
        assert_eq!(
            *FORWARDED.lock().unwrap(),
            [Forwarded {
                logger: "distributed.worker".to_owned(),
                level: 30,
                message: "late count=3".to_owned(),
            }]
        );
        assert_eq!(logs.records(0.0, None)[0].line, "late count=3");
    }
}
