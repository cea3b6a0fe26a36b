//! `user`, `role` and `auth`: who there is, and who may do what.

use clap::{Args, Subcommand};
use hadron_proto::authpb::permission::Type;
use hadron_proto::authpb::{Permission, UserAddOptions};
use hadron_proto::etcdserverpb as pb;
use pb::auth_client::AuthClient;

use super::failure::Failure;
use super::login::new_password;
use super::print::auth::{Changed, Names, OfRole, OfUser};
use super::{Global, Session, kv};
use crate::client::Connection;
use crate::client::{CallError, Client};

/// Arguments that must be as many as the command wants.
#[derive(Debug, Args)]
pub(crate) struct Words {
    #[arg(hide = true)]
    words: Vec<String>,
}

impl Words {
    fn exactly<const COUNT: usize>(self, otherwise: &str) -> Result<[String; COUNT], Failure> {
        self.words.try_into().map_err(|_| Failure::arguments(otherwise))
    }
}

/// Subcommands of `user`.
#[derive(Debug, Subcommand)]
pub(crate) enum User {
    /// Add a user: NAME or NAME:PASSWORD
    Add(AddUser),
    /// Delete a user: NAME
    Delete(Words),
    /// Show a user's roles: NAME
    Get {
        #[command(flatten)]
        words: Words,
        /// Show the permissions of the roles too
        #[arg(long)]
        detail: bool,
    },
    /// List all users
    List(Words),
    /// Give a user another password: NAME
    Passwd {
        #[command(flatten)]
        words: Words,
        /// Ask at the terminal, rather than read standard input
        #[arg(long, default_value = "true", default_missing_value = "true", num_args = 0..=1, require_equals = true, value_parser = clap::builder::BoolishValueParser::new(), action = clap::ArgAction::Set, value_name = "BOOL")]
        interactive: bool,
    },
    /// Give a role to a user: USER ROLE
    GrantRole(Words),
    /// Take a role from a user: USER ROLE
    RevokeRole(Words),
}

/// Arguments of `user add`.
#[derive(Debug, Args)]
pub(crate) struct AddUser {
    #[command(flatten)]
    words: Words,
    /// Ask at the terminal, rather than read standard input
    #[arg(long, default_value = "true", default_missing_value = "true", num_args = 0..=1, require_equals = true, value_parser = clap::builder::BoolishValueParser::new(), action = clap::ArgAction::Set, value_name = "BOOL")]
    interactive: bool,
    /// The password
    #[arg(long, default_value = "")]
    new_user_password: String,
    /// No password: only a certificate can name the user
    #[arg(long)]
    no_password: bool,
}

fn auth(channel: Connection) -> AuthClient<Connection> {
    AuthClient::new(channel)
}

