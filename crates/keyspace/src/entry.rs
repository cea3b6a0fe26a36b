//! Entries: the commands of each change the state in order, piece by piece, and are answered together.
//!
//! A command is visible as a whole, as soon as it is carried out. The entry counts as applied when all of them are, and nothing of it goes
//! to the engine before.

use bytes::Bytes;

use crate::apply::{Applier, Outcome, Unfinished};
use crate::command::{Command, Response};
use crate::error::Error;
use crate::keyspace::Keyspace;
use crate::mvcc::Record;
use crate::read::Effort;
use crate::state::{Applied, State};

/// An entry that is being applied.
#[derive(Debug)]
pub(crate) struct OpenEntry {
    /// Those that are to come, and whether anybody waits for their answers.
    commands: std::vec::IntoIter<(Command, bool)>,
    /// The one that was begun.
    unfinished: Option<Unfinished>,
    answers: Vec<Result<Response, Error>>,
    /// How many of its records the watchers were offered.
    published: usize,
}

/// The answers to an entry's commands, in their order.
pub type Answers = Vec<Result<Response, Error>>;

impl Keyspace {
    /// Applies one entry: its position and stamp, and its commands in order. Called by one thread, without gaps.
    ///
    /// A command that is refused changes nothing, and the next one is applied all the same. Watchers are served before
    /// this returns, so an answer never overtakes its event by much.
    ///
    /// # Panics
    /// If the index does not follow the last one, or if the engine fails to produce a value that the state comes to
    /// depend on: one that is compared or kept.
    pub fn apply(&self, applied: Applied, commands: Vec<Command>) -> Answers {
        self.begin_entry(applied, commands.into_iter().map(|command| (command, true)).collect());
        loop {
            if let (_, Some(answers)) = self.go_on(usize::MAX) {
                return answers;
            }
        }
    }

    /// Begins to apply an entry: its commands, and for each of them whether anybody waits here for its answer. If not, the answer lacks what
    /// would have to be read for it. [`Keyspace::go_on`] carries them out.
    ///
    /// # Panics
    /// If the index does not follow the last one, or if that is not applied wholly.
    pub fn begin_entry(&self, applied: Applied, commands: Vec<(Command, bool)>) {
        let mut state = self.state.write();
        state.begin_entry(applied);
        let answers = Vec::with_capacity(commands.len());
        let commands = commands.into_iter();
        state.open = Some(OpenEntry { commands, unfinished: None, answers, published: 0 });
    }

    /// Whether an entry was begun, and something of it is left.
    pub fn is_entry_open(&self) -> bool {
        self.state.read().open.is_some()
    }

    /// Goes on with the entry that was begun, under the lock, until about `effort_max` keys were looked at or changed, at least a few. Returns how
    /// many were, and the answers when all of the entry is applied.
    ///
    /// # Panics
    /// If no entry was begun; otherwise as [`Keyspace::apply`].
    pub fn go_on(&self, effort_max: usize) -> (usize, Option<Answers>) {
        let mut state = self.state.write();
        let Some(mut entry) = state.open.take() else { panic!("an entry is begun first") };
        let values = self.values(state.generation);
        let mut applier = Applier::new(&mut state, values, Effort::new(effort_max.max(1)));
        let is_over = entry.go_on(&mut applier);
        let effort = applier.effort.done();
        let (revision, fresh) = (state.revision, self.take_fresh(&state, &mut entry));
        let answers = if is_over {
            state.end_entry();
            Some(entry.answers)
        } else {
            state.open = Some(entry);
            None
        };
        self.show_auth(&state);
        drop(state);
        self.hub.publish(revision, fresh);
        (effort, answers)
    }

    /// The records that watchers were not offered, of commands that are carried out; `None` if nobody watches.
    fn take_fresh(&self, state: &State, entry: &mut OpenEntry) -> Option<Vec<Record>> {
        if !self.hub.has_watchers() {
            return None;
        }
        let fresh = state.unflushed.open_records(entry.published);
        let carried_out = fresh.take_while(|record| record.version.main <= state.revision);
        let records: Vec<Record> = carried_out.cloned().collect();
        entry.published += records.len();
        Some(records)
    }

    /// Applies an entry that says who belongs to the group from now on: kept beside the applied index, and carried by
    /// snapshots, for those who no longer have that entry in their log. The bytes mean nothing here.
    ///
    /// # Panics
    /// If the index does not follow the last one, or if that is not applied wholly.
    pub fn apply_configuration(&self, applied: Applied, configuration: Bytes) {
        let mut state = self.state.write();
        state.begin_entry(applied);
        state.set_configuration(configuration);
        state.end_entry();
    }
}

impl OpenEntry {
    /// Carries commands out; true if none is left.
    fn go_on(&mut self, applier: &mut Applier<'_>) -> bool {
        loop {
            let outcome = if let Some(unfinished) = self.unfinished.take() {
                applier.resume(unfinished)
            } else if let Some((command, is_asked)) = self.commands.next() {
                applier.begin(command, is_asked)
            } else {
                return true;
            };
            match outcome {
                Outcome::Answer(answer) => self.answers.push(answer),
                Outcome::Unfinished(unfinished) => self.unfinished = Some(unfinished),
            }
            if applier.effort.left() == 0 {
                return self.unfinished.is_none() && self.commands.len() == 0;
            }
        }
    }
}
