//! The framing of a snapshot on its way to another node: chunks whose damage, loss or repetition is noticed.
//!
//! Frame by frame, whatever the chunks hold:
//!
//! ```text
//!   0   4  magic: "HSN1" for a chunk, "HSNE" for the end
//!   4   4  bytes of contents
//!   8   8  number, from 0; of the end: how many chunks came before it
//!  16   8  xxh3 of the contents, seeded with the number
//!  24   8  xxh3 of all such checksums before this frame, in order
//!  32   …  contents; the end has none
//! ```
//!
//! The running checksum ties a chunk to all before it, so chunks of two snapshots cannot be mixed. A stream without its
//! end is no snapshot: ask [`Decoder::is_complete`].

use bytes::{BufMut, Bytes, BytesMut};
use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

/// Bytes that a frame has in addition to its chunk.
pub const FRAME_OVERHEAD: usize = 32;

const CHUNK: [u8; 4] = *b"HSN1";
const END: [u8; 4] = *b"HSNE";

/// What is wrong with a frame. The transfer has failed as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Not a frame, or its contents are not what was sent.
    #[error("snapshot frame {expected} is damaged")]
    Damaged {
        /// The number of the frame that was due.
        expected: u64,
    },
    /// One or more frames are missing.
    #[error("snapshot frame {expected} is missing: {found} came")]
    Missing {
        /// The number of the frame that was due.
        expected: u64,
        /// The number of the one that came.
        found: u64,
    },
    /// A frame came again.
    #[error("snapshot frame {found} came again when {expected} was due")]
    Repeated {
        /// The number of the frame that was due.
        expected: u64,
        /// The number of the one that came.
        found: u64,
    },
    /// A frame after the end.
    #[error("a snapshot frame after the end")]
    AfterEnd,
}

/// What a frame turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The next chunk.
    Chunk(Bytes),
    /// The end: everything before it was complete.
    End,
}

/// Makes frames of chunks.
#[derive(Default)]
pub struct Encoder {
    number: u64,
    total: Xxh3,
}

impl Encoder {
    /// An encoder at the beginning of a snapshot.
    pub fn new() -> Encoder {
        Encoder::default()
    }

    /// The frame of the next chunk, which is below 4 GiB.
    pub fn chunk(&mut self, contents: &[u8]) -> Bytes {
        assert!(u32::try_from(contents.len()).is_ok(), "a chunk of 4 GiB or more");
        self.frame(CHUNK, contents)
    }

    /// The last frame.
    pub fn finish(mut self) -> Bytes {
        self.frame(END, &[])
    }

    fn frame(&mut self, magic: [u8; 4], contents: &[u8]) -> Bytes {
        let checksum = xxh3_64_with_seed(contents, self.number);
        let mut frame = BytesMut::with_capacity(FRAME_OVERHEAD + contents.len());
        frame.put_slice(&magic);
        frame.put_u32_le(contents.len() as u32);
        frame.put_u64_le(self.number);
        frame.put_u64_le(checksum);
        frame.put_u64_le(self.total.digest());
        frame.put_slice(contents);
        self.number += 1;
        self.total.update(&checksum.to_le_bytes());
        frame.freeze()
    }
}

/// Takes frames in and gives chunks out.
#[derive(Default)]
pub struct Decoder {
    number: u64,
    total: Xxh3,
    complete: bool,
}

