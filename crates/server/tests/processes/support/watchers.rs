//! Watchers over all nodes: each goes on from where it stood on another node when its own fails or falls silent, and
//! now and then for no reason.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use hadron_proto::etcdserverpb::watch_client::WatchClient;
use hadron_proto::etcdserverpb::{
    WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse, watch_request,
};
use hadron_sim::checkers::watch_order::{self, Watcher};
use hadron_sim::etcd;
use hadron_sim::history::{Event, Violation};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::support;

/// A watcher that hears nothing for so long asks for a sign of progress, and moves on when that does not come either.
const SILENCE: Duration = Duration::from_millis(1_500);
/// Wait before another node is tried.
const RETRY: Duration = Duration::from_millis(50);
/// Responses after which a restless watcher moves on, at most.
const RESTLESS_AFTER: u32 = 400;
/// Large values come in large messages.
const MESSAGE_BYTES_MAX: usize = usize::MAX;

/// Watchers at work.
pub struct Watchers {
    seen: Vec<Arc<Mutex<Seen>>>,
    tasks: Vec<JoinHandle<()>>,
}

/// What one watcher saw.
struct Seen {
    watcher: Watcher,
    /// How often it went to another node.
    moves: u32,
    /// A promise that was broken, or something else that must not be.
    violation: Option<String>,
}

impl Watchers {
    /// Starts `count` watchers: the first of everything, the others of some of the keys.
    pub fn start(endpoints: &[String], count: usize, seed: u64) -> Watchers {
        let (mut seen, mut tasks) = (Vec::new(), Vec::new());
        for number in 0..count {
            let (key_from, key_to) = if number == 0 { ("\0", "") } else { ("k1", "k4") };
            let watcher = Watcher {
                name: format!("watcher {number}"),
                from_revision: 2,
                key_from: key_from.into(),
                key_to: key_to.into(),
                events: Vec::new(),
                gaps: Vec::new(),
                complete_to: 0,
            };
            let one = Arc::new(Mutex::new(Seen { watcher, moves: 0, violation: None }));
            let rng = SmallRng::seed_from_u64(seed ^ number as u64);
            let channels = endpoints.iter().map(|url| support::channel(url)).collect();
            tasks.push(tokio::spawn(watch(one.clone(), channels, number % 2 == 1, rng)));
            seen.push(one);
        }
        Watchers { seen, tasks }
    }

    /// Waits until every watcher has seen everything in `events`, the complete history, and stops them.
    ///
    /// # Errors
    /// What one of them saw that it should not have, or did not see in time.
    pub async fn finish(self, events: &[Event]) -> Result<(), Violation> {
        let newest = events.last().map_or(0, |event| event.revision);
        for seen in &self.seen {
            let seen_all = || {
                let seen = seen.lock().unwrap();
                watch_order::check(&seen.to_the_end(newest), events).is_ok() || seen.violation.is_some()
            };
            let waiting = async {
                while !seen_all() {
                    sleep(RETRY).await;
                }
            };
            let in_time = timeout(support::PATIENCE, waiting).await;
            let seen = seen.lock().unwrap();
            if let Some(found) = &seen.violation {
                panic!("{}: {found}", seen.watcher.name);
            }
            println!(
                "{}: {} events, {} moves ({in_time:?})",
                seen.watcher.name,
                seen.watcher.events.len(),
                seen.moves
            );
            watch_order::check(&seen.to_the_end(newest), events)?;
        }
        Ok(())
    }
}

impl Drop for Watchers {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn watch(seen: Arc<Mutex<Seen>>, channels: Vec<Channel>, restless: bool, mut rng: SmallRng) {
    loop {
        let channel = channels[rng.random_range(0..channels.len())].clone();
        let patience = if restless { rng.random_range(1..RESTLESS_AFTER) } else { u32::MAX };
        let outcome = follow(&seen, channel, patience).await;
        if !seen.lock().unwrap().moves_on(outcome) {
            return;
        }
        sleep(RETRY).await;
    }
}

impl Seen {
    /// What it would have seen if there were nothing after this, up to the newest revision.
    fn to_the_end(&self, newest: i64) -> Watcher {
        Watcher { complete_to: newest, ..self.watcher.clone() }
    }

    /// Notes how a stream ended; false when that must not have happened.
    fn moves_on(&mut self, outcome: Result<(), String>) -> bool {
        self.moves += 1;
        self.violation = self.violation.take().or(outcome.err());
        self.violation.is_none()
    }
}

/// Follows one stream until it ends, falls silent or has brought `responses`. An error is something that must not be.
async fn follow(seen: &Mutex<Seen>, channel: Channel, responses: u32) -> Result<(), String> {
    let next = next_revision(&seen.lock().unwrap().watcher);
    let (requests, receiver) = mpsc::channel(4);
    let create = create_request(&seen.lock().unwrap().watcher, next);
    let _ = requests.try_send(create);
    let mut client = WatchClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let opened = timeout(SILENCE, client.watch(ReceiverStream::new(receiver))).await;
    let Ok(Ok(stream)) = opened else { return Ok(()) };
    let mut stream: Streaming<WatchResponse> = stream.into_inner();
    let mut asked = false;
    for _ in 0..responses {
        match timeout(SILENCE, stream.next()).await {
            Ok(Some(Ok(response))) => take(&mut seen.lock().unwrap().watcher, &response)?,
            Ok(_) => return Ok(()),
            Err(_) if asked => return Ok(()),
            Err(_) => {
                asked = true;
                let _ = requests.try_send(progress_request());
                continue;
            }
        }
        asked = false;
    }
    Ok(())
}

fn create_request(watcher: &Watcher, start_revision: i64) -> WatchRequest {
    // An empty end means no end here; etcd writes that as a zero byte.
    let no_end = watcher.key_to.is_empty();
    let create = WatchCreateRequest {
        key: watcher.key_from.clone(),
        range_end: if no_end { "\0".into() } else { watcher.key_to.clone() },
        start_revision,
        ..WatchCreateRequest::default()
    };
    WatchRequest { request_union: Some(watch_request::RequestUnion::CreateRequest(create)) }
}

fn progress_request() -> WatchRequest {
    WatchRequest {
        request_union: Some(watch_request::RequestUnion::ProgressRequest(WatchProgressRequest {})),
    }
}

/// Everything before it has been seen, by events or by promise.
fn next_revision(watcher: &Watcher) -> i64 {
    let newest = watcher.events.last().map_or(0, |event| event.revision);
    watcher.from_revision.max(newest.max(watcher.complete_to) + 1)
}

fn take(watcher: &mut Watcher, response: &WatchResponse) -> Result<(), String> {
    if response.canceled {
        return Err(format!("the watch was cancelled: {response:?}"));
    }
    let events: Vec<Event> = response.events.iter().filter_map(etcd::event).collect();
    if let Some(early) = events.iter().find(|event| event.revision < next_revision(watcher)) {
        return Err(format!("{early:?} came after revision {} was complete", next_revision(watcher) - 1));
    }
    let is_progress = events.is_empty() && !response.created;
    watcher.events.extend(events);
    if is_progress {
        watcher.complete_to = watcher.complete_to.max(etcd::revision(&response.header));
    }
    Ok(())
}
