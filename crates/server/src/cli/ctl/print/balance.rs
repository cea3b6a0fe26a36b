//! Replies about load. Hadron's own, in the manner of `etcdctl`'s.

use hadron_proto::hadron::{
    BalanceHistoryResponse, BalanceNode, BalanceStatusResponse, Move, ResourceLoad, TopKeyspace, TopResponse,
    Waiting,
};
use prost::Message as _;

use super::super::go_text;
use super::json::Object;
use super::table::Table;
use super::{Reply, Style, field, id_field, line, quoted_field};
use crate::cli::clock::utc;

/// Something was done.
pub(crate) struct Done(pub(crate) String);

impl Reply for Done {
    fn protobuf(&self) -> Option<Vec<u8>> {
        None
    }

    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        line(out, &self.0);
    }

    fn fields(&self, _: Style, out: &mut Vec<u8>) {
        quoted_field(out, "Done", self.0.as_bytes());
    }

    fn json(&self, _: Style) -> String {
        Object::new().text("done", &self.0).end()
    }
}

/// What is being done to a node, and what keeps it from being done.
pub(crate) struct Draining {
    pub(crate) done: String,
    pub(crate) waiting: Vec<Waiting>,
}

impl Reply for Draining {
    fn protobuf(&self) -> Option<Vec<u8>> {
        None
    }

    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        line(out, &self.done);
        self.waiting.iter().filter(|it| !is_turn(it)).for_each(|it| line(out, waiting_text(it)));
    }

    fn fields(&self, _: Style, out: &mut Vec<u8>) {
        quoted_field(out, "Done", self.done.as_bytes());
        waiting_fields(out, &self.waiting);
    }

    fn json(&self, _: Style) -> String {
        Object::new().text("done", &self.done).list("waiting", waiting_json(&self.waiting)).end()
    }
}

/// They wait for others only: that ends by itself.
fn is_turn(waiting: &Waiting) -> bool {
    waiting.reason == "turn"
}

/// `3 replicas wait: ...`.
pub(in super::super) fn waiting_text(waiting: &Waiting) -> String {
    let count = match waiting.replicas {
        1 => "1 replica waits".to_owned(),
        count => format!("{count} replicas wait"),
    };
    format!("{count}: {}", waiting.text)
}

pub(super) fn waiting_fields(out: &mut Vec<u8>, waiting: &[Waiting]) {
    for it in waiting {
        quoted_field(out, "WaitingFor", it.reason.as_bytes());
        field(out, "WaitingReplicas", it.replicas);
    }
}

pub(super) fn waiting_json(waiting: &[Waiting]) -> Vec<String> {
    let one = |it: &Waiting| {
        let object = Object::new().text("reason", &it.reason).text("text", &it.text);
        object.raw("replicas", &it.replicas.to_string()).end()
    };
    waiting.iter().map(one).collect()
}

/// A part of a whole: `31.4 %`.
pub(super) fn percent(part: f64) -> String {
    format!("{:.1} %", part * 100.0)
}

/// An amount as people read it.
fn amount(load: &ResourceLoad) -> String {
    let whole = load.short.round() as u64;
    match load.resource.as_str() {
        "cpu" => format!("{:.2}", load.short),
        "requests" | "events" => format!("{whole}/s"),
        "read" | "written" => format!("{}/s", go_text::size(whole)),
        _ => go_text::size(whole),
    }
}

fn of<'a>(loads: &'a [ResourceLoad], resource: &str) -> Option<&'a ResourceLoad> {
    loads.iter().find(|load| load.resource == resource)
}

pub(super) fn amounts(loads: &[ResourceLoad], resources: &[&str]) -> Vec<String> {
    resources.iter().map(|resource| of(loads, resource).map_or_else(String::new, amount)).collect()
}

/// A move as lines of names and values, after what is told of it beside.
pub(super) fn move_fields(it: &Move, out: &mut Vec<u8>) {
    field(out, "Group", it.group);
    quoted_field(out, "Keyspace", it.keyspace.as_bytes());
    quoted_field(out, "Move", it.kind.as_bytes());
    quoted_field(out, "Cause", it.cause.as_bytes());
    quoted_field(out, "Reason", it.reason.as_bytes());
    quoted_field(out, "Effect", it.effect.as_bytes());
    field(out, "Bytes", it.bytes);
    line(out, "");
}

/// The same for an object.
pub(super) fn move_json(object: Object, it: &Move) -> Object {
    object
        .number("group", it.group)
        .text("keyspace", &it.keyspace)
        .text("move", &it.kind)
        .text("cause", &it.cause)
        .text("reason", &it.reason)
        .text("effect", &it.effect)
        .raw("bytes", &it.bytes.to_string())
}

