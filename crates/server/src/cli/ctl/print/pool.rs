//! Replies about the pool: keyspaces and nodes. Hadron's own, in the manner of `etcdctl`'s.

use hadron_proto::hadron::{
    Keyspace, KeyspaceGetResponse, KeyspaceListResponse, KeyspaceReplica, Node, NodeListResponse,
};
use prost::Message as _;

use super::super::go_text;
use super::balance::{waiting_fields, waiting_json};
use super::json::{self, Object};
use super::table::Table;
use super::{Reply, Style, field, id_field, line, quoted_field};
use crate::cli::clock::utc;

fn state(keyspace: &Keyspace) -> String {
    if keyspace.frozen { "frozen" } else { "active" }.to_owned()
}

/// A bound, or that there is none.
fn bound(value: u64, text: impl FnOnce(u64) -> String) -> String {
    if value == 0 { "none".to_owned() } else { text(value) }
}

fn created(keyspace: &Keyspace) -> String {
    match keyspace.created_at_ms {
        0 => String::new(),
        millis => utc(millis.saturating_mul(1000), 3),
    }
}

fn keyspace_fields(out: &mut Vec<u8>, keyspace: &Keyspace, style: Style) {
    quoted_field(out, "Name", keyspace.name.as_bytes());
    field(out, "Group", keyspace.group);
    id_field(out, "ClusterID", keyspace.cluster_id, style);
    field(out, "Frozen", keyspace.frozen);
    field(out, "Replicas", keyspace.replicas);
    field(out, "BytesMax", keyspace.bytes_max);
    field(out, "RequestsPerSecondMax", keyspace.requests_per_second_max);
    field(out, "CreatedAtMs", keyspace.created_at_ms);
}

fn keyspace_json(keyspace: &Keyspace) -> String {
    Object::new()
        .text("name", &keyspace.name)
        .number("group", keyspace.group)
        .flag("frozen", keyspace.frozen)
        .number("replicas", keyspace.replicas)
        .number("bytes_max", keyspace.bytes_max)
        .number("requests_per_second_max", keyspace.requests_per_second_max)
        .number("created_at_ms", keyspace.created_at_ms)
        .number("cluster_id", keyspace.cluster_id)
        .end()
}

/// Something that happened to a keyspace.
pub(crate) struct Changed {
    /// In the past tense.
    pub(crate) happened: &'static str,
    pub(crate) keyspace: Keyspace,
}

impl Reply for Changed {
    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.keyspace.encode_to_vec())
    }

    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        line(out, format_args!("Keyspace {} {}", self.keyspace.name, self.happened));
    }

    fn fields(&self, style: Style, out: &mut Vec<u8>) {
        keyspace_fields(out, &self.keyspace, style);
    }

    fn json(&self, _: Style) -> String {
        Object::new().raw("keyspace", &keyspace_json(&self.keyspace)).end()
    }
}

fn list_table(list: &KeyspaceListResponse) -> Table {
    let row = |keyspace: &Keyspace| {
        vec![
            keyspace.name.clone(),
            keyspace.group.to_string(),
            state(keyspace),
            keyspace.replicas.to_string(),
            bound(keyspace.bytes_max, go_text::size),
            bound(keyspace.requests_per_second_max, |count| count.to_string()),
            created(keyspace),
        ]
    };
    Table {
        header: vec!["name", "group", "state", "replicas", "space", "requests per second", "created"],
        rows: list.keyspaces.iter().map(row).collect(),
    }
}

impl Reply for KeyspaceListResponse {
    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }

    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        out.extend_from_slice(list_table(self).lines().as_bytes());
    }

    fn fields(&self, style: Style, out: &mut Vec<u8>) {
        for keyspace in &self.keyspaces {
            keyspace_fields(out, keyspace, style);
            line(out, "");
        }
    }

    fn json(&self, _: Style) -> String {
        Object::new().list("keyspaces", self.keyspaces.iter().map(keyspace_json).collect()).end()
    }

    fn table(&self) -> Option<Table> {
        Some(list_table(self))
    }
}

/// A keyspace, as a node sees it.
pub(crate) struct Described(pub(crate) KeyspaceGetResponse);

