//! What the process takes of the machine, as Prometheus' client libraries show it under the names that dashboards know.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use crate::metrics::Metrics;

/// Brings the metrics of the process up to date. What the system does not tell stays as it was.
pub(crate) fn show(metrics: &Metrics) {
    if let Some((all, resident)) = memory_bytes() {
        metrics.process_virtual_bytes.set_integer(all);
        metrics.process_resident_bytes.set_integer(resident);
    }
    if let Some(seconds) = cpu_seconds() {
        metrics.process_cpu_seconds.set(seconds);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        let open = open.count() as u64;
        metrics.process_open_fds.set_integer(open);
        metrics.fds_used.set_integer(open);
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    metrics.process_max_fds.set_integer(limit.unwrap_or(u64::MAX));
    metrics.fds_limit.set_integer(limit.unwrap_or(u64::MAX));
}

/// Has the system give memory in small pages only. To clear a huge one takes a thread two milliseconds in which every request waits that
/// needs it, and the allocator gives memory back and takes it anew all the time.
pub(crate) fn use_small_pages() {
    // A system that refuses has none, or is slower in the tail and serves all the same.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

/// Notes that the process begins now.
pub(crate) fn begin(metrics: &Metrics) {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    metrics.process_start_time.set(since.as_secs_f64());
}

/// All memory, and that which is resident.
pub(crate) fn memory_bytes() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = text.split_whitespace().map(|pages| pages.parse::<u64>().ok());
    let size = rustix::param::page_size() as u64;
    Some((pages.next()?? * size, pages.next()?? * size))
}

/// User and system time of all threads, in microseconds.
pub(crate) fn cpu_us() -> Option<u64> {
    cpu_seconds().map(|seconds| (seconds * 1e6) as u64)
}

/// Bytes that are used on the disk of `path`, and bytes there are.
pub(crate) fn disk_bytes(path: &Path) -> Option<(u64, u64)> {
    let disk = rustix::fs::statvfs(path).ok()?;
    // What only the superuser may use is not there for anybody else.
    let used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize;
    Some((used, used + disk.f_bavail * disk.f_frsize))
}

/// The machine's memory, or what of it this process may use.
pub(crate) fn machine_memory_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.strip_suffix("kB"))?;
    let machine = kib.trim().parse::<u64>().ok()? * 1024;
    let limit = fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit = limit.and_then(|limit| limit.trim().parse::<u64>().ok());
    Some(limit.map_or(machine, |limit| limit.min(machine)))
}

/// User and system time of all threads.
fn cpu_seconds() -> Option<f64> {
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the process may hold anything; behind it are numbers.
    let (_, fields) = text.rsplit_once(')')?;
    let ticks = |number: usize| fields.split_whitespace().nth(number)?.parse::<u64>().ok();
    Some((ticks(11)? + ticks(12)?) as f64 / rustix::param::clock_ticks_per_second() as f64)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_process_takes_something() {
        let metrics = Metrics::default();
        begin(&metrics);
        show(&metrics);
        assert!(metrics.process_resident_bytes.get() > 1e6);
        assert!(metrics.process_virtual_bytes.get() >= metrics.process_resident_bytes.get());
        assert!(cpu_us().is_some());
        let (used, all) = disk_bytes(Path::new("/")).unwrap();
        assert!(0 < used && used <= all);
        assert!(machine_memory_bytes().unwrap() > 1 << 20);
        assert!(metrics.process_open_fds.get() >= 1.0);
        assert!(metrics.process_max_fds.get() > metrics.process_open_fds.get());
        assert!(metrics.process_start_time.get() > 1.7e9);
        let before = cpu_seconds().unwrap();
        let began = std::time::Instant::now();
        while cpu_seconds().unwrap() <= before {
            assert!(began.elapsed() < std::time::Duration::from_secs(60));
        }
    }
}
