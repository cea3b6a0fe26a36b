//! What nodes say to each other, put into entries and keep in the root group, as bytes that are written down: later versions
//! must read them, and write them so.

#![allow(clippy::unwrap_used)]

#[path = "../../pinned.rs"]
mod pinned;

use std::collections::BTreeMap;
use std::fmt::Debug;

use bytes::{Bytes, BytesMut};
use hadron_consensus::{Configuration, GroupId, Message, NodeId, ReplicaId, Term};
use pinned::Pinned;

use crate::catalog::{KeyspaceRecord, MoveRecord, Place, Placement};
use crate::envelope::{self, Envelope, Origin};
use crate::membership::{Bootstrap, Member};
use crate::peer::{Forward, NotProposedReason, PeerMessage};
use crate::reconfigure::Places;
use crate::report::{Damaged, Hitter, ReplicaReport, Report, Settled};
use crate::roster::{KnownRoster, Roster};

const DIRECTORY: &str = env!("CARGO_MANIFEST_DIR");

fn member() -> Member {
    Member {
        id: 1,
        name: "n1".into(),
        peer_urls: vec!["http://10.0.0.1:2380".into()],
        client_urls: vec!["http://10.0.0.1:2379".into()],
        data_dir_id: 100,
        replica: 2,
        is_learner: true,
    }
}

fn roster() -> Roster {
    Roster { members: vec![member()], next_replica: 3 }
}

fn known_roster() -> KnownRoster {
    KnownRoster { revision: 9, roster: roster(), leaving: vec![Member { id: 5, ..Member::default() }] }
}

fn report() -> Report {
    let hitter = |name: &[u8]| Hitter {
        group: 1,
        name: name.to_vec(),
        requests: 1.0,
        work: 2.0,
        read: 3.0,
        written: 4.0,
        events: 5.0,
    };
    Report {
        zone: "zone".into(),
        capacity: vec![1.0, 2.0],
        short: vec![0.5],
        long: vec![0.25],
        own: vec![0.125],
        disk_used: 7,
        disk_total: 8,
        fsync_us: 9.0,
        replicas: vec![ReplicaReport { group: 1, steady: vec![1.0], short: vec![2.0] }],
        leads: vec![1],
        settled: vec![Settled { group: 1, revision: 2, voters: vec![3] }],
        prefixes: vec![hitter(b"prefix")],
        clients: vec![hitter(b"client")],
        work: 10.0,
        damaged: vec![Damaged { group: 1, replica: 2 }],
    }
}

/// The name of each kind in the file. A new kind has to come here, and to the messages below.
fn name(message: &PeerMessage) -> &'static str {
    match message {
        PeerMessage::Group { .. } => "group",
        PeerMessage::Heartbeat { .. } => "heartbeat",
        PeerMessage::Lags { .. } => "lags",
        PeerMessage::Report(_) => "report",
        PeerMessage::HandOver { .. } => "hand-over",
        PeerMessage::Leaving { .. } => "leaving",
        PeerMessage::Roster(_) => "roster",
        PeerMessage::Forward(_) => "forward",
        PeerMessage::NotProposed { reason, .. } => match reason {
            NotProposedReason::NotLeading => "not-proposed-not-leading",
            NotProposedReason::Busy => "not-proposed-busy",
            NotProposedReason::Unreadable => "not-proposed-unreadable",
        },
        PeerMessage::Elected { .. } => "elected",
        PeerMessage::Digest { .. } => "digest",
    }
}

