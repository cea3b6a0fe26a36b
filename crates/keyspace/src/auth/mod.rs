//! Users, roles and permissions: part of the replicated state, with etcd's rules.
//!
//! The checks are in `permission`; here is what the commands of the service `Auth` do. Passwords come hashed: hashing takes
//! long on purpose, so it happens before a command is proposed. Nothing here compares a password or knows a token.
//!
//! # Invariants
//! - Every change but switching authentication on makes a new auth revision, as in etcd. A caller who was authenticated at an older
//!   one is refused: its permissions may be others now.
//! - The roles of a user are sorted, and so are the permissions of a role by key, so that replicas hold equal bytes.
//! - While authentication is on there is a user `root` with the role `root`.

mod command;
mod permission;
mod query;

use std::collections::BTreeMap;
use std::ops::Deref;

use bytes::Bytes;
use hadron_proto::authpb;
use prost::Message;

pub use command::AuthCommand;
pub(crate) use query::ShownAuth;

/// The user who must exist for authentication to be switched on.
const ROOT_USER: &str = "root";
/// Whoever has this role may do everything.
const ROOT_ROLE: &str = "root";

/// Bytes of a new user's or role's name that is taken from a client: as many as etcd's files can hold. What is in the log already may have more,
/// see [`STORED_NAME_BYTES_MAX`].
pub const NAME_BYTES_MAX: usize = 32 << 10;
/// Bytes of a user with its roles, or of a role with its permissions, beyond which it is granted no more. Each change costs as much on every
/// replica.
pub const RECORD_BYTES_MAX: usize = 1 << 20;
/// Bytes of the longest name that the engine can store. A command with a longer one is refused by every replica; no version ever stored one, so
/// none can differ for that.
pub const STORED_NAME_BYTES_MAX: usize = crate::record::NAME_BYTES_MAX;

/// What a role of a user, or a permission of a role, occupies beside its bytes, about.
const GRANT_BYTES: usize = 80;
/// What a user or role occupies beside its name and all that it has, about.
const NAMED_BYTES: usize = 128;

/// In whose name a command is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The user.
    pub name: String,
    /// The auth revision at which the user was authenticated.
    pub auth_revision: u64,
}