impl Decoder {
    /// A decoder at the beginning of a snapshot.
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// Takes the next frame. The chunk shares its memory.
    pub fn frame(&mut self, frame: &Bytes) -> Result<Frame, SnapshotError> {
        if self.complete {
            return Err(SnapshotError::AfterEnd);
        }
        let expected = self.number;
        let damaged = SnapshotError::Damaged { expected };
        let header = frame.first_chunk::<FRAME_OVERHEAD>().ok_or(damaged)?;
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&header[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let is_end = header[..4] == END;
        let contents = frame.slice(FRAME_OVERHEAD..);
        let length = (contents.len() as u32).to_le_bytes();
        let found = number(8);
        let checksum = xxh3_64_with_seed(&contents, found);
        if !(is_end || header[..4] == CHUNK) || header[4..8] != length || number(16) != checksum {
            return Err(damaged);
        }
        if found > expected {
            return Err(SnapshotError::Missing { expected, found });
        }
        if found < expected {
            return Err(SnapshotError::Repeated { expected, found });
        }
        if number(24) != self.total.digest() || (is_end && !contents.is_empty()) {
            return Err(damaged);
        }
        self.number += 1;
        self.total.update(&checksum.to_le_bytes());
        self.complete = is_end;
        Ok(if is_end { Frame::End } else { Frame::Chunk(contents) })
    }

    /// True after the end; a stream that stops before is to be thrown away.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Chunks taken so far.
    pub fn chunks(&self) -> u64 {
        self.number - u64::from(self.complete)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn frames() -> Vec<Bytes> {
        let mut encoder = Encoder::new();
        let mut frames: Vec<Bytes> =
            [&b"one"[..], b"two", b"", b"four"].iter().map(|chunk| encoder.chunk(chunk)).collect();
        frames.push(encoder.finish());
        frames
    }

    fn decode(frames: &[Bytes]) -> Result<(Vec<Bytes>, bool), SnapshotError> {
        let mut decoder = Decoder::new();
        let mut chunks = Vec::new();
        for frame in frames {
            if let Frame::Chunk(chunk) = decoder.frame(frame)? {
                chunks.push(chunk);
            }
        }
        assert_eq!(decoder.chunks(), chunks.len() as u64);
        Ok((chunks, decoder.is_complete()))
    }

    #[test]
    fn round_trips() {
        let (chunks, complete) = decode(&frames()).unwrap();
        assert_eq!(chunks, [&b"one"[..], b"two", b"", b"four"]);
        assert!(complete);
        assert_eq!(decode(&[Encoder::new().finish()]).unwrap(), (Vec::new(), true));
    }

    #[test]
    fn notices_what_is_missing_repeated_or_cut_off() {
        let all = frames();
        assert!(!decode(&all[..4]).unwrap().1, "the end is missing");
        let without_last_chunk = [&all[..3], &all[4..]].concat();
        assert_eq!(
            decode(&without_last_chunk).unwrap_err(),
            SnapshotError::Missing { expected: 3, found: 4 }
        );
        let without_first = &all[1..];
        assert_eq!(decode(without_first).unwrap_err(), SnapshotError::Missing { expected: 0, found: 1 });
        let repeated = [&all[..2], &all[1..]].concat();
        assert_eq!(decode(&repeated).unwrap_err(), SnapshotError::Repeated { expected: 2, found: 1 });
        let after = [&all[..], &all[..1]].concat();
        assert_eq!(decode(&after).unwrap_err(), SnapshotError::AfterEnd);
    }

    #[test]
    fn notices_every_flipped_bit_and_every_cut() {
        let all = frames();
        for place in 0..all.len() {
            for bit in 0..all[place].len() * 8 {
                let mut frame = all[place].to_vec();
                frame[bit / 8] ^= 1 << (bit % 8);
                let mut damaged = all.clone();
                damaged[place] = frame.into();
                assert!(decode(&damaged).is_err(), "frame {place}, bit {bit}");
            }
            for length in 0..all[place].len() {
                let mut cut = all.clone();
                cut[place].truncate(length);
                assert!(decode(&cut).is_err(), "frame {place} cut to {length}");
            }
        }
    }

    #[test]
    fn notices_a_chunk_of_another_snapshot() {
        let mut other = Encoder::new();
        other.chunk(b"another");
        let mut mixed = frames();
        mixed[1] = other.chunk(b"two");
        assert_eq!(decode(&mixed).unwrap_err(), SnapshotError::Damaged { expected: 1 });
    }
}
