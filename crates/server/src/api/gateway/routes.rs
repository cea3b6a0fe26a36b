//! The gateway's paths. Those of `Election` and `Lock` follow with their services.

use std::collections::HashMap;
use std::sync::Arc;

use prost_reflect::{DescriptorPool, MethodDescriptor};

use super::Call;

/// What follows `/v3/`, the service, and its method.
const PATHS: &[(&str, &str, &str)] = &[
    ("kv/range", "KV", "Range"),
    ("kv/put", "KV", "Put"),
    ("kv/deleterange", "KV", "DeleteRange"),
    ("kv/txn", "KV", "Txn"),
    ("kv/compaction", "KV", "Compact"),
    ("watch", "Watch", "Watch"),
    ("lease/grant", "Lease", "LeaseGrant"),
    ("lease/revoke", "Lease", "LeaseRevoke"),
    ("lease/keepalive", "Lease", "LeaseKeepAlive"),
    ("lease/timetolive", "Lease", "LeaseTimeToLive"),
    ("lease/leases", "Lease", "LeaseLeases"),
    ("kv/lease/revoke", "Lease", "LeaseRevoke"),
    ("kv/lease/timetolive", "Lease", "LeaseTimeToLive"),
    ("kv/lease/leases", "Lease", "LeaseLeases"),
    ("cluster/member/add", "Cluster", "MemberAdd"),
    ("cluster/member/remove", "Cluster", "MemberRemove"),
    ("cluster/member/update", "Cluster", "MemberUpdate"),
    ("cluster/member/list", "Cluster", "MemberList"),
    ("cluster/member/promote", "Cluster", "MemberPromote"),
    ("maintenance/alarm", "Maintenance", "Alarm"),
    ("maintenance/status", "Maintenance", "Status"),
    ("maintenance/defragment", "Maintenance", "Defragment"),
    ("maintenance/hash", "Maintenance", "Hash"),
    ("maintenance/hashkv", "Maintenance", "HashKV"),
    ("maintenance/snapshot", "Maintenance", "Snapshot"),
    ("maintenance/transfer-leadership", "Maintenance", "MoveLeader"),
    ("maintenance/downgrade", "Maintenance", "Downgrade"),
    ("auth/enable", "Auth", "AuthEnable"),
    ("auth/disable", "Auth", "AuthDisable"),
    ("auth/status", "Auth", "AuthStatus"),
    ("auth/authenticate", "Auth", "Authenticate"),
    ("auth/user/add", "Auth", "UserAdd"),
    ("auth/user/get", "Auth", "UserGet"),
    ("auth/user/list", "Auth", "UserList"),
    ("auth/user/delete", "Auth", "UserDelete"),
    ("auth/user/changepw", "Auth", "UserChangePassword"),
    ("auth/user/grant", "Auth", "UserGrantRole"),
    ("auth/user/revoke", "Auth", "UserRevokeRole"),
    ("auth/role/add", "Auth", "RoleAdd"),
    ("auth/role/get", "Auth", "RoleGet"),
    ("auth/role/list", "Auth", "RoleList"),
    ("auth/role/delete", "Auth", "RoleDelete"),
    ("auth/role/grant", "Auth", "RoleGrantPermission"),
    ("auth/role/revoke", "Auth", "RoleRevokePermission"),
];

/// Every call by its path.
pub(super) fn calls() -> HashMap<&'static str, Arc<Call>> {
    let pool =
        DescriptorPool::decode(hadron_proto::DESCRIPTORS).expect("the descriptors were made by the build");
    let call = |service: &str, method: &str| {
        let service = pool.get_service_by_name(&format!("etcdserverpb.{service}"));
        let method = service.and_then(|service| service.methods().find(|found| found.name() == method));
        Arc::new(Call::of(&method.expect("a test looks every path of the table up")))
    };
    PATHS.iter().map(|&(path, service, method)| (path, call(service, method))).collect()
}

impl Call {
    fn of(method: &MethodDescriptor) -> Call {
        Call {
            grpc_path: format!("/{}/{}", method.parent_service().full_name(), method.name()),
            request: method.input(),
            response: method.output(),
            streams_requests: method.is_client_streaming(),
            streams_responses: method.is_server_streaming(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_of_the_table_has_its_call() {
        let calls = calls();
        assert_eq!(calls.len(), PATHS.len(), "no path stands there twice");
        assert_eq!(calls["kv/compaction"].grpc_path, "/etcdserverpb.KV/Compact");
        assert!(calls["watch"].streams_requests && calls["watch"].streams_responses);
        assert!(!calls["maintenance/snapshot"].streams_requests);
    }
}
