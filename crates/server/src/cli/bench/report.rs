//! What a benchmark found, for people and for scripts.

use std::fmt::Write as _;

use serde_json::json;

use super::Common;
use super::load::Outcome;
use super::process::CpuPerRequest;
use super::requests::Operation;

/// The percentiles that are reported, with their names in JSON.
const PERCENTILES: [(&str, f64); 4] = [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9)];

/// The result of a benchmark.
pub(crate) struct Report {
    operation: Operation,
    connections: u32,
    clients: u32,
    outcome: Outcome,
    cpu: CpuPerRequest,
}

impl Report {
    /// A report on an outcome.
    pub(crate) fn new(operation: Operation, common: &Common, outcome: Outcome, cpu: CpuPerRequest) -> Report {
        let connections = common.connections.min(common.clients);
        Report { operation, connections, clients: common.clients, outcome, cpu }
    }

    /// Requests that succeeded.
    pub(crate) fn succeeded(&self) -> u64 {
        self.outcome.succeeded()
    }

    /// Successful requests per second.
    fn throughput(&self) -> f64 {
        self.succeeded() as f64 / self.outcome.elapsed.as_secs_f64().max(f64::EPSILON)
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "{}: {} requests in {:.2} s, {} clients on {} connections\n\n",
            self.operation.name(),
            self.succeeded(),
            self.outcome.elapsed.as_secs_f64(),
            self.clients,
            self.connections
        );
        let mut row = |name: &str, value: String| {
            // Writing into a string does not fail.
            let _ = writeln!(text, "  {name:<12}{value}");
        };
        row("throughput", format!("{:.0} requests/s", self.throughput()));
        let latencies = &self.outcome.latencies_us;
        row("mean", milliseconds(latencies.mean()));
        for (name, percentile) in PERCENTILES {
            row(name, milliseconds(latencies.value_at_percentile(percentile) as f64));
        }
        row("max", milliseconds(latencies.max() as f64));
        for (pid, cpu_us) in &self.cpu.others_us {
            let used =
                cpu_us.map_or("ended meanwhile".to_owned(), |cpu_us| format!("{cpu_us:.1} µs/request"));
            row("server CPU", format!("{used} (process {pid})"));
        }
        if self.cpu.others_us.len() > 1 {
            row("", format!("{:.1} µs/request together", self.cpu.total_us()));
        }
        row("bench CPU", format!("{:.1} µs/request", self.cpu.own_us));
        let errors: u64 = self.outcome.errors.values().sum();
        row("errors", if errors == 0 { "none".to_owned() } else { errors.to_string() });
        for (error, count) in &self.outcome.errors {
            row("", format!("{count} × {error}"));
        }
        text.truncate(text.trim_end().len());
        text
    }

    /// For scripts, on one line.
    pub(crate) fn json(&self) -> String {
        let latencies = &self.outcome.latencies_us;
        let mut latency_us = json!({ "mean": latencies.mean(), "max": latencies.max() });
        for (name, percentile) in PERCENTILES {
            latency_us[name] = latencies.value_at_percentile(percentile).into();
        }
        let histogram: Vec<_> =
            latencies.iter_recorded().map(|at| (at.value_iterated_to(), at.count_at_value())).collect();
        let pids: serde_json::Map<String, serde_json::Value> =
            self.cpu.others_us.iter().map(|(pid, cpu_us)| (pid.to_string(), (*cpu_us).into())).collect();
        json!({
            "operation": self.operation.name(),
            "clients": self.clients,
            "connections": self.connections,
            "requests": self.succeeded(),
            "seconds": self.outcome.elapsed.as_secs_f64(),
            "throughput": self.throughput(),
            "latency_us": latency_us,
            "latency_us_counts": histogram,
            "cpu_us_per_request": { "bench": self.cpu.own_us, "servers": self.cpu.total_us(), "pids": pids },
            "errors": self.outcome.errors,
        })
        .to_string()
    }
}

fn milliseconds(microseconds: f64) -> String {
    format!("{:.2} ms", microseconds / 1000.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;
    use std::time::Duration;

    use hdrhistogram::Histogram;

    use super::*;

    fn report() -> Report {
        let mut latencies_us = Histogram::new_with_bounds(1, 1_000_000, 3).unwrap();
        (1..=100).for_each(|value| latencies_us.record(value * 10).unwrap());
        let errors = BTreeMap::from([("etcdserver: too many requests".to_owned(), 2)]);
        Report {
            operation: Operation::Put,
            connections: 1,
            clients: 2,
            outcome: Outcome { elapsed: Duration::from_millis(500), latencies_us, errors },
            cpu: CpuPerRequest {
                own_us: 9.54,
                others_us: vec![(7, Some(20.0)), (8, Some(11.25)), (9, None)],
            },
        }
    }

    #[test]
    fn golden_text() {
        let text = "\
put: 100 requests in 0.50 s, 2 clients on 1 connections

  throughput  200 requests/s
  mean        0.51 ms
  p50         0.50 ms
  p90         0.90 ms
  p99         0.99 ms
  p99.9       1.00 ms
  max         1.00 ms
  server CPU  20.0 µs/request (process 7)
  server CPU  11.2 µs/request (process 8)
  server CPU  ended meanwhile (process 9)
              31.2 µs/request together
  bench CPU   9.5 µs/request
  errors      2
              2 × etcdserver: too many requests";
        assert_eq!(report().text(), text);
    }

    #[test]
    fn json_for_scripts() {
        let value: serde_json::Value = serde_json::from_str(&report().json()).unwrap();
        assert_eq!(value["throughput"], 200.0);
        assert_eq!(value["latency_us"]["p50"], 500);
        assert_eq!(value["latency_us_counts"].as_array().unwrap().len(), 100);
        assert_eq!(value["latency_us_counts"][0], json!([10, 1]));
        assert_eq!(value["cpu_us_per_request"]["servers"], 31.25);
        assert_eq!(value["errors"]["etcdserver: too many requests"], 2);
    }
}
