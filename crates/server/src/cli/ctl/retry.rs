//! How commands that go on for long get over servers that fail.

use std::time::Duration;

use tokio::time::sleep;

use crate::client::CallError;

/// Pause between attempts to find a server that answers.
pub(super) const RETRY: Duration = Duration::from_millis(500);

/// Tries until a server answers, for as long as that takes.
pub(super) async fn until_answered<T>(
    attempt: impl AsyncFn() -> Result<T, CallError>,
) -> Result<T, CallError> {
    loop {
        match attempt().await {
            Err(error) if error.is_outage() => sleep(RETRY).await,
            result => return result,
        }
    }
}
