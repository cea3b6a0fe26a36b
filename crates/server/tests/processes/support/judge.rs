//! What the clients of a cluster saw, held against what its nodes show.

use hadron_sim::checkers::{durable_ack, linearizable, revision_order};
use hadron_sim::history::{Event, Operation};

use crate::support::{Node, complete_history};

/// What the first node shows now, and all others must show too.
pub async fn history_of_all(nodes: &[&Node]) -> Vec<Event> {
    let revision = nodes[0].status().await.unwrap().header.unwrap().revision;
    let events = complete_history(nodes[0], revision).await;
    for node in &nodes[1..] {
        assert!(complete_history(node, revision).await == events, "{} shows another history", node.name);
    }
    events
}

/// Nothing acknowledged is lost, revisions grow as they must, and one order explains every answer.
pub fn judge(operations: &[Operation], events: &[Event]) {
    durable_ack::check(operations, events).unwrap();
    revision_order::check_events(events).unwrap();
    revision_order::check_responses(operations).unwrap();
    assert_eq!(linearizable::check(operations, events).unwrap(), linearizable::Verdict::Explained);
}
