//! Versions of this machine and its packages, and warnings about peers whose
//! versions differ. The counterpart of `distributed.versions`.
//!
//! A native scheduler has no cloudpickle and no tornado. What it reports as its
//! packages are those of the interpreter that unpickles its clients' graphs,
//! told by the graph helper soon after the start. Until then nothing is held
//! against it: a client that connects in the first second gets no warning about
//! packages that the scheduler does not know yet.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use indexmap::IndexMap;
use oxidask_wire::{Map, Value};

/// Packages of the scheduler that clients and workers must have in the same
/// version: it handles their pickles with them.
const SCHEDULER_RELEVANT: [&str; 7] = [
    "dask",
    "distributed",
    "cloudpickle",
    "tornado",
    "toolz",
    "lz4",
    "python",
];

/// Packages that `distributed` always reports, in its order.
const REPORTED: [&str; 9] = [
    "dask",
    "distributed",
    "msgpack",
    "cloudpickle",
    "tornado",
    "toolz",
    "numpy",
    "pandas",
    "lz4",
];

/// Kinds of version maps that workers of one cluster are told apart by. A
/// cluster with more kinds of installations than this gets its warning anyway.
const WORKER_KIND_COUNT_MAX: usize = 64;

/// What the scheduler answers to `versions`.
#[derive(Debug, Clone, PartialEq)]
pub struct VersionsInfo {
    host: Vec<(String, Value)>,
    packages: Option<Packages>,
}

/// Package names and versions; `None` is a package that is not installed.
type Packages = IndexMap<String, Option<String>>;

/// What a client or worker said about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerVersions {
    /// Sorted by name; `None` if it said nothing.
    packages: Option<Vec<(String, Option<String>)>>,
}

/// Versions of all workers. Workers mostly agree, so that a registration costs
/// the same with ten workers and with ten thousand.
#[derive(Debug, Clone, Default)]
pub struct WorkerVersions {
    kinds: IndexMap<Vec<(String, Option<String>)>, usize>,
    unknown_count: usize,
}

impl VersionsInfo {
    /// What this process knows by itself: the host, no packages.
    #[must_use]
    pub fn native() -> Self {
        let uname = nix::sys::utsname::uname().ok();
        let part = |read: fn(&nix::sys::utsname::UtsName) -> &std::ffi::OsStr| {
            let text = uname
                .as_ref()
                .map(|uname| read(uname).to_string_lossy().into_owned());
            Value::Str(text.unwrap_or_default().into())
        };
        let variable = |name| {
            let text = std::env::var(name).unwrap_or_else(|_| "None".to_owned());
            Value::Str(text.into())
        };
        let byteorder = if cfg!(target_endian = "big") {
            "big"
        } else {
            "little"
        };
        let host = [
            ("python", Value::Nil),
            ("python-bits", Value::Int(i64::from(usize::BITS))),
            ("OS", part(|uname| uname.sysname())),
            ("OS-release", part(|uname| uname.release())),
            ("machine", part(|uname| uname.machine())),
            ("processor", Value::Str("".into())),
            ("byteorder", Value::Str(byteorder.into())),
            ("LC_ALL", variable("LC_ALL")),
            ("LANG", variable("LANG")),
        ];
        Self {
            host: host.map(|(name, value)| (name.to_owned(), value)).to_vec(),
            packages: None,
        }
    }

    /// What the graph helper reports: the map of `distributed.versions.get_versions`.
    /// `None` if it has no `packages`.
    #[must_use]
    pub fn from_helper(versions: &Value) -> Option<Self> {
        let map = versions.as_map()?;
        let mut host = Self::native().host;
        if let Some(reported) = map.get("host").and_then(Value::as_map) {
            for (name, value) in reported.iter() {
                let Some(name) = name.as_str() else { continue };
                match host.iter_mut().find(|(own, _)| own == name) {
                    Some((_, own)) => *own = value.detached(),
                    None => host.push((name.to_owned(), value.detached())),
                }
            }
        }
        let packages = read_packages(map.get("packages")?.as_map()?);
        Some(Self {
            host,
            packages: Some(packages.into_iter().collect()),
        })
    }