pub(super) fn loads_json(loads: &[ResourceLoad]) -> Vec<String> {
    let load = |load: &ResourceLoad| {
        Object::new()
            .text("resource", &load.resource)
            .raw("short", &load.short.to_string())
            .raw("long", &load.long.to_string())
            .raw("capacity", &load.capacity.to_string())
            .end()
    };
    loads.iter().map(load).collect()
}

/// What is behind W, in the columns of the tables.
const SHOWN: [&str; 5] = ["cpu", "requests", "written", "storage", "memory"];

fn status_table(reply: &BalanceStatusResponse) -> Table {
    let row = |node: &BalanceNode| {
        let mut row = vec![
            format!("{:x}", node.id),
            node.name.clone(),
            node.zone.clone(),
            if node.draining { "draining" } else { "" }.to_owned(),
            node.leaders.to_string(),
            node.replicas.to_string(),
            percent(node.load),
            node.scarcest.clone(),
            percent(node.share),
            percent(node.heaviest_replica),
        ];
        row.extend(amounts(&node.loads, &SHOWN));
        row
    };
    let mut header =
        vec!["ID", "name", "zone", "state", "leaders", "replicas", "W", "of", "B", "heaviest replica"];
    header.extend(SHOWN);
    Table { header, rows: reply.nodes.iter().map(row).collect() }
}

impl Reply for BalanceStatusResponse {
    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }

    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        out.extend_from_slice(status_table(self).lines().as_bytes());
        let paused = if self.paused { "; balancing is paused" } else { "" };
        line(
            out,
            format_args!(
                "largest W {}, mean {}, heaviest replica {}; {} replicas leaving{paused}",
                percent(self.largest),
                percent(self.mean),
                percent(self.heaviest_replica),
                self.leaving
            ),
        );
        for node in &self.nodes {
            for waiting in &node.waiting {
                line(out, format_args!("{:x} ({}): {}", node.id, node.name, waiting_text(waiting)));
            }
        }
        for (count, what) in [
            (self.without_quorum, "keyspaces of which no majority can be reached"),
            (
                self.short_of_replicas,
                "keyspaces with fewer replicas that can be reached than they shall have",
            ),
            (self.sharing_a_zone, "keyspaces with two replicas in a zone although there is another"),
        ] {
            if count > 0 {
                line(out, format_args!("{count} {what}"));
            }
        }
    }

    fn fields(&self, style: Style, out: &mut Vec<u8>) {
        for node in &self.nodes {
            id_field(out, "ID", node.id, style);
            quoted_field(out, "Name", node.name.as_bytes());
            quoted_field(out, "Zone", node.zone.as_bytes());
            field(out, "Draining", node.draining);
            field(out, "Leaders", node.leaders);
            field(out, "Replicas", node.replicas);
            field(out, "W", node.load);
            field(out, "B", node.share);
            quoted_field(out, "Scarcest", node.scarcest.as_bytes());
            waiting_fields(out, &node.waiting);
            line(out, "");
        }
        field(out, "Largest", self.largest);
        field(out, "Mean", self.mean);
        field(out, "HeaviestReplica", self.heaviest_replica);
        field(out, "Leaving", self.leaving);
        field(out, "Paused", self.paused);
    }

    fn json(&self, _: Style) -> String {
        let node = |node: &BalanceNode| {
            Object::new()
                .number("id", node.id)
                .text("name", &node.name)
                .text("zone", &node.zone)
                .flag("draining", node.draining)
                .raw("leaders", &node.leaders.to_string())
                .raw("replicas", &node.replicas.to_string())
                .raw("W", &node.load.to_string())
                .raw("B", &node.share.to_string())
                .text("scarcest", &node.scarcest)
                .raw("heaviest_replica", &node.heaviest_replica.to_string())
                .list("loads", loads_json(&node.loads))
                .list("waiting", waiting_json(&node.waiting))
                .end()
        };
        Object::new()
            .list("nodes", self.nodes.iter().map(node).collect())
            .raw("mean", &self.mean.to_string())
            .raw("largest", &self.largest.to_string())
            .raw("heaviest_replica", &self.heaviest_replica.to_string())
            .raw("short_of_replicas", &self.short_of_replicas.to_string())
            .raw("without_quorum", &self.without_quorum.to_string())
            .raw("sharing_a_zone", &self.sharing_a_zone.to_string())
            .raw("leaving", &self.leaving.to_string())
            .flag("paused", self.paused)
            .end()
    }

    fn table(&self) -> Option<Table> {
        Some(status_table(self))
    }
}

