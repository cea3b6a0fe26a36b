//! `election history`: the elections that nodes recorded, with each candidate's share of the votes, and how the log of
//! each group is spread over its nodes now. Hadron's own.

use std::collections::BTreeMap;

use clap::Subcommand;
use hadron_proto::hadron::pool_client::PoolClient;
use hadron_proto::hadron::{Election as Record, ElectionHistoryRequest, LogShares};

use super::failure::Failure;
use super::print::json::{self, Object};
use super::print::table::Table;
use super::print::{Reply, Style, field, line};
use super::{Global, Session};
use crate::cli::clock::utc;

/// Subcommands of `election`.
#[derive(Debug, Subcommand)]
pub(crate) enum Election {
    /// Show past elections with the share P(x) = V(x) / sum of V(i) of each candidate, and the present share
    /// C(x) = L(x) / sum of L(i) of each node in the entries acknowledged lately
    ///
    /// With --keyspace, those of that keyspace alone; `root` is that of the pool itself
    History,
}

impl Election {
    /// Runs the command: asks every endpoint, since a node only knows the elections that it took part in.
    pub(super) async fn run(self, global: Global) -> Result<(), Failure> {
        let Election::History = self;
        let keyspace = global.keyspace.name().to_owned();
        let session = Session::of_pool(global)?;
        let request = ElectionHistoryRequest { keyspace };
        let (mut records, mut shares, mut errors) = (Vec::new(), Vec::new(), Vec::new());
        for endpoint in session.client.endpoints.iter() {
            let call = async |channel| PoolClient::new(channel).election_history(request.clone()).await;
            match session.client.only(endpoint).read(call).await {
                Ok(reply) => {
                    records.extend(reply.elections);
                    shares.extend(reply.log_shares);
                }
                Err(error) => errors.push(error),
            }
        }
        if errors.len() == session.client.endpoints.len()
            && let Some(error) = errors.pop()
        {
            return Err(error.into());
        }
        session.printer.print(&History { elections: merge(records), log_shares: newest(shares) })
    }
}

/// What `election history` shows.
pub(crate) struct History {
    /// Oldest first.
    elections: Vec<Record>,
    /// By group.
    log_shares: Vec<LogShares>,
}

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

/// One for each group: that of the newest leader, since a deposed one may not know yet that it is.
fn newest(shares: Vec<LogShares>) -> Vec<LogShares> {
    let mut newest: BTreeMap<u64, LogShares> = BTreeMap::new();
    for shares in shares {
        let kept = newest.entry(shares.group).or_insert_with(|| shares.clone());
        if shares.term > kept.term {
            *kept = shares;
        }
    }
    newest.into_values().collect()
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

/// `C(a1) = 0.33 (2 entries behind)`, nodes separated by commas.
fn log_shares(shares: &LogShares) -> String {
    let shares = shares.shares.iter().map(|share| {
        let entries = if share.lag == 1 { "entry" } else { "entries" };
        format!("C({:x}) = {:.2} ({} {entries} behind)", share.node, share.share, share.lag)
    });
    shares.collect::<Vec<_>>().join(", ")
}

impl History {
    fn as_table(&self) -> Table {
        let present = |shares: &LogShares| {
            vec![
                "now".to_owned(),
                shares.group.to_string(),
                shares.term.to_string(),
                format!("{:x}", shares.leader),
                log_shares(shares),
            ]
        };
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
            rows: self.elections.iter().map(row).chain(self.log_shares.iter().map(present)).collect(),
        }
    }
}

impl Reply for History {
    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_table().lines().as_bytes());
    }

    fn fields(&self, _: Style, out: &mut Vec<u8>) {
        for record in &self.elections {
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
        for shares in &self.log_shares {
            field(out, "Group", shares.group);
            field(out, "Term", shares.term);
            field(out, "Leader", shares.leader);
            for share in &shares.shares {
                field(out, "Node", share.node);
                field(out, "LogShare", share.share);
                field(out, "Lag", share.lag);
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
        let log_share = |share: &hadron_proto::hadron::LogShare| {
            Object::new()
                .number("node", share.node)
                .raw("share", &share.share.to_string())
                .raw("lag", &share.lag.to_string())
                .end()
        };
        let shares = |shares: &LogShares| {
            Object::new()
                .raw("group", &shares.group.to_string())
                .number("term", shares.term)
                .number("leader", shares.leader)
                .raw("shares", &json::list(shares.shares.iter().map(log_share).collect()))
                .end()
        };
        Object::new()
            .raw("elections", &json::list(self.elections.iter().map(record).collect()))
            .raw("log_shares", &json::list(self.log_shares.iter().map(shares).collect()))
            .end()
    }

    fn table(&self) -> Option<Table> {
        Some(self.as_table())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use hadron_proto::hadron::{LogShare, VoteShare};

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

    fn log_shares(term: u64, leader: u64) -> LogShares {
        let shares = vec![
            LogShare { node: 0xa1, share: 0.625, lag: 0 },
            LogShare { node: 0xb2, share: 0.375, lag: 1 },
        ];
        LogShares { group: 1, term, leader, shares }
    }

    #[test]
    fn a_deposed_leader_s_shares_are_left_out() {
        assert_eq!(newest(vec![log_shares(3, 0xa1), log_shares(2, 0xb2)]), [log_shares(3, 0xa1)]);
        assert_eq!(newest(vec![log_shares(2, 0xb2), log_shares(3, 0xa1)]), [log_shares(3, 0xa1)]);
    }

    #[test]
    fn golden_lines() {
        let history =
            History { elections: vec![record(1, 2, 0xa1, 2)], log_shares: vec![log_shares(2, 0xa1)] };
        let mut out = Vec::new();
        history.simple(Style::default(), &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "2026-11-23T02:00:00.125Z, 1, 2, a1, P(a1) = 1.00 (2 votes)\n\
             now, 1, 2, a1, C(a1) = 0.62 (0 entries behind), C(b2) = 0.38 (1 entry behind)\n"
        );
        assert_eq!(
            history.json(Style::default()),
            concat!(
                r#"{"elections":[{"group":1,"term":2,"winner":161,"recorded_at_ms":1795399200125,"#,
                r#""shares":[{"node":161,"votes":2,"share":1}]}],"#,
                r#""log_shares":[{"group":1,"term":2,"leader":161,"#,
                r#""shares":[{"node":161,"share":0.625,"lag":0},{"node":178,"share":0.375,"lag":1}]}]}"#
            )
        );
    }
}