impl User {
    /// Runs the command.
    pub(super) async fn run(self, global: Global) -> Result<(), Failure> {
        match self {
            User::Add(add) => add.run(global).await,
            User::Delete(words) => {
                let [name] = words.exactly("user delete command requires user name as its argument")?;
                let session = Session::new(global)?;
                let request = pb::AuthUserDeleteRequest { name: name.clone() };
                let reply = session.client.write(async |channel| auth(channel).user_delete(request).await);
                session
                    .printer
                    .print(&Changed { text: format!("User {name} deleted"), header: reply.await?.header })
            }
            User::Get { words, detail } => get_user(words, detail, global).await,
            User::List(words) => {
                let [] = words.exactly("user list command requires no arguments")?;
                let session = Session::new(global)?;
                let call = async |channel| auth(channel).user_list(pb::AuthUserListRequest {}).await;
                let pb::AuthUserListResponse { header, users } = session.client.read(call).await?;
                session.printer.print(&Names { kind: "Users", header, names: users })
            }
            User::Passwd { words, interactive } => {
                let [name] = words.exactly("user passwd command requires user name as its argument")?;
                let password = new_password(&name, interactive)?;
                let session = Session::new(global)?;
                let request =
                    pb::AuthUserChangePasswordRequest { name, password, hashed_password: String::new() };
                let call = async |channel| auth(channel).user_change_password(request).await;
                let header = session.client.write(call).await?.header;
                session.printer.print(&Changed { text: "Password updated".into(), header })
            }
            User::GrantRole(words) => {
                let otherwise = "user grant command requires user name and role name as its argument";
                let [user, role] = words.exactly(otherwise)?;
                let session = Session::new(global)?;
                let text = format!("Role {role} is granted to user {user}");
                let request = pb::AuthUserGrantRoleRequest { user, role };
                let call = async |channel| auth(channel).user_grant_role(request).await;
                session.printer.print(&Changed { text, header: session.client.write(call).await?.header })
            }
            User::RevokeRole(words) => {
                let otherwise = "user revoke-role requires user name and role name as its argument";
                let [name, role] = words.exactly(otherwise)?;
                let session = Session::new(global)?;
                let text = format!("Role {role} is revoked from user {name}");
                let request = pb::AuthUserRevokeRoleRequest { name, role };
                let call = async |channel| auth(channel).user_revoke_role(request).await;
                session.printer.print(&Changed { text, header: session.client.write(call).await?.header })
            }
        }
    }
}

impl AddUser {
    async fn run(self, global: Global) -> Result<(), Failure> {
        let AddUser { words, interactive, new_user_password, no_password } = self;
        let [word] = words.exactly("user add command requires user name as its argument")?;
        let (name, password) = match word.split_once(':') {
            _ if no_password => (word, String::new()),
            _ if !new_user_password.is_empty() => (word, new_user_password),
            Some(("", _)) => return Err(Failure::arguments("empty user name is not allowed")),
            Some((name, password)) => (name.to_owned(), password.to_owned()),
            None => {
                let password = new_password(&word, interactive)?;
                (word, password)
            }
        };
        let session = Session::new(global)?;
        let text = format!("User {name} created");
        let options = Some(UserAddOptions { no_password });
        let request = pb::AuthUserAddRequest { name, password, options, hashed_password: String::new() };
        let call = async |channel| auth(channel).user_add(request).await;
        session.printer.print(&Changed { text, header: session.client.write(call).await?.header })
    }
}

async fn get_user(words: Words, detail: bool, global: Global) -> Result<(), Failure> {
    let [name] = words.exactly("user get command requires user name as its argument")?;
    let session = Session::new(global)?;
    let request = pb::AuthUserGetRequest { name: name.clone() };
    let reply = session.client.read(async |channel| auth(channel).user_get(request.clone()).await).await?;
    if !detail {
        return session.printer.print(&OfUser { name, reply });
    }
    println!("User: {name}");
    for name in reply.roles {
        println!();
        let reply = role(&session.client, name.clone()).await?;
        session.printer.print(&OfRole { name, reply })?;
    }
    Ok(())
}

async fn role(client: &Client, role: String) -> Result<pb::AuthRoleGetResponse, CallError> {
    let request = pb::AuthRoleGetRequest { role };
    client.read(async |channel| auth(channel).role_get(request.clone()).await).await
}

/// Subcommands of `role`.
#[derive(Debug, Subcommand)]
pub(crate) enum Role {
    /// Add a role: NAME
    Add(Words),
    /// Delete a role: NAME
    Delete(Words),
    /// Show a role's permissions: NAME
    Get(Words),
    /// List all roles
    List(Words),
    /// Let a role read, write or readwrite a key or a range: ROLE KIND KEY [END]
    GrantPermission(KeyWords),
    /// Take a permission from a role: ROLE KEY [END]
    RevokePermission(KeyWords),
}

