//! Tests of [`super`]: what a command line means, and how a wrong one is refused.
#![allow(clippy::unwrap_used)]

use std::ffi::OsString;

use super::*;

fn config(flags: &[&str]) -> Result<Config, ConfigError> {
    match Settings::read(flags.iter().map(OsString::from), []).unwrap() {
        Asked::Serve(settings) => Config::from_settings(&settings, "hadron"),
        other => panic!("{other:?}"),
    }
}

fn plain(addresses: &[&str]) -> Vec<Listen> {
    let listen = |address: &&str| Listen { address: address.parse().unwrap(), is_tls: false };
    addresses.iter().map(listen).collect()
}

/// Why a first start with these flags is refused.
fn refusal(flags: &[&str]) -> String {
    let members = config(flags).and_then(|config| config.initial.members(&config.name));
    members.unwrap_err().to_string()
}

const THREE: &str = "a=http://127.0.0.1:2380,b=http://127.0.0.1:2382,c=http://127.0.0.1:2384";

#[test]
fn nothing_given_is_a_single_node_on_loopback() {
    let config = config(&[]).unwrap();
    assert_eq!(config.name, "default");
    assert_eq!(config.data_dir, PathBuf::from("default.hadron"));
    assert_eq!(config.wal_dir, PathBuf::from("default.hadron/wal"));
    assert_eq!(config.addresses.clients, plain(&["127.0.0.1:2379"]));
    assert_eq!(config.addresses.peers, vec!["127.0.0.1:2380".parse().unwrap()]);
    let members = config.initial.members("default").unwrap();
    assert_eq!(members.len(), 1);
    assert_eq!(members[0].peer_url.to_string(), "http://127.0.0.1:2380");
    assert_eq!(config.initial.token(), "etcd-cluster");
    assert_eq!(config.election_timeout, Duration::from_millis(1000));
    assert_eq!(config.clients.request_bytes_max, 1536 * 1024);
    assert_eq!(config.log.format, LogFormat::Json);
}