    /// Whether the packages are known.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.packages.is_some()
    }

    /// The reply to `versions`, with `extra` packages as the client asked for.
    /// An extra package that the helper did not report has no version.
    #[must_use]
    pub fn to_value(&self, extra: &[&str]) -> Value {
        let mut packages = Map::new();
        let known = |name: &str| {
            self.packages
                .as_ref()
                .and_then(|packages| packages.get(name).cloned())
                .flatten()
                .map_or(Value::Nil, |version| Value::Str(version.into()))
        };
        let mut names: Vec<&str> = vec!["python"];
        names.extend(REPORTED);
        if let Some(reported) = &self.packages {
            names.extend(reported.keys().map(String::as_str));
        }
        names.extend(extra);
        let mut seen = BTreeSet::new();
        for name in names {
            if seen.insert(name) {
                packages.0.push((Value::Str(name.into()), known(name)));
            }
        }
        let host = self
            .host
            .iter()
            .map(|(name, value)| (Value::Str(name.as_str().into()), value.clone()))
            .collect();
        Value::Map(Map(vec![
            (Value::Str("host".into()), Value::Map(Map(host))),
            (Value::Str("packages".into()), Value::Map(packages)),
        ]))
    }

    /// The warning for a peer whose packages differ from the workers' or the
    /// scheduler's; empty if there is nothing to say.
    ///
    /// `source_name` heads the peer's column: `Client`, or a worker's server id.
    /// Same text as `distributed.versions.error_message`, except that versions
    /// of several workers are sorted, and that a peer which sent no versions
    /// does not add the letters of the word UNKNOWN as packages.
    #[must_use]
    pub fn mismatch_warning(
        &self,
        workers: &WorkerVersions,
        source: &PeerVersions,
        source_name: &str,
    ) -> String {
        let mut names: BTreeSet<&str> = BTreeSet::new();
        names.extend(source.names());
        names.extend(workers.names());
        if let Some(packages) = &self.packages {
            names.extend(packages.keys().map(String::as_str));
        }
        let mut rows = Vec::new();
        for name in names {
            let scheduler_version = match &self.packages {
                Some(packages) => printed(packages.get(name).map(Option::as_deref)),
                None => "UNKNOWN".to_owned(),
            };
            let source_version = source.version(name);
            let worker_versions = workers.versions(name);
            let mut distinct: BTreeSet<&str> = BTreeSet::new();
            distinct.insert(&source_version);
            distinct.extend(worker_versions.iter().map(String::as_str));
            if self.packages.is_some() && SCHEDULER_RELEVANT.contains(&name) {
                distinct.insert(&scheduler_version);
            }
            if distinct.len() > 1 {
                let workers = match worker_versions.len() {
                    0 => "None".to_owned(),
                    1 => worker_versions.into_iter().collect(),
                    _ => printed_set(&worker_versions),
                };
                rows.push([name.to_owned(), source_version, scheduler_version, workers]);
            }
        }
        if rows.is_empty() {
            return String::new();
        }
        let header = ["Package", source_name, "Scheduler", "Workers"].map(str::to_owned);
        format!("Mismatched versions found\n\n{}", table(&header, &rows))
    }
}

impl PeerVersions {
    /// Reads the `versions` of `register-client` or `register-worker`.
    #[must_use]
    pub fn from_value(versions: Option<&Value>) -> Self {
        let packages = versions
            .and_then(Value::as_map)
            .and_then(|map| map.get("packages"))
            .and_then(Value::as_map)
            .map(read_packages);
        let packages = packages.map(|mut packages| {
            packages.sort();
            packages.dedup_by(|left, right| left.0 == right.0);
            packages
        });
        Self { packages }
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.packages
            .iter()
            .flatten()
            .map(|(name, _)| name.as_str())
    }

    fn version(&self, name: &str) -> String {
        match &self.packages {
            Some(packages) => find(packages, name),
            None => "UNKNOWN".to_owned(),
        }
    }
}

