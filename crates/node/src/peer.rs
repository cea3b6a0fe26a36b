//! What nodes say to each other, and its bytes.
//!
//! Messages of all groups for one node travel together in one frame. The encoding of a frame's outside (length,
//! checksum, handshake) belongs to the transport; here is one message: a kind byte, then its fields, little-endian.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use hadron_consensus::{GroupId, Message, NodeId, ReplicaId, Term};
use prost::Message as _;

use crate::roster::KnownRoster;

/// A message from one node to another.
#[derive(Clone, Debug, PartialEq)]
pub enum PeerMessage {
    /// A message between two replicas of one group.
    Group {
        /// The group.
        group: GroupId,
        /// The sending replica.
        from: ReplicaId,
        /// The receiving replica. A message for a replica that is not here is dropped.
        to: ReplicaId,
        /// What it says.
        message: Message,
    },
    /// I am alive, and so are my log and my loop.
    Heartbeat {
        /// The sender's process.
        incarnation: u64,
        /// Whether the sender hears the receiver. A node counts as heard only if it hears us too.
        hears: bool,
        /// Whether the sender's disk completed its writes lately. A node with a hung disk must not keep leading.
        vouches: bool,
    },
    /// What does each replica lack of your log? Asked of the leader of a group, who answers.
    Lags {
        /// The group.
        group: GroupId,
        /// The process that asks.
        incarnation: u64,
        /// The request there.
        token: u64,
        /// True in the answer.
        answer: bool,
        /// Of each node, in entries; empty in a question, and in the answer of one that does not lead.
        lags: Vec<(NodeId, u64)>,
    },
    /// What the sender measured, for those who plan: an encoded [`crate::Report`].
    Report(Bytes),
    /// Whoever plans asks the leader of a group to hand over.
    HandOver {
        /// The group.
        group: GroupId,
        /// The node that shall lead.
        to: NodeId,
    },
    /// My replica is not wanted any more since this revision of the root group: does the group do without it?
    Leaving {
        /// The group.
        group: GroupId,
        /// The replica that is to go.
        replica: ReplicaId,
        /// The placement's revision.
        revision: i64,
        /// True in the answer, which is only given if it does.
        answer: bool,
    },
    /// Who the members are, for one who may not hear it from the root group's leader.
    Roster(KnownRoster),
    /// Proposals of the sender's clients.
    Forward(Forward),
    /// These forwarded commands were certainly not proposed.
    NotProposed {
        /// The group.
        group: GroupId,
        /// The term of the forward that is refused. A late refusal must not touch a command that has been given to
        /// another leader meanwhile.
        term: Term,
        /// The sender's incarnation, as it stood in the forward.
        incarnation: u64,
        /// Why not, and so what is to become of them.
        reason: NotProposedReason,
        /// The commands' tokens.
        tokens: Vec<u64>,
    },
    /// The outcome of an election, as its candidate counted it.
    Elected {
        /// The group.
        group: GroupId,
        /// The term.
        term: Term,
        /// The candidate.
        candidate: NodeId,
        /// False for a split vote.
        won: bool,
        /// Votes by candidate.
        votes: Vec<(NodeId, u64)>,
    },
    /// The digest of the sender's replica at an agreed index; the receiver answers with its own.
    Digest {
        /// The group.
        group: GroupId,
        /// The index of the mark.
        index: u64,
        /// The live digest there.
        live: u64,
        /// True in the answer.
        answer: bool,
    },
}

/// Why forwarded commands were not proposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotProposedReason {
    /// Whoever was asked does not lead in that term: they may be sent elsewhere.
    NotLeading,
    /// The leader had no room: tell the client, do not try again at once.
    Busy,
    /// The leader cannot read them, as its version is older: tell the client. A version that does not know this reason takes it for the
    /// one before.
    Unreadable,
}

impl NotProposedReason {
    fn to_byte(self) -> u8 {
        match self {
            NotProposedReason::NotLeading => 0,
            NotProposedReason::Busy => 1,
            NotProposedReason::Unreadable => 2,
        }
    }

