//! The service `Auth`: users, roles and permissions, and the tokens that users get for their passwords.
//!
//! Changes are commands in the log, in the caller's name. Questions are answered by the local replica once it has caught up.

use std::sync::Arc;

use bytes::Bytes;
use hadron_keyspace::auth::{AuthCommand, Need};
use hadron_keyspace::{Command, check};
use hadron_proto::etcdserverpb as pb;
use tonic::{Request, Response, Status};

use super::backend::Backend;
use super::caller::Claim;
use super::context::{Context, Learners, mismatch};
use super::error::{EtcdError, refusal};
use super::hitters::Usage;
use super::unsent;

/// Bytes of the secret that tokens are signed with.
const SECRET_BYTES: usize = 32;
/// How often a password is compared while users change.
const COMPARISONS_MAX: usize = 5;

/// The service.
pub(super) struct Auth<B> {
    context: Arc<Context<B>>,
}

impl<B: Backend> Auth<B> {
    pub(super) fn new(context: Arc<Context<B>>) -> Auth<B> {
        Auth { context }
    }

    /// Carries out a change in the caller's name.
    async fn change(
        &self,
        claim: &Claim,
        command: AuthCommand,
    ) -> Result<Option<pb::ResponseHeader>, Status> {
        check::auth(&command).map_err(refusal)?;
        self.context.keyspace()?.check_grant(&command).map_err(refusal)?;
        let bytes_added = command.bytes_added();
        let command = Command::Auth(command);
        if command.encoded_len() > self.context.limits.request_bytes {
            return Err(EtcdError::RequestTooLarge.into());
        }
        if let Some(bytes) = bytes_added {
            // Whoever may not do it raises no alarm.
            self.context.permit(claim, Need::Root).await?;
            self.context.check_space(bytes).await?;
        }
        let (response, term) = self.context.write_for(claim, command).await?;
        let hadron_keyspace::Response::Auth(mut header) = response else { return Err(mismatch()) };
        self.context.complete(&mut header, term);
        Ok(header)
    }

    /// What an answer begins with, once the caller has what it needs and the replica has caught up.
    async fn ask<T>(
        &self,
        request: Request<T>,
        need: impl Fn(&T) -> Need<'_>,
    ) -> Result<(T, Arc<hadron_keyspace::Keyspace>, Option<pb::ResponseHeader>), Status> {
        self.context.admit(request.metadata(), Learners::Refuse).await?;
        let claim = Claim::of(&request);
        let _counting = self.context.count_read(&claim, None);
        let keyspace = self.context.keyspace_after_barrier().await?;
        let message = request.into_inner();
        self.context
            .permit_now(&keyspace, &claim, |keyspace, caller| keyspace.permit(caller, need(&message)))?;
        Ok((message, keyspace, Some(self.context.header_now())))
    }

    /// A token, if the password is right.
    async fn authenticate(&self, name: String, password: String) -> Result<String, Status> {
        for _ in 0..COMPARISONS_MAX {
            let keyspace = self.context.keyspace_after_barrier().await?;
            if !keyspace.is_auth_enabled() {
                return Err(EtcdError::AuthNotEnabled.into());
            }
            let credentials = keyspace.credentials(&name).ok_or(EtcdError::AuthFailed)?;
            // It may have been switched off since, which leaves no secret either.
            if !credentials.enabled {
                return Err(EtcdError::AuthNotEnabled.into());
            }
            if credentials.secret.is_empty() {
                self.context.write(Command::Auth(AuthCommand::Secret(new_secret()))).await?;
                continue;
            }
            let Some(hash) = credentials.password_hash.clone() else {
                let text = "auth: authentication failed, password was given for no password user";
                return Err(Status::unknown(text));
            };
            if !self.context.passwords.is(password.clone(), hash).await? {
                tracing::warn!(user_name = name, "invalid authentication was requested");
                return Err(EtcdError::AuthFailed.into());
            }
            // Comparing takes long: it may be another password by now.
            if keyspace.credentials(&name).as_ref() == Some(&credentials) {
                let clock_ms = self.context.logged_clock_ms().await?;
                return self.context.tokens.assign(&name, self.context.home(), &credentials, clock_ms);
            }
        }
        Err(EtcdError::AuthOldRevision.into())
    }
}

/// A secret that nobody can guess.
fn new_secret() -> Bytes {
    rand::random::<[u8; SECRET_BYTES]>().to_vec().into()
}

