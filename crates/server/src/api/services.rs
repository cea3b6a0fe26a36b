//! The services of one keyspace, and the call of one of them by its kind.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service as _;

use hadron_proto::etcdserverpb::auth_server::AuthServer;
use hadron_proto::etcdserverpb::cluster_server::ClusterServer;
use hadron_proto::etcdserverpb::kv_server::KvServer;
use hadron_proto::etcdserverpb::lease_server::LeaseServer;
use hadron_proto::etcdserverpb::maintenance_server::MaintenanceServer;
use hadron_proto::etcdserverpb::watch_server::WatchServer;
use hadron_proto::hadron::pool_server::PoolServer;
use hadron_proto::health::health_server::HealthServer;
use hadron_proto::v3electionpb::election_server::ElectionServer;
use hadron_proto::v3lockpb::lock_server::LockServer;

use super::auth::Auth;
use super::backend::Backend;
use super::cluster::Cluster;
use super::context::Context;
use super::election::Election;
use super::health::Health;
use super::kv::Kv;
use super::lease::Lease;
use super::lock::Lock;
use super::maintenance::Maintenance;
use super::pool::Pool;
use super::watch::Watch;

/// A message may exceed the largest request by this much, as in etcd: then the client hears etcd's own error.
const MESSAGE_OVERHEAD_BYTES: usize = 512 * 1024;

/// A future that the generated services return.
pub(super) type Call = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// The body of a gRPC call: from the network, or made by the gateway.
pub(super) trait RequestBody:
    hyper::body::Body<Data = Bytes, Error: Into<tonic::codegen::StdError> + Send> + Send + 'static
{
}

impl RequestBody for Incoming {}
impl RequestBody for Body {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    Kv,
    Watch,
    Lease,
    Cluster,
    Maintenance,
    Auth,
    Lock,
    Election,
    Health,
    Pool,
    /// Of no keyspace: see `front`.
    Reflection,
    OldReflection,
}

/// All services of one keyspace.
pub(super) struct Services<B: Backend> {
    pub(super) context: Arc<Context<B>>,
    kv: KvServer<Kv<B>>,
    watch: WatchServer<Watch<B>>,
    lease: LeaseServer<Lease<B>>,
    cluster: ClusterServer<Cluster<B>>,
    maintenance: MaintenanceServer<Maintenance<B>>,
    auth: AuthServer<Auth<B>>,
    lock: LockServer<Lock<B>>,
    election: ElectionServer<Election<B>>,
    health: HealthServer<Health<B>>,
    pool: PoolServer<Pool<B>>,
}

/// Bytes of an encoded request that a service still looks at.
pub(super) fn message_bytes_max(request_bytes: usize) -> usize {
    request_bytes + MESSAGE_OVERHEAD_BYTES
}

impl<B: Backend> Services<B> {
    pub(super) fn new(context: Arc<Context<B>>) -> Services<B> {
        let limit = message_bytes_max(context.limits.request_bytes);
        let shared = || Arc::clone(&context);
        Services {
            kv: KvServer::new(Kv::new(shared())).max_decoding_message_size(limit),
            watch: WatchServer::new(Watch::new(shared())).max_decoding_message_size(limit),
            lease: LeaseServer::new(Lease::new(shared())).max_decoding_message_size(limit),
            cluster: ClusterServer::new(Cluster::new(shared())).max_decoding_message_size(limit),
            maintenance: MaintenanceServer::new(Maintenance::new(shared())).max_decoding_message_size(limit),
            auth: AuthServer::new(Auth::new(shared())).max_decoding_message_size(limit),
            lock: LockServer::new(Lock::new(shared())).max_decoding_message_size(limit),
            election: ElectionServer::new(Election::new(shared())).max_decoding_message_size(limit),
            health: HealthServer::new(Health::new(shared())).max_decoding_message_size(limit),
            pool: PoolServer::new(Pool::new(shared())).max_decoding_message_size(limit),
            context,
        }
    }

    /// Begins to answer a call.
    pub(super) fn call<R: RequestBody>(&self, service: Service, request: Request<R>) -> Call {
        // `call` wants a `&mut` of its own; a clone of a generated service is one more reference to the real one.
        match service {
            Service::Kv => self.kv.clone().call(request),
            Service::Watch => self.watch.clone().call(request),
            Service::Lease => self.lease.clone().call(request),
            Service::Cluster => self.cluster.clone().call(request),
            Service::Maintenance => self.maintenance.clone().call(request),
            Service::Auth => self.auth.clone().call(request),
            Service::Lock => self.lock.clone().call(request),
            Service::Election => self.election.clone().call(request),
            Service::Health => self.health.clone().call(request),
            Service::Pool => self.pool.clone().call(request),
            Service::Reflection | Service::OldReflection => {
                let answer = Status::unimplemented("hadron: reflection is of no keyspace").into_http();
                Box::pin(std::future::ready(Ok(answer)))
            }
        }
    }
}
