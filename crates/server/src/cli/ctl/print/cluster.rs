//! Replies about nodes: endpoint status, health and hashkv, member list, move-leader.

use hadron_proto::etcdserverpb::{
    AlarmMember, AlarmResponse, DowngradeResponse, HashKvResponse, Member, MemberAddResponse,
    MemberListResponse, MoveLeaderResponse, ResponseHeader, StatusResponse,
};

use prost::Message as _;

use super::super::go_text;
use super::json::{self, Object};
use super::table::Table;
use super::{Reply, Style, field, header_fields, id_field, line, quoted_field};

/// The status of each endpoint that answered.
pub(crate) struct Statuses(pub(crate) Vec<(String, StatusResponse)>);

impl Reply for Statuses {
    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_table().lines().as_bytes());
    }

    fn fields(&self, style: Style, out: &mut Vec<u8>) {
        for (endpoint, status) in &self.0 {
            status_fields(out, endpoint, status, style);
            line(out, "");
        }
    }

    fn json(&self, _: Style) -> String {
        endpoint_list(self.0.iter().map(|(endpoint, status)| (endpoint, "Status", status_json(status))))
    }

    fn table(&self) -> Option<Table> {
        Some(self.as_table())
    }
}

impl Statuses {
    fn as_table(&self) -> Table {
        Table {
            header: vec![
                "endpoint",
                "ID",
                "version",
                "storage version",
                "db size",
                "in use",
                "percentage not in use",
                "quota",
                "is leader",
                "is learner",
                "raft term",
                "raft index",
                "raft applied index",
                "errors",
                "downgrade target version",
                "downgrade enabled",
            ],
            rows: self.0.iter().map(|(endpoint, status)| status_row(endpoint, status)).collect(),
        }
    }
}

fn status_row(endpoint: &str, status: &StatusResponse) -> Vec<String> {
    let member_id = status.header.map_or(0, |header| header.member_id);
    let downgrade = status.downgrade_info.clone().unwrap_or_default();
    // A store that is empty has nothing that is not in use.
    let used_percent = (status.db_size_in_use * 100).checked_div(status.db_size).unwrap_or(100);
    vec![
        endpoint.to_owned(),
        format!("{member_id:x}"),
        status.version.clone(),
        status.storage_version.clone(),
        go_text::size(status.db_size.unsigned_abs()),
        go_text::size(status.db_size_in_use.unsigned_abs()),
        format!("{}%", 100 - used_percent),
        go_text::size(status.db_size_quota.unsigned_abs()),
        (status.leader == member_id).to_string(),
        status.is_learner.to_string(),
        status.raft_term.to_string(),
        status.raft_index.to_string(),
        status.raft_applied_index.to_string(),
        status.errors.join(", "),
        downgrade.target_version,
        downgrade.enabled.to_string(),
    ]
}

fn status_fields(out: &mut Vec<u8>, endpoint: &str, status: &StatusResponse, style: Style) {
    let downgrade = status.downgrade_info.clone().unwrap_or_default();
    header_fields(out, status.header.as_ref(), style);
    quoted_field(out, "Version", status.version.as_bytes());
    quoted_field(out, "StorageVersion", status.storage_version.as_bytes());
    field(out, "DBSize", status.db_size);
    field(out, "DBSizeInUse", status.db_size_in_use);
    field(out, "DBSizeQuota", status.db_size_quota);
    field(out, "Leader", status.leader);
    field(out, "IsLearner", status.is_learner);
    field(out, "RaftIndex", status.raft_index);
    field(out, "RaftTerm", status.raft_term);
    field(out, "RaftAppliedIndex", status.raft_applied_index);
    field(out, "Errors", format_args!("[{}]", status.errors.join(" ")));
    quoted_field(out, "Endpoint", endpoint.as_bytes());
    quoted_field(out, "DowngradeTargetVersion", downgrade.target_version.as_bytes());
    field(out, "DowngradeEnabled", downgrade.enabled);
}

