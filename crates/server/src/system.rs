//! Processors and memory that this process may use: `CPU_COUNT` and `MEMORY_LIMIT`
//! of Dask.

use std::fs;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit};

/// Processors: those of the machine, the process's affinity and its cgroup's quota,
/// whichever is least. Same as `dask.system.cpu_count`.
#[must_use]
pub fn cpu_count() -> usize {
    let known = std::thread::available_parallelism().map_or(1, usize::from);
    cpu_count_below(Path::new("/"), known)
}

/// Memory in bytes: that of the machine, the cgroup's limit and the process's,
/// whichever is least. Same as `distributed.system.memory_limit`. `None` where the
/// system does not say.
#[must_use]
pub fn memory_limit() -> Option<u64> {
    let limit = memory_limit_below(Path::new("/"))?;
    match getrlimit(Resource::RLIMIT_RSS) {
        Ok((_, hard)) if hard > 0 => Some(limit.min(hard)),
        Ok(_) | Err(_) => Some(limit),
    }
}

/// Memory of a process that is in RAM, in bytes; `None` if there is no such process.
pub(crate) fn resident_nbytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// How many processes the kernel has killed so far in the cgroup of a process
/// because memory ran out; `None` where it does not count.
pub(crate) fn oom_kill_count(pid: u32) -> Option<u64> {
    oom_kill_count_below(Path::new("/"), pid)
}

fn cpu_count_below(root: &Path, known: usize) -> usize {
    let status = fs::read_to_string(root.join("proc/self/status")).unwrap_or_default();
    let affinity = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed:"))
        .map(|mask| {
            let digits = mask.chars().filter_map(|digit| digit.to_digit(16));
            digits.map(u32::count_ones).sum::<u32>() as usize
        });
    let quota = cpu_quota(root).map(|(quota, period)| (quota / period).ceil() as usize);
    let least = [affinity.or(Some(known)), quota];
    let least = least.into_iter().flatten().filter(|&count| count > 0);
    least.min().unwrap_or(1)
}

/// Microseconds of processor time in so many microseconds.
fn cpu_quota(root: &Path) -> Option<(f64, f64)> {
    let number = |text: &str| text.trim().parse::<f64>().ok();
    for folder in ["cpuacct,cpu", "cpu,cpuacct"] {
        let folder = root.join("sys/fs/cgroup").join(folder);
        let read = |name| number(&fs::read_to_string(folder.join(name)).ok()?);
        if let Some(quota) = read("cpu.cfs_quota_us") {
            // A negative quota is none.
            return Some((quota, read("cpu.cfs_period_us")?)).filter(|(quota, _)| *quota > 0.0);
        }
    }
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let path = root.join("sys/fs/cgroup").join(group).join("cpu.max");
    let text = fs::read_to_string(path).ok()?;
    let (quota, period) = text.split_once(' ')?;
    Some((number(quota)?, number(period)?))
}

fn memory_limit_below(root: &Path) -> Option<u64> {
    let information = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let total = information.lines().find_map(|line| {
        let amount = line.strip_prefix("MemTotal:")?.trim();
        let kibibytes: u64 = amount.strip_suffix(" kB")?.parse().ok()?;
        Some(kibibytes * 1024)
    })?;
    let limits = [
        "memory/memory.limit_in_bytes",
        "memory/memory.soft_limit_in_bytes",
        "memory.max",
        "memory.high",
        "memory.low",
    ];
    let limits = limits.into_iter().filter_map(|name| {
        let text = fs::read_to_string(root.join("sys/fs/cgroup").join(name)).ok()?;
        text.trim().parse().ok().filter(|&limit: &u64| limit > 0)
    });
    Some(limits.fold(total, u64::min))
}

fn oom_kill_count_below(root: &Path, pid: u32) -> Option<u64> {
    let groups = fs::read_to_string(root.join(format!("proc/{pid}/cgroup"))).ok()?;
    // `hierarchy:controllers:path`; version 2 has no controllers in its line.
    let files = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, group) = (parts.next()?, parts.next()?.trim_start_matches('/'));
        let folder = root.join("sys/fs/cgroup");
        if controllers.is_empty() {
            Some(folder.join(group).join("memory.events"))
        } else if controllers.split(',').any(|name| name == "memory") {
            Some(folder.join("memory").join(group).join("memory.oom_control"))
        } else {
            None
        }
    });
    files.into_iter().find_map(|file| {
        let text = fs::read_to_string(file).ok()?;
        let count = text
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill "))?;
        count.trim().parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    #[test]
    fn this_machine_has_something() {
        assert!(cpu_count() > 0);
        assert!(memory_limit().unwrap() > 1 << 20);
        assert!(resident_nbytes(std::process::id()).unwrap() > 1 << 16);
        assert_eq!(resident_nbytes(u32::MAX), None);
    }

    #[test]
    fn processors() {
        let count = |files: &[(&str, &str)]| cpu_count_below(root(files).path(), 8);
        assert_eq!(count(&[]), 8);
        let affinity = ("proc/self/status", "Name:\tx\nCpus_allowed:\tff,0000000f\n");
        assert_eq!(count(&[affinity]), 12);
        let quota = ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "150000\n");
        let period = ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
        assert_eq!(count(&[affinity, quota, period]), 2);
        let unlimited = ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
        assert_eq!(count(&[affinity, unlimited, period]), 12);
        let group = ("proc/self/cgroup", "0::/a/b\n");
        let limited = ("sys/fs/cgroup/a/b/cpu.max", "50000 100000\n");
        assert_eq!(count(&[group, limited]), 1);
        let unlimited = ("sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
        assert_eq!(count(&[group, unlimited]), 8);
    }

    #[test]
    fn memory() {
        let limit = |files: &[(&str, &str)]| memory_limit_below(root(files).path());
        assert_eq!(limit(&[]), None);
        let total = ("proc/meminfo", "MemTotal:       2048 kB\nMemFree: 1 kB\n");
        assert_eq!(limit(&[total]), Some(2 << 20));
        let unlimited = ("sys/fs/cgroup/memory.max", "max\n");
        assert_eq!(limit(&[total, unlimited]), Some(2 << 20));
        let hard = ("sys/fs/cgroup/memory.max", "1048576\n");
        let soft = ("sys/fs/cgroup/memory.high", "524288\n");
        assert_eq!(limit(&[total, hard, soft]), Some(1 << 19));
        let first = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "4096\n");
        assert_eq!(limit(&[total, first]), Some(4096));
    }

    #[test]
    fn killed_for_want_of_memory() {
        let count = |files: &[(&str, &str)]| oom_kill_count_below(root(files).path(), 7);
        assert_eq!(count(&[]), None);
        let group = ("proc/7/cgroup", "0::/pod/worker\n");
        assert_eq!(count(&[group]), None);
        let events = "low 0\nhigh 0\noom 3\noom_kill 2\n";
        let events = ("sys/fs/cgroup/pod/worker/memory.events", events);
        assert_eq!(count(&[group, events]), Some(2));
        let group = ("proc/7/cgroup", "12:cpu,cpuacct:/\n4:memory:/job_1\n0::/\n");
        let control = "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n";
        let control = ("sys/fs/cgroup/memory/job_1/memory.oom_control", control);
        assert_eq!(count(&[group, control]), Some(1));
    }
}
