//! The receiving side: accept, check who calls, read frames and pass them on.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hadron_consensus::NodeId;
use parking_lot::Mutex;
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::frame::{self, BODY_BYTES_MAX, FrameError, HANDSHAKE_BODY_BYTES_MAX, Kind, Messages, Parts};
use super::handshake::{Class, Hello, Identity, Refusal, Welcome, check_hello};
use super::{Inbound, IncomingSnapshot, Shared, inquiry};
use crate::metrics::Counter;
use crate::tls::Stream;
use crate::tls::stream::{Reader, Writer};

/// Connections that have not said who they are.
const STRANGERS_MAX: usize = 64;
/// Many small frames come with one system call.
const READ_BUFFER_BYTES: usize = 128 << 10;
/// Wait after a failed accept: usually the process has no file descriptors left.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// All incoming connections.
pub(super) struct Incoming {
    shared: Arc<Shared>,
    strangers: Arc<Semaphore>,
    /// The nodes whose connections may stay.
    wanted: watch::Sender<BTreeSet<NodeId>>,
    /// How to end the urgent connection of each node.
    current: Mutex<HashMap<NodeId, Arc<Notify>>>,
}

/// Tells when a node with a connection is no member any more.
#[derive(Debug)]
pub struct Presence {
    node: NodeId,
    wanted: watch::Receiver<BTreeSet<NodeId>>,
}

impl Presence {
    /// Returns when the connection must end. One that came from a node that was not known yet stays until members are told of without it.
    pub async fn ended(mut self) {
        while self.wanted.changed().await.is_ok() {
            if !self.wanted.borrow_and_update().contains(&self.node) {
                return;
            }
        }
        // Everything stops.
        std::future::pending().await
    }

    /// Of a node, as long as it is among those.
    #[cfg(test)]
    pub(crate) fn among(node: NodeId, wanted: &watch::Sender<BTreeSet<NodeId>>) -> Presence {
        Presence { node, wanted: wanted.subscribe() }
    }
}

/// How a connection began.
enum Opening {
    /// It may go on.
    Welcomed(Hello),
    /// It ends, for this reason.
    Refused(Refusal),
    /// It was a question.
    Answered,
    /// It is not encrypted as it should be, which was said already.
    Untrusted,
}

impl Incoming {
    pub(super) fn new(shared: Arc<Shared>) -> Incoming {
        Incoming {
            shared,
            strangers: Arc::new(Semaphore::new(STRANGERS_MAX)),
            wanted: watch::Sender::default(),
            current: Mutex::default(),
        }
    }

