//! The commands of a keyspace, their responses, and the bytes of a command in an entry.
//!
//! A command is one tag byte and a protobuf message (etcd's own request), so a tag is a version of its own: a command
//! whose meaning changes gets a new tag, and so does one whose message gets a field. A tag that this version does not know is
//! [`DecodeError::Unknown`], a field [`DecodeError::UnknownField`], and the replica must stop; skipping either would let replicas
//! diverge.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use hadron_proto::etcdserverpb as pb;
use prost::Message;

use crate::auth::{AuthCommand, Caller};

/// One change to the state, or a mark in its history. Requests must have passed [`crate::check`].
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Set a key.
    Put(pb::PutRequest),
    /// Delete a key or a range.
    DeleteRange(pb::DeleteRangeRequest),
    /// Compare, then do one list of operations or the other.
    Txn(pb::TxnRequest),
    /// Forget versions that were superseded at a revision.
    Compact(pb::CompactionRequest),
    /// Create a lease; its id is not zero.
    LeaseGrant(pb::LeaseGrantRequest),
    /// End a lease and delete its keys.
    LeaseRevoke(pb::LeaseRevokeRequest),
    /// Start the time of these leases anew.
    LeaseKeepAlive(Vec<i64>),
    /// End those of these leases whose time is over at the entry's stamp.
    LeaseExpire(Vec<i64>),
    /// Raise, clear or list alarms.
    Alarm(pb::AlarmRequest),
    /// Remember the digest at this index.
    DigestMark,
    /// Change users, roles or permissions.
    Auth(AuthCommand),
    /// Do what a user asked for, if the user may. Never nested.
    As(Caller, Box<Command>),
}

/// What a command answers. Headers carry the revision only.
#[derive(Clone, Debug, PartialEq)]
pub enum Response {
    /// To [`Command::Put`].
    Put(pb::PutResponse),
    /// To [`Command::DeleteRange`].
    DeleteRange(pb::DeleteRangeResponse),
    /// To [`Command::Txn`].
    Txn(pb::TxnResponse),
    /// To [`Command::Compact`].
    Compact(pb::CompactionResponse),
    /// To [`Command::LeaseGrant`].
    LeaseGrant(pb::LeaseGrantResponse),
    /// To [`Command::LeaseRevoke`].
    LeaseRevoke(pb::LeaseRevokeResponse),
    /// To [`Command::LeaseKeepAlive`], one for each id: the time granted in seconds; 0 if the lease does not exist.
    LeaseKeepAlive(Vec<pb::LeaseKeepAliveResponse>),
    /// To [`Command::LeaseExpire`]: the leases that ended.
    LeaseExpire(Vec<i64>),
    /// To [`Command::Alarm`].
    Alarm(pb::AlarmResponse),
    /// To [`Command::DigestMark`]: the digest.
    DigestMark(u64),
    /// To [`Command::Auth`].
    Auth(Option<pb::ResponseHeader>),
}

/// Why bytes are not a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A command of a newer version.
    #[error("unknown command {0}")]
    Unknown(u8),
    /// A field of a newer version, somewhere in a command's message.
    #[error("a command has a field that is not known")]
    UnknownField,
    /// Not what this version or any other wrote.
    #[error("malformed command")]
    Malformed,
}

const PUT: u8 = 1;
const DELETE_RANGE: u8 = 2;
const TXN: u8 = 3;
const COMPACT: u8 = 4;
const LEASE_GRANT: u8 = 5;
const LEASE_REVOKE: u8 = 6;
const LEASE_KEEP_ALIVE: u8 = 7;
const LEASE_EXPIRE: u8 = 8;
const ALARM: u8 = 9;
const DIGEST_MARK: u8 = 10;
const AUTH: u8 = 11;
const AS: u8 = 12;
/// Bytes of an [`AS`] beside the name and the command: auth revision, size of the name.
const CALLER_LEN: usize = 12;

