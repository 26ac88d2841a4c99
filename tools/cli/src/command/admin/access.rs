//! `thalweg admin revoke`, `rotate-keys`, `user`, `key`, `reload`, `audit`: who may use the node, asked of the node itself.

use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};
use thalweg_domain::permission::Permission;

use super::PATIENCE;
use crate::command::login::password;
use crate::connect::{ConnectArgs, block_on};
use crate::duration;
use crate::failure::{Failure, exit};
use crate::plain::{print, say, table};
use crate::timestamp::rfc3339;

/// Longest time an answer may take: hashing a password is slow on purpose, and others may be at it.
const ANSWER: Duration = Duration::from_secs(30);

/// Let what was given out be good no longer; live sessions end at once
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").args(["token_id", "user", "api_key", "everybody"]).required(true))]
pub(super) struct RevokeArgs {
    /// One token, by its id (`thalweg admin token --show-id`) or its text
    #[arg(long, value_name = "ID")]
    token_id: Option<String>,
    /// Everything that a user was given until now
    #[arg(long, value_name = "U")]
    user: Option<String>,
    /// One API key, by its id or its text
    #[arg(long, value_name = "ID", conflicts_with = "tenant")]
    api_key: Option<String>,
    /// Everything that anybody of the tenant was given until now
    #[arg(long, requires = "tenant")]
    everybody: bool,
    /// Of which tenant [default: yours]
    #[arg(long, value_name = "T")]
    tenant: Option<String>,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Sign with a new key from now on; what the old ones signed stays good until it ends
#[derive(Debug, clap::Args)]
pub(super) struct RotateArgs {
    /// What the old keys signed is good no longer
    #[arg(long)]
    drop_old: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Users who log in with a password
#[derive(Debug, clap::Args)]
pub(super) struct UserArgs {
    #[command(subcommand)]
    command: UserCommand,
}

/// Which user, of which tenant.
#[derive(Debug, clap::Args)]
struct Whose {
    /// Of which tenant [default: yours]
    #[arg(long, value_name = "T")]
    tenant: Option<String>,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Debug, Subcommand)]
enum UserCommand {
    /// Add a user; the password is asked for, or read from standard input
    Add {
        /// Their name
        user: String,
        /// What they may do; repeat for more [default: read, write and ask everything]
        #[arg(long, value_name = "PERM:PATTERN")]
        allow: Vec<Permission>,
        #[command(flatten)]
        whose: Whose,
    },
    /// Remove a user; whatever they were given is revoked
    Rm {
        /// Their name
        user: String,
        #[command(flatten)]
        whose: Whose,
    },
    /// List users
    List {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        whose: Whose,
    },
    /// Give a user another password, which ends what they were given before
    Password {
        /// Their name
        user: String,
        #[command(flatten)]
        whose: Whose,
    },
    /// Change what a user may do from the next login on
    Allow {
        /// Their name
        user: String,
        /// What they may do; repeat for more
        #[arg(required = true, value_name = "PERM:PATTERN")]
        allow: Vec<Permission>,
        #[command(flatten)]
        whose: Whose,
    },
}

/// API keys, for programs
#[derive(Debug, clap::Args)]
pub(super) struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Make an API key, and print it: this once
    Create {
        /// Under which name its holder writes
        #[arg(long, value_name = "U")]
        user: String,
        /// What its holder may do; repeat for more [default: read, write and ask everything]
        #[arg(long, value_name = "PERM:PATTERN")]
        allow: Vec<Permission>,
        /// For how long [default: until it is removed]
        #[arg(long, value_name = "TIME", value_parser = duration::parse)]
        ttl: Option<Duration>,
        /// What it is for
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        note: String,
        /// The node's answer as it is, with the key's id
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        whose: Whose,
    },
    /// List API keys, without their secrets
    List {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        whose: Whose,
    },
    /// Remove an API key; sessions that use it end
    Rm {
        /// Its id, or its text
        key: String,
        #[command(flatten)]
        connect: ConnectArgs,
    },
}

