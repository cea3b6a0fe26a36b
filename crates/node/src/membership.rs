//! Who the nodes of a pool are: derived once from `--initial-cluster`, kept on disk, published in the root group.
//!
//! At bootstrap every node computes the same ids from the same flags, as etcd does, so that nobody has to be asked:
//! a node's id from its peer URLs and the cluster token, the cluster's id from its nodes' ids. Afterwards each node writes its own
//! record (name, URLs, the identity of its data directory) under [`NODES_PREFIX`] in the root group's keyspace.

use bytes::Bytes;
use hadron_consensus::{DEFAULT_GROUP, NodeId, ROOT_GROUP, ReplicaId};
use hadron_keyspace::{Command, Keyspace};
use hadron_proto::etcdserverpb::{PutRequest, RangeRequest};
use prost::Message as _;
use xxhash_rust::xxh3::xxh3_64;

use crate::config::GroupConfig;

/// Keys of node records in the root group's keyspace: this prefix, then the id in hexadecimal.
pub const NODES_PREFIX: &str = "nodes/";

/// What the pool knows of a node.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Member {
    /// The node's id.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Its name; empty until it has started for the first time.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Where other nodes reach it.
    #[prost(string, repeated, tag = "3")]
    pub peer_urls: Vec<String>,
    /// Where clients reach it.
    #[prost(string, repeated, tag = "4")]
    pub client_urls: Vec<String>,
    /// The random identity of its data directory; 0 when not yet known. A node that comes with another one has lost
    /// its disk, and with it its votes.
    #[prost(uint64, tag = "5")]
    pub data_dir_id: u64,
}

impl Member {
    /// The node's id.
    pub fn node(&self) -> NodeId {
        NodeId(self.id)
    }

    /// Whether a node that shows `data_dir_id` may be talked to as this member. The error says why not, and what to do.
    pub fn admit(&self, data_dir_id: u64) -> Result<(), String> {
        if self.data_dir_id == 0 || self.data_dir_id == data_dir_id {
            return Ok(());
        }
        Err(format!(
            "node {:x} ({}) is known with another data directory: it was wiped, or two nodes use one name. A node \
             without its data has forgotten its votes; start it with the data directory that it had",
            self.id, self.name
        ))
    }
}

/// A pool as it was bootstrapped: what a node keeps in its data directory so that later starts need no flags. There
/// a member's `data_dir_id` is the one that the node has met it with, and 0 while it has not.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Bootstrap {
    /// The cluster's id.
    #[prost(uint64, tag = "1")]
    pub cluster_id: u64,
    /// Its nodes, by id.
    #[prost(message, repeated, tag = "2")]
    pub members: Vec<Member>,
}

impl Bootstrap {
    /// The pool of these (name, peer URLs) under `token`: ids follow from the peer URLs, so every node that is
    /// given the same list comes to the same result.
    pub fn derive(token: &str, nodes: &[(String, Vec<String>)]) -> Bootstrap {
        let mut members: Vec<Member> = nodes
            .iter()
            .map(|(name, urls)| {
                let mut peer_urls = urls.clone();
                peer_urls.sort();
                let id = node_id(token, &peer_urls);
                Member { id: id.0, name: name.clone(), peer_urls, client_urls: Vec::new(), data_dir_id: 0 }
            })
            .collect();
        members.sort_by_key(|member| member.id);
        let ids: Vec<u8> = members.iter().flat_map(|member| member.id.to_be_bytes()).collect();
        Bootstrap { cluster_id: nonzero(xxh3_64(&ids)), members }
    }

    /// The voters that every group has at bootstrap: replica n is on the n-th node by id.
    pub fn voters(&self) -> Vec<(ReplicaId, NodeId)> {
        let numbered = self.members.iter().zip(1..);
        numbered.map(|(member, number)| (ReplicaId(number), member.node())).collect()
    }

    /// The groups that exist from the start: the root group and the one of `default`.
    pub fn groups(&self) -> Vec<GroupConfig> {
        [ROOT_GROUP, DEFAULT_GROUP].map(|group| GroupConfig { group, voters: self.voters() }).into()
    }

    /// The bytes to keep.
    pub fn to_bytes(&self) -> Bytes {
        self.encode_to_vec().into()
    }

    /// From bytes that were kept.
    pub fn from_bytes(bytes: Bytes) -> Result<Bootstrap, prost::DecodeError> {
        Bootstrap::decode(bytes)
    }
}

/// The id of the node with these peer URLs (sorted) in the cluster named `token`.
pub fn node_id(token: &str, peer_urls: &[String]) -> NodeId {
    let text = format!("{}\n{token}", peer_urls.join("\n"));
    NodeId(nonzero(xxh3_64(text.as_bytes())))
}

/// 0 stands for "none" in etcd's API.
fn nonzero(id: u64) -> u64 {
    id.max(1)
}

/// The command that publishes `member` in the root group.
pub(crate) fn publish(member: &Member) -> Bytes {
    let key = format!("{NODES_PREFIX}{:016x}", member.id);
    let put = PutRequest { key: key.into(), value: member.encode_to_vec().into(), ..Default::default() };
    Command::Put(put).to_bytes()
}

/// The published members in the root group's keyspace. A record that cannot be read is left out.
pub(crate) fn published(root: &Keyspace) -> Vec<Member> {
    let mut end = NODES_PREFIX.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    let request = RangeRequest { key: NODES_PREFIX.into(), range_end: end.into(), ..Default::default() };
    let Ok(response) = root.range(&request) else { return Vec::new() };
    response.kvs.into_iter().filter_map(|pair| Member::decode(pair.value).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes() -> Vec<(String, Vec<String>)> {
        let node = |name: &str, port: u16| (name.to_string(), vec![format!("http://127.0.0.1:{port}")]);
        vec![node("a", 1), node("b", 2), node("c", 3)]
    }

    #[test]
    fn every_node_derives_the_same_pool_whatever_the_order_of_the_flags() {
        let mut reversed = nodes();
        reversed.reverse();
        assert_eq!(Bootstrap::derive("t", &nodes()), Bootstrap::derive("t", &reversed));
    }

    #[test]
    fn another_token_is_another_cluster_with_other_nodes() {
        let one = Bootstrap::derive("one", &nodes());
        let two = Bootstrap::derive("two", &nodes());
        assert_ne!(one.cluster_id, two.cluster_id);
        assert!(one.members.iter().all(|a| two.members.iter().all(|b| a.id != b.id)));
    }

    #[test]
    fn what_is_kept_can_be_read_back() {
        let pool = Bootstrap::derive("t", &nodes());
        assert_eq!(Bootstrap::from_bytes(pool.to_bytes()), Ok(pool));
    }
}
