//! What a backup holds: everything that clients can see at one moment, in etcd's terms.

use hadron_proto::authpb;
use hadron_proto::etcdserverpb as pb;

use crate::error::Error;
use crate::kept::{Kept, is_newest_at};
use crate::keyspace::Keyspace;
use crate::mvcc::Record;
use crate::state::{Applied, State};

/// A lease in a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupLease {
    /// Its id.
    pub id: i64,
    /// Seconds that it was granted for.
    pub ttl: i64,
    /// Seconds that were left, at least one: none ends because the backup is old.
    pub remaining: i64,
}

/// A keyspace as it was when the backup began. As long as it lives nothing of it is swept.
pub struct Backup {
    /// The newest revision.
    pub revision: i64,
    /// Reads below it are refused; -1 if nothing was compacted.
    pub compact_revision: i64,
    /// The last entry of the log in it.
    pub applied: Applied,
    /// By id.
    pub leases: Vec<BackupLease>,
    /// The alarms that were raised.
    pub alarms: Vec<pb::AlarmMember>,
    /// Whether authentication was on, and the auth revision.
    pub auth: crate::auth::AuthStatus,
    /// By name.
    pub users: Vec<authpb::User>,
    /// By name.
    pub roles: Vec<authpb::Role>,
    kept: Kept,
}

impl Keyspace {
    /// Fixes what a backup holds; `clock_ms` is the group's clock, from which remaining times are counted.
    pub fn backup(&self, clock_ms: u64) -> Backup {
        let state = self.state.read();
        let lease = |lease: &crate::lease::Lease| BackupLease {
            id: lease.id,
            ttl: lease.ttl,
            remaining: (lease.expiry_ms.saturating_sub(clock_ms) / 1000)
                .max(1)
                .try_into()
                .unwrap_or(i64::MAX),
        };
        let switch = &state.auth.switch;
        Backup {
            revision: state.revision,
            compact_revision: state.compact_revision,
            applied: state.ended.applied,
            leases: state.leases.iter().map(lease).collect(),
            alarms: crate::apply::list_alarms(&state, pb::AlarmType::None as i32),
            auth: crate::auth::AuthStatus { enabled: switch.enabled, revision: switch.revision },
            users: state.auth.users.values().cloned().collect(),
            roles: state.auth.roles.values().cloned().collect(),
            kept: Kept::new(self, &state, state.revision),
        }
    }

    /// Shows the history of a backup, in order, under the keys and with the values that etcd stores. Reads from disk.
    ///
    /// # Errors
    /// What `show` says, or that something cannot be read.
    pub fn visit_backup<E: From<Error>>(
        &self,
        backup: &Backup,
        show: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let compacted = backup.compact_revision;
        // Who watches from the compacted revision on is told what was deleted in it, as by etcd since 3.5.16.
        let counts = |state: &State, record: &Record| {
            let version = &record.version;
            let is_wanted = !version.is_tombstone() || version.main == compacted;
            version.main > compacted || is_wanted && is_newest_at(state, record, compacted)
        };
        backup.kept.visit(self, counts, show)
    }
}