/// Have the node read its configuration, certificates and limits again
#[derive(Debug, clap::Args)]
pub(super) struct ReloadArgs {
    /// The node's answer as it is
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Show who did what, newest last
#[derive(Debug, clap::Args)]
pub(super) struct AuditArgs {
    /// At most so many events
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: u64,
    /// Of which tenant [default: all that you may see]
    #[arg(long, value_name = "T")]
    tenant: Option<String>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) fn revoke(args: RevokeArgs) -> Result<(), Failure> {
    let RevokeArgs { token_id, user, api_key, everybody, tenant, reason, connect } = args;
    let mut request = json!({ "command": "revoke" });
    let what = [("token", token_id), ("user", user), ("apikey", api_key), ("tenant", tenant), ("reason", reason)];
    what.into_iter().for_each(|(field, value)| put(&mut request, field, value));
    if everybody {
        request["everybody"] = json!(true);
    }
    ask(&connect, &request)?;
    say("revoked")
}

pub(super) fn rotate(args: RotateArgs) -> Result<(), Failure> {
    let answer = ask(&args.connect, &json!({ "command": "rotate-keys", "drop_old": args.drop_old }))?;
    say(&format!("signing with {}", text(&answer["key"])))
}

pub(super) fn user(args: UserArgs) -> Result<(), Failure> {
    match args.command {
        UserCommand::Add { user, allow, whose } => {
            let password = password(&format!("Password for {user}: "))?;
            let request = json!({
                "command": "user-add", "user": user, "password": password, "allow": or_default(&allow),
            });
            whose.ask(request)?;
            say(&format!("{user} added"))
        }
        UserCommand::Rm { user, whose } => {
            whose.ask(json!({ "command": "user-remove", "user": user }))?;
            say(&format!("{user} removed"))
        }
        UserCommand::List { json, whose } => {
            let users = whose.list("user-list", "users", "user")?;
            if json {
                return users.iter().try_for_each(|user| print(&user.to_string()));
            }
            let row = |user: &Value| vec![text(&user["user"]), allowed(user), time(&user["created_s"])];
            table(&["USER", "ALLOW", "SINCE"], &users.iter().map(row).collect::<Vec<_>>())
        }
        UserCommand::Password { user, whose } => {
            let password = password(&format!("New password for {user}: "))?;
            whose.ask(json!({ "command": "user-password", "user": user, "password": password }))?;
            say(&format!("the password of {user} is another one"))
        }
        UserCommand::Allow { user, allow, whose } => {
            whose.ask(json!({ "command": "user-allow", "user": user, "allow": words(&allow) }))?;
            say(&format!("{user} may do that from the next login on"))
        }
    }
}

pub(super) fn key(args: KeyArgs) -> Result<(), Failure> {
    match args.command {
        KeyCommand::Create { user, allow, ttl, note, json, whose } => {
            let mut request = json!({
                "command": "key-create", "user": user, "allow": or_default(&allow), "note": note,
            });
            if let Some(ttl) = ttl {
                request["ttl_s"] = json!(ttl.as_secs());
            }
            let answer = whose.ask(request)?;
            if json {
                return print(&answer.to_string());
            }
            eprintln!("thalweg: this is key {}; it is not shown again", text(&answer["id"]));
            say(&text(&answer["key"]))
        }
        KeyCommand::List { json, whose } => {
            let keys = whose.list("key-list", "keys", "id")?;
            if json {
                return keys.iter().try_for_each(|key| print(&key.to_string()));
            }
            let row = |key: &Value| {
                vec![text(&key["id"]), text(&key["user"]), allowed(key), time(&key["expires_s"]), text(&key["note"])]
            };
            table(&["ID", "USER", "ALLOW", "EXPIRES", "NOTE"], &keys.iter().map(row).collect::<Vec<_>>())
        }
        KeyCommand::Rm { key, connect } => {
            ask(&connect, &json!({ "command": "key-remove", "key": key }))?;
            say("removed")
        }
    }
}

pub(super) fn reload(args: ReloadArgs) -> Result<(), Failure> {
    let answer = ask(&args.connect, &json!({ "command": "reload" }))?;
    if args.json {
        return print(&answer["reload"].to_string());
    }
    let mut lines = Vec::new();
    super::table(String::new(), &answer["reload"], &mut lines);
    lines.iter().try_for_each(|(name, value)| say(&format!("{name}  {value}")))?;
    say("reloaded")
}

pub(super) fn audit(args: AuditArgs) -> Result<(), Failure> {
    let mut request = json!({ "command": "audit", "limit": args.limit });
    put(&mut request, "tenant", args.tenant);
    let answer = ask(&args.connect, &request)?;
    let events = list(&answer, "events")?;
    if args.json {
        return events.iter().try_for_each(|event| print(&event.to_string()));
    }
    let row = |event: &Value| {
        let allowed = if event["allowed"] == json!(true) { "yes".to_owned() } else { text(&event["code"]) };
        let fields = ["ts", "tenant", "user", "action", "object", "remote"].map(|field| text(&event[field]));
        let mut row: Vec<_> = fields.into();
        row.insert(5, allowed);
        row
    };
    table(
        &["TIME", "TENANT", "USER", "ACTION", "OBJECT", "ALLOWED", "FROM"],
        &events.iter().map(row).collect::<Vec<_>>(),
    )
}

impl Whose {
    fn ask(&self, mut request: Value) -> Result<Value, Failure> {
        put(&mut request, "tenant", self.tenant.clone());
        ask(&self.connect, &request)
    }

