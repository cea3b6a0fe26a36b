//! What the planner would do. Hadron's own, in the manner of `etcdctl`'s.

use hadron_proto::hadron::{BalanceSimulateResponse, Move, SimulatedMove, SimulatedNode};
use prost::Message as _;

use super::super::go_text;
use super::balance::{move_fields, move_json, percent};
use super::json::Object;
use super::table::Table;
use super::{Reply, Style, field, id_field, line, quoted_field};

/// The pool before and after, and the moves between.
pub(crate) struct Simulated(pub(crate) BalanceSimulateResponse);

/// What was assumed of a node, or is so already.
fn state(node: &SimulatedNode) -> &'static str {
    match node {
        node if node.added => "added",
        node if node.removed => "removed",
        node if node.draining => "draining",
        _ => "",
    }
}

fn before_and_after(before: impl ToString, after: impl ToString) -> String {
    format!("{} -> {}", before.to_string(), after.to_string())
}

fn keyspace(planned: &Move) -> String {
    match planned.keyspace.as_str() {
        "" => format!("group {}", planned.group),
        name => name.to_owned(),
    }
}

impl Simulated {
    fn nodes_table(&self) -> Table {
        let row = |node: &SimulatedNode| {
            vec![
                if node.added { String::new() } else { format!("{:x}", node.id) },
                node.name.clone(),
                node.zone.clone(),
                state(node).to_owned(),
                before_and_after(node.leaders_before, node.leaders_after),
                before_and_after(node.replicas_before, node.replicas_after),
                before_and_after(percent(node.load_before), percent(node.load_after)),
                before_and_after(percent(node.share_before), percent(node.share_after)),
            ]
        };
        let header = vec!["ID", "name", "zone", "state", "leaders", "replicas", "W", "B"];
        Table { header, rows: self.0.nodes.iter().map(row).collect() }
    }

    fn moves_table(&self) -> Table {
        let row = |it: &SimulatedMove| {
            let planned = it.planned.clone().unwrap_or_default();
            let name = keyspace(&planned);
            vec![it.round.to_string(), name, planned.kind, planned.reason, planned.effect]
        };
        let header = vec!["round", "keyspace", "move", "because", "effect"];
        Table { header, rows: self.0.moves.iter().map(row).collect() }
    }

    /// What it comes to, in lines.
    fn summary(&self) -> Vec<String> {
        let it = &self.0;
        let mut lines = vec![
            format!("{} moves in {} rounds, {} to send", it.move_count, it.rounds, go_text::size(it.bytes)),
            format!(
                "largest W {} -> {}, mean {} -> {}",
                percent(it.largest_before),
                percent(it.largest_after),
                percent(it.mean_before),
                percent(it.mean_after)
            ),
        ];
        let left_out = it.move_count.saturating_sub(it.moves.len() as u64);
        let remarks = [
            (left_out > 0, format!("{left_out} moves are not shown")),
            (!it.settled, "more would be left to do".to_owned()),
            (it.paused, "balancing is paused: only what is broken is mended".to_owned()),
            (
                it.without_quorum > 0,
                format!("{} keyspaces without a majority that can be reached", it.without_quorum),
            ),
            (it.short_of_replicas > 0, format!("{} keyspaces short of replicas", it.short_of_replicas)),
            (it.sharing_a_zone > 0, format!("{} keyspaces with two replicas in a zone", it.sharing_a_zone)),
        ];
        lines.extend(remarks.into_iter().filter(|(is_so, _)| *is_so).map(|(_, text)| text));
        lines
    }
}