    /// Whatever a later version may mean, its client is told, and nothing is tried again.
    fn of_byte(byte: u8) -> NotProposedReason {
        match byte {
            0 => NotProposedReason::NotLeading,
            2 => NotProposedReason::Unreadable,
            _ => NotProposedReason::Busy,
        }
    }
}

/// Proposals of the sender's clients, for the leader of `term`. In any other term they are refused.
#[derive(Clone, Debug, PartialEq)]
pub struct Forward {
    /// The group.
    pub group: GroupId,
    /// The term whose leader the sender believes in.
    pub term: Term,
    /// The sender's process: together with a command's token it names the proposal.
    pub incarnation: u64,
    /// Grows with each forward of one sender; a leader takes each number once.
    pub number: u64,
    /// Token and encoded command.
    pub commands: Vec<(u64, Bytes)>,
}

/// A message that is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerDecodeError {
    /// It ends too early, or claims more than it holds.
    #[error("peer message is truncated")]
    Truncated,
    /// A kind this version does not know.
    #[error("unknown kind of peer message: {0}")]
    UnknownKind(u8),
    /// The roster inside is malformed.
    #[error("malformed roster")]
    Roster,
    /// The group message inside is malformed.
    #[error("malformed group message")]
    Group,
}

const GROUP: u8 = 1;
const HEARTBEAT: u8 = 2;
const FORWARD: u8 = 3;
const NOT_PROPOSED: u8 = 4;
const ELECTED: u8 = 5;
const DIGEST: u8 = 6;
const LAGS: u8 = 7;
const ROSTER: u8 = 8;
const LEAVING: u8 = 9;
const REPORT: u8 = 10;
const HAND_OVER: u8 = 11;

impl PeerMessage {
    /// The group that this is about; `None` if it is about the node.
    pub fn group(&self) -> Option<GroupId> {
        match self {
            PeerMessage::Group { group, .. }
            | PeerMessage::Forward(Forward { group, .. })
            | PeerMessage::NotProposed { group, .. }
            | PeerMessage::Elected { group, .. }
            | PeerMessage::Digest { group, .. }
            | PeerMessage::Leaving { group, .. }
            | PeerMessage::HandOver { group, .. }
            | PeerMessage::Lags { group, .. } => Some(*group),
            PeerMessage::Heartbeat { .. } | PeerMessage::Roster(_) | PeerMessage::Report(_) => None,
        }
    }

    /// Whether every shard must hear it, and not only one.
    pub fn is_for_all_shards(&self) -> bool {
        matches!(self, PeerMessage::Heartbeat { .. } | PeerMessage::Roster(_))
    }

    /// Whether it overtakes other messages on its way: the more the others have to carry, the longer it would take for whoever waits for a
    /// sign of life. Nothing that a group says may be overtaken by what the group says later.
    pub fn goes_ahead(&self) -> bool {
        matches!(self, PeerMessage::Heartbeat { .. })
    }

