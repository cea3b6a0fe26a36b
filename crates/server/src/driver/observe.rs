//! What people and dashboards see of the node beside what the services report: elections, shares, lags.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hadron_consensus::NodeId;
use hadron_node::{ElectionRecord, PeerMessage};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::handle::Handle;
use crate::metrics::Metrics;
use crate::transport::Messages;

/// How often the metrics are brought up to date.
const INTERVAL: Duration = Duration::from_secs(1);

/// The messages of a frame. From the first one that cannot be understood, the rest is passed over: the sender is a
/// newer version or broken, and either way Raft copes with loss.
pub(super) fn decode(from: NodeId, messages: Messages) -> Vec<PeerMessage> {
    let mut decoded = Vec::new();
    for message in messages {
        let message = message.map_err(|error| error.to_string());
        match message.and_then(|bytes| PeerMessage::decode(bytes).map_err(|error| error.to_string())) {
            Ok(message) => decoded.push(message),
            Err(error) => {
                warn!(peer = %format_args!("{:x}", from.0), error, "cannot understand a message");
                break;
            }
        }
    }
    decoded
}

/// Keeps the metrics up to date, for ever.
pub(super) async fn run(handle: Handle, metrics: Arc<Metrics>) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = HashMap::new();
    loop {
        ticks.tick().await;
        metrics.proposals_pending.set_integer(handle.waiting_requests() as u64);
        for record in handle.board().elections() {
            let counted = seen.entry((record.group, record.candidate)).or_insert(0);
            if record.term.0 > *counted {
                *counted = record.term.0;
                show_election(&record, &metrics);
            }
        }
        show_shares(&handle, &metrics);
    }
}

fn show_election(record: &ElectionRecord, metrics: &Metrics) {
    let group = record.group.0.to_string();
    let outcome = if record.won { "won" } else { "split" };
    metrics.elections.with(&[&group, outcome]).inc();
    for (candidate, votes) in &record.votes {
        let share = record.share(*candidate);
        let candidate = format!("{:x}", candidate.0);
        metrics.election_vote_share.with(&[&group, &candidate]).set(share);
        info!(group, term = record.term.0, candidate, votes, share, outcome, "election");
    }
}

fn show_shares(handle: &Handle, metrics: &Metrics) {
    metrics.log_share.clear();
    metrics.replication_lag_entries.clear();
    for (id, group) in handle.board().groups() {
        let id = id.0.to_string();
        for share in group.shares() {
            let node = format!("{:x}", share.node.0);
            metrics.log_share.with(&[&id, &node]).set(share.share);
            metrics.replication_lag_entries.with(&[&id, &node]).set_integer(share.lag);
        }
    }
}
