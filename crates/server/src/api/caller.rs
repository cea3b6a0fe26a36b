//! Who calls, and what they may do.
//!
//! Nothing is looked at while authentication is off. While it is on, a caller is known by the token that comes with the
//! call, or else by the certificate of its connection, and every call checks here what it needs. A write goes to the log in the
//! caller's name and is checked again there; a read holds only if users and roles are the same after it as before.
//!
//! A replica that lags behind may not know yet of a user or a grant. So whatever it would refuse it looks at once more after
//! it has caught up. Nor may it know yet of what was taken away: changes that nobody checks after it wait until it has caught up in any case, but for
//! grants of leases and their renewals, which come too often for that.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use hadron_consensus::Term;
use hadron_keyspace::auth::{AuthError, Caller, Need};
use hadron_keyspace::{Command, Error as KeyspaceError, Keyspace, Response};
use http::Extensions;
use tonic::{Request, Status};

use super::backend::Backend;
use super::context::Context;
use super::error::{EtcdError, refusal};
use super::hitters::{self, Client, Usage};
use super::span;

/// The common name in the verified certificate of a connection that may name a user: an extension of its requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CommonName(pub(super) Arc<str>);

/// How often a write is offered in a caller's name while users and roles change.
const OFFERS_MAX: usize = 5;
/// Where tokens are: gRPC's way, and HTTP's.
pub(super) const TOKEN_KEYS: [&str; 2] = ["token", "authorization"];

/// What a call shows of who makes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Claim {
    token: Option<String>,
    common_name: Option<CommonName>,
    /// Where it comes from: of no consequence for what it may do.
    address: Option<IpAddr>,
    /// Whose token it is, once somebody has looked.
    user: OnceLock<String>,
}

impl Claim {
    /// Of a request.
    pub(super) fn of<T>(request: &Request<T>) -> Claim {
        let token = TOKEN_KEYS.iter().find_map(|key| request.metadata().get(*key));
        let token = token.map(|token| {
            let token = token.to_str().unwrap_or_default();
            token.strip_prefix("Bearer ").unwrap_or(token).to_owned()
        });
        Claim { token, ..Claim::of_connection(request.extensions()) }
    }

    /// What the connection of a request shows.
    pub(super) fn of_connection(extensions: &Extensions) -> Claim {
        let address = extensions.get().map(|span::Caller(address)| address.ip());
        Claim { common_name: extensions.get().cloned(), address, ..Claim::default() }
    }

    fn is_nobody(&self) -> bool {
        self.token.is_none() && self.common_name.is_none()
    }

    fn client(&self) -> Option<Client<'_>> {
        let common_name = self.common_name.as_ref().map(|CommonName(name)| &**name);
        let name = self.user.get().map(String::as_str).or(common_name);
        name.map(Client::Name).or(self.address.map(Client::Address))
    }
}

/// What was found when a call was allowed.
pub(super) struct Permit {
    /// `None` while authentication is off.
    auth_revision: Option<u64>,
    /// Who it is, if that matters.
    pub(super) caller: Option<Caller>,
}

impl Permit {
    /// Refuses a read if users or roles changed since it was allowed.
    pub(super) fn check_still(&self, keyspace: &Keyspace) -> Result<(), Status> {
        let now = keyspace.is_auth_enabled().then(|| keyspace.auth_revision());
        if now == self.auth_revision { Ok(()) } else { Err(EtcdError::AuthOldRevision.into()) }
    }
}

/// A request that counts when this is dropped: by then it is known whose token came with it, and one that fails, or whose client has gone, counts as well.
pub(super) struct Counting<'a, B: Backend> {
    context: &'a Context<B>,
    claim: &'a Claim,
    key: Option<Bytes>,
    usage: Usage,
}

impl<B: Backend> Counting<'_, B> {
    /// A read has returned so many bytes.
    pub(super) fn returned(mut self, bytes: usize) {
        self.usage = Usage::read(bytes);
        self.context.backend.count_read(self.context.group, bytes);
    }
}

impl<B: Backend> Drop for Counting<'_, B> {
    fn drop(&mut self) {
        self.context.count(self.claim, self.key.as_deref(), &self.usage);
    }
}

impl<B: Backend> Context<B> {
    /// Counts for whoever wants to know who causes the load; `key` if it is about one.
    pub(super) fn count(&self, claim: &Claim, key: Option<&[u8]>, usage: &Usage) {
        self.backend.hitters().count(self.group, key, claim.client(), usage);
    }

    /// Counts a read; `key` if it is about one.
    pub(super) fn count_read<'a>(&'a self, claim: &'a Claim, key: Option<&Bytes>) -> Counting<'a, B> {
        Counting { context: self, claim, key: key.cloned(), usage: Usage::read(0) }
    }

