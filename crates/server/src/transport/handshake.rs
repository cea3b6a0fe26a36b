//! The first frames of a connection: who is calling, whom, in which version; and the answer. `docs/formats/peer.md` has
//! the bytes.
//!
//! Both sides check. The acceptor refuses with a reason in words, which the dialer logs, because whoever has to act
//! on it reads the log of the node that does not come up.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use hadron_consensus::NodeId;

use super::frame::FrameError;

/// First bytes of every hello.
pub(super) const MAGIC: &[u8; 8] = b"HADRPEER";
/// The version since which long frames of messages are sent in parts.
pub(super) const VERSION_PARTS: u16 = 2;
/// The newest version of the protocol that this build speaks.
const VERSION_NEWEST: u16 = VERSION_PARTS;
/// The oldest version of the protocol that this build speaks.
const VERSION_OLDEST: u16 = 1;
/// Longer names are cut: they only serve people.
const NAME_BYTES_MAX: usize = 256;
/// Longer reasons are cut.
const REASON_BYTES_MAX: usize = 1024;

/// Who a node is to other nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The pool's id.
    pub cluster_id: u64,
    /// The node's id.
    pub node: NodeId,
    /// Counts the starts of the node's process.
    pub incarnation: u64,
    /// The random identity of the node's data directory.
    pub data_dir_id: u64,
    /// For people.
    pub name: String,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Peer messages.
    Urgent = 0,
    /// One snapshot.
    Bulk = 1,
    /// Calls of clients that one node passes on to another.
    Calls = 2,
}

/// The dialer's first frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    /// Versions that the dialer speaks: oldest and newest.
    pub(super) versions: (u16, u16),
    /// What the connection is for.
    pub(super) class: Class,
    /// Who calls.
    pub(super) from: Identity,
    /// Whom the dialer believes to have reached.
    pub(super) to: NodeId,
    /// The newest revision of the roster that the dialer knows.
    pub(super) revision: i64,
}

impl Hello {
    /// A hello in the versions of this build.
    pub(super) fn new(from: Identity, to: NodeId, class: Class, revision: i64) -> Hello {
        Hello { versions: (VERSION_OLDEST, VERSION_NEWEST), class, from, to, revision }
    }

    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_slice(MAGIC);
        out.put_u16_le(self.versions.0);
        out.put_u16_le(self.versions.1);
        out.put_u8(self.class as u8);
        out.put_u64_le(self.to.0);
        put_identity(&mut out, &self.from);
        out.put_i64_le(self.revision);
        out.freeze()
    }

    /// Bytes after the known fields are ignored, so that later versions can add some.
    pub(super) fn decode(mut bytes: Bytes) -> Result<Hello, FrameError> {
        if bytes.len() < MAGIC.len() || bytes.split_to(MAGIC.len()) != MAGIC[..] {
            return Err(FrameError::Malformed("a hello without its magic"));
        }
        let versions = (take_u16(&mut bytes)?, take_u16(&mut bytes)?);
        let class = match bytes.try_get_u8() {
            Ok(0) => Class::Urgent,
            Ok(1) => Class::Bulk,
            Ok(2) => Class::Calls,
            _ => return Err(FrameError::Malformed("an unknown class of connection")),
        };
        let to = NodeId(take_u64(&mut bytes)?);
        let from = take_identity(&mut bytes)?;
        Ok(Hello { versions, class, from, to, revision: take_u64(&mut bytes)? as i64 })
    }
}

/// The acceptor's answer to a hello that it likes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Welcome {
    /// The version that both will use.
    pub(super) version: u16,
    /// Who answered.
    pub(super) from: Identity,
}

impl Welcome {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u16_le(self.version);
        put_identity(&mut out, &self.from);
        out.freeze()
    }

    pub(super) fn decode(mut bytes: Bytes) -> Result<Welcome, FrameError> {
        Ok(Welcome { version: take_u16(&mut bytes)?, from: take_identity(&mut bytes)? })
    }
}

/// Why a node is not talked to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// For people.
    pub reason: String,
    /// What the node should do about it.
    pub cause: Cause,
}

/// What is wrong with a node that is not talked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Something that may change.
    Other,
    /// It was a member and is none any more: it should stop.
    Removed,
    /// It was here with another start that is not before this one: it should stop, and its data directory must not be used again.
    Outdated,
    /// It was a member until this node's cluster went on without it by force.
    Dropped,
}

impl From<String> for Refusal {
    fn from(reason: String) -> Refusal {
        Refusal { reason, cause: Cause::Other }
    }
}