impl WorkerVersions {
    /// Adds a worker.
    pub fn add(&mut self, worker: &PeerVersions) {
        match &worker.packages {
            Some(packages) => {
                if let Some(count) = self.kinds.get_mut(packages) {
                    *count += 1;
                } else if self.kinds.len() < WORKER_KIND_COUNT_MAX {
                    self.kinds.insert(packages.clone(), 1);
                }
            }
            None => self.unknown_count += 1,
        }
    }

    /// Removes a worker that was added.
    pub fn remove(&mut self, worker: &PeerVersions) {
        match &worker.packages {
            Some(packages) => {
                if let Some(count) = self.kinds.get_mut(packages) {
                    *count -= 1;
                    if *count == 0 {
                        self.kinds.swap_remove(packages);
                    }
                }
            }
            None => self.unknown_count = self.unknown_count.saturating_sub(1),
        }
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.kinds.keys().flatten().map(|(name, _)| name.as_str())
    }

    fn versions(&self, name: &str) -> BTreeSet<String> {
        let mut versions: BTreeSet<String> = self
            .kinds
            .keys()
            .map(|packages| find(packages, name))
            .collect();
        if self.unknown_count > 0 {
            versions.insert("UNKNOWN".to_owned());
        }
        versions
    }
}

fn read_packages(map: &Map) -> Vec<(String, Option<String>)> {
    map.iter()
        .filter_map(|(name, version)| {
            let version = version.as_str().map(str::to_owned);
            Some((name.as_str()?.to_owned(), version))
        })
        .collect()
}

fn find(packages: &[(String, Option<String>)], name: &str) -> String {
    let found = packages
        .binary_search_by(|(own, _)| own.as_str().cmp(name))
        .ok()
        .map(|index| packages[index].1.as_deref());
    printed(found)
}

/// A version as Python prints it in the table.
fn printed(version: Option<Option<&str>>) -> String {
    match version {
        Some(Some(version)) => version.to_owned(),
        Some(None) => "None".to_owned(),
        None => "MISSING".to_owned(),
    }
}

/// `str` of a Python set of versions.
fn printed_set(versions: &BTreeSet<String>) -> String {
    let items: Vec<String> = versions
        .iter()
        .map(|version| match version.as_str() {
            "None" => version.clone(),
            text => format!("'{text}'"),
        })
        .collect();
    format!("{{{}}}", items.join(", "))
}

