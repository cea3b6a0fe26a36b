//! Whose the engine's records of a group are.
//!
//! A node may lose its replica of a group and get another one later, under a new id. What the former one left must never be
//! taken for the new one's: the new one has promised nothing yet, and must not vote with the other's memory, nor without its own. So
//! a record beside the state names the replica, and stays as a tombstone when that is destroyed.
//!
//! Groups that exist from the start have no such record: they come and go with their node.

use std::fmt;

use std::ops::ControlFlow;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use hadron_storage::engine::{Batch, Change, Engine, EngineError, Space};

use crate::error::OpenError;
use crate::keyspace::highest_generation;
use crate::record::{self, FORMAT, RecordError, StateRecord};
use crate::sweep::Dropped;

const OWNER_LEN: usize = 1 + 1 + 8;
/// Keys deleted at once.
const SWEEP_KEYS: usize = 1_000;

/// The replica that the engine's records of a group belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// There never was one.
    Nobody,
    /// This one, which may have voted.
    Living(u64),
    /// This one, which was destroyed and must never come back.
    Destroyed(u64),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Nobody => f.write_str("no replica ever lived here"),
            Owner::Living(replica) => write!(f, "replica {replica} lives here"),
            Owner::Destroyed(replica) => write!(f, "replica {replica} was destroyed here"),
        }
    }
}

impl Owner {
    /// Who owns what `engine` has of `group`.
    ///
    /// # Errors
    /// The engine fails, or the record is damaged.
    pub fn of(engine: &dyn Engine, group: u64) -> Result<Owner, OpenError> {
        let Some(bytes) = engine.get(Space::State, &record::owner_key(group))? else {
            return Ok(Owner::Nobody);
        };
        decode(&bytes).map_err(|error| error.into_open_error(group, "the record of its replica"))
    }

    /// Gives what `engine` has of `group` to a new replica, which begins empty. Durable on return.
    ///
    /// # Errors
    /// As [`Owner::of`].
    pub fn claim(engine: &dyn Engine, group: u64, replica: u64) -> Result<(), OpenError> {
        hand_over(engine, group, Owner::Living(replica))
    }

    /// Leaves a tombstone, durable on return; what the replica had is unreachable then. [`DestroyedSweep`] deletes it.
    ///
    /// # Errors
    /// As [`Owner::of`].
    pub fn destroy(engine: &dyn Engine, group: u64, replica: u64) -> Result<(), OpenError> {
        hand_over(engine, group, Owner::Destroyed(replica))
    }
}

/// What a destroyed replica left, deleted bit by bit. It keeps its place: whoever began anew each time would read over all that was
/// deleted before, which the engine still has until it merges its tables.
#[derive(Debug)]
pub struct DestroyedSweep {
    group: u64,
    /// What is not deleted yet, the next one last; unknown before the first step.
    left: Option<Vec<Dropped>>,
    /// What cannot be read, and stays.
    damage: Option<EngineError>,
}

impl DestroyedSweep {
    /// Of what the engine has of `group`. Reads nothing yet.
    pub fn new(group: u64) -> DestroyedSweep {
        DestroyedSweep { group, left: None, damage: None }
    }

    /// Whose records these are.
    pub fn group(&self) -> u64 {
        self.group
    }

    /// Deletes up to some thousand records, from where the last call ended. False once there is nothing left, or somebody else has
    /// the group.
    ///
    /// # Errors
    /// The engine fails, or a record is damaged: then all else is deleted that can be. That ends it.
    pub fn step(&mut self, engine: &dyn Engine) -> Result<bool, OpenError> {
        let Owner::Destroyed(_) = Owner::of(engine, self.group)? else { return Ok(false) };
        let left = match &mut self.left {
            Some(left) => left,
            left => left.insert(all_generations(engine, self.group)?),
        };
        while let Some(stretch) = left.last_mut() {
            match stretch.step(engine, SWEEP_KEYS) {
                Ok(batch) if batch.is_empty() => {}
                Ok(batch) => {
                    engine.write(batch)?;
                    return Ok(true);
                }
                Err(error @ EngineError::Damaged(_)) => self.damage = Some(error),
                Err(error) => return Err(error.into()),
            }
            left.pop();
        }
        self.damage.take().map_or(Ok(false), |error| Err(error.into()))
    }
}

