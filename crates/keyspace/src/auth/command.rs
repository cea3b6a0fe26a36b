//! The commands that change users and roles: their bytes, and what they do.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use hadron_proto::etcdserverpb as pb;
use hadron_proto::{authpb, etcdserverpb};
use prost::Message;

use super::{
    AuthError, GRANT_BYTES, NAMED_BYTES, ROOT_ROLE, ROOT_USER, STORED_NAME_BYTES_MAX, Switch, bytes_of_role,
    bytes_of_user, has_role,
};
use crate::command::{DecodeError, decode};
use crate::state::State;

/// A change of users, roles or permissions. Passwords are hashed already, the hash in base64, as in etcd.
#[derive(Clone, Debug, PartialEq)]
pub enum AuthCommand {
    /// Callers must be users from now on. Tokens are signed with these random bytes, unless there are some already.
    Enable(Bytes),
    /// Tokens are signed with these random bytes if authentication is on and there are none yet, as after a restore; nothing otherwise.
    Secret(Bytes),
    /// Everybody may do everything again.
    Disable,
    /// A new user.
    UserAdd(pb::AuthUserAddRequest),
    /// A user goes.
    UserDelete(pb::AuthUserDeleteRequest),
    /// A user has another password.
    UserChangePassword(pb::AuthUserChangePasswordRequest),
    /// A user has one more role.
    UserGrantRole(pb::AuthUserGrantRoleRequest),
    /// A user has one role less.
    UserRevokeRole(pb::AuthUserRevokeRoleRequest),
    /// A new role, without permissions.
    RoleAdd(pb::AuthRoleAddRequest),
    /// A role goes, from its users too.
    RoleDelete(pb::AuthRoleDeleteRequest),
    /// A role has a permission, or another kind of it.
    RoleGrantPermission(pb::AuthRoleGrantPermissionRequest),
    /// A role has one permission less.
    RoleRevokePermission(pb::AuthRoleRevokePermissionRequest),
}

const ENABLE: u8 = 1;
const DISABLE: u8 = 2;
const USER_ADD: u8 = 3;
const USER_DELETE: u8 = 4;
const USER_CHANGE_PASSWORD: u8 = 5;
const USER_GRANT_ROLE: u8 = 6;
const USER_REVOKE_ROLE: u8 = 7;
const ROLE_ADD: u8 = 8;
const ROLE_DELETE: u8 = 9;
const ROLE_GRANT_PERMISSION: u8 = 10;
const ROLE_REVOKE_PERMISSION: u8 = 11;
const SECRET: u8 = 12;

impl AuthCommand {
    /// Refuses a new name that has more bytes than may be.
    pub(crate) fn check_new_name(&self, bytes_max: usize) -> Result<(), AuthError> {
        let name = match self {
            AuthCommand::UserAdd(request) => &request.name,
            AuthCommand::RoleAdd(request) => &request.name,
            _ => return Ok(()),
        };
        if name.len() > bytes_max { Err(AuthError::NameTooLong) } else { Ok(()) }
    }

