//! Threads that work ahead or clean up give way to those that somebody waits for.

/// How far they give way: while all processors are busy they have about a ninth of what an equal would have, which is more than the engine
/// needs to keep up with as many writes as the others can take.
const NICENESS: i32 = 10;

/// Has the calling thread, and those that it starts from now on, give way to the others of the process.
///
/// Merging tables takes some tens of milliseconds of processor time now and then, and all replicas of a group do it at the same moment,
/// since they hold the same: without this, requests wait for it (RocksDB has `LowerThreadPoolCPUPriority` for that). What such a thread holds
/// a lock for, others have to wait for: a new list of tables, the next segment of the log if the last is full before it is ready.
pub(crate) fn give_way() {
    // Elsewhere priorities belong to whole processes. A system that refuses is slower in the tail and serves all the same.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::nice(NICENESS);
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::engine::{FjallEngine, FjallOptions};

    const PATIENCE: Duration = Duration::from_secs(20);

    /// The niceness of this process's threads with such a name.
    fn niceness(is_meant: impl Fn(&str) -> bool) -> Vec<i32> {
        let tasks = fs::read_dir("/proc/self/task").unwrap();
        let stats = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("stat")).ok());
        let nice_if_meant = |stat: String| {
            let (head, fields) = stat.rsplit_once(')')?;
            // The nineteenth field of all, two of which are before.
            is_meant(head).then(|| fields.split_whitespace().nth(16)?.parse().ok())?
        };
        stats.filter_map(nice_if_meant).collect()
    }

    #[test]
    fn workers_of_the_engine_give_way_and_who_opens_it_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let own = || rustix::process::getpriority_process(None).unwrap();
        let before = own();
        let _engine = FjallEngine::open(directory.path(), &FjallOptions::default()).unwrap();
        // A thread gives itself its name when it begins to run.
        let began = Instant::now();
        let mut workers = Vec::new();
        while workers.len() < FjallOptions::default().threads && began.elapsed() < PATIENCE {
            workers = niceness(|head| head.contains("(fjall:worker"));
        }
        assert!(workers.len() >= FjallOptions::default().threads, "{workers:?}");
        assert!(workers.iter().all(|nice| *nice == (before + NICENESS).min(19)), "{workers:?}");
        assert_eq!(own(), before);
    }
}