/// Whatever there may be of a group.
fn all_generations(engine: &dyn Engine, group: u64) -> Result<Vec<Dropped>, OpenError> {
    let Some(highest) = highest_generation(engine, group)? else { return Ok(Vec::new()) };
    Ok(Dropped::generations(group, (0, highest + 1)).into())
}

/// The groups whose replica here was destroyed, in order.
///
/// # Errors
/// The engine fails.
pub fn destroyed_groups(engine: &dyn Engine) -> Result<Vec<u64>, OpenError> {
    let mut groups = Vec::new();
    engine.scan(Space::State, &[], &record::owner_key(u64::MAX), &mut |key, value| {
        if let Some(group) = record::group_of_owner_key(key)
            && let Ok(Owner::Destroyed(_)) = decode(value)
        {
            groups.push(group);
        }
        ControlFlow::Continue(())
    })?;
    Ok(groups)
}

/// All records in one batch: a crash leaves the former owner with its state, or the new one without.
fn hand_over(engine: &dyn Engine, group: u64, owner: Owner) -> Result<(), OpenError> {
    let mut batch: Batch = vec![Change::Put(Space::State, record::owner_key(group), encode(owner))];
    if let Some(generation) = generation(engine, group)? {
        // The next generation is one after the highest.
        let highest = highest_generation(engine, group)?.unwrap_or(0).max(generation);
        let number = Bytes::copy_from_slice(&highest.to_be_bytes());
        batch.push(Change::Put(Space::State, record::generations_key(group), number));
        batch.push(Change::Delete(Space::State, record::state_key(group)));
    }
    engine.write(batch)?;
    Ok(engine.persist()?)
}

/// The generation of the state that there is. Of one that is damaged it is at most one after the highest that is known.
fn generation(engine: &dyn Engine, group: u64) -> Result<Option<u32>, OpenError> {
    match StateRecord::stored(engine, group) {
        Ok(state) => Ok(state.map(|state| state.generation)),
        Err(error) if error.is_damage() => Ok(Some(highest_generation(engine, group)?.unwrap_or(0) + 1)),
        Err(error) => Err(error),
    }
}

fn encode(owner: Owner) -> Bytes {
    let (is_destroyed, replica) = match owner {
        Owner::Nobody | Owner::Living(0) => (0, 0),
        Owner::Living(replica) => (0, replica),
        Owner::Destroyed(replica) => (1, replica),
    };
    let mut out = BytesMut::with_capacity(OWNER_LEN);
    out.put_u8(FORMAT);
    out.put_u8(is_destroyed);
    out.put_u64(replica);
    out.freeze()
}

