//! Server reflection: tools such as grpcurl ask here what services and messages there are. etcd has none; it tells nothing of what is
//! stored, so everybody may ask.

use std::sync::Arc;

use http::Request;
use tonic::body::Body;
use tonic::codegen::Service as _;
use tonic_reflection::server::{Builder, Error};

use super::services::Call;

/// Answers a call of reflection.
pub(super) type Reflection = Arc<dyn Fn(Request<Body>) -> Call + Send + Sync>;

/// The present version, and the one before, which most tools try second or alone.
pub(super) struct Reflections {
    pub(super) present: Reflection,
    pub(super) before: Reflection,
}

impl Reflections {
    /// # Errors
    /// The descriptors of this build are damaged.
    pub(super) fn new() -> Result<Reflections, Error> {
        let builder = || Builder::configure().register_encoded_file_descriptor_set(hadron_proto::DESCRIPTORS);
        let (present, before) = (builder().build_v1()?, builder().build_v1alpha()?);
        Ok(Reflections {
            present: Arc::new(move |request| present.clone().call(request)),
            before: Arc::new(move |request| before.clone().call(request)),
        })
    }
}
