//! `election history`: the elections that nodes recorded, with each candidate's share of the votes. Hadron's own.

use std::collections::BTreeMap;

use clap::Subcommand;
use hadron_proto::hadron::pool_client::PoolClient;
use hadron_proto::hadron::{Election as Record, ElectionHistoryRequest};

use super::failure::Failure;
use super::print::json::{self, Object};
use super::print::table::Table;
use super::print::{Reply, Style, field, line};
use super::{Global, Session};
use crate::cli::clock::utc;

/// Subcommands of `election`.
#[derive(Debug, Subcommand)]
pub(crate) enum Election {
    /// Show past elections with the share P(x) = V(x) / sum of V(i) of each candidate
    History {
        /// Only elections of this keyspace
        #[arg(long, default_value = "", hide_default_value = true)]
        keyspace: String,
    },
}

impl Election {
    /// Runs the command: asks every endpoint, since a node only knows the elections that it took part in.
    pub(super) async fn run(self, global: Global) -> Result<(), Failure> {
        let Election::History { keyspace } = self;
        let session = Session::new(global)?;
        let request = ElectionHistoryRequest { keyspace };
        let (mut records, mut errors) = (Vec::new(), Vec::new());
        for endpoint in &session.client.endpoints {
            let call = async |channel| PoolClient::new(channel).election_history(request.clone()).await;
            match session.client.only(endpoint).read(call).await {
                Ok(reply) => records.extend(reply.elections),
                Err(error) => errors.push(error),
            }
        }
        if errors.len() == session.client.endpoints.len()
            && let Some(error) = errors.pop()
        {
            return Err(error.into());
        }
        session.printer.print(&History(merge(records)))
    }
}

/// Elections, oldest first.
pub(crate) struct History(pub(crate) Vec<Record>);

/// One record per group and term: the one that counted most votes, which is the winner's own.
pub(crate) fn merge(records: Vec<Record>) -> Vec<Record> {
    let mut merged: BTreeMap<(u64, u64), Record> = BTreeMap::new();
    for record in records {
        let kept = merged.entry((record.group, record.term)).or_insert_with(|| record.clone());
        if votes(&record) > votes(kept) {
            *kept = record;
        }
    }
    let mut merged: Vec<Record> = merged.into_values().collect();
    merged.sort_by_key(|record| (record.recorded_at_ms, record.group, record.term));
    merged
}

fn votes(record: &Record) -> (bool, u64) {
    (record.winner != 0, record.shares.iter().map(|share| share.votes).sum())
}

/// `P(a1) = 1.00 (2 votes)`, candidates separated by commas.
pub(crate) fn shares(record: &Record, name: impl Fn(u64) -> String) -> String {
    let shares = record.shares.iter().map(|share| {
        let votes = if share.votes == 1 { "vote" } else { "votes" };
        format!("P({}) = {:.2} ({} {votes})", name(share.node), share.share, share.votes)
    });
    shares.collect::<Vec<_>>().join(", ")
}

impl History {
    fn as_table(&self) -> Table {
        let row = |record: &Record| {
            vec![
                utc(record.recorded_at_ms.saturating_mul(1000), 3),
                record.group.to_string(),
                record.term.to_string(),
                if record.winner == 0 { "none".to_owned() } else { format!("{:x}", record.winner) },
                shares(record, |id| format!("{id:x}")),
            ]
        };
        Table {
            header: vec!["time", "group", "term", "winner", "shares"],
            rows: self.0.iter().map(row).collect(),
        }
    }
}

impl Reply for History {
    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_table().lines().as_bytes());
    }

    fn fields(&self, _: Style, out: &mut Vec<u8>) {
        for record in &self.0 {
            field(out, "Group", record.group);
            field(out, "Term", record.term);
            field(out, "Winner", record.winner);
            field(out, "RecordedAtMs", record.recorded_at_ms);
            for share in &record.shares {
                field(out, "Candidate", share.node);
                field(out, "Votes", share.votes);
                field(out, "Share", share.share);
            }
            line(out, "");
        }
    }

    fn json(&self, _: Style) -> String {
        let share = |share: &hadron_proto::hadron::VoteShare| {
            Object::new()
                .number("node", share.node)
                .raw("votes", &share.votes.to_string())
                .raw("share", &share.share.to_string())
                .end()
        };
        let record = |record: &Record| {
            Object::new()
                .raw("group", &record.group.to_string())
                .number("term", record.term)
                .raw("winner", &record.winner.to_string())
                .number("recorded_at_ms", record.recorded_at_ms)
                .raw("shares", &json::list(record.shares.iter().map(share).collect()))
                .end()
        };
        json::list(self.0.iter().map(record).collect())
    }

    fn table(&self) -> Option<Table> {
        Some(self.as_table())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use hadron_proto::hadron::VoteShare;

    use super::*;

    fn record(group: u64, term: u64, winner: u64, votes: u64) -> Record {
        let shares = vec![VoteShare { node: 0xa1, votes, share: 1.0 }];
        Record { group, term, winner, recorded_at_ms: 1_795_399_200_123 + term as i64, shares }
    }

    #[test]
    fn the_record_with_most_votes_is_kept_and_order_is_by_time() {
        let merged = merge(vec![
            record(1, 3, 0, 1),
            record(1, 2, 0xa1, 2),
            record(1, 3, 0xa1, 2),
            record(0, 2, 0xa1, 2),
        ]);
        let found: Vec<_> = merged.iter().map(|record| (record.group, record.term, record.winner)).collect();
        assert_eq!(found, [(0, 2, 0xa1), (1, 2, 0xa1), (1, 3, 0xa1)]);
    }

    #[test]
    fn golden_lines() {
        let mut out = Vec::new();
        History(vec![record(1, 2, 0xa1, 2)]).simple(Style::default(), &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "2026-11-23T02:00:00.125Z, 1, 2, a1, P(a1) = 1.00 (2 votes)\n"
        );
        assert_eq!(
            History(vec![record(1, 2, 0xa1, 2)]).json(Style::default()),
            r#"[{"group":1,"term":2,"winner":161,"recorded_at_ms":1795399200125,"shares":[{"node":161,"votes":2,"share":1}]}]"#
        );
    }
}
