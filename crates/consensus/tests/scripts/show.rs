//! How events' effects look in a script.

use hadron_consensus::{
    Configuration, Effects, Entry, LogPosition, Message, Outcome, Persist, ReadOutcome, ReplicaId,
};

fn position(position: LogPosition) -> String {
    format!("{}@{}", position.index, position.term)
}

fn entries(entries: &[Entry]) -> String {
    let one = |entry: &Entry| {
        let data = match Configuration::of(&entry.data).unwrap() {
            Some(members) => configuration(&members),
            None if entry.data.is_empty() => "-".into(),
            None => String::from_utf8_lossy(&entry.data).into_owned(),
        };
        format!("{}@{}:{data}", entry.index, entry.term)
    };
    format!("[{}]", entries.iter().map(one).collect::<Vec<_>>().join(" "))
}

/// Who belongs to a group: the old voters in parentheses, the learners after a semicolon.
pub(crate) fn configuration(configuration: &Configuration) -> String {
    let ids = |ids: &[ReplicaId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let Configuration { voters, outgoing, learners, .. } = configuration;
    let outgoing = if outgoing.is_empty() { String::new() } else { format!("({})", ids(outgoing)) };
    let learners = if learners.is_empty() { String::new() } else { format!(";{}", ids(learners)) };
    format!("{{{}{outgoing}{learners}}}", ids(voters))
}

fn flag(is_set: bool, text: &'static str) -> &'static str {
    if is_set { text } else { "" }
}

/// A message in one line.
pub(crate) fn message(message: &Message) -> String {
    match message {
        Message::VoteRequest { term, pre, transfer, last_term, last_index } => format!(
            "{}VoteRequest {term} log {last_index}@{last_term}{}",
            flag(*pre, "Pre"),
            flag(*transfer, " for a transfer")
        ),
        Message::VoteAnswer { term, election, pre, granted, voted_for } => {
            let vote = voted_for.map_or(String::new(), |replica| format!(", voted for {replica}"));
            let granted = if *granted { "yes" } else { "no" };
            format!("{}VoteAnswer {election} {granted}{vote} (own term {term})", flag(*pre, "Pre"))
        }
        Message::Append { term, previous, commit, round, answer, sleep, entries: new } => format!(
            "Append {term} after {} {} commit {commit}{}{}{}",
            position(*previous),
            entries(new),
            if *round > 0 { format!(" round {round}") } else { String::new() },
            flag(*answer, ", answer!"),
            flag(*sleep, ", sleep!")
        ),
        Message::AppendAck { term, round, matched, full, asleep } => {
            format!(
                "AppendAck {term} up to {matched}{}{}{}",
                if *round > 0 { format!(" round {round}") } else { String::new() },
                flag(*full, ", full"),
                flag(*asleep, ", asleep")
            )
        }
        Message::AppendReject { term, rejected, hint_index, hint_term, .. } => {
            format!("AppendReject {term} not after {rejected}, try {hint_index}@{hint_term}")
        }
        Message::Diverged { term, index, broken, .. } => {
            format!("Diverged {term} at {index}{}", flag(*broken, ", broken"))
        }
        Message::Stale { term } => format!("Stale, now {term}"),
        Message::ReadRequest { term, .. } => format!("ReadRequest {term}"),
        Message::ReadAnswer { term, index, .. } => format!("ReadAnswer {term} at {index}"),
        Message::TimeoutNow { term } => format!("TimeoutNow {term}"),
        Message::Abdicate { term } => format!("Abdicate {term}"),
        Message::Wake { term } => format!("Wake {term}"),
    }
}

fn persist(persist: &Persist) -> String {
    let hard_state = persist.hard_state.map_or(String::new(), |state| {
        let vote = state.voted_for.map_or("nobody".to_string(), |replica| replica.to_string());
        format!(" {} voted for {vote} commit {}", state.term, state.commit)
    });
    let new =
        if persist.entries.is_empty() { String::new() } else { format!(" {}", entries(&persist.entries)) };
    format!("write {}:{hard_state}{new}", persist.sequence)
}

/// Everything but the messages, which are shown when they are sent by [`message`].
pub(crate) fn effects(effects: &Effects) -> Vec<String> {
    let mut lines: Vec<String> = effects.persist.iter().map(persist).collect();
    if !effects.committed.is_empty() {
        lines.push(format!("commits {}", entries(&effects.committed)));
    }
    lines.extend(effects.proposals.iter().map(|outcome| match outcome {
        Outcome::Proposed { term, index, .. } => format!("proposed {index}@{term}"),
        Outcome::Refused { reason, .. } => format!("refused: {reason:?}"),
    }));
    lines.extend(effects.reads.iter().map(|outcome| match outcome {
        ReadOutcome::Ready { token, index } => format!("read {token} may be served at {index}"),
        ReadOutcome::Retry { token } => format!("read {token} has to be asked again"),
    }));
    lines.extend(effects.snapshots.iter().map(|to| format!("{to} needs a snapshot")));
    for election in &effects.elections {
        let all: u64 = election.votes.values().sum();
        let share = |(replica, votes): (&ReplicaId, &u64)| format!("P({replica}) = {votes}/{all}");
        let shares: Vec<String> = election.votes.iter().map(share).collect();
        let result = if election.won { "won" } else { "lost" };
        lines.push(format!("{result} the election of {}: {}", election.term, shares.join(", ")));
    }
    lines.extend(
        effects.divergence.map(|found| format!("DAMAGE: {} differs at {}", found.replica, found.index)),
    );
    lines
}