    /// Appends a tag and the request.
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        let (tag, body) = match self {
            AuthCommand::Enable(secret) => (ENABLE, secret.to_vec()),
            AuthCommand::Secret(secret) => (SECRET, secret.to_vec()),
            AuthCommand::Disable => (DISABLE, Vec::new()),
            AuthCommand::UserAdd(request) => (USER_ADD, request.encode_to_vec()),
            AuthCommand::UserDelete(request) => (USER_DELETE, request.encode_to_vec()),
            AuthCommand::UserChangePassword(request) => (USER_CHANGE_PASSWORD, request.encode_to_vec()),
            AuthCommand::UserGrantRole(request) => (USER_GRANT_ROLE, request.encode_to_vec()),
            AuthCommand::UserRevokeRole(request) => (USER_REVOKE_ROLE, request.encode_to_vec()),
            AuthCommand::RoleAdd(request) => (ROLE_ADD, request.encode_to_vec()),
            AuthCommand::RoleDelete(request) => (ROLE_DELETE, request.encode_to_vec()),
            AuthCommand::RoleGrantPermission(request) => (ROLE_GRANT_PERMISSION, request.encode_to_vec()),
            AuthCommand::RoleRevokePermission(request) => (ROLE_REVOKE_PERMISSION, request.encode_to_vec()),
        };
        out.put_u8(tag);
        out.put_slice(&body);
    }

    /// How much it makes users and roles grow, in bytes, about; `None` if it does not.
    pub fn bytes_added(&self) -> Option<usize> {
        let beside = match self {
            AuthCommand::UserAdd(_) | AuthCommand::RoleAdd(_) => NAMED_BYTES,
            AuthCommand::UserGrantRole(_) | AuthCommand::RoleGrantPermission(_) => GRANT_BYTES,
            AuthCommand::Enable(_)
            | AuthCommand::Secret(_)
            | AuthCommand::Disable
            | AuthCommand::UserDelete(_)
            | AuthCommand::UserChangePassword(_)
            | AuthCommand::UserRevokeRole(_)
            | AuthCommand::RoleDelete(_)
            | AuthCommand::RoleRevokePermission(_) => return None,
        };
        Some(beside + self.encoded_len())
    }

    /// How many bytes [`AuthCommand::encode`] appends.
    pub(crate) fn encoded_len(&self) -> usize {
        1 + match self {
            AuthCommand::Enable(secret) | AuthCommand::Secret(secret) => secret.len(),
            AuthCommand::Disable => 0,
            AuthCommand::UserAdd(request) => request.encoded_len(),
            AuthCommand::UserDelete(request) => request.encoded_len(),
            AuthCommand::UserChangePassword(request) => request.encoded_len(),
            AuthCommand::UserGrantRole(request) => request.encoded_len(),
            AuthCommand::UserRevokeRole(request) => request.encoded_len(),
            AuthCommand::RoleAdd(request) => request.encoded_len(),
            AuthCommand::RoleDelete(request) => request.encoded_len(),
            AuthCommand::RoleGrantPermission(request) => request.encoded_len(),
            AuthCommand::RoleRevokePermission(request) => request.encoded_len(),
        }
    }

    /// Reads it back.
    pub(crate) fn decode(bytes: &Bytes) -> Result<AuthCommand, DecodeError> {
        let tag = *bytes.first().ok_or(DecodeError::Malformed)?;
        let body = bytes.slice(1..);
        Ok(match tag {
            ENABLE => AuthCommand::Enable(body),
            SECRET => AuthCommand::Secret(body),
            DISABLE if body.is_empty() => AuthCommand::Disable,
            DISABLE => return Err(DecodeError::Malformed),
            USER_ADD => AuthCommand::UserAdd(decode(body)?),
            USER_DELETE => AuthCommand::UserDelete(decode(body)?),
            USER_CHANGE_PASSWORD => AuthCommand::UserChangePassword(decode(body)?),
            USER_GRANT_ROLE => AuthCommand::UserGrantRole(decode(body)?),
            USER_REVOKE_ROLE => AuthCommand::UserRevokeRole(decode(body)?),
            ROLE_ADD => AuthCommand::RoleAdd(decode(body)?),
            ROLE_DELETE => AuthCommand::RoleDelete(decode(body)?),
            ROLE_GRANT_PERMISSION => AuthCommand::RoleGrantPermission(decode(body)?),
            ROLE_REVOKE_PERMISSION => AuthCommand::RoleRevokePermission(decode(body)?),
            unknown => return Err(DecodeError::Unknown(unknown)),
        })
    }
}

impl State {
    /// Carries a command out; whether the caller may has been checked.
    pub(crate) fn change_auth(&mut self, command: AuthCommand) -> Result<(), AuthError> {
        command.check_new_name(STORED_NAME_BYTES_MAX)?;
        match command {
            AuthCommand::Enable(secret) => self.enable_auth(secret),
            AuthCommand::Secret(secret) => {
                self.choose_secret(&secret);
                Ok(())
            }
            AuthCommand::Disable => {
                self.disable_auth();
                Ok(())
            }
            AuthCommand::UserAdd(request) => self.add_user(request),
            AuthCommand::UserDelete(request) => self.delete_user(&request.name),
            AuthCommand::UserChangePassword(request) => self.change_password(&request),
            AuthCommand::UserGrantRole(request) => self.grant_role(&request),
            AuthCommand::UserRevokeRole(request) => self.revoke_role(&request.name, &request.role),
            AuthCommand::RoleAdd(request) => self.add_role(&request.name),
            AuthCommand::RoleDelete(request) => self.delete_role(&request.role),
            AuthCommand::RoleGrantPermission(request) => self.grant_permission(request),
            AuthCommand::RoleRevokePermission(request) => self.revoke_permission(&request),
        }
    }

