//! The keyspace: the state behind its lock, the engine below, the watchers beside.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use hadron_proto::etcdserverpb as pb;
use hadron_storage::engine::{Engine, Read, Space};
use parking_lot::RwLock;

use crate::apply::list_alarms;
use crate::auth::ShownAuth;
use crate::error::{Error, OpenError};
use crate::mvcc::{Pins, TableChange, ValueCache};
use crate::range::header;
use crate::read::Values;
use crate::record::{self, RecordError, StateRecord};
use crate::state::{Applied, Ended, Flushed, State, name_of};
use crate::sweep::{Dropped, Former};
use crate::watch::{Hub, WatcherCounts};

/// What may be chosen when a keyspace is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Values that are on disk and kept in memory all the same, those of other keyspaces of the same engine among them.
    pub cache: ValueCache,
    /// Bytes of events that wait for one slow client, before its watchers fall back to reading history.
    pub watch_buffer_bytes: usize,
    /// A response to a watcher that wants fragments is split above this size. etcd's default: a request of 1.5 MiB and
    /// 512 KiB of overhead.
    pub fragment_bytes: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            cache: ValueCache::new(64 << 20),
            watch_buffer_bytes: 4 << 20,
            fragment_bytes: (1536 << 10) + (512 << 10),
        }
    }
}

/// The state of one logical etcd: see the crate's documentation.
///
/// One thread applies, flushes and sweeps; any number read and watch.
pub struct Keyspace {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) group: u64,
    pub(crate) options: Options,
    pub(crate) state: RwLock<State>,
    pub(crate) pins: Arc<Pins>,
    /// Of those who only need to hear what is deleted.
    pub(crate) tombstone_pins: Arc<Pins>,
    pub(crate) hub: Arc<Hub>,
    /// What the state says about authentication, for those who ask with every request.
    pub(crate) shown_auth: ShownAuth,
    /// Records of former generations that are still to be deleted.
    pub(crate) former: Arc<Former>,
    /// The highest generation that was begun before this was opened: whatever is in those but the present one is swept.
    begun_before: u32,
    was_current: AtomicBool,
    /// Something that is stored could not be read since somebody asked for that.
    is_suspect: AtomicBool,
}

impl std::fmt::Debug for Keyspace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyspace").field("group", &self.group).finish_non_exhaustive()
    }
}

impl Keyspace {
    /// Opens the state of `group` as its last flush left it; an empty state if there was none. Reads the metadata of
    /// every version and no values.
    ///
    /// # Errors
    /// [`OpenError::Damaged`] if what was read does not have the digest that was stored with it.
    pub fn open(engine: Arc<dyn Engine>, group: u64, options: Options) -> Result<Arc<Keyspace>, OpenError> {
        let state = load(engine.as_ref(), group)?;
        let highest = highest_generation(engine.as_ref(), group)?.unwrap_or(0);
        let dropped = Dropped::all_but(engine.as_ref(), group, state.generation, highest)?;
        Ok(Arc::new(Keyspace {
            group,
            pins: Arc::default(),
            tombstone_pins: Arc::default(),
            hub: Arc::new(Hub::new(state.revision, options.watch_buffer_bytes)),
            former: Former::new(dropped),
            begun_before: highest.max(state.generation),
            shown_auth: ShownAuth::of(&state),
            was_current: AtomicBool::new(false),
            is_suspect: AtomicBool::new(false),
            state: RwLock::new(state),
            engine,
            options,
        }))
    }

    /// Whether a read found since the last time that something of what is stored cannot be read: a scrub tells whether that is damage.
    pub fn take_suspicion(&self) -> bool {
        self.is_suspect.load(Ordering::Relaxed) && self.is_suspect.swap(false, Ordering::Relaxed)
    }

    /// Notes what became of a read.
    pub(crate) fn note_read<T>(&self, read: Result<T, Error>) -> Result<T, Error> {
        if matches!(read, Err(Error::Storage(_))) {
            self.is_suspect.store(true, Ordering::Relaxed);
        }
        read
    }

    /// Says that it has applied all that was committed at some time since it was opened.
    pub fn note_current(&self) {
        if !self.was_current() {
            self.was_current.store(true, Ordering::Relaxed);
        }
    }

    /// Whether [`Keyspace::note_current`] was called. Before that it may be as old as the last flush of a process that was killed, or empty.
    pub fn was_current(&self) -> bool {
        self.was_current.load(Ordering::Relaxed)
    }

    /// Switches to the state that an [`crate::Importer`] loaded and finished. Watchers go on from the revision they are
    /// at, or learn that it is compacted; reads that are under way start again. Nothing may be on its way to the engine.
    /// Returns the state that was in use: to drop a large one takes long.
    pub fn switch(&self, loaded: Loaded) -> Loaded {
        let Loaded(mut loaded) = loaded;
        let (revision, generation) = (loaded.revision, loaded.generation);
        let mut state = self.state.write();
        std::mem::swap(&mut *state, &mut *loaded);
        self.show_auth(&state);
        drop(state);
        // What is older was to be deleted before; what is younger may be in the hands of an import.
        self.former.add(Dropped::generations(self.group, (loaded.generation, generation)));
        self.hub.restart(revision);
        Loaded(loaded)
    }

