//! Scrub: what the engine holds of a keyspace is read again, before somebody needs it, and compared with what is in memory, which replicas compare
//! among themselves.
//!
//! First tables and versions, as they were flushed when the scrub began. Each version must be in memory as it is on disk, or be swept there,
//! and none may be missing; and those that lived at the last entry then must have, with the tables, the digest that
//! was flushed with it. Then the values, each with the hash in its version. Tables change, and are read in one go; every slice of
//! versions or values has a view of its own, so that none is open for long ([`hadron_storage::engine::Engine::snapshot`]): versions do not change, and
//! those that lived then are pinned. The checksums of the engine are looked at in passing.
//!
//! A version that only readers of the past see may go unmissed if others are swept meanwhile. A value that belongs to no version is of no concern.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use hadron_storage::engine::{EngineError, Read, Space};
use parking_lot::RwLockReadGuard;

use crate::digest;
use crate::error::OpenError;
use crate::keyspace::{Keyspace, highest_generation};
use crate::mvcc::{Pin, Version};
use crate::owner::Owner;
use crate::record::{self, StateRecord};
use crate::state::State;

/// Versions looked up in memory at once: writers wait meanwhile.
const LOOKED_UP_AT_ONCE: usize = 16;

/// Why a scrub did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum ScrubError {
    /// What is stored cannot be read, or is not what it should be ([`OpenError::is_damage`]).
    #[error(transparent)]
    Stored(#[from] OpenError),
    /// The state was replaced by a snapshot, or is gone: there is nothing left to compare.
    #[error("the state was replaced meanwhile")]
    Replaced,
}

impl From<EngineError> for ScrubError {
    fn from(error: EngineError) -> ScrubError {
        ScrubError::Stored(error.into())
    }
}

/// A scrub of one keyspace, from slice to slice.
pub struct Scrub {
    keyspace: Arc<Keyspace>,
    generation: u32,
    phase: Phase,
    /// The record at which the next slice begins.
    from: Bytes,
    /// Bytes that were read and that no step has told of.
    untold: usize,
}

enum Phase {
    Versions(Flushed),
    Values,
    Ended,
}

/// What was flushed when the scrub began.
struct Flushed {
    state: StateRecord,
    /// The digest of what was found so far.
    digest: u64,
    /// How many versions of those that memory had when the scrub began were found so far.
    found: u64,
    before: Before,
}

/// What memory had right before, of what was flushed.
struct Before {
    generation: u32,
    index: u64,
    revision: i64,
    compact_revision: i64,
    versions: u64,
    swept: u64,
    /// What lived at the last entry then and is not in memory any more would look like what did not live.
    _pin: Pin,
}

/// A part of a space, in the order of keys.
struct Slice {
    versions: Vec<(Version, Bytes)>,
    /// Where the next one begins; `None` at the end.
    next: Option<Bytes>,
    bytes: usize,
}

impl std::fmt::Debug for Scrub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scrub").field("keyspace", &self.keyspace).finish_non_exhaustive()
    }
}

impl Scrub {
    /// Begins with what the engine holds of `keyspace` now, and reads its tables; `None` if nothing was ever flushed.
    ///
    /// # Errors
    /// As [`Scrub::step`].
    pub fn begin(keyspace: Arc<Keyspace>) -> Result<Option<Scrub>, ScrubError> {
        let (group, before) = (keyspace.group, Before::of(&keyspace));
        let (generation, flushed) = (before.generation, before.index);
        let view = keyspace.engine.snapshot();
        let Some(state) = StateRecord::stored(view.as_ref(), group)? else {
            return if flushed == 0 { Ok(None) } else { Err(damaged(group, "there is no state record")) };
        };
        if state.generation != generation {
            return Err(ScrubError::Replaced);
        }
        if state.applied.index < flushed {
            let found = state.applied.index;
            return Err(damaged(group, format!("the state is of index {found}, {flushed} was flushed")));
        }
        let is_other = (state.revision, state.compact_revision) != (before.revision, before.compact_revision);
        if state.applied.index == flushed && is_other {
            return Err(damaged(group, "the state record is not the one that was flushed"));
        }
        // A restart needs these.
        Owner::of(keyspace.engine.as_ref(), group)?;
        highest_generation(view.as_ref(), group)?;
        let (digest, untold) = read_tables(view.as_ref(), group, generation)?;
        drop(view);
        let phase = Phase::Versions(Flushed { state, digest, found: 0, before });
        let mut scrub = Scrub { keyspace, generation, phase, from: Bytes::new(), untold };
        scrub.from = scrub.first();
        Ok(Some(scrub))
    }