impl Command {
    /// The command's bytes.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.encoded_len());
        self.encode(&mut out);
        out.freeze()
    }

    /// Appends the command's bytes to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Command::Put(request) => encode(PUT, request, out),
            Command::DeleteRange(request) => encode(DELETE_RANGE, request, out),
            Command::Txn(request) => encode(TXN, request, out),
            Command::Compact(request) => encode(COMPACT, request, out),
            Command::LeaseGrant(request) => encode(LEASE_GRANT, request, out),
            Command::LeaseRevoke(request) => encode(LEASE_REVOKE, request, out),
            Command::LeaseKeepAlive(ids) => encode_ids(LEASE_KEEP_ALIVE, ids, out),
            Command::LeaseExpire(ids) => encode_ids(LEASE_EXPIRE, ids, out),
            Command::Alarm(request) => encode(ALARM, request, out),
            Command::DigestMark => out.put_u8(DIGEST_MARK),
            Command::Auth(command) => {
                out.put_u8(AUTH);
                command.encode(out);
            }
            Command::As(caller, command) => encode_as(caller, command, out),
        }
    }

    /// Whether these are the bytes of a [`Command::LeaseKeepAlive`].
    pub fn is_keep_alive(bytes: &[u8]) -> bool {
        bytes.first() == Some(&LEASE_KEEP_ALIVE)
    }

    /// How many bytes [`Command::encode`] appends.
    pub fn encoded_len(&self) -> usize {
        1 + match self {
            Command::Put(request) => request.encoded_len(),
            Command::DeleteRange(request) => request.encoded_len(),
            Command::Txn(request) => request.encoded_len(),
            Command::Compact(request) => request.encoded_len(),
            Command::LeaseGrant(request) => request.encoded_len(),
            Command::LeaseRevoke(request) => request.encoded_len(),
            Command::LeaseKeepAlive(ids) | Command::LeaseExpire(ids) => 8 * ids.len(),
            Command::Alarm(request) => request.encoded_len(),
            Command::DigestMark => 0,
            Command::Auth(command) => command.encoded_len(),
            Command::As(caller, command) => CALLER_LEN + caller.name.len() + command.encoded_len(),
        }
    }

    /// Reads a command; keys and values are slices of `bytes`, not copies.
    pub fn decode(bytes: Bytes) -> Result<Command, DecodeError> {
        let tag = *bytes.first().ok_or(DecodeError::Malformed)?;
        let body = bytes.slice(1..);
        Ok(match tag {
            PUT => Command::Put(decode(body)?),
            DELETE_RANGE => Command::DeleteRange(decode(body)?),
            TXN => Command::Txn(decode(body)?),
            COMPACT => Command::Compact(decode(body)?),
            LEASE_GRANT => Command::LeaseGrant(decode(body)?),
            LEASE_REVOKE => Command::LeaseRevoke(decode(body)?),
            LEASE_KEEP_ALIVE => Command::LeaseKeepAlive(decode_ids(&body)?),
            LEASE_EXPIRE => Command::LeaseExpire(decode_ids(&body)?),
            ALARM => Command::Alarm(decode(body)?),
            DIGEST_MARK if body.is_empty() => Command::DigestMark,
            DIGEST_MARK => return Err(DecodeError::Malformed),
            AUTH => Command::Auth(AuthCommand::decode(&body)?),
            AS => decode_as(body)?,
            unknown => return Err(DecodeError::Unknown(unknown)),
        })
    }
}

fn encode(tag: u8, message: &impl Message, out: &mut BytesMut) {
    out.put_u8(tag);
    out.reserve(message.encoded_len());
    message.encode_raw(out);
}

fn encode_as(caller: &Caller, command: &Command, out: &mut BytesMut) {
    out.put_u8(AS);
    out.put_u64(caller.auth_revision);
    out.put_u32(caller.name.len() as u32);
    out.put_slice(caller.name.as_bytes());
    command.encode(out);
}

fn decode_as(mut body: Bytes) -> Result<Command, DecodeError> {
    if body.len() < CALLER_LEN {
        return Err(DecodeError::Malformed);
    }
    let (auth_revision, size) = (body.get_u64(), body.get_u32() as usize);
    if body.len() < size {
        return Err(DecodeError::Malformed);
    }
    let name = String::from_utf8(body.split_to(size).into()).map_err(|_| DecodeError::Malformed)?;
    // Before it is decoded: however deep noise is nested, the stack does not grow.
    if body.first() == Some(&AS) {
        return Err(DecodeError::Malformed);
    }
    Ok(Command::As(Caller { name, auth_revision }, Box::new(Command::decode(body)?)))
}

fn encode_ids(tag: u8, ids: &[i64], out: &mut BytesMut) {
    out.put_u8(tag);
    ids.iter().for_each(|id| out.put_i64(*id));
}

/// Reads a message of which every byte is understood. The decoder passes over fields that it does not know, and what it passed over is
/// missing when it is counted again: whatever is in an entry was written by the same encoder.
pub(crate) fn decode<M: Message + Default>(body: Bytes) -> Result<M, DecodeError> {
    let size = body.len();
    let message = M::decode(body).map_err(|_| DecodeError::Malformed)?;
    match message.encoded_len() == size {
        true => Ok(message),
        false => Err(DecodeError::UnknownField),
    }
}

