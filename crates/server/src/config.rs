//! Dask's configuration, read as `dask.config` reads it.
//!
//! ```text
//!  /etc/dask, PREFIX/etc/dask, ~/.config/dask, DASK_CONFIG   (*.yaml, *.yml, *.json)
//!        │  later files win
//!        ▼
//!  DASK_INTERNAL_INHERIT_CONFIG, then DASK_FOO__BAR_BAZ=1
//!        │  win over files
//!        ▼
//!  defaults of the keys that a scheduler reads
//! ```
//!
//! Values are checked when they are asked for, and a wrong one is reported with
//! its key and the file or variable it came from.

mod deprecations;
mod literal;
mod server;
mod units;
mod value;
mod yaml;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::GeneralPurpose;
use base64::engine::{DecodePaddingMode, GeneralPurposeConfig};

pub use server::{DashboardTls, ServerConfig};
pub use units::{format_bytes, parse_bytes, parse_timedelta};
pub use value::{Map, Value};

const DEFAULTS: &str = include_str!("config/defaults.yaml");

/// Name of the variable by which a cluster object hands its configuration to
/// the processes it starts.
pub const INHERITED_CONFIG: &str = "DASK_INTERNAL_INHERIT_CONFIG";

/// Dask's configuration. Cheap to clone.
#[derive(Clone)]
pub struct Config {
    inner: Arc<Inner>,
}

struct Inner {
    merged: Map,
    /// What each source said, most important first; read only to name the
    /// source of a wrong value.
    layers: Vec<(Source, Map)>,
    warnings: Vec<String>,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// An option of the command line.
    CommandLine(&'static str),
    /// A `DASK_*` environment variable.
    Environment,
    /// A configuration file.
    File(PathBuf),
    /// The defaults of Dask.
    Default,
}

/// What [`Config::load`] reads besides files.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    /// Environment variables, in their order.
    pub variables: Vec<(String, String)>,
    /// `sys.prefix` and `sys.exec_prefix` of the cluster's interpreter.
    pub prefixes: Vec<PathBuf>,
    /// The user's home folder.
    pub home: Option<PathBuf>,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is no YAML, or its top level is no map.
    #[error("the dask config file `{}` is malformed: {reason}", path.display())]
    MalformedFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The inherited configuration is no base64-encoded JSON map.
    #[error("the environment variable `DASK_INTERNAL_INHERIT_CONFIG` is malformed: {reason}")]
    MalformedInheritance {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A value has the wrong type or makes no sense.
    #[error("invalid value {value} for `{key}` in {origin}: {reason}")]
    InvalidValue {
        /// The dotted key.
        key: String,
        /// The value, as Python prints it.
        value: String,
        /// The file or variable it came from.
        origin: String,
        /// What was expected.
        reason: String,
    },
}

impl Inputs {
    /// The environment of this process, with the prefixes of the interpreter.
    #[must_use]
    pub fn from_process(prefixes: &[PathBuf]) -> Self {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self {
            variables,
            prefixes: prefixes.to_vec(),
            home: std::env::home_dir(),
        }
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.variables
            .iter()
            .find(|(own, _)| own == name)
            .map(|(_, value)| value.as_str())
    }

    /// Folders and files to read, least important first: `dask.config.paths`.
    fn paths(&self) -> Vec<PathBuf> {
        let mut paths = vec![PathBuf::from(
            self.variable("DASK_ROOT_CONFIG").unwrap_or("/etc/dask"),
        )];
        paths.extend(self.prefixes.iter().map(|prefix| prefix.join("etc/dask")));
        if let Some(home) = &self.home {
            paths.push(home.join(".config/dask"));
        }
        if let Some(own) = self.variable("DASK_CONFIG") {
            paths.push(PathBuf::from(own));
        }
        // Of equal paths the last one counts.
        let mut unique: Vec<PathBuf> = Vec::new();
        for path in paths.into_iter().rev() {
            if !unique.contains(&path) {
                unique.push(path);
            }
        }
        unique.reverse();
        unique
    }
}

impl Config {
    /// Reads files and environment variables.
    ///
    /// # Errors
    ///
    /// When a file or the inherited configuration is malformed. Files that
    /// cannot be opened are passed over, as in Dask.
    pub fn load(inputs: &Inputs) -> Result<Self, ConfigError> {
        let mut layers = Vec::new();
        for path in inputs.paths() {
            for file in config_files(&path) {
                if let Some(map) = load_file(&file)? {
                    layers.push((Source::File(file), map));
                }
            }
        }
        layers.push((Source::Environment, collect_variables(inputs)?));
        layers.reverse();
        Ok(Self::from_layers(layers))
    }

