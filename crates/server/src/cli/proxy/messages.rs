//! The messages of a call's body: looked at one by one as they pass, and changed if need be.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tonic::Status;

/// A body of any kind.
pub(super) type AnyBody = UnsyncBoxBody<Bytes, BoxError>;
/// Why a body broke off.
pub(super) type BoxError = Box<dyn Error + Send + Sync>;
/// Makes the message that is passed on from the one that came.
pub(super) type Change = Arc<dyn Fn(Bytes) -> Result<Bytes, Status> + Send + Sync>;

/// Bytes before each message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// Where the reason is found why the messages of a request were not passed on.
#[derive(Clone, Debug, Default)]
pub(super) struct Refusal(Arc<Mutex<Option<Status>>>);

impl Refusal {
    /// The reason, if there is one.
    pub(super) fn take(&self) -> Option<Status> {
        self.0.lock().take()
    }
}

/// A body whose messages are looked at.
pub(super) struct Messages {
    inner: AnyBody,
    change: Option<Change>,
    /// Largest message that is passed on.
    max: usize,
    /// Which way they go, for the error.
    verb: &'static str,
    /// What came of a message that is not complete. Of messages that are not changed, only the prefix.
    partial: BytesMut,
    /// Bytes of the present message that are still to come, if it is not changed.
    left: usize,
    refusal: Refusal,
}

impl Messages {
    /// Passes the messages of a request on.
    pub(super) fn of_request(inner: AnyBody, change: Option<Change>, max: usize) -> (AnyBody, Refusal) {
        let refusal = Refusal::default();
        let messages = Messages::new(inner, change, (max, "send"), refusal.clone());
        (messages.boxed_unsync(), refusal)
    }

    /// Passes the messages of an answer on. One that is refused ends it with an error in the trailers, and so does one of the
    /// request, about which `asked` knows.
    pub(super) fn of_answer(inner: AnyBody, change: Option<Change>, max: usize, asked: Refusal) -> AnyBody {
        let refusal = Refusal::default();
        let messages = Messages::new(inner, change, (max, "receive"), refusal.clone());
        Ending { inner: Some(messages), refusals: [asked, refusal] }.boxed_unsync()
    }

    fn new(
        inner: AnyBody,
        change: Option<Change>,
        (max, verb): (usize, &'static str),
        refusal: Refusal,
    ) -> Messages {
        Messages { inner, change, max, verb, partial: BytesMut::new(), left: 0, refusal }
    }

    /// What is passed on of what came.
    fn pass(&mut self, bytes: Bytes) -> Result<Bytes, Status> {
        match self.change.clone() {
            Some(change) => self.pass_changed(&bytes, &change),
            None => self.check(&bytes).map(|()| bytes),
        }
    }

    fn pass_changed(&mut self, bytes: &[u8], change: &Change) -> Result<Bytes, Status> {
        self.partial.extend_from_slice(bytes);
        let mut passed = BytesMut::new();
        while let Some(prefix) = self.partial.first_chunk() {
            let (is_compressed, length) = self.length(*prefix)?;
            if is_compressed {
                return Err(Status::unimplemented("a proxy with a namespace takes no compressed messages"));
            }
            if self.partial.len() < PREFIX_BYTES + length {
                break;
            }
            self.partial.advance(PREFIX_BYTES);
            let message = change(self.partial.split_to(length).freeze())?;
            frame(&message, &mut passed);
        }
        Ok(passed.freeze())
    }

    /// Follows the lengths of messages that pass as they are.
    fn check(&mut self, mut bytes: &[u8]) -> Result<(), Status> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let skipped = self.left.min(bytes.len());
                self.left -= skipped;
                bytes.advance(skipped);
                continue;
            }
            self.partial.put_u8(bytes.get_u8());
            if let Some(prefix) = self.partial.first_chunk() {
                (_, self.left) = self.length(*prefix)?;
                self.partial.clear();
            }
        }
        Ok(())
    }

    fn length(&self, prefix: [u8; PREFIX_BYTES]) -> Result<(bool, usize), Status> {
        let [compressed, a, b, c, d] = prefix;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > self.max {
            let (verb, max) = (self.verb, self.max);
            let text = format!("trying to {verb} message larger than max ({length} vs. {max})");
            return Err(Status::resource_exhausted(text));
        }
        Ok((compressed != 0, length))
    }
}

/// Appends a message with its prefix.
fn frame(message: &[u8], to: &mut BytesMut) {
    to.reserve(PREFIX_BYTES + message.len());
    to.put_u8(0);
    to.put_u32(message.len() as u32);
    to.put_slice(message);
}

/// The first message of what came, if it is whole.
pub(super) fn unframed(came: &[u8]) -> Option<&[u8]> {
    let [_, length @ ..] = came.first_chunk::<PREFIX_BYTES>()?;
    came.get(PREFIX_BYTES..)?.get(..u32::from_be_bytes(*length) as usize)
}

/// One message as the body of an answer, whose status is that all is well.
pub(super) fn single(message: &[u8]) -> AnyBody {
    let mut framed = BytesMut::new();
    frame(message, &mut framed);
    let mut trailers = http::HeaderMap::new();
    trailers.insert(Status::GRPC_STATUS, http::HeaderValue::from_static("0"));
    let frames = [Ok(Frame::data(framed.freeze())), Ok(Frame::trailers(trailers))];
    http_body_util::StreamBody::new(tokio_stream::iter(frames)).boxed_unsync()
}