    /// Appends the message's bytes to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            PeerMessage::Group { group, from, to, message } => {
                out.put_u8(GROUP);
                out.put_u64_le(group.0);
                out.put_u64_le(from.0);
                out.put_u64_le(to.0);
                message.encode(out);
            }
            PeerMessage::Heartbeat { incarnation, hears, vouches } => {
                out.put_u8(HEARTBEAT);
                out.put_u64_le(*incarnation);
                out.put_u8(u8::from(*hears) | u8::from(*vouches) << 1);
            }
            PeerMessage::Forward(Forward { group, term, incarnation, number, commands }) => {
                out.put_u8(FORWARD);
                out.put_u64_le(group.0);
                out.put_u64_le(term.0);
                out.put_u64_le(*incarnation);
                out.put_u64_le(*number);
                out.put_u32_le(commands.len() as u32);
                for (token, command) in commands {
                    out.put_u64_le(*token);
                    out.put_u32_le(command.len() as u32);
                    out.put_slice(command);
                }
            }
            PeerMessage::NotProposed { group, term, incarnation, reason, tokens } => {
                out.put_u8(NOT_PROPOSED);
                out.put_u64_le(group.0);
                out.put_u64_le(term.0);
                out.put_u64_le(*incarnation);
                out.put_u8(reason.to_byte());
                out.put_u32_le(tokens.len() as u32);
                tokens.iter().for_each(|token| out.put_u64_le(*token));
            }
            PeerMessage::Elected { group, term, candidate, won, votes } => {
                out.put_u8(ELECTED);
                out.put_u64_le(group.0);
                out.put_u64_le(term.0);
                out.put_u64_le(candidate.0);
                out.put_u8(u8::from(*won));
                out.put_u32_le(votes.len() as u32);
                for (node, count) in votes {
                    out.put_u64_le(node.0);
                    out.put_u64_le(*count);
                }
            }
            PeerMessage::Lags { group, incarnation, token, answer, lags } => {
                out.put_u8(LAGS);
                out.put_u64_le(group.0);
                out.put_u64_le(*incarnation);
                out.put_u64_le(*token);
                out.put_u8(u8::from(*answer));
                out.put_u32_le(lags.len() as u32);
                for (node, lag) in lags {
                    out.put_u64_le(node.0);
                    out.put_u64_le(*lag);
                }
            }
            PeerMessage::Report(report) => {
                out.put_u8(REPORT);
                out.put_u32_le(report.len() as u32);
                out.put_slice(report);
            }
            PeerMessage::HandOver { group, to } => {
                out.put_u8(HAND_OVER);
                out.put_u64_le(group.0);
                out.put_u64_le(to.0);
            }
            PeerMessage::Leaving { group, replica, revision, answer } => {
                out.put_u8(LEAVING);
                out.put_u64_le(group.0);
                out.put_u64_le(replica.0);
                out.put_i64_le(*revision);
                out.put_u8(u8::from(*answer));
            }
            PeerMessage::Roster(known) => {
                out.put_u8(ROSTER);
                out.put_u32_le(known.encoded_len() as u32);
                out.put_slice(&known.encode_to_vec());
            }
            PeerMessage::Digest { group, index, live, answer } => {
                out.put_u8(DIGEST);
                out.put_u64_le(group.0);
                out.put_u64_le(*index);
                out.put_u64_le(*live);
                out.put_u8(u8::from(*answer));
            }
        }
    }

    /// Reads one message that fills `bytes` entirely. Commands and entries are slices of `bytes`.
    pub fn decode(mut bytes: Bytes) -> Result<PeerMessage, PeerDecodeError> {
        let kind = read_u8(&mut bytes)?;
        let message = match kind {
            GROUP => {
                let group = GroupId(read_u64(&mut bytes)?);
                let from = ReplicaId(read_u64(&mut bytes)?);
                let to = ReplicaId(read_u64(&mut bytes)?);
                let message = Message::decode(bytes).map_err(|_| PeerDecodeError::Group)?;
                return Ok(PeerMessage::Group { group, from, to, message });
            }
            HEARTBEAT => {
                let incarnation = read_u64(&mut bytes)?;
                let flags = read_u8(&mut bytes)?;
                PeerMessage::Heartbeat { incarnation, hears: flags & 1 != 0, vouches: flags & 2 != 0 }
            }
            FORWARD => decode_forward(&mut bytes)?,
            NOT_PROPOSED => PeerMessage::NotProposed {
                group: GroupId(read_u64(&mut bytes)?),
                term: Term(read_u64(&mut bytes)?),
                incarnation: read_u64(&mut bytes)?,
                reason: NotProposedReason::of_byte(read_u8(&mut bytes)?),
                tokens: read_list(&mut bytes, 8, read_u64)?,
            },
            ELECTED => PeerMessage::Elected {
                group: GroupId(read_u64(&mut bytes)?),
                term: Term(read_u64(&mut bytes)?),
                candidate: NodeId(read_u64(&mut bytes)?),
                won: read_u8(&mut bytes)? != 0,
                votes: read_list(&mut bytes, 16, |bytes| Ok((NodeId(read_u64(bytes)?), read_u64(bytes)?)))?,
            },
            DIGEST => PeerMessage::Digest {
                group: GroupId(read_u64(&mut bytes)?),
                index: read_u64(&mut bytes)?,
                live: read_u64(&mut bytes)?,
                answer: read_u8(&mut bytes)? != 0,
            },
            LAGS => PeerMessage::Lags {
                group: GroupId(read_u64(&mut bytes)?),
                incarnation: read_u64(&mut bytes)?,
                token: read_u64(&mut bytes)?,
                answer: read_u8(&mut bytes)? != 0,
                lags: read_list(&mut bytes, 16, |bytes| Ok((NodeId(read_u64(bytes)?), read_u64(bytes)?)))?,
            },
            REPORT => {
                let length = read_u32(&mut bytes)? as usize;
                PeerMessage::Report(read_bytes(&mut bytes, length)?)
            }
            HAND_OVER => PeerMessage::HandOver {
                group: GroupId(read_u64(&mut bytes)?),
                to: NodeId(read_u64(&mut bytes)?),
            },
            LEAVING => PeerMessage::Leaving {
                group: GroupId(read_u64(&mut bytes)?),
                replica: ReplicaId(read_u64(&mut bytes)?),
                revision: read_u64(&mut bytes)?.cast_signed(),
                answer: read_u8(&mut bytes)? != 0,
            },
            ROSTER => {
                let length = read_u32(&mut bytes)? as usize;
                let known = KnownRoster::decode(read_bytes(&mut bytes, length)?);
                PeerMessage::Roster(known.map_err(|_| PeerDecodeError::Roster)?)
            }
            unknown => return Err(PeerDecodeError::UnknownKind(unknown)),
        };
        if bytes.is_empty() { Ok(message) } else { Err(PeerDecodeError::Truncated) }
    }
}

