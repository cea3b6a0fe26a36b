//! Alarms: each of a member and a kind, raised until somebody disarms it.

use std::collections::BTreeSet;

use hadron_proto::etcdserverpb::AlarmType;

/// The raised alarms of one keyspace.
#[derive(Debug, Default)]
pub(crate) struct Alarms {
    /// Member and kind.
    raised: BTreeSet<(u64, i32)>,
    /// How many of them say that there is no space: each put asks.
    of_space: usize,
}

impl Alarms {
    /// Raises one; false if it was raised already.
    pub(crate) fn raise(&mut self, member: u64, alarm: i32) -> bool {
        let is_new = self.raised.insert((member, alarm));
        self.of_space += usize::from(is_new && is_of_space(alarm));
        is_new
    }

    /// Clears one; false if it was not raised.
    pub(crate) fn clear(&mut self, member: u64, alarm: i32) -> bool {
        let was_raised = self.raised.remove(&(member, alarm));
        self.of_space -= usize::from(was_raised && is_of_space(alarm));
        was_raised
    }

    /// Member and kind of all, ordered by member.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, i32)> {
        self.raised.iter().copied()
    }

    /// Whether a space alarm is raised, by whomever.
    pub(crate) fn has_no_space(&self) -> bool {
        self.of_space > 0
    }
}

fn is_of_space(alarm: i32) -> bool {
    alarm == AlarmType::Nospace as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_no_space_until_the_last_such_alarm_is_cleared() {
        let (no_space, corrupt) = (AlarmType::Nospace as i32, AlarmType::Corrupt as i32);
        let mut alarms = Alarms::default();
        assert!(alarms.raise(1, corrupt) && !alarms.has_no_space());
        for (member, is_new) in [(1, true), (1, false), (2, true)] {
            assert_eq!(alarms.raise(member, no_space), is_new);
        }
        for (member, was_raised) in [(3, false), (1, true), (1, false)] {
            assert_eq!(alarms.clear(member, no_space), was_raised);
            assert!(alarms.has_no_space());
        }
        assert!(alarms.clear(2, no_space) && !alarms.has_no_space());
        assert!(alarms.iter().eq([(1, corrupt)]));
    }
}
