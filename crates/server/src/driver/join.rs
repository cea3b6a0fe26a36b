//! To join a pool that runs already: its members know who this node is, since `member add` told them.

use std::thread;
use std::time::{Duration, Instant};

use hadron_consensus::NodeId;
use hadron_node::{Bootstrap, Member};
use tracing::warn;

use super::error::RunError;
use super::peers::Others;
use crate::config::{Config, ConfigError, InitialMember, Url};
use crate::transport::MembersAnswer;

/// How long a node waits for a member that knows it: the one that it asks may be a little behind the one that was told.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two questions.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// The running pool that `--initial-cluster` points at, and this node's id in it.
///
/// # Errors
/// Nobody answers, nobody knows the node, or it was started before.
pub(super) fn running_pool(config: &Config, others: &dyn Others) -> Result<(Bootstrap, NodeId), RunError> {
    let listed = config.initial.members(&config.name)?;
    let (own, rest): (Vec<_>, Vec<_>) = listed.into_iter().partition(|member| member.name == config.name);
    let own = own.into_iter().next().map(|member| member.peer_url);
    let Some(own) = own.filter(|_| !rest.is_empty()) else {
        return Err(RunError::Flags(ConfigError::ExistingCluster));
    };
    let began = Instant::now();
    loop {
        let newest = others.members(&rest)?.into_iter().max_by_key(|answer| answer.revision);
        if let Some((answer, place)) =
            newest.as_ref().and_then(|answer| find(answer, &own).map(|place| (answer, place)))
        {
            return take_place(config, &rest, answer.clone(), place);
        }
        if began.elapsed() > PATIENCE {
            return Err(not_a_member(config, &own, &rest, newest.is_some()));
        }
        thread::sleep(ASK_AGAIN);
    }
}

/// The place in the pool of the member with this peer URL.
fn find(answer: &MembersAnswer, own: &Url) -> Option<usize> {
    let has_it = |member: &Member| member.peer_urls.iter().any(|url| url.parse().as_ref() == Ok(own));
    answer.pool.members.iter().position(has_it)
}

fn take_place(
    config: &Config,
    listed: &[InitialMember],
    MembersAnswer { revision, mut pool }: MembersAnswer,
    place: usize,
) -> Result<(Bootstrap, NodeId), RunError> {
    let urls = |member: &Member| member.peer_urls.join(",");
    let known: Vec<String> = pool.members.iter().map(urls).collect();
    for member in listed.iter().filter(|member| !known.contains(&member.peer_url.to_string())) {
        warn!(name = %member.name, url = %member.peer_url, "--initial-cluster names a node that is not a member");
    }
    let own = &mut pool.members[place];
    if own.data_dir_id != 0 {
        return Err(RunError::AlreadyBootstrapped {
            node: own.id,
            name: config.name.clone(),
            peer: "the cluster".into(),
            urls: listed.iter().map(|member| member.peer_url.to_string()).collect::<Vec<_>>().join(","),
            data_dir: config.data_dir.clone(),
        });
    }
    own.name.clone_from(&config.name);
    let (node, replica) = (own.node(), own.replica);
    let joined_as = joined_as(revision, pool.restored, replica);
    Ok((Bootstrap { joined_as, ..pool }, node))
}

/// As which replica it joins; 0 for one of the first, who vote from the start. As long as nobody changed the members, these are the first ones,
/// and this is one of them: nothing in the groups' logs says so. Those of a restored cluster do not begin empty, though, and who is late must
/// not vote before it has what was restored.
fn joined_as(revision: i64, restored: u64, replica: u64) -> u64 {
    if revision == 0 && restored == 0 { 0 } else { replica }
}

fn not_a_member(config: &Config, own: &Url, asked: &[InitialMember], answered: bool) -> RunError {
    let asked: Vec<String> = asked.iter().map(|member| member.peer_url.to_string()).collect();
    let (name, url, asked) = (config.name.clone(), own.to_string(), asked.join(","));
    match answered {
        true => RunError::NotAMember { name, url, asked },
        false => RunError::NobodyToJoin { asked },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_late_in_a_restored_cluster_does_not_vote_before_it_has_what_was_restored() {
        assert_eq!(joined_as(0, 0, 3), 0, "one of the first");
        assert_eq!(joined_as(0, 0xfeed, 3), 3);
        assert_eq!(joined_as(7, 0, 4), 4);
    }
}
