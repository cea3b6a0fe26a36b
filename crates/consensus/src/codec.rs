//! The bytes of a [`Message`]: a version, a kind, then the kind's fields. `docs/formats/messages.md` has the layout.
//!
//! Integers are LEB128 varints, checksums are eight bytes. Decoding never trusts a length: nothing is allocated
//! for entries that cannot be in the bytes at hand, and whatever does not fit is an error. The data of entries is sliced out
//! of the received buffer, not copied.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::entry::{Entry, LogPosition};
use crate::ids::{Index, ReplicaId, Term};
use crate::message::Message;

/// The version that this code writes, and the only one it reads.
const VERSION: u8 = 1;

const VOTE_REQUEST: u8 = 1;
const VOTE_ANSWER: u8 = 2;
const APPEND: u8 = 3;
const APPEND_ACK: u8 = 4;
const APPEND_REJECT: u8 = 5;
const DIVERGED: u8 = 6;
const STALE: u8 = 7;
const READ_REQUEST: u8 = 8;
const READ_ANSWER: u8 = 9;
const TIMEOUT_NOW: u8 = 10;
const ABDICATE: u8 = 11;
const WAKE: u8 = 12;

/// An entry takes at least this many bytes: term, checksum and length.
const ENTRY_BYTES_MIN: usize = 10;

/// Why bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end within the message.
    #[error("the message is cut short")]
    Truncated,
    /// There are bytes after the message.
    #[error("{0} bytes after the end of the message")]
    Trailing(usize),
    /// A version this code does not know.
    #[error("unknown version {0}")]
    Version(u8),
    /// A kind this code does not know.
    #[error("unknown kind {0}")]
    Kind(u8),
    /// A flag or number outside its range.
    #[error("a field is out of range")]
    Range,
}

impl Message {
    /// Appends the message's bytes to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u8(VERSION);
        match self {
            Message::VoteRequest { term, pre, transfer, last_term, last_index } => {
                out.put_u8(VOTE_REQUEST);
                out.put_u8(u8::from(*pre) | u8::from(*transfer) << 1);
                put_all(out, [term.0, last_term.0, last_index.0]);
            }
            Message::VoteAnswer { term, election, pre, granted, voted_for } => {
                out.put_u8(VOTE_ANSWER);
                out.put_u8(u8::from(*pre) | u8::from(*granted) << 1 | u8::from(voted_for.is_some()) << 2);
                put_all(out, [term.0, election.0]);
                put_all(out, voted_for.map(|replica| replica.0));
            }
            Message::Append { term, previous, commit, round, answer, sleep, entries } => {
                out.put_u8(APPEND);
                out.put_u8(u8::from(*answer) | u8::from(*sleep) << 1);
                put_all(out, [term.0, previous.term.0, previous.index.0]);
                out.put_u64_le(previous.checksum);
                put_all(out, [commit.0, *round]);
                put_entries(out, entries);
            }
            Message::AppendAck { term, round, matched, full, asleep } => {
                out.put_u8(APPEND_ACK);
                out.put_u8(u8::from(*full) | u8::from(*asleep) << 1);
                put_all(out, [term.0, *round, matched.0]);
            }
            Message::AppendReject { term, round, rejected, hint_index, hint_term } => {
                out.put_u8(APPEND_REJECT);
                put_all(out, [term.0, *round, rejected.0, hint_index.0, hint_term.0]);
            }
            Message::Diverged { term, index, expected, found, broken } => {
                out.put_u8(DIVERGED);
                out.put_u8(u8::from(*broken));
                put_all(out, [term.0, index.0]);
                out.put_u64_le(*expected);
                out.put_u64_le(*found);
            }
            Message::ReadRequest { term, batch } => {
                out.put_u8(READ_REQUEST);
                put_all(out, [term.0, *batch]);
            }
            Message::ReadAnswer { term, batch, index } => {
                out.put_u8(READ_ANSWER);
                put_all(out, [term.0, *batch, index.0]);
            }
            Message::Stale { term } => put_term(out, STALE, *term),
            Message::TimeoutNow { term } => put_term(out, TIMEOUT_NOW, *term),
            Message::Abdicate { term } => put_term(out, ABDICATE, *term),
            Message::Wake { term } => put_term(out, WAKE, *term),
        }
    }

    /// Reads one message that fills `bytes` exactly. Entry data shares the buffer.
    ///
    /// # Errors
    /// Whenever the bytes are not exactly what [`Message::encode`] could have written, except that a varint may be
    /// longer than it needs to be.
    pub fn decode(mut bytes: Bytes) -> Result<Message, DecodeError> {
        let version = byte(&mut bytes)?;
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        let kind = byte(&mut bytes)?;
        let message = decode_body(kind, &mut bytes)?;
        match bytes.len() {
            0 => Ok(message),
            left => Err(DecodeError::Trailing(left)),
        }
    }
}