    /// Counts a write.
    fn count_write<'a>(&'a self, claim: &'a Claim, command: &Command) -> Counting<'a, B> {
        let key = hitters::key_of(command).cloned();
        Counting { context: self, claim, key, usage: Usage::command(command) }
    }

    /// Who makes the claim; `None` for nobody.
    pub(super) fn caller(&self, keyspace: &Keyspace, claim: &Claim) -> Result<Option<Caller>, EtcdError> {
        if let Some(token) = &claim.token {
            let clock_ms = self.backend.group_clock_ms(self.group);
            let caller = self.tokens.caller(token, self.home(), keyspace, clock_ms);
            let caller = caller.ok_or(EtcdError::InvalidAuthToken)?;
            self.note_token(clock_ms);
            claim.user.get_or_init(|| caller.name.clone());
            return Ok(Some(caller));
        }
        let named = |CommonName(name): &CommonName| Caller {
            name: name.to_string(),
            auth_revision: keyspace.auth_revision(),
        };
        Ok(claim.common_name.as_ref().map(named))
    }

    /// What this replica says, as it is now.
    pub(super) fn permit_now(
        &self,
        keyspace: &Keyspace,
        claim: &Claim,
        allow: impl Fn(&Keyspace, Option<&Caller>) -> Result<(), KeyspaceError>,
    ) -> Result<Permit, Status> {
        if !keyspace.is_auth_enabled() {
            return Ok(Permit { auth_revision: None, caller: None });
        }
        let auth_revision = Some(keyspace.auth_revision());
        let caller = self.caller(keyspace, claim)?;
        allow(keyspace, caller.as_ref()).map_err(refusal)?;
        Ok(Permit { auth_revision, caller })
    }

    /// Refuses a call if `allow` does, for good.
    pub(super) async fn permit_if(
        &self,
        claim: &Claim,
        allow: impl Fn(&Keyspace, Option<&Caller>) -> Result<(), KeyspaceError> + Send + Sync,
    ) -> Result<Permit, Status> {
        if let Ok(permit) = self.permit_now(self.keyspace()?.as_ref(), claim, &allow) {
            return Ok(permit);
        }
        let keyspace = self.keyspace_after_barrier().await?;
        self.permit_now(&keyspace, claim, &allow)
    }

    /// Refuses a call whose caller does not have what it needs.
    pub(super) async fn permit(&self, claim: &Claim, need: Need<'_>) -> Result<Permit, Status> {
        self.permit_if(claim, |keyspace, caller| keyspace.permit(caller, need)).await
    }

    /// The same for what is not checked again where it is carried out: what this replica says once it has all that was committed when the call
    /// began. It may not know yet that authentication was switched on, or that something was taken from the caller.
    pub(super) async fn permit_current(&self, claim: &Claim, need: Need<'_>) -> Result<Permit, Status> {
        let keyspace = self.keyspace_after_barrier().await?;
        self.permit_now(&keyspace, claim, |keyspace, caller| keyspace.permit(caller, need))
    }

    /// Proposes a command that was allowed, in nobody's name, and counts it for whoever makes the claim.
    pub(super) async fn write_counted(
        &self,
        claim: &Claim,
        command: Command,
    ) -> Result<(Response, Term), Status> {
        let _counting = self.count_write(claim, &command);
        self.write(command).await
    }

    /// Proposes a command in the name of whoever makes the claim.
    pub(super) async fn write_for(
        &self,
        claim: &Claim,
        command: Command,
    ) -> Result<(Response, Term), Status> {
        let _counting = self.count_write(claim, &command);
        if claim.is_nobody() {
            self.permit_if(claim, |keyspace, nobody| keyspace.permit_command(nobody, &command)).await?;
            return self.write(command).await;
        }
        for offer in 1.. {
            let allow =
                |keyspace: &Keyspace, caller: Option<&Caller>| keyspace.permit_command(caller, &command);
            let command = match self.permit_if(claim, allow).await?.caller {
                Some(caller) => Command::As(caller, Box::new(command.clone())),
                None => command.clone(),
            };
            match self.propose(command).await? {
                // Users or roles changed meanwhile, or authentication was switched on. It did not happen.
                Err(KeyspaceError::Auth(AuthError::AuthOldRevision | AuthError::UserEmpty))
                    if offer < OFFERS_MAX =>
                {
                    self.keyspace_after_barrier().await?;
                }
                answer => return answer.map_err(refusal),
            }
        }
        Err(EtcdError::AuthOldRevision.into())
    }
}