    /// Whether [`Keyspace::switch`] may be asked for what [`crate::Importer::generation`] names. An import that began for a former replica, before
    /// this keyspace was opened, may be swept already.
    pub fn may_switch_to(&self, generation: u32) -> bool {
        generation > self.begun_before
    }

    /// The last entry that was applied wholly.
    pub fn applied(&self) -> Applied {
        self.state.read().ended.applied
    }

    /// Who belongs to the group, as the last [`Keyspace::apply_configuration`] said; empty if there was none.
    pub fn configuration(&self) -> Bytes {
        self.state.read().configuration.clone()
    }

    /// The newest revision; 1 when nothing was ever written.
    pub fn revision(&self) -> i64 {
        self.state.read().revision
    }

    /// Reads below this revision are refused; -1 when nothing was ever compacted.
    pub fn compact_revision(&self) -> i64 {
        self.state.read().compact_revision
    }

    /// How many keys live.
    pub fn len(&self) -> usize {
        self.state.read().index.live()
    }

    /// True if no key lives.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many versions of its keys are kept.
    pub fn versions(&self) -> u64 {
        self.state.read().index.versions()
    }

    /// Bytes of all versions that are kept (keys, values and metadata), and of leases, users and roles, about.
    pub fn db_bytes(&self) -> u64 {
        let state = self.state.read();
        state.index.bytes() + state.leases.bytes() + state.auth.bytes()
    }

    /// The digest of the live state at the end of [`Keyspace::applied`]: the same on all replicas that applied the same entries.
    pub fn digest(&self) -> u64 {
        self.state.read().ended.digest
    }

    /// The digest at the [`crate::Command::DigestMark`] of this index, if it is one of the last and was applied since
    /// the keyspace was opened.
    pub fn digest_at(&self, index: u64) -> Option<u64> {
        self.state.read().marks.iter().find(|mark| mark.0 == index).map(|mark| mark.1)
    }

    /// Index and digest of the last mark.
    pub fn last_mark(&self) -> Option<(u64, u64)> {
        self.state.read().marks.back().copied()
    }

    /// The alarms that are raised, ordered by member.
    pub fn alarms(&self) -> Vec<pb::AlarmMember> {
        list_alarms(&self.state.read(), pb::AlarmType::None as i32)
    }

    /// The ids of all leases, those that end first first.
    pub fn leases(&self) -> Vec<i64> {
        self.state.read().leases.by_expiry().map(|(_, id)| id).collect()
    }

    /// What remains of a lease at `clock_ms` of the group's clock, in whole seconds, with its keys in order if asked for: to copy many takes long. A
    /// lease that does not exist has -1, as in etcd.
    pub fn lease_time_to_live(&self, id: i64, keys: bool, clock_ms: u64) -> pb::LeaseTimeToLiveResponse {
        let state = self.state.read();
        let header = header(state.revision);
        let Some(lease) = state.leases.get(id) else {
            return pb::LeaseTimeToLiveResponse { header, id, ttl: -1, ..Default::default() };
        };
        let remaining_ms = lease.expiry_ms.saturating_sub(clock_ms);
        pb::LeaseTimeToLiveResponse {
            header,
            id,
            ttl: i64::try_from(remaining_ms / 1000).unwrap_or(i64::MAX),
            granted_ttl: lease.ttl,
            keys: if keys { state.keys_of(lease) } else { Vec::new() },
        }
    }

    /// Up to `limit` leases whose time is over at `clock_ms`, those that ended first first. They exist until a
    /// [`crate::Command::LeaseExpire`] is applied.
    pub fn expired_leases(&self, clock_ms: u64, limit: usize) -> Vec<i64> {
        let state = self.state.read();
        let expired = state.leases.by_expiry().take_while(|(expiry_ms, _)| *expiry_ms <= clock_ms);
        expired.map(|(_, id)| id).take(limit).collect()
    }

    /// When the next lease ends, on the group's clock in milliseconds.
    pub fn next_expiry(&self) -> Option<u64> {
        self.state.read().leases.by_expiry().next().map(|(expiry_ms, _)| expiry_ms)
    }

    /// How many watchers there are, and how many of them lag.
    pub fn watcher_counts(&self) -> WatcherCounts {
        self.hub.population()
    }

    /// Bytes that were applied and are not in the engine yet, about; what back-pressure goes by.
    pub fn unflushed_bytes(&self) -> usize {
        let unflushed = &self.state.read().unflushed;
        unflushed.bytes + unflushed.open_bytes
    }

    /// The engine holds the state up to this index, visible but perhaps not durable.
    pub fn flushed_index(&self) -> u64 {
        self.state.read().flushed.index
    }

    /// The last compaction that the engine knows of; 0 before the first.
    pub fn flushed_compact_revision(&self) -> i64 {
        self.state.read().flushed.compact_revision
    }

    pub(crate) fn values(&self, generation: u32) -> Values<'_> {
        Values { engine: self.engine.as_ref(), cache: &self.options.cache, group: self.group, generation }
    }
}