    /// Accepts connections, for ever.
    pub(super) async fn accept(self: Arc<Self>, listener: TcpListener) {
        loop {
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "cannot accept a peer connection");
                    sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            match self.strangers.clone().try_acquire_owned() {
                Ok(permit) => drop(tokio::spawn(self.clone().serve(stream, address, permit))),
                Err(_) => warn!(%address, "too many peer connections without a handshake, closing one"),
            }
        }
    }

    async fn serve(self: Arc<Self>, stream: TcpStream, address: SocketAddr, stranger: OwnedSemaphorePermit) {
        // Before it is asked whether the node is a member: what changes afterwards is noticed.
        let wanted = self.wanted.subscribe();
        let handshake = timeout(self.shared.options.connect_timeout, self.open(stream, address)).await;
        drop(stranger);
        let (stream, hello) = match handshake.unwrap_or(Err(FrameError::TimedOut)) {
            Ok((Some(stream), Opening::Welcomed(hello))) => (stream, hello),
            Ok((None, _) | (_, Opening::Untrusted)) => return,
            Ok((_, Opening::Answered)) => return debug!(%address, "answered an inquiry"),
            Ok((_, Opening::Refused(refusal))) => {
                return warn!(%address, reason = %refusal, "refused a peer connection");
            }
            Err(FrameError::Closed) => return debug!(%address, "peer connection closed before its handshake"),
            Err(error) => return warn!(%address, %error, "peer connection without a valid handshake"),
        };
        let peer = format!("{:x}", hello.from.node.0);
        let failures = self.shared.metrics.peer_received_failures.with(&[&peer]);
        let presence = Presence { node: hello.from.node, wanted };
        let error = match hello.class {
            Class::Urgent => self.serve_urgent(stream, &hello.from, presence).await,
            Class::Bulk => self.serve_bulk(stream, &hello.from).await,
            Class::Calls => {
                (self.shared.receive)(hello.from.node, Inbound::Calls(stream, presence));
                Ok(())
            }
        };
        let Err(error) = error else { return };
        match error {
            FrameError::Closed => {
                info!(%peer, name = %hello.from.name, %address, "peer closed its connection")
            }
            error => {
                failures.inc();
                warn!(%peer, name = %hello.from.name, %address, %error, "connection from peer ended");
            }
        }
    }

    /// Encrypts the connection, if it is to be, and reads and answers its first frame.
    async fn open(
        &self,
        stream: TcpStream,
        address: SocketAddr,
    ) -> Result<(Option<Stream>, Opening), FrameError> {
        let mut stream = match self.shared.tls.accept(stream).await {
            Ok(stream) => stream,
            Err(error) => {
                // Who hangs up at once is a probe, or a node that is about to start.
                match error.kind() {
                    io::ErrorKind::UnexpectedEof => {
                        debug!(%address, "peer connection closed in its handshake")
                    }
                    _ => warn!(remote_addr = %address, %error, "rejected connection on peer endpoint"),
                }
                return Ok((None, Opening::Untrusted));
            }
        };
        let opening = self.shake_hands(&mut stream).await?;
        Ok((Some(stream), opening))
    }

    /// Reads the first frame and answers it.
    async fn shake_hands(&self, stream: &mut Stream) -> Result<Opening, FrameError> {
        let (kind, body) = frame::read(stream, HANDSHAKE_BODY_BYTES_MAX).await?;
        let hello = match kind {
            Kind::Hello => Hello::decode(body)?,
            Kind::Inquiry => {
                inquiry::reply(stream, body, &self.shared.identity, &self.shared.known).await?;
                return Ok(Opening::Answered);
            }
            Kind::MembersInquiry => {
                inquiry::reply_members(stream, &body, &self.shared.members).await?;
                return Ok(Opening::Answered);
            }
            _ => return Err(FrameError::Unexpected("a connection begins with a hello")),
        };
        match self.check(&hello).await {
            Ok(version) => {
                let welcome = Welcome { version, from: self.shared.identity.clone() };
                frame::write(stream, &frame::encode(Kind::Welcome, &welcome.encode())).await?;
                Ok(Opening::Welcomed(hello))
            }
            Err(refusal) => {
                frame::write(stream, &frame::encode(Kind::Refused, &refusal.encode())).await?;
                Ok(Opening::Refused(refusal))
            }
        }
    }

    async fn check(&self, hello: &Hello) -> Result<u16, Refusal> {
        let version = check_hello(hello, &self.shared.identity)?;
        self.shared.admit(&hello.from, hello.revision).await?;
        Ok(version)
    }

    /// Ends the connections of nodes that are not among `wanted`, but for snapshots.
    pub(super) fn keep_only(&self, wanted: BTreeSet<NodeId>) {
        self.wanted.send_replace(wanted);
    }

    async fn serve_urgent(
        &self,
        stream: Stream,
        from: &Identity,
        presence: Presence,
    ) -> Result<(), FrameError> {
        let replaced = Arc::new(Notify::new());
        let previous = self.current.lock().insert(from.node, replaced.clone());
        if let Some(previous) = previous {
            previous.notify_one();
        }
        let (reader, writer) = stream.into_split();
        tokio::select! {
            ended = self.read_messages(reader, writer, from.node) => ended,
            () = replaced.notified() => Ok(()),
            () = presence.ended() => Ok(()),
        }
    }

    /// Until the connection ends.
    async fn read_messages(
        &self,
        reader: Reader,
        mut writer: Writer,
        from: NodeId,
    ) -> Result<(), FrameError> {
        let mut reader = BufReader::with_capacity(READ_BUFFER_BYTES, reader);
        let received_bytes = self.received_bytes(from);
        let budget = Arc::new(Semaphore::new(self.shared.options.inbound_bytes_max));
        let silence = self.shared.options.silence_timeout + self.shared.options.ping_interval;
        let pong = frame::encode(Kind::Pong, &[]);
        let mut parts = Parts::default();
        loop {
            let next = timeout(silence, frame::read(&mut reader, BODY_BYTES_MAX)).await;
            let (kind, body) = next.map_err(|_| FrameError::TimedOut)??;
            received_bytes.add((frame::HEADER_BYTES + body.len()) as u64);
            match parts.gather(kind, body)? {
                None => {}
                Some((Kind::Messages, body)) => {
                    let bytes = body.len().min(self.shared.options.inbound_bytes_max) as u32;
                    let permit =
                        budget.clone().acquire_many_owned(bytes).await.map_err(|_| FrameError::Closed)?;
                    let messages = Messages::new(body);
                    (self.shared.receive)(from, Inbound::Messages { messages, permit });
                }
                Some((Kind::Ping, _)) => frame::write(&mut writer, &pong).await?,
                Some(_) => {
                    return Err(FrameError::Unexpected(
                        "neither messages nor a ping on an urgent connection",
                    ));
                }
            }
        }
    }

    /// Where bytes from a node are counted.
    fn received_bytes(&self, from: NodeId) -> Arc<Counter> {
        self.shared.metrics.peer_received_bytes.with(&[&format!("{:x}", from.0)])
    }

    async fn serve_bulk(&self, stream: Stream, from: &Identity) -> Result<(), FrameError> {
        let received_bytes = self.received_bytes(from.node);
        let snapshot =
            IncomingSnapshot::open(stream, self.shared.options.bulk_timeout, received_bytes).await?;
        (self.shared.receive)(from.node, Inbound::Snapshot(snapshot));
        Ok(())
    }
}