fn status_json(status: &StatusResponse) -> String {
    let downgrade = status.downgrade_info.as_ref().map(|downgrade| {
        Object::new()
            .flag("enabled", downgrade.enabled)
            .text("targetVersion", &downgrade.target_version)
            .end()
    });
    json::header(status.header.as_ref())
        .text("version", &status.version)
        .number("dbSize", status.db_size)
        .number("leader", status.leader)
        .number("raftIndex", status.raft_index)
        .number("raftTerm", status.raft_term)
        .number("raftAppliedIndex", status.raft_applied_index)
        .list("errors", status.errors.iter().map(|error| json::text(error)).collect())
        .number("dbSizeInUse", status.db_size_in_use)
        .flag("isLearner", status.is_learner)
        .text("storageVersion", &status.storage_version)
        .number("dbSizeQuota", status.db_size_quota)
        .optional("downgradeInfo", downgrade)
        .end()
}

/// An array of `{"Endpoint": .., name: value}`.
fn endpoint_list<'a>(items: impl Iterator<Item = (&'a String, &'static str, String)>) -> String {
    let objects: Vec<String> = items
        .map(|(endpoint, name, value)| {
            Object::new().raw("Endpoint", &json::text(endpoint)).raw(name, &value).end()
        })
        .collect();
    // What Go prints for a list that was never made.
    if objects.is_empty() { "null".to_owned() } else { json::list(objects) }
}

/// Whether an endpoint can commit a proposal.
pub(crate) struct Health {
    pub(crate) endpoint: String,
    /// How long it took, in Go's notation; empty when it could not be asked.
    pub(crate) took: String,
    /// Empty: healthy.
    pub(crate) error: String,
}

/// The health of each endpoint. Unhealthy ones go to standard error in the simple form: see [`Health::complaint`].
pub(crate) struct Healths(pub(crate) Vec<Health>);

impl Health {
    /// The line for an endpoint that is not healthy.
    pub(crate) fn complaint(&self) -> Option<String> {
        (!self.error.is_empty())
            .then(|| format!("{} is unhealthy: failed to commit proposal: {}", self.endpoint, self.error))
    }
}

impl Reply for Healths {
    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        for health in self.0.iter().filter(|health| health.error.is_empty()) {
            line(
                out,
                format_args!(
                    "{} is healthy: successfully committed proposal: took = {}",
                    health.endpoint, health.took
                ),
            );
        }
    }

    fn fields(&self, _: Style, out: &mut Vec<u8>) {
        for health in &self.0 {
            quoted_field(out, "Endpoint", health.endpoint.as_bytes());
            field(out, "Health", health.error.is_empty());
            field(out, "Took", &health.took);
            field(out, "Error", &health.error);
            line(out, "");
        }
    }

    fn json(&self, _: Style) -> String {
        let objects = self.0.iter().map(|health| {
            Object::new()
                .raw("endpoint", &json::text(&health.endpoint))
                .raw("health", if health.error.is_empty() { "true" } else { "false" })
                .raw("took", &json::text(&health.took))
                .text("error", &health.error)
                .end()
        });
        json::list(objects.collect())
    }

    fn table(&self) -> Option<Table> {
        let row = |health: &Health| {
            let healthy = health.error.is_empty().to_string();
            vec![health.endpoint.clone(), healthy, health.took.clone(), health.error.clone()]
        };
        Some(Table {
            header: vec!["endpoint", "health", "took", "error"],
            rows: self.0.iter().map(row).collect(),
        })
    }
}

/// The hash of each endpoint that answered.
pub(crate) struct Hashes(pub(crate) Vec<(String, HashKvResponse)>);

