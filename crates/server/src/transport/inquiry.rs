//! Questions before anybody is anybody: what do you know about this node, and who are the members? `docs/formats/peer.md`
//! has the bytes.
//!
//! Asked by a node that is about to start with a data directory in which nothing happened yet, to learn whether it had
//! another one before, and by one that is to join, to learn who it is. An inquiry is no handshake: nobody remembers that it was asked, and whoever is asked answers
//! nodes of every cluster and version, since only the asker can judge what that means.

use std::io;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use hadron_consensus::NodeId;
use hadron_node::Bootstrap;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use super::frame::{self, FrameError, HANDSHAKE_BODY_BYTES_MAX, Kind};
use super::handshake::{Identity, MAGIC, put_identity, take_identity, take_u64};
use super::{Known, Members, PeerTls};
use crate::config::Url;
use crate::tls::Stream;

/// Wait before a question is asked again whose connection broke: the other node is just starting.
const RETRY: Duration = Duration::from_millis(20);
/// The longest answer about members that is read.
const MEMBERS_BODY_BYTES_MAX: usize = 4 << 20;
/// How long a connection may take to ask its question.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(2);

/// What a node says about another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Who answered.
    pub from: Identity,
    /// The identity of the data directory that the answerer knows the other node with.
    pub known: Option<u64>,
}

/// Who the members of a pool are, as one of them knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct MembersAnswer {
    /// The revision of the roster: the answer with the greatest one is the newest.
    pub revision: i64,
    /// The cluster's id and its members.
    pub pool: Bootstrap,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The node cannot be reached.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// It was reached, or seemed to be, and said nothing.
    #[error("no answer in time")]
    TimedOut,
    /// What it said makes no sense.
    #[error("{0}")]
    Frame(#[from] FrameError),
}

/// Asks the node at `urls`, tried in turn, about the node `about`. Takes no longer than `patience`.
///
/// # Errors
/// There is no answer.
pub async fn ask(tls: &PeerTls, urls: &[Url], about: NodeId, patience: Duration) -> Result<Answer, AskError> {
    let attempts = async {
        let mut failure = AskError::TimedOut;
        for url in urls {
            match ask_one(tls, url, about).await {
                Ok(answer) => return Ok(answer),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    };
    timeout(patience, attempts).await.unwrap_or(Err(AskError::TimedOut))
}

async fn ask_one(tls: &PeerTls, url: &Url, about: NodeId) -> Result<Answer, AskError> {
    loop {
        let answer = match tls.connect(url).await {
            Ok(mut stream) => exchange(&mut stream, about).await,
            Err(error) if hung_up(&error) => Err(FrameError::Closed),
            Err(error) => return Err(AskError::Connect(error)),
        };
        match answer {
            // It was about to start, and hung up to begin in earnest.
            Err(FrameError::Closed | FrameError::Io(_)) => sleep(RETRY).await,
            outcome => return Ok(outcome?),
        }
    }
}

/// Whether the other end went away in the middle of an encrypted connection's handshake.
fn hung_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
}

async fn exchange(stream: &mut Stream, about: NodeId) -> Result<Answer, FrameError> {
    let mut question = BytesMut::new();
    question.put_slice(MAGIC);
    question.put_u64_le(about.0);
    frame::write(stream, &frame::encode(Kind::Inquiry, &question)).await?;
    match frame::read(stream, HANDSHAKE_BODY_BYTES_MAX).await? {
        (Kind::Answer, mut body) => {
            let known = Some(take_u64(&mut body)?).filter(|id| *id != 0);
            Ok(Answer { from: take_identity(&mut body)?, known })
        }
        _ => Err(FrameError::Unexpected("an inquiry is answered by an answer")),
    }
}

/// Asks the node at `urls`, tried in turn, who the members of its pool are. Takes no longer than `patience`.
///
/// # Errors
/// There is no answer.
pub async fn ask_members(tls: &PeerTls, urls: &[Url], patience: Duration) -> Result<MembersAnswer, AskError> {
    let attempts = async {
        let mut failure = AskError::TimedOut;
        for url in urls {
            let answer = async {
                let mut stream = tls.connect(url).await.map_err(AskError::Connect)?;
                Ok(exchange_members(&mut stream).await?)
            };
            match answer.await {
                Ok(answer) => return Ok(answer),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    };
    timeout(patience, attempts).await.unwrap_or(Err(AskError::TimedOut))
}

async fn exchange_members(stream: &mut Stream) -> Result<MembersAnswer, FrameError> {
    frame::write(stream, &frame::encode(Kind::MembersInquiry, MAGIC)).await?;
    match frame::read(stream, MEMBERS_BODY_BYTES_MAX).await? {
        (Kind::MembersAnswer, mut body) => {
            let revision = take_u64(&mut body)? as i64;
            let pool = Bootstrap::from_bytes(body);
            Ok(MembersAnswer { revision, pool: pool.map_err(|_| FrameError::Malformed("a pool"))? })
        }
        _ => Err(FrameError::Unexpected("an inquiry is answered by an answer")),
    }
}

/// Answers an inquiry about the members.
pub(super) async fn reply_members(
    stream: &mut Stream,
    body: &Bytes,
    members: &Members,
) -> Result<(), FrameError> {
    if !body.starts_with(MAGIC) {
        return Err(FrameError::Malformed("an inquiry without its magic"));
    }
    let MembersAnswer { revision, pool } = members();
    let mut out = BytesMut::new();
    out.put_u64_le(revision as u64);
    out.put_slice(&pool.to_bytes());
    frame::write(stream, &frame::encode(Kind::MembersAnswer, &out)).await?;
    Ok(())
}

/// Answers inquiries on `listener`, for ever, and hangs up on everybody else: for a node that asks itself, so that nodes
/// that start together do not wait for each other.
pub async fn answer(tls: PeerTls, listener: TcpListener, own: Identity, known: Known) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(serve(tls.clone(), stream, own.clone(), known.clone()))),
            Err(_) => sleep(RETRY).await,
        }
    }
}

/// Whoever does not ask properly, or in time, is not answered.
async fn serve(tls: PeerTls, stream: TcpStream, own: Identity, known: Known) {
    let served = async {
        let mut stream = tls.accept(stream).await?;
        match frame::read(&mut stream, HANDSHAKE_BODY_BYTES_MAX).await {
            Ok((Kind::Inquiry, body)) => reply(&mut stream, body, &own, &known).await,
            _ => Ok(()),
        }
    };
    let _ = timeout(QUESTION_TIMEOUT, served).await;
}

/// Answers the inquiry in `body`.
pub(super) async fn reply(
    stream: &mut Stream,
    mut body: Bytes,
    own: &Identity,
    known: &Known,
) -> Result<(), FrameError> {
    if body.len() < MAGIC.len() || body.chunk()[..MAGIC.len()] != MAGIC[..] {
        return Err(FrameError::Malformed("an inquiry without its magic"));
    }
    body.advance(MAGIC.len());
    let about = NodeId(take_u64(&mut body)?);
    let mut out = BytesMut::new();
    out.put_u64_le(known(about).unwrap_or(0));
    put_identity(&mut out, own);
    frame::write(stream, &frame::encode(Kind::Answer, &out)).await?;
    Ok(())
}