impl Reply for Simulated {
    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.0.encode_to_vec())
    }

    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        out.extend_from_slice(self.moves_table().lines().as_bytes());
        out.extend_from_slice(self.nodes_table().lines().as_bytes());
        self.summary().iter().for_each(|text| line(out, text));
    }

    fn fields(&self, style: Style, out: &mut Vec<u8>) {
        for it in &self.0.moves {
            let planned = it.planned.clone().unwrap_or_default();
            field(out, "Round", it.round);
            move_fields(&planned, out);
        }
        for node in &self.0.nodes {
            id_field(out, "ID", node.id, style);
            quoted_field(out, "Name", node.name.as_bytes());
            quoted_field(out, "State", state(node).as_bytes());
            for (name, before, after) in
                [("W", node.load_before, node.load_after), ("B", node.share_before, node.share_after)]
            {
                field(out, &format!("{name}Before"), before);
                field(out, &format!("{name}After"), after);
            }
            field(out, "ReplicasBefore", node.replicas_before);
            field(out, "ReplicasAfter", node.replicas_after);
            field(out, "LeadersBefore", node.leaders_before);
            field(out, "LeadersAfter", node.leaders_after);
            line(out, "");
        }
        field(out, "Moves", self.0.move_count);
        field(out, "Bytes", self.0.bytes);
        field(out, "Settled", self.0.settled);
    }

    fn json(&self, _: Style) -> String {
        let it = &self.0;
        Object::new()
            .list("nodes", it.nodes.iter().map(node_json).collect())
            .list("moves", it.moves.iter().map(simulated_json).collect())
            .raw("move_count", &it.move_count.to_string())
            .raw("bytes", &it.bytes.to_string())
            .raw("rounds", &it.rounds.to_string())
            .raw("settled", &it.settled.to_string())
            .raw("paused", &it.paused.to_string())
            .raw("largest", &change_json(it.largest_before, it.largest_after))
            .raw("mean", &change_json(it.mean_before, it.mean_after))
            .raw("short_of_replicas", &it.short_of_replicas.to_string())
            .raw("without_quorum", &it.without_quorum.to_string())
            .raw("sharing_a_zone", &it.sharing_a_zone.to_string())
            .end()
    }

    /// The nodes: two tables are none. `-w simple` has the moves.
    fn table(&self) -> Option<Table> {
        Some(self.nodes_table())
    }
}

fn change_json(before: impl ToString, after: impl ToString) -> String {
    Object::new().raw("before", &before.to_string()).raw("after", &after.to_string()).end()
}

fn node_json(node: &SimulatedNode) -> String {
    Object::new()
        .number("id", node.id)
        .text("name", &node.name)
        .text("zone", &node.zone)
        .text("state", state(node))
        .raw("W", &change_json(node.load_before, node.load_after))
        .raw("B", &change_json(node.share_before, node.share_after))
        .raw("replicas", &change_json(node.replicas_before, node.replicas_after))
        .raw("leaders", &change_json(node.leaders_before, node.leaders_after))
        .end()
}

fn simulated_json(it: &SimulatedMove) -> String {
    let planned = it.planned.clone().unwrap_or_default();
    move_json(Object::new().raw("round", &it.round.to_string()), &planned).end()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::{Format, text};
    use super::*;

    #[test]
    fn moves_come_first_then_nodes_and_then_what_it_comes_to() {
        let node = SimulatedNode {
            id: 10,
            name: "n1".into(),
            draining: true,
            load_before: 0.5,
            share_before: 1.0,
            replicas_before: 3,
            ..Default::default()
        };
        let added =
            SimulatedNode { id: 1, name: "new-1".into(), added: true, load_after: 0.5, ..Default::default() };
        let planned = Move {
            group: 7,
            keyspace: "a".into(),
            kind: "replica n1 → new-1".into(),
            cause: "drained".into(),
            reason: "n1 is drained".into(),
            effect: "from 50.0 % ⇒ 0.0 %".into(),
            bytes: 2_000,
            ..Default::default()
        };
        let reply = Simulated(BalanceSimulateResponse {
            nodes: vec![node, added],
            moves: vec![SimulatedMove { round: 1, planned: Some(planned) }],
            move_count: 3,
            bytes: 6_000,
            rounds: 2,
            settled: false,
            largest_before: 0.5,
            largest_after: 0.5,
            ..Default::default()
        });
        let expected = "\
1, a, replica n1 → new-1, n1 is drained, from 50.0 % ⇒ 0.0 %
a, n1, , draining, 0 -> 0, 3 -> 0, 50.0 % -> 0.0 %, 100.0 % -> 0.0 %
, new-1, , added, 0 -> 0, 0 -> 0, 0.0 % -> 50.0 %, 0.0 % -> 0.0 %
3 moves in 2 rounds, 6.0 kB to send
largest W 50.0 % -> 50.0 %, mean 0.0 % -> 0.0 %
2 moves are not shown
more would be left to do
";
        assert_eq!(text(Format::Simple, &reply), expected);
        let json = text(Format::Json, &reply);
        let parsed: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(parsed["nodes"][0]["W"]["before"], 0.5);
        assert_eq!(parsed["moves"][0]["move"], "replica n1 → new-1");
        assert_eq!((parsed["settled"].clone(), parsed["move_count"].clone()), (false.into(), 3.into()));
        assert!(text(Format::Fields, &reply).contains("\"Cause\" : \"drained\""));
        assert!(text(Format::Table, &reply).contains("| draining |"));
    }
}