    /// What a command reads and copies, in bytes, about: a change of one role of a user, or of one permission of a role, copies all that it has.
    pub(crate) fn bytes_of_change(&self, command: &AuthCommand) -> usize {
        let user = |name: &str| self.auth.users.get(name).map_or(0, bytes_of_user);
        let role = |name: &str| self.auth.roles.get(name).map_or(0, bytes_of_role);
        command.encoded_len()
            + match command {
                AuthCommand::UserDelete(request) => user(&request.name),
                AuthCommand::UserChangePassword(request) => user(&request.name),
                AuthCommand::UserGrantRole(request) => user(&request.user),
                AuthCommand::UserRevokeRole(request) => user(&request.name),
                AuthCommand::RoleGrantPermission(request) => role(&request.name),
                AuthCommand::RoleRevokePermission(request) => role(&request.role),
                // It is looked for in all users.
                AuthCommand::RoleDelete(request) => {
                    role(&request.role) + self.auth.users.values().map(bytes_of_user).sum::<usize>()
                }
                AuthCommand::Enable(_)
                | AuthCommand::Secret(_)
                | AuthCommand::Disable
                | AuthCommand::UserAdd(_)
                | AuthCommand::RoleAdd(_) => 0,
            }
    }

    fn enable_auth(&mut self, secret: Bytes) -> Result<(), AuthError> {
        if self.auth.switch.enabled && !self.auth.switch.secret.is_empty() {
            return Ok(());
        }
        let root = self.auth.users.get(ROOT_USER).ok_or(AuthError::RootUserNotExist)?;
        if !has_role(root, ROOT_ROLE) {
            return Err(AuthError::RootRoleNotExist);
        }
        let secret = Bytes::copy_from_slice(&secret);
        self.set_auth_switch(Switch { enabled: true, secret, revision: self.auth.switch.revision });
        Ok(())
    }

    fn choose_secret(&mut self, secret: &Bytes) {
        let switch = &self.auth.switch;
        if switch.enabled && switch.secret.is_empty() {
            let secret = Bytes::copy_from_slice(secret);
            self.set_auth_switch(Switch { secret, ..self.auth.switch.clone() });
        }
    }

    fn disable_auth(&mut self) {
        if self.auth.switch.enabled {
            let revision = self.auth.switch.revision + 1;
            self.set_auth_switch(Switch { enabled: false, secret: Bytes::new(), revision });
        }
    }

    fn next_auth_revision(&mut self) {
        let revision = self.auth.switch.revision + 1;
        self.set_auth_switch(Switch { revision, ..self.auth.switch.clone() });
    }

    fn put_user(&mut self, user: authpb::User) {
        self.set_user(user);
        self.next_auth_revision();
    }

    fn put_role(&mut self, role: authpb::Role) {
        self.set_role(role);
        self.next_auth_revision();
    }

    fn add_user(&mut self, request: etcdserverpb::AuthUserAddRequest) -> Result<(), AuthError> {
        if request.name.is_empty() {
            return Err(AuthError::UserEmpty);
        }
        if self.auth.users.contains_key(&request.name) {
            return Err(AuthError::UserAlreadyExists);
        }
        let options = request.options.unwrap_or_default();
        let password = match options.no_password {
            true => Bytes::new(),
            false => decode_hash(&request.hashed_password)?,
        };
        let name = request.name.into_bytes().into();
        self.put_user(authpb::User { name, password, roles: Vec::new(), options: Some(options) });
        Ok(())
    }

    fn delete_user(&mut self, name: &str) -> Result<(), AuthError> {
        if self.auth.switch.enabled && name == ROOT_USER {
            return Err(AuthError::InvalidAuthManagement);
        }
        self.auth.user(name)?;
        self.remove_user(name);
        self.next_auth_revision();
        Ok(())
    }

