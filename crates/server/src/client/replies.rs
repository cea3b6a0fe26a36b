//! What a server says in a stream.

use tonic::Streaming;

use super::{CallError, Endpoints};

/// What one of the endpoints says. When it breaks off, another one is asked first from then on.
pub(crate) struct Replies<T> {
    pub(super) endpoints: Endpoints,
    /// Of whose it is.
    pub(super) position: usize,
    pub(super) stream: Streaming<T>,
}

impl<T> Replies<T> {
    /// The next; `None` after the last.
    ///
    /// # Errors
    /// The server refused, or the connection broke.
    pub(crate) async fn message(&mut self) -> Result<Option<T>, CallError> {
        let next = self.stream.message().await.map_err(CallError::Refused);
        if !matches!(next, Ok(Some(_))) {
            self.leave();
        }
        next
    }

    /// Has another endpoint asked first.
    pub(crate) fn leave(&self) {
        self.endpoints.leave(self.position);
    }
}
