//! Lease clients: each grants a lease, attaches a few keys to it, keeps it alive for a while, then lets it expire or revokes
//! it, and looks until the keys are gone, all at one revision.
//!
//! Some compete for one lock instead: the key that is created with the lease is the same for all, and whoever creates it
//! holds the lock as long as its lease is promised to live.

use hadron_consensus::GroupId;
use hadron_keyspace::{Command, Response as CommandResponse};
use hadron_node::{Event as NodeEvent, Reply};
use hadron_proto::etcdserverpb::{LeaseGrantRequest, LeaseKeepAliveResponse};
use rand::Rng;

use super::lies::Lie;
use super::machine::Asked;
use super::{Happening, Life, Settings, World};
use crate::checkers::exclusion::Claim;
use crate::checkers::lease_promise::{Lease, Renewal};
use crate::history::{Action, Guard, Operation, Outcome, Response, Step, StepResult, Transaction};

/// As many keys are attached to a lease at most.
const KEYS_MAX: i64 = 4;
/// Seconds that leases are granted for.
const TTL_S: i64 = 2;
/// Client numbers of lease clients in the history begin here.
const NUMBERS: u64 = 1_000_000;
/// Microseconds between two looks at whether the key is gone.
const LOOK_US: u64 = 150_000;
/// The key that is the lock.
pub(super) const LOCK: &str = "lease/lock";
/// Microseconds after which a lease client gives up an answer.
const PATIENCE_US: u64 = 3_000_000;
/// What nobody acknowledged is not carried out later than this.
const DOUBT_US: u64 = 10_000_000;

/// A client that holds one lease after another.
pub(super) struct LeaseClient {
    number: u64,
    /// The group of its keyspace. All who want the lock have the same.
    group: GroupId,
    granted: i64,
    stage: Stage,
    /// Leases of the past, and the present one last.
    stories: Vec<Lease>,
    /// When the request that is under way was asked, and its number, so that a late end is not taken for a later one's.
    asked: Option<(u64, u64)>,
    requests: u64,
    /// Competes for the lock.
    wants_lock: bool,
    /// Parts in a million that it allows for the servers' clocks.
    drift_ppm: u64,
    /// The times in which it held the lock, the present one last.
    claims: Vec<Claim>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Asks for a lease.
    Grant,
    /// Attaches keys to it.
    Attach,
    /// Keeps it alive this many more times.
    Keep(u32),
    /// Revokes it.
    Revoke,
    /// Waits for its end.
    Look,
}

impl LeaseClient {
    /// The lease clients of a world, then those that compete for the lock.
    pub(super) fn all(settings: &Settings) -> Vec<LeaseClient> {
        let leases = (0..settings.lease_clients).map(|_| false);
        let kinds = leases.chain((0..settings.lock_clients).map(|_| true));
        let group =
            |number: u64| GroupId(1 + (settings.seed / 3 + number) % (settings.keyspaces - settings.mortals));
        let client = |(number, wants_lock)| LeaseClient {
            number,
            group: group(if wants_lock { 0 } else { number }),
            granted: 0,
            stage: Stage::Grant,
            stories: Vec::new(),
            asked: None,
            requests: 0,
            wants_lock,
            drift_ppm: settings.drift_ppm,
            claims: Vec::new(),
        };
        (0..).zip(kinds).map(client).collect()
    }

    /// The group of its keyspace.
    pub(super) fn group(&self) -> GroupId {
        self.group
    }

    /// What was seen of each lease.
    pub(super) fn stories(&self) -> &[Lease] {
        &self.stories
    }

    /// When it held the lock.
    pub(super) fn claims(&self) -> &[Claim] {
        &self.claims
    }

    fn lease(&self) -> i64 {
        (self.number as i64 + 1) * 1_000 + self.granted
    }

    fn key(&self) -> String {
        format!("lease/{}", self.lease())
    }

