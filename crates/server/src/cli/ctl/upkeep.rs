//! `alarm`, `defrag` and `downgrade`: commands for operators.

use std::time::Instant;

use clap::Subcommand;
use hadron_proto::etcdserverpb as pb;
use pb::alarm_request::AlarmAction;
use pb::downgrade_request::DowngradeAction;
use pb::maintenance_client::MaintenanceClient;

use super::endpoint::Scope;
use super::failure::Failure;
use super::print::cluster::Downgraded;
use super::{Global, Session, go_text};
use crate::client::{CallError, Client};

/// Subcommands of `alarm`.
#[derive(Debug, Subcommand)]
pub(crate) enum Alarm {
    /// List all alarms
    List {
        #[arg(hide = true)]
        arguments: Vec<String>,
    },
    /// Disarm all alarms
    Disarm {
        #[arg(hide = true)]
        arguments: Vec<String>,
    },
}

impl Alarm {
    /// Runs the command.
    pub(super) async fn run(self, global: Global) -> Result<(), Failure> {
        let (name, arguments) = match &self {
            Alarm::List { arguments } => ("list", arguments),
            Alarm::Disarm { arguments } => ("disarm", arguments),
        };
        if !arguments.is_empty() {
            return Err(Failure::arguments(format_args!("alarm {name} command accepts no arguments")));
        }
        let session = Session::new(global)?;
        let raised = alarms(&session.client, AlarmAction::Get, pb::AlarmMember::default()).await?;
        if matches!(self, Alarm::List { .. }) {
            return session.printer.print(&raised);
        }
        let mut disarmed = pb::AlarmResponse::default();
        for alarm in raised.alarms {
            disarmed.alarms.extend(alarms(&session.client, AlarmAction::Deactivate, alarm).await?.alarms);
        }
        session.printer.print(&disarmed)
    }
}

async fn alarms(
    client: &Client,
    action: AlarmAction,
    alarm: pb::AlarmMember,
) -> Result<pb::AlarmResponse, CallError> {
    let pb::AlarmMember { member_id, alarm } = alarm;
    let request = pb::AlarmRequest { action: action as i32, member_id, alarm };
    client.write(async |channel| MaintenanceClient::new(channel).alarm(request).await).await
}

/// Arguments of `defrag`.
#[derive(Debug, clap::Args)]
pub(crate) struct Defrag {
    #[command(flatten)]
    scope: Scope,
}

impl Defrag {
    /// Runs the command: each endpoint on its own.
    pub(super) async fn run(self, global: Global) -> Result<(), Failure> {
        let session = Session::new(global)?;
        let mut failed = false;
        for endpoint in self.scope.endpoints(&session.client).await? {
            let client = session.client.only(&endpoint);
            let began = Instant::now();
            let call =
                async |channel| MaintenanceClient::new(channel).defragment(pb::DefragmentRequest {}).await;
            let result = client.write(call).await;
            let took = go_text::duration(began.elapsed());
            match result {
                Ok(_) => println!("Finished defragmenting etcd member[{endpoint}]. took {took}"),
                Err(error) => {
                    failed = true;
                    eprintln!("Failed to defragment etcd member[{endpoint}]. took {took}. ({error})");
                }
            }
        }
        if failed { Err(Failure::silent()) } else { Ok(()) }
    }
}

/// Subcommands of `downgrade`.
#[derive(Debug, Subcommand)]
pub(crate) enum Downgrade {
    /// Check whether the cluster could be downgraded
    Validate {
        /// Version to downgrade to
        #[arg(value_name = "TARGET_VERSION")]
        arguments: Vec<String>,
    },
    /// Begin to downgrade
    Enable {
        /// Version to downgrade to
        #[arg(value_name = "TARGET_VERSION")]
        arguments: Vec<String>,
    },
    /// Do not downgrade after all
    Cancel,
}

impl Downgrade {
    /// Runs the command.
    pub(super) async fn run(self, global: Global) -> Result<(), Failure> {
        let (name, action, version) = match self {
            Downgrade::Validate { arguments } => ("validate", DowngradeAction::Validate, target(arguments)?),
            Downgrade::Enable { arguments } => ("enable", DowngradeAction::Enable, target(arguments)?),
            Downgrade::Cancel => ("cancel", DowngradeAction::Cancel, String::new()),
        };
        let session = Session::new(global)?;
        let request = pb::DowngradeRequest { action: action as i32, version };
        let call = async |channel| MaintenanceClient::new(channel).downgrade(request).await;
        let response = session.client.write(call).await?;
        session.printer.print(&Downgraded { name, response })
    }
}

fn target(arguments: Vec<String>) -> Result<String, Failure> {
    let mut arguments = arguments.into_iter();
    let version = arguments.next().ok_or_else(|| Failure::arguments("TARGET_VERSION not provided"))?;
    if arguments.next().is_some() {
        return Err(Failure::arguments("too many arguments"));
    }
    if version.is_empty() {
        return Err(Failure::arguments("target version not provided"));
    }
    Ok(version)
}