    /// Only the defaults.
    #[must_use]
    pub fn defaults() -> Self {
        Self::from_layers(Vec::new())
    }

    /// The same configuration with `values` on top, for what a command line or
    /// a Python keyword argument says.
    #[must_use]
    pub fn with(&self, option: &'static str, values: &[(&str, Value)]) -> Self {
        let mut top = Map::new();
        for (key, value) in values {
            value::set(&mut top, key, value.clone());
        }
        let mut layers = vec![(Source::CommandLine(option), top)];
        layers.extend(
            self.inner
                .layers
                .iter()
                .filter(|(source, _)| *source != Source::Default)
                .cloned(),
        );
        let mut config = Self::from_layers(layers);
        if let Some(inner) = Arc::get_mut(&mut config.inner) {
            inner.warnings.clone_from(&self.inner.warnings);
        }
        config
    }

    /// Merges layers, most important first.
    fn from_layers(mut layers: Vec<(Source, Map)>) -> Self {
        let mut merged = Map::new();
        let mut warnings = Vec::new();
        let mut seen: Vec<&str> = Vec::new();
        for (_, map) in &mut layers {
            for (old, new) in deprecations::DASK {
                let Some(found) = value::pop(map, old) else {
                    continue;
                };
                value::set(map, new, found);
                let is_overridden = value::get(&merged, new).is_some();
                if !seen.contains(&old) && !is_overridden {
                    warnings.push(format!(
                        "Dask configuration key '{old}' has been deprecated; please use '{new}' instead"
                    ));
                }
                seen.push(old);
            }
            value::fill_in(&mut merged, map);
        }
        let defaults = match yaml::load(DEFAULTS) {
            Ok(Value::Map(map)) => map,
            other => unreachable!("the defaults are part of the program and a map, not {other:?}"),
        };
        value::fill_in(&mut merged, &defaults);
        layers.push((Source::Default, defaults));
        for (old, new) in deprecations::DISTRIBUTED {
            if let Some(found) = value::pop(&mut merged, old) {
                value::set(&mut merged, new, found);
            }
        }
        Self {
            inner: Arc::new(Inner {
                merged,
                layers,
                warnings,
            }),
        }
    }

    /// The value at a dotted key such as `distributed.scheduler.allowed-failures`;
    /// hyphens and underscores are the same. `None` if there is neither a value
    /// nor a default.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        value::get(&self.inner.merged, key)
    }

