//! What may be asked about users, roles and permissions beside apply, from any thread.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use hadron_proto::authpb;
use prost::Message;

use super::{
    AuthCommand, AuthError, AuthStatus, Caller, Credentials, Need, RECORD_BYTES_MAX, ROOT_ROLE, Switch,
};
use crate::command::Command;
use crate::error::Error;
use crate::keyspace::Keyspace;
use crate::state::State;

/// A copy of what the state says, for those who ask with every request and should not wait for apply.
#[derive(Debug)]
pub(crate) struct ShownAuth {
    enabled: AtomicBool,
    revision: AtomicU64,
}

impl ShownAuth {
    pub(crate) fn of(state: &State) -> ShownAuth {
        let switch = &state.auth.switch;
        ShownAuth { enabled: AtomicBool::new(switch.enabled), revision: AtomicU64::new(switch.revision) }
    }
}

impl Keyspace {
    /// Called under the state's exclusive lock, so that whoever sees a change in the state sees it here too.
    pub(crate) fn show_auth(&self, state: &State) {
        let switch = &state.auth.switch;
        let was_enabled = self.shown_auth.enabled.swap(switch.enabled, Ordering::AcqRel);
        let revision = self.shown_auth.revision.swap(switch.revision, Ordering::AcqRel);
        if (was_enabled, revision) != (switch.enabled, switch.revision) {
            // Whoever watches looks whether it still may.
            self.hub.wake_all();
        }
    }

    /// Whether authentication is on, without waiting.
    pub fn is_auth_enabled(&self) -> bool {
        self.shown_auth.enabled.load(Ordering::Acquire)
    }

    /// The auth revision, without waiting.
    pub fn auth_revision(&self) -> u64 {
        self.shown_auth.revision.load(Ordering::Acquire)
    }

    /// Whether authentication is on, and the revision that goes with it.
    pub fn auth_status(&self) -> AuthStatus {
        let state = self.state.read();
        AuthStatus { enabled: state.auth.switch.enabled, revision: state.auth.switch.revision }
    }

    /// What belongs to a user; `None` if there is no such user.
    pub fn credentials(&self, name: &str) -> Option<Credentials> {
        let state = self.state.read();
        let user = state.auth.users.get(name)?;
        let has_password = !user.options.unwrap_or_default().no_password;
        let Switch { enabled, ref secret, revision } = state.auth.switch;
        Some(Credentials {
            enabled,
            password_hash: has_password.then(|| user.password.clone()),
            secret: secret.clone(),
            auth_revision: revision,
        })
    }

    /// Whether a command would be allowed in somebody's name now. What is proposed is checked again when it is applied.
    ///
    /// # Errors
    /// Why it is not.
    pub fn permit_command(&self, caller: Option<&Caller>, command: &Command) -> Result<(), Error> {
        Ok(self.state.read().permit_command(caller, command)?)
    }

    /// Whether what a caller needs is given now; always if authentication is off. A read is allowed if [`Keyspace::auth_revision`]
    /// is the same before this and after the read.
    ///
    /// # Errors
    /// Why it is not.
    pub fn permit(&self, caller: Option<&Caller>, need: Need<'_>) -> Result<(), Error> {
        Ok(self.state.read().permit(caller, need)?)
    }

    /// The same for somebody of whom only the name matters: whose call began when users and roles were others.
    ///
    /// # Errors
    /// Why it is not.
    pub fn permit_user(&self, user: Option<&str>, need: Need<'_>) -> Result<(), Error> {
        let state = self.state.read();
        let auth_revision = state.auth.switch.revision;
        let caller = user.map(|name| Caller { name: name.to_owned(), auth_revision });
        Ok(state.permit(caller.as_ref(), need)?)
    }

    /// Refuses to grant more to a user or role that is as large as may be ([`RECORD_BYTES_MAX`]). To be asked before a command is proposed: what is in
    /// the log is carried out.
    ///
    /// # Errors
    /// It would be larger.
    pub fn check_grant(&self, command: &AuthCommand) -> Result<(), Error> {
        let state = self.state.read();
        let bytes = match command {
            AuthCommand::UserGrantRole(grant) => {
                state.auth.users.get(&grant.user).map_or(0, Message::encoded_len) + grant.role.len()
            }
            AuthCommand::RoleGrantPermission(grant) => {
                let granted = grant.perm.as_ref().map_or(0, Message::encoded_len);
                state.auth.roles.get(&grant.name).map_or(0, Message::encoded_len) + granted
            }
            _ => return Ok(()),
        };
        if bytes > RECORD_BYTES_MAX { Err(AuthError::RecordTooLarge.into()) } else { Ok(()) }
    }

    /// The names of all users, in order.
    pub fn users(&self) -> Vec<String> {
        self.state.read().auth.users.keys().cloned().collect()
    }

    /// The names of all roles, in order.
    pub fn roles(&self) -> Vec<String> {
        self.state.read().auth.roles.keys().cloned().collect()
    }

    /// The roles of a user, in order.
    ///
    /// # Errors
    /// There is no such user.
    pub fn roles_of(&self, user: &str) -> Result<Vec<String>, Error> {
        Ok(self.state.read().auth.user(user)?.roles.clone())
    }

    /// The permissions of a role, ordered by key; those of `root` are all keys whatever was granted to it.
    ///
    /// # Errors
    /// There is no such role.
    pub fn permissions_of(&self, role: &str) -> Result<Vec<authpb::Permission>, AuthError> {
        let state = self.state.read();
        let role = state.auth.role(role)?;
        if role.name == ROOT_ROLE {
            let perm_type = authpb::permission::Type::Readwrite as i32;
            return Ok(vec![authpb::Permission {
                perm_type,
                key: Bytes::new(),
                range_end: Bytes::from_static(&[0]),
            }]);
        }
        Ok(role.key_permission.clone())
    }
}