#[test]
fn a_member_of_three() {
    let config = config(&[
        "--name=b",
        "--data-dir=/data/b",
        "--wal-dir=/fast/b",
        "--listen-client-urls=http://0.0.0.0:2379,http://[::1]:2379",
        "--advertise-client-urls=http://b.example:2379",
        "--listen-peer-urls=http://localhost:2382",
        "--initial-advertise-peer-urls=http://127.0.0.1:2382/",
        "--initial-cluster",
        THREE,
    ])
    .unwrap();
    assert_eq!(config.addresses.clients, plain(&["0.0.0.0:2379", "[::1]:2379"]));
    assert_eq!(config.addresses.peers, vec!["127.0.0.1:2382".parse().unwrap()]);
    assert_eq!(config.addresses.advertise_client_urls[0].authority(), "b.example:2379");
    assert_eq!(config.wal_dir, PathBuf::from("/fast/b"));
    let members = config.initial.members("b").unwrap();
    let names: Vec<_> = members.iter().map(|member| member.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
}

#[test]
fn urls_are_http_with_host_and_port_only() {
    for (url, error) in [
        ("127.0.0.1:2379", UrlError::Scheme),
        ("ftp://127.0.0.1:2379", UrlError::Scheme),
        ("unix://x.sock", UrlError::UnixSocket),
        ("http://127.0.0.1", UrlError::Authority),
        ("http://:2379", UrlError::Authority),
        ("http://h:99999", UrlError::Authority),
        ("http://::1:2379", UrlError::Authority),
        ("http://127.0.0.1:2379/path", UrlError::Path),
    ] {
        assert_eq!(url.parse::<Url>(), Err(error), "{url}");
    }
    let url: Url = "https://[::1]:2379".parse().unwrap();
    assert_eq!((url.host(), url.is_tls(), url.to_string().as_str()), ("::1", true, "https://[::1]:2379"));
}

#[test]
fn refusals_name_the_flag_and_the_way_out() {
    let peer_b = "--initial-advertise-peer-urls=http://127.0.0.1:2382";
    for (flags, text) in [
        (
            vec!["--listen-peer-urls=nonsense"],
            "--listen-peer-urls: bad URL \"nonsense\": a URL must begin with http:// or https://",
        ),
        (
            vec![
                "--listen-client-urls=http://example.org:2379",
                "--advertise-client-urls=http://example.org:2379",
            ],
            "--listen-client-urls: expected an IP address to listen on, got http://example.org:2379",
        ),
        (
            vec!["--listen-client-urls=http://127.0.0.1:1"],
            "--advertise-client-urls is required when --listen-client-urls is given",
        ),
        (
            vec!["--listen-client-urls=127.0.0.1:2379"],
            "--listen-client-urls: bad URL \"127.0.0.1:2379\": a URL must begin with http:// or https://",
        ),
        (
            vec![
                "--listen-client-urls=https://127.0.0.1:2379",
                "--advertise-client-urls=https://127.0.0.1:2379",
            ],
            "--listen-client-urls: https needs --cert-file and --key-file, or --auto-tls",
        ),
        (
            vec!["--name=z", "--initial-cluster", THREE],
            "--initial-cluster does not contain this node's name \"z\", only a, b, c",
        ),
        (
            vec!["--name=a", peer_b, "--initial-cluster", THREE],
            "--initial-cluster says a=http://127.0.0.1:2380, but --initial-advertise-peer-urls is http://127.0.0.1:2382: they must be equal",
        ),
        (
            vec!["--name=a", "--initial-cluster=a=http://h:1,a=http://h:2"],
            "--initial-cluster: the name \"a\" is given twice (http://h:1 and http://h:2): names must be unique",
        ),
        (
            vec!["--name=a", "--initial-cluster=a=http://h:1,b=http://h:1"],
            "--initial-cluster: \"a\" and \"b\" have the same peer URL http://h:1",
        ),
        (vec!["--name=a", "--initial-cluster=a"], "--initial-cluster: expected name=url, got \"a\""),
        (
            vec!["--initial-cluster-state=existing"],
            "--initial-cluster-state=existing needs an --initial-cluster that names this node and at least one running member",
        ),
        (
            vec!["--heartbeat-interval=300"],
            "--election-timeout (1000 ms) must be at least 5 times --heartbeat-interval (300 ms)",
        ),
        (vec!["--heartbeat-interval=0"], "--heartbeat-interval must be more than 0 ms"),
        (vec!["--election-timeout=60000"], "--election-timeout (60000 ms) must be at most 50000 ms"),
        (vec!["--max-txn-ops=0"], "--max-txn-ops must be more than 0"),
        (vec!["--max-learners=-1"], "--max-learners: -1 is out of range"),
        (
            vec!["--discovery=https://discovery.example/t"],
            "--discovery=https://discovery.example/t is not supported: it needs the v2 API, which is gone from etcd too; use --discovery-token and --discovery-endpoints",
        ),
        (
            vec!["--discovery-srv=example.org", "--initial-cluster", THREE],
            "multiple discovery or bootstrap flags are set: choose one of --initial-cluster, --discovery-endpoints or --discovery-srv",
        ),
        (vec!["--discovery-token=t"], "--discovery-token needs --discovery-endpoints beside it"),
        (vec!["--discovery-endpoints=e"], "--discovery-endpoints needs --discovery-token beside it"),
        (
            vec!["--discovery-token=t", "--discovery-endpoints=http://a:1,"],
            "--discovery-endpoints must not contain empty endpoints",
        ),
        (
            vec!["--discovery-token=t", "--discovery-endpoints=e", "--discovery-cert=c"],
            "--discovery-cert needs --discovery-key beside it",
        ),
        (
            vec!["--discovery-token=t", "--discovery-endpoints=e", "--discovery-user=u"],
            "--discovery-user needs --discovery-password beside it",
        ),
        (vec!["--discovery-srv-name=n"], "--discovery-srv-name needs --discovery-srv beside it"),
        (
            vec!["--enable-distributed-tracing", "--distributed-tracing-sampling-rate=1000001"],
            "--distributed-tracing-sampling-rate: expected 0 to 1000000, got 1000001",
        ),
        (
            vec!["--enable-distributed-tracing", "--distributed-tracing-sampling-rate=-1"],
            "--distributed-tracing-sampling-rate: expected 0 to 1000000, got -1",
        ),
        (
            vec!["--auto-compaction-retention=soon"],
            "--auto-compaction-retention: expected a duration or a number of hours, got \"soon\"",
        ),
        (
            vec!["--auto-compaction-mode=revision", "--auto-compaction-retention=1h"],
            "--auto-compaction-retention: expected a number of revisions, got \"1h\"",
        ),
        (
            vec!["--auto-compaction-retention=-1"],
            "--auto-compaction-retention: expected a duration or a number of hours, got \"-1\"",
        ),
        (
            vec!["--feature-gates=NoSuchThing=true"],
            "--feature-gates: expected Name=true or Name=false with a name that is known, got \"NoSuchThing=true\"",
        ),
        (
            vec!["--log-outputs=default,stdout"],
            "--log-outputs: \"default\" cannot be combined with other outputs",
        ),
        (vec!["--name="], "--name must not be empty or contain ',' or '=', got \"\""),
    ] {
        assert_eq!(refusal(&flags), text, "{flags:?}");
    }
}

#[test]
fn what_a_first_start_means_is_asked_only_by_a_first_start() {
    for flags in [
        ["--name=z", "--initial-cluster=a=nonsense"],
        ["--name=z", "--initial-cluster-state=existing"],
        ["--name=z", "--initial-cluster=a=http://h:1,a=http://h:2"],
    ] {
        config(&flags).unwrap();
        refusal(&flags);
    }
}

#[test]
fn a_peer_url_may_be_spelled_in_two_ways() {
    let localhost = "--initial-advertise-peer-urls=http://localhost:2380/";
    let config = config(&["--name=a", localhost, "--initial-cluster", THREE]).unwrap();
    let members = config.initial.members("a").unwrap();
    assert_eq!(members[0].peer_url.to_string(), "http://127.0.0.1:2380", "ids follow from --initial-cluster");
}

#[test]
fn discovery_is_read_from_flags_with_etcds_defaults() {
    let flags = ["--discovery-token=t", "--discovery-endpoints=http://a:1,b:2", "--discovery-user=u:p:q"];
    let Some(Discovery::Registry(there)) = config(&flags).unwrap().initial.discovery else { unreachable!() };
    assert_eq!(there.endpoints, ["http://a:1", "b:2"]);
    assert_eq!(there.dial_timeout, Duration::from_secs(2));
    assert_eq!(there.request_timeout, Duration::from_secs(5));
    assert_eq!(there.keepalive, (Duration::from_secs(2), Duration::from_secs(6)));
    assert!(there.insecure_transport && !there.skip_verify);
    assert_eq!(there.user, Some(("u".to_owned(), "p:q".to_owned())));
    assert!(!format!("{there:?}").contains("p:q"), "passwords are not for logs");
    assert_eq!(config(&["--name=a"]).unwrap().initial.discovery, None);
}

#[test]
fn tracing_is_off_unless_somebody_wants_it() {
    let rate = "--distributed-tracing-sampling-rate=2000000";
    assert_eq!(config(&[rate]).unwrap().traces, None, "of no interest, as in etcd");
    let traces = config(&["--enable-distributed-tracing"]).unwrap().traces.unwrap();
    assert_eq!((traces.collector.as_str(), traces.service_name.as_str()), ("localhost:4317", "etcd"));
    assert_eq!((traces.instance_id, traces.samples_per_million), (None, 0));
    let former =
        config(&["--experimental-enable-distributed-tracing", "--distributed-tracing-instance-id=i"]);
    assert_eq!(former.unwrap().traces.unwrap().instance_id, Some("i".to_owned()));
}

#[test]
fn what_is_refused_may_be_turned_off() {
    config(&["--client-cert-auth=false", "--cert-file=", "--quota-backend-bytes=0", "--enable-v2=false"])
        .unwrap();
}

#[test]
fn the_limits_of_clients_and_members() {
    let config = config(&[
        "--listen-client-http-urls=http://127.0.0.1:8",
        "--listen-metrics-urls=http://127.0.0.1:9",
        "--max-concurrent-streams=7",
        "--grpc-keepalive-interval=0",
        "--grpc-keepalive-timeout=3s",
        "--watch-progress-notify-interval=1m",
        "--enable-grpc-gateway=false",
        "--cors=http://a,http://b",
        "--host-whitelist=a,*",
        "--strict-reconfig-check=false",
        "--max-learners=2",
        "--socket-reuse-port",
        "--log-outputs=stdout,/var/log/hadron.log",
        "--log-level=warn",
    ])
    .unwrap();
    assert_eq!(config.addresses.clients_http, plain(&["127.0.0.1:8"]));
    assert_eq!(config.addresses.metrics, plain(&["127.0.0.1:9"]));
    assert!(config.addresses.reuse_port);
    assert_eq!(config.clients.streams_max, 7);
    assert_eq!(config.clients.keepalive_interval, None);
    assert_eq!(config.clients.keepalive_timeout, Duration::from_secs(3));
    assert_eq!(config.clients.watch_progress_interval, Duration::from_secs(60));
    assert!(!config.clients.gateway);
    assert_eq!(config.clients.access.origins.map(|origins| origins.len()), Some(2));
    assert_eq!(config.clients.access.hosts, None);
    assert_eq!(config.membership, Membership { is_strict: false, learners_max: 2, promotes: false });
    assert_eq!(config.log.level, tracing::Level::WARN);
    assert_eq!(config.log.outputs, [LogOutput::File("/var/log/hadron.log".into()), LogOutput::Stdout]);
}

/// These ended the start: etcd's levels may be written in any case, and what is empty is the default.
#[test]
fn levels_may_be_in_any_case_and_empty_choices_are_defaults() {
    for (level, expected) in [
        ("INFO", tracing::Level::INFO),
        ("DEBUG", tracing::Level::DEBUG),
        ("Warn", tracing::Level::WARN),
        ("FATAL", tracing::Level::ERROR),
        ("", tracing::Level::INFO),
    ] {
        let config =
            config(&[&format!("--log-level={level}"), "--log-format=", "--tls-min-version="]).unwrap();
        assert_eq!((config.log.level, config.log.format), (expected, LogFormat::Json), "{level:?}");
    }
    assert_eq!(config(&["--log-level=", "--tls-min-version="]).unwrap(), config(&[]).unwrap());
    assert!(Settings::read(["--log-format=JSON".into()], []).is_err(), "as in etcd");
}

/// etcd demands it of the command line and of the environment alone.
#[test]
fn a_file_need_not_say_what_clients_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("etcd.yaml");
    std::fs::write(&path, "listen-client-urls: http://127.0.0.1:3379\n").unwrap();
    let Asked::Serve(settings) = Settings::read(["--config-file".into(), path.into()], []).unwrap() else {
        unreachable!()
    };
    assert!(settings.notes().contains(&settings::Note::DefaultAdvertised));
    let addresses = Config::from_settings(&settings, "hadron").unwrap().addresses;
    assert_eq!(addresses.clients, plain(&["127.0.0.1:3379"]));
    assert_eq!(addresses.advertise_client_urls[0].to_string(), "http://127.0.0.1:2379");
}