    /// Warnings about deprecated keys, to be logged once logging works.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.inner.warnings
    }

    /// Everything, defaults of other parts of Dask excluded, as JSON.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        Value::Map(self.inner.merged.clone()).to_json()
    }

    /// A flag. Besides booleans and numbers the usual words are understood,
    /// because environment variables often carry them.
    ///
    /// # Errors
    ///
    /// When the value is no flag. Dask takes any text, `off` included, for true.
    pub fn bool(&self, key: &str) -> Result<bool, ConfigError> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(Value::Int(number)) => Ok(*number != 0),
            Some(Value::Str(word)) if is_word(word, &["yes", "on", "true"]) => Ok(true),
            Some(Value::Str(word)) if is_word(word, &["no", "off", "false", ""]) => Ok(false),
            Some(Value::Float(_) | Value::Str(_) | Value::List(_) | Value::Map(_)) => {
                Err(self.invalid(key, "expected true or false"))
            }
        }
    }

    /// A count.
    ///
    /// # Errors
    ///
    /// When the value is no integer of at least 0.
    pub fn count(&self, key: &str) -> Result<usize, ConfigError> {
        let number = match self.get(key) {
            Some(Value::Int(number)) => usize::try_from(*number).ok(),
            Some(Value::Float(number)) if number.fract() == 0.0 && *number >= 0.0 => {
                Some(*number as usize)
            }
            Some(Value::Str(text)) => text.trim().parse().ok(),
            None
            | Some(
                Value::Null | Value::Bool(_) | Value::Float(_) | Value::List(_) | Value::Map(_),
            ) => None,
        };
        number.ok_or_else(|| self.invalid(key, "expected an integer of at least 0"))
    }

    /// The length of a log. Null, which is no limit in Dask, is a generous one
    /// here: nothing grows for ever.
    ///
    /// # Errors
    ///
    /// When the value is neither null nor an integer of at least 0.
    pub fn log_length(&self, key: &str) -> Result<usize, ConfigError> {
        const UNLIMITED: usize = 1_000_000;
        match self.get(key) {
            Some(Value::Null) => Ok(UNLIMITED),
            _ => self.count(key),
        }
    }

    /// A number; the words `inf` and `nan` included.
    ///
    /// # Errors
    ///
    /// When the value is no number.
    pub fn float(&self, key: &str) -> Result<f64, ConfigError> {
        let number = match self.get(key) {
            Some(Value::Int(number)) => Some(*number as f64),
            Some(Value::Float(number)) => Some(*number),
            Some(Value::Str(text)) => units::parse_float(text),
            None | Some(Value::Null | Value::Bool(_) | Value::List(_) | Value::Map(_)) => None,
        };
        number.ok_or_else(|| self.invalid(key, "expected a number"))
    }

    /// A fraction of memory: a number, or `None` for `false`, which turns the
    /// behaviour off.
    ///
    /// # Errors
    ///
    /// When the value is neither.
    pub fn fraction(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        match self.get(key) {
            None | Some(Value::Null | Value::Bool(false)) => Ok(None),
            Some(
                Value::Bool(true)
                | Value::Int(_)
                | Value::Float(_)
                | Value::Str(_)
                | Value::List(_)
                | Value::Map(_),
            ) => self.float(key).map(Some),
        }
    }

    /// A duration with its unit, seconds if it has none; `None` for null.
    ///
    /// # Errors
    ///
    /// When the value is no duration that can be measured.
    pub fn optional_duration(&self, key: &str) -> Result<Option<Duration>, ConfigError> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let seconds = parse_timedelta(value, "seconds")
                    .map_err(|reason| self.invalid(key, &reason))?;
                Duration::try_from_secs_f64(seconds)
                    .map(Some)
                    .map_err(|_| self.invalid(key, "expected a duration that can be measured"))
            }
        }
    }

    /// A duration that must be there.
    ///
    /// # Errors
    ///
    /// When the value is null or no duration.
    pub fn duration(&self, key: &str) -> Result<Duration, ConfigError> {
        self.optional_duration(key)?
            .ok_or_else(|| self.invalid(key, "expected a duration such as '30s'"))
    }

    /// A size in bytes.
    ///
    /// # Errors
    ///
    /// When the value is no size of at least 0.
    pub fn bytes(&self, key: &str) -> Result<u64, ConfigError> {
        let value = self.get(key).unwrap_or(&Value::Null);
        let size = parse_bytes(value).map_err(|reason| self.invalid(key, &reason))?;
        u64::try_from(size).map_err(|_| self.invalid(key, "expected a size of at least 0"))
    }

    /// Text; `None` for null.
    ///
    /// # Errors
    ///
    /// When the value is no text.
    pub fn optional_text(&self, key: &str) -> Result<Option<String>, ConfigError> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Str(text)) => Ok(Some(text.clone())),
            Some(Value::Int(number)) => Ok(Some(number.to_string())),
            Some(Value::Bool(_) | Value::Float(_) | Value::List(_) | Value::Map(_)) => {
                Err(self.invalid(key, "expected text"))
            }
        }
    }

    /// Text that must be there.
    ///
    /// # Errors
    ///
    /// When the value is null or no text.
    pub fn text(&self, key: &str) -> Result<String, ConfigError> {
        self.optional_text(key)?
            .ok_or_else(|| self.invalid(key, "expected text"))
    }

    /// A list of texts; a single text is a list of one.
    ///
    /// # Errors
    ///
    /// When the value is no list of texts.
    pub fn texts(&self, key: &str) -> Result<Vec<String>, ConfigError> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Str(text)) => Ok(vec![text.clone()]),
            Some(Value::List(items)) => {
                let mut texts = Vec::with_capacity(items.len());
                for item in items {
                    let text = item
                        .as_str()
                        .ok_or_else(|| self.invalid(key, "expected a list of texts"))?;
                    texts.push(text.to_owned());
                }
                Ok(texts)
            }
            Some(Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Map(_)) => {
                Err(self.invalid(key, "expected a list of texts"))
            }
        }
    }

    /// The error for the value at `key`, naming where it came from.
    #[must_use]
    pub fn invalid(&self, key: &str, reason: &str) -> ConfigError {
        ConfigError::InvalidValue {
            key: key.to_owned(),
            value: self.get(key).unwrap_or(&Value::Null).to_string(),
            origin: self.origin(key),
            reason: reason.to_owned(),
        }
    }

    /// Names the source of the value at `key`.
    fn origin(&self, key: &str) -> String {
        let old_names = || {
            deprecations::DISTRIBUTED
                .iter()
                .filter(|(_, new)| *new == key)
                .map(|(old, _)| *old)
        };
        for (source, map) in &self.inner.layers {
            let named = std::iter::once(key)
                .chain(old_names())
                .find(|name| value::get(map, name).is_some());
            if let Some(name) = named {
                return match source {
                    Source::Environment => format!(
                        "the environment variable `DASK_{}`",
                        name.to_uppercase().replace('.', "__").replace('-', "_")
                    ),
                    Source::File(_) | Source::CommandLine(_) | Source::Default => {
                        source.to_string()
                    }
                };
            }
        }
        Source::Default.to_string()
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine(option) => write!(f, "the option `{option}`"),
            Self::Environment => f.write_str("the environment"),
            Self::File(path) => write!(f, "`{}`", path.display()),
            Self::Default => f.write_str("the defaults"),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Config").field(&self.inner.merged).finish()
    }
}

