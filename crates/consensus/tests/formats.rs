//! Messages and configurations as bytes that are written down: later versions must read them, and write them so.

#![allow(clippy::unwrap_used)]

#[path = "../../pinned.rs"]
mod pinned;

use bytes::{Bytes, BytesMut};
use hadron_consensus::{
    Configuration, Entry, GroupId, Index, LogPosition, Message, ReplicaId, Term, chain_checksum,
};
use pinned::Pinned;

const DIRECTORY: &str = env!("CARGO_MANIFEST_DIR");

/// The name of each kind in the file. A new kind has to come here, and to the messages below.
fn name(message: &Message) -> &'static str {
    match message {
        Message::VoteRequest { .. } => "vote-request",
        Message::VoteAnswer { .. } => "vote-answer",
        Message::Append { .. } => "append",
        Message::AppendAck { .. } => "append-ack",
        Message::AppendReject { .. } => "append-reject",
        Message::Diverged { .. } => "diverged",
        Message::Stale { .. } => "stale",
        Message::ReadRequest { .. } => "read-request",
        Message::ReadAnswer { .. } => "read-answer",
        Message::TimeoutNow { .. } => "timeout-now",
        Message::Abdicate { .. } => "abdicate",
        Message::Wake { .. } => "wake",
    }
}

fn messages() -> Vec<Message> {
    let (term, index) = (Term(300), Index(70_000));
    let entry = |index, data: &'static [u8]| Entry {
        term,
        index: Index(index),
        checksum: index,
        data: Bytes::from_static(data),
    };
    vec![
        Message::VoteRequest { term, pre: true, transfer: true, last_term: Term(2), last_index: index },
        Message::VoteAnswer {
            term,
            election: Term(299),
            pre: true,
            granted: true,
            voted_for: Some(ReplicaId(3)),
        },
        Message::Append {
            term,
            previous: LogPosition { term: Term(2), index, checksum: 0x1122_3344_5566_7788 },
            commit: Index(69_000),
            round: 5,
            answer: true,
            sleep: true,
            entries: vec![entry(70_001, b"hi"), entry(70_002, b"")],
        },
        Message::AppendAck { term, round: 5, matched: index, full: true, asleep: true },
        Message::AppendReject { term, round: 5, rejected: index, hint_index: Index(9), hint_term: Term(2) },
        Message::Diverged { term, index, expected: 1, found: 2, broken: true },
        Message::Stale { term },
        Message::ReadRequest { term, batch: 8 },
        Message::ReadAnswer { term, batch: 8, index },
        Message::TimeoutNow { term },
        Message::Abdicate { term },
        Message::Wake { term },
    ]
}

#[test]
fn messages_and_configurations_are_written_as_ever() {
    let mut pinned = Pinned::open(DIRECTORY, "messages.txt");
    for message in messages() {
        let mut out = BytesMut::new();
        message.encode(&mut out);
        let bytes = pinned.bytes(name(&message), &out);
        assert_eq!(Message::decode(bytes.into()), Ok(message));
    }
    let configuration = Configuration {
        voters: vec![ReplicaId(1), ReplicaId(2)],
        outgoing: vec![ReplicaId(3)],
        learners: vec![ReplicaId(4)],
        context: Bytes::from_static(b"places"),
    };
    let bytes = pinned.bytes("configuration", &configuration.encode());
    assert_eq!(Configuration::of(&bytes.into()), Ok(Some(configuration)));
    let checksum = chain_checksum(7, GroupId(1), Term(2), Index(3), b"data");
    pinned.bytes("chained-checksum", &checksum.to_le_bytes());
    pinned.finish();
}