    fn attach(&mut self) -> Action {
        let lease = self.lease();
        if !self.wants_lock {
            let more = (1..=lease % KEYS_MAX).map(|number| format!("{}/{number}", self.key()));
            let keys = [self.key()].into_iter().chain(more);
            let put = |key: String| Step::Put(key.into(), format!("held by {lease}").into(), lease);
            return Action::Transaction(Transaction {
                then: keys.map(put).collect(),
                ..Transaction::default()
            });
        }
        self.requests += 1;
        let value = format!("held by {lease} ({})", self.requests);
        Action::Transaction(Transaction {
            guards: vec![Guard::CreateRevision(LOCK.into(), 0)],
            then: vec![Step::Put(LOCK.into(), value.into(), lease)],
            otherwise: vec![Step::Get(LOCK.into())],
        })
    }

    /// Until when the lease is promised to live, however fast the servers' clocks are.
    fn promised_until(&self) -> u64 {
        let Some(story) = self.stories.last() else { return 0 };
        let renewals = story.renewals.iter().filter(|renewal| renewal.acknowledged);
        let life = story.ttl_us - story.ttl_us * self.drift_ppm / 1_000_000 - 2_000;
        renewals.map(|renewal| renewal.invoked + life).max().unwrap_or(0)
    }

    /// Holds the lock from now on.
    fn claim(&mut self, now: u64, token: i64) {
        let (holder, until) = (self.lease(), self.promised_until());
        self.claims.push(Claim { holder, from: now, until, token });
    }

    /// The present claim, if there is one.
    fn present_claim(&mut self) -> Option<&mut Claim> {
        let lease = self.lease();
        self.claims.last_mut().filter(|claim| claim.holder == lease)
    }
}

impl World {
    /// A lease client takes its next step.
    pub(super) fn lease_next(&mut self, number: usize) {
        if self.quiet || self.leases[number].asked.is_some() {
            return;
        }
        if let Some(end) = self.settings.rest_ends(self.schedule.now()) {
            return self.schedule.at(end, Happening::LeaseNext(number));
        }
        let node = self.any_node();
        let Some(life) = self.life(node) else { return self.lease_later(number, 100_000) };
        match self.leases[number].stage {
            Stage::Grant => self.grant(number, life),
            Stage::Attach => {
                let action = self.leases[number].attach();
                self.begin_operation(NUMBERS + number as u64, self.leases[number].group, life, action);
            }
            Stage::Keep(_) => {
                let lease = self.leases[number].lease();
                self.ask_lease(number, life, Command::LeaseKeepAlive(vec![lease]));
            }
            Stage::Revoke => self.revoke(number, life),
            Stage::Look => {
                if self.lies(Lie::EndlessLease) {
                    let lease = self.leases[number].lease();
                    let group = self.leases[number].group;
                    self.write_unasked(life, group, Command::LeaseKeepAlive(vec![lease]));
                }
                let key = self.leases[number].key();
                // What is attached has longer names, with a slash; this comes right after all of them.
                let action = Action::GetRange(key.clone().into(), format!("{key}0").into());
                self.begin_operation(NUMBERS + number as u64, self.leases[number].group, life, action);
            }
        }
    }

    fn lease_later(&mut self, number: usize, delay_us: u64) {
        self.schedule.after(delay_us, Happening::LeaseNext(number));
    }

    fn grant(&mut self, number: usize, life: Life) {
        let now = self.schedule.now();
        let client = &mut self.leases[number];
        client.granted += 1;
        let (lease, group) = (client.lease(), client.group);
        client.stories.push(Lease { id: lease, ttl_us: TTL_S as u64 * 1_000_000, ..Lease::default() });
        // Its expiry may remove the key at any time from now on, as far as the order of operations is concerned.
        self.history.push(Operation {
            client: NUMBERS + number as u64,
            keyspace: group.0,
            node: life.node,
            replica: None,
            invoked: now,
            returned: now,
            action: Action::Revoke(lease),
            outcome: Outcome::Unknown,
        });
        self.open.push(false);
        self.ask_lease(number, life, Command::LeaseGrant(LeaseGrantRequest { ttl: TTL_S, id: lease }));
    }