fn is_word(text: &str, words: &[&str]) -> bool {
    words.iter().any(|word| text.eq_ignore_ascii_case(word))
}

/// The file itself, or the YAML and JSON files of a folder in their order.
fn config_files(path: &Path) -> Vec<PathBuf> {
    if !path.is_dir() {
        return if path.exists() {
            vec![path.to_owned()]
        } else {
            Vec::new()
        };
    }
    // A folder that may not be read is passed over, as in Dask.
    let Ok(entries) = path.read_dir() else {
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|file| {
            file.extension()
                .and_then(|extension| extension.to_str())
                .is_some_and(|extension| is_word(extension, &["json", "yaml", "yml"]))
        })
        .collect();
    files.sort();
    files
}

fn load_file(path: &Path) -> Result<Option<Map>, ConfigError> {
    let malformed = |reason: String| ConfigError::MalformedFile {
        path: path.to_owned(),
        reason,
    };
    let Ok(bytes) = std::fs::read(path) else {
        return Ok(None);
    };
    let text = String::from_utf8(bytes).map_err(|error| malformed(error.to_string()))?;
    match yaml::load(&text).map_err(malformed)? {
        Value::Null => Ok(None),
        Value::Map(map) => Ok(Some(map)),
        other @ (Value::Bool(_)
        | Value::Int(_)
        | Value::Float(_)
        | Value::Str(_)
        | Value::List(_)) => Err(malformed(format!(
            "config files must have a map as the top level object, got {other}"
        ))),
    }
}

/// Same as `dask.config.collect_env`.
fn collect_variables(inputs: &Inputs) -> Result<Map, ConfigError> {
    let mut assigned = match inputs.variable(INHERITED_CONFIG) {
        Some(blob) => inherited(blob)?,
        None => Map::new(),
    };
    for (name, text) in &inputs.variables {
        if let Some(name) = name.strip_prefix("DASK_") {
            let key = name.to_lowercase().replace("__", ".");
            assigned.insert(key, literal::interpret(text));
        }
    }
    let mut nested = Map::new();
    for (key, value) in assigned {
        let key = deprecations::DASK
            .iter()
            .find(|(old, _)| *old == key.replace('_', "-"))
            .map_or(key.as_str(), |(_, new)| *new);
        value::set(&mut nested, key, value);
    }
    Ok(nested)
}

/// Same as `dask.config.deserialize`.
fn inherited(blob: &str) -> Result<Map, ConfigError> {
    let malformed = |reason| ConfigError::MalformedInheritance { reason };
    let engine = GeneralPurpose::new(
        &base64::alphabet::URL_SAFE,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let bytes = engine
        .decode(blob.trim())
        .map_err(|_| malformed("no base64"))?;
    let text = String::from_utf8(bytes).map_err(|_| malformed("no UTF-8"))?;
    match literal::python_json(&text) {
        Some(Value::Map(map)) => Ok(map),
        Some(_) => Err(malformed("no map")),
        None => Err(malformed("no JSON")),
    }
}