/// A table of dashes and bars: `asciitable` in distributed.
fn table<const N: usize>(header: &[String; N], rows: &[[String; N]]) -> String {
    let mut widths = header.each_ref().map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut bar = String::from("+");
    for width in widths {
        bar.push_str(&"-".repeat(width + 2));
        bar.push('+');
    }
    let line = |cells: &[String; N]| {
        let mut line = String::from("|");
        for (cell, width) in cells.iter().zip(widths) {
            write!(line, " {cell:<width$} |").expect("writing to a string cannot fail");
        }
        line
    };
    let mut lines = vec![bar.clone(), line(header), bar.clone()];
    lines.extend(rows.iter().map(line));
    lines.push(bar);
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(packages: &[(&str, Option<&str>)]) -> Value {
        let pairs = packages.iter().map(|(name, version)| {
            let version = version.map_or(Value::Nil, |version| Value::Str(version.into()));
            (Value::Str((*name).into()), version)
        });
        Value::Map(Map(vec![(
            Value::Str("packages".into()),
            Value::Map(Map(pairs.collect())),
        )]))
    }

    fn peer(packages: &[(&str, Option<&str>)]) -> PeerVersions {
        PeerVersions::from_value(Some(&versions(packages)))
    }

    fn workers(list: &[PeerVersions]) -> WorkerVersions {
        let mut workers = WorkerVersions::default();
        for worker in list {
            workers.add(worker);
        }
        workers
    }

    #[test]
    fn equal_versions_give_no_warning() {
        let packages = [("dask", Some("2026.8.0")), ("lz4", None)];
        let scheduler = VersionsInfo::from_helper(&versions(&packages)).unwrap();
        let workers = workers(&[peer(&packages), peer(&packages)]);
        assert_eq!(
            scheduler.mismatch_warning(&workers, &peer(&packages), "Client"),
            ""
        );
    }

    #[test]
    fn only_relevant_packages_of_the_scheduler_count() {
        let scheduler = VersionsInfo::from_helper(&versions(&[
            ("dask", Some("2026.8.0")),
            ("numpy", Some("2.4")),
            ("msgpack", Some("1.1")),
        ]))
        .unwrap();
        let source = peer(&[
            ("dask", Some("2026.8.0")),
            ("numpy", Some("2.5")),
            ("msgpack", Some("1.2")),
        ]);
        assert_eq!(
            scheduler.mismatch_warning(&workers(&[]), &source, "Client"),
            ""
        );
    }

    // The expected text is what distributed 2026.8.0 gives for the same maps.
    #[test]
    fn the_table_is_that_of_distributed() {
        let scheduler = VersionsInfo::from_helper(&versions(&[
            ("dask", Some("2026.8.0")),
            ("python", Some("3.12.1.final.0")),
            ("lz4", None),
        ]))
        .unwrap();
        let source = peer(&[
            ("dask", Some("2026.7.0")),
            ("python", Some("3.12.1.final.0")),
            ("numpy", Some("2.5")),
        ]);
        let workers = workers(&[
            peer(&[
                ("dask", Some("2026.8.0")),
                ("python", Some("3.12.1.final.0")),
            ]),
            peer(&[
                ("dask", Some("2026.8.0")),
                ("python", Some("3.12.1.final.0")),
                ("numpy", Some("2.4")),
            ]),
        ]);
        let expected = "\
Mismatched versions found

+---------+----------+-----------+--------------------+
| Package | Client   | Scheduler | Workers            |
+---------+----------+-----------+--------------------+
| dask    | 2026.7.0 | 2026.8.0  | 2026.8.0           |
| lz4     | MISSING  | None      | MISSING            |
| numpy   | 2.5      | MISSING   | {'2.4', 'MISSING'} |
+---------+----------+-----------+--------------------+";
        assert_eq!(
            scheduler.mismatch_warning(&workers, &source, "Client"),
            expected
        );
    }

    #[test]
    fn packages_not_known_yet_are_not_compared() {
        let scheduler = VersionsInfo::native();
        let source = peer(&[("dask", Some("2026.8.0")), ("tornado", Some("6.5"))]);
        assert!(!scheduler.is_complete());
        assert_eq!(
            scheduler.mismatch_warning(&workers(&[]), &source, "Client"),
            ""
        );
        let differing = workers(&[peer(&[("dask", Some("2026.7.0"))])]);
        let warning = scheduler.mismatch_warning(&differing, &source, "Client");
        assert!(
            warning.contains("| dask    | 2026.8.0 | UNKNOWN   | 2026.7.0 |"),
            "{warning}"
        );
    }

    #[test]
    fn removed_workers_no_longer_count() {
        let odd = peer(&[("dask", Some("1"))]);
        let source = peer(&[("dask", Some("2"))]);
        let scheduler = VersionsInfo::native();
        let mut workers = workers(std::slice::from_ref(&odd));
        assert_ne!(scheduler.mismatch_warning(&workers, &source, "Client"), "");
        workers.remove(&odd);
        assert_eq!(scheduler.mismatch_warning(&workers, &source, "Client"), "");
    }

    #[test]
    fn the_reply_has_what_distributed_always_reports() {
        let reply = VersionsInfo::native().to_value(&["scipy"]);
        let map = reply.as_map().unwrap();
        let host = map.get("host").unwrap().as_map().unwrap();
        let packages = map.get("packages").unwrap().as_map().unwrap();
        assert!(
            host.get("OS")
                .unwrap()
                .as_str()
                .is_some_and(|os| !os.is_empty())
        );
        for name in REPORTED.iter().chain(&["python", "scipy"]) {
            assert!(packages.contains_key(name), "{name}");
        }
    }
}