fn history_table(reply: &BalanceHistoryResponse) -> Table {
    let row = |planned: &Move| {
        let keyspace = if planned.keyspace.is_empty() {
            format!("group {}", planned.group)
        } else {
            planned.keyspace.clone()
        };
        vec![
            utc(planned.at_ms.saturating_mul(1000), 3),
            keyspace,
            planned.kind.clone(),
            planned.reason.clone(),
            planned.effect.clone(),
        ]
    };
    Table {
        header: vec!["time", "keyspace", "move", "because", "effect"],
        rows: reply.moves.iter().map(row).collect(),
    }
}

impl Reply for BalanceHistoryResponse {
    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }

    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        out.extend_from_slice(history_table(self).lines().as_bytes());
    }

    fn fields(&self, _: Style, out: &mut Vec<u8>) {
        for planned in &self.moves {
            field(out, "AtMs", planned.at_ms);
            move_fields(planned, out);
        }
    }

    fn json(&self, _: Style) -> String {
        let planned =
            |planned: &Move| move_json(Object::new().raw("at_ms", &planned.at_ms.to_string()), planned).end();
        Object::new().list("moves", self.moves.iter().map(planned).collect()).end()
    }

    fn table(&self) -> Option<Table> {
        Some(history_table(self))
    }
}

/// Who causes the load.
pub(crate) struct Top(pub(crate) TopResponse);

/// What a keyspace is shown with.
const CAUSED: [&str; 6] = ["cpu", "requests", "events", "read", "written", "storage"];

impl Top {
    fn as_table(&self) -> Table {
        let row = |keyspace: &TopKeyspace| {
            let mut row = vec![keyspace.keyspace.clone()];
            row.extend(amounts(&keyspace.loads, &CAUSED));
            row
        };
        let mut header = vec!["keyspace"];
        header.extend(CAUSED);
        Table { header, rows: self.0.keyspaces.iter().map(row).collect() }
    }
}

impl Reply for Top {
    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.0.encode_to_vec())
    }

    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_table().lines().as_bytes());
    }

    fn fields(&self, _: Style, out: &mut Vec<u8>) {
        for keyspace in &self.0.keyspaces {
            quoted_field(out, "Keyspace", keyspace.keyspace.as_bytes());
            field(out, "Group", keyspace.group);
            keyspace.loads.iter().for_each(|load| field(out, &load.resource, load.short));
            line(out, "");
        }
    }

    fn json(&self, _: Style) -> String {
        let keyspace = |keyspace: &TopKeyspace| {
            Object::new()
                .text("keyspace", &keyspace.keyspace)
                .number("group", keyspace.group)
                .list("loads", loads_json(&keyspace.loads))
                .end()
        };
        Object::new().list("keyspaces", self.0.keyspaces.iter().map(keyspace).collect()).end()
    }

    fn table(&self) -> Option<Table> {
        Some(self.as_table())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::{Format, text};
    use super::*;

    #[test]
    fn the_load_of_each_node_is_shown_with_what_is_behind_it() {
        let cpu = ResourceLoad { resource: "cpu".into(), short: 0.5, long: 0.4, capacity: 2.0 };
        let node = BalanceNode {
            id: 10,
            name: "n1".into(),
            leaders: 2,
            replicas: 3,
            load: 0.25,
            share: 0.6,
            scarcest: "cpu".into(),
            loads: vec![cpu],
            ..BalanceNode::default()
        };
        let waiting = Waiting { reason: "disks-full".into(), text: "they are full".into(), replicas: 3 };
        let turn = Waiting { reason: "turn".into(), text: "others are first".into(), replicas: 1 };
        let drained =
            Draining { done: "Node a is being drained".into(), waiting: vec![waiting.clone(), turn] };
        let expected = "Node a is being drained\n3 replicas wait: they are full\n";
        assert_eq!(text(Format::Simple, &drained), expected);
        let json = text(Format::Json, &drained);
        assert!(
            json.contains(r#""waiting":[{"reason":"disks-full","text":"they are full","replicas":3},"#),
            "{json}"
        );
        let node = BalanceNode { waiting: vec![waiting], ..node };
        let reply = BalanceStatusResponse { nodes: vec![node], largest: 0.25, ..Default::default() };
        let told = text(Format::Simple, &reply);
        assert!(told.ends_with("\na (n1): 3 replicas wait: they are full\n"), "{told}");
        let simple = text(Format::Simple, &reply);
        assert!(simple.starts_with("a, n1, , , 2, 3, 25.0 %, cpu, 60.0 %, 0.0 %, 0.50, "), "{simple}");
        let json = text(Format::Json, &reply);
        assert!(json.contains(r#""W":0.25,"B":0.6,"scarcest":"cpu""#), "{json}");
        assert!(json.contains(r#"{"resource":"cpu","short":0.5,"long":0.4,"capacity":2}"#), "{json}");
        assert!(text(Format::Table, &reply).contains("| NAME |"));
    }
}