#[test]
fn retention_is_counted_in_hours_time_or_revisions() {
    let retention = |flags: &[&str]| config(flags).unwrap().retention;
    let hours = |hours: u64| Some(Retention::Time(Duration::from_secs(hours * 3_600)));
    assert_eq!(retention(&[]), None);
    assert_eq!(retention(&["--auto-compaction-retention=0"]), None);
    assert_eq!(retention(&["--auto-compaction-retention=0s"]), None);
    assert_eq!(retention(&["--auto-compaction-retention=8"]), hours(8));
    assert_eq!(retention(&["--auto-compaction-retention=60m"]), hours(1));
    let revisions = ["--auto-compaction-mode=revision", "--auto-compaction-retention=1000"];
    assert_eq!(retention(&revisions), Some(Retention::Revisions(1_000)));
}

#[test]
fn a_quota_is_there_only_if_somebody_wants_one() {
    let quota = |flags: &[&str]| config(flags).unwrap().clients.quota_bytes;
    assert_eq!(quota(&[]), None);
    assert_eq!(quota(&["--quota-backend-bytes=-1"]), None);
    assert_eq!(quota(&["--quota-backend-bytes=8589934592"]), Some(8 << 30));
}

/// What etcd's users start from: a file that names everything, most of it without a value or with its default.
#[test]
fn a_file_with_every_key_and_the_defaults_is_accepted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("etcd.yaml");
    let mut text = String::new();
    for flag in flags::all().filter(|flag| flag.name != "config-file") {
        text.push_str(&format!(
            "{}: {}\n",
            flag.name,
            if flag.default.contains(['*', '{']) { "" } else { flag.default }
        ));
    }
    text.push_str("client-transport-security:\n  cert-file:\n  client-cert-auth: false\npeer-transport-security:\n  auto-tls: false\n");
    text.push_str("discovery-fallback: proxy\nenable-pprof: true\n");
    let text = text.replacen("discovery-fallback: exit\n", "", 1).replacen("enable-pprof: false\n", "", 1);
    std::fs::write(&path, text).unwrap();
    config(&["--config-file", path.to_str().unwrap()]).unwrap();
}
