//! The flags about distributed tracing: which requests are traced, and who is told.

use super::{ConfigError, Settings, number, switch};

/// All requests, in parts per million.
const ALL: u32 = 1_000_000;

/// Where traces go, and what is in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces {
    /// `host:port` of a collector that speaks OTLP over gRPC, in plain text.
    pub collector: String,
    /// What this node is one of.
    pub service_name: String,
    /// Which of them it is; `None` to say nothing of that.
    pub instance_id: Option<String>,
    /// How many of a million requests are traced, beside those whose callers trace them.
    pub samples_per_million: u32,
}

/// What the flags say; `None` without tracing, whatever the others say then.
pub(super) fn read(settings: &Settings) -> Result<Option<Traces>, ConfigError> {
    if !switch(settings, "enable-distributed-tracing") {
        return Ok(None);
    }
    let rate = "distributed-tracing-sampling-rate";
    let samples_per_million = number(settings, rate).ok().filter(|samples| *samples <= ALL);
    Ok(Some(Traces {
        collector: settings.text("distributed-tracing-address").to_owned(),
        service_name: settings.text("distributed-tracing-service-name").to_owned(),
        instance_id: settings.given("distributed-tracing-instance-id").map(str::to_owned),
        samples_per_million: samples_per_million
            .ok_or_else(|| ConfigError::SamplingRate(settings.text(rate).to_owned()))?,
    }))
}
