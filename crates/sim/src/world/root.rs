//! What the root group shows of itself to those who ask it: the members, and which keyspaces there are and where. Who asked a quorum may not be shown
//! less than anybody was shown or told before that.

use std::collections::BTreeMap;

use hadron_consensus::ROOT_GROUP;
use hadron_keyspace::Response;
use hadron_node::{Catalog, Event as NodeEvent, Reply};

use super::machine::Asked;
use super::{Life, World};
use crate::checkers::revision_order;
use crate::history::Violation;

/// What anybody knows of the root group.
#[derive(Debug, Default)]
pub(super) struct Root {
    known: Known,
    /// What was known when something was asked.
    asked: BTreeMap<(Life, u64), Known>,
    /// Answers that were held against that.
    looks: u64,
}

/// Revisions that somebody saw, or was told.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// Of the keyspace.
    revision: i64,
    /// Of the roster of members.
    roster: i64,
}

impl World {
    /// Asks a node for what the root group has.
    pub(super) fn ask_root(&mut self, life: Life, asked: Asked) {
        let token = self.ask(life, asked, |token| NodeEvent::Read { token, group: ROOT_GROUP });
        if let Some(token) = token {
            self.root.asked.insert((life, token), self.root.known);
        }
    }

    /// A node answers something, perhaps of the root group.
    pub(super) fn see_root(&mut self, life: Life, token: u64, asked: Asked, reply: &Reply) {
        let before = self.root.asked.remove(&(life, token));
        match (reply, before) {
            (Reply::ReadReady, Some(before)) => self.hold_against(life, before),
            // Those of lesser questions, such as alarms, are of other groups.
            (Reply::Written { response: Ok(Response::Txn(response)), .. }, _)
                if matches!(asked, Asked::Placer | Asked::Administrator) && response.succeeded =>
            {
                let revision = response.header.as_ref().map_or(0, |header| header.revision);
                self.root.known.revision = self.root.known.revision.max(revision);
            }
            _ => {}
        }
    }

    fn hold_against(&mut self, life: Life, before: Known) {
        let Some(board) = self.board(life) else { return };
        let Some(root) = board.group(ROOT_GROUP) else { return };
        self.root.looks += 1;
        let shown = Known { revision: root.keyspace.revision(), roster: board.pool().revision };
        if shown.revision < before.revision || shown.roster < before.roster {
            let found =
                format!("n{} shows {shown:?} of the root group, of which {before:?} was known", life.node);
            self.violate(Violation::new("linearizable", found));
        }
        // Of an entry of several commands those that were carried out are there already, and the rest may come turns later.
        let stored = Catalog::read(&root.keyspace);
        if !root.keyspace.is_entry_open() && stored.as_ref() != Ok(&board.with_catalog(Catalog::clone)) {
            let found = format!("n{} has another catalog stored than it shows: {stored:?}", life.node);
            self.violate(Violation::new("state_machine_safety", found));
        }
        let known = &mut self.root.known;
        known.revision = known.revision.max(shown.revision);
        known.roster = known.roster.max(shown.roster);
    }

    /// The root group's own history, which nobody compacts here.
    pub(super) fn check_root(&mut self) -> Result<(), Violation> {
        let events = self.agreed_history(ROOT_GROUP)?;
        self.minded(revision_order::check_events(&events))?;
        self.checked_of(ROOT_GROUP, "revision_order", events.len() as u64);
        self.checked_of(ROOT_GROUP, "linearizable", self.root.looks);
        Ok(())
    }
}