impl Refusal {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        put_text(&mut out, &self.reason, REASON_BYTES_MAX);
        out.put_u8(match self.cause {
            Cause::Other => 0,
            Cause::Removed => 1,
            Cause::Outdated => 2,
            Cause::Dropped => 3,
        });
        out.freeze()
    }

    /// The first versions gave a reason only. Bytes after the known fields are ignored.
    pub(super) fn decode(mut bytes: Bytes) -> Result<Refusal, FrameError> {
        let reason = take_text(&mut bytes)?;
        let cause = match bytes.try_get_u8() {
            Ok(1) => Cause::Removed,
            Ok(2) => Cause::Outdated,
            Ok(3) => Cause::Dropped,
            _ => Cause::Other,
        };
        Ok(Refusal { reason, cause })
    }
}

/// What the acceptor checks before it asks whether the caller may come in: the version that both speak, or why not.
pub(super) fn check_hello(hello: &Hello, own: &Identity) -> Result<u16, String> {
    let version = common_version(hello.versions)?;
    check_cluster(&hello.from, own)?;
    if hello.to != own.node {
        return Err(format!(
            "this is node {:x} ({}), not node {:x}: check the peer URLs",
            own.node.0, own.name, hello.to.0
        ));
    }
    if hello.from.node == own.node {
        return Err(format!(
            "node {:x} ({}) is this node itself: two nodes use one identity",
            own.node.0, own.name
        ));
    }
    Ok(version)
}

/// What the dialer checks in a welcome before it asks whether the acceptor may be talked to.
pub(super) fn check_welcome(welcome: &Welcome, own: &Identity, expected: NodeId) -> Result<(), String> {
    common_version((welcome.version, welcome.version))?;
    check_cluster(&welcome.from, own)?;
    if welcome.from.node != expected {
        return Err(format!(
            "reached node {:x} ({}) instead of node {:x}: check the peer URLs",
            welcome.from.node.0, welcome.from.name, expected.0
        ));
    }
    Ok(())
}

fn common_version((oldest, newest): (u16, u16)) -> Result<u16, String> {
    let version = newest.min(VERSION_NEWEST);
    if version < oldest || version < VERSION_OLDEST {
        return Err(format!(
            "speaks versions {oldest} to {newest} of the peer protocol, this node {VERSION_OLDEST} to \
             {VERSION_NEWEST}: upgrade the older one"
        ));
    }
    Ok(version)
}

fn check_cluster(other: &Identity, own: &Identity) -> Result<(), String> {
    if other.cluster_id == own.cluster_id {
        return Ok(());
    }
    Err(format!(
        "node {:x} ({}) belongs to cluster {:x}, node {:x} ({}) to cluster {:x}: check --initial-cluster and \
         --initial-cluster-token of both, and that both were restored from the same snapshot, in the same way, if one of them was",
        other.node.0, other.name, other.cluster_id, own.node.0, own.name, own.cluster_id
    ))
}

pub(super) fn put_identity(out: &mut BytesMut, identity: &Identity) {
    out.put_u64_le(identity.cluster_id);
    out.put_u64_le(identity.node.0);
    out.put_u64_le(identity.incarnation);
    out.put_u64_le(identity.data_dir_id);
    put_text(out, &identity.name, NAME_BYTES_MAX);
}

pub(super) fn take_identity(bytes: &mut Bytes) -> Result<Identity, FrameError> {
    Ok(Identity {
        cluster_id: take_u64(bytes)?,
        node: NodeId(take_u64(bytes)?),
        incarnation: take_u64(bytes)?,
        data_dir_id: take_u64(bytes)?,
        name: take_text(bytes)?,
    })
}