/// Arguments that end with a key or a range.
#[derive(Debug, Args)]
pub(crate) struct KeyWords {
    #[command(flatten)]
    words: Words,
    /// All keys with this prefix
    #[arg(long, default_missing_value = "true", num_args = 0..=1, require_equals = true, default_value = "false", value_parser = clap::builder::BoolishValueParser::new(), action = clap::ArgAction::Set, value_name = "BOOL")]
    prefix: bool,
    /// All keys from this one on
    #[arg(long, default_missing_value = "true", num_args = 0..=1, require_equals = true, default_value = "false", value_parser = clap::builder::BoolishValueParser::new(), action = clap::ArgAction::Set, value_name = "BOOL")]
    from_key: bool,
}

impl Role {
    /// Runs the command.
    pub(super) async fn run(self, global: Global) -> Result<(), Failure> {
        match self {
            Role::Add(words) => {
                let [name] = words.exactly("role add command requires role name as its argument")?;
                let session = Session::new(global)?;
                let text = format!("Role {name} created");
                let request = pb::AuthRoleAddRequest { name };
                let call = async |channel| auth(channel).role_add(request).await;
                session.printer.print(&Changed { text, header: session.client.write(call).await?.header })
            }
            Role::Delete(words) => {
                let [role] = words.exactly("role delete command requires role name as its argument")?;
                let session = Session::new(global)?;
                let text = format!("Role {role} deleted");
                let request = pb::AuthRoleDeleteRequest { role };
                let call = async |channel| auth(channel).role_delete(request).await;
                session.printer.print(&Changed { text, header: session.client.write(call).await?.header })
            }
            Role::Get(words) => {
                let [name] = words.exactly("role get command requires role name as its argument")?;
                let session = Session::new(global)?;
                let reply = role(&session.client, name.clone()).await?;
                session.printer.print(&OfRole { name, reply })
            }
            Role::List(words) => {
                let [] = words.exactly("role list command requires no arguments")?;
                let session = Session::new(global)?;
                let call = async |channel| auth(channel).role_list(pb::AuthRoleListRequest {}).await;
                let pb::AuthRoleListResponse { header, roles } = session.client.read(call).await?;
                session.printer.print(&Names { kind: "Roles", header, names: roles })
            }
            Role::GrantPermission(words) => words.grant(global).await,
            Role::RevokePermission(words) => words.revoke(global).await,
        }
    }
}

impl KeyWords {
    async fn grant(self, global: Global) -> Result<(), Failure> {
        let [name, kind, keys @ ..] = self.words.words.as_slice() else { return Err(grant_needs()) };
        if keys.is_empty() {
            return Err(grant_needs());
        }
        let kind = match kind.to_uppercase().as_str() {
            "READ" => Type::Read,
            "WRITE" => Type::Write,
            "READWRITE" => Type::Readwrite,
            _ => return Err(Failure::arguments(format_args!("invalid permission type: {kind}"))),
        };
        let (key, range_end) = self.range(keys)?;
        let session = Session::new(global)?;
        let perm = Permission { perm_type: kind as i32, key: key.into(), range_end: range_end.into() };
        let request = pb::AuthRoleGrantPermissionRequest { name: name.clone(), perm: Some(perm) };
        let call = async |channel| auth(channel).role_grant_permission(request).await;
        let header = session.client.write(call).await?.header;
        session.printer.print(&Changed { text: format!("Role {name} updated"), header })
    }

    async fn revoke(self, global: Global) -> Result<(), Failure> {
        let otherwise = "role revoke-permission command requires role name and key [endkey] as its argument";
        let [role, keys @ ..] = self.words.words.as_slice() else {
            return Err(Failure::arguments(otherwise));
        };
        let Some(given) = keys.first() else { return Err(Failure::arguments(otherwise)) };
        let (key, range_end) = self.range(keys)?;
        let end = String::from_utf8_lossy(&range_end).into_owned();
        let what = match range_end.as_slice() {
            [] => format!("key {given}"),
            [0] => format!("range [{given}, <open ended>"),
            _ => format!("range [{given}, {end})"),
        };
        let session = Session::new(global)?;
        let request = pb::AuthRoleRevokePermissionRequest {
            role: role.clone(),
            key: key.into(),
            range_end: range_end.into(),
        };
        let call = async |channel| auth(channel).role_revoke_permission(request).await;
        let header = session.client.write(call).await?.header;
        let text = format!("Permission of {what} is revoked from role {role}");
        session.printer.print(&Changed { text, header })
    }

