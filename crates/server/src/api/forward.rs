//! Passing calls on to a node that has a replica, since this one has none that serves.
//!
//! ```text
//!   client ──▶ front ──▶ here? ──yes──▶ services
//!                          │ no
//!                          ▼
//!              writes: the leader, if it is known;          ┌─ it has a replica ──▶ its services
//!              reads: the better of two (`pace`)  ──▶ node ─┤
//!                          ▲                                └─ it has none any more: not taken
//!                          └── the next one, if the call was certainly not taken ──┘
//! ```
//! Connections between nodes are those of the peer ports, so they are as trusted as what replicates; each client has its own
//! (`client::links`). A call is passed on once: whoever gets it serves it or does not take it. A call that may have been carried
//! out is not sent again, unless it only reads.
//!
//! A unary call is read as a whole first, so that it can be sent again. What streams goes where it was sent first.

use std::collections::HashMap;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::FutureExt as _;
use hadron_consensus::{GroupId, NodeId};
use http::uri::{Authority, Scheme};
use http::{HeaderMap, Request, Response, Version, request};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Frame, Incoming};
use parking_lot::{Mutex, RwLock};
use rand::seq::SliceRandom as _;
use tokio::sync::Semaphore;
use tonic::Status;
use tonic::body::Body;

use super::admission::{Admission, Admitted};
use super::backend::{Backend, Unavailable};
use super::keyspaces::Elsewhere;
use super::pace::Pace;
use super::passed_on::{self, Told};
use super::services::RequestBody;
use crate::client::links::{self, Keepalive, Target};
use crate::metrics::{Counter, Metrics};

/// The connections that one client's calls are passed on over.
pub(super) type Links = links::Links<Body>;

/// A node that does not answer pings for so long is taken for dead, and what was sent to it for lost.
const KEEPALIVE: Keepalive =
    Keepalive { interval: Some(Duration::from_secs(1)), timeout: Duration::from_secs(3), while_idle: false };
/// Bytes of calls that are being passed on, of all keyspaces: until they are answered, and some wait for long.
const HELD_BYTES_MAX: usize = 32 << 20;
/// A call counts with so many at least.
const CALL_BYTES_MIN: usize = 1 << 10;
/// Bytes before a message.
const PREFIX_BYTES: usize = 5;

/// Passes calls on.
pub(super) struct Forward<B> {
    backend: B,
    nodes: RwLock<HashMap<NodeId, Arc<Node>>>,
    /// Who led a group when it was last heard of.
    leaders: Mutex<HashMap<GroupId, NodeId>>,
    /// Room for calls that are held.
    room: Arc<Admission>,
    /// Places for connections that are made for clients.
    places: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

/// Another node, as one to whom calls are passed on, or who is asked something.
pub(super) fn target<B: Backend>(backend: &B, node: NodeId, keepalive: Keepalive) -> Target<Body> {
    let backend = backend.clone();
    let dial = move || {
        let backend = backend.clone();
        async move { backend.connect(node).await }.boxed()
    };
    Target::new(format!("node {:x}", node.0), keepalive, dial)
}

/// Another node.
struct Node {
    id: NodeId,
    target: Arc<Target<Body>>,
    pace: Pace,
    /// The calls that it took.
    taken: Arc<Counter>,
}

/// Who should get a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wants {
    /// Anybody who has a replica: it only reads, and may be sent again.
    Replica,
    /// The leader, who has to be asked anyway.
    Leader,
}

/// A call on its way.
pub(super) enum Parcel {
    /// As often as need be.
    Whole { head: request::Parts, body: Bytes, _room: Admitted },
    /// Once.
    Stream(Request<Body>),
}

/// What became of a call.
pub(super) enum Outcome {
    /// Somebody answered.
    Answered(Response<Body>),
    /// Nobody took it, for these reasons.
    Untaken(Parcel, Vec<String>),
    /// It may have been taken, and there will be no answer.
    Lost(Status),
}

/// What became of one attempt.
enum Attempt {
    Answered(Response<Incoming>),
    /// It came back if it is not whole.
    Untaken(Option<Request<Body>>, String),
    Lost,
}

