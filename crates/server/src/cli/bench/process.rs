//! CPU time of processes, from `/proc/PID/stat`.

use std::time::Duration;

/// Processes whose CPU time is counted, this one included.
pub(crate) struct Watched {
    own: Duration,
    others: Vec<(u32, Duration)>,
}

/// CPU time per request, in microseconds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CpuPerRequest {
    /// Of the load generator.
    pub(crate) own_us: f64,
    /// Of each process that was named; nothing for one that ended meanwhile.
    pub(crate) others_us: Vec<(u32, Option<f64>)>,
}

impl CpuPerRequest {
    /// Of all processes that were named and still run, together.
    pub(crate) fn total_us(&self) -> f64 {
        self.others_us.iter().filter_map(|(_, cpu_us)| *cpu_us).fold(0.0, |sum, cpu_us| sum + cpu_us)
    }
}

impl Watched {
    /// Notes what the processes have used so far.
    ///
    /// # Errors
    /// When one of them does not exist.
    pub(crate) fn start(pids: &[u32]) -> Result<Watched, String> {
        let others = pids.iter().map(|pid| Ok((*pid, cpu_time(*pid)?))).collect::<Result<_, String>>()?;
        Ok(Watched { own: cpu_time(std::process::id())?, others })
    }

    /// What they have used since, for each of `requests`.
    pub(crate) fn finish(self, requests: u64) -> CpuPerRequest {
        let per_request = |pid, before: Duration| {
            let used = cpu_time(pid).ok()?.saturating_sub(before);
            Some(used.as_secs_f64() * 1e6 / requests as f64)
        };
        let others = self.others.into_iter().map(|(pid, before)| (pid, per_request(pid, before)));
        CpuPerRequest {
            own_us: per_request(std::process::id(), self.own).unwrap_or_default(),
            others_us: others.collect(),
        }
    }
}

/// User and system time of a process with all its threads.
fn cpu_time(pid: u32) -> Result<Duration, String> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).map_err(|error| format!("process {pid}: {path}: {error}"))?;
    let ticks = cpu_ticks(&stat).ok_or_else(|| format!("process {pid}: cannot read {path}"))?;
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// The sum of fields 14 and 15. The second field is a name in parentheses that may itself hold spaces and parentheses,
/// so counting begins after the last one.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn names_may_hold_anything() {
        let stat = "7 (a ) (b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 100 1000 10";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(cpu_ticks("7 (a"), None);
    }

    #[test]
    fn missing_processes_are_named() {
        // Larger than any process id of Linux.
        assert!(
            Watched::start(&[4_194_305]).err().unwrap().starts_with("process 4194305: /proc/4194305/stat: ")
        );
        assert!(Watched::start(&[std::process::id()]).unwrap().finish(1).others_us[0].1.is_some());
    }
}
