//! Frames: how bytes are cut into pieces on a connection between two nodes. The layout is in `docs/formats/peer.md`.
//!
//! Every frame carries a CRC-32C of itself: the checksum of TCP is 16 bits wide and is computed anew by every
//! middlebox, and a flipped bit in an entry would be replicated faithfully. With the CPU's instruction it costs about
//! 0.1 µs per KiB, which is noise beside the system call.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes before the body: length (4), checksum (4), kind (1).
pub(super) const HEADER_BYTES: usize = 9;
/// The longest body that a node accepts once it knows who is talking.
pub const BODY_BYTES_MAX: usize = 64 << 20;
/// The longest body before that: a stranger must not make us allocate.
pub(super) const HANDSHAKE_BODY_BYTES_MAX: usize = 4 << 10;
/// A longer frame of messages is sent in parts of at most this: whatever is long, on a link of 50 KiB/s a heartbeat that
/// overtakes the rest waits no more than about a second for the part that is being written.
pub(super) const PART_BYTES_MAX: usize = 64 << 10;
/// A frame of messages is closed, and another one begun, when it has grown to this: many small ones make frames that need not
/// be cut into parts.
const MESSAGES_BODY_BYTES: usize = PART_BYTES_MAX / 2;
/// A body is allocated in steps of at most this, so that a lying length costs nothing before its bytes arrive.
const READ_STEP_BYTES: usize = 1 << 20;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Dialer to acceptor, first frame.
    Hello = 1,
    /// Acceptor's answer: come in.
    Welcome = 2,
    /// Acceptor's answer: no, and why.
    Refused = 3,
    /// Peer messages, each after its length.
    Messages = 4,
    /// Are you there?
    Ping = 5,
    /// Yes.
    Pong = 6,
    /// What the snapshot that follows is.
    SnapshotBegin = 7,
    /// A piece of it.
    SnapshotChunk = 8,
    /// That was all.
    SnapshotEnd = 9,
    /// What became of it.
    SnapshotResult = 10,
    /// Dialer to acceptor, the only frame: what do you know about this node?
    Inquiry = 11,
    /// Acceptor's answer to it.
    Answer = 12,
    /// Dialer to acceptor, the only frame: who are the members?
    MembersInquiry = 13,
    /// Acceptor's answer to it.
    MembersAnswer = 14,
    /// A part of the body of a long frame of messages. Others may come before the next.
    Part = 15,
    /// The last of them.
    LastPart = 16,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        Some(match byte {
            1 => Kind::Hello,
            2 => Kind::Welcome,
            3 => Kind::Refused,
            4 => Kind::Messages,
            5 => Kind::Ping,
            6 => Kind::Pong,
            7 => Kind::SnapshotBegin,
            8 => Kind::SnapshotChunk,
            9 => Kind::SnapshotEnd,
            10 => Kind::SnapshotResult,
            11 => Kind::Inquiry,
            12 => Kind::Answer,
            13 => Kind::MembersInquiry,
            14 => Kind::MembersAnswer,
            15 => Kind::Part,
            16 => Kind::LastPart,
            _ => return None,
        })
    }
}

/// Why a connection cannot be read any further.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other side closed it between two frames.
    #[error("connection closed by the other side")]
    Closed,
    /// The connection broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A length that no honest node sends. Usually somebody who speaks another protocol.
    #[error("frame of {0} bytes is longer than allowed; is the other side a Hadron node?")]
    TooLong(usize),
    /// The bytes are not those that were sent.
    #[error("checksum of a frame does not match")]
    Checksum,
    /// A kind that this version does not know.
    #[error("unknown kind of frame: {0}")]
    UnknownKind(u8),
    /// A frame that does not belong here.
    #[error("unexpected frame: {0}")]
    Unexpected(&'static str),
    /// A body that ends too early or claims more than it holds.
    #[error("malformed frame: {0}")]
    Malformed(&'static str),
    /// Nothing arrived for too long.
    #[error("nothing received for too long")]
    TimedOut,
}

/// Writes the header of the frame that begins at `start` and ends where `buffer` ends.
fn seal(buffer: &mut BytesMut, start: usize, kind: Kind) {
    let body_bytes = buffer.len() - start - HEADER_BYTES;
    buffer[start..start + 4].copy_from_slice(&(body_bytes as u32).to_le_bytes());
    buffer[start + 8] = kind as u8;
    let checksum = checksum(&buffer[start..start + 4], &buffer[start + 8..]);
    buffer[start + 4..start + 8].copy_from_slice(&checksum.to_le_bytes());
}

/// Covers the length, the kind and the body.
fn checksum(length: &[u8], kind_and_body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(length), kind_and_body)
}