impl Parcel {
    /// The bytes of the call's message, if there is room for more of its group.
    pub(super) async fn whole<R: RequestBody>(
        request: Request<R>,
        bytes_max: usize,
        (room, group): (&Arc<Admission>, GroupId),
    ) -> Result<Parcel, Status> {
        let (head, body) = request.into_parts();
        let mut body = pin!(body);
        let mut bytes = BytesMut::new();
        while let Some(frame) = body.as_mut().frame().await {
            let frame = frame.map_err(|error| Status::from_error(error.into()))?;
            bytes.extend_from_slice(&frame.into_data().unwrap_or_default());
            if bytes.len() > bytes_max + PREFIX_BYTES {
                return Err(too_long(&bytes, bytes_max));
            }
        }
        let _room = room.admit(group, bytes.len().max(CALL_BYTES_MIN))?;
        Ok(Parcel::Whole { head, body: bytes.freeze(), _room })
    }

    /// What can be sent, and what is left to be sent again.
    pub(super) fn split(self) -> (Request<Body>, Option<Parcel>) {
        match self {
            Parcel::Whole { head, body, _room } => {
                let copy = Request::from_parts(head.clone(), Body::new(Full::new(body.clone())));
                (copy, Some(Parcel::Whole { head, body, _room }))
            }
            Parcel::Stream(request) => (request, None),
        }
    }
}

/// tonic's words, which are made Go's on the way out.
fn too_long(begun: &[u8], bytes_max: usize) -> Status {
    let length = begun.get(1..PREFIX_BYTES).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
    let length = length.unwrap_or(u32::MAX);
    Status::out_of_range(format!(
        "Error, decoded message length too large: found {length} bytes, the limit is: {bytes_max} bytes"
    ))
}

impl<B: Backend> Forward<B> {
    pub(super) fn new(backend: B, metrics: Arc<Metrics>, places: Arc<Semaphore>) -> Forward<B> {
        Forward {
            backend,
            nodes: RwLock::default(),
            leaders: Mutex::default(),
            room: Arc::new(Admission::new(usize::MAX, HELD_BYTES_MAX)),
            places,
            metrics,
        }
    }

    /// Where calls that are held take their room from.
    pub(super) fn room(&self) -> &Arc<Admission> {
        &self.room
    }

    /// Sends a call to one node after the other until one takes it.
    pub(super) async fn send(
        &self,
        mut parcel: Parcel,
        there: &Elsewhere,
        wants: Wants,
        links: &Links,
    ) -> Outcome {
        let mut reasons = Vec::new();
        for node in self.in_order(there, wants) {
            let (request, rest) = parcel.split();
            match self.attempt(&node, request, there, links).await {
                Attempt::Answered(response) if !passed_on::is_not_here(&response) => {
                    node.taken.inc();
                    return Outcome::Answered(self.take(response, there.group));
                }
                Attempt::Answered(refusal) => match rest {
                    Some(rest) => {
                        reasons.push(format!("{} has no replica that serves", node.target.name));
                        parcel = rest;
                    }
                    None => return Outcome::Answered(self.take(refusal, there.group)),
                },
                Attempt::Untaken(request, reason) => {
                    reasons.push(format!("{}: {reason}", node.target.name));
                    match (rest, request) {
                        (Some(rest), _) => parcel = rest,
                        (None, Some(request)) => parcel = Parcel::Stream(request),
                        (None, None) => return Outcome::Lost(Unavailable::TimeoutConnectionLost.into()),
                    }
                }
                Attempt::Lost => match rest.filter(|_| wants == Wants::Replica) {
                    Some(rest) => {
                        reasons.push(format!("{}: the connection was lost", node.target.name));
                        parcel = rest;
                    }
                    None => return Outcome::Lost(Unavailable::TimeoutConnectionLost.into()),
                },
            }
        }
        Outcome::Untaken(parcel, reasons)
    }

