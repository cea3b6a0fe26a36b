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

    /// All nodes, those last that could not be connected: unless they just could, they only say why.
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::convert::Infallible;
    use std::io;
    use std::time::{Duration, Instant};

    use bytes::Bytes;
    use futures::future::{BoxFuture, ready};
    use http_body_util::{BodyExt as _, Empty};
    use hyper::server::conn::http2;
    use hyper::service::service_fn;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::net::TcpListener;
    use tokio::sync::watch;
    use tokio::time::sleep;

    use super::*;
    use crate::tls::Stream;

    const KEEPALIVE: Keepalive =
        Keepalive { interval: None, timeout: Duration::from_secs(1), while_idle: false };

    /// Answers every call with its name in a header.
    async fn serve(name: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let answer = service_fn(move |_: Request<Incoming>| {
            let answer = Response::builder().header("name", name).body(Empty::<Bytes>::new());
            ready(Ok::<_, Infallible>(answer.unwrap()))
        });
        tokio::spawn(async move {
            loop {
                let stream = TokioIo::new(listener.accept().await.unwrap().0);
                tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(stream, answer));
            }
        });
        address
    }

    fn node(
        name: &str,
        connect: impl Fn() -> BoxFuture<'static, io::Result<Stream>> + Send + Sync + 'static,
    ) -> Arc<Node> {
        let target = Arc::new(Target::new(name.to_owned(), KEEPALIVE, connect));
        Arc::new(Node { authority: Authority::from_static("test"), scheme: Scheme::HTTP, target })
    }

    /// Who answered a call of a new client.
    async fn answered_by(upstream: &Upstream) -> String {
        let body = Empty::new().map_err(|never: Infallible| match never {}).boxed_unsync();
        let answer = upstream.send(Request::new(body), &Links::default()).await.unwrap();
        answer.headers()["name"].to_str().unwrap().to_owned()
    }

    /// A node whose first connection is refused at once, and all others wait until `is_light`. Counts how often it is dialled.
    fn dark(address: String, is_light: watch::Receiver<bool>, dials: watch::Sender<usize>) -> Arc<Node> {
        node("first", move || {
            dials.send_modify(|dials| *dials += 1);
            let (is_first, address, mut is_light) = (*dials.borrow() == 1, address.clone(), is_light.clone());
            async move {
                if is_first {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                is_light.wait_for(|is_light| *is_light).await.map_err(io::Error::other)?;
                dial(address, None).await
            }
            .boxed()
        })
    }

    /// A second after each failure the next call whose turn it was waited until the node had not answered for 5 s once more.
    #[tokio::test]
    async fn a_node_that_is_dark_costs_no_call_time_until_it_is_back() {
        let (first, second) = (serve("first").await, serve("second").await);
        let ((light, is_light), (dials, dialled)) = (watch::channel(false), watch::channel(0));
        let bright = node("second", move || dial(second.clone(), None).boxed());
        let upstream = Upstream {
            all: Mutex::new(vec![dark(first, is_light, dials), bright]),
            next: AtomicUsize::new(0),
            security: Security::default(),
            keepalive: KEEPALIVE,
        };
        for _ in 0..20 {
            let began = Instant::now();
            assert_eq!(answered_by(&upstream).await, "second");
            assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
            sleep(Duration::from_millis(125)).await;
        }
        assert_eq!(*dialled.borrow(), 2, "one attempt at a time");
        light.send_replace(true);
        while answered_by(&upstream).await != "first" {
            sleep(Duration::from_millis(10)).await;
        }
    }
}