/// A whole frame of `kind` around `body`.
pub(super) fn encode(kind: Kind, body: &[u8]) -> Bytes {
    let mut buffer = BytesMut::with_capacity(HEADER_BYTES + body.len());
    buffer.put_bytes(0, HEADER_BYTES);
    buffer.put_slice(body);
    seal(&mut buffer, 0, kind);
    buffer.freeze()
}

/// The header alone of a frame of `kind` around `body`, for those who would rather not copy the body.
pub(super) fn header(kind: Kind, body: &[u8]) -> Bytes {
    let length = (body.len() as u32).to_le_bytes();
    let checksum = crc32c::crc32c_append(checksum(&length, &[kind as u8]), body);
    let mut header = BytesMut::with_capacity(HEADER_BYTES);
    header.put_slice(&length);
    header.put_u32_le(checksum);
    header.put_u8(kind as u8);
    header.freeze()
}

/// The frames of which `frames` are made, each by itself.
pub(super) fn cut(mut frames: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        let length = frames.first_chunk().map_or(0, |length| u32::from_le_bytes(*length) as usize);
        let frame = frames.split_to((HEADER_BYTES + length).min(frames.len()));
        (!frame.is_empty()).then_some(frame)
    })
}

/// What is sent instead of `frame`, a whole frame of messages: itself, or the parts of its body.
pub(super) fn parts(mut frame: Bytes) -> impl Iterator<Item = Bytes> {
    let is_long = frame.len() > HEADER_BYTES + PART_BYTES_MAX;
    if is_long {
        frame.advance(HEADER_BYTES);
    }
    std::iter::from_fn(move || {
        if !is_long {
            return Some(std::mem::take(&mut frame)).filter(|frame| !frame.is_empty());
        }
        let body = frame.split_to(frame.len().min(PART_BYTES_MAX));
        let kind = if frame.is_empty() { Kind::LastPart } else { Kind::Part };
        (!body.is_empty()).then(|| encode(kind, &body))
    })
}

/// Puts the parts of a long frame together again.
#[derive(Debug, Default)]
pub(super) struct Parts(BytesMut);

impl Parts {
    /// The frame that came, unless it is a part and not the last one.
    ///
    /// # Errors
    /// The parts are longer together than a body may be.
    pub(super) fn gather(&mut self, kind: Kind, body: Bytes) -> Result<Option<(Kind, Bytes)>, FrameError> {
        if !matches!(kind, Kind::Part | Kind::LastPart) {
            return Ok(Some((kind, body)));
        }
        let length = self.0.len() + body.len();
        if length > BODY_BYTES_MAX {
            return Err(FrameError::TooLong(length));
        }
        self.0.extend_from_slice(&body);
        Ok((kind == Kind::LastPart).then(|| (Kind::Messages, self.0.split().freeze())))
    }
}

/// Writes frames, and leaves nothing of them on this side: an encrypted connection may keep something back otherwise.
pub(super) async fn write<W: AsyncWrite + Unpin>(writer: &mut W, frames: &[u8]) -> io::Result<()> {
    writer.write_all(frames).await?;
    writer.flush().await
}

