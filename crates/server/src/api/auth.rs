//! The service `Auth`. Authentication is not supported yet: it is off, and says so in etcd's words, so that clients
//! which were given a user name go on without a token, as they do with an etcd that has it off.

use std::sync::Arc;

use hadron_proto::etcdserverpb as pb;
use tonic::{Request, Response, Status};

use super::backend::Backend;
use super::context::{Context, Learners};
use super::error::{EtcdError, unimplemented};

/// The service.
pub(super) struct Auth<B> {
    context: Arc<Context<B>>,
}

impl<B> Auth<B> {
    pub(super) fn new(context: Arc<Context<B>>) -> Auth<B> {
        Auth { context }
    }
}

/// Calls that exist in etcd only, each with its request and its answer.
macro_rules! refused {
    ($($method:ident: $request:ident => $response:ident, $name:literal;)*) => {
        #[tonic::async_trait]
        impl<B: Backend> pb::auth_server::Auth for Auth<B> {
            async fn auth_status(
                &self,
                request: Request<pb::AuthStatusRequest>,
            ) -> Result<Response<pb::AuthStatusResponse>, Status> {
                self.context.admit(request.metadata(), Learners::Refuse)?;
                let header = Some(self.context.header_now());
                Ok(Response::new(pb::AuthStatusResponse { header, enabled: false, auth_revision: 1 }))
            }

            async fn authenticate(
                &self,
                _: Request<pb::AuthenticateRequest>,
            ) -> Result<Response<pb::AuthenticateResponse>, Status> {
                Err(EtcdError::AuthNotEnabled.into())
            }

            $(async fn $method(&self, _: Request<pb::$request>) -> Result<Response<pb::$response>, Status> {
                Err(unimplemented($name))
            })*
        }
    };
}

refused! {
    auth_enable: AuthEnableRequest => AuthEnableResponse, "AuthEnable";
    auth_disable: AuthDisableRequest => AuthDisableResponse, "AuthDisable";
    user_add: AuthUserAddRequest => AuthUserAddResponse, "UserAdd";
    user_get: AuthUserGetRequest => AuthUserGetResponse, "UserGet";
    user_list: AuthUserListRequest => AuthUserListResponse, "UserList";
    user_delete: AuthUserDeleteRequest => AuthUserDeleteResponse, "UserDelete";
    user_change_password: AuthUserChangePasswordRequest => AuthUserChangePasswordResponse, "UserChangePassword";
    user_grant_role: AuthUserGrantRoleRequest => AuthUserGrantRoleResponse, "UserGrantRole";
    user_revoke_role: AuthUserRevokeRoleRequest => AuthUserRevokeRoleResponse, "UserRevokeRole";
    role_add: AuthRoleAddRequest => AuthRoleAddResponse, "RoleAdd";
    role_get: AuthRoleGetRequest => AuthRoleGetResponse, "RoleGet";
    role_list: AuthRoleListRequest => AuthRoleListResponse, "RoleList";
    role_delete: AuthRoleDeleteRequest => AuthRoleDeleteResponse, "RoleDelete";
    role_grant_permission: AuthRoleGrantPermissionRequest => AuthRoleGrantPermissionResponse, "RoleGrantPermission";
    role_revoke_permission: AuthRoleRevokePermissionRequest => AuthRoleRevokePermissionResponse, "RoleRevokePermission";
}