fn decode_forward(bytes: &mut Bytes) -> Result<PeerMessage, PeerDecodeError> {
    Ok(PeerMessage::Forward(Forward {
        group: GroupId(read_u64(bytes)?),
        term: Term(read_u64(bytes)?),
        incarnation: read_u64(bytes)?,
        number: read_u64(bytes)?,
        commands: read_list(bytes, 12, |bytes| {
            let token = read_u64(bytes)?;
            let length = read_u32(bytes)? as usize;
            Ok((token, read_bytes(bytes, length)?))
        })?,
    }))
}

/// A list whose items take at least `item_bytes_min` bytes each, so that a lying count allocates nothing.
fn read_list<T>(
    bytes: &mut Bytes,
    item_bytes_min: usize,
    mut read: impl FnMut(&mut Bytes) -> Result<T, PeerDecodeError>,
) -> Result<Vec<T>, PeerDecodeError> {
    let count = read_u32(bytes)? as usize;
    if count.saturating_mul(item_bytes_min) > bytes.len() {
        return Err(PeerDecodeError::Truncated);
    }
    (0..count).map(|_| read(bytes)).collect()
}

pub(crate) fn read_u8(bytes: &mut Bytes) -> Result<u8, PeerDecodeError> {
    bytes.try_get_u8().map_err(|_| PeerDecodeError::Truncated)
}

pub(crate) fn read_u32(bytes: &mut Bytes) -> Result<u32, PeerDecodeError> {
    bytes.try_get_u32_le().map_err(|_| PeerDecodeError::Truncated)
}

pub(crate) fn read_u64(bytes: &mut Bytes) -> Result<u64, PeerDecodeError> {
    bytes.try_get_u64_le().map_err(|_| PeerDecodeError::Truncated)
}

