//! The process and its host, as the operating system sees them:
//! `SystemMonitor` of distributed.

use std::collections::VecDeque;
use std::fs;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use oxidask_wire::{Map, Value, map};

use super::shell::now;

/// What was seen, newest last.
#[derive(Debug)]
pub(super) struct Monitor {
    samples: VecDeque<Sample>,
    settings: MonitorSettings,
    count: u64,
    last: Counters,
    lateness: Duration,
}

/// `distributed.admin.system-monitor`.
#[derive(Clone, Copy, Debug)]
pub(super) struct MonitorSettings {
    /// Time between two looks at the process.
    pub(super) interval: Duration,
    /// Looks kept.
    pub(super) length_max: usize,
    /// Looks at the host's disks.
    pub(super) disk: bool,
    /// Looks at what the host's processors do.
    pub(super) host_cpu: bool,
    /// `distributed.admin.tick.interval`, for `event_loop_interval`.
    pub(super) tick_interval: Duration,
}

/// What `/proc/stat` tells apart, as `psutil.cpu_times` names it.
const HOST_CPU: [&str; 10] = [
    "user",
    "nice",
    "system",
    "idle",
    "iowait",
    "irq",
    "softirq",
    "steal",
    "guest",
    "guest_nice",
];

/// One look.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Per cent of one core.
    cpu: f64,
    /// Bytes resident.
    memory: u64,
    time: f64,
    net_read_bps: f64,
    net_write_bps: f64,
    disk_read_bps: f64,
    disk_write_bps: f64,
    /// Processors busy with each of [`HOST_CPU`].
    host_cpu: [f64; HOST_CPU.len()],
    num_fds: u64,
}

/// One figure of all looks.
type Column = Box<dyn Fn(&Sample) -> Value>;

/// What only grows.
#[derive(Clone, Copy, Debug)]
struct Counters {
    at: Instant,
    cpu: Duration,
    net: (u64, u64),
    disk: (u64, u64),
    /// In hundredths of a second.
    host_cpu: [u64; HOST_CPU.len()],
}

impl Counters {
    fn read(settings: MonitorSettings) -> Self {
        Self {
            at: Instant::now(),
            cpu: cpu_time(),
            net: net_io(),
            disk: if settings.disk { disk_io() } else { (0, 0) },
            host_cpu: if settings.host_cpu {
                host_cpu()
            } else {
                Default::default()
            },
        }
    }
}

impl Monitor {
    /// With a first look.
    pub(super) fn new(settings: MonitorSettings) -> Self {
        let mut monitor = Self {
            samples: VecDeque::new(),
            count: 0,
            last: Counters::read(settings),
            settings,
            lateness: Duration::ZERO,
        };
        monitor.update(Duration::ZERO);
        monitor
    }

    /// Looks again, `lateness` after the time at which it was to be.
    pub(super) fn update(&mut self, lateness: Duration) {
        let next = Counters::read(self.settings);
        let last = std::mem::replace(&mut self.last, next);
        let seconds = (next.at - last.at).as_secs_f64().max(0.001);
        let rate = |next: u64, last: u64| next.saturating_sub(last) as f64 / seconds;
        let cpu = next.cpu.saturating_sub(last.cpu).as_secs_f64();
        let mut host_cpu = [0.0; HOST_CPU.len()];
        for (busy, (next, last)) in host_cpu
            .iter_mut()
            .zip(next.host_cpu.into_iter().zip(last.host_cpu))
        {
            // Hundredths are the precision of the counters.
            *busy = rate(next, last).round() / 100.0;
        }
        if self.samples.len() >= self.settings.length_max.max(1) {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample {
            cpu: (cpu / seconds * 1000.0).round() / 10.0,
            memory: resident_nbytes(),
            time: now(),
            net_read_bps: rate(next.net.0, last.net.0),
            net_write_bps: rate(next.net.1, last.net.1),
            disk_read_bps: rate(next.disk.0, last.disk.0),
            disk_write_bps: rate(next.disk.1, last.disk.1),
            host_cpu,
            num_fds: fds_count(),
        });
        self.count += 1;
        self.lateness = lateness;
    }