fn decode(bytes: &[u8]) -> Result<Owner, RecordError> {
    let mut rest = record::after_format(bytes)?;
    if bytes.len() != OWNER_LEN {
        return Err(RecordError::Malformed);
    }
    match (rest.get_u8(), rest.get_u64()) {
        (0, replica) => Ok(Owner::Living(replica)),
        (1, replica) => Ok(Owner::Destroyed(replica)),
        _ => Err(RecordError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use hadron_proto::etcdserverpb as pb;
    use hadron_storage::engine::{ModelEngine, Read as _};

    use super::*;
    use crate::{Applied, Command, Keyspace, Options};

    const GROUP: u64 = 7;

    fn open(engine: &Arc<ModelEngine>) -> Arc<Keyspace> {
        Keyspace::open(engine.clone(), GROUP, Options::default()).unwrap()
    }

    fn put_and_flush(engine: &Arc<ModelEngine>, keyspace: &Arc<Keyspace>, key: &'static str) {
        let put = pb::PutRequest { key: key.into(), value: "v".into(), ..Default::default() };
        let index = keyspace.applied().index + 1;
        keyspace.apply(Applied { term: 1, index, checksum: 0, stamp_ms: 0 }, vec![Command::Put(put)]);
        let flush = keyspace.take_flush(index, 1 << 20).unwrap();
        engine.write(flush.batch()).unwrap();
        keyspace.flush_done(flush);
    }

    #[test]
    fn a_new_replica_finds_nothing_of_the_former_one() {
        let engine = Arc::new(ModelEngine::new());
        let owner = || Owner::of(engine.as_ref(), GROUP).unwrap();
        assert_eq!(owner(), Owner::Nobody);
        Owner::claim(engine.as_ref(), GROUP, 1).unwrap();
        assert_eq!(owner(), Owner::Living(1));
        put_and_flush(&engine, &open(&engine), "a");
        assert_eq!(open(&engine).len(), 1, "it is there after a restart");

        Owner::destroy(engine.as_ref(), GROUP, 1).unwrap();
        assert_eq!(owner(), Owner::Destroyed(1));
        Owner::claim(engine.as_ref(), GROUP, 4).unwrap();
        let keyspace = open(&engine);
        assert_eq!((keyspace.len(), keyspace.applied().index), (0, 0));
        put_and_flush(&engine, &keyspace, "b");
        while let Some(sweep) = keyspace.take_sweep(10) {
            engine.write(sweep.batch()).unwrap();
        }
        assert_eq!(open(&engine).len(), 1);
        assert_eq!(open(&engine).applied().index, 1);
    }

    #[test]
    fn what_a_destroyed_replica_left_is_deleted() {
        let engine = Arc::new(ModelEngine::new());
        Owner::claim(engine.as_ref(), GROUP, 1).unwrap();
        put_and_flush(&engine, &open(&engine), "a");
        let step = |sweep: &mut DestroyedSweep| sweep.step(engine.as_ref());
        assert!(!step(&mut DestroyedSweep::new(GROUP)).unwrap(), "it lives");
        assert_eq!(destroyed_groups(engine.as_ref()).unwrap(), []);
        Owner::destroy(engine.as_ref(), GROUP, 1).unwrap();
        assert_eq!(destroyed_groups(engine.as_ref()).unwrap(), [GROUP]);
        let mut sweep = DestroyedSweep::new(GROUP);
        while step(&mut sweep).unwrap() {}
        let (from, to) = record::generation_bounds(GROUP, 0, u32::MAX);
        for space in [Space::Versions, Space::Values, Space::Tables] {
            engine.scan(space, &from, &to, &mut |key, _| panic!("{space:?} still has {key:?}")).unwrap();
        }
        assert_eq!(Owner::of(engine.as_ref(), GROUP).unwrap(), Owner::Destroyed(1), "the tombstone stays");
    }

    #[test]
    fn what_a_destroyed_replica_left_goes_but_for_what_cannot_be_read() {
        let engine = Arc::new(ModelEngine::new());
        Owner::claim(engine.as_ref(), GROUP, 1).unwrap();
        put_and_flush(&engine, &open(&engine), "a");
        let (from, to) = record::generation_bounds(GROUP, 0, u32::MAX);
        let left = |space| {
            let mut left = Vec::new();
            engine
                .scan(space, &from, &to, &mut |key, _| {
                    left.push(Bytes::copy_from_slice(key));
                    ControlFlow::Continue(())
                })
                .map(|()| left)
        };
        engine.damage(Space::Values, left(Space::Values).unwrap().swap_remove(0));
        Owner::destroy(engine.as_ref(), GROUP, 1).unwrap();
        let mut sweep = DestroyedSweep::new(GROUP);
        let end =
            std::iter::repeat_with(|| sweep.step(engine.as_ref())).find(|step| !matches!(step, Ok(true)));
        assert!(end.unwrap().unwrap_err().is_damage());
        assert!(left(Space::Values).is_err());
        assert_eq!(left(Space::Versions).unwrap(), [""; 0]);
    }

    /// Whoever could not be opened could not be destroyed either, and stopped the node.
    #[test]
    fn what_is_damaged_can_be_destroyed_and_comes_back_empty() {
        let engine = Arc::new(ModelEngine::new());
        Owner::claim(engine.as_ref(), GROUP, 1).unwrap();
        put_and_flush(&engine, &open(&engine), "a");
        Owner::destroy(engine.as_ref(), GROUP, 1).unwrap();
        Owner::claim(engine.as_ref(), GROUP, 2).unwrap();
        put_and_flush(&engine, &open(&engine), "b");
        engine.damage(Space::State, record::state_key(GROUP));
        let error = Keyspace::open(engine.clone(), GROUP, Options::default()).unwrap_err();
        assert!(error.is_damage(), "{error}");
        Owner::destroy(engine.as_ref(), GROUP, 2).unwrap();
        Owner::claim(engine.as_ref(), GROUP, 3).unwrap();
        assert_eq!((open(&engine).len(), open(&engine).applied().index), (0, 0));
    }
}
