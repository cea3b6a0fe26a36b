//! Frames and handshakes as bytes that are written down: later versions must read them, and write them so.

#![allow(clippy::unwrap_used)]

use bytes::{BufMut, BytesMut};
use hadron_consensus::NodeId;

use super::frame::{self, BODY_BYTES_MAX, Kind, MessageBatch, Messages};
use super::handshake::{Cause, Class, Hello, Identity, Refusal, Welcome};
use crate::pinned::Pinned;

fn identity() -> Identity {
    Identity { cluster_id: 7, node: NodeId(1), incarnation: 3, data_dir_id: 100, name: "n1".into() }
}

#[test]
fn handshakes_are_written_as_ever() {
    let mut pinned = Pinned::open(env!("CARGO_MANIFEST_DIR"), "handshakes.txt");
    for (name, class) in [("urgent", Class::Urgent), ("bulk", Class::Bulk), ("calls", Class::Calls)] {
        let hello = Hello { versions: (1, 2), ..Hello::new(identity(), NodeId(2), class, -5) };
        let bytes = pinned.bytes(&format!("hello-{name}"), &hello.encode());
        assert_eq!(Hello::decode(bytes.into()).unwrap(), hello);
    }
    let welcome = Welcome { version: 2, from: identity() };
    let bytes = pinned.bytes("welcome", &welcome.encode());
    assert_eq!(Welcome::decode(bytes.into()).unwrap(), welcome);
    for (name, cause) in [
        ("other", Cause::Other),
        ("removed", Cause::Removed),
        ("outdated", Cause::Outdated),
        ("dropped", Cause::Dropped),
    ] {
        let refusal = Refusal { reason: "why".into(), cause };
        let bytes = pinned.bytes(&format!("refused-{name}"), &refusal.encode());
        assert_eq!(Refusal::decode(bytes.into()).unwrap(), refusal);
    }
    pinned.finish();
}

#[tokio::test]
async fn frames_are_written_as_ever() {
    let mut pinned = Pinned::open(env!("CARGO_MANIFEST_DIR"), "frames.txt");
    let kinds = [
        Kind::Hello,
        Kind::Welcome,
        Kind::Refused,
        Kind::Messages,
        Kind::Ping,
        Kind::Pong,
        Kind::SnapshotBegin,
        Kind::SnapshotChunk,
        Kind::SnapshotEnd,
        Kind::SnapshotResult,
        Kind::Inquiry,
        Kind::Answer,
        Kind::MembersInquiry,
        Kind::MembersAnswer,
        Kind::Part,
        Kind::LastPart,
    ];
    for kind in kinds {
        let name = format!("{kind:?}").to_lowercase();
        let bytes = pinned.bytes(&name, &frame::encode(kind, b"body"));
        let (found, body) = frame::read(&mut &bytes[..], BODY_BYTES_MAX).await.unwrap();
        assert_eq!((found, &body[..]), (kind, &b"body"[..]));
    }
    let mut batch = MessageBatch::default();
    for message in [&b"one"[..], b"", b"three"] {
        batch.push(|out: &mut BytesMut| out.put_slice(message)).unwrap();
    }
    let bytes = pinned.bytes("three-messages", &batch.take());
    let (_, body) = frame::read(&mut &bytes[..], BODY_BYTES_MAX).await.unwrap();
    let messages: Vec<_> = Messages::new(body).map(Result::unwrap).collect();
    assert_eq!(messages, [&b"one"[..], b"", b"three"]);
    pinned.finish();
}