    fn revoke(&mut self, number: usize, life: Life) {
        let now = self.schedule.now();
        let client = &mut self.leases[number];
        let lease = client.lease();
        if let Some(story) = client.stories.last_mut() {
            story.revoked = Some(now);
        }
        if let Some(claim) = client.present_claim() {
            claim.until = claim.until.min(now);
        }
        self.begin_operation(NUMBERS + number as u64, self.leases[number].group, life, Action::Revoke(lease));
    }

    /// Asks for a grant or a keep-alive.
    fn ask_lease(&mut self, number: usize, life: Life, command: Command) {
        let now = self.schedule.now();
        let client = &mut self.leases[number];
        client.requests += 1;
        client.asked = Some((now, client.requests));
        let group = client.group;
        if let (Command::LeaseKeepAlive(ids), true) = (&command, self.lies(Lie::KeepAliveUnasked)) {
            let alive = LeaseKeepAliveResponse { header: None, id: ids[0], ttl: TTL_S };
            let response = Ok(CommandResponse::LeaseKeepAlive(vec![alive]));
            return self.on_lease_reply(life, number, Reply::Written { response, term: 0 });
        }
        let event = |token| NodeEvent::Write { token, group, command: command.to_bytes() };
        let token = self.ask(life, Asked::Lease(number), event);
        let (request, token) = (self.leases[number].requests, token.unwrap_or(0));
        self.schedule.after(PATIENCE_US, Happening::LeaseGiveUp { client: number, request, life, token });
    }

    pub(super) fn lease_give_up(&mut self, number: usize, request: u64, life: Life, token: u64) {
        if self.leases[number].asked.is_none_or(|(_, asked)| asked != request) {
            return;
        }
        let group = self.leases[number].group;
        if let Some(process) = self.process(life)
            && process.asked.remove(&token).is_some()
        {
            self.deliver(life, NodeEvent::Cancel { token, group });
        }
        self.on_lease_connection_lost(number);
    }

    /// No answer will come: the lease may live or not. A grant is not followed any further.
    pub(super) fn on_lease_connection_lost(&mut self, number: usize) {
        self.end_renewal(number, false);
        let client = &mut self.leases[number];
        client.stage = match client.stage {
            Stage::Keep(_) if !client.wants_lock => Stage::Look,
            _ => Stage::Grant,
        };
        self.lease_later(number, 50_000);
    }

    /// Writes a grant or keep-alive into the lease's story.
    fn end_renewal(&mut self, number: usize, acknowledged: bool) {
        let now = self.schedule.now();
        let client = &mut self.leases[number];
        let (Some((invoked, _)), Some(story)) = (client.asked.take(), client.stories.last_mut()) else {
            return;
        };
        // What was not acknowledged may still be carried out as long as some leader has it.
        let returned = if acknowledged { now } else { now + DOUBT_US };
        story.renewals.push(Renewal { invoked, returned, acknowledged });
        let until = client.promised_until();
        if let Some(claim) = client.present_claim() {
            claim.until = until;
        }
    }

