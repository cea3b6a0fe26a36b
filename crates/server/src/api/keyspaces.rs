//! From the name of a keyspace to whoever serves it here.
//!
//! `default` is always at hand. The others are looked up in the catalog for every request, so that one that was deleted is gone at
//! once and one that was made anew under an old name is never mistaken for it; their services are made when they are first asked
//! for, and kept. What has no replica here is served elsewhere: see `forward`.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
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

/// The keyspace that a request is about, with its services.
pub(super) struct Known<B: Backend> {
    pub(super) services: Arc<Services<B>>,
    pub(super) door: Option<Door>,
    /// The request was passed on by another node.
    pub(super) is_passed_on: bool,
    /// The replica here is to go.
    pub(super) is_leaving: bool,
}

impl<B: Backend> Known<B> {
    /// Its name, to find it again.
    pub(super) fn named(&self) -> Named {
        let name = self.services.context.name.to_string();
        Named { name, door: self.door.clone(), is_passed_on: self.is_passed_on }
    }
}

/// A keyspace of which this node has no replica that serves.
pub(super) struct Elsewhere {
    pub(super) named: Named,
    pub(super) group: GroupId,
    /// Who may have one.
    pub(super) nodes: Vec<NodeId>,
}

/// Who serves a request.
pub(super) enum Place<B: Backend> {
    Here(Known<B>),
    Elsewhere(Elsewhere),
}

impl<B: Backend> Place<B> {
    /// The group that carries the keyspace.
    pub(super) fn group(&self) -> GroupId {
        match self {
            Place::Here(known) => known.services.context.group,
            Place::Elsewhere(there) => there.group,
        }
    }
}

/// The keyspace that a request names.
pub(super) struct Named {
    pub(super) name: String,
    pub(super) door: Option<Door>,
    /// The request was passed on by another node, and goes no further.
    pub(super) is_passed_on: bool,
}

/// The keyspace that a request is about.
pub(super) enum Chosen<B: Backend> {
    /// One that is known.
    At(Place<B>),
    /// One that this node has not heard of, though others may have.
    Unheard(Named),
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

    /// The keyspace that a request is about, if it may be asked for.
    pub(super) fn choose<T>(&self, request: &Request<T>, entrance: &Entrance) -> Result<Chosen<B>, Status> {
        let choice = entrance.choose(request, &self.options)?;
        let is_passed_on = entrance.is_passed_on();
        if choice.by == By::Nobody || choice.name == DEFAULT_KEYSPACE {
            let services = Arc::clone(&self.default);
            return Ok(Chosen::At(Place::Here(Known {
                services,
                door: None,
                is_passed_on,
                is_leaving: false,
            })));
        }
        let door = entrance.door(request, choice.by);
        Ok(match self.place(choice.name, door, is_passed_on) {
            Ok(place) => Chosen::At(place),
            Err(named) => Chosen::Unheard(named),
        })
    }

    /// The same for sure: a keyspace that was made through another node is known here once this one has caught up.
    pub(super) async fn settle(&self, chosen: Result<Chosen<B>, Status>) -> Result<Place<B>, Status> {
        match chosen? {
            Chosen::At(place) => Ok(place),
            Chosen::Unheard(named) => self.find(named).await,
        }
    }

    /// Who serves a keyspace, once this node has heard of all that was decided.
    pub(super) async fn find(&self, named: Named) -> Result<Place<B>, Status> {
        // Whoever asks for nonsense all the time is not worth the trouble.
        if self.unheard.admits(UNHEARD_PER_SECOND_MAX) {
            self.default.context.backend.read_barrier(ROOT_GROUP).await?;
        }
        let Named { name, door, is_passed_on } = named;
        self.place(name.into(), door, is_passed_on).map_err(|named| no_keyspace(&named.name))
    }

    /// Who serves a keyspace, if it is in the catalog here: this node if it votes and is to go on doing so, or else those who
    /// shall have a replica and those who are to lose theirs. Some of them have none yet, or none any more.
    fn place(&self, name: Cow<'_, str>, door: Option<Door>, is_passed_on: bool) -> Result<Place<B>, Named> {
        let backend = &self.default.context.backend;
        let own = backend.identity().member_id;
        let found = backend.with_catalog(|catalog| {
            let group = catalog.record(&name)?.group_id();
            let is_leaving = catalog.leaving(group, own).is_some();
            if serves(backend, group) {
                return Some((group, is_leaving, BTreeSet::new()));
            }
            let placed = catalog.placement(group)?.record.nodes();
            Some((group, is_leaving, placed.chain(catalog.leaving_of(group)).collect::<BTreeSet<NodeId>>()))
        });
        let named = |door| Named { name: name.to_string(), door, is_passed_on };
        let Some((group, is_leaving, mut nodes)) = found else { return Err(named(door)) };
        nodes.remove(&own);
        // If nobody else can have one, what there is here says what is wrong with it.
        Ok(match nodes.is_empty() {
            true => {
                let services = self.services(&name, group);
                Place::Here(Known { services, door, is_passed_on, is_leaving })
            }
            false => {
                Place::Elsewhere(Elsewhere { named: named(door), group, nodes: nodes.into_iter().collect() })
            }
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

    /// The answer to a request that nobody took.
    pub(super) fn elsewhere(&self, there: &Elsewhere, reasons: &[String]) -> Status {
        let members = self.default.context.backend.members();
        let members = members.into_iter().filter(|member| there.nodes.contains(&NodeId(member.id)));
        // A node that has just started may not have said yet where its clients find it.
        let host = |member: Member| match member.client_ur_ls.is_empty() {
            true => member.name,
            false => format!("{} ({})", member.name, member.client_ur_ls.join(" ")),
        };
        let hosts: Vec<String> = members.map(host).collect();
        let name = &there.named.name;
        let tried = if reasons.is_empty() { String::new() } else { format!(" [{}]", reasons.join("; ")) };
        Status::unavailable(format!(
            "hadron: the keyspace {name} has no replica on this node, and nobody who has one took the request: ask {}{tried}",
            hosts.join(" or ")
        ))
    }
}

/// Whether this node's replica of a group may answer its clients.
pub(super) fn serves<B: Backend>(backend: &B, group: GroupId) -> bool {
    backend.status(group).is_some_and(|status| status.is_voter) && backend.keyspace(group).is_some()
}
