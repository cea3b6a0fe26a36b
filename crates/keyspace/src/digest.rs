//! The live digest: one number for the present state, the same on every replica that holds the same state.
//!
//! It is the wrapping sum of one hash for the newest version of each living key, for each lease, for each alarm, user
//! and role, for whether authentication is on and for the configuration of the group. A
//! sum does not depend on order and takes a term back by subtraction, so a write costs two hashes whatever the size
//! of the state; and history is not in it, so compaction does not change it.

use std::collections::BTreeSet;

use hadron_proto::authpb;
use prost::Message;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::auth::Switch;
use crate::lease::Lease;
use crate::mvcc::{TableChange, Version};

/// Terms of different kinds must differ even if their bytes do not.
const KIND_VERSION: u8 = 1;
const KIND_LEASE: u8 = 2;
const KIND_ALARM: u8 = 3;
const KIND_CONFIGURATION: u8 = 4;
const KIND_AUTH: u8 = 5;
const KIND_USER: u8 = 6;
const KIND_ROLE: u8 = 7;

/// The hash of a value, also stored beside its version, so that a damaged value is noticed when it is read.
pub(crate) fn of_value(value: &[u8]) -> u64 {
    xxh3_64(value)
}

/// The term of the newest version of a living key.
pub(crate) fn of_version(key: &[u8], version: &Version) -> u64 {
    let mut fixed = [0; 41];
    fixed[0] = KIND_VERSION;
    fixed[1..9].copy_from_slice(&version.main.to_le_bytes());
    fixed[9..17].copy_from_slice(&version.create.to_le_bytes());
    fixed[17..25].copy_from_slice(&version.version.to_le_bytes());
    fixed[25..33].copy_from_slice(&version.lease.to_le_bytes());
    fixed[33..41].copy_from_slice(&version.value_hash.to_le_bytes());
    if key.len() <= 87 {
        let mut joined = [0; 128];
        joined[..41].copy_from_slice(&fixed);
        joined[41..41 + key.len()].copy_from_slice(key);
        return xxh3_64(&joined[..41 + key.len()]);
    }
    let mut hasher = Xxh3::new();
    hasher.update(&fixed);
    hasher.update(key);
    hasher.digest()
}

/// The term of a lease; its keys are in the terms of their versions.
pub(crate) fn of_lease(lease: &Lease) -> u64 {
    let mut bytes = [0; 25];
    bytes[0] = KIND_LEASE;
    bytes[1..9].copy_from_slice(&lease.id.to_le_bytes());
    bytes[9..17].copy_from_slice(&lease.ttl.to_le_bytes());
    bytes[17..25].copy_from_slice(&lease.expiry_ms.to_le_bytes());
    xxh3_64(&bytes)
}

/// The term of a raised alarm.
pub(crate) fn of_alarm(member: u64, alarm: i32) -> u64 {
    let mut bytes = [0; 13];
    bytes[0] = KIND_ALARM;
    bytes[1..9].copy_from_slice(&member.to_le_bytes());
    bytes[9..13].copy_from_slice(&alarm.to_le_bytes());
    xxh3_64(&bytes)
}

/// The term of the group's configuration; none counts as nothing.
pub(crate) fn of_configuration(configuration: &[u8]) -> u64 {
    if configuration.is_empty() {
        return 0;
    }
    let mut hasher = Xxh3::new();
    hasher.update(&[KIND_CONFIGURATION]);
    hasher.update(configuration);
    hasher.digest()
}

/// The term of a user.
pub(crate) fn of_user(user: &authpb::User) -> u64 {
    of_parts(KIND_USER, &[&user.encode_to_vec()])
}

/// The term of a role.
pub(crate) fn of_role(role: &authpb::Role) -> u64 {
    of_parts(KIND_ROLE, &[&role.encode_to_vec()])
}

/// The term of what there is of authentication beside users and roles; nothing as long as nothing was changed.
pub(crate) fn of_switch(switch: &Switch) -> u64 {
    if !switch.enabled && switch.revision == 1 {
        return 0;
    }
    of_parts(KIND_AUTH, &[&[u8::from(switch.enabled)], &switch.revision.to_le_bytes(), &switch.secret])
}

/// The term of what a record of a table says; of what is gone there is none.
pub(crate) fn of_table(change: &TableChange) -> u64 {
    match change {
        TableChange::Lease { id, ttl, expiry_ms } => {
            of_lease(&Lease { id: *id, ttl: *ttl, expiry_ms: *expiry_ms, keys: BTreeSet::new() })
        }
        TableChange::Alarm { member, alarm } => of_alarm(*member, *alarm),
        TableChange::Configuration { configuration } => of_configuration(configuration),
        TableChange::Auth { switch } => of_switch(switch),
        TableChange::User { user } => of_user(user),
        TableChange::Role { role } => of_role(role),
        TableChange::NoLease { .. }
        | TableChange::NoAlarm { .. }
        | TableChange::NoUser { .. }
        | TableChange::NoRole { .. } => 0,
    }
}

fn of_parts(kind: u8, parts: &[&[u8]]) -> u64 {
    let mut hasher = Xxh3::new();
    hasher.update(&[kind]);
    parts.iter().for_each(|part| hasher.update(part));
    hasher.digest()
}
