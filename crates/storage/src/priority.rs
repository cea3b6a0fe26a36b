//! Threads that work ahead or clean up give way to those that somebody waits for.

/// How far they give way: while all processors are busy they have about a ninth of what an equal would have, which is more than the engine
/// needs to keep up with as many writes as the others can take.
const NICENESS: i32 = 10;

/// Has the calling thread, and those that it starts from now on, give way to the others of the process.
///
/// Merging tables takes some tens of milliseconds of processor time now and then, and all replicas of a group do it at the same moment,
/// since they hold the same: without this, requests wait for it (RocksDB has `LowerThreadPoolCPUPriority` for that). What such a thread holds
/// a lock for, others have to wait for: a new list of tables, the next segment of the log if the last is full before it is ready.
pub fn give_way() {
    // Elsewhere priorities belong to whole processes. A system that refuses is slower in the tail and serves all the same.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::nice(NICENESS);
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;
    use std::time::{Duration, Instant};

    use rustix::process::{Pid, getpriority_process};

    use super::*;
    use crate::engine::{FjallEngine, FjallOptions};

    const PATIENCE: Duration = Duration::from_secs(20);

    /// The niceness of this process's threads whose names begin so.
    fn niceness(name: &str) -> Vec<i32> {
        let of = |thread: fs::DirEntry| {
            let is_meant = fs::read_to_string(thread.path().join("comm")).ok()?.starts_with(name);
            let id = Pid::from_raw(thread.file_name().to_str()?.parse().ok()?);
            // The system takes the number of a thread for that of a process here.
            is_meant.then(|| getpriority_process(id).ok())?
        };
        fs::read_dir("/proc/self/task").unwrap().filter_map(|thread| of(thread.unwrap())).collect()
    }

    #[test]
    fn workers_of_the_engine_give_way_and_who_opens_it_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let own = || getpriority_process(None).unwrap();
        let before = own();
        let _engine = FjallEngine::open(directory.path(), &FjallOptions::default()).unwrap();
        // A thread gives itself its name when it begins to run.
        let began = Instant::now();
        let mut workers = Vec::new();
        while workers.len() < FjallOptions::default().threads && began.elapsed() < PATIENCE {
            workers = niceness("fjall:worker");
        }
        assert!(workers.len() >= FjallOptions::default().threads, "{workers:?}");
        assert!(workers.iter().all(|nice| *nice == (before + NICENESS).min(19)), "{workers:?}");
        assert_eq!(own(), before);
    }
}
