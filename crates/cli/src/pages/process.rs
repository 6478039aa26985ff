//! The scheduler's process, as the operating system sees it, for `/metrics`.

use std::fs;

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{SysconfVar, sysconf};
use oxidask_http::info::ProcessMetrics;

/// `None` where `/proc` is not Linux's.
pub(super) fn metrics() -> Option<ProcessMetrics> {
    let stat = Stat::parse(&fs::read_to_string("/proc/self/stat").ok()?)?;
    let boot_time = fs::read_to_string("/proc/stat").ok()?;
    let boot_time = boot_time
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?;
    let boot_time: f64 = boot_time.trim().parse().ok()?;
    let ticks_per_second = sysconf(SysconfVar::CLK_TCK).ok()?? as f64;
    let page_nbytes = u64::try_from(sysconf(SysconfVar::PAGE_SIZE).ok()??).ok()?;
    let (fds_max, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    Some(ProcessMetrics {
        virtual_nbytes: stat.virtual_nbytes,
        resident_nbytes: stat.resident_pages * page_nbytes,
        start_time: boot_time + stat.start_ticks as f64 / ticks_per_second,
        cpu_seconds: stat.cpu_ticks as f64 / ticks_per_second,
        fds_open: fs::read_dir("/proc/self/fd").ok()?.count() as u64,
        fds_max,
    })
}

/// What `/proc/self/stat` says (proc_pid_stat(5)).
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_ticks: u64,
    start_ticks: u64,
    virtual_nbytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name of the program, in brackets, may hold anything.
        let (_, fields) = text.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        // The first of them is number 3 of the manual page.
        let field = |number: usize| -> Option<u64> { fields.get(number - 3)?.parse().ok() };
        Some(Self {
            cpu_ticks: field(14)? + field(15)?,
            start_ticks: field(22)?,
            virtual_nbytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_behind_the_name() {
        let text = "7 (a) b) S 1 7 7 0 -1 4194560 5 6 7 8 250 50 0 0 20 0 4 0 1234 9000 42 1 2";
        let expected = Stat {
            cpu_ticks: 300,
            start_ticks: 1234,
            virtual_nbytes: 9000,
            resident_pages: 42,
        };
        assert_eq!(Stat::parse(text), Some(expected));
        assert_eq!(Stat::parse("7 (a) S 1"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_figures() {
        let metrics = metrics().expect("Linux tells them");
        assert!(metrics.resident_nbytes > 1 << 20);
        assert!(metrics.virtual_nbytes >= metrics.resident_nbytes);
        assert!(metrics.start_time > 1.6e9);
        assert!(metrics.fds_open >= 3 && metrics.fds_open <= metrics.fds_max);
    }
}