pub(crate) fn read_bytes(bytes: &mut Bytes, length: usize) -> Result<Bytes, PeerDecodeError> {
    if bytes.len() < length { Err(PeerDecodeError::Truncated) } else { Ok(bytes.split_to(length)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::Member;
    use crate::roster::Roster;
    use proptest::prelude::*;

    fn any_message() -> impl Strategy<Value = PeerMessage> {
        let node = || any::<u64>().prop_map(NodeId);
        let command = (any::<u64>(), proptest::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(token, bytes)| (token, Bytes::from(bytes)));
        prop_oneof![
            (any::<u64>(), any::<bool>(), any::<bool>()).prop_map(|(incarnation, hears, vouches)| {
                PeerMessage::Heartbeat { incarnation, hears, vouches }
            }),
            (any::<[u64; 4]>(), proptest::collection::vec(command, 0..5)).prop_map(|(n, commands)| {
                let (group, term) = (GroupId(n[0]), Term(n[1]));
                PeerMessage::Forward(Forward { group, term, incarnation: n[2], number: n[3], commands })
            }),
            (any::<[u64; 3]>(), 0..3_u8, any::<Vec<u64>>()).prop_map(|(n, reason, tokens)| {
                let (group, term) = (GroupId(n[0]), Term(n[1]));
                let reason = NotProposedReason::of_byte(reason);
                PeerMessage::NotProposed { group, term, incarnation: n[2], reason, tokens }
            }),
            (any::<[u64; 3]>(), any::<bool>(), proptest::collection::vec((node(), any::<u64>()), 0..5))
                .prop_map(|(n, won, votes)| {
                    let (group, term, candidate) = (GroupId(n[0]), Term(n[1]), NodeId(n[2]));
                    PeerMessage::Elected { group, term, candidate, won, votes }
                }),
            (any::<[u64; 3]>(), any::<bool>(), proptest::collection::vec((node(), any::<u64>()), 0..5))
                .prop_map(|(n, answer, lags)| {
                    let (group, incarnation, token) = (GroupId(n[0]), n[1], n[2]);
                    PeerMessage::Lags { group, incarnation, token, answer, lags }
                }),
            (any::<i64>(), any::<[u64; 3]>(), any::<String>()).prop_map(|(revision, n, url)| {
                let member = Member { id: n[0], replica: n[1], peer_urls: vec![url], ..Member::default() };
                let roster = Roster { members: vec![member.clone()], next_replica: n[2] };
                PeerMessage::Roster(KnownRoster { revision, roster, leaving: vec![member] })
            }),
            any::<Vec<u8>>().prop_map(|report| PeerMessage::Report(report.into())),
            any::<[u64; 2]>().prop_map(|n| PeerMessage::HandOver { group: GroupId(n[0]), to: NodeId(n[1]) }),
            (any::<[u64; 2]>(), any::<i64>(), any::<bool>()).prop_map(|(n, revision, answer)| {
                let (group, replica) = (GroupId(n[0]), ReplicaId(n[1]));
                PeerMessage::Leaving { group, replica, revision, answer }
            }),
            (any::<[u64; 3]>(), any::<bool>()).prop_map(|(n, answer)| {
                PeerMessage::Digest { group: GroupId(n[0]), index: n[1], live: n[2], answer }
            }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_said_is_what_is_heard(message in any_message()) {
            let mut bytes = BytesMut::new();
            message.encode(&mut bytes);
            prop_assert_eq!(PeerMessage::decode(bytes.freeze()), Ok(message));
        }

        #[test]
        fn a_message_cut_short_is_refused(message in any_message(), cut in any::<prop::sample::Index>()) {
            let mut bytes = BytesMut::new();
            message.encode(&mut bytes);
            let cut = cut.index(bytes.len());
            prop_assert!(PeerMessage::decode(bytes.freeze().slice(..cut)).is_err());
        }

        #[test]
        fn noise_is_refused_or_understood_and_never_a_panic(bytes in any::<Vec<u8>>()) {
            let _ = PeerMessage::decode(bytes.into());
        }
    }
}
