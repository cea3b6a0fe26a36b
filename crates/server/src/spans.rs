//! Distributed tracing: spans go to an OpenTelemetry collector, over OTLP and gRPC in plain text as in etcd.
//!
//! A thread of the SDK sends them in batches; whoever ends a span does not wait. Spans that the collector does not take in time are lost,
//! and the log says so. Nothing of this exists in a node that does not trace.

use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::EnvResourceDetector;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use tracing::{info, warn};

use crate::config::Traces;

/// How long the last spans may take.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// Where spans go.
#[derive(Debug)]
pub(crate) struct Spans(SdkTracerProvider);

impl Spans {
    /// Begins to connect to the collector; it need not be there. Must be called on the runtime that is to carry the connection.
    ///
    /// # Errors
    /// The address of the collector is none.
    pub(crate) fn start(traces: &Traces) -> Result<Spans, ExporterBuildError> {
        let exporter = SpanExporter::builder().with_tonic();
        let exporter = exporter.with_endpoint(format!("http://{}", traces.collector)).build()?;
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource(traces))
            .with_sampler(Sampler::ParentBased(Box::new(sampler(traces.samples_per_million))))
            .build();
        info!(
            address = traces.collector,
            service_name = traces.service_name,
            service_instance_id = traces.instance_id,
            sampling_rate = traces.samples_per_million,
            "distributed tracing setup enabled"
        );
        Ok(Spans(provider))
    }

    /// What begins spans.
    pub(crate) fn tracer(&self) -> SdkTracer {
        let scope = InstrumentationScope::builder(env!("CARGO_PKG_NAME"));
        self.0.tracer_with_scope(scope.with_version(env!("CARGO_PKG_VERSION")).build())
    }

    /// Sends what is left.
    pub(crate) async fn stop(self) {
        // The connection is carried by this thread, and so must not be waited for here.
        let stopped = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(STOP_GRACE)).await;
        if let Ok(Err(error)) = stopped {
            warn!(%error, "the last spans may not have reached the collector");
        }
    }
}

fn resource(traces: &Traces) -> Resource {
    let instance = traces.instance_id.clone().map(|id| KeyValue::new("service.instance.id", id));
    Resource::builder_empty()
        .with_detector(Box::new(EnvResourceDetector::new()))
        .with_service_name(traces.service_name.clone())
        .with_attributes(instance)
        .build()
}

/// Decides for requests whose callers did not.
fn sampler(samples_per_million: u32) -> Sampler {
    match samples_per_million {
        0 => Sampler::AlwaysOff,
        samples => Sampler::TraceIdRatioBased(f64::from(samples) / 1e6),
    }
}