    /// Seconds between two ticks of stock's event loop: here the interval that is
    /// configured, and by how much a timer was late.
    pub(super) fn event_loop_interval(&self) -> f64 {
        (self.settings.tick_interval + self.lateness).as_secs_f64()
    }

    /// Adds the newest look to the metrics of a heartbeat.
    pub(super) fn recent(&self, metrics: &mut Map) {
        let Some(sample) = self.samples.back() else {
            return;
        };
        metrics.push("cpu", sample.cpu);
        metrics.push("memory", sample.memory);
        metrics.push("time", sample.time);
        let net = map! { "read_bps" => sample.net_read_bps, "write_bps" => sample.net_write_bps };
        metrics.push("host_net_io", net);
        if self.settings.disk {
            let disk = map! {
                "read_bps" => sample.disk_read_bps,
                "write_bps" => sample.disk_write_bps,
            };
            metrics.push("host_disk_io", disk);
        }
        if self.settings.host_cpu {
            let host_cpu: Map = HOST_CPU.into_iter().zip(sample.host_cpu).collect();
            metrics.push("host_cpu", host_cpu);
        }
        metrics.push("num_fds", sample.num_fds);
    }

    /// Every figure by its name.
    fn columns(&self) -> Vec<(String, Column)> {
        fn column<T: Into<Value>>(
            name: &str,
            figure: impl Fn(&Sample) -> T + 'static,
        ) -> (String, Column) {
            let figure = move |sample: &Sample| figure(sample).into();
            (name.to_owned(), Box::new(figure))
        }
        let mut columns = vec![
            column("cpu", |sample| sample.cpu),
            column("memory", |sample| sample.memory),
            column("time", |sample| sample.time),
            column("host_net_io.read_bps", |sample| sample.net_read_bps),
            column("host_net_io.write_bps", |sample| sample.net_write_bps),
        ];
        if self.settings.disk {
            columns.push(column("host_disk_io.read_bps", |sample| {
                sample.disk_read_bps
            }));
            columns.push(column("host_disk_io.write_bps", |sample| {
                sample.disk_write_bps
            }));
        }
        if self.settings.host_cpu {
            for (place, name) in HOST_CPU.into_iter().enumerate() {
                let name = format!("host_cpu.{name}");
                columns.push(column(&name, move |sample| sample.host_cpu[place]));
            }
        }
        columns.push(column("num_fds", |sample| sample.num_fds));
        columns
    }

    /// The reply to `get_monitor_info`: the newest look, or lists of all from the
    /// `start`-th on.
    pub(super) fn info(&self, recent: bool, start: u64) -> Value {
        let columns = self.columns();
        let wanted = self.count.saturating_sub(start);
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        let first = self.samples.len().saturating_sub(wanted);
        let newest = self.samples.back();
        let range_query: Map = columns
            .into_iter()
            .map(|(name, column)| {
                let values = if recent {
                    newest.map_or(Value::Nil, column)
                } else {
                    self.samples.iter().skip(first).map(column).collect()
                };
                (name, values)
            })
            .collect();
        Value::Map(map! {
            "range_query" => range_query,
            "count" => self.count,
            "last_time" => newest.map_or(0.0, |sample| sample.time),
        })
    }
}

fn cpu_time() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else {
        return Duration::ZERO;
    };
    let micros = |time: nix::sys::time::TimeVal| {
        let micros = time.tv_sec() * 1_000_000 + time.tv_usec();
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    };
    micros(usage.user_time()) + micros(usage.system_time())
}

/// Hundredths of seconds that the host's processors spent so far.
fn host_cpu() -> [u64; HOST_CPU.len()] {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "));
    let mut counters = [0; HOST_CPU.len()];
    let words = line.unwrap_or_default().split_whitespace();
    for (counter, word) in counters.iter_mut().zip(words) {
        *counter = word.parse().unwrap_or(0);
    }
    counters
}

