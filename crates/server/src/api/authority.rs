//! Clients whose `:authority` is none. etcd does not look at it, and so some clients never noticed that they send
//! `#initially=[host:2379]` (etcd's Go client 3.5.0, and with it the API servers of Kubernetes 1.22 and 1.23), the end of a URL
//! (`host:2379/`), several addresses (`a:2379,b:2379`) or nothing. The library that speaks HTTP/2 here takes that for a violation of
//! the protocol, and ends each call before anybody hears of it.
//!
//! So the first request of a connection is looked at before the library sees it. If its authority is one, as it is but for such
//! clients, or if HTTP/2 is not spoken, nothing is looked at any more. If not, all header blocks of the connection are written
//! anew, without what is no authority: they lean on each other (RFC 7541, section 2.2).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::uri::Authority;
use loona_hpack::Decoder;
use loona_hpack::encoder::encode_integer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a connection of HTTP/2 begins with (RFC 9113, section 3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of a header block, as it comes and decoded: what a call may have, which the library says to whoever sends more.
const BLOCK_BYTES_MAX: usize = 64 << 10;
/// Strings of a block that are Huffman-coded. Each costs much, since the decoder makes its tables anew; clients have a dozen.
const CODED_MAX: usize = 64;
/// What is made for the reader before it takes it: a few bytes of a block may stand for many.
const GOES_BYTES_MAX: usize = 2 * BLOCK_BYTES_MAX;
/// What a field counts beside its bytes (RFC 7541, section 4.1).
const FIELD_BYTES: usize = 32;
/// The head of a frame (RFC 9113, section 4.1).
const HEAD_BYTES: usize = 9;
/// A frame without its head, as long as nobody agreed on another bound (section 4.2).
const PAYLOAD_BYTES_MAX: usize = 16 << 10;
/// The table of fields that both ends keep, as long as nobody agreed on another bound (section 6.5.2).
const TABLE_BYTES: usize = 4 << 10;
/// What is read at a time from a connection that is looked at.
const READ_BYTES: usize = 8 << 10;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// What precedes the fragment in a frame with a priority.
const PRIORITY_BYTES: usize = 5;

/// A client's connection, in which a reader finds no `:authority` that is none.
pub(crate) struct Mended<S> {
    inner: S,
    state: State,
    /// What was read and not looked at yet.
    came: BytesMut,
    /// What the reader is to get.
    goes: BytesMut,
}

/// What is known of a connection.
enum State {
    /// Nothing.
    New,
    /// It speaks HTTP/2, and its first request has not come yet.
    Looking(Frames),
    /// Its client says what it should not.
    Mending(Frames),
    /// It may be left alone.
    Passing,
}

/// What one direction of a connection is made of.
struct Frames {
    decoder: Decoder<'static>,
    /// Bytes that are to come of a frame that is none of a header block.
    passing: usize,
    /// A header block that has not come to its end.
    block: Option<Block>,
}

/// A header block, which may come in several frames.
struct Block {
    stream: u32,
    ends_stream: bool,
    fragments: BytesMut,
    /// The frames, as they came.
    frames: BytesMut,
}

/// Not what the protocol allows.
#[derive(Debug)]
struct Malformed;

/// The head of a frame.
struct Head {
    payload_bytes: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

/// The fields of a header block, in their order.
type Fields = Vec<(Bytes, Bytes)>;

impl Head {
    fn of(mut bytes: &[u8]) -> Option<Head> {
        (bytes.len() >= HEAD_BYTES).then(|| Head {
            payload_bytes: bytes.get_uint(3) as usize,
            kind: bytes.get_u8(),
            flags: bytes.get_u8(),
            stream: bytes.get_u32() & (u32::MAX >> 1),
        })
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

impl Block {
    fn new(head: &Head) -> Block {
        Block {
            stream: head.stream,
            ends_stream: head.has(END_STREAM),
            fragments: BytesMut::new(),
            frames: BytesMut::new(),
        }
    }

    /// Another frame of it has come.
    fn take(&mut self, head: &Head, frame: &[u8]) -> Result<(), Malformed> {
        self.frames.put_slice(frame);
        let mut fragment = &frame[HEAD_BYTES..];
        if head.kind == HEADERS {
            let padding = if head.has(PADDED) { fragment.try_get_u8().map_err(|_| Malformed)? } else { 0 };
            let priority = if head.has(PRIORITY) { PRIORITY_BYTES } else { 0 };
            let end = fragment.len().checked_sub(padding.into()).ok_or(Malformed)?;
            fragment = fragment.get(priority..end).ok_or(Malformed)?;
        }
        self.fragments.put_slice(fragment);
        if self.frames.len() > BLOCK_BYTES_MAX { Err(Malformed) } else { Ok(()) }
    }

    /// Writes frames that have these fields instead.
    fn write(&self, fields: &Fields, to: &mut BytesMut) {
        let mut fragments = BytesMut::new();
        for (name, value) in fields {
            // A literal that nobody remembers, with a name of its own (RFC 7541, section 6.2.2).
            fragments.put_u8(0);
            for text in [name, value] {
                fragments.put_slice(&encode_integer(text.len(), 7));
                fragments.put_slice(text);
            }
        }
        let mut flags = if self.ends_stream { END_STREAM } else { 0 };
        let mut kind = HEADERS;
        loop {
            let fragment = fragments.split_to(fragments.len().min(PAYLOAD_BYTES_MAX));
            let is_last = fragments.is_empty();
            to.put_uint(fragment.len() as u64, 3);
            to.put_u8(kind);
            to.put_u8(flags | if is_last { END_HEADERS } else { 0 });
            to.put_u32(self.stream);
            to.put_slice(&fragment);
            if is_last {
                return;
            }
            (kind, flags) = (CONTINUATION, 0);
        }
    }
}

impl Frames {
    fn new() -> Frames {
        let mut decoder = Decoder::new();
        decoder.set_max_allowed_table_size(TABLE_BYTES);
        Frames { decoder, passing: 0, block: None }
    }

    /// Moves what `came` to what `goes`, up to a header block that is complete, if there is one.
    fn next_block(&mut self, came: &mut BytesMut, goes: &mut BytesMut) -> Result<Option<Block>, Malformed> {
        loop {
            let passing = self.passing.min(came.len());
            goes.put_slice(&came.split_to(passing));
            self.passing -= passing;
            let Some(head) = Head::of(came) else { return Ok(None) };
            let frame_bytes = HEAD_BYTES + head.payload_bytes;
            let is_fragment = match &self.block {
                None => head.kind == HEADERS,
                Some(block) => head.kind == CONTINUATION && head.stream == block.stream,
            };
            if head.payload_bytes > PAYLOAD_BYTES_MAX || !is_fragment && self.block.is_some() {
                return Err(Malformed);
            }
            if !is_fragment {
                self.passing = frame_bytes;
                continue;
            }
            if came.len() < frame_bytes {
                return Ok(None);
            }
            let frame = came.split_to(frame_bytes);
            let block = self.block.get_or_insert_with(|| Block::new(&head));
            block.take(&head, &frame)?;
            if head.has(END_HEADERS) {
                return Ok(self.block.take());
            }
        }
    }

    fn decode(&mut self, block: &Block) -> Result<Fields, Malformed> {
        if coded_strings(&block.fragments)? > CODED_MAX {
            return Err(Malformed);
        }
        let mut fields = Fields::new();
        let mut bytes = 0;
        let decoded = self.decoder.decode_with_cb(&block.fragments, |name, value| {
            bytes += name.len() + value.len() + FIELD_BYTES;
            // A few bytes may stand for many.
            if bytes <= BLOCK_BYTES_MAX {
                fields.push((name.into_owned().into(), value.into_owned().into()));
            }
        });
        if decoded.is_ok() && bytes <= BLOCK_BYTES_MAX { Ok(fields) } else { Err(Malformed) }
    }
}

/// How many strings of a header block are Huffman-coded (RFC 7541, section 6: how fields are represented).
fn coded_strings(mut block: &[u8]) -> Result<usize, Malformed> {
    let mut coded = 0;
    while let Some(first) = block.first() {
        let (prefix, is_literal) = match first.leading_zeros() {
            0 => (7, false),
            1 => (6, true),
            2 => (5, false),
            _ => (4, true),
        };
        let name = take_integer(&mut block, prefix)?;
        let strings = if is_literal { 1 + usize::from(name == 0) } else { 0 };
        for _ in 0..strings {
            coded += usize::from(block.first().is_some_and(|first| first & 0x80 != 0));
            let length = take_integer(&mut block, 7)?;
            block = block.get(length..).ok_or(Malformed)?;
        }
    }
    Ok(coded)
}

/// An integer whose first byte has so many bits of it (section 5.1).
fn take_integer(bytes: &mut &[u8], prefix: u32) -> Result<usize, Malformed> {
    let most = (1 << prefix) - 1;
    let mut integer = usize::from(bytes.try_get_u8().map_err(|_| Malformed)?) & most;
    if integer < most {
        return Ok(integer);
    }
    // Nothing is larger than a block.
    for shift in [0, 7, 14] {
        let next = bytes.try_get_u8().map_err(|_| Malformed)?;
        integer += usize::from(next & 0x7f) << shift;
        if next & 0x80 == 0 {
            return Ok(integer);
        }
    }
    Err(Malformed)
}

/// Whether a field says what an authority is, and says none.
fn is_no_authority((name, value): &(Bytes, Bytes)) -> bool {
    name == ":authority" && Authority::try_from(&value[..]).is_err()
}

impl<S> Mended<S> {
    pub(crate) fn new(inner: S) -> Mended<S> {
        Mended { inner, state: State::New, came: BytesMut::new(), goes: BytesMut::new() }
    }

    /// Looks at what came, until the reader has enough.
    fn look(&mut self) -> Result<(), Malformed> {
        while self.goes.len() < GOES_BYTES_MAX {
            match &mut self.state {
                State::New => {
                    let known = self.came.len().min(PREFACE.len());
                    if self.came[..known] != PREFACE[..known] {
                        self.pass();
                    } else if known == PREFACE.len() {
                        self.goes.put_slice(&self.came.split_to(known));
                        self.state = State::Looking(Frames::new());
                    } else {
                        return Ok(());
                    }
                }
                State::Looking(frames) => match frames.next_block(&mut self.came, &mut self.goes) {
                    Ok(None) => return Ok(()),
                    Ok(Some(block)) => self.look_at_first(block),
                    Err(Malformed) => self.pass(),
                },
                State::Mending(frames) => {
                    let Some(block) = frames.next_block(&mut self.came, &mut self.goes)? else {
                        return Ok(());
                    };
                    let mut fields = frames.decode(&block)?;
                    fields.retain(|field| !is_no_authority(field));
                    block.write(&fields, &mut self.goes);
                }
                State::Passing => return Ok(()),
            }
        }
        Ok(())
    }

    /// Decides by the first request what becomes of the connection.
    fn look_at_first(&mut self, block: Block) {
        let State::Looking(mut frames) = std::mem::replace(&mut self.state, State::Passing) else { return };
        match frames.decode(&block) {
            Ok(mut fields) if fields.iter().any(is_no_authority) => {
                fields.retain(|field| !is_no_authority(field));
                block.write(&fields, &mut self.goes);
                self.state = State::Mending(frames);
            }
            _ => {
                self.goes.put_slice(&block.frames);
                self.pass();
            }
        }
    }

    /// Leaves the connection alone from now on.
    fn pass(&mut self) {
        if let State::Looking(frames) | State::Mending(frames) = &mut self.state
            && let Some(block) = frames.block.take()
        {
            self.goes.put_slice(&block.frames);
        }
        self.state = State::Passing;
        self.goes.put_slice(&std::mem::take(&mut self.came));
    }
}

fn malformed(_: Malformed) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed header block")
}

impl<S: AsyncRead + Unpin> AsyncRead for Mended<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if !self.goes.is_empty() {
                let given = self.goes.len().min(buffer.remaining());
                buffer.put_slice(&self.goes.split_to(given));
                if self.goes.is_empty() {
                    // Gives the memory back, which most connections need no more.
                    self.goes = BytesMut::new();
                }
                return Poll::Ready(Ok(()));
            }
            if matches!(self.state, State::Passing) {
                return Pin::new(&mut self.inner).poll_read(task, buffer);
            }
            self.look().map_err(malformed)?;
            if !self.goes.is_empty() {
                continue;
            }
            let mut space = [0; READ_BYTES];
            let mut read = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut self.inner).poll_read(task, &mut read))?;
            if read.filled().is_empty() {
                self.pass();
                continue;
            }
            self.came.put_slice(read.filled());
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Mended<S> {
    fn poll_write(mut self: Pin<&mut Self>, task: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(task, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(task)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(task, slices)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::convert::Infallible;

    use http_body_util::Empty;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;
    use crate::api::server::{Connections, connection_builder};

    const SETTINGS: u8 = 4;
    const RST_STREAM: u8 = 3;
    const GOAWAY: u8 = 7;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        frame.put_uint(payload.len() as u64, 3);
        frame.put_u8(kind);
        frame.put_u8(flags);
        frame.put_u32(stream);
        frame.put_slice(payload);
        frame
    }

    /// `name` is what precedes the value: that the field is remembered, and the number of its name.
    fn remembered(name: u8, value: &str) -> Vec<u8> {
        [&[name][..], &encode_integer(value.len(), 7), value.as_bytes()].concat()
    }

    /// Two requests, the second of which leans on the table that the first has filled.
    fn two_requests(authority: &str) -> Vec<u8> {
        let (post, http) = (0x83, 0x86);
        let first = [vec![post, http], remembered(0x44, "/a.B/C"), remembered(0x41, authority)].concat();
        let (path, authority) = (0xbf, 0xbe);
        let second = [post, http, path, authority];
        [
            PREFACE.to_vec(),
            frame(SETTINGS, 0, 0, &[]),
            // In two frames, the first of them padded and with a priority.
            frame(
                HEADERS,
                END_STREAM | PADDED | PRIORITY,
                1,
                &[&[3, 0, 0, 0, 0, 9], &first[..5], &[0; 3]].concat(),
            ),
            frame(CONTINUATION, END_HEADERS, 1, &first[5..]),
            frame(HEADERS, END_STREAM | END_HEADERS, 3, &second),
        ]
        .concat()
    }

    /// Serves what comes at the other end, and says of each request what it was.
    fn served() -> (DuplexStream, tokio::sync::mpsc::UnboundedReceiver<http::request::Parts>) {
        let (client, server) = duplex(64 << 10);
        let (asked, requests) = tokio::sync::mpsc::unbounded_channel();
        let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let _ = asked.send(request.into_parts().0);
            async { Ok::<_, Infallible>(http::Response::new(Empty::<Bytes>::new())) }
        });
        let builder = connection_builder(Connections::default());
        tokio::spawn(
            async move { builder.serve_connection(TokioIo::new(Mended::new(server)), service).await },
        );
        (client, requests)
    }

    /// Reads until so many calls were answered.
    async fn answers(client: &mut DuplexStream, mut count: usize) {
        while count > 0 {
            let mut head = [0; HEAD_BYTES];
            client.read_exact(&mut head).await.unwrap();
            let head = Head::of(&head).unwrap();
            assert!(![RST_STREAM, GOAWAY].contains(&head.kind), "stream {} is refused", head.stream);
            client.read_exact(&mut vec![0; head.payload_bytes]).await.unwrap();
            count -= usize::from(head.kind == HEADERS);
        }
    }

    /// Each was refused, as a violation of the protocol.
    #[tokio::test]
    async fn whoever_has_no_authority_is_answered() {
        for authority in ["#initially=[127.0.0.1:2379]", "127.0.0.1:2379/", "a:2379,b:2379", "", "%"] {
            for piece in [1, 7, 1 << 20] {
                let (mut client, mut requests) = served();
                for bytes in two_requests(authority).chunks(piece) {
                    client.write_all(bytes).await.unwrap();
                    tokio::task::yield_now().await;
                }
                answers(&mut client, 2).await;
                for _ in 0..2 {
                    let asked = requests.recv().await.unwrap();
                    assert_eq!((asked.uri.path(), asked.uri.authority()), ("/a.B/C", None), "{authority}");
                }
            }
        }
    }

    #[tokio::test]
    async fn an_authority_stays() {
        let (mut client, mut requests) = served();
        client.write_all(&two_requests("etcd:2379")).await.unwrap();
        answers(&mut client, 2).await;
        for _ in 0..2 {
            assert_eq!(requests.recv().await.unwrap().uri.authority().unwrap(), "etcd:2379");
        }
    }

    #[tokio::test]
    async fn a_block_that_is_too_large_ends_the_connection() {
        let (mut client, _requests) = served();
        let fill = [remembered(0x41, "/"), remembered(0x40, "x")].concat();
        let begin =
            [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, END_HEADERS, 1, &fill[..3])].concat();
        client.write_all(&begin).await.unwrap();
        client.write_all(&frame(HEADERS, 0, 3, &[0x83])).await.unwrap();
        // The server may have gone before it has read all.
        for _ in 0..1 << 15 {
            if client.write_all(&frame(CONTINUATION, 0, 3, &[])).await.is_err() {
                break;
            }
        }
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
    }

    /// A few kilobytes kept a thread busy for seconds, before anybody had said who he is.
    #[test]
    fn a_block_with_many_coded_strings_is_not_decoded() {
        let block = |fields: usize| Block {
            fragments: BytesMut::from(&[0, 0x80, 0x80].repeat(fields)[..]),
            ..Block::new(&Head { payload_bytes: 0, kind: HEADERS, flags: END_HEADERS, stream: 1 })
        };
        Frames::new().decode(&block(CODED_MAX / 2)).unwrap();
        Frames::new().decode(&block(CODED_MAX / 2 + 1)).unwrap_err();
        let known =
            [&[0x83, 0x86][..], &remembered(0x44, "/a"), &remembered(0x41, ""), &[0x3f, 0xe1, 0x1f]].concat();
        assert_eq!(coded_strings(&known).unwrap(), 0);
        assert_eq!(coded_strings(&[0x41, 0x84, 1, 2, 3, 4]).unwrap(), 1);
        for cut in [&[0x41][..], &[0x41, 0x84, 1], &[0x7f], &[0, 0x7f, 0xff, 0xff, 0xff, 0xff]] {
            coded_strings(cut).unwrap_err();
        }
    }

    /// What small frames became was made for the reader before he took any of it.
    #[tokio::test]
    async fn what_is_made_for_a_slow_reader_is_bounded() {
        let value = "v".repeat(3_000);
        let long = [&[0x40][..], &[1, b'x'], &encode_integer(value.len(), 7), value.as_bytes()].concat();
        let first = [&[0x83, 0x86][..], &remembered(0x41, "/"), &remembered(0x44, "/p"), &long].concat();
        let mut bytes = [PREFACE, &frame(HEADERS, END_HEADERS, 1, &first)].concat();
        for stream in 1..500 {
            // Each has the same long field ten times.
            bytes.extend(frame(HEADERS, END_HEADERS, 2 * stream + 1, &[0xbe; 10]));
        }
        let mut mended = Mended::new(std::io::Cursor::new(bytes));
        let (mut got, mut all) = ([0; 1_000], 0);
        loop {
            let count = mended.read(&mut got).await.unwrap();
            assert!(mended.goes.len() <= GOES_BYTES_MAX + BLOCK_BYTES_MAX);
            all += count;
            if count == 0 {
                break;
            }
        }
        assert!(all > 500 * 10 * 3_000, "{all}");
    }

    /// What a reader gets of these bytes, which come in such pieces; and whether they were mended.
    async fn read(bytes: Vec<u8>, piece: usize) -> (Vec<u8>, bool) {
        let (mut client, server) = duplex(256);
        let writing = async move {
            for piece in bytes.chunks(piece) {
                // The reader may have gone.
                let _ = client.write_all(piece).await;
            }
        };
        let mut mended = Mended::new(server);
        let mut got = Vec::new();
        let reading = async {
            // What is mended may turn out to be malformed.
            let _ = mended.read_to_end(&mut got).await;
            matches!(mended.state, State::Passing)
        };
        let ((), passes) = tokio::join!(writing, reading);
        (got, !passes)
    }

    proptest! {
        #[test]
        fn whatever_else_comes_goes_on_as_it_is(
            is_http2: bool,
            kinds in prop::collection::vec((0_u8..12, any::<u8>(), 0_u32..3, prop::collection::vec(any::<u8>(), 0..40)), 0..8),
            tail in prop::collection::vec(any::<u8>(), 0..30),
            piece in 1_usize..40,
        ) {
            let mut bytes = if is_http2 { PREFACE.to_vec() } else { Vec::new() };
            kinds.iter().for_each(|(kind, flags, stream, payload)| bytes.extend(frame(*kind, *flags, *stream, payload)));
            bytes.extend(tail);
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (got, is_mended) = runtime.block_on(read(bytes.clone(), piece));
            prop_assert!(is_mended || got == bytes);
        }
    }
}