/// Calls that change something: each with its request, its answer, and its command.
macro_rules! service {
    ($($method:ident: $request:ident => $response:ident, $command:expr;)*) => {
        #[tonic::async_trait]
        impl<B: Backend> pb::auth_server::Auth for Auth<B> {
            $(async fn $method(&self, request: Request<pb::$request>) -> Result<Response<pb::$response>, Status> {
                self.context.admit(request.metadata(), Learners::Refuse).await?;
                let claim = Claim::of(&request);
                let command: fn(pb::$request) -> AuthCommand = $command;
                let header = self.change(&claim, command(request.into_inner())).await?;
                Ok(Response::new(pb::$response { header }))
            })*

            async fn user_add(
                &self,
                request: Request<pb::AuthUserAddRequest>,
            ) -> Result<Response<pb::AuthUserAddResponse>, Status> {
                self.context.admit(request.metadata(), Learners::Refuse).await?;
                let claim = Claim::of(&request);
                let mut user = request.into_inner();
                let password = std::mem::take(&mut user.password);
                if !user.options.unwrap_or_default().no_password {
                    // Not for everybody: hashing is work.
                    self.context.permit(&claim, Need::Root).await?;
                    user.hashed_password = self.context.passwords.hash(password).await?;
                }
                let header = self.change(&claim, AuthCommand::UserAdd(user)).await?;
                Ok(Response::new(pb::AuthUserAddResponse { header }))
            }

            async fn user_change_password(
                &self,
                request: Request<pb::AuthUserChangePasswordRequest>,
            ) -> Result<Response<pb::AuthUserChangePasswordResponse>, Status> {
                self.context.admit(request.metadata(), Learners::Refuse).await?;
                let claim = Claim::of(&request);
                let mut user = request.into_inner();
                let password = std::mem::take(&mut user.password);
                if !password.is_empty() {
                    self.context.permit(&claim, Need::Root).await?;
                    user.hashed_password = self.context.passwords.hash(password).await?;
                }
                let header = self.change(&claim, AuthCommand::UserChangePassword(user)).await?;
                Ok(Response::new(pb::AuthUserChangePasswordResponse { header }))
            }

            async fn authenticate(
                &self,
                request: Request<pb::AuthenticateRequest>,
            ) -> Result<Response<pb::AuthenticateResponse>, Status> {
                self.context.admit(request.metadata(), Learners::Refuse).await?;
                self.context.count(&Claim::of(&request), None, &Usage::log_in());
                let pb::AuthenticateRequest { name, password } = request.into_inner();
                let token = Auth::authenticate(self, name, password).await?;
                Ok(Response::new(pb::AuthenticateResponse { header: Some(self.context.header_now()), token }))
            }

            /// Anybody may ask, as in etcd: a client wants to know whether it needs a token.
            async fn auth_status(
                &self,
                request: Request<pb::AuthStatusRequest>,
            ) -> Result<Response<pb::AuthStatusResponse>, Status> {
                self.context.admit(request.metadata(), Learners::Refuse).await?;
                let status = self.context.keyspace_after_barrier().await?.auth_status();
                Ok(Response::new(pb::AuthStatusResponse {
                    header: Some(self.context.header_now()),
                    enabled: status.enabled,
                    auth_revision: status.revision,
                }))
            }

            async fn user_get(
                &self,
                request: Request<pb::AuthUserGetRequest>,
            ) -> Result<Response<pb::AuthUserGetResponse>, Status> {
                let (user, keyspace, header) = self.ask(request, |user| Need::SameUser(&user.name)).await?;
                let roles = keyspace.roles_of(&user.name).map_err(refusal)?;
                Ok(unsent::answer(pb::AuthUserGetResponse { header, roles }))
            }

            async fn user_list(
                &self,
                request: Request<pb::AuthUserListRequest>,
            ) -> Result<Response<pb::AuthUserListResponse>, Status> {
                let (_, keyspace, header) = self.ask(request, |_| Need::Root).await?;
                Ok(unsent::answer(pb::AuthUserListResponse { header, users: keyspace.users() }))
            }

            async fn role_get(
                &self,
                request: Request<pb::AuthRoleGetRequest>,
            ) -> Result<Response<pb::AuthRoleGetResponse>, Status> {
                let (role, keyspace, header) = self.ask(request, |role| Need::SameRole(&role.role)).await?;
                let perm = keyspace.permissions_of(&role.role).map_err(EtcdError::from)?;
                Ok(unsent::answer(pb::AuthRoleGetResponse { header, perm }))
            }

            async fn role_list(
                &self,
                request: Request<pb::AuthRoleListRequest>,
            ) -> Result<Response<pb::AuthRoleListResponse>, Status> {
                let (_, keyspace, header) = self.ask(request, |_| Need::Root).await?;
                Ok(unsent::answer(pb::AuthRoleListResponse { header, roles: keyspace.roles() }))
            }
        }
    };
}

service! {
    auth_enable: AuthEnableRequest => AuthEnableResponse, |_| AuthCommand::Enable(new_secret());
    auth_disable: AuthDisableRequest => AuthDisableResponse, |_| AuthCommand::Disable;
    user_delete: AuthUserDeleteRequest => AuthUserDeleteResponse, AuthCommand::UserDelete;
    user_grant_role: AuthUserGrantRoleRequest => AuthUserGrantRoleResponse, AuthCommand::UserGrantRole;
    user_revoke_role: AuthUserRevokeRoleRequest => AuthUserRevokeRoleResponse, AuthCommand::UserRevokeRole;
    role_add: AuthRoleAddRequest => AuthRoleAddResponse, AuthCommand::RoleAdd;
    role_delete: AuthRoleDeleteRequest => AuthRoleDeleteResponse, AuthCommand::RoleDelete;
    role_grant_permission: AuthRoleGrantPermissionRequest => AuthRoleGrantPermissionResponse, AuthCommand::RoleGrantPermission;
    role_revoke_permission: AuthRoleRevokePermissionRequest => AuthRoleRevokePermissionResponse, AuthCommand::RoleRevokePermission;
}
