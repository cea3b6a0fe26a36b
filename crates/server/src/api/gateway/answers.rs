//! From a gRPC response to an HTTP response: framed messages in, JSON out.

use bytes::{Buf, Bytes, BytesMut};
use futures::stream;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use prost_reflect::MessageDescriptor;
use tonic::body::Body;
use tonic::{Code, Status};

use super::{error, json};
use crate::api::unsent;

const FRAME_HEAD_BYTES: usize = 5;

/// The answer of a call with one response.
pub(super) async fn single(
    response: Response<Body>,
    descriptor: &MessageDescriptor,
) -> Result<Response<Body>, Status> {
    let mut messages = Messages::new(response)?;
    let message = messages.next().await?;
    let message = message.ok_or_else(|| Status::internal("hadron: a call without an answer"))?;
    // The status comes after the message.
    while messages.next().await?.is_some() {}
    let text = json::print_beside(descriptor, message).await?;
    let mut response = json_response(Body::empty());
    unsent::mark(response.extensions_mut(), text.len());
    Ok(response.map(|_| Body::new(Full::new(Bytes::from(text)))))
}

/// The answer of a call with any number of responses, one on each line. Its HTTP status is not known before there is a
/// first one.
pub(super) async fn stream(
    response: Response<Body>,
    descriptor: MessageDescriptor,
) -> Result<Response<Body>, Status> {
    let first = async {
        let mut messages = Messages::new(response)?;
        Ok((messages.next().await?, messages))
    };
    let (first, messages) = match first.await {
        Ok(first) => first,
        Err(status) => return Ok(error::stream_response(&status)),
    };
    let lines = Lines { next: first, messages, descriptor, ended: false };
    let frames = stream::unfold(lines, |mut lines| async {
        let line = lines.next().await?;
        Some((Ok::<_, Status>(Frame::data(line)), lines))
    });
    Ok(json_response(Body::new(StreamBody::new(frames))))
}

fn json_response(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The lines of a stream.
struct Lines {
    /// A message that has arrived already.
    next: Option<Bytes>,
    messages: Messages,
    descriptor: MessageDescriptor,
    ended: bool,
}

impl Lines {
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        match self.line().await {
            Ok(Some(line)) => Some(line),
            Ok(None) => None,
            Err(status) => {
                self.ended = true;
                Some(error::stream_line(&status))
            }
        }
    }

    async fn line(&mut self) -> Result<Option<Bytes>, Status> {
        let message = match self.next.take() {
            Some(message) => Some(message),
            None => self.messages.next().await?,
        };
        let Some(message) = message else { return Ok(None) };
        let text = json::print_beside(&self.descriptor, message).await?;
        Ok(Some([b"{\"result\":", text.as_slice(), b"}\n"].concat().into()))
    }
}

/// The messages of a gRPC response, and then its status.
struct Messages {
    body: Body,
    /// What arrived and was not given out yet.
    buffer: BytesMut,
}

impl Messages {
    fn new(response: Response<Body>) -> Result<Messages, Status> {
        check_status(response.headers())?;
        Ok(Messages { body: response.into_body(), buffer: BytesMut::new() })
    }

    /// The next message, or the end, or the call's error.
    async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(message) = self.take() {
                return Ok(Some(message));
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            match frame?.into_data() {
                Ok(data) => self.buffer.extend_from_slice(&data),
                Err(frame) => frame.trailers_ref().map_or(Ok(()), check_status)?,
            }
        }
    }

    /// A message that arrived to its end. Nothing is compressed, since the request did not offer it.
    fn take(&mut self) -> Option<Bytes> {
        let length = self.buffer.get(1..FRAME_HEAD_BYTES)?;
        let length = u32::from_be_bytes(length.try_into().ok()?) as usize;
        if self.buffer.len() < FRAME_HEAD_BYTES + length {
            return None;
        }
        self.buffer.advance(FRAME_HEAD_BYTES);
        Some(self.buffer.split_to(length).freeze())
    }
}

fn check_status(headers: &http::HeaderMap) -> Result<(), Status> {
    match Status::from_header_map(headers) {
        Some(status) if status.code() != Code::Ok => Err(status),
        _ => Ok(()),
    }
}