fn decode_ids(body: &[u8]) -> Result<Vec<i64>, DecodeError> {
    let (ids, rest) = body.as_chunks::<8>();
    if rest.is_empty() {
        Ok(ids.iter().map(|id| i64::from_be_bytes(*id)).collect())
    } else {
        Err(DecodeError::Malformed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn commands_survive_their_bytes() {
        let put = pb::PutRequest { key: "k".into(), value: "v".into(), lease: 7, ..Default::default() };
        let op = pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put.clone())) };
        let commands = [
            Command::Put(put),
            Command::DeleteRange(pb::DeleteRangeRequest { key: "a".into(), ..Default::default() }),
            Command::Txn(pb::TxnRequest { success: vec![op], ..Default::default() }),
            Command::Compact(pb::CompactionRequest { revision: 9, physical: true }),
            Command::LeaseGrant(pb::LeaseGrantRequest { id: 1, ttl: 2 }),
            Command::LeaseRevoke(pb::LeaseRevokeRequest { id: 1 }),
            Command::LeaseKeepAlive(vec![1, -2]),
            Command::LeaseExpire(vec![]),
            Command::Alarm(pb::AlarmRequest { member_id: 3, ..Default::default() }),
            Command::DigestMark,
            Command::Auth(AuthCommand::Enable("secret".into())),
            Command::Auth(AuthCommand::Secret("secret".into())),
            Command::Auth(AuthCommand::Disable),
            Command::Auth(AuthCommand::UserDelete(pb::AuthUserDeleteRequest { name: "n".into() })),
            Command::As(
                Caller { name: "alice".into(), auth_revision: 4 },
                Box::new(Command::LeaseRevoke(pb::LeaseRevokeRequest { id: 1 })),
            ),
        ];
        for command in commands {
            let bytes = command.to_bytes();
            assert_eq!(bytes.len(), command.encoded_len());
            assert_eq!(Command::is_keep_alive(&bytes), matches!(command, Command::LeaseKeepAlive(_)));
            assert_eq!(Command::decode(bytes).unwrap(), command);
        }
    }

    #[test]
    fn unknown_is_not_malformed() {
        assert_eq!(Command::decode(Bytes::from_static(&[200, 1])), Err(DecodeError::Unknown(200)));
        assert_eq!(Command::decode(Bytes::new()), Err(DecodeError::Malformed));
        assert_eq!(Command::decode(Bytes::from_static(&[PUT, 255])), Err(DecodeError::Malformed));
        assert_eq!(Command::decode(Bytes::from_static(&[LEASE_EXPIRE, 1])), Err(DecodeError::Malformed));
        assert_eq!(Command::decode(Bytes::from_static(&[AS, 0, 0, 0])), Err(DecodeError::Malformed));
        let caller = Caller { name: "a".into(), auth_revision: 1 };
        let nested =
            Command::As(caller.clone(), Box::new(Command::As(caller, Box::new(Command::DigestMark))));
        assert_eq!(Command::decode(nested.to_bytes()), Err(DecodeError::Malformed));
    }

    /// A replica of an older version passed over a field that a newer one had heeded, and differed from then on.
    #[test]
    fn a_field_that_is_not_known_is_no_command() {
        // Field 100, a varint: no message of etcd's has it.
        const UNKNOWN: &[u8] = &[0xa0, 0x06, 1];
        let put = pb::PutRequest { key: "k".into(), ..Default::default() };
        let outside = [&Command::Put(put.clone()).to_bytes()[..], UNKNOWN].concat();
        assert_eq!(Command::decode(outside.clone().into()), Err(DecodeError::UnknownField));

        let put = [put.encode_to_vec(), UNKNOWN.to_vec()].concat();
        let operation = [&[0x12, put.len() as u8][..], &put].concat();
        let inside = [&[TXN, 0x12, operation.len() as u8][..], &operation].concat();
        assert_eq!(Command::decode(inside.into()), Err(DecodeError::UnknownField));

        let user = pb::AuthUserDeleteRequest { name: "n".into() };
        let of_auth = [&Command::Auth(AuthCommand::UserDelete(user)).to_bytes()[..], UNKNOWN].concat();
        assert_eq!(Command::decode(of_auth.into()), Err(DecodeError::UnknownField));

        let mut of_a_user = BytesMut::from(&[AS, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, b'a'][..]);
        of_a_user.put_slice(&outside);
        assert_eq!(Command::decode(of_a_user.freeze()), Err(DecodeError::UnknownField));
    }

    #[test]
    fn decoding_does_not_copy_values() {
        let put = pb::PutRequest { key: "k".into(), value: vec![7; 100].into(), ..Default::default() };
        let bytes = Command::Put(put).to_bytes();
        let range = bytes.as_ptr_range();
        let Command::Put(put) = Command::decode(bytes).unwrap() else { panic!("a put") };
        assert!(range.contains(&put.value.as_ptr()));
    }
}
