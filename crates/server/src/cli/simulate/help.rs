//! What is printed for those who do not know the simulation yet.

use hadron_sim::world::Scenario;
use hadron_sim::world::lies::Lie;

use super::lie_name;

/// Before the story of one world.
pub(super) const LEGEND: &str = "\
How to read it: when, in simulated seconds, and what happened. n1, n2, … are the nodes.
  groups    replicas of one log each: \"default\" is the keyspace of that name, \"group 2\" and so on are further keyspaces, and the
            root group keeps which nodes are members and where keyspaces are. Each has its own leader.
  election  a node asks all replicas that have a vote for theirs, once in a term, and leads if more than half agree.
            P(x) = V(x) / ΣV(i), with V(x) the votes counted for x. Who wins stops counting, so most count their own only.
  C(x)      = L(x) / ΣL(i), with L(x) the entries of the log that x acknowledged in the last seconds; the leader measures it.
            \"behind\" are entries that the leader has and x has not acknowledged yet.
  faults    first everything goes wrong that may. Then all is healed, and all must be served and equal again. At the end what clients
            and nodes saw is held against each guarantee: docs/testing.md says what each means, and how much was looked at is shown.

";

/// The tables at the end of the long help.
pub(super) fn tables() -> String {
    let mut text = String::from("Scenarios, each a kind of world:\n");
    for scenario in Scenario::ALL {
        text += &format!("  {:<22} {}\n", scenario.name(), about(scenario));
    }
    text += "  all                    each seed another of these\n";
    text += "  balance                a pool of many nodes of which only places and loads are simulated\n";
    text += "\nLies, each something that is not true, which the checks must notice:\n";
    text += &lies();
    text += "\n\nExit status: 0 if all held, 1 if something did not, 2 if the arguments make no sense, 3 if what was found could not be \
             printed\n(141 if the reader closed the pipe).";
    text
}

/// All lies, a line each.
pub(super) fn lies() -> String {
    Lie::ALL.map(|lie| format!("  {:<22} {lie}", lie_name(lie))).join("\n")
}

fn about(scenario: Scenario) -> &'static str {
    match scenario {
        Scenario::Usual => "a bit of everything",
        Scenario::Calm => "no faults at all",
        Scenario::Storm => "a bit of everything, and often",
        Scenario::Partitions => "the network is cut all the time",
        Scenario::Crashes => "machines lose their power and processes are killed, at the worst moments",
        Scenario::Disks => "disks are slow, full, failing or damaged",
        Scenario::Clocks => "clocks are fast or slow, processes and machines stand still",
        Scenario::Leases => "many leases and locks",
        Scenario::Snapshots => "followers are always so far behind that they need snapshots",
        Scenario::Compactions => "frequent compaction, and reads and watches of the past",
        Scenario::ManyGroups => "dozens of groups, two of them in trouble",
        Scenario::Members => "members come and go",
        Scenario::Placements => "keyspaces are made, on a few nodes each, moved and deleted",
        Scenario::Repairs => "replicas are found damaged, and rebuilt",
        Scenario::Pool => "members come and go once they are emptied, and keyspaces are moved meanwhile",
        Scenario::Sleep => "hardly anybody asks for anything, and groups sleep whatever goes wrong",
        Scenario::Sickness => "in the end one node after the other half works, and the others must serve",
    }
}