/// Reads one frame whose body has at most `body_bytes_max` bytes. The body is an allocation of its own, so that an
/// entry that is kept for long pins nothing but its frame.
pub(super) async fn read<R: AsyncRead + Unpin>(
    reader: &mut R,
    body_bytes_max: usize,
) -> Result<(Kind, Bytes), FrameError> {
    let mut header = [0; HEADER_BYTES];
    let first = reader.read(&mut header).await?;
    if first == 0 {
        return Err(FrameError::Closed);
    }
    reader.read_exact(&mut header[first..]).await?;
    let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let expected = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
    if length > body_bytes_max {
        return Err(FrameError::TooLong(length));
    }
    let body = read_body(reader, length).await?;
    let found = crc32c::crc32c_append(checksum(&header[..4], &header[8..]), &body);
    if found != expected {
        return Err(FrameError::Checksum);
    }
    let kind = Kind::from_byte(header[8]).ok_or(FrameError::UnknownKind(header[8]))?;
    Ok((kind, body))
}

async fn read_body<R: AsyncRead + Unpin>(reader: &mut R, length: usize) -> Result<Bytes, FrameError> {
    let mut body = BytesMut::with_capacity(length.min(READ_STEP_BYTES));
    while body.len() < length {
        let missing = length - body.len();
        if body.capacity() == body.len() {
            body.reserve(missing.min(body.len().max(READ_STEP_BYTES)));
        }
        let room = missing.min(body.capacity() - body.len());
        if reader.read_buf(&mut (&mut body).limit(room)).await? == 0 {
            return Err(FrameError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
    }
    Ok(body.freeze())
}

/// Peer messages for one node, gathered into frames: everything of one turn of the loop, for one write.
#[derive(Debug, Default)]
pub struct MessageBatch {
    buffer: BytesMut,
    /// Where the open frame begins; equal to the buffer's length when none is open.
    frame_start: usize,
}

/// A message that is longer than a frame may be. It was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("message of {0} bytes is longer than a frame may be")]
pub struct MessageTooLong(pub usize);

impl MessageBatch {
    /// True when there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Adds the message that `encode` appends.
    ///
    /// # Errors
    /// The message is longer than a frame may be; the batch is as before.
    pub fn push(&mut self, encode: impl FnOnce(&mut BytesMut)) -> Result<(), MessageTooLong> {
        if self.buffer.len() - self.frame_start >= MESSAGES_BODY_BYTES {
            self.close_frame();
        }
        let before = self.buffer.len();
        if before == self.frame_start {
            self.buffer.put_bytes(0, HEADER_BYTES);
        }
        let at = self.buffer.len();
        self.buffer.put_u32_le(0);
        encode(&mut self.buffer);
        let length = self.buffer.len() - at - 4;
        if self.buffer.len() - self.frame_start - HEADER_BYTES > BODY_BYTES_MAX {
            self.buffer.truncate(before);
            return Err(MessageTooLong(length));
        }
        self.buffer[at..at + 4].copy_from_slice(&(length as u32).to_le_bytes());
        Ok(())
    }

    fn close_frame(&mut self) {
        if self.buffer.len() > self.frame_start {
            seal(&mut self.buffer, self.frame_start, Kind::Messages);
            self.frame_start = self.buffer.len();
        }
    }

    /// The bytes to send; the batch is empty afterwards.
    pub fn take(&mut self) -> Bytes {
        self.close_frame();
        self.frame_start = 0;
        self.buffer.split().freeze()
    }
}

/// The messages in the body of a frame, in order.
#[derive(Debug)]
pub struct Messages(Bytes);

impl Messages {
    /// The messages of a frame with this body.
    pub fn new(body: Bytes) -> Messages {
        Messages(body)
    }
}

impl Iterator for Messages {
    type Item = Result<Bytes, FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let length = self.0.try_get_u32_le().map(|length| length as usize);
        match length {
            Ok(length) if length <= self.0.len() => Some(Ok(self.0.split_to(length))),
            _ => {
                self.0.clear();
                Some(Err(FrameError::Malformed("a message claims more than its frame holds")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    async fn read_all(mut bytes: &[u8]) -> Result<Vec<(Kind, Bytes)>, FrameError> {
        let mut frames = Vec::new();
        while !bytes.is_empty() {
            frames.push(read(&mut bytes, BODY_BYTES_MAX).await?);
        }
        Ok(frames)
    }

    #[tokio::test]
    async fn messages_come_back_in_order_whatever_their_sizes() {
        let sizes = [0, 1, 300, MESSAGES_BODY_BYTES - 1, 5, MESSAGES_BODY_BYTES * 3, 7];
        let mut batch = MessageBatch::default();
        for (position, size) in sizes.iter().enumerate() {
            batch.push(|out| out.put_bytes(position as u8, *size)).unwrap();
        }
        let bytes = batch.take();
        assert!(batch.is_empty());
        let frames = read_all(&bytes).await.unwrap();
        assert!(frames.len() > 1, "long batches are cut into frames");
        let cuts: Vec<Bytes> = cut(bytes.clone()).collect();
        assert_eq!((cuts.len(), cuts.concat()), (frames.len(), bytes.to_vec()));
        let mut together = Parts::default();
        let mut bodies = Vec::new();
        for (kind, body) in read_all(&cut(bytes).flat_map(parts).collect::<Vec<_>>().concat()).await.unwrap()
        {
            assert!(body.len() <= PART_BYTES_MAX);
            bodies.extend(together.gather(kind, body).unwrap());
        }
        assert!(bodies == frames, "parts make the same frames");
        let messages: Vec<Bytes> =
            frames.into_iter().flat_map(|(_, body)| Messages::new(body)).map(Result::unwrap).collect();
        let expected: Vec<Vec<u8>> =
            sizes.iter().enumerate().map(|(position, size)| vec![position as u8; *size]).collect();
        assert_eq!(messages, expected);
    }

    #[tokio::test]
    async fn a_message_that_is_too_long_leaves_the_batch_as_it_was() {
        let mut batch = MessageBatch::default();
        batch.push(|out| out.put_slice(b"first")).unwrap();
        let error = batch.push(|out| out.put_bytes(0, BODY_BYTES_MAX)).unwrap_err();
        assert_eq!(error, MessageTooLong(BODY_BYTES_MAX));
        let frames = read_all(&batch.take()).await.unwrap();
        let messages: Vec<Bytes> = Messages::new(frames[0].1.clone()).map(Result::unwrap).collect();
        assert_eq!(messages, ["first"]);
    }

    #[tokio::test]
    async fn every_flipped_bit_is_noticed() {
        let frame = encode(Kind::Messages, b"\x05\0\0\0hello");
        for bit in 0..frame.len() * 8 {
            let mut damaged = frame.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(read_all(&damaged).await.is_err(), "bit {bit}");
        }
    }

    #[tokio::test]
    async fn lengths_are_bounded_and_ends_are_noticed() {
        let http = b"GET / HTTP/1.1\r\n";
        assert!(matches!(read(&mut &http[..], HANDSHAKE_BODY_BYTES_MAX).await, Err(FrameError::TooLong(_))));
        let frame = encode(Kind::Ping, b"12345678");
        for end in 1..frame.len() {
            assert!(matches!(read(&mut &frame[..end], 100).await, Err(FrameError::Io(_))), "{end}");
        }
        assert!(matches!(read(&mut &frame[..0], 100).await, Err(FrameError::Closed)));
    }

    #[test]
    fn parts_are_bounded_together() {
        let mut parts = Parts::default();
        let part = Bytes::from(vec![0; PART_BYTES_MAX]);
        for _ in 0..BODY_BYTES_MAX / PART_BYTES_MAX {
            assert_eq!(parts.gather(Kind::Part, part.clone()).unwrap(), None);
        }
        for kind in [Kind::Part, Kind::LastPart] {
            assert!(matches!(parts.gather(kind, Bytes::from_static(b"1")), Err(FrameError::TooLong(_))));
        }
    }

    #[test]
    fn a_lying_message_length_is_malformed() {
        let mut messages = Messages::new(Bytes::from_static(b"\x01\0\0\0a\xff\0\0\0b"));
        assert_eq!(messages.next().unwrap().unwrap(), "a");
        assert!(matches!(messages.next(), Some(Err(FrameError::Malformed(_)))));
        assert!(messages.next().is_none());
    }
}
