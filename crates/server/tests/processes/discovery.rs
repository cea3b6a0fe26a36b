//! Nodes that find each other in another etcd (`--discovery-token`): one of ours, or the real one that `ETCD` names.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hadron_proto::etcdserverpb as pb;
use pb::auth_client::AuthClient;
use pb::cluster_client::ClusterClient;
use pb::kv_client::KvClient;
use rustix::process::Signal;

use crate::support::authority::Authority;
use crate::support::place::{Place, text};
use crate::support::ports::Port;
use crate::support::{Cluster, channel, eventually, status};

const SIZE: &str = "/_etcd/registry/t0k3n/_config/size";
const MEMBERS: &str = "/_etcd/registry/t0k3n/members/";

/// The other etcd: it keeps its port and its data when it is stopped.
struct Service {
    place: Place,
    port: Port,
    process: Option<Child>,
}

impl Service {
    /// One that runs, and knows of no cluster.
    async fn start() -> Service {
        let mut service = Service { place: Place::new(), port: Port::hold(), process: None };
        service.run().await;
        service
    }

    /// One that was told how many nodes the cluster has.
    async fn of_size(size: &str) -> Service {
        let service = Service::start().await;
        service.put(SIZE, size).await;
        service
    }

    async fn run(&mut self) {
        let real = std::env::var_os("ETCD");
        let mut command = match real {
            Some(binary) => Command::new(binary),
            None => self.place.command("etcd"),
        };
        command.arg(format!("--data-dir={}", self.place.path("service").display()));
        command.args([format!("--listen-client-urls={}", self.url())]);
        command.args([format!("--advertise-client-urls={}", self.url())]);
        command.args(["--listen-peer-urls=http://127.0.0.1:0", "--log-outputs=stderr"]);
        let log = fs::File::create(self.place.path("log")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        self.process = Some(child.unwrap());
        eventually("the service serves", async || {
            status(channel(&self.url())).await.is_some_and(|status| status.leader != 0)
        })
        .await;
    }

    fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            process.wait().unwrap();
        }
    }

    fn url(&self) -> String {
        self.port.url()
    }

    async fn put(&self, key: &str, value: &str) {
        let put = pb::PutRequest {
            key: key.to_owned().into(),
            value: value.to_owned().into(),
            ..Default::default()
        };
        KvClient::new(channel(&self.url())).put(put).await.unwrap();
    }

    /// What is registered, in the order in which it was.
    async fn registered(&self) -> Vec<String> {
        let mut end = MEMBERS.as_bytes().to_vec();
        *end.last_mut().unwrap() += 1;
        let range = pb::RangeRequest {
            key: MEMBERS.into(),
            range_end: end.into(),
            sort_target: pb::range_request::SortTarget::Create.into(),
            sort_order: pb::range_request::SortOrder::Ascend.into(),
            ..Default::default()
        };
        let found = KvClient::new(channel(&self.url())).range(range).await.unwrap().into_inner();
        found.kvs.iter().map(|kv| text(&kv.value)).collect()
    }

    /// Only root gets in, with the password `right`.
    async fn protect(&self) {
        let mut auth = AuthClient::new(channel(&self.url()));
        let (name, password) = ("root".to_owned(), "right".to_owned());
        let user = pb::AuthUserAddRequest { name: name.clone(), password, ..Default::default() };
        auth.user_add(user).await.unwrap();
        auth.role_add(pb::AuthRoleAddRequest { name: name.clone() }).await.unwrap();
        let grant = pb::AuthUserGrantRoleRequest { user: name.clone(), role: name };
        auth.user_grant_role(grant).await.unwrap();
        auth.auth_enable(pb::AuthEnableRequest::default()).await.unwrap();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Nodes that are to find each other there, and are not started.
async fn prepared(count: usize, service: &Service) -> Cluster {
    let mut cluster = Cluster::prepared(count).await;
    for node in &mut cluster.nodes {
        node.drop_argument("--initial-cluster");
        node.set_argument("--discovery-token", "t0k3n");
        node.set_argument("--discovery-endpoints", &service.url());
        node.set_argument("--discovery-dial-timeout", "1s");
    }
    cluster
}

async fn says(cluster: &Cluster, number: usize, said: &str) {
    let node = &cluster.nodes[number];
    eventually(&format!("{} says {said:?}", node.name), async || node.log().contains(said)).await;
}

#[tokio::test]
async fn nodes_register_wait_for_each_other_and_are_a_cluster() {
    let mut service = Service::of_size("3").await;
    let mut cluster = prepared(4, &service).await;
    cluster.nodes[2].start();
    says(&cluster, 2, "waiting for peers from discovery service").await;
    cluster.nodes[0].start();
    eventually("two are registered", async || service.registered().await.len() == 2).await;
    says(&cluster, 0, "waiting for peers from discovery service").await;

    // Killed while it waits, it comes back in its place.
    cluster.nodes[2].kill();
    cluster.nodes[2].start();
    cluster.nodes[1].start();
    let late = cluster.nodes.pop().unwrap();
    cluster.leader().await;
    let entry = |number: usize| format!("n{number}=http://{}", cluster.nodes[number].peer_address);
    assert_eq!(service.registered().await, [entry(2), entry(0), entry(1)]);
    let mut client = ClusterClient::new(cluster.nodes[0].channel());
    let members = client.member_list(pb::MemberListRequest::default()).await.unwrap().into_inner().members;
    assert_eq!(members.len(), 3);
    for member in members {
        let node = cluster.nodes.iter().find(|node| node.name == member.name).unwrap();
        assert_eq!(member.peer_ur_ls, [format!("http://{}", node.peer_address)]);
    }

    let output = late.run_with(&[]).await;
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(said.contains("discovery: cluster is full: 3 nodes registered before this one"), "{said}");
    assert_eq!(service.registered().await.len(), 3, "who is too late does not register");

    // A member that lost its data finds its old place in the registry, and may not have it.
    cluster.nodes[1].kill();
    fs::remove_dir_all(cluster.nodes[1].data_dir()).unwrap();
    let output = cluster.nodes[1].run_with(&[]).await;
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(said.contains("has already been bootstrapped"), "{said}");

    // A node that has its data needs no service.
    service.stop();
    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    cluster.nodes[0].wait_until_serving().await;
    says(&cluster, 0, "discovery token is ignored since cluster already initialized").await;
}

#[tokio::test]
async fn a_service_that_is_not_there_is_waited_for() {
    let mut service = Service::of_size("1").await;
    let mut cluster = prepared(2, &service).await;
    service.stop();
    cluster.nodes[0].start();
    says(&cluster, 0, "retry connecting to discovery service").await;
    // Somebody who gives up waiting is heard.
    cluster.nodes[1].start();
    says(&cluster, 1, "retry connecting to discovery service").await;
    cluster.nodes[1].signal(Signal::TERM);
    assert_eq!(cluster.nodes[1].wait_for_exit().await.code(), Some(0));

    service.run().await;
    cluster.nodes[0].wait_until_serving().await;
    assert_eq!(service.registered().await.len(), 1);
}

#[tokio::test]
async fn a_service_that_goes_away_while_nodes_wait_is_found_again() {
    let mut service = Service::of_size("2").await;
    let mut cluster = prepared(2, &service).await;
    cluster.nodes[0].start();
    says(&cluster, 0, "waiting for peers from discovery service").await;
    service.stop();
    says(&cluster, 0, "lost the discovery service while waiting for peers").await;
    service.run().await;
    cluster.nodes[1].start();
    cluster.leader().await;
}

#[tokio::test]
async fn a_token_that_is_of_no_cluster_is_refused() {
    let service = Service::start().await;
    let cluster = prepared(1, &service).await;
    let started = async |extra: &[&str], code: i32| {
        let output = cluster.nodes[0].run_with(extra).await;
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        said
    };
    let said = started(&[], 1).await;
    assert!(
        said.contains(&format!(
            "discovery: size key not found: write the number of nodes there first (`etcdctl put {SIZE} 3`)"
        )),
        "{said}"
    );
    service.put(SIZE, "many").await;
    let said = started(&[], 1).await;
    assert!(said.contains("discovery: size key is bad"), "{said}");

    service.put(SIZE, "2").await;
    let said = started(&["--initial-cluster-state=existing"], 2).await;
    assert!(said.contains("--discovery-endpoints is for new clusters"), "{said}");
    assert!(service.registered().await.is_empty());

    // Two nodes that both believe to be n0.
    service.put(&format!("{MEMBERS}1"), "n0=http://127.0.0.1:1").await;
    let said = started(&[], 1).await;
    assert!(said.contains("what discovery found") && said.contains("is given twice"), "{said}");
    assert!(!cluster.nodes[0].data_dir().join("POOL").exists(), "nothing was begun");
}

#[tokio::test]
async fn a_service_may_want_to_know_whom_it_talks_to() {
    let service = Service::of_size("1").await;
    service.protect().await;
    let mut cluster = prepared(1, &service).await;
    let wrong = cluster.nodes[0].run_with(&["--discovery-user=root:wrong"]).await;
    let said = text(&wrong.stdout) + &text(&wrong.stderr);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(said.contains("authentication failed, invalid user ID or password"), "{said}");
    assert!(!said.contains("wrong"), "passwords are not for logs: {said}");

    cluster.nodes[0].set_argument("--discovery-user", "root");
    cluster.nodes[0].set_argument("--discovery-password", "right");
    cluster.nodes[0].start();
    let served = tokio::time::timeout(Duration::from_secs(60), cluster.nodes[0].wait_until_serving()).await;
    assert!(served.is_ok(), "{}", cluster.logs());
}

#[tokio::test]
async fn a_service_may_be_spoken_to_in_secret() {
    let (place, authority) = (Place::new(), Authority::new());
    let (cert, key) = authority.sign("service", &["discovery.example"]);
    let mut command = place.command("etcd");
    command.args(["--listen-peer-urls=http://127.0.0.1:0", "--listen-client-urls=https://127.0.0.1:0"]);
    command.args(["--advertise-client-urls=https://127.0.0.1:2379"]);
    command.args([format!("--cert-file={}", cert.display()), format!("--key-file={}", key.display())]);
    let service = place.serve(&mut command);
    let address = service.address("grpc+http").to_string();
    let endpoint = format!("--endpoints=https://{address}");
    let put = place.output("etcdctl", &[&endpoint, "--insecure-skip-tls-verify", "put", SIZE, "1"]);
    assert!(put.status.success(), "{}", text(&put.stderr));

    let mut cluster = Cluster::prepared(1).await;
    let node = &mut cluster.nodes[0];
    node.drop_argument("--initial-cluster");
    node.set_argument("--discovery-token", "t0k3n");
    node.set_argument("--discovery-endpoints", &address);
    node.set_argument("--discovery-cacert", authority.trusted().to_str().unwrap());
    node.start();
    says(&cluster, 0, "not valid for name").await;
    let node = &mut cluster.nodes[0];
    node.kill();
    node.set_argument("--discovery-server-name", "discovery.example");
    node.start();
    node.wait_until_serving().await;
}
