//! What the playground sees of its cluster, by asking the nodes as any client could.

use std::collections::BTreeMap;
use std::time::Duration;

use hadron_proto::etcdserverpb::cluster_client::ClusterClient;
use hadron_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use hadron_proto::etcdserverpb::{MemberListRequest, StatusRequest};
use hadron_proto::hadron::pool_client::PoolClient;
use hadron_proto::hadron::{Election, ElectionHistoryRequest};
use tonic::transport::{Channel, Endpoint};

use super::nodes::Node;
use crate::cli::ctl::election;

/// A node that takes longer is dead or busy; it is asked again.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

/// Asks the nodes and remembers what has been told already.
pub(super) struct Observer {
    channels: Vec<Channel>,
    /// Names by member id.
    names: BTreeMap<u64, String>,
    leader: Option<u64>,
    /// The winner told of each group and term.
    told: BTreeMap<(u64, u64), u64>,
}

impl Observer {
    /// An observer of these nodes, which need not answer yet.
    pub(super) fn new(nodes: &[Node]) -> Result<Observer, String> {
        let channel = |node: &Node| {
            let endpoint = Endpoint::from_shared(node.client_url()).map_err(|error| error.to_string())?;
            Ok(endpoint.connect_timeout(ANSWER_TIMEOUT).timeout(ANSWER_TIMEOUT).connect_lazy())
        };
        let channels = nodes.iter().map(channel).collect::<Result<_, String>>()?;
        Ok(Observer { channels, names: BTreeMap::new(), leader: None, told: BTreeMap::new() })
    }

    /// The leader, once a node knows one and its name is known too.
    pub(super) async fn leader(&mut self) -> Option<&str> {
        for channel in self.channels.clone() {
            let Ok(status) = MaintenanceClient::new(channel.clone()).status(StatusRequest {}).await else {
                continue;
            };
            self.leader = Some(status.into_inner().leader).filter(|leader| *leader != 0);
            if self.leader.is_some() {
                self.learn_names(channel).await;
                break;
            }
        }
        self.known_leader()
    }

    /// The leader that was found last.
    pub(super) fn known_leader(&self) -> Option<&str> {
        self.names.get(&self.leader?).map(String::as_str)
    }

    async fn learn_names(&mut self, channel: Channel) {
        // Without a quorum: what this node knows will do.
        let request = MemberListRequest { linearizable: false };
        if let Ok(list) = ClusterClient::new(channel).member_list(request).await {
            let names = list.into_inner().members.into_iter().map(|member| (member.id, member.name));
            self.names = names.collect();
        }
    }

    /// The elections that have not been told yet, in words.
    pub(super) async fn elections(&mut self) -> Vec<String> {
        let mut records = Vec::new();
        for channel in &self.channels {
            let request = ElectionHistoryRequest::default();
            if let Ok(reply) = PoolClient::new(channel.clone()).election_history(request).await {
                records.extend(reply.into_inner().elections);
            }
        }
        self.tell_new(records)
    }

    fn tell_new(&mut self, records: Vec<Election>) -> Vec<String> {
        let mut lines = Vec::new();
        for record in election::merge(records) {
            if self.told.insert((record.group, record.term), record.winner) != Some(record.winner) {
                lines.push(describe(&record, &self.names));
            }
        }
        lines
    }
}

/// `default  term 3  node2 elected: P(node2) = 1.00 (2 votes)`.
fn describe(record: &Election, names: &BTreeMap<u64, String>) -> String {
    let name = |id| names.get(&id).cloned().unwrap_or_else(|| format!("{id:x}"));
    let group = match record.group {
        0 => "root".to_owned(),
        1 => "default".to_owned(),
        other => format!("group {other}"),
    };
    let outcome = match record.winner {
        0 => "nobody elected".to_owned(),
        winner => format!("{} elected", name(winner)),
    };
    format!("{group:<8} term {:<4} {outcome}: {}", record.term, election::shares(record, name))
}

#[cfg(test)]
mod tests {
    use hadron_proto::hadron::VoteShare;

    use super::*;

    fn record(term: u64, winner: u64, votes: u64) -> Election {
        let shares = vec![VoteShare { node: 0xa1, votes, share: 1.0 }];
        Election { group: 1, term, winner, recorded_at_ms: 0, shares }
    }

    #[test]
    fn each_election_is_told_once_in_words() {
        let mut observer = Observer {
            channels: Vec::new(),
            names: BTreeMap::from([(0xa1, "node1".to_owned())]),
            leader: None,
            told: BTreeMap::new(),
        };
        let lines = observer.tell_new(vec![record(2, 0xa1, 2), record(2, 0xa1, 1)]);
        assert_eq!(lines, ["default  term 2    node1 elected: P(node1) = 1.00 (2 votes)"]);
        assert!(observer.tell_new(vec![record(2, 0xa1, 2)]).is_empty());
        assert_eq!(observer.tell_new(vec![record(3, 0xb2, 2)]).len(), 1);
    }
}