impl Reply for Hashes {
    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_table().lines().as_bytes());
    }

    fn fields(&self, style: Style, out: &mut Vec<u8>) {
        for (endpoint, hash) in &self.0 {
            header_fields(out, hash.header.as_ref(), style);
            quoted_field(out, "Endpoint", endpoint.as_bytes());
            field(out, "Hash", hash.hash);
            field(out, "HashRevision", hash.hash_revision);
            line(out, "");
        }
    }

    fn json(&self, _: Style) -> String {
        let hash_json = |hash: &HashKvResponse| {
            json::header(hash.header.as_ref())
                .number("hash", hash.hash)
                .number("compact_revision", hash.compact_revision)
                .number("hash_revision", hash.hash_revision)
                .end()
        };
        endpoint_list(self.0.iter().map(|(endpoint, hash)| (endpoint, "HashKV", hash_json(hash))))
    }

    fn table(&self) -> Option<Table> {
        Some(self.as_table())
    }
}

impl Hashes {
    fn as_table(&self) -> Table {
        let row = |(endpoint, hash): &(String, HashKvResponse)| {
            vec![endpoint.clone(), hash.hash.to_string(), hash.hash_revision.to_string()]
        };
        Table { header: vec!["endpoint", "hash", "hash_revision"], rows: self.0.iter().map(row).collect() }
    }
}

impl Reply for MemberListResponse {
    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }

    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        out.extend_from_slice(member_table(self).lines().as_bytes());
    }

    fn fields(&self, style: Style, out: &mut Vec<u8>) {
        header_fields(out, self.header.as_ref(), style);
        for member in &self.members {
            id_field(out, "ID", member.id, style);
            quoted_field(out, "Name", member.name.as_bytes());
            member.peer_ur_ls.iter().for_each(|url| quoted_field(out, "PeerURL", url.as_bytes()));
            member.client_ur_ls.iter().for_each(|url| quoted_field(out, "ClientURL", url.as_bytes()));
            field(out, "IsLearner", member.is_learner);
            line(out, "");
        }
    }

    fn json(&self, style: Style) -> String {
        match style.hex {
            true => hex_list_json(self),
            false => members_json(self.header.as_ref(), None, &self.members),
        }
    }

    fn table(&self) -> Option<Table> {
        Some(member_table(self))
    }
}

fn member_table(list: &MemberListResponse) -> Table {
    let row = |member: &Member| {
        vec![
            format!("{:x}", member.id),
            if member.name.is_empty() { "unstarted" } else { "started" }.to_owned(),
            member.name.clone(),
            member.peer_ur_ls.join(","),
            member.client_ur_ls.join(","),
            member.is_learner.to_string(),
        ]
    };
    Table {
        header: vec!["ID", "Status", "Name", "Peer Addrs", "Client Addrs", "Is Learner"],
        rows: list.members.iter().map(row).collect(),
    }
}

fn urls(urls: &[String]) -> Vec<String> {
    urls.iter().map(|url| json::text(url)).collect()
}

fn member_json(member: &Member) -> String {
    Object::new()
        .number("ID", member.id)
        .text("name", &member.name)
        .list("peerURLs", urls(&member.peer_ur_ls))
        .list("clientURLs", urls(&member.client_ur_ls))
        .flag("isLearner", member.is_learner)
        .end()
}

/// Members below their header; `new` is the one that was added.
fn members_json(header: Option<&ResponseHeader>, new: Option<&Member>, members: &[Member]) -> String {
    let members = members.iter().map(member_json).collect();
    json::header(header).optional("member", new.map(member_json)).list("members", members).end()
}

/// The list with ids as hexadecimal strings. `etcdctl` has that form of it alone.
fn hex_list_json(list: &MemberListResponse) -> String {
    let header = list.header.unwrap_or_default();
    let header = Object::new()
        .raw("cluster_id", &hex(header.cluster_id))
        .raw("member_id", &hex(header.member_id))
        .raw("raft_term", &header.raft_term.to_string())
        .end();
    let members = list.members.iter().map(hex_member_json).collect();
    Object::new().raw("header", &header).list("members", members).end()
}

fn hex_member_json(member: &Member) -> String {
    Object::new()
        .raw("ID", &hex(member.id))
        .raw("name", &json::text(&member.name))
        .raw("peerURLs", &json::list(urls(&member.peer_ur_ls)))
        .raw("clientURLs", &json::list(urls(&member.client_ur_ls)))
        .end()
}