/// What must hold for a caller to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need<'a> {
    /// Some user, whoever it is.
    User,
    /// A user with the role `root`.
    Root,
    /// A user who may read these keys: etcd's pair of `key` and `range_end`.
    Read(&'a Bytes, &'a Bytes),
    /// A user who may read each of these keys, which are in order.
    ReadKeys(&'a [Bytes]),
    /// A user who may write all keys of a lease.
    WriteLease(i64),
    /// A user who may read all keys of all leases.
    ReadLeases,
    /// This user or root: to see what a user is.
    SameUser(&'a str),
    /// Somebody who has this role, or root: to see what a role is.
    SameRole(&'a str),
}

/// Why access was refused, or users and roles were not changed. The texts are etcd's, without the `etcdserver: ` before them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// Authentication cannot be on without a user `root`.
    #[error("root user does not exist")]
    RootUserNotExist,
    /// Authentication cannot be on if `root` does not have the role `root`.
    #[error("root user does not have root role")]
    RootRoleNotExist,
    /// A user has this name.
    #[error("user name already exists")]
    UserAlreadyExists,
    /// No name, or a call in nobody's name.
    #[error("user name is empty")]
    UserEmpty,
    /// No such user.
    #[error("user name not found")]
    UserNotFound,
    /// A role has this name.
    #[error("role name already exists")]
    RoleAlreadyExists,
    /// No such role.
    #[error("role name not found")]
    RoleNotFound,
    /// No name.
    #[error("role name is empty")]
    RoleEmpty,
    /// A grant without a permission.
    #[error("permission not given")]
    PermissionNotGiven,
    /// The user may not do this.
    #[error("permission denied")]
    PermissionDenied,
    /// The user does not have the role that is to be taken away.
    #[error("role is not granted to the user")]
    RoleNotGranted,
    /// The role does not have the permission that is to be taken away.
    #[error("permission is not granted to the role")]
    PermissionNotGranted,
    /// What would lock everybody out, or a permission for no key.
    #[error("invalid auth management")]
    InvalidAuthManagement,
    /// A new user's or role's name has too many bytes.
    #[error("request is too large")]
    NameTooLong,
    /// A user has too many roles, or a role too many permissions, to be granted one more.
    #[error("request is too large")]
    RecordTooLarge,
    /// The caller was authenticated before users, roles or permissions changed.
    #[error("revision of auth store is old")]
    AuthOldRevision,
}

/// Users, roles and whether they matter.
#[derive(Debug)]
pub(crate) struct Auth {
    pub(crate) switch: Switch,
    pub(crate) users: Named<authpb::User>,
    pub(crate) roles: Named<authpb::Role>,
}

/// Users or roles by name, and how much they occupy.
#[derive(Debug)]
pub(crate) struct Named<R> {
    by_name: BTreeMap<String, R>,
    /// Of all of them, about.
    bytes: usize,
    bytes_of: fn(&R) -> usize,
}

impl<R> Named<R> {
    fn new(bytes_of: fn(&R) -> usize) -> Named<R> {
        Named { by_name: BTreeMap::new(), bytes: 0, bytes_of }
    }

    /// Adds one, or replaces it; what it was before.
    pub(crate) fn insert(&mut self, name: String, record: R) -> Option<R> {
        let before = self.remove(&name);
        self.bytes += self.occupied(&name, &record);
        self.by_name.insert(name, record);
        before
    }

    /// Takes one out.
    pub(crate) fn remove(&mut self, name: &str) -> Option<R> {
        let record = self.by_name.remove(name)?;
        self.bytes -= self.occupied(name, &record);
        Some(record)
    }

    fn occupied(&self, name: &str, record: &R) -> usize {
        NAMED_BYTES + name.len() + (self.bytes_of)(record)
    }
}

impl<R> Deref for Named<R> {
    type Target = BTreeMap<String, R>;

    fn deref(&self) -> &BTreeMap<String, R> {
        &self.by_name
    }
}

/// What there is of authentication beside users and roles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Switch {
    pub(crate) enabled: bool,
    /// 1 at first, as in etcd.
    pub(crate) revision: u64,
    /// What tokens are signed with: chosen at random when authentication was last switched on.
    pub(crate) secret: Bytes,
}

impl Default for Auth {
    fn default() -> Auth {
        let switch = Switch { enabled: false, revision: 1, secret: Bytes::new() };
        Auth { switch, users: Named::new(bytes_of_user), roles: Named::new(bytes_of_role) }
    }
}

impl Auth {
    /// What users and roles occupy, in bytes, about: the same on all replicas.
    pub(crate) fn bytes(&self) -> u64 {
        (self.users.bytes + self.roles.bytes) as u64
    }

    fn user(&self, name: &str) -> Result<&authpb::User, AuthError> {
        self.users.get(name).ok_or(AuthError::UserNotFound)
    }

    fn role(&self, name: &str) -> Result<&authpb::Role, AuthError> {
        self.roles.get(name).ok_or(AuthError::RoleNotFound)
    }
}

fn has_role(user: &authpb::User, role: &str) -> bool {
    user.roles.iter().any(|one| one == role)
}

/// What a user occupies with its roles, in bytes, about.
pub(crate) fn bytes_of_user(user: &authpb::User) -> usize {
    user.encoded_len() + user.roles.len() * GRANT_BYTES
}

/// What a role occupies with its permissions, in bytes, about.
pub(crate) fn bytes_of_role(role: &authpb::Role) -> usize {
    role.encoded_len() + role.key_permission.len() * GRANT_BYTES
}

/// What a password is checked against, and what a token is signed with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Authentication is on.
    pub enabled: bool,
    /// The hash of the password; `None` for a user who has none and is known by a certificate.
    pub password_hash: Option<Bytes>,
    /// What tokens are signed with.
    pub secret: Bytes,
    /// The auth revision at which this was read.
    pub auth_revision: u64,
}

/// Whether authentication is on, and the auth revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthStatus {
    /// Callers must be users.
    pub enabled: bool,
    /// Grows with each change of users, roles and permissions.
    pub revision: u64,
}