    /// Reads the next slice, of about `max_bytes`, and returns how much it was, with what [`Scrub::begin`] read; `None` at the end: all
    /// is as it should be.
    ///
    /// # Errors
    /// Something is not; or the engine failed, or the state was replaced. The scrub has ended then.
    pub fn step(&mut self, max_bytes: usize) -> Result<Option<usize>, ScrubError> {
        // An error ends it.
        let phase = std::mem::replace(&mut self.phase, Phase::Ended);
        let bytes = match phase {
            Phase::Versions(flushed) => self.compare_versions(flushed, max_bytes)?,
            Phase::Values => self.check_values(max_bytes)?,
            Phase::Ended => return Ok(None),
        };
        Ok(Some(bytes + std::mem::take(&mut self.untold)))
    }

    /// A view of the engine's present, as long as that is what the scrub began with and what was flushed since.
    fn view(&self) -> Result<(Box<dyn Read>, StateRecord), ScrubError> {
        let view = self.keyspace.engine.snapshot();
        let state = StateRecord::of_generation(view.as_ref(), self.keyspace.group, self.generation)?;
        Ok((view, state.ok_or(ScrubError::Replaced)?))
    }

    /// Where the next phase begins.
    fn first(&self) -> Bytes {
        record::prefix(self.keyspace.group, self.generation).freeze()
    }

    fn compare_versions(&mut self, mut flushed: Flushed, max_bytes: usize) -> Result<usize, ScrubError> {
        let (keyspace, group) = (&self.keyspace, self.keyspace.group);
        // What was flushed later is of later revisions.
        let revision = flushed.state.revision;
        let to = record::version_key(group, self.generation, (revision + 1, 0));
        let slice = Slice::read(&*self.view()?.0, group, (&self.from, &to), revision, |_| 0, max_bytes)?;
        for versions in slice.versions.chunks(LOOKED_UP_AT_ONCE) {
            let state = keyspace.in_generation(self.generation)?;
            for (version, key) in versions {
                flushed.compare(&state, key, version).map_err(|what| damaged(group, what))?;
            }
        }
        (self.from, self.phase) = match slice.next {
            Some(next) => (next, Phase::Versions(flushed)),
            None => {
                let swept = keyspace.in_generation(self.generation)?.index.swept();
                flushed.compare_whole(swept).map_err(|what| damaged(group, what))?;
                (self.first(), Phase::Values)
            }
        };
        Ok(slice.bytes)
    }

    fn check_values(&mut self, max_bytes: usize) -> Result<usize, ScrubError> {
        let group = self.keyspace.group;
        let (view, state) = self.view()?;
        let value_len = |version: &Version| version.value_len as usize;
        let (_, end) = record::generation_bounds(group, self.generation, self.generation + 1);
        let slice =
            Slice::read(view.as_ref(), group, (&self.from, &end), state.revision, value_len, max_bytes)?;
        let to = slice.next.as_ref().unwrap_or(&end);
        let versions = slice.versions.iter().map(|(version, _)| version);
        let mut expected = versions.filter(|version| version.value_len > 0).peekable();
        view.scan(Space::Values, &self.from, to, &mut |key, value| {
            let place = record::place_of(key);
            let found = expected.next_if(|version| {
                Some(version.place()) == place && digest::of_value(value) == version.value_hash
            });
            match (found, expected.peek()) {
                (Some(_), _) => ControlFlow::Continue(()),
                (None, Some(next)) if place < Some(next.place()) => ControlFlow::Continue(()),
                (None, _) => ControlFlow::Break(()),
            }
        })?;
        if let Some((main, sub)) = expected.next().map(Version::place) {
            let what = format!("the value of revision {main}.{sub} is missing or not what was written");
            return Err(damaged(group, what));
        }
        if let Some(next) = slice.next {
            (self.from, self.phase) = (next, Phase::Values);
        }
        Ok(slice.bytes)
    }
}