fn hex(id: u64) -> String {
    format!("\"{id:x}\"")
}

/// A change of the members.
pub(crate) struct MembersChanged {
    /// What happened to whom, in words, up to the cluster's id.
    pub(crate) happened: String,
    pub(crate) header: Option<ResponseHeader>,
    /// The member that was added, and the lines with which it is to be started.
    pub(crate) added: Option<(Member, Vec<String>)>,
    /// All members, afterwards.
    pub(crate) members: Vec<Member>,
}

impl Reply for MembersChanged {
    fn protobuf(&self) -> Option<Vec<u8>> {
        let (header, members) = (self.header, self.members.clone());
        Some(match &self.added {
            Some((member, _)) => {
                let member = Some(member.clone());
                MemberAddResponse { header, member, members }.encode_to_vec()
            }
            None => MemberListResponse { header, members }.encode_to_vec(),
        })
    }

    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        let cluster_id = self.header.unwrap_or_default().cluster_id;
        line(out, format_args!("{} cluster {cluster_id:16x}", self.happened));
        for text in self.added.iter().flat_map(|(_, lines)| lines) {
            line(out, text);
        }
    }

    fn fields(&self, style: Style, out: &mut Vec<u8>) {
        let list = MemberListResponse { header: self.header, members: self.members.clone() };
        list.fields(style, out);
    }

    fn json(&self, _: Style) -> String {
        let added = self.added.as_ref().map(|(member, _)| member);
        members_json(self.header.as_ref(), added, &self.members)
    }
}

/// A leadership that moved.
pub(crate) struct Moved {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) response: MoveLeaderResponse,
}

impl Reply for Moved {
    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.response.encode_to_vec())
    }

    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        line(out, format_args!("Leadership transferred from {:x} to {:x}", self.from, self.to));
    }

    fn fields(&self, style: Style, out: &mut Vec<u8>) {
        header_fields(out, self.response.header.as_ref(), style);
    }

    fn json(&self, _: Style) -> String {
        json::header(self.response.header.as_ref()).end()
    }
}

/// An alarm as protobuf's text form has it.
fn alarm_text(alarm: &AlarmMember) -> String {
    format!("memberID:{} alarm:{} ", alarm.member_id, alarm.alarm().as_str_name())
}

impl Reply for AlarmResponse {
    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.encode_to_vec())
    }

    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        self.alarms.iter().for_each(|alarm| line(out, alarm_text(alarm)));
    }

    fn fields(&self, style: Style, out: &mut Vec<u8>) {
        header_fields(out, self.header.as_ref(), style);
        for alarm in &self.alarms {
            id_field(out, "MemberID", alarm.member_id, style);
            field(out, "AlarmType", alarm.alarm().as_str_name());
            line(out, "");
        }
    }

    fn json(&self, _: Style) -> String {
        let alarm = |alarm: &AlarmMember| {
            Object::new().number("memberID", alarm.member_id).number("alarm", alarm.alarm).end()
        };
        let object = match &self.header {
            Some(header) => json::header(Some(header)),
            None => Object::new(),
        };
        object.list("alarms", self.alarms.iter().map(alarm).collect()).end()
    }
}

/// A downgrade that was taken, or could be.
pub(crate) struct Downgraded {
    /// The subcommand.
    pub(crate) name: &'static str,
    pub(crate) response: DowngradeResponse,
}

impl Reply for Downgraded {
    fn protobuf(&self) -> Option<Vec<u8>> {
        Some(self.response.encode_to_vec())
    }

    fn simple(&self, _: Style, out: &mut Vec<u8>) {
        let version = &self.response.version;
        line(out, format_args!("Downgrade {} success, cluster version {version}", self.name));
    }

    fn fields(&self, style: Style, out: &mut Vec<u8>) {
        header_fields(out, self.response.header.as_ref(), style);
        quoted_field(out, "Version", self.response.version.as_bytes());
    }

    fn json(&self, _: Style) -> String {
        json::header(self.response.header.as_ref()).text("version", &self.response.version).end()
    }
}
