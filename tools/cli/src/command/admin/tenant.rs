//! `thalweg admin delete-tenant`: everything a tenant has, gone.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use thalweg_client::Name;
use thalweg_node::gate::{Action, Claims, Permission};

use super::PATIENCE;
use super::token::{local_user, mint, parse_name};
use crate::connect::{ConnectArgs, block_on};
use crate::failure::{Failure, exit, output};

/// How long the token lives with which the node is told.
const TOKEN_TTL: Duration = Duration::from_secs(300);

/// Delete all channels and generations of a tenant
///
/// Signs a token for that tenant with the key of the data directory, so that it works only where the node's keys are. What is
/// in backups stays there.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Whose data is deleted
    #[arg(value_name = "TENANT", value_parser = parse_name)]
    tenant: Name,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    crate::connect::log_to_stderr(false, "warn");
    if !args.yes && !confirmed(&args.tenant)? {
        return Err(Failure::new(exit::INCOMPLETE, "nothing was deleted"));
    }
    let everything = |action| Permission { action, pattern: "*".into() };
    let claims = Claims {
        tenant: args.tenant.clone(),
        user: local_user(),
        allow: [Action::Read, Action::Write, Action::Ask, Action::Admin].map(everything).into(),
        ttl: TOKEN_TTL,
    };
    let token = mint(Some(args.connect.data_directory()), &claims)?;
    let connect = ConnectArgs { token: Some(token), ..args.connect };
    let channels = block_on(async {
        let client = connect.connect("admin", PATIENCE).await?;
        let channels = client.delete_tenant().await?;
        client.close().await;
        Ok(channels)
    })?;
    let plural = if channels == 1 { "" } else { "s" };
    writeln!(std::io::stdout(), "{}: {channels} channel{plural} deleted", args.tenant).map_err(|error| output(&error))
}

/// Asks the person at the terminal to write the name.
fn confirmed(tenant: &Name) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage("this cannot be undone: give --yes where nobody can be asked"));
    }
    eprint!("All channels and generations of {tenant} will be deleted for good. Write its name to go on: ");
    // Nothing to do about a terminal that went away: then nothing is read either.
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    let read = std::io::stdin().read_line(&mut answer);
    Ok(read.is_ok() && answer.trim() == tenant.as_str())
}