impl Flushed {
    /// Compares a version on disk with that in memory, if it is still there.
    ///
    /// # Errors
    /// What is wrong with it.
    fn compare(&mut self, state: &State, key: &[u8], version: &Version) -> Result<(), String> {
        let (main, sub) = version.place();
        match state.index.find(key, version.place()) {
            Some((known, next)) if known == version => {
                self.found += u64::from(main <= self.before.revision);
                let lived =
                    !version.is_tombstone() && next.is_none_or(|next| next.main > self.state.revision);
                if lived {
                    self.digest = self.digest.wrapping_add(digest::of_version(key, version));
                }
                Ok(())
            }
            // Swept since the scrub began, or being swept: something later that was flushed too took its place.
            None if main <= state.flushed.compact_revision => Ok(()),
            _ => Err(format!("the version of revision {main}.{sub} is not the one that was written")),
        }
    }

    /// When all were compared; `swept` is what memory lost ever.
    fn compare_whole(&self, swept: u64) -> Result<(), String> {
        let (found, stored, index) = (self.digest, self.state.digest, self.state.applied.index);
        if found != stored {
            return Err(format!("digest {found:016x} at index {index}, stored {stored:016x}"));
        }
        let gone = swept - self.before.swept;
        match self.before.versions.saturating_sub(self.found + gone) {
            0 => Ok(()),
            missing => Err(format!("versions that are missing: {missing}")),
        }
    }
}

impl Slice {
    /// Versions between two places, until they and what `extra` says of each are about `max_bytes`; at least one. None is of a later revision.
    fn read(
        view: &dyn Read,
        group: u64,
        (from, to): (&[u8], &[u8]),
        revision: i64,
        extra: impl Fn(&Version) -> usize,
        max_bytes: usize,
    ) -> Result<Slice, ScrubError> {
        let mut slice = Slice { versions: Vec::new(), next: None, bytes: 0 };
        let mut is_damaged = false;
        view.scan(Space::Versions, from, to, &mut |key, value| {
            if slice.bytes >= max_bytes.max(1) {
                slice.next = Some(Bytes::copy_from_slice(key));
                return ControlFlow::Break(());
            }
            // Memory has all of it: what is of a newer version now is not what was written.
            let decoded = record::decode_version(key, value).ok();
            let Some((version, name)) = decoded.filter(|(version, _)| version.main <= revision) else {
                is_damaged = true;
                return ControlFlow::Break(());
            };
            slice.bytes += key.len() + value.len() + extra(&version);
            slice.versions.push((version, Bytes::copy_from_slice(name)));
            ControlFlow::Continue(())
        })?;
        if is_damaged { Err(damaged(group, "a version has no known shape")) } else { Ok(slice) }
    }
}

/// The digest of what one view has of tables, and how many bytes that is.
fn read_tables(view: &dyn Read, group: u64, generation: u32) -> Result<(u64, usize), ScrubError> {
    let (from, to) = record::generation_bounds(group, generation, generation + 1);
    let (mut digest, mut bytes, mut is_damaged) = (0_u64, 0, false);
    view.scan(Space::Tables, &from, &to, &mut |key, value| {
        bytes += key.len() + value.len();
        match record::decode_table(key, value) {
            Ok(change) => digest = digest.wrapping_add(digest::of_table(&change)),
            Err(_) => is_damaged = true,
        }
        ControlFlow::Continue(())
    })?;
    if is_damaged {
        return Err(damaged(group, "a record of a table has no known shape"));
    }
    Ok((digest, bytes))
}

impl Before {
    /// Holds sweeps off what lived when the last flush was made.
    fn of(keyspace: &Keyspace) -> Before {
        let state = keyspace.state.read();
        Before {
            generation: state.generation,
            index: state.flushed.index,
            revision: state.flushed.revision,
            compact_revision: state.flushed.compact_revision,
            versions: state.index.versions().saturating_sub(state.unflushed.records.len() as u64),
            swept: state.index.swept(),
            _pin: keyspace.pins.pin(state.generation, state.flushed.revision),
        }
    }
}

impl Keyspace {
    /// The state, as long as it was not replaced.
    fn in_generation(&self, generation: u32) -> Result<RwLockReadGuard<'_, State>, ScrubError> {
        let state = self.state.read();
        if state.generation == generation { Ok(state) } else { Err(ScrubError::Replaced) }
    }
}

fn damaged(group: u64, what: impl Into<String>) -> ScrubError {
    OpenError::Damaged { group, what: what.into() }.into()
}