fn put_text(out: &mut BytesMut, text: &str, bytes_max: usize) {
    let end = (0..=bytes_max.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    let text = &text[..end.unwrap_or(0)];
    out.put_u16_le(text.len() as u16);
    out.put_slice(text.as_bytes());
}

/// Control characters become spaces: the text goes into a log.
fn take_text(bytes: &mut Bytes) -> Result<String, FrameError> {
    let length = take_u16(bytes)? as usize;
    if length > bytes.len() {
        return Err(FrameError::Malformed("a text that ends too early"));
    }
    let text = String::from_utf8_lossy(&bytes.split_to(length)).into_owned();
    Ok(text.replace(char::is_control, " "))
}

fn take_u16(bytes: &mut Bytes) -> Result<u16, FrameError> {
    bytes.try_get_u16_le().map_err(|_| FrameError::Malformed("a handshake that ends too early"))
}

pub(super) fn take_u64(bytes: &mut Bytes) -> Result<u64, FrameError> {
    bytes.try_get_u64_le().map_err(|_| FrameError::Malformed("a handshake that ends too early"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn identity(node: u64) -> Identity {
        Identity {
            cluster_id: 7,
            node: NodeId(node),
            incarnation: 3,
            data_dir_id: node * 100,
            name: format!("node-{node}"),
        }
    }

    fn hello() -> Hello {
        Hello::new(identity(1), NodeId(2), Class::Urgent, 5)
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        assert_eq!(Hello::decode(hello().encode()).unwrap(), hello());
        let welcome = Welcome { version: 1, from: identity(2) };
        assert_eq!(Welcome::decode(welcome.encode()).unwrap(), welcome);
        let refusal = Refusal { reason: "no\nway".into(), cause: Cause::Removed };
        let decoded = Refusal::decode(refusal.encode()).unwrap();
        assert_eq!(decoded, Refusal { reason: "no way".into(), cause: Cause::Removed });
        let earlier = refusal.encode().slice(..refusal.encode().len() - 1);
        assert_eq!(Refusal::decode(earlier).unwrap().cause, Cause::Other);
    }

    #[test]
    fn every_truncation_is_noticed_and_additions_are_not() {
        let bytes = hello().encode();
        for end in 0..bytes.len() {
            assert!(Hello::decode(bytes.slice(..end)).is_err(), "{end}");
        }
        let longer = [&bytes[..], b"later"].concat();
        assert_eq!(Hello::decode(longer.into()).unwrap(), hello());
    }

    #[test]
    fn long_names_are_cut_at_a_character() {
        let named = Identity { name: "é".repeat(200), ..identity(1) };
        let decoded = Hello::decode(Hello::new(named, NodeId(2), Class::Bulk, 0).encode()).unwrap();
        assert_eq!(decoded.from.name, "é".repeat(128));
    }

    #[test]
    fn strangers_are_told_what_is_wrong() {
        let own = identity(2);
        assert_eq!(check_hello(&hello(), &own), Ok(VERSION_NEWEST));
        let refusal = |change: fn(&mut Hello)| {
            let mut hello = hello();
            change(&mut hello);
            check_hello(&hello, &own).unwrap_err()
        };
        assert!(refusal(|hello| hello.from.cluster_id = 8).contains("belongs to cluster 8"));
        assert!(refusal(|hello| hello.to = NodeId(3)).contains("this is node 2 (node-2), not node 3"));
        assert!(refusal(|hello| hello.from.node = NodeId(2)).contains("two nodes use one identity"));
        assert!(refusal(|hello| hello.versions = (7, 9)).contains("upgrade the older one"));
    }

    #[test]
    fn a_newer_node_that_still_speaks_our_version_is_welcome() {
        let mut hello = hello();
        hello.versions = (1, 9);
        assert_eq!(check_hello(&hello, &identity(2)), Ok(VERSION_NEWEST));
        hello.versions = (1, 1);
        assert_eq!(check_hello(&hello, &identity(2)), Ok(1), "an older one as well");
    }

    #[test]
    fn a_wrong_address_is_noticed_by_the_dialer() {
        let welcome = Welcome { version: 1, from: identity(2) };
        assert_eq!(check_welcome(&welcome, &identity(1), NodeId(2)), Ok(()));
        let error = check_welcome(&welcome, &identity(1), NodeId(3)).unwrap_err();
        assert!(error.contains("instead of node 3"), "{error}");
    }

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn noise_is_refused_or_understood_and_never_a_panic(bytes in any::<Vec<u8>>()) {
            let bytes = Bytes::from(bytes);
            let _ = Hello::decode(bytes.clone());
            let _ = Hello::decode([MAGIC, &bytes[..]].concat().into());
            let _ = Welcome::decode(bytes.clone());
            let _ = Refusal::decode(bytes);
        }

        #[test]
        fn a_hello_that_was_changed_is_refused_or_another_one(at in any::<prop::sample::Index>(), to in any::<u8>()) {
            let mut bytes = hello().encode().to_vec();
            let at = at.index(bytes.len());
            let is_change = bytes[at] != to;
            bytes[at] = to;
            let decoded = Hello::decode(bytes.into());
            // Control characters in a name become spaces, and all that is no UTF-8 the same sign.
            prop_assert!(decoded.is_err() || !is_change || decoded.unwrap() != hello());
        }
    }
}
