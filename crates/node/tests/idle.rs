//! Thousands of keyspaces on three nodes, of which nobody asks anything: what that costs, and how soon they answer again.
//!
//! `HADRON_GROUPS=5000 cargo test -p hadron-node --test idle -- --nocapture` prints it for so many.

#![allow(clippy::unwrap_used)]

#[path = "idle/pool.rs"]
mod pool;

use hadron_consensus::GroupId;
use hadron_node::Reply;
use pool::{Pool, stopwatch};

const SECOND_US: u64 = 1_000_000;
/// By then a group that nobody asks has compared its digests and sleeps.
const ASLEEP_US: u64 = 15 * SECOND_US;
/// The answer to the first request to a group that sleeps.
const FIRST_ANSWER_US: u64 = 100_000;

fn groups() -> u64 {
    std::env::var("HADRON_GROUPS").map_or(300, |text| text.parse().unwrap())
}

/// A pool whose keyspaces have all been written to, through any node, and sleep.
fn asleep() -> Pool {
    let mut pool = Pool::new(groups());
    pool.run_for(3 * SECOND_US);
    for group in pool.keyspaces() {
        pool.write((group.0 % 3) as usize, group, None);
    }
    pool.run_for(ASLEEP_US);
    assert_eq!(pool.take_answers().len() as u64, groups());
    pool
}

#[test]
fn idle_groups_say_nothing_and_do_nothing() {
    let mut pool = asleep();
    assert_eq!(pool.awake(), [], "all sleep on all nodes");
    let lags = pool.lags();
    assert_eq!(
        (lags.len() as u64, lags.iter().sum()),
        (3 * (groups() + 1), 0),
        "what is shown is not of a busier moment"
    );
    let before = pool.counts();
    let watch = stopwatch();
    pool.run_for(60 * SECOND_US);
    let (took, counts) = (watch(), pool.counts());
    let steps = counts.steps - before.steps;
    println!("{} idle groups: {steps} steps of 3 nodes in 60 s, which take {took:?}", groups());
    assert_eq!(counts.messages, before.messages, "nothing is said in any group");
    // Three nodes with ten heartbeats a second, each a timer and two messages, and the roster now and then.
    assert!(steps < 60 * 3 * 10 * 4, "{steps} steps");
}

#[test]
fn the_first_request_to_a_group_that_sleeps_is_answered_at_once() {
    let mut pool = asleep();
    let mut longest = 0;
    for group in pool.keyspaces().into_iter().take(100) {
        for node in 0..3 {
            longest = longest.max(pool.write_and_wait(node, group));
            pool.run_for(10);
            longest = longest.max(pool.read_and_wait(node, group));
        }
    }
    println!("the first answers took {longest} µs at most");
    assert!(longest < FIRST_ANSWER_US);
}

#[test]
fn a_node_that_dies_wakes_the_groups_that_it_led_and_no_others() {
    let mut pool = asleep();
    let led: Vec<GroupId> = pool.led_by(2);
    assert!(led.len() as u64 > groups() / 5, "every node leads some");
    pool.stop(2);
    let watch = stopwatch();
    let spread = pool.run_until_led(5 * SECOND_US);
    println!(
        "{} groups lost their leader and had another {spread} µs later; that took {:?}",
        led.len(),
        watch()
    );
    let awake = pool.awake();
    assert!(led.iter().all(|group| awake.contains(group)), "they stay awake as long as one of them is gone");
    assert_eq!(awake.len(), led.len());
    pool.write_and_wait(0, led[led.len() - 1]);
    let before = pool.counts();
    let watch = stopwatch();
    pool.run_for(10 * SECOND_US);
    assert!(pool.lags().iter().any(|lag| *lag > 0), "the dead one lags");
    println!("{} messages and {:?} in 10 s", pool.counts().messages - before.messages, watch());
    pool.start(2);
    pool.run_for(ASLEEP_US);
    assert_eq!(pool.awake(), [], "all sleep again");
    // Its leader had measured the lag while the other was dead, and slept as soon as it had caught up.
    assert!(pool.lags().iter().all(|lag| *lag == 0), "nobody lags any more, and that is shown");
    assert!(pool.all_know_a_leader(), "also those on the node that is back, though nobody asked them");
}

#[test]
fn after_a_restart_of_all_nodes_groups_elect_when_somebody_asks() {
    let mut pool = asleep();
    let leased = GroupId(7);
    pool.write(0, leased, Some(5));
    pool.run_for(4 * SECOND_US);
    (0..3).for_each(|node| pool.stop(node));
    let watch = stopwatch();
    (0..3).for_each(|node| pool.start(node));
    pool.run_for(SECOND_US / 2);
    println!("three nodes with {} groups started in {:?}", groups(), watch());
    pool.run_for(4 * SECOND_US);
    let leaderless: Vec<GroupId> =
        pool.keyspaces().into_iter().filter(|group| !pool.is_led(*group)).collect();
    assert_eq!(leaderless.len() as u64, groups() - 2, "nobody asked, but for leases in one, and `default`");
    assert!(pool.is_led(leased));
    let mut longest = 0;
    for (group, node) in leaderless.into_iter().take(100).zip([0, 1, 2].into_iter().cycle()) {
        longest = longest.max(pool.write_and_wait(node, group));
    }
    println!("the first answers took {longest} µs at most");
    assert!(longest < FIRST_ANSWER_US);
    pool.run_for(ASLEEP_US);
    pool.take_answers();
    pool.read_and_wait(1, leased);
    assert!(pool.keys(leased) == 1, "the lease ended, and its key with it");
}

#[test]
fn everybody_asks_at_once_after_a_restart() {
    let mut pool = asleep();
    (0..3).for_each(|node| pool.stop(node));
    (0..3).for_each(|node| pool.start(node));
    pool.run_for(2 * SECOND_US);
    let keyspaces = pool.keyspaces();
    let watch = stopwatch();
    for group in &keyspaces {
        for node in 0..3 {
            pool.write(node, *group, None);
        }
    }
    let began = pool.now();
    while pool.answered() < 3 * keyspaces.len() && pool.now() < began + 20 * SECOND_US {
        pool.run_for(10_000);
    }
    println!("{} answers after {} µs; that took {:?}", pool.answered(), pool.now() - began, watch());
    let answers = pool.take_answers();
    assert_eq!(answers.len(), 3 * keyspaces.len());
    assert!(answers.values().all(|reply| matches!(reply, Reply::Written { .. })));
    // A split vote costs an election timeout or two; hardly any group has one.
    assert!(pool.now() - began < 5 * SECOND_US);
}

/// A member that was removed went on leading keyspaces by the catalog as it had been, and whoever plans waited for a leader that is a member.
#[test]
fn a_member_that_is_removed_hands_over_the_keyspaces_that_it_leads() {
    let mut pool = Pool::placed(12);
    pool.run_for(3 * SECOND_US);
    for group in pool.keyspaces() {
        pool.write((group.0 % 3) as usize, group, None);
    }
    pool.run_for(2 * SECOND_US);
    let led = pool.led_by(2).into_iter().filter(|group| group.0 > 1).count();
    assert!(led > 0, "every node leads some");
    pool.remove(2);
    pool.run_for(3 * SECOND_US);
    assert_eq!(pool.led_by(2), []);
    assert!(pool.keyspaces().into_iter().all(|group| pool.is_led(group)));
    for group in pool.keyspaces() {
        pool.write_and_wait(0, group);
    }
}
