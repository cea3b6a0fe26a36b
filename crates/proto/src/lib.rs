//! The protobuf messages and gRPC services that Hadron speaks: generated code, no logic.
//!
//! [`etcdserverpb`], [`mvccpb`] and [`authpb`] have etcd's package, service and field names and numbers, so that any
//! etcd client can talk to us. [`hadron`] holds what Hadron offers beyond etcd. The sources are in `proto/`, with the
//! meaning of each field in comments of our own.
#![allow(missing_docs, clippy::all, rustdoc::all, unreachable_pub)]

/// etcd's key-value, watch, lease, cluster, maintenance and authentication services.
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}

/// Stored keys and the events that change them.
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}

/// Users, roles and permissions.
pub mod authpb {
    tonic::include_proto!("authpb");
}

/// etcd's locks.
pub mod v3lockpb {
    tonic::include_proto!("v3lockpb");
}

/// etcd's elections among clients.
pub mod v3electionpb {
    tonic::include_proto!("v3electionpb");
}

/// The standard gRPC health check.
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}

/// What Hadron offers beyond etcd's services.
pub mod hadron {
    tonic::include_proto!("hadron.v1");
}

/// What the `.proto` files say, as an encoded `google.protobuf.FileDescriptorSet`: for what handles messages by name.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
