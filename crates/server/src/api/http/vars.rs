//! `/debug/vars`: a few facts about the process as one JSON object, with etcd's names.

use serde_json::{Value, json};

use crate::api::backend::Backend;
use crate::api::context::Context;

/// The page.
pub(super) fn page<B: Backend>(context: &Context<B>) -> String {
    let command_line: Vec<String> =
        std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let lines = [
        ("cmdline", json!(command_line)),
        ("file_descriptor_limit", json!(limit.unwrap_or(u64::MAX))),
        ("memstats", json!({ "Sys": resident_bytes() })),
        ("raft.status", raft_status(context)),
    ];
    let lines: Vec<String> = lines.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
    format!("{{\n{}\n}}\n", lines.join(",\n"))
}

/// Memory of the process, in bytes; 0 where the system does not tell.
fn resident_bytes() -> u64 {
    let pages = || -> Option<u64> {
        let text = std::fs::read_to_string("/proc/self/statm").ok()?;
        text.split_whitespace().nth(1)?.parse().ok()
    };
    pages().unwrap_or(0) * rustix::param::page_size() as u64
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
