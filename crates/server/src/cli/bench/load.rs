//! Runs the clients of a benchmark and gathers what they saw.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use http::header::HeaderValue;
use indicatif::ProgressBar;
use tokio::task::{JoinSet, LocalSet};

use super::connection::Connection;
use super::pace::Pace;
use super::requests::{Operation, Requests};
use super::{Common, PROGRESS_INTERVAL};
use crate::client::{Client, KEYSPACE};

/// The longest latency that the histogram tells apart; longer ones count as this.
const LATENCY_US_MAX: u64 = 120_000_000;
/// Pause of a client after an error, so that a dead server is not hammered.
const ERROR_PAUSE: Duration = Duration::from_millis(20);

/// A load that is ready to run.
pub(crate) struct Load {
    operation: Operation,
    client: Client,
    connections: u32,
    clients: u32,
    /// Requests a second; 0 for as many as go.
    rate: u64,
    /// Requests that become due at a time.
    burst: u64,
    state: Rc<State>,
}

/// What the clients share; there is one thread, so cells do.
struct State {
    total: u64,
    work: RefCell<Work>,
}

struct Work {
    /// Requests handed out so far.
    issued: u64,
    requests: Requests,
    latencies_us: Histogram<u64>,
    errors: BTreeMap<String, u64>,
}

/// What a load saw.
pub(crate) struct Outcome {
    /// From the first request to the last answer, connecting excluded.
    pub(crate) elapsed: Duration,
    /// Of the requests that succeeded, in microseconds.
    pub(crate) latencies_us: Histogram<u64>,
    /// How often each error came.
    pub(crate) errors: BTreeMap<String, u64>,
}

impl Outcome {
    /// Requests that succeeded.
    pub(crate) fn succeeded(&self) -> u64 {
        self.latencies_us.len()
    }
}

impl Load {
    /// # Errors
    /// When the flags make no sense together.
    pub(crate) fn new(operation: Operation, common: &Common) -> Result<Load, String> {
        let requests = Requests::new(
            operation,
            common.key_size,
            common.value_size,
            common.key_space_size,
            common.sequential_keys,
            u64::from(std::process::id()),
        )?;
        let latencies_us = Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)
            .map_err(|error| format!("cannot make a histogram: {error}"))?;
        let work = Work { issued: 0, requests, latencies_us, errors: BTreeMap::new() };
        Ok(Load {
            operation,
            client: common.client()?,
            connections: common.connections,
            clients: common.clients,
            rate: common.rate,
            burst: common.burst,
            state: Rc::new(State { total: common.total, work: RefCell::new(work) }),
        })
    }

    /// Connects, sends every request and waits for the answers.
    ///
    /// # Errors
    /// When a connection cannot be made at the start. Later errors are counted.
    pub(crate) async fn run(self, bar: &ProgressBar) -> Result<Outcome, String> {
        LocalSet::new().run_until(self.run_local(bar)).await
    }

    async fn run_local(self, bar: &ProgressBar) -> Result<Outcome, String> {
        let Client { endpoints, security, keyspace, .. } = &self.client;
        let token = self.client.token().await?;
        let shown = [("token", token.value()), (KEYSPACE, keyspace.as_ref())].into_iter();
        let shown =
            shown.filter_map(|(name, value)| Some((name, HeaderValue::from_bytes(value?.as_bytes()).ok()?)));
        let shown: Vec<_> = shown.collect();
        let mut connections = Vec::new();
        for index in 0..self.connections.min(self.clients) {
            let endpoint = &endpoints[index as usize % endpoints.len()];
            connections.push(Rc::new(Connection::open(endpoint, security, shown.clone()).await?));
        }
        let started = Instant::now();
        let pace = match self.rate {
            0 => None,
            rate => Some(Rc::new(Pace::start(rate, self.burst, self.state.total)?)),
        };
        let mut clients = JoinSet::new();
        for index in 0..self.clients {
            let connection = Rc::clone(&connections[index as usize % connections.len()]);
            let request = connection.request(self.operation.path())?;
            clients.spawn_local(client(Rc::clone(&self.state), connection, request, pace.clone()));
        }
        let mut redraw = tokio::time::interval(PROGRESS_INTERVAL);
        loop {
            tokio::select! {
                joined = clients.join_next() => match joined {
                    None => break,
                    Some(joined) => joined.map_err(|error| format!("a client failed: {error}"))?,
                },
                _ = redraw.tick() => bar.set_position(self.state.work.borrow().latencies_us.len()),
            }
        }
        let work = self.state.work.borrow();
        Ok(Outcome {
            elapsed: started.elapsed(),
            latencies_us: work.latencies_us.clone(),
            errors: work.errors.clone(),
        })
    }
}

/// Sends requests one after the other until all are handed out.
async fn client(
    state: Rc<State>,
    connection: Rc<Connection>,
    request: http::Request<()>,
    pace: Option<Rc<Pace>>,
) {
    while let Some((index, message)) = state.take() {
        let began = match &pace {
            None => Instant::now(),
            Some(pace) => pace.due(index).await,
        };
        let result = connection.call(request.clone(), message).await;
        state.record(began, result.as_ref().err());
        if result.is_err() {
            tokio::time::sleep(ERROR_PAUSE).await;
        }
    }
}

impl State {
    fn take(&self) -> Option<(u64, bytes::Bytes)> {
        let mut work = self.work.borrow_mut();
        if work.issued == self.total {
            return None;
        }
        let index = work.issued;
        work.issued += 1;
        Some((index, work.requests.next()))
    }

    fn record(&self, began: Instant, error: Option<&String>) {
        let mut work = self.work.borrow_mut();
        match error {
            None => work.latencies_us.saturating_record(began.elapsed().as_micros() as u64),
            Some(text) => *work.errors.entry(text.clone()).or_default() += 1,
        }
    }
}
