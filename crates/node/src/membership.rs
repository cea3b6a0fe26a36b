//! Who the nodes of a pool are when a node comes to it: derived from `--initial-cluster`, or told by those who are in it
//! already; kept on disk. Afterwards the root group says who belongs to it (`roster`).
//!
//! At bootstrap every node computes the same ids from the same flags, as etcd does, so that nobody has to be asked:
//! a node's id from its peer URLs and the cluster token, the cluster's id from its nodes' ids.

use std::collections::BTreeMap;

use bytes::Bytes;
use hadron_consensus::{DEFAULT_GROUP, NodeId, ROOT_GROUP, ReplicaId};
use prost::Message as _;
use xxhash_rust::xxh3::xxh3_64;

use crate::config::GroupConfig;
use crate::roster::{Roster, replica_of};

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
    /// Its replica in every group; 0 in what a node says of itself.
    #[prost(uint64, tag = "6")]
    pub replica: u64,
    /// It has no vote yet.
    #[prost(bool, tag = "7")]
    pub is_learner: bool,
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
             without its data has forgotten its votes; start it with the data directory that it had, or remove the \
             member and add it again: `etcdctl member remove {:x}`, then `member add`",
            self.id, self.name, self.id
        ))
    }
}

/// A pool as a node came to it: what it keeps in its data directory so that later starts need no flags.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Bootstrap {
    /// The cluster's id.
    #[prost(uint64, tag = "1")]
    pub cluster_id: u64,
    /// Its nodes, by id. A member's `data_dir_id` is the one that the node has met it with, and 0 while it has not.
    #[prost(message, repeated, tag = "2")]
    pub members: Vec<Member>,
    /// The replica that the node got when it joined a running pool; 0 if it was there from the start.
    #[prost(uint64, tag = "3")]
    pub joined_as: u64,
    /// Nodes that came later and were met: ids and data directories only.
    #[prost(message, repeated, tag = "4")]
    pub met: Vec<Member>,
    /// What a pool that was restored began with: a hash of that. 0 for one that began empty.
    #[prost(fixed64, tag = "5")]
    pub restored: u64,
    /// Starts of the other nodes, by id: the last one that each was met with.
    #[prost(btree_map = "uint64, uint64", tag = "6")]
    pub starts: BTreeMap<u64, u64>,
    /// The node went on alone because its flags said so (`--force-new-cluster`), and was not started without them since.
    #[prost(bool, tag = "7")]
    pub was_forced: bool,
    /// Why the node must not start any more: the others have met it with another start that is not before its own. Empty if it may.
    #[prost(string, tag = "8")]
    pub outdated: String,
    /// Nodes that were forced to be clusters of their own while this node's went on: it is not to believe them that it was dropped.
    #[prost(uint64, repeated, tag = "9")]
    pub went_on_without: Vec<u64>,
}

impl Bootstrap {
    /// The pool of these (name, peer URLs) under `token`: ids follow from the peer URLs, so every node that is
    /// given the same list comes to the same result.
    pub fn derive(token: &str, nodes: &[(String, Vec<String>)]) -> Bootstrap {
        let member = |(name, urls): &(String, Vec<String>)| {
            let mut peer_urls = urls.clone();
            peer_urls.sort();
            Member { id: node_id(token, &peer_urls).0, name: name.clone(), peer_urls, ..Member::default() }
        };
        Bootstrap::of(nodes.iter().map(member).collect())
    }

    /// The same, of a pool that begins with restored state, of which `restored` is a hash; 0 for none. Other state makes other ids, so that
    /// a node that was restored from something else, or was not, cannot be taken for a member.
    pub fn derive_restored(token: &str, nodes: &[(String, Vec<String>)], restored: u64) -> Bootstrap {
        match restored {
            0 => Bootstrap::derive(token, nodes),
            _ => Bootstrap {
                restored,
                ..Bootstrap::derive(&format!("{token}\nrestored {restored:016x}"), nodes)
            },
        }
    }

    /// A new pool of these members. Replica n is on the n-th node by id.
    pub fn of(mut members: Vec<Member>) -> Bootstrap {
        members.sort_by_key(|member| member.id);
        members.iter_mut().zip(1..).for_each(|(member, number)| member.replica = number);
        let ids: Vec<u8> = members.iter().flat_map(|member| member.id.to_be_bytes()).collect();
        Bootstrap { cluster_id: nonzero(xxh3_64(&ids)), members, ..Bootstrap::default() }
    }

    /// The roster that counts as long as the root group has none.
    pub fn roster(&self) -> Roster {
        Roster::of(&self.members)
    }

    /// The groups that exist from the start, the root group and the one of `default`, as `node` begins with them. Who
    /// joins a running pool learns from their leaders who else is in them.
    pub fn groups(&self, node: NodeId) -> Vec<GroupConfig> {
        let own = self.members.iter().find(|member| member.node() == node);
        let own = own.map_or(self.joined_as, |member| member.replica);
        let voters =
            if self.joined_as == 0 { self.members.iter().map(replica_of).collect() } else { Vec::new() };
        let config = |group| GroupConfig {
            group,
            replica: ReplicaId(own),
            follows_roster: true,
            voters: voters.clone(),
        };
        [ROOT_GROUP, DEFAULT_GROUP].map(config).into()
    }

    /// The bytes to keep.
    pub fn to_bytes(&self) -> Bytes {
        self.encode_to_vec().into()
    }

    /// From bytes that were kept. The first versions did not number the replicas.
    pub fn from_bytes(bytes: Bytes) -> Result<Bootstrap, prost::DecodeError> {
        let mut pool = Bootstrap::decode(bytes)?;
        if pool.members.iter().all(|member| member.replica == 0) {
            pool.members.iter_mut().zip(1..).for_each(|(member, number)| member.replica = number);
        }
        Ok(pool)
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
    fn other_restored_state_is_another_cluster_with_other_nodes() {
        let [none, one, two] = [0, 1, 2].map(|restored| Bootstrap::derive_restored("t", &nodes(), restored));
        assert_eq!(none, Bootstrap::derive("t", &nodes()));
        assert!(one.cluster_id != two.cluster_id && one.cluster_id != none.cluster_id);
        assert!(one.members.iter().all(|a| two.members.iter().all(|b| a.id != b.id)));
        assert_eq!(Bootstrap::from_bytes(one.to_bytes()), Ok(one));
    }

    #[test]
    fn what_is_kept_can_be_read_back() {
        let pool = Bootstrap::derive("t", &nodes());
        assert_eq!(Bootstrap::from_bytes(pool.to_bytes()), Ok(pool));
    }
}
