//! `thalweg login` and `thalweg logout`: say once who you are.

use std::io::{BufRead as _, IsTerminal as _};

use thalweg_protocol::limits::PASSWORD_BYTES_MAX;

use crate::connect::{ConnectArgs, block_on};
use crate::failure::Failure;
use crate::logins::{self, Login};
use crate::plain::say;
use crate::timestamp::rfc3339;

/// Log in with a password; later commands use what the node gives for it
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Whose user
    #[arg(long, value_name = "T", default_value = "default")]
    tenant: String,
    /// Which user
    #[arg(long, value_name = "U")]
    user: String,
    #[command(flatten)]
    connect: ConnectArgs,
}

const EXAMPLES: &str = "\
Examples:
  thalweg login --server chat.example.org:4433 --user ada
  pass show chat | thalweg login --server chat.example.org:4433 --user ada

The password is asked for, or read from standard input. What the node gives for it, a token with an end, is kept in
$XDG_STATE_HOME/thalweg/logins, which only you can read; `thalweg logout` forgets it.
`thalweg admin user add` on the node makes users.";

/// Forget a login
#[derive(Debug, clap::Args)]
pub(crate) struct LogoutArgs {
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    crate::connect::log_to_stderr(false, "warn");
    let password = password(&format!("Password of {}: ", args.user))?;
    block_on(async {
        let Args { tenant, user, connect } = args;
        let (builder, _) = connect.address("login")?;
        let given = builder.password(&tenant, &user, password).log_in().await?;
        let server = connect.server_name();
        let login = Login { server, tenant, user, token: given.token, expires_us: given.expires_us };
        let path = logins::store(&login)?;
        let until = if given.expires_us == 0 { String::new() } else { format!(" until {}", rfc3339(given.expires_us)) };
        eprintln!("thalweg: the token is kept in {}", path.display());
        say(&format!("logged in as {} ({}){until}", login.user, login.tenant))
    })
}

pub(crate) fn run_logout(args: LogoutArgs) -> Result<(), Failure> {
    let server = args.connect.server_name();
    match logins::forget(&server)? {
        Some(login) => say(&format!("{} ({}) is logged out of {server}", login.user, login.tenant)),
        None => say(&format!("nobody was logged in to {server}")),
    }
}

/// Asks the person at the terminal, without showing what they write; elsewhere, the first line of standard input.
pub(super) fn password(prompt: &str) -> Result<String, Failure> {
    let password = if std::io::stdin().is_terminal() {
        rpassword::prompt_password(prompt)
            .map_err(|error| Failure::failed(format!("asking for the password: {error}")))?
    } else {
        let mut line = String::new();
        let mut input = std::io::Read::take(std::io::stdin().lock(), PASSWORD_BYTES_MAX as u64 + 2);
        input.read_line(&mut line).map_err(|error| Failure::failed(format!("reading standard input: {error}")))?;
        line.trim_end_matches(['\r', '\n']).to_owned()
    };
    match password.len() {
        0 => Err(Failure::usage("there is no password: write one, or give it on standard input")),
        bytes if bytes > PASSWORD_BYTES_MAX => {
            Err(Failure::usage(format!("the password has more than {PASSWORD_BYTES_MAX} bytes, the most there may be")))
        }
        _ => Ok(password),
    }
}
