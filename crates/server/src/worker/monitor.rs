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
    length_max: usize,
    count: u64,
    last: Counters,
    tick_interval: Duration,
    lateness: Duration,
}

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
    num_fds: u64,
}

/// One figure of all looks.
type Column = fn(&Sample) -> Value;

/// What only grows.
#[derive(Clone, Copy, Debug)]
struct Counters {
    at: Instant,
    cpu: Duration,
    net: (u64, u64),
    disk: (u64, u64),
}

impl Counters {
    fn read() -> Self {
        Self {
            at: Instant::now(),
            cpu: cpu_time(),
            net: net_io(),
            disk: disk_io(),
        }
    }
}

impl Monitor {
    /// With a first look.
    pub(super) fn new(length_max: usize, tick_interval: Duration) -> Self {
        let mut monitor = Self {
            samples: VecDeque::new(),
            length_max: length_max.max(1),
            count: 0,
            last: Counters::read(),
            tick_interval,
            lateness: Duration::ZERO,
        };
        monitor.update(Duration::ZERO);
        monitor
    }

    /// Looks again, `lateness` after the time at which it was to be.
    pub(super) fn update(&mut self, lateness: Duration) {
        let next = Counters::read();
        let last = std::mem::replace(&mut self.last, next);
        let seconds = (next.at - last.at).as_secs_f64().max(0.001);
        let rate = |next: u64, last: u64| next.saturating_sub(last) as f64 / seconds;
        let cpu = next.cpu.saturating_sub(last.cpu).as_secs_f64();
        if self.samples.len() == self.length_max {
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
            num_fds: fds_count(),
        });
        self.count += 1;
        self.lateness = lateness;
    }

    /// Seconds between two ticks of stock's event loop: here the interval that is
    /// configured, and by how much a timer was late.
    pub(super) fn event_loop_interval(&self) -> f64 {
        (self.tick_interval + self.lateness).as_secs_f64()
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
        let disk = map! {
            "read_bps" => sample.disk_read_bps,
            "write_bps" => sample.disk_write_bps,
        };
        metrics.push("host_disk_io", disk);
        metrics.push("num_fds", sample.num_fds);
    }

    /// The reply to `get_monitor_info`: the newest look, or lists of all from the
    /// `start`-th on.
    pub(super) fn info(&self, recent: bool, start: u64) -> Value {
        let columns: [(&str, Column); 8] = [
            ("cpu", |sample| sample.cpu.into()),
            ("memory", |sample| sample.memory.into()),
            ("time", |sample| sample.time.into()),
            ("host_net_io.read_bps", |sample| sample.net_read_bps.into()),
            ("host_net_io.write_bps", |sample| {
                sample.net_write_bps.into()
            }),
            ("host_disk_io.read_bps", |sample| {
                sample.disk_read_bps.into()
            }),
            ("host_disk_io.write_bps", |sample| {
                sample.disk_write_bps.into()
            }),
            ("num_fds", |sample| sample.num_fds.into()),
        ];
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

/// Bytes that this process has in memory; 0 where `/proc` is not Linux's.
fn resident_nbytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .and_then(|number| number.parse::<u64>().ok())
        .unwrap_or(0)
        * 1024
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