/// `n1 (leader), n2 (3 entries behind)`. A node that is no member any more has no name.
fn replicas(reply: &KeyspaceGetResponse) -> String {
    let replica = |replica: &KeyspaceReplica| {
        let remark = match replica.lag {
            _ if replica.damaged => " (damaged)".to_owned(),
            _ if replica.out_of_reach => " (out of reach)".to_owned(),
            _ if replica.node == reply.leader => " (leader)".to_owned(),
            Some(1) => " (1 entry behind)".to_owned(),
            Some(lag) => format!(" ({lag} entries behind)"),
            None => String::new(),
        };
        match replica.name.as_str() {
            "" => format!("{:x}{remark}", replica.node),
            name => format!("{name}{remark}"),
        }
    };
    reply.replicas.iter().map(replica).collect::<Vec<_>>().join("; ")
}

impl Described {
    fn as_table(&self) -> Table {
        let Described(reply) = self;
        let keyspace = reply.keyspace.clone().unwrap_or_default();
        let unknown = || "unknown".to_owned();
        let size = |bytes: i64| go_text::size(bytes.unsigned_abs());
        let row = vec![
            keyspace.name.clone(),
            keyspace.group.to_string(),
            state(&keyspace),
            if reply.leader == 0 { unknown() } else { format!("{:x}", reply.leader) },
            replicas(reply),
            reply.revision.map_or_else(unknown, |revision| revision.to_string()),
            reply.db_size.map_or_else(unknown, size),
            bound(keyspace.bytes_max, go_text::size),
            bound(keyspace.requests_per_second_max, |count| count.to_string()),
        ];
        let header = vec![
            "name",
            "group",
            "state",
            "leader",
            "replicas",
            "revision",
            "db size",
            "space",
            "requests per second",
        ];
        Table { header, rows: vec![row] }
    }
}

impl Reply for Described {
    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.0.encode_to_vec())
    }

    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_table().lines().as_bytes());
    }

    fn fields(&self, style: Style, out: &mut Vec<u8>) {
        keyspace_fields(out, &self.0.keyspace.clone().unwrap_or_default(), style);
        id_field(out, "Leader", self.0.leader, style);
        self.0.revision.iter().for_each(|revision| field(out, "Revision", revision));
        self.0.db_size.iter().for_each(|bytes| field(out, "DBSize", bytes));
        for replica in &self.0.replicas {
            id_field(out, "Node", replica.node, style);
            quoted_field(out, "NodeName", replica.name.as_bytes());
            field(out, "Replica", replica.replica);
            replica.lag.iter().for_each(|lag| field(out, "Lag", lag));
            field(out, "OutOfReach", replica.out_of_reach);
            field(out, "Damaged", replica.damaged);
        }
    }

    fn json(&self, _: Style) -> String {
        let replica = |replica: &KeyspaceReplica| {
            Object::new()
                .number("node", replica.node)
                .text("name", &replica.name)
                .number("replica", replica.replica)
                .optional("lag", replica.lag.map(|lag| lag.to_string()))
                .flag("out_of_reach", replica.out_of_reach)
                .flag("damaged", replica.damaged)
                .end()
        };
        Object::new()
            .optional("keyspace", self.0.keyspace.as_ref().map(keyspace_json))
            .number("leader", self.0.leader)
            .list("replicas", self.0.replicas.iter().map(replica).collect())
            .optional("revision", self.0.revision.map(|revision| revision.to_string()))
            .optional("db_size", self.0.db_size.map(|bytes| bytes.to_string()))
            .end()
    }

    fn table(&self) -> Option<Table> {
        Some(self.as_table())
    }
}

fn node_state(node: &Node) -> String {
    let state = if node.alive { "alive" } else { "down" };
    let waiting = node.waiting.iter().map(|it| format!("; {} wait ({})", it.replicas, it.reason));
    let draining = if node.draining { "; draining" } else { "" };
    format!("{state}{draining}{}", waiting.collect::<String>())
}

fn node_table(list: &NodeListResponse) -> Table {
    let row = |node: &Node| {
        vec![
            format!("{:x}", node.id),
            node.name.clone(),
            node_state(node),
            node.learner.to_string(),
            node.replicas.to_string(),
            node.leaders.to_string(),
            node.client_urls.join(";"),
            node.peer_urls.join(";"),
        ]
    };
    Table {
        header: vec![
            "ID",
            "name",
            "state",
            "is learner",
            "replicas",
            "leaders",
            "client addrs",
            "peer addrs",
        ],
        rows: list.nodes.iter().map(row).collect(),
    }
}

