//! `watch_order`: a watcher sees each matching change from its start revision on once, in revision order, and misses none.

use bytes::Bytes;

use crate::history::{Event, Violation};

const GUARANTEE: &str = "watch_order";

/// What one watcher saw. A client that lost its stream and watched again from where it stood is one watcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watcher {
    /// Names it in reports.
    pub name: String,
    /// The first revision it asked for.
    pub from_revision: i64,
    /// The first key it asked for.
    pub key_from: Bytes,
    /// The key after the last one it asked for; empty for no end.
    pub key_to: Bytes,
    /// What it received, in order.
    pub events: Vec<Event>,
    /// Revisions, from the first to the second, that were compacted before it could see them.
    pub gaps: Vec<(i64, i64)>,
    /// The revision up to which it must have seen everything: that of its newest event, or one that a progress
    /// notification promised, or the keyspace's last one when the run waited for it.
    pub complete_to: i64,
}

impl Watcher {
    /// What it saw up to a revision.
    pub fn up_to(&self, revision: i64) -> Watcher {
        let events = self.events.iter().filter(|event| event.revision <= revision).cloned().collect();
        Watcher { events, complete_to: self.complete_to.min(revision), ..self.clone() }
    }

    fn wants(&self, event: &Event) -> bool {
        event.revision >= self.from_revision
            && event.key >= self.key_from
            && !self.gaps.iter().any(|(from, to)| (*from..=*to).contains(&event.revision))
            && (self.key_to.is_empty() || event.key < self.key_to)
    }
}

/// Checks `watcher` against `events`, the complete history of the keyspace.
pub fn check(watcher: &Watcher, events: &[Event]) -> Result<(), Violation> {
    let newest = watcher.events.last().map_or(0, |event| event.revision);
    let complete_to = watcher.complete_to.max(newest);
    let mut seen = watcher.events.iter();
    for expected in events.iter().filter(|event| watcher.wants(event) && event.revision <= complete_to) {
        let found = seen.next();
        if found != Some(expected) {
            let found = format!("{}: instead of {expected:?}\n  came {found:?}", watcher.name);
            return Err(Violation::new(GUARANTEE, found));
        }
    }
    match seen.next() {
        None => Ok(()),
        Some(extra) => {
            Err(Violation::new(GUARANTEE, format!("{}: nothing explains {extra:?}", watcher.name)))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn event(revision: i64, key: &'static str) -> Event {
        Event { revision, key: key.into(), after: None }
    }

    fn history() -> Vec<Event> {
        vec![event(2, "a"), event(3, "b"), event(3, "c"), event(4, "a"), event(5, "b")]
    }

    fn watcher(events: Vec<Event>, complete_to: i64) -> Watcher {
        Watcher {
            name: "w".into(),
            from_revision: 3,
            key_from: "a".into(),
            key_to: "c".into(),
            events,
            gaps: Vec::new(),
            complete_to,
        }
    }

    #[test]
    fn a_faithful_watcher_passes() {
        check(&watcher(vec![event(3, "b"), event(4, "a"), event(5, "b")], 5), &history()).unwrap();
        check(&watcher(vec![event(3, "b")], 0), &history()).unwrap();
        check(&watcher(vec![], 2), &history()).unwrap();
        check(&Watcher { key_to: Bytes::new(), ..watcher(history().split_off(1), 5) }, &history()).unwrap();
    }

    #[test]
    fn a_missed_event_is_caught() {
        check(&watcher(vec![event(4, "a")], 0), &history()).unwrap_err();
        check(&watcher(vec![event(3, "b"), event(4, "a")], 5), &history()).unwrap_err();
    }

    #[test]
    fn what_was_compacted_may_be_missing_and_nothing_else() {
        let gap = Watcher { gaps: vec![(3, 4)], ..watcher(vec![event(5, "b")], 5) };
        check(&gap, &history()).unwrap();
        check(&Watcher { gaps: vec![(3, 3)], ..gap.clone() }, &history()).unwrap_err();
        check(&Watcher { events: vec![event(4, "a"), event(5, "b")], ..gap }, &history()).unwrap_err();
    }

    #[test]
    fn a_doubled_or_misplaced_event_is_caught() {
        check(&watcher(vec![event(3, "b"), event(3, "b")], 0), &history()).unwrap_err();
        check(&watcher(vec![event(4, "a"), event(3, "b")], 0), &history()).unwrap_err();
    }

    #[test]
    fn an_event_that_was_not_asked_for_is_caught() {
        check(&watcher(vec![event(2, "a"), event(3, "b")], 0), &history()).unwrap_err();
        check(&watcher(vec![event(3, "b"), event(3, "c")], 0), &history()).unwrap_err();
        check(&watcher(vec![event(3, "b"), event(4, "a"), event(5, "b"), event(6, "a")], 0), &history())
            .unwrap_err();
    }
}
