//! From the body of an HTTP request to the body of a gRPC request: JSON objects in, framed messages out.

use bytes::{BufMut, Bytes, BytesMut};
use futures::stream;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use prost_reflect::MessageDescriptor;
use tonic::Status;
use tonic::body::Body;

use super::json;

/// JSON may be this much longer than the message it stands for: base64 makes four bytes of three, names and white space
/// come on top.
const EXPANSION: usize = 2;

/// The body of a call with one request.
pub(super) async fn single(
    mut body: Incoming,
    descriptor: &MessageDescriptor,
    limit: usize,
) -> Result<Body, Status> {
    let mut text = BytesMut::new();
    while let Some(data) = next_data(&mut body).await? {
        text.extend_from_slice(&data);
        check_length(text.len(), limit)?;
    }
    let message = json::parse_beside(descriptor, text.freeze()).await?;
    Ok(Body::new(Full::new(framed(&message))))
}

/// The body of a call with any number of requests: each is passed on as soon as it is complete. A text that makes no
/// sense ends the call with what is wrong.
pub(super) fn stream(body: Incoming, descriptor: MessageDescriptor, limit: usize) -> Body {
    let source = Source { body, descriptor, limit, splitter: Splitter::default() };
    let frames = stream::try_unfold(source, |mut source| async {
        let message = source.next().await?;
        Ok::<_, Status>(message.map(|message| (Frame::data(framed(&message)), source)))
    });
    Body::new(StreamBody::new(frames))
}

struct Source {
    body: Incoming,
    descriptor: MessageDescriptor,
    limit: usize,
    splitter: Splitter,
}

impl Source {
    async fn next(&mut self) -> Result<Option<Vec<u8>>, Status> {
        loop {
            if let Some(object) = self.splitter.next()? {
                return json::parse(&self.descriptor, &object).map(Some);
            }
            check_length(self.splitter.text.len(), self.limit)?;
            match next_data(&mut self.body).await? {
                Some(data) => self.splitter.text.extend_from_slice(&data),
                None if self.splitter.is_within_object() => {
                    return Err(Status::invalid_argument("unexpected end of the JSON input"));
                }
                None => return Ok(None),
            }
        }
    }
}

async fn next_data(body: &mut Incoming) -> Result<Option<Bytes>, Status> {
    loop {
        match body.frame().await {
            None => return Ok(None),
            Some(Err(error)) => return Err(Status::cancelled(format!("cannot read the request: {error}"))),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => return Ok(Some(data)),
                Err(_trailers) => {}
            },
        }
    }
}

fn check_length(length: usize, limit: usize) -> Result<(), Status> {
    let limit = limit * EXPANSION;
    match length > limit {
        true => Err(Status::resource_exhausted(format!(
            "grpc: received message larger than max ({length} vs. {limit})"
        ))),
        false => Ok(()),
    }
}

/// A message as gRPC sends it: not compressed, its length, its bytes.
fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    // Cannot be longer: the text it was made from was not.
    frame.put_u32(message.len() as u32);
    frame.put_slice(message);
    frame.freeze()
}

/// Cuts a text into its JSON objects while it arrives. Looks at each byte once; whether an object is well-formed inside
/// is left to the parser.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    /// What arrived and was not given out yet.
    pub(super) text: BytesMut,
    /// How much of the text was looked at. At its beginning is `{` if this is more than 0.
    seen: usize,
    /// Open braces and brackets.
    depth: usize,
    in_string: bool,
    /// The byte before was a backslash within a string.
    escaped: bool,
}

impl Splitter {
    /// The next object if it has arrived to its end.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, Status> {
        if self.seen == 0 {
            let blank = self.text.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            let _ = self.text.split_to(blank);
            if self.text.first().is_some_and(|first| *first != b'{') {
                return Err(Status::invalid_argument("expected a JSON object"));
            }
        }
        while let Some(&byte) = self.text.get(self.seen) {
            self.seen += 1;
            if self.ends_with(byte) {
                let object = self.text.split_to(self.seen).freeze();
                self.seen = 0;
                return Ok(Some(object));
            }
        }
        Ok(None)
    }

    /// Whether an object began and has not ended.
    pub(super) fn is_within_object(&self) -> bool {
        self.seen > 0
    }

    /// Takes one byte; true if it closes the object.
    fn ends_with(&mut self, byte: u8) -> bool {
        if self.in_string {
            self.in_string = self.escaped || byte != b'"';
            self.escaped = !self.escaped && byte == b'\\';
            return false;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth -= 1,
            _ => {}
        }
        self.depth == 0
    }
}