/// Bytes that this process has in memory; 0 where `/proc` is not Linux's.
pub(super) fn resident_nbytes() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1);
    let pages = pages.and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

fn fds_count() -> u64 {
    fs::read_dir("/proc/self/fd").map_or(0, |fds| fds.count() as u64)
}

/// Bytes received and sent by all interfaces of the host.
fn net_io() -> (u64, u64) {
    let table = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let mut sums = (0, 0);
    for line in table.lines() {
        let Some((_, counters)) = line.split_once(':') else {
            continue;
        };
        let mut counters = counters.split_whitespace().map(str::parse::<u64>);
        if let (Some(Ok(received)), Some(Ok(sent))) = (counters.next(), counters.nth(7)) {
            sums.0 += received;
            sums.1 += sent;
        }
    }
    sums
}

/// Bytes read from and written to all disks of the host.
fn disk_io() -> (u64, u64) {
    const SECTOR_NBYTES: u64 = 512;
    let table = fs::read_to_string("/proc/diskstats").unwrap_or_default();
    let mut sums = (0, 0);
    for line in table.lines() {
        let mut fields = line.split_whitespace();
        let Some(name) = fields.nth(2) else { continue };
        // Partitions are part of a disk; loops and RAM disks are none.
        if !fs::exists(format!("/sys/block/{name}")).unwrap_or(false)
            || name.starts_with("loop")
            || name.starts_with("ram")
        {
            continue;
        }
        let counters: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
        if let (Some(read), Some(written)) = (counters.get(2), counters.get(6)) {
            sums.0 += read * SECTOR_NBYTES;
            sums.1 += written * SECTOR_NBYTES;
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    fn monitor(disk: bool, host_cpu: bool) -> Monitor {
        Monitor::new(MonitorSettings {
            interval: Duration::from_millis(500),
            length_max: 2,
            disk,
            host_cpu,
            tick_interval: Duration::from_millis(20),
        })
    }

    fn names(map: &Value) -> Vec<String> {
        let names = map.as_map().unwrap().iter();
        let names = names.map(|(name, _)| name.as_str().unwrap().to_owned());
        names.collect()
    }

    #[test]
    fn what_is_looked_at_is_configured() {
        let mut metrics = Map::new();
        monitor(true, false).recent(&mut metrics);
        let basic = [
            "cpu",
            "memory",
            "time",
            "host_net_io",
            "host_disk_io",
            "num_fds",
        ];
        assert_eq!(names(&metrics.into()), basic);
        let mut metrics = Map::new();
        let monitor = monitor(false, true);
        monitor.recent(&mut metrics);
        assert!(!metrics.contains_key("host_disk_io"));
        let host_cpu = metrics.get("host_cpu").unwrap();
        assert_eq!(names(host_cpu), HOST_CPU);
        let info = monitor.info(true, 0);
        let range = info.as_map().unwrap().get("range_query").unwrap();
        assert_eq!(range.as_map().unwrap().len(), 6 + HOST_CPU.len());
    }

    #[test]
    fn a_range_of_looks_is_as_long_as_the_log() {
        let mut monitor = monitor(true, true);
        let lengths = |monitor: &Monitor, start| -> Vec<usize> {
            let info = monitor.info(false, start);
            let range = info.as_map().unwrap().get("range_query").unwrap().clone();
            let columns = range.into_map().unwrap().into_iter();
            let lengths = columns.map(|(_, column)| column.as_array().unwrap().len());
            lengths.collect()
        };
        for _ in 0..5 {
            monitor.update(Duration::ZERO);
        }
        let columns = 8 + HOST_CPU.len();
        assert_eq!(lengths(&monitor, 0), vec![2; columns]);
        assert_eq!(lengths(&monitor, 5), vec![1; columns]);
        assert_eq!(lengths(&monitor, 6), vec![0; columns]);
    }

    #[test]
    fn the_process_takes_memory() {
        assert!(resident_nbytes() > 1 << 20);
        let counters = host_cpu();
        assert!(counters.iter().sum::<u64>() > 0);
    }
}