    /// All pages of a list. `name` is the field that the next page goes on after.
    fn list(&self, command: &str, entries: &str, name: &str) -> Result<Vec<Value>, Failure> {
        let mut all: Vec<Value> = Vec::new();
        loop {
            let after = all.last().map_or(String::new(), |last| text(&last[name]));
            let answer = self.ask(json!({ "command": command, "after": after }))?;
            let page = list(&answer, entries)?;
            let more = answer["more"] == json!(true) && page.last().is_some_and(|last| text(&last[name]) > after);
            all.extend(page);
            if !more {
                return Ok(all);
            }
        }
    }
}

/// Asks the node.
fn ask(connect: &ConnectArgs, request: &Value) -> Result<Value, Failure> {
    ask_within(connect, request, ANSWER)
}

/// Asks the node something whose answer may take so long.
pub(super) fn ask_within(connect: &ConnectArgs, request: &Value, longest: Duration) -> Result<Value, Failure> {
    crate::connect::log_to_stderr(false, "warn");
    block_on(async {
        let client = connect.connect("admin", PATIENCE).await?;
        let late = |_| Failure::new(exit::UNREACHABLE, format!("the node did not answer within {longest:?}"));
        let answer = tokio::time::timeout(longest, client.manage(request)).await.map_err(late)?;
        client.close().await;
        Ok(answer?)
    })
}

pub(super) fn put(request: &mut Value, field: &str, value: Option<String>) {
    if let Some(value) = value {
        request[field] = Value::String(value);
    }
}

fn list(answer: &Value, entries: &str) -> Result<Vec<Value>, Failure> {
    let list = answer[entries].as_array().cloned();
    list.ok_or_else(|| Failure::failed(format!("the node's answer has no {entries}")))
}

fn words(allow: &[Permission]) -> Vec<String> {
    allow.iter().map(Permission::to_string).collect()
}

fn or_default(allow: &[Permission]) -> Vec<String> {
    if allow.is_empty() { ["read:*", "write:*", "ask:*"].map(str::to_owned).into() } else { words(allow) }
}

fn allowed(entry: &Value) -> String {
    let allow = entry["allow"].as_array().map(Vec::as_slice).unwrap_or_default();
    allow.iter().map(text).collect::<Vec<_>>().join(" ")
}

/// A value as tables show it.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn time(seconds: &Value) -> String {
    seconds.as_u64().filter(|&seconds| seconds != 0).map_or("-".into(), |s| rfc3339(s.saturating_mul(1_000_000)))
}
