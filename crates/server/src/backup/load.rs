//! A keyspace from a file that etcd 3.4 to 3.7 or Hadron made.
//!
//! Taken over: the history with its revisions, what was compacted, leases with the time that they had left (or all of it, if the file does
//! not tell), users, roles and whether authentication is on. Not taken over: members, and alarms, which were theirs. A key on a lease that is not in
//! the file is on none.

use hadron_keyspace::auth::{AuthStatus, STORED_NAME_BYTES_MAX};
use hadron_keyspace::{BackupLease, Restore, RestoreError, Restored};
use hadron_proto::{authpb, etcdserverpb as pb};
use prost::Message;

use super::StoredLease;
use super::file::{BackupFile, FileError, ReadError};

/// etcd's auth revision before anything was changed.
const FIRST_AUTH_REVISION: u64 = 1;

/// What was taken over.
pub(crate) struct Loaded {
    /// The state.
    pub(crate) restored: Restored,
    /// Alarms in the file, which were not.
    pub(crate) alarms: Vec<pb::AlarmMember>,
}

/// Why nothing was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// The file's fault.
    #[error(transparent)]
    File(#[from] FileError),
    /// The engine's.
    #[error(transparent)]
    Restore(#[from] RestoreError),
}

/// Restores what is in `file`, with the newest revision so much higher as `bump` says.
///
/// # Errors
/// What is wrong with the file, or that the engine failed. The engine then holds something that nobody can open.
pub(crate) fn load(file: &mut BackupFile, mut restore: Restore, bump: u64) -> Result<Loaded, LoadError> {
    let result = load_tables(file, &mut restore);
    let alarms = result.map_err(|error| blame(file, error))?;
    let history = file.visit(b"key", |key, value| Ok(restore.version(key, value)?));
    match history {
        Ok(true) => {}
        Ok(false) => {
            let error = ReadError::Contents("it has no bucket `key`: this is not a file of etcd".to_owned());
            return Err(blame(file, error));
        }
        Err(error) => return Err(blame(file, error)),
    }
    let compacted = compacted(file).map_err(|error| blame(file, error))?;
    let restored = restore.finish(compacted, bump).map_err(|error| blame(file, error.into()))?;
    Ok(Loaded { restored, alarms })
}

fn blame(file: &BackupFile, error: ReadError) -> LoadError {
    match file.blame(error) {
        Ok(error) => error.into(),
        Err(error) => error.into(),
    }
}

/// Everything but the history. The alarms.
fn load_tables(file: &mut BackupFile, restore: &mut Restore) -> Result<Vec<pb::AlarmMember>, ReadError> {
    file.visit(b"lease", |_, value| {
        let StoredLease { id, ttl, remaining_ttl } = message("a lease", value)?;
        if id == 0 || ttl < 0 || remaining_ttl < 0 {
            return Err(ReadError::Contents("a lease that cannot be".to_owned()));
        }
        let remaining = if remaining_ttl == 0 { ttl } else { remaining_ttl };
        restore.lease(BackupLease { id, ttl, remaining });
        Ok(())
    })?;
    file.visit(b"authUsers", |name, value| {
        let user: authpb::User = message("a user", value)?;
        check_name(&user.name, name)?;
        restore.user(user);
        Ok(())
    })?;
    file.visit(b"authRoles", |name, value| {
        let role: authpb::Role = message("a role", value)?;
        check_name(&role.name, name)?;
        restore.role(role);
        Ok(())
    })?;
    let mut auth = AuthStatus { enabled: false, revision: FIRST_AUTH_REVISION };
    file.visit(b"auth", |name, value| {
        match (name, value) {
            (b"authEnabled", [on]) => auth.enabled = *on == 1,
            (b"authRevision", value) => {
                auth.revision = number(value)?.unsigned_abs().max(FIRST_AUTH_REVISION)
            }
            _ => {}
        }
        Ok(())
    })?;
    restore.auth(auth);
    let mut alarms = Vec::new();
    file.visit(b"alarm", |key, _| {
        alarms.push(message("an alarm", key)?);
        Ok(())
    })?;
    Ok(alarms)
}

/// The revision that was compacted last, done or only decided; 0 for none.
pub(super) fn compacted(file: &mut BackupFile) -> Result<i64, ReadError> {
    let mut compacted = 0;
    file.visit(b"meta", |name, value| {
        if matches!(name, b"scheduledCompactRev" | b"finishedCompactRev") {
            compacted = compacted.max(number(value.get(..8).unwrap_or_default())?);
        }
        Ok(())
    })?;
    Ok(compacted)
}

fn message<M: Message + Default>(what: &str, bytes: &[u8]) -> Result<M, ReadError> {
    M::decode(bytes).map_err(|error| ReadError::Contents(format!("{what} cannot be read: {error}")))
}

fn number(bytes: &[u8]) -> Result<i64, ReadError> {
    let number = bytes.try_into().map(i64::from_be_bytes);
    number.map_err(|_| ReadError::Contents("a number that is none".to_owned()))
}

fn check_name(inside: &[u8], key: &[u8]) -> Result<(), ReadError> {
    let is_name = inside == key && !key.is_empty() && std::str::from_utf8(key).is_ok();
    if !is_name {
        return Err(ReadError::Contents("a user or a role under another name".to_owned()));
    }
    match key.len() <= STORED_NAME_BYTES_MAX {
        true => Ok(()),
        false => Err(ReadError::Contents(format!("a user or a role with a name of {} bytes", key.len()))),
    }
}
