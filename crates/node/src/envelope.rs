//! What an entry of a group's log holds: a stamp of the group's clock and the commands that were waiting together.
//!
//! ```text
//! version u8 = 1 | stamp_ms u64 | count u32 | count × ( node u64 | incarnation u64 | token u64 | length u32 | command )
//! ```
//! All numbers little-endian. One entry carries many commands, so that a busy group pays for consensus, the log and
//! the network once per turn of the loop and not once per client.

use bytes::{BufMut, Bytes, BytesMut};
use hadron_consensus::{CONFIGURATION, NodeId};

use crate::peer::{PeerDecodeError, read_bytes, read_u8, read_u32, read_u64};

const VERSION: u8 = 1;
const HEAD_BYTES: usize = 13;
const COMMAND_HEAD_BYTES: usize = 28;

/// Who asked for a command: the request `token` of the process `incarnation` of `node`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The node whose client asked.
    pub node: NodeId,
    /// That node's process.
    pub incarnation: u64,
    /// The request there; 0 for a command that nobody waits for.
    pub token: u64,
}

/// A decoded entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The group's clock when the leader proposed it, in milliseconds.
    pub stamp_ms: u64,
    /// The commands in their order.
    pub commands: Vec<(Origin, Bytes)>,
}

/// Bytes that `command` will take in an envelope.
pub(crate) fn command_bytes(command: &Bytes) -> usize {
    COMMAND_HEAD_BYTES + command.len()
}

/// Encodes an entry.
pub(crate) fn encode(stamp_ms: u64, commands: &[(Origin, Bytes)]) -> Bytes {
    let size: usize = commands.iter().map(|(_, command)| command_bytes(command)).sum();
    let mut out = BytesMut::with_capacity(HEAD_BYTES + size);
    out.put_u8(VERSION);
    out.put_u64_le(stamp_ms);
    out.put_u32_le(commands.len() as u32);
    for (origin, command) in commands {
        out.put_u64_le(origin.node.0);
        out.put_u64_le(origin.incarnation);
        out.put_u64_le(origin.token);
        out.put_u32_le(command.len() as u32);
        out.put_slice(command);
    }
    out.freeze()
}

/// The stamp of an encoded entry, without decoding the rest; `None` for an entry of the group's own, which is either
/// empty or a configuration.
pub(crate) fn stamp_ms(data: &Bytes) -> Option<u64> {
    if is_of_the_group(data) {
        return None;
    }
    let mut head = data.get(1..9).map(Bytes::copy_from_slice)?;
    read_u64(&mut head).ok()
}

/// Whether an entry is the consensus core's own: it holds no commands and leaves the clock alone.
pub(crate) fn is_of_the_group(data: &Bytes) -> bool {
    matches!(data.first(), None | Some(&CONFIGURATION))
}

/// Decodes an entry; commands are slices of `data`. A version from the future is an error: such a replica must halt,
/// because skipping what it does not understand would make it differ from the others.
pub fn decode(mut data: Bytes) -> Result<Envelope, PeerDecodeError> {
    let version = read_u8(&mut data)?;
    if version != VERSION {
        return Err(PeerDecodeError::UnknownKind(version));
    }
    let stamp_ms = read_u64(&mut data)?;
    let count = read_u32(&mut data)? as usize;
    if count.saturating_mul(COMMAND_HEAD_BYTES) > data.len() {
        return Err(PeerDecodeError::Truncated);
    }
    let mut commands = Vec::with_capacity(count);
    for _ in 0..count {
        let origin = Origin {
            node: NodeId(read_u64(&mut data)?),
            incarnation: read_u64(&mut data)?,
            token: read_u64(&mut data)?,
        };
        let length = read_u32(&mut data)? as usize;
        commands.push((origin, read_bytes(&mut data, length)?));
    }
    if data.is_empty() { Ok(Envelope { stamp_ms, commands }) } else { Err(PeerDecodeError::Truncated) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn commands_keep_their_order_origin_and_stamp(
            stamp in any::<u64>(),
            commands in proptest::collection::vec((any::<[u64; 3]>(), any::<Vec<u8>>()), 0..8),
        ) {
            let commands: Vec<(Origin, Bytes)> = commands
                .into_iter()
                .map(|(n, bytes)| {
                    let origin = Origin { node: NodeId(n[0]), incarnation: n[1], token: n[2] };
                    (origin, Bytes::from(bytes))
                })
                .collect();
            let data = encode(stamp, &commands);
            prop_assert_eq!(stamp_ms(&data), Some(stamp));
            prop_assert_eq!(decode(data), Ok(Envelope { stamp_ms: stamp, commands }));
        }

        #[test]
        fn noise_is_refused_or_understood_and_never_a_panic(bytes in any::<Vec<u8>>()) {
            let _ = decode(bytes.into());
        }
    }

    #[test]
    fn an_empty_first_entry_has_no_stamp() {
        assert_eq!(stamp_ms(&Bytes::new()), None);
    }
}