    fn change_password(&mut self, request: &pb::AuthUserChangePasswordRequest) -> Result<(), AuthError> {
        let mut user = self.auth.user(&request.name)?.clone();
        let has_password = !user.options.unwrap_or_default().no_password;
        user.password = if has_password { decode_hash(&request.hashed_password)? } else { Bytes::new() };
        self.put_user(user);
        Ok(())
    }

    fn grant_role(&mut self, request: &pb::AuthUserGrantRoleRequest) -> Result<(), AuthError> {
        let mut user = self.auth.user(&request.user)?.clone();
        if request.role != ROOT_ROLE {
            self.auth.role(&request.role)?;
        }
        // Granted again: nothing changes, not even the revision.
        if let Err(place) = user.roles.binary_search(&request.role) {
            user.roles.insert(place, request.role.clone());
            self.put_user(user);
        }
        Ok(())
    }

    fn revoke_role(&mut self, name: &str, role: &str) -> Result<(), AuthError> {
        if self.auth.switch.enabled && name == ROOT_USER && role == ROOT_ROLE {
            return Err(AuthError::InvalidAuthManagement);
        }
        let mut user = self.auth.user(name)?.clone();
        if !has_role(&user, role) {
            return Err(AuthError::RoleNotGranted);
        }
        user.roles.retain(|one| one != role);
        self.put_user(user);
        Ok(())
    }

    fn add_role(&mut self, name: &str) -> Result<(), AuthError> {
        if name.is_empty() {
            return Err(AuthError::RoleEmpty);
        }
        if self.auth.roles.contains_key(name) {
            return Err(AuthError::RoleAlreadyExists);
        }
        let name = Bytes::copy_from_slice(name.as_bytes());
        self.put_role(authpb::Role { name, key_permission: Vec::new() });
        Ok(())
    }

    fn delete_role(&mut self, name: &str) -> Result<(), AuthError> {
        if self.auth.switch.enabled && name == ROOT_ROLE {
            return Err(AuthError::InvalidAuthManagement);
        }
        self.auth.role(name)?;
        self.remove_role(name);
        let holders: Vec<authpb::User> =
            self.auth.users.values().filter(|user| has_role(user, name)).cloned().collect();
        for mut user in holders {
            user.roles.retain(|one| one != name);
            self.set_user(user);
        }
        self.next_auth_revision();
        Ok(())
    }

    fn grant_permission(&mut self, request: pb::AuthRoleGrantPermissionRequest) -> Result<(), AuthError> {
        let granted = request.perm.ok_or(AuthError::PermissionNotGiven)?;
        if !is_valid_range(&granted.key, &granted.range_end) {
            return Err(AuthError::InvalidAuthManagement);
        }
        let mut role = self.auth.role(&request.name)?.clone();
        let same =
            |one: &&mut authpb::Permission| one.key == granted.key && one.range_end == granted.range_end;
        match role.key_permission.iter_mut().find(same) {
            Some(there) => there.perm_type = granted.perm_type,
            None => {
                let place = role.key_permission.partition_point(|one| one.key <= granted.key);
                let copy = |bytes: &Bytes| Bytes::copy_from_slice(bytes);
                let (key, range_end) = (copy(&granted.key), copy(&granted.range_end));
                role.key_permission
                    .insert(place, authpb::Permission { perm_type: granted.perm_type, key, range_end });
            }
        }
        self.put_role(role);
        Ok(())
    }

    fn revoke_permission(&mut self, request: &pb::AuthRoleRevokePermissionRequest) -> Result<(), AuthError> {
        let mut role = self.auth.role(&request.role)?.clone();
        let before = role.key_permission.len();
        role.key_permission.retain(|one| one.key != request.key || one.range_end != request.range_end);
        if role.key_permission.len() == before {
            return Err(AuthError::PermissionNotGranted);
        }
        self.put_role(role);
        Ok(())
    }
}

/// A hash that is not base64 cannot come from this version; no password would ever match it.
fn decode_hash(base64: &str) -> Result<Bytes, AuthError> {
    STANDARD.decode(base64).map(Bytes::from).map_err(|_| AuthError::InvalidAuthManagement)
}

/// One key, a range that is not empty, or all keys from one on.
fn is_valid_range(key: &[u8], range_end: &[u8]) -> bool {
    !key.is_empty() && (range_end.is_empty() || key < range_end || range_end == [0])
}
