//! From the name of a keyspace to whoever serves it here.
//!
//! `default` is always at hand. The others are looked up in the catalog for every request, so that one that was deleted is gone at
//! once and one that was made anew under an old name is never mistaken for it; their services are made when they are first asked
//! for, and kept.

use std::collections::HashMap;
use std::sync::Arc;

use hadron_consensus::{GroupId, NodeId, ROOT_GROUP};
use hadron_node::DEFAULT_KEYSPACE;
use hadron_proto::etcdserverpb::Member;
use http::Request;
use parking_lot::RwLock;
use tonic::Status;

use super::backend::Backend;
use super::choice::{By, Door, Entrance, KeyspaceOptions};
use super::context::Context;
use super::rate::Rate;
use super::services::Services;

/// Names that are not known, for which a node makes sure that it knows all there are.
const UNHEARD_PER_SECOND_MAX: u64 = 100;

/// The services of all keyspaces.
pub(super) struct Keyspaces<B: Backend> {
    default: Arc<Services<B>>,
    /// By name. What is here may be deleted by now: the group says whether it is the same keyspace.
    others: RwLock<HashMap<String, Arc<Services<B>>>>,
    options: KeyspaceOptions,
    /// How often names were looked up that are not known.
    unheard: Rate,
}

/// Who serves a keyspace.
enum Route<B: Backend> {
    /// This node has a replica.
    Here(Arc<Services<B>>),
    /// These nodes have one. This is where a request would be passed on.
    Elsewhere { nodes: Vec<NodeId> },
}

/// The keyspace that a request is about, with its services.
pub(super) struct Known<B: Backend> {
    pub(super) services: Arc<Services<B>>,
    pub(super) door: Option<Door>,
}

/// The keyspace that a request is about.
pub(super) enum Chosen<B: Backend> {
    /// One that is known and here.
    Known(Known<B>),
    /// One that this node has not heard of, though others may have.
    Unheard { name: String, door: Option<Door> },
}

/// The answer to who asks for what is not there.
pub(super) fn no_keyspace(name: &str) -> Status {
    Status::not_found(format!("hadron: there is no keyspace {name:?}"))
}

impl<B: Backend> Keyspaces<B> {
    pub(super) fn new(default: Arc<Context<B>>, options: KeyspaceOptions) -> Keyspaces<B> {
        let default = Arc::new(Services::new(default));
        Keyspaces { default, others: RwLock::default(), options, unheard: Rate::default() }
    }

    pub(super) fn options(&self) -> &KeyspaceOptions {
        &self.options
    }

    /// The services of `default`, which every node has.
    pub(super) fn default_services(&self) -> &Arc<Services<B>> {
        &self.default
    }

    /// The keyspace that a request is about, if it may be asked for and is here.
    pub(super) fn choose<T>(&self, request: &Request<T>, entrance: &Entrance) -> Result<Chosen<B>, Status> {
        let choice = entrance.choose(request, &self.options)?;
        if choice.by == By::Nobody || choice.name == DEFAULT_KEYSPACE {
            return Ok(Chosen::Known(Known { services: Arc::clone(&self.default), door: None }));
        }
        let door = entrance.door(request, choice.by);
        match self.route(&choice.name) {
            Some(route) => Ok(Chosen::Known(self.enter(&choice.name, route, door)?)),
            None => Ok(Chosen::Unheard { name: choice.name.into_owned(), door }),
        }
    }

    /// The same for sure: a keyspace that was made through another node is known here once this one has caught up.
    pub(super) async fn settle(&self, chosen: Result<Chosen<B>, Status>) -> Result<Known<B>, Status> {
        let (name, door) = match chosen? {
            Chosen::Known(known) => return Ok(known),
            Chosen::Unheard { name, door } => (name, door),
        };
        // Whoever asks for nonsense all the time is not worth the trouble.
        if self.unheard.admits(UNHEARD_PER_SECOND_MAX) {
            self.default.context.backend.read_barrier(ROOT_GROUP).await?;
        }
        let route = self.route(&name).ok_or_else(|| no_keyspace(&name))?;
        self.enter(&name, route, door)
    }

    fn enter(&self, name: &str, route: Route<B>, door: Option<Door>) -> Result<Known<B>, Status> {
        match route {
            Route::Here(services) => Ok(Known { services, door }),
            Route::Elsewhere { nodes } => Err(self.elsewhere(name, &nodes)),
        }
    }

    /// `None` for a keyspace that is not in the catalog here.
    fn route(&self, name: &str) -> Option<Route<B>> {
        let own = self.default.context.backend.identity().member_id;
        let found = self.default.context.backend.with_catalog(|catalog| {
            let group = catalog.record(name)?.group_id();
            let places = &catalog.placement(group)?.record;
            let is_here = places.replica_on(own).is_some();
            Some((group, if is_here { None } else { Some(places.nodes().collect()) }))
        });
        found.map(|(group, elsewhere)| match elsewhere {
            None => Route::Here(self.services(name, group)),
            Some(nodes) => Route::Elsewhere { nodes },
        })
    }

    fn services(&self, name: &str, group: GroupId) -> Arc<Services<B>> {
        let same = |services: &&Arc<Services<B>>| services.context.group == group;
        if let Some(known) = self.others.read().get(name).filter(same) {
            return Arc::clone(known);
        }
        let mut others = self.others.write();
        if let Some(known) = others.get(name).filter(same) {
            return Arc::clone(known);
        }
        self.forget_deleted(&mut others);
        let context = Arc::new(self.default.context.for_keyspace(name, group));
        let services = Arc::new(Services::new(context));
        others.insert(name.to_owned(), Arc::clone(&services));
        services
    }

    /// Nobody may ask for what was deleted ever again.
    fn forget_deleted(&self, others: &mut HashMap<String, Arc<Services<B>>>) {
        self.default.context.backend.with_catalog(|catalog| {
            if others.len() > catalog.keyspaces().count() {
                others.retain(|name, _| catalog.record(name).is_some());
            }
        });
    }

    fn elsewhere(&self, name: &str, nodes: &[NodeId]) -> Status {
        let members = self.default.context.backend.members();
        let members = members.into_iter().filter(|member| nodes.contains(&NodeId(member.id)));
        // A node that has just started may not have said yet where its clients find it.
        let host = |member: Member| match member.client_ur_ls.is_empty() {
            true => member.name,
            false => format!("{} ({})", member.name, member.client_ur_ls.join(" ")),
        };
        let hosts: Vec<String> = members.map(host).collect();
        Status::unavailable(format!(
            "hadron: the keyspace {name} has no replica on this node: ask {}",
            hosts.join(" or ")
        ))
    }
}