impl Body for Messages {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            let frame = match std::task::ready!(Pin::new(&mut self.inner).poll_frame(task)) {
                Some(Ok(frame)) => frame,
                other => return Poll::Ready(other),
            };
            let bytes = match frame.into_data() {
                Ok(bytes) => bytes,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            };
            match self.pass(bytes) {
                Ok(passed) if passed.is_empty() => {}
                Ok(passed) => return Poll::Ready(Some(Ok(Frame::data(passed)))),
                Err(status) => {
                    let text = status.message().to_owned();
                    *self.refusal.0.lock() = Some(status);
                    return Poll::Ready(Some(Err(text.into())));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.change.is_some() { SizeHint::default() } else { self.inner.size_hint() }
    }
}

/// The messages of an answer. If they break off, trailers say so: a client would take a broken stream for a broken connection.
struct Ending {
    /// `None` after trailers were made up.
    inner: Option<Messages>,
    /// Of the request, and of the answer.
    refusals: [Refusal; 2],
}

impl Body for Ending {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        let error = match std::task::ready!(Pin::new(inner).poll_frame(task)) {
            Some(Err(error)) => error,
            other => return Poll::Ready(other),
        };
        let broken = || Status::unavailable(format!("the node ended the call in its middle: {error}"));
        let status = self.refusals.iter().find_map(Refusal::take).unwrap_or_else(broken);
        self.inner = None;
        let mut trailers = http::HeaderMap::new();
        Poll::Ready(Some(match status.add_header(&mut trailers) {
            Ok(()) => Ok(Frame::trailers(trailers)),
            Err(_) => Err(error),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn body(chunks: Vec<Vec<u8>>) -> AnyBody {
        let frames = chunks.into_iter().map(|chunk| Ok(Frame::data(Bytes::from(chunk))));
        http_body_util::StreamBody::new(tokio_stream::iter(frames.collect::<Vec<_>>())).boxed_unsync()
    }

    fn framed(messages: &[&[u8]]) -> Vec<u8> {
        let mut bytes = BytesMut::new();
        messages.iter().for_each(|message| frame(message, &mut bytes));
        bytes.to_vec()
    }

    /// The same bytes, in pieces of that size.
    fn pieces(bytes: &[u8], size: usize) -> AnyBody {
        body(bytes.chunks(size).map(<[u8]>::to_vec).collect())
    }

    async fn all(body: AnyBody) -> (Vec<u8>, Option<http::HeaderMap>) {
        let collected = body.collect().await.unwrap();
        let trailers = collected.trailers().cloned();
        (collected.to_bytes().to_vec(), trailers)
    }

    #[tokio::test]
    async fn messages_are_found_in_any_pieces() {
        let came = framed(&[b"one", b"", b"three"]);
        let change: Change = Arc::new(|message| Ok([b"x", message.as_ref()].concat().into()));
        for size in 1..=came.len() {
            let (changed, _) = Messages::of_request(pieces(&came, size), Some(Arc::clone(&change)), 5);
            assert_eq!(all(changed).await.0, framed(&[b"xone", b"x", b"xthree"]), "{size}");
            let (same, _) = Messages::of_request(pieces(&came, size), None, 5);
            assert_eq!(all(same).await.0, came, "{size}");
        }
    }

    #[tokio::test]
    async fn a_message_that_is_too_large_is_refused() {
        let came = framed(&[b"one", b"three"]);
        let same: Change = Arc::new(Ok);
        for change in [None, Some(same)] {
            for size in 1..=came.len() {
                let (request, refusal) = Messages::of_request(pieces(&came, size), change.clone(), 4);
                assert!(request.collect().await.is_err());
                let status = refusal.take().unwrap();
                assert_eq!(status.code(), tonic::Code::ResourceExhausted);
                assert_eq!(status.message(), "trying to send message larger than max (5 vs. 4)");
                let answer = Messages::of_answer(pieces(&came, size), change.clone(), 4, Refusal::default());
                let (_, trailers) = all(answer).await;
                let status = Status::from_header_map(&trailers.unwrap()).unwrap();
                assert_eq!(status.message(), "trying to receive message larger than max (5 vs. 4)");
            }
        }
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_says_so() {
        let frames = [Ok(Frame::data(Bytes::from_static(&[0, 0]))), Err(BoxError::from("reset"))];
        let broken = http_body_util::StreamBody::new(tokio_stream::iter(frames)).boxed_unsync();
        let (_, trailers) = all(Messages::of_answer(broken, None, 4, Refusal::default())).await;
        let status = Status::from_header_map(&trailers.unwrap()).unwrap();
        assert_eq!(status.code(), tonic::Code::Unavailable);
    }

    /// A stream that ended because of what its client sent used to be the node's fault.
    #[tokio::test]
    async fn a_stream_says_what_was_wrong_with_its_request() {
        let (request, refusal) = Messages::of_request(body(vec![framed(&[b"three"])]), None, 4);
        assert!(request.collect().await.is_err());
        let broken = http_body_util::StreamBody::new(tokio_stream::iter([Err(BoxError::from("reset"))]));
        let (_, trailers) = all(Messages::of_answer(broken.boxed_unsync(), None, 4, refusal)).await;
        let status = Status::from_header_map(&trailers.unwrap()).unwrap();
        assert_eq!(status.message(), "trying to send message larger than max (5 vs. 4)");
    }
}
