//! The nodes behind the proxy, and calls sent to them in turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt as _;
use http::uri::{Authority, Scheme};
use http::{Request, Response};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tonic::Status;
use tracing::{info, warn};

use super::messages::AnyBody;
use crate::client::links::{Keepalive, Target, address};
use crate::client::{Security, dial, endpoint_parts};

/// The connections that one client has.
pub(super) type Links = crate::client::links::Links<AnyBody>;

/// The nodes.
pub(super) struct Upstream {
    all: Mutex<Vec<Arc<Node>>>,
    next: AtomicUsize,
    security: Security,
    keepalive: Keepalive,
}

struct Node {
    authority: Authority,
    scheme: Scheme,
    /// Named as the endpoint was given.
    target: Arc<Target<AnyBody>>,
}

impl Upstream {
    /// # Errors
    /// What is wrong with the endpoints or the files, in words.
    pub(super) fn new(
        endpoints: &[String],
        security: Security,
        keepalive: Keepalive,
    ) -> Result<Upstream, String> {
        let nodes = endpoints.iter().map(|endpoint| Node::new(endpoint, &security, keepalive).map(Arc::new));
        let all = Mutex::new(nodes.collect::<Result<_, _>>()?);
        Ok(Upstream { all, next: AtomicUsize::new(0), security, keepalive })
    }

    /// The endpoints.
    pub(super) fn endpoints(&self) -> Vec<String> {
        self.all.lock().iter().map(|node| node.target.name.clone()).collect()
    }

    /// From now on these are the endpoints. Connections to those that stay are kept.
    pub(super) fn set_endpoints(&self, endpoints: &[String]) {
        let mut all = self.all.lock();
        if all.iter().map(|node| &node.target.name).eq(endpoints) {
            return;
        }
        let known = |endpoint: &String| all.iter().find(|node| node.target.name == *endpoint).cloned();
        let node = |endpoint: &String| match known(endpoint) {
            Some(node) => Some(node),
            None => Node::new(endpoint, &self.security, self.keepalive)
                .map(Arc::new)
                .map_err(|error| warn!(error, "a member's URL cannot be used"))
                .ok(),
        };
        let nodes: Vec<Arc<Node>> = endpoints.iter().filter_map(node).collect();
        if !nodes.is_empty() {
            info!(endpoints = endpoints.join(","), "the members changed");
            *all = nodes;
        }
    }

    /// Sends a call to the next node that takes it. It is sent to another one only if it certainly was not sent.
    ///
    /// # Errors
    /// No node could be connected, or the one that it was sent to did not answer.
    pub(super) async fn send(
        &self,
        mut request: Request<AnyBody>,
        links: &Links,
    ) -> Result<Response<Incoming>, Status> {
        let mut attempts = Vec::new();
        for node in self.in_turn() {
            let endpoint = &node.target.name;
            let mut sender = match links.to(&node.target).await {
                Ok(sender) => sender,
                Err(error) => {
                    attempts.push(format!("{endpoint}: {error}"));
                    continue;
                }
            };
            address(&mut request, node.scheme.clone(), node.authority.clone());
            let mut error = match sender.try_send_request(request).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            match error.take_message() {
                Some(unsent) => request = unsent,
                None => {
                    let text = format!("{endpoint} did not answer: {}", error.into_error());
                    return Err(Status::unavailable(text));
                }
            }
            attempts.push(format!("{endpoint}: the connection was lost"));
        }
        Err(Status::unavailable(format!("no node can be connected ({})", attempts.join("; "))))
    }

    /// All nodes, those last that could not be connected a moment ago: they only say why.
    fn in_turn(&self) -> Vec<Arc<Node>> {
        let mut nodes = self.all.lock().clone();
        let first = self.next.fetch_add(1, Ordering::Relaxed) % nodes.len().max(1);
        nodes.rotate_left(first);
        let (mut in_turn, mut down): (Vec<_>, Vec<_>) =
            nodes.into_iter().partition(|node| !node.target.is_down());
        in_turn.append(&mut down);
        in_turn
    }
}

impl Node {
    fn new(endpoint: &str, security: &Security, keepalive: Keepalive) -> Result<Node, String> {
        let (is_https, authority) =
            endpoint_parts(endpoint).map_err(|error| format!("endpoint {endpoint:?}: {error}"))?;
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let authority = authority.parse::<Authority>().ok().filter(|_| has_port);
        let authority = authority.ok_or_else(|| format!("endpoint {endpoint:?}: expected HOST:PORT"))?;
        let tls = security.of(is_https)?;
        let scheme = if tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP };
        let address = authority.to_string();
        let connect = move || dial(address.clone(), tls.clone()).boxed();
        let target = Arc::new(Target::new(endpoint.to_owned(), keepalive, connect));
        Ok(Node { authority, scheme, target })
    }
}