    /// The key and the end of the range.
    fn range(&self, keys: &[String]) -> Result<(Vec<u8>, Vec<u8>), Failure> {
        let both = "--from-key and --prefix flags are mutually exclusive";
        let end = match keys {
            [_] if self.prefix && self.from_key => return Err(Failure::arguments(both)),
            // An empty key stands for all keys with the flags, and for the first one without.
            [key, ..] if key.is_empty() => {
                let is_range = self.prefix || self.from_key;
                return Ok((vec![0], if is_range { vec![0] } else { Vec::new() }));
            }
            [key] if self.prefix => kv::prefix_end(key.as_bytes()).to_vec(),
            [_] if self.from_key => vec![0],
            [_, _, ..] if self.prefix => {
                return Err(Failure::arguments("unexpected endkey argument with --prefix flag"));
            }
            [_, _, ..] if self.from_key => {
                return Err(Failure::arguments("unexpected endkey argument with --from-key flag"));
            }
            [_, end, ..] => end.clone().into_bytes(),
            _ => Vec::new(),
        };
        Ok((keys.first().cloned().unwrap_or_default().into_bytes(), end))
    }
}

fn grant_needs() -> Failure {
    Failure::arguments(
        "role grant command requires role name, permission type, and key [endkey] as its argument",
    )
}

/// Subcommands of `auth`.
#[derive(Debug, Subcommand)]
pub(crate) enum Auth {
    /// Demand users from now on; `root` gets its role if it lacks it
    Enable(Words),
    /// Let everybody do everything again
    Disable(Words),
    /// Say whether users are demanded
    Status(Words),
}

impl Auth {
    /// Runs the command.
    pub(super) async fn run(self, global: Global) -> Result<(), Failure> {
        let (name, words) = match &self {
            Auth::Enable(words) => ("enable", words),
            Auth::Disable(words) => ("disable", words),
            Auth::Status(words) => ("status", words),
        };
        if !words.words.is_empty() {
            return Err(Failure::arguments(format_args!(
                "auth {name} command does not accept any arguments"
            )));
        }
        let session = Session::new(global)?;
        match self {
            Auth::Enable(_) => {
                enable(&session.client).await?;
                println!("Authentication Enabled");
            }
            Auth::Disable(_) => {
                let call = async |channel| auth(channel).auth_disable(pb::AuthDisableRequest {}).await;
                session.client.write(call).await?;
                println!("Authentication Disabled");
            }
            Auth::Status(_) => {
                let call = async |channel| auth(channel).auth_status(pb::AuthStatusRequest {}).await;
                session.printer.print(&session.client.read(call).await?)?;
            }
        }
        Ok(())
    }
}

async fn enable(client: &Client) -> Result<(), CallError> {
    loop {
        let call = async |channel| auth(channel).auth_enable(pb::AuthEnableRequest {}).await;
        match client.write(call).await {
            Ok(_) => return Ok(()),
            Err(CallError::Refused(status))
                if status.message() == "etcdserver: root user does not have root role" => {}
            Err(error) => return Err(error),
        }
        let root = || "root".to_owned();
        let add = pb::AuthRoleAddRequest { name: root() };
        client.write(async |channel| auth(channel).role_add(add).await).await?;
        let grant = pb::AuthUserGrantRoleRequest { user: root(), role: root() };
        client.write(async |channel| auth(channel).user_grant_role(grant).await).await?;
    }
}
