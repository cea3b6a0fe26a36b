//! Distributed tracing: real nodes, and a collector of the test's own that gets their spans.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hadron_proto::etcdserverpb as pb;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::{Span, status::StatusCode};
use pb::kv_client::KvClient;
use pb::watch_client::WatchClient;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::support::place::{PATIENCE, Place, Served};
use crate::support::ports::Port;
use crate::support::{channel, eventually};

type Attributes = BTreeMap<String, String>;

/// What a collector got: spans, and the resource that each is of.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<(Attributes, Span)>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource_spans in request.into_inner().resource_spans {
            let resource = attributes(&resource_spans.resource.unwrap_or_default().attributes);
            let spans = resource_spans.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.0.lock().unwrap().extend(spans.map(|span| (resource.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn attributes(list: &[KeyValue]) -> Attributes {
    let text = |one: &KeyValue| match one.value.clone().and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    list.iter().map(|one| (one.key.clone(), text(one))).collect()
}

impl Collector {
    /// One that listens.
    async fn start() -> (Collector, SocketAddr) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let collector = Collector::default();
        let service = TraceServiceServer::new(collector.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        (collector, address)
    }

    fn spans(&self, name: &str) -> Vec<Span> {
        let all = self.0.lock().unwrap();
        all.iter().filter(|(_, span)| span.name == name).map(|(_, span)| span.clone()).collect()
    }

    /// The only span of that name, as soon as it is there.
    async fn span(&self, name: &str) -> Span {
        eventually(&format!("a span {name}"), async || !self.spans(name).is_empty()).await;
        let mut spans = self.spans(name);
        assert_eq!(spans.len(), 1, "{spans:?}");
        spans.pop().unwrap()
    }
}

/// A node that traces, and sends its spans so often.
fn node(place: &Place, collector: SocketAddr, delay_ms: u64, flags: &[&str]) -> Served {
    let mut command = place.command("etcd");
    command.args([
        "--listen-client-urls=http://127.0.0.1:0",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:0",
        "--enable-distributed-tracing",
    ]);
    command.arg(format!("--distributed-tracing-address={collector}"));
    command.env("OTEL_BSP_SCHEDULE_DELAY", delay_ms.to_string());
    place.serve(command.args(flags))
}

fn url(served: &Served) -> String {
    format!("http://{}", served.address("grpc+http"))
}

fn get(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.to_owned().into(), ..Default::default() }
}

/// A call that belongs to a trace, sampled or not.
fn of_trace<T>(message: T, trace: &str, is_sampled: bool) -> Request<T> {
    let mut request = Request::new(message);
    let parent = format!("00-{trace}-00f067aa0ba902b7-0{}", u8::from(is_sampled));
    request.metadata_mut().insert("traceparent", parent.parse().unwrap());
    request
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn calls_are_spans_with_etcds_names_and_attributes() {
    let (collector, address) = Collector::start().await;
    let place = Place::new();
    let flags = [
        "--distributed-tracing-service-name=store",
        "--distributed-tracing-instance-id=store-1",
        "--distributed-tracing-sampling-rate=1000000",
    ];
    let served = node(&place, address, 50, &flags);
    served.line("distributed tracing setup enabled");
    let mut kv = KvClient::new(channel(&url(&served)));
    let put = pb::PutRequest { key: "k".into(), ..Default::default() };
    kv.put(put).await.unwrap();
    let refused = kv.range(get("")).await.unwrap_err();

    let span = collector.span("etcdserverpb.KV/Put").await;
    assert_eq!(span.kind(), SpanKind::Server);
    assert!(span.end_time_unix_nano > span.start_time_unix_nano);
    assert!(span.parent_span_id.is_empty(), "it begins a trace");
    let mut found = attributes(&span.attributes);
    assert_eq!(found.remove("net.sock.peer.addr").as_deref(), Some("127.0.0.1"));
    assert!(found.remove("net.sock.peer.port").unwrap().parse::<u16>().is_ok());
    let expected = [
        ("rpc.system", "grpc"),
        ("rpc.service", "etcdserverpb.KV"),
        ("rpc.method", "Put"),
        ("rpc.grpc.status_code", "0"),
    ];
    assert_eq!(found, expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    let span = collector.span("etcdserverpb.KV/Range").await;
    let code = attributes(&span.attributes)["rpc.grpc.status_code"].clone();
    assert_eq!(code, (refused.code() as i32).to_string());
    let status = span.status.unwrap_or_default();
    assert_eq!(status.code(), StatusCode::Unset, "what a caller did wrong is no fault of the server");

    let (resource, _) = collector.0.lock().unwrap()[0].clone();
    let expected = [("service.instance.id", "store-1"), ("service.name", "store")];
    assert_eq!(resource, expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into());

    // A call of the JSON gateway is a call.
    let mut stream = TcpStream::connect(served.address("grpc+http")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let post =
        "POST /v3/lease/leases HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
    stream.write_all(post.as_bytes()).unwrap();
    stream.read_to_string(&mut String::new()).unwrap();
    collector.span("etcdserverpb.Lease/LeaseLeases").await;
}

#[tokio::test]
async fn a_stream_is_a_span_that_ends_with_it() {
    let (collector, address) = Collector::start().await;
    let place = Place::new();
    let served = node(&place, address, 50, &["--distributed-tracing-sampling-rate=1000000"]);
    let create = pb::WatchCreateRequest { key: "k".into(), ..Default::default() };
    let create = pb::watch_request::RequestUnion::CreateRequest(create);
    let request = pb::WatchRequest { request_union: Some(create) };
    let (sender, requests) = tokio::sync::mpsc::channel(1);
    sender.send(request).await.unwrap();
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut client = WatchClient::new(channel(&url(&served)));
    let mut stream = client.watch(requests).await.unwrap().into_inner();
    assert!(stream.next().await.unwrap().unwrap().created);

    // Spans are sent in the order in which they end: one of a later call comes first.
    KvClient::new(channel(&url(&served))).range(get("k")).await.unwrap();
    let range = collector.span("etcdserverpb.KV/Range").await;
    assert!(collector.spans("etcdserverpb.Watch/Watch").is_empty());
    drop((stream, sender));
    let watch = collector.span("etcdserverpb.Watch/Watch").await;
    assert!(watch.start_time_unix_nano < range.start_time_unix_nano);
    assert!(watch.end_time_unix_nano > range.end_time_unix_nano);
}

#[tokio::test]
async fn callers_decide_for_their_traces_and_the_rate_for_the_rest() {
    let (collector, address) = Collector::start().await;
    let (sampled, unsampled) = ("4bf92f3577b34da6a3ce929d0e0e4736", "5bf92f3577b34da6a3ce929d0e0e4736");
    let place = Place::new();
    let served = node(&place, address, 50, &[]);
    let mut kv = KvClient::new(channel(&url(&served)));
    kv.range(get("of none")).await.unwrap();
    kv.range(of_trace(get("k"), unsampled, false)).await.unwrap();
    kv.range(of_trace(get("k"), sampled, true)).await.unwrap();
    let span = collector.span("etcdserverpb.KV/Range").await;
    assert_eq!(
        (hex(&span.trace_id).as_str(), hex(&span.parent_span_id).as_str()),
        (sampled, "00f067aa0ba902b7")
    );

    let place = Place::new();
    let served = node(&place, address, 50, &["--distributed-tracing-sampling-rate=1000000"]);
    let mut kv = KvClient::new(channel(&url(&served)));
    kv.range(of_trace(get("k"), unsampled, false)).await.unwrap();
    kv.range(get("of none")).await.unwrap();
    eventually("the call of no trace is traced", async || {
        collector.spans("etcdserverpb.KV/Range").len() == 2
    })
    .await;
    let traces: Vec<String> =
        collector.spans("etcdserverpb.KV/Range").iter().map(|span| hex(&span.trace_id)).collect();
    assert!(!traces.contains(&unsampled.to_owned()), "{traces:?}");
}

// The collector must go on while this waits for the node.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_sends_its_last_spans_and_does_not_wait_for_nobody() {
    let (collector, address) = Collector::start().await;
    let nobody = Port::hold();
    for collector_address in [address, nobody.address()] {
        let place = Place::new();
        let hour = 3_600_000;
        let mut served =
            node(&place, collector_address, hour, &["--distributed-tracing-sampling-rate=1000000"]);
        KvClient::new(channel(&url(&served))).range(get("k")).await.unwrap();
        assert!(collector_address == nobody.address() || collector.spans("etcdserverpb.KV/Range").is_empty());
        let began = Instant::now();
        assert!(served.stop().success(), "{}", served.log());
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    }
    assert_eq!(collector.spans("etcdserverpb.KV/Range").len(), 1);
}
