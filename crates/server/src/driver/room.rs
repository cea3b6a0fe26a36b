//! Whether the disk has room for a snapshot. It is received beside the present state, and a node whose disk is full must stop, with all
//! its groups; so one that does not fit is refused, and the node goes on with what it has.

use std::path::Path;

use crate::process;

/// What stays free for all else that the node writes: the engine's journals and what it merges, and the log's next segment.
const RESERVE_BYTES: u64 = (256 << 20) + (64 << 20);
/// A small disk need not have more free than this part of it.
const RESERVE_PART: u64 = 20;
/// So much may be left free at least before a snapshot comes, however small it is. Most small ones are of groups without which nothing goes on.
const SMALL_BYTES: u64 = 16 << 20;
/// What it takes to delete a record, about: until it is merged, a deletion is a record too.
const DELETION_BYTES: u64 = 32;

/// Bytes that are used on the disk, and bytes there are; `None` where the system does not tell.
type DiskBytes = dyn Fn() -> Option<(u64, u64)> + Send + Sync;

/// The disk that the engine is on.
pub(super) struct Room {
    place: String,
    disk_bytes: Box<DiskBytes>,
}

impl Room {
    /// Of the disk that this directory is on.
    pub(super) fn at(data_dir: &Path) -> Room {
        let (place, data_dir) = (data_dir.display().to_string(), data_dir.to_owned());
        Room { place, disk_bytes: Box::new(move || process::disk_bytes(&data_dir)) }
    }

    #[cfg(test)]
    pub(super) fn with(disk_bytes: impl Fn() -> Option<(u64, u64)> + Send + Sync + 'static) -> Room {
        Room { place: "the disk".into(), disk_bytes: Box::new(disk_bytes) }
    }

    /// Whether more may come. The records that came already may have to be deleted, which must not fill the disk.
    pub(super) fn check_more(&self, records: u64) -> Result<(), String> {
        self.require(records.saturating_mul(DELETION_BYTES), u64::MAX)
    }

    /// Whether a state of about so many bytes may come. If not, what is lacking and what to do.
    pub(super) fn check(&self, bytes: u64) -> Result<(), String> {
        self.require(bytes, bytes.saturating_add(SMALL_BYTES))
    }

    fn require(&self, bytes: u64, reserve_max: u64) -> Result<(), String> {
        let lack = (self.disk_bytes)().and_then(|disk| lack(disk, bytes, reserve_max));
        lack.map_or(Ok(()), |Lack { free, needed }| {
            Err(format!(
                "a snapshot is received beside the present state: {} has {free} bytes free and needs {needed}; make room on that disk, or \
                 move keyspaces to other nodes",
                self.place
            ))
        })
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Lack {
    free: u64,
    needed: u64,
}

/// What a disk with so many bytes used of so many lacks to take `bytes` more and still have its reserve, or as much of it as is asked for.
fn lack((used, all): (u64, u64), bytes: u64, reserve_max: u64) -> Option<Lack> {
    let free = all.saturating_sub(used);
    let needed = bytes.saturating_add(RESERVE_BYTES.min(all / RESERVE_PART).min(reserve_max));
    (free < needed).then_some(Lack { free, needed })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn a_snapshot_leaves_a_reserve_which_is_small_on_a_small_disk() {
        let lack = |disk, bytes| lack(disk, bytes, u64::MAX);
        assert_eq!(lack((90 * GIB, 100 * GIB), 9 * GIB), None);
        let needed = 10 * GIB + 320 * MIB;
        assert_eq!(lack((90 * GIB, 100 * GIB), 10 * GIB), Some(Lack { free: 10 * GIB, needed }));
        assert_eq!(lack((100 * GIB - 320 * MIB, 100 * GIB), 0), None);
        assert_eq!(
            lack((100 * GIB - 319 * MIB, 100 * GIB), 0),
            Some(Lack { free: 319 * MIB, needed: 320 * MIB })
        );
        assert_eq!(lack((950 * MIB, 1000 * MIB), 0), None);
        assert_eq!(lack((951 * MIB, 1000 * MIB), 0), Some(Lack { free: 49 * MIB, needed: 50 * MIB }));
        assert_eq!(lack((0, 100 * GIB), u64::MAX), Some(Lack { free: 100 * GIB, needed: u64::MAX }));
    }

    #[test]
    fn what_is_small_needs_little() {
        let room = Room::with(|| Some((100 * GIB - 40 * MIB, 100 * GIB)));
        assert_eq!(room.check(MIB), Ok(()));
        assert!(room.check(20 * MIB).is_err());
        assert!(room.check_more(1).is_err(), "it has turned out to be large");
    }

    #[test]
    fn a_disk_that_tells_nothing_has_room_and_what_is_lacking_is_said() {
        assert_eq!(Room::with(|| None).check(u64::MAX), Ok(()));
        let room = Room::with(|| Some((99 * GIB, 100 * GIB)));
        assert_eq!(room.check_more(1000), Ok(()));
        let reason = room.check_more(30_000_000).unwrap_err();
        assert!(reason.contains("the disk has 1073741824 bytes free and needs 1295544320"), "{reason}");
    }
}
