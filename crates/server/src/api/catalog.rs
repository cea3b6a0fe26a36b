//! Changes of the catalog: checked here, decided by a txn on the root group's keyspace (`hadron_node`'s `catalog`), carried out by the
//! nodes that are named and by the groups' leaders.
//!
//! Which nodes a keyspace comes to is decided in `placing`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hadron_consensus::{GroupId, NodeId, ROOT_GROUP};
use hadron_keyspace::{Command, Response};
use hadron_node::{Catalog, CatalogError, KeyspaceRecord, KeyspaceState};
use hadron_proto::hadron::{KeyspaceCreateRequest, KeyspaceUpdateRequest};
use tokio::time::{sleep, timeout};
use tonic::{Code, Status};

use super::asking::Asker;
use super::backend::{Backend, Unavailable, Written};
use super::context::{Context, mismatch};
use super::keyspaces::serves;

/// Between two looks at whether a new keyspace has a leader.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How often another change may come first before a change gives up.
const TRIES_MAX: usize = 16;

/// What the catalog refuses, as clients are told.
fn refused(error: CatalogError) -> Status {
    let code = match error {
        CatalogError::BadName(_) | CatalogError::NoReplicas => Code::InvalidArgument,
        CatalogError::Exists(_) => Code::AlreadyExists,
        CatalogError::NotFound(_) => Code::NotFound,
        CatalogError::IsDefault | CatalogError::DefaultIsFixed => Code::FailedPrecondition,
    };
    Status::new(code, format!("hadron: {error}"))
}

/// A group that is to have more or fewer replicas.
struct Resized {
    group: GroupId,
    present: Vec<NodeId>,
    nodes: Vec<NodeId>,
}

/// Where the replicas of a group of the catalog shall be.
fn placed(catalog: &Catalog, group: GroupId) -> Vec<NodeId> {
    catalog.placement(group).map_or_else(Vec::new, |placement| placement.record.nodes().collect())
}