    /// The node answers a grant or a keep-alive.
    pub(super) fn on_lease_reply(&mut self, _life: Life, number: usize, reply: Reply) {
        if self.leases[number].asked.is_none() {
            return;
        }
        let now = self.schedule.now();
        self.trace.note(now, format_args!("lease {}: {reply:?}", self.leases[number].lease()));
        let response = match reply {
            Reply::Written { response: Ok(response), .. } => response,
            Reply::Written { response: Err(_), .. }
            | Reply::Failed(_)
            | Reply::Transferred
            | Reply::Lags(_)
            | Reply::ReadReady => {
                return self.on_lease_connection_lost(number);
            }
        };
        let (stage, delay) = match (response, self.leases[number].stage) {
            (CommandResponse::LeaseGrant(granted), _) => {
                if let Some(story) = self.leases[number].stories.last_mut() {
                    story.ttl_us = granted.ttl as u64 * 1_000_000;
                }
                self.end_renewal(number, true);
                (Stage::Attach, 1_000)
            }
            (CommandResponse::LeaseKeepAlive(kept), Stage::Keep(more)) => {
                let lives = kept.first().is_some_and(|kept| kept.ttl > 0);
                self.end_renewal(number, lives);
                if let Some(story) = self.leases[number].stories.last_mut().filter(|_| !lives) {
                    story.gone_by.get_or_insert(now);
                }
                (self.after_keeping(number, lives, more), self.rng.random_range(100_000..900_000))
            }
            _ => return self.on_lease_connection_lost(number),
        };
        self.leases[number].stage = stage;
        self.lease_later(number, delay);
    }

    /// What a client does after its lease was kept alive once more, or was found gone.
    fn after_keeping(&mut self, number: usize, lives: bool, more: u32) -> Stage {
        let revokes = self.rng.random_bool(0.3);
        match self.leases[number].wants_lock {
            _ if lives && more > 0 => Stage::Keep(more - 1),
            _ if lives && revokes => Stage::Revoke,
            // Its key may be another's by now.
            true => Stage::Grant,
            false => Stage::Look,
        }
    }

    /// Somebody says that a lease does not exist that a client would attach a key to.
    pub(super) fn on_lease_missed(&mut self, operation: usize) {
        let (client, now) = (self.history[operation].client, self.schedule.now());
        let lease = client.checked_sub(NUMBERS).and_then(|number| self.leases.get_mut(number as usize));
        if let Some(story) = lease.and_then(|client| client.stories.last_mut()) {
            story.gone_by.get_or_insert(now);
        }
    }

    /// An operation of a lease client on its key ended.
    pub(super) fn on_lease_answer(&mut self, operation: usize) {
        let operation = &self.history[operation];
        let (invoked, returned) = (operation.invoked, operation.returned);
        let number = (operation.client - NUMBERS) as usize;
        let response = operation.response().cloned();
        let result = response.as_ref().and_then(|response| response.results.first().cloned());
        let (stage, delay) = match (self.leases[number].stage, result) {
            (Stage::Attach, result) => self.after_attaching(number, returned, response, result),
            (Stage::Look, Some(StepResult::Found(found))) => {
                let client = &mut self.leases[number];
                let Some(story) = client.stories.last_mut() else { return };
                if found.is_empty() {
                    story.gone_by.get_or_insert(returned);
                    (Stage::Grant, 100_000)
                } else {
                    story.alive_at = story.alive_at.max(Some(invoked));
                    (Stage::Look, LOOK_US)
                }
            }
            (Stage::Revoke, _) if self.leases[number].wants_lock => (Stage::Grant, 100_000),
            (Stage::Revoke, _) => (Stage::Look, LOOK_US),
            (stage, _) => (stage, LOOK_US),
        };
        self.leases[number].stage = stage;
        self.lease_later(number, delay);
    }

    fn after_attaching(
        &mut self,
        number: usize,
        now: u64,
        response: Option<Response>,
        result: Option<StepResult>,
    ) -> (Stage, u64) {
        let client = &mut self.leases[number];
        match (response, result) {
            (Some(response), Some(StepResult::Put)) => {
                if client.wants_lock {
                    client.claim(now, response.revision);
                }
                (Stage::Keep(self.rng.random_range(0..5)), 300_000)
            }
            // Another holds the lock.
            (Some(_), Some(StepResult::Got(_))) => (Stage::Attach, self.rng.random_range(50_000..300_000)),
            // The put may have failed because the lease has ended; nothing more can be told.
            _ => (Stage::Grant, 100_000),
        }
    }
}