    async fn attempt(
        &self,
        node: &Node,
        mut request: Request<Body>,
        there: &Elsewhere,
        links: &Links,
    ) -> Attempt {
        let mut sender = match links.to(&node.target).await {
            Ok(sender) => sender,
            Err(reason) => return Attempt::Untaken(Some(request), reason),
        };
        address(&mut request, there);
        let waiting = node.pace.begin();
        let mut error = match sender.try_send_request(request).await {
            Ok(response) => {
                waiting.answered();
                return Attempt::Answered(response);
            }
            Err(error) => error,
        };
        match error.take_message() {
            Some(request) => Attempt::Untaken(Some(request), "the connection was lost".to_owned()),
            None => Attempt::Lost,
        }
    }

    /// An answer as the client gets it.
    fn take(&self, mut response: Response<Incoming>, group: GroupId) -> Response<Body> {
        if let Some(leader) = passed_on::take_leader(response.headers_mut()) {
            self.note_leader(group, leader);
        }
        *response.version_mut() = Version::default();
        response.map(|body| Body::new(Passed(body)))
    }

    /// The nodes that may have a replica, the best first, and last those that are taken for dead: they may not be.
    fn in_order(&self, there: &Elsewhere, wants: Wants) -> Vec<Arc<Node>> {
        let alive = self.backend.alive();
        let nodes = there.nodes.iter().map(|node| self.node(*node));
        let (mut good, mut dead): (Vec<_>, Vec<_>) =
            nodes.partition(|node| alive.contains(&node.id) && !node.target.is_down());
        good.shuffle(&mut rand::rng());
        if let [one, other, ..] = &good[..]
            && other.pace.cost() < one.pace.cost()
        {
            good.swap(0, 1);
        }
        let leader = self.leaders.lock().get(&there.group).copied().filter(|_| wants == Wants::Leader);
        if let Some(place) = good.iter().position(|node| Some(node.id) == leader) {
            good.swap(0, place);
        }
        good.append(&mut dead);
        good
    }

    fn node(&self, id: NodeId) -> Arc<Node> {
        if let Some(known) = self.nodes.read().get(&id) {
            return Arc::clone(known);
        }
        let mut nodes = self.nodes.write();
        let new = || {
            let taken = self.metrics.calls_passed_on.with(&[&format!("{:x}", id.0)]);
            let target = target(&self.backend, id, KEEPALIVE).with_places(Arc::clone(&self.places));
            Arc::new(Node { id, target: Arc::new(target), pace: Pace::default(), taken })
        };
        Arc::clone(nodes.entry(id).or_insert_with(new))
    }

    fn note_leader(&self, group: GroupId, leader: NodeId) {
        let mut leaders = self.leaders.lock();
        if leaders.insert(group, leader).is_some() {
            return;
        }
        // Groups that are gone are never led again.
        self.backend.with_catalog(|catalog| {
            if leaders.len() > catalog.keyspaces().count() {
                leaders.retain(|group, _| catalog.placement(*group).is_some());
            }
        });
    }
}

/// Makes the request one to another node.
fn address(request: &mut Request<Body>, there: &Elsewhere) {
    // HTTP/2 wants an authority. Nobody looks at it: which keyspace is meant is told.
    links::address(request, Scheme::HTTP, Authority::from_static("hadron"));
    let named = &there.named;
    let (user, from) = (request.extensions().get().cloned(), request.extensions().get().copied());
    let told =
        Told { keyspace: &named.name, door: named.door.as_ref(), user: user.as_ref(), from: from.as_ref() };
    told.write(request.headers_mut());
}

/// The body of an answer of another node. If it breaks off, the client is told in gRPC's words.
struct Passed(Incoming);

impl hyper::body::Body for Passed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(match ready!(Pin::new(&mut self.0).poll_frame(task)) {
            Some(Err(_)) => Some(Ok(Frame::trailers(broken_off()))),
            frame => frame.map(|frame| frame.map_err(|error| Status::from_error(error.into()))),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}

fn broken_off() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    let status = Status::unavailable("hadron: the connection to the node that answered was lost");
    // Both fit into headers.
    let _ = status.add_header(&mut trailers);
    trailers
}