impl<B: Backend> Context<B> {
    /// Makes a keyspace for somebody, and returns it with its leader once it has one.
    pub(super) async fn create_keyspace(
        &self,
        request: KeyspaceCreateRequest,
        asker: &Asker,
    ) -> Result<(KeyspaceRecord, NodeId), Status> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wanted = KeyspaceRecord {
            name: request.name,
            bytes_max: request.bytes_max,
            requests_per_second_max: request.requests_per_second_max,
            created_at_ms: now.as_millis() as i64,
            ..KeyspaceRecord::default()
        };
        self.backend.read_barrier(ROOT_GROUP).await?;
        // What is wrong with the name comes first, whichever nodes there are.
        let own = [self.backend.identity().member_id];
        self.backend.with_catalog(|catalog| catalog.create(&wanted, &own)).map_err(refused)?;
        let nodes = self.placing().await?.pick(request.replicas as usize)?;
        self.change_catalog(|catalog| catalog.create(&wanted, &nodes).map(Some).map_err(refused)).await?;
        let record = self.keyspace_record(&wanted.name)?;
        let leader = self.wait_for_leader(&record, asker).await?;
        Ok((record, leader))
    }

    /// Changes a keyspace, and returns it as it is then.
    pub(super) async fn update_keyspace(
        &self,
        change: &KeyspaceUpdateRequest,
    ) -> Result<KeyspaceRecord, Status> {
        for _ in 0..TRIES_MAX {
            self.backend.read_barrier(ROOT_GROUP).await?;
            let resized = self.resized(change).await?;
            let command = self.backend.with_catalog(|catalog| match resized {
                // Somebody may have moved it since.
                Some(seen) if placed(catalog, seen.group) != seen.present => Ok(Change::Stale),
                seen => altered(catalog, change, seen),
            })?;
            let is_done = match command {
                Change::Stale => false,
                Change::Nothing => true,
                Change::Decide(command) => self.decide(command).await?,
            };
            if is_done {
                return self.keyspace_record(&change.name);
            }
        }
        Err(Unavailable::Busy.into())
    }

    /// Deletes a keyspace, and returns it as it was.
    pub(super) async fn delete_keyspace(&self, name: &str) -> Result<KeyspaceRecord, Status> {
        let mut deleted = None;
        self.change_catalog(|catalog| {
            let command = catalog.delete(name).map_err(refused)?;
            deleted = catalog.record(name).cloned();
            Ok(Some(command))
        })
        .await?;
        deleted.ok_or_else(mismatch)
    }

    /// What the catalog says of a keyspace, `default` included.
    pub(super) fn keyspace_record(&self, name: &str) -> Result<KeyspaceRecord, Status> {
        let record = self.backend.with_catalog(|catalog| catalog.keyspace(name));
        record.ok_or_else(|| refused(CatalogError::NotFound(name.to_owned())))
    }

    /// Where the keyspace shall be as the request wants it, if that says.
    async fn resized(&self, change: &KeyspaceUpdateRequest) -> Result<Option<Resized>, Status> {
        // In the catalog's words, if there is no such keyspace.
        let record = KeyspaceRecord { name: change.name.clone(), ..Default::default() };
        self.backend.with_catalog(|catalog| catalog.alter(&record)).map_err(refused)?;
        let Some(replicas) = change.replicas else { return Ok(None) };
        if replicas == 0 {
            return Err(refused(CatalogError::NoReplicas));
        }
        let placing = self.placing().await?;
        let (group, present, leaving) = self.backend.with_catalog(|catalog| {
            let group = catalog.record(&change.name).map(KeyspaceRecord::group_id).unwrap_or_default();
            (group, placed(catalog, group), catalog.leaving_of(group).collect::<Vec<_>>())
        });
        let leader = self.backend.status(group).and_then(|status| status.leader);
        let may_come = |node| !leaving.contains(&node);
        let nodes = placing.resize(group, &present, replicas as usize, leader, may_come)?;
        Ok(Some(Resized { group, present, nodes }))
    }

    /// Decides a change. `change` may be called several times; it returns nothing if nothing is to be done.
    async fn change_catalog(
        &self,
        mut change: impl FnMut(&Catalog) -> Result<Option<Command>, Status>,
    ) -> Result<(), Status> {
        for _ in 0..TRIES_MAX {
            self.backend.read_barrier(ROOT_GROUP).await?;
            let Some(command) = self.backend.with_catalog(&mut change)? else { return Ok(()) };
            if self.decide(command).await? {
                return Ok(());
            }
        }
        Err(Unavailable::Busy.into())
    }

    /// True if it was decided, false if another change came first.
    async fn decide(&self, command: Command) -> Result<bool, Status> {
        let Written { response, .. } = self.backend.write(ROOT_GROUP, command).await?;
        let Ok(Response::Txn(response)) = response else { return Err(mismatch()) };
        Ok(response.succeeded)
    }

    async fn wait_for_leader(&self, record: &KeyspaceRecord, asker: &Asker) -> Result<NodeId, Status> {
        let (name, group) = (&record.name, record.group_id());
        let led = async {
            loop {
                let leader = match serves(&self.backend, group) {
                    true => self.backend.status(group).and_then(|status| status.leader),
                    false => asker.ask_about(self, name, group).await.map(|told| NodeId(told.leader)),
                };
                if let Some(leader) = leader.filter(|leader| leader.0 != 0) {
                    return leader;
                }
                sleep(LOOK_AGAIN).await;
            }
        };
        timeout(self.membership.timeout, led).await.map_err(|_| {
            Status::unavailable(format!(
                "hadron: the keyspace {name} was made, but has no leader yet: `hadron ctl keyspace get {name}` tells when it has"
            ))
        })
    }

    /// Where the replicas of a group shall be; of `default` and the root group, on every member.
    pub(super) fn places(&self, group: GroupId) -> Vec<(NodeId, u64)> {
        let placed = self.backend.with_catalog(|catalog| {
            let places = catalog.placement(group)?.record.places.iter();
            Some(places.map(|place| (NodeId(place.node), place.replica)).collect())
        });
        placed.unwrap_or_else(|| {
            let pool = self.backend.pool();
            pool.roster.members.iter().map(|member| (member.node(), member.replica)).collect()
        })
    }
}

/// What a request about a keyspace comes to.
enum Change {
    Decide(Command),
    Nothing,
    /// Something else was decided meanwhile.
    Stale,
}

/// How a keyspace is changed, its record and its places at once: a planner that saw the one without the other would add or take a replica
/// by itself.
fn altered(
    catalog: &Catalog,
    change: &KeyspaceUpdateRequest,
    resized: Option<Resized>,
) -> Result<Change, Status> {
    let present = catalog.record(&change.name).cloned().unwrap_or_default();
    let record = changed(present.clone(), change);
    let alter = catalog.alter(&record).map_err(refused)?;
    let place = resized.filter(|resized| resized.group == present.group_id()).and_then(|resized| {
        let Resized { group, present, nodes } = resized;
        catalog.place(group, &nodes, &format!("from {} replicas to {}", present.len(), nodes.len()))
    });
    Ok(match place {
        None if record == present => Change::Nothing,
        None => Change::Decide(alter),
        Some(place) => Change::Decide(Catalog::together(alter, place)),
    })
}

fn changed(record: KeyspaceRecord, change: &KeyspaceUpdateRequest) -> KeyspaceRecord {
    let state = change.frozen.map(|frozen| match frozen {
        true => KeyspaceState::Frozen as i32,
        false => KeyspaceState::Active as i32,
    });
    KeyspaceRecord {
        name: change.name.clone(),
        state: state.unwrap_or(record.state),
        replicas: change.replicas.unwrap_or(record.replicas),
        bytes_max: change.bytes_max.unwrap_or(record.bytes_max),
        requests_per_second_max: change.requests_per_second_max.unwrap_or(record.requests_per_second_max),
        ..record
    }
}