fn messages() -> Vec<PeerMessage> {
    let (group, term, incarnation) = (GroupId(1), Term(2), 3);
    let refused = |reason| PeerMessage::NotProposed { group, term, incarnation, reason, tokens: vec![4, 5] };
    let message = Message::Wake { term };
    vec![
        PeerMessage::Group { group, from: ReplicaId(1), to: ReplicaId(2), message },
        PeerMessage::Heartbeat { incarnation, hears: true, vouches: true },
        PeerMessage::Lags { group, incarnation, token: 4, answer: true, lags: vec![(NodeId(1), 6)] },
        PeerMessage::Report(report().to_bytes()),
        PeerMessage::HandOver { group, to: NodeId(4) },
        PeerMessage::Leaving { group, replica: ReplicaId(4), revision: -5, answer: true },
        PeerMessage::Roster(known_roster()),
        PeerMessage::Forward(Forward {
            group,
            term,
            incarnation,
            number: 4,
            commands: vec![(5, Bytes::from_static(b"command"))],
        }),
        refused(NotProposedReason::NotLeading),
        refused(NotProposedReason::Busy),
        refused(NotProposedReason::Unreadable),
        PeerMessage::Elected { group, term, candidate: NodeId(1), won: true, votes: vec![(NodeId(1), 2)] },
        PeerMessage::Digest { group, index: 7, live: 8, answer: true },
    ]
}

#[test]
fn messages_between_nodes_are_written_as_ever() {
    let mut pinned = Pinned::open(DIRECTORY, "messages.txt");
    for message in messages() {
        let mut out = BytesMut::new();
        message.encode(&mut out);
        let bytes = pinned.bytes(name(&message), &out);
        assert_eq!(PeerMessage::decode(bytes.into()), Ok(message));
    }
    pinned.finish();
}

#[test]
fn envelopes_and_places_are_written_as_ever() {
    let mut pinned = Pinned::open(DIRECTORY, "entries.txt");
    let origin = Origin { node: NodeId(1), incarnation: 2, token: 3 };
    let envelope = Envelope {
        stamp_ms: 1_000,
        commands: vec![(origin, Bytes::from_static(b"command")), (origin, Bytes::new())],
    };
    let bytes = pinned.bytes("envelope", &envelope::encode(envelope.stamp_ms, &envelope.commands));
    assert_eq!(envelope::decode(bytes.into()), Ok(envelope));
    let places = Places { revision: 4, nodes: [(ReplicaId(1), NodeId(10))].into() };
    let context = pinned.bytes("places", &places.encode()).into();
    assert_eq!(Places::of(&Configuration { context, ..Configuration::default() }), Some(places));
    pinned.finish();
}

fn compare<M: prost::Message + Default + PartialEq + Debug>(pinned: &mut Pinned, name: &str, record: &M) {
    let bytes = pinned.bytes(name, &record.encode_to_vec());
    assert_eq!(M::decode(&bytes[..]).as_ref(), Ok(record), "{name}");
}

#[test]
fn records_are_written_as_ever() {
    let mut pinned = Pinned::open(DIRECTORY, "records.txt");
    compare(&mut pinned, "member", &member());
    compare(&mut pinned, "roster", &roster());
    compare(&mut pinned, "known-roster", &known_roster());
    compare(&mut pinned, "report", &report());
    let bootstrap = Bootstrap {
        cluster_id: 1,
        members: vec![member()],
        joined_as: 2,
        met: vec![Member { id: 3, data_dir_id: 4, ..Member::default() }],
        restored: 5,
        starts: BTreeMap::from([(6, 7)]),
        was_forced: true,
        outdated: "why".into(),
        went_on_without: vec![6],
    };
    compare(&mut pinned, "bootstrap", &bootstrap);
    let keyspace = KeyspaceRecord {
        name: "tenant".into(),
        group: 2,
        state: 1,
        replicas: 3,
        bytes_max: 4,
        requests_per_second_max: 5,
        created_at_ms: 6,
    };
    compare(&mut pinned, "keyspace", &keyspace);
    let place = Place { replica: 1, node: 2 };
    let placement =
        Placement { places: vec![place], first: vec![place], next_replica: 3, reason: "why".into() };
    compare(&mut pinned, "placement", &placement);
    let moved = MoveRecord {
        at_ms: 1,
        group: 2,
        kind: "kind".into(),
        cause: "cause".into(),
        reason: "why".into(),
        effect: "effect".into(),
        bytes: 7,
    };
    compare(&mut pinned, "move", &moved);
    pinned.finish();
}
