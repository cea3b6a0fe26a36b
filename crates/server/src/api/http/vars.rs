//! `/debug/vars`: a few facts about the process as one JSON object, with etcd's names.

use serde_json::{Value, json};

use crate::api::backend::Backend;
use crate::api::context::Context;

/// The page.
pub(super) fn page<B: Backend>(context: &Context<B>) -> String {
    let command_line: Vec<String> =
        std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let resident = crate::process::memory_bytes().map_or(0, |(_, resident)| resident);
    let lines = [
        ("cmdline", json!(command_line)),
        ("file_descriptor_limit", json!(limit.unwrap_or(u64::MAX))),
        ("memstats", json!({ "Sys": resident })),
        ("raft.status", raft_status(context)),
    ];
    let lines: Vec<String> = lines.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
    format!("{{\n{}\n}}\n", lines.join(",\n"))
}

fn raft_status<B: Backend>(context: &Context<B>) -> Value {
    let (status, own) = (context.status(), context.backend.identity().member_id);
    let state = match status.leader {
        Some(leader) if leader == own => "StateLeader",
        _ => "StateFollower",
    };
    json!({
        "id": format!("{:x}", own.0),
        "term": status.term.0,
        "commit": status.commit.0,
        "applied": status.applied.0,
        "lead": format!("{:x}", status.leader.map_or(0, |leader| leader.0)),
        "raftState": state,
    })
}
