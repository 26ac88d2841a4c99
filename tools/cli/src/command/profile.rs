//! `thalweg profile`: who somebody is.

use std::time::Duration;

use clap::Subcommand;
use thalweg_client::ProfileText;

use crate::connect::{ConnectArgs, block_on};
use crate::failure::Failure;
use crate::lines;
use crate::plain::{print, say, table};

/// How long to wait for a node that went away.
const PATIENCE: Duration = Duration::from_secs(30);

/// Show who somebody is, or say who you are
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  thalweg profile set --display \"Ada Lovelace\" --status \"counting\"
  thalweg profile show ada
  thalweg profile show --json";

#[derive(Debug, Subcommand)]
enum Command {
    /// Show who somebody is, and whether they are there
    Show {
        /// Who [default: you]
        user: Option<String>,
        /// One JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Say who you are; what is not given stays
    #[command(group = clap::ArgGroup::new("what").args(["display", "about", "status"]).required(true).multiple(true))]
    Set {
        /// The name to be shown under
        #[arg(long, value_name = "NAME")]
        display: Option<String>,
        /// About you
        #[arg(long, value_name = "TEXT")]
        about: Option<String>,
        /// What you are doing
        #[arg(long, value_name = "TEXT")]
        status: Option<String>,
        #[command(flatten)]
        connect: ConnectArgs,
    },
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    crate::connect::log_to_stderr(false, "warn");
    match args.command {
        Command::Show { user, json, connect } => block_on(show(connect, user, json)),
        Command::Set { display, about, status, connect } => block_on(set(connect, display, about, status)),
    }
}

async fn show(connect: ConnectArgs, user: Option<String>, json: bool) -> Result<(), Failure> {
    let client = connect.connect("profile", PATIENCE).await?;
    let user = user.unwrap_or_else(|| client.welcome().user.to_string());
    let report = client.profile(user).await?;
    client.close().await;
    if json {
        return print(&lines::profile(&report));
    }
    let said = |what: &str, value: &str| vec![what.to_owned(), value.to_owned()];
    let seen = lines::when(report.seen_us).unwrap_or_else(|| "-".into());
    let ProfileText { display, about, status } = &report.profile;
    let rows = [
        said("name", display),
        said("about", about),
        said("status", status),
        said("state", report.state.as_str()),
        said("last seen", &seen),
    ];
    table(&["user", report.user.as_str()], &rows)
}

async fn set(
    connect: ConnectArgs,
    display: Option<String>,
    about: Option<String>,
    status: Option<String>,
) -> Result<(), Failure> {
    let client = connect.connect("profile", PATIENCE).await?;
    let before = match (&display, &about, &status) {
        (Some(_), Some(_), Some(_)) => ProfileText::default(),
        _ => client.profile(client.welcome().user).await?.profile,
    };
    let profile = ProfileText {
        display: display.unwrap_or(before.display),
        about: about.unwrap_or(before.about),
        status: status.unwrap_or(before.status),
    };
    client.set_profile(profile).await?;
    client.close().await;
    say("profile changed")
}
