//! What the process takes of the machine, as Prometheus' client libraries show it under the names that dashboards know.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::metrics::Metrics;

/// Tables that an engine keeps open where there are descriptors enough.
const TABLES_MAX: usize = 900;
const TABLES_MIN: usize = 16;
/// Descriptors for whatever is neither a table that is kept open nor a client's: the log, the engine's journals and the tables that are being
/// written and merged, the other nodes, the pages for metrics, each thread's runtime.
const OTHERS_MAX: usize = 512;
const OTHERS_MIN: usize = 64;
/// Connections of clients that there are whatever the limit is.
const CLIENTS_MIN: usize = 16;

/// Who may have how many of the file descriptors. A node that cannot open its next file has to stop, so clients get what is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptors {
    /// Tables that the engine keeps open.
    pub(crate) tables: usize,
    /// Connections of clients, and connections to other nodes that are made for them.
    pub(crate) clients: usize,
}

impl Descriptors {
    /// Shares out what the process may have.
    pub(crate) fn of_process() -> Descriptors {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        Descriptors::of(usize::try_from(limit).unwrap_or(usize::MAX))
    }

    fn of(limit: usize) -> Descriptors {
        let tables = (limit / 4).clamp(TABLES_MIN, TABLES_MAX);
        let others = (limit / 4).clamp(OTHERS_MIN, OTHERS_MAX);
        Descriptors { tables, clients: limit.saturating_sub(tables + others).max(CLIENTS_MIN) }
    }
}

/// Lets the process have as many file descriptors as it may, as Go does: the usual limit is there for programs that cannot do with more.
pub(crate) fn raise_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // A system that refuses leaves what there was, and what there is gets shared out.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// From now on a panic of any thread ends the process (SIGABRT) once what it says was said, however the program was built: a node in which
/// one thread is gone is none. Spared is a thread of which `is_caught` says that somebody will look after its panic.
pub(crate) fn abort_at_panics(is_caught: fn() -> bool) {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        if !is_caught() {
            std::process::abort();
        }
    }));
}

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
    let limit = getrlimit(Resource::Nofile).current;
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

    /// What a node relies on: however it was built, no thread of it goes without the others, and nobody catches its panic.
    #[test]
    fn a_panic_of_any_thread_ends_the_process() {
        use std::os::unix::process::ExitStatusExt as _;
        const CHILD: &str = "HADRON_TEST_PANICS";
        if std::env::var_os(CHILD).is_some() {
            abort_at_panics(|| std::thread::current().name() == Some("caught"));
            let panics = |name: &str| {
                let thread = std::thread::Builder::new().name(name.into());
                let panicked = thread.spawn(|| panic!("on purpose")).unwrap().join();
                println!("{name} panicked: {}", panicked.is_err());
            };
            panics("caught");
            panics("any");
            return;
        }
        let name = "process::tests::a_panic_of_any_thread_ends_the_process";
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        let output = command.args(["--exact", name, "--nocapture"]).env(CHILD, "1").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.signal(), Some(6), "SIGABRT: {said}");
        assert!(said.contains("caught panicked: true") && !said.contains("any panicked"), "{said}");
        assert_eq!(String::from_utf8_lossy(&output.stderr).matches("on purpose").count(), 2);
    }

    #[test]
    fn clients_leave_descriptors_for_files() {
        for (limit, tables, clients) in
            [(64, 16, 16), (200, 50, 86), (1_024, 256, 512), (20_000, 900, 18_588)]
        {
            assert_eq!(Descriptors::of(limit), Descriptors { tables, clients }, "{limit}");
        }
        assert!(Descriptors::of(usize::MAX).clients > 1 << 40);
    }
}