/// A state that was read from the engine, or was in use until another was switched to.
pub struct Loaded(Box<State>);

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Loaded").field(&self.0.applied).finish()
    }
}

impl Loaded {
    /// What the engine holds of a group's generation, which must have the digest that is stored with it.
    pub(crate) fn new(view: &dyn Read, group: u64, stored: &StateRecord) -> Result<Loaded, OpenError> {
        Ok(Loaded(Box::new(load_generation(view, group, stored)?)))
    }
}

/// Loads the state of a group.
pub(crate) fn load(engine: &dyn Engine, group: u64) -> Result<State, OpenError> {
    let view = engine.snapshot();
    match StateRecord::stored(view.as_ref(), group)? {
        Some(stored) => load_generation(view.as_ref(), group, &stored),
        None => Ok(State::new(first_generation(view.as_ref(), group)?)),
    }
}

fn load_generation(view: &dyn Read, group: u64, stored: &StateRecord) -> Result<State, OpenError> {
    let mut state = State::new(stored.generation);
    state.applied = stored.applied;
    state.revision = stored.revision;
    state.compact_revision = stored.compact_revision;
    state.flushed = Flushed {
        index: stored.applied.index,
        revision: stored.revision,
        compact_revision: stored.compact_revision,
    };
    load_tables(view, group, &mut state)?;
    load_versions(view, group, &mut state)?;
    state.digest = state.recompute_digest();
    if state.digest != stored.digest {
        let what = format!(
            "digest {:016x} at index {}, stored {:016x}",
            state.digest, stored.applied.index, stored.digest
        );
        return Err(OpenError::Damaged { group, what });
    }
    state.ended = Ended { applied: state.applied, digest: state.digest };
    Ok(state)
}

/// A state that was never flushed begins in a generation that no import ever wrote to.
pub(crate) fn first_generation(view: &dyn Read, group: u64) -> Result<u32, OpenError> {
    Ok(highest_generation(view, group)?.map_or(0, |highest| highest + 1))
}

/// The highest generation that an import of this group ever began.
pub(crate) fn highest_generation(view: &dyn Read, group: u64) -> Result<Option<u32>, OpenError> {
    let Some(bytes) = view.get(Space::State, &record::generations_key(group))? else { return Ok(None) };
    let bytes: [u8; 4] = bytes.as_ref().try_into().map_err(|_| OpenError::Damaged {
        group,
        what: "the record of generations has no known shape".into(),
    })?;
    Ok(Some(u32::from_be_bytes(bytes)))
}

fn load_tables(view: &dyn Read, group: u64, state: &mut State) -> Result<(), OpenError> {
    let (from, to) = record::generation_bounds(group, state.generation, state.generation + 1);
    let mut wrong = None;
    view.scan(Space::Tables, &from, &to, &mut |key, value| {
        match record::decode_table(key, value) {
            Ok(TableChange::Lease { id, ttl, expiry_ms }) => {
                state.leases.set(id, ttl, expiry_ms);
            }
            Ok(TableChange::Alarm { member, alarm }) => {
                state.alarms.raise(member, alarm);
            }
            Ok(TableChange::Configuration { configuration }) => state.configuration = configuration,
            Ok(TableChange::Auth { switch }) => state.auth.switch = switch,
            Ok(TableChange::User { user }) => {
                state.auth.users.insert(name_of(&user.name), user);
            }
            Ok(TableChange::Role { role }) => {
                state.auth.roles.insert(name_of(&role.name), role);
            }
            Ok(_) => wrong = Some(RecordError::Malformed),
            Err(error) => wrong = Some(error),
        }
        go_on_unless(wrong)
    })?;
    refuse(wrong, group, "a lease, an alarm, the configuration, a user or a role")
}

fn load_versions(view: &dyn Read, group: u64, state: &mut State) -> Result<(), OpenError> {
    let (from, to) = record::generation_bounds(group, state.generation, state.generation + 1);
    let mut wrong = None;
    view.scan(Space::Versions, &from, &to, &mut |key, value| {
        match record::decode_version(key, value) {
            Ok((version, key)) if version.main <= state.revision => {
                state.index.push(key, version);
            }
            Ok(_) => wrong = Some(RecordError::Malformed),
            Err(error) => wrong = Some(error),
        }
        go_on_unless(wrong)
    })?;
    let State { index, leases, .. } = state;
    for (key, version) in index.living().filter(|(_, version)| version.lease != 0) {
        leases.attach(version.lease, key);
    }
    refuse(wrong, group, "a version")
}

fn go_on_unless(wrong: Option<RecordError>) -> ControlFlow<()> {
    if wrong.is_none() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
}

/// What is newer than this version must not look like damage, which is thrown away.
fn refuse(wrong: Option<RecordError>, group: u64, what: &str) -> Result<(), OpenError> {
    wrong.map_or(Ok(()), |error| Err(error.into_open_error(group, what)))
}

/// The newest state of each table's record, in the order of keys.
pub(crate) type TableState = BTreeMap<Bytes, Option<Bytes>>;