fn decode_body(kind: u8, from: &mut Bytes) -> Result<Message, DecodeError> {
    let message = match kind {
        VOTE_REQUEST => {
            let [pre, transfer, _] = flags(from, 2)?;
            let (term, last_term, last_index) = (take_term(from)?, take_term(from)?, take_index(from)?);
            Message::VoteRequest { term, pre, transfer, last_term, last_index }
        }
        VOTE_ANSWER => {
            let [pre, granted, has_voted] = flags(from, 3)?;
            let (term, election) = (take_term(from)?, take_term(from)?);
            let voted_for = if has_voted { Some(ReplicaId(varint(from)?)) } else { None };
            Message::VoteAnswer { term, election, pre, granted, voted_for }
        }
        APPEND => decode_append(from)?,
        APPEND_ACK => {
            let [full, asleep, _] = flags(from, 2)?;
            let (term, round, matched) = (take_term(from)?, varint(from)?, take_index(from)?);
            Message::AppendAck { term, round, matched, full, asleep }
        }
        APPEND_REJECT => Message::AppendReject {
            term: take_term(from)?,
            round: varint(from)?,
            rejected: take_index(from)?,
            hint_index: take_index(from)?,
            hint_term: take_term(from)?,
        },
        DIVERGED => {
            let [broken, _, _] = flags(from, 1)?;
            let (term, index) = (take_term(from)?, take_index(from)?);
            Message::Diverged { term, index, expected: checksum(from)?, found: checksum(from)?, broken }
        }
        STALE => Message::Stale { term: take_term(from)? },
        READ_REQUEST => Message::ReadRequest { term: take_term(from)?, batch: varint(from)? },
        READ_ANSWER => {
            Message::ReadAnswer { term: take_term(from)?, batch: varint(from)?, index: take_index(from)? }
        }
        TIMEOUT_NOW => Message::TimeoutNow { term: take_term(from)? },
        ABDICATE => Message::Abdicate { term: take_term(from)? },
        WAKE => Message::Wake { term: take_term(from)? },
        _ => return Err(DecodeError::Kind(kind)),
    };
    Ok(message)
}

fn decode_append(from: &mut Bytes) -> Result<Message, DecodeError> {
    let [answer, sleep, _] = flags(from, 2)?;
    let term = take_term(from)?;
    let previous =
        LogPosition { term: take_term(from)?, index: take_index(from)?, checksum: checksum(from)? };
    let commit = take_index(from)?;
    let round = varint(from)?;
    let entries = take_entries(from, previous.index)?;
    Ok(Message::Append { term, previous, commit, round, answer, sleep, entries })
}

fn put_term(out: &mut BytesMut, kind: u8, term: Term) {
    out.put_u8(kind);
    put_varint(out, term.0);
}

fn put_all(out: &mut BytesMut, values: impl IntoIterator<Item = u64>) {
    for value in values {
        put_varint(out, value);
    }
}

fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// The indexes of entries are not written: they follow from the position before them.
fn put_entries(out: &mut BytesMut, entries: &[Entry]) {
    let bytes: usize = entries.iter().map(|entry| entry.data.len() + 2 * ENTRY_BYTES_MIN).sum();
    out.reserve(bytes + ENTRY_BYTES_MIN);
    put_varint(out, entries.len() as u64);
    for entry in entries {
        put_varint(out, entry.term.0);
        out.put_u64_le(entry.checksum);
        put_varint(out, entry.data.len() as u64);
        out.put_slice(&entry.data);
    }
}

fn take_entries(from: &mut Bytes, previous: Index) -> Result<Vec<Entry>, DecodeError> {
    let count = varint(from)?;
    if count > (from.len() / ENTRY_BYTES_MIN) as u64 {
        return Err(DecodeError::Truncated);
    }
    if previous.0.checked_add(count).is_none() {
        return Err(DecodeError::Range);
    }
    let mut entries = Vec::with_capacity(count as usize);
    for offset in 1..=count {
        let (term, checksum, length) = (take_term(from)?, checksum(from)?, varint(from)?);
        if length > from.len() as u64 {
            return Err(DecodeError::Truncated);
        }
        let data = from.split_to(length as usize);
        entries.push(Entry { term, index: Index(previous.0 + offset), checksum, data });
    }
    Ok(entries)
}

fn byte(from: &mut Bytes) -> Result<u8, DecodeError> {
    from.try_get_u8().map_err(|_| DecodeError::Truncated)
}

fn checksum(from: &mut Bytes) -> Result<u64, DecodeError> {
    from.try_get_u64_le().map_err(|_| DecodeError::Truncated)
}

fn take_term(from: &mut Bytes) -> Result<Term, DecodeError> {
    varint(from).map(Term)
}

fn take_index(from: &mut Bytes) -> Result<Index, DecodeError> {
    varint(from).map(Index)
}

/// The lowest bits of a byte of which only `known` bits may be set.
fn flags(from: &mut Bytes, known: u32) -> Result<[bool; 3], DecodeError> {
    let flags = byte(from)?;
    if flags >> known != 0 {
        return Err(DecodeError::Range);
    }
    Ok([flags & 1 != 0, flags & 2 != 0, flags & 4 != 0])
}

fn varint(from: &mut Bytes) -> Result<u64, DecodeError> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let next = byte(from)?;
        let bits = u64::from(next & 0x7f);
        if bits << shift >> shift != bits {
            return Err(DecodeError::Range);
        }
        value |= bits << shift;
        if next & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(DecodeError::Range)
}