impl Reply for NodeListResponse {
    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }

    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        out.extend_from_slice(node_table(self).lines().as_bytes());
    }

    fn fields(&self, style: Style, out: &mut Vec<u8>) {
        for node in &self.nodes {
            id_field(out, "ID", node.id, style);
            quoted_field(out, "Name", node.name.as_bytes());
            node.peer_urls.iter().for_each(|url| quoted_field(out, "PeerURL", url.as_bytes()));
            node.client_urls.iter().for_each(|url| quoted_field(out, "ClientURL", url.as_bytes()));
            field(out, "Alive", node.alive);
            field(out, "IsLearner", node.learner);
            field(out, "Replicas", node.replicas);
            field(out, "Leaders", node.leaders);
            field(out, "Draining", node.draining);
            field(out, "Leaving", node.leaving);
            waiting_fields(out, &node.waiting);
            line(out, "");
        }
    }

    fn json(&self, _: Style) -> String {
        let urls = |urls: &[String]| urls.iter().map(|url| json::text(url)).collect();
        let node = |node: &Node| {
            Object::new()
                .number("id", node.id)
                .text("name", &node.name)
                .list("peer_urls", urls(&node.peer_urls))
                .list("client_urls", urls(&node.client_urls))
                .flag("alive", node.alive)
                .flag("learner", node.learner)
                .number("replicas", node.replicas)
                .number("leaders", node.leaders)
                .flag("draining", node.draining)
                .number("leaving", node.leaving)
                .list("waiting", waiting_json(&node.waiting))
                .end()
        };
        Object::new().list("nodes", self.nodes.iter().map(node).collect()).end()
    }

    fn table(&self) -> Option<Table> {
        Some(node_table(self))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::{Format, text};
    use super::*;

    fn keyspace() -> Keyspace {
        Keyspace {
            name: "a".to_owned(),
            group: 2,
            replicas: 3,
            bytes_max: 1 << 20,
            created_at_ms: 1_000,
            cluster_id: 255,
            ..Keyspace::default()
        }
    }

    #[test]
    fn keyspaces_are_lines_objects_and_tables() {
        let list = KeyspaceListResponse { keyspaces: vec![keyspace()] };
        assert_eq!(text(Format::Simple, &list), "a, 2, active, 3, 1.0 MB, none, 1970-01-01T00:00:01.000Z\n");
        let json = r#"{"keyspaces":[{"name":"a","group":2,"replicas":3,"bytes_max":1048576,"created_at_ms":1000,"cluster_id":255}]}"#;
        assert_eq!(text(Format::Json, &list).trim_end(), json);
        assert!(text(Format::Table, &list).contains("| NAME | GROUP | STATE  |"));
        let changed = Changed { happened: "created", keyspace: keyspace() };
        assert_eq!(text(Format::Simple, &changed), "Keyspace a created\n");
    }

    #[test]
    fn what_is_not_known_of_a_keyspace_is_not_made_up() {
        let replica = |node, lag| KeyspaceReplica {
            node,
            name: format!("n{node}"),
            replica: node,
            lag,
            ..KeyspaceReplica::default()
        };
        let mut reply = KeyspaceGetResponse {
            keyspace: Some(keyspace()),
            leader: 1,
            replicas: vec![replica(1, Some(0)), replica(2, Some(7)), replica(3, None)],
            revision: Some(9),
            db_size: Some(0),
        };
        let simple = text(Format::Simple, &Described(reply.clone()));
        assert_eq!(simple, "a, 2, active, 1, n1 (leader); n2 (7 entries behind); n3, 9, 0 B, 1.0 MB, none\n");
        let json = text(Format::Json, &Described(reply.clone()));
        assert!(json.contains(r#"{"node":1,"name":"n1","replica":1,"lag":0}"#), "{json}");
        assert!(json.ends_with("\"revision\":9,\"db_size\":0}\n"), "{json}");
        (reply.replicas[1].out_of_reach, reply.replicas[2].damaged) = (true, true);
        let simple = text(Format::Simple, &Described(reply.clone()));
        assert!(simple.contains("n1 (leader); n2 (out of reach); n3 (damaged)"), "{simple}");
        let json = text(Format::Json, &Described(reply.clone()));
        assert!(json.contains(r#""replica":3,"damaged":true}"#), "{json}");
        (reply.leader, reply.revision, reply.db_size) = (0, None, None);
        let simple = text(Format::Simple, &Described(reply.clone()));
        assert!(simple.contains(", unknown, n1 (0 entries behind);"), "{simple}");
        assert!(!text(Format::Fields, &Described(reply)).contains("Revision"));
    }
}
