//! `thalweg channel`: find, make, change and delete channels, and who may do what in them.

use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use thalweg_client::{
    ChannelAbout, ChannelChange, ChannelKind, ChannelOptions, ChannelReport, ChannelSummary, Client, Durability,
    MemberRole, PostRule,
};

use crate::connect::{ConnectArgs, block_on};
use crate::failure::Failure;
use crate::plain::{print, role, say, table};
use crate::{duration, lines, size};

/// How long to wait for a node that went away.
const PATIENCE: Duration = Duration::from_secs(30);

/// Find, make, change and delete channels, and say who may do what in them
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  thalweg channel list                               mine, with what I have not read
  thalweg channel create plans --private --topic \"What comes next\"
  thalweg channel invite plans ada grace             they join with `thalweg channel join plans`
  thalweg channel role plans ada moderator
  thalweg channel set news --post moderators
  thalweg channel create audit --keep-age 30d        on disk, the last thirty days
  thalweg channel delete audit

Documents are listed by `thalweg doc list`.

Roles, each may do what those before it may: banned, invited, reader, member, moderator, owner.
Writing to a channel that does not exist makes it with the node's defaults.";

#[derive(Debug, Subcommand)]
enum Command {
    /// List channels: those you are a member of
    List {
        /// All that you may read
        #[arg(long)]
        all: bool,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Say what there is to say about a channel, and who its members are
    Info {
        /// Its name
        name: String,
        /// One JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Make a channel; one that exists keeps its options
    Create {
        /// Its name
        name: String,
        #[command(flatten)]
        make: Make,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Delete a channel with all it holds
    Delete {
        /// Its name
        name: String,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Become a member
    Join {
        /// Its name
        name: String,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Be no longer a member
    Leave {
        /// Its name
        name: String,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Let users join
    Invite(Users),
    /// Remove members; also lifts a ban
    Kick(Users),
    /// Keep users out, whatever their tokens say
    Ban(Users),
    /// Give a user a role
    Role {
        /// The channel
        name: String,
        /// Whom
        user: String,
        /// Which
        #[arg(value_parser = parse_role)]
        role: MemberRole,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Show the topic, or give another one
    Topic {
        /// The channel
        name: String,
        /// What it is about
        topic: Option<String>,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Change who may read and write
    #[command(group = clap::ArgGroup::new("what").args(["kind", "post"]).required(true).multiple(true))]
    Set {
        /// The channel
        name: String,
        /// Who may find and read it
        #[arg(long, value_enum)]
        kind: Option<Kind>,
        /// Who may write
        #[arg(long, value_enum)]
        post: Option<Writers>,
        #[command(flatten)]
        connect: ConnectArgs,
    },
}

/// How a new channel is.
#[derive(Debug, clap::Args)]
struct Make {
    /// Only those who are invited find and read it
    #[arg(long)]
    private: bool,
    /// What it is about
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    topic: String,
    /// Who may write [default: everyone]
    #[arg(long, value_enum)]
    post: Option<Writers>,
    /// What an acknowledged message outlives [default: the node's]
    #[arg(long, value_enum)]
    durability: Option<Keep>,
    /// Messages it keeps at most [default: the node's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    keep_messages: Option<u32>,
    /// Bytes of messages it keeps at most, like 64MiB [default: the node's]
    #[arg(long, value_name = "BYTES", value_parser = size::parse)]
    keep_bytes: Option<u64>,
    /// For how long it keeps messages, like 30d [default: for ever]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    keep_age: Option<Duration>,
}

/// Users of a channel.
#[derive(Debug, clap::Args)]
struct Users {
    /// The channel
    name: String,
    /// Whom
    #[arg(required = true, value_name = "USER")]
    users: Vec<String>,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Who may find and read a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Everybody whose token covers it
    Open,
    /// Its members
    Private,
}

/// Who may write in a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Writers {
    /// Everybody who may read it
    Everyone,
    /// Members
    Members,
    /// Moderators and the owner
    Moderators,
}

impl Writers {
    fn rule(self) -> PostRule {
        match self {
            Self::Everyone => PostRule::Everyone,
            Self::Members => PostRule::Members,
            Self::Moderators => PostRule::Moderators,
        }
    }
}

fn parse_role(text: &str) -> Result<MemberRole, String> {
    let found = MemberRole::ALL.into_iter().find(|role| role.as_str() == text);
    found.ok_or_else(|| "give banned, invited, reader, member, moderator or owner".into())
}

/// What an acknowledged message outlives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Keep {
    /// Nothing: it is gone with the node's process
    Memory,
    /// The loss of process, machine and power: it was synced to the node's disk
    Disk,
}

impl Keep {
    pub(crate) fn durability(self) -> Durability {
        match self {
            Self::Memory => Durability::Memory,
            Self::Disk => Durability::Disk,
        }
    }
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    crate::connect::log_to_stderr(false, "warn");
    block_on(carry_out(args.command))
}

async fn carry_out(command: Command) -> Result<(), Failure> {
    match command {
        Command::List { all, json, connect } => list(&connected(&connect).await?, all, json).await,
        Command::Info { name, json, connect } => {
            let report = connected(&connect).await?.about_channel(name.as_str()).await?;
            if json { print(&lines::report(&report)) } else { show(&report) }
        }
        Command::Create { name, make, connect } => create(&connected(&connect).await?, &name, make).await,
        Command::Delete { name, connect } => {
            connected(&connect).await?.delete_channel(name.as_str()).await?;
            say(&format!("{name} deleted"))
        }
        Command::Join { name, connect } => {
            connected(&connect).await?.join(name.as_str()).await?;
            say(&format!("you are a member of {name}"))
        }
        Command::Leave { name, connect } => {
            connected(&connect).await?.leave(name.as_str()).await?;
            say(&format!("you are not a member of {name}"))
        }
        Command::Invite(users) => members(users, Some(MemberRole::Invited), "invited to").await,
        Command::Kick(users) => members(users, None, "removed from").await,
        Command::Ban(users) => members(users, Some(MemberRole::Banned), "banned from").await,
        Command::Role { name, user, role, connect } => {
            connected(&connect).await?.set_member(name.as_str(), user.as_str(), Some(role)).await?;
            say(&format!("{user} is {} in {name}", role.as_str()))
        }
        Command::Topic { name, topic: None, connect } => {
            say(&connected(&connect).await?.about_channel(name.as_str()).await?.topic)
        }
        Command::Topic { name, topic, connect } => {
            let change = ChannelChange { topic, ..ChannelChange::default() };
            connected(&connect).await?.set_channel(name.as_str(), change).await?;
            say(&format!("{name} changed"))
        }
        Command::Set { name, kind, post, connect } => {
            let kind = kind.map(|kind| match kind {
                Kind::Open => ChannelKind::Open,
                Kind::Private => ChannelKind::Private,
            });
            let change = ChannelChange { topic: None, kind, post: post.map(Writers::rule) };
            connected(&connect).await?.set_channel(name.as_str(), change).await?;
            say(&format!("{name} changed"))
        }
    }
}

async fn connected(connect: &ConnectArgs) -> Result<Client, Failure> {
    connect.connect("channel", PATIENCE).await
}

async fn create(client: &Client, name: &str, make: Make) -> Result<(), Failure> {
    let kind = if make.private { ChannelKind::Private } else { ChannelKind::Open };
    let about = ChannelAbout { kind, topic: make.topic, post: make.post.map(Writers::rule).unwrap_or_default() };
    let options = ChannelOptions {
        keep_messages: make.keep_messages.unwrap_or(0),
        keep_bytes: make.keep_bytes.unwrap_or(0),
        keep_age: make.keep_age,
        durability: make.durability.map(Keep::durability),
        about,
    };
    let created = client.create_channel(name, options).await?;
    say(&format!("{name} {}", if created { "made" } else { "there already, and not changed" }))
}

async fn members(users: Users, role: Option<MemberRole>, done: &str) -> Result<(), Failure> {
    let client = connected(&users.connect).await?;
    for user in &users.users {
        client.set_member(users.name.as_str(), user.as_str(), role).await?;
        say(&format!("{user} {done} {}", users.name))?;
    }
    Ok(())
}

async fn list(client: &Client, all: bool, json: bool) -> Result<(), Failure> {
    let mut channels = client.channels(all).await?;
    // `thalweg doc list` shows those.
    channels.retain(|channel| channel.kind != ChannelKind::Document);
    if json {
        return channels.iter().try_for_each(|channel| print(&lines::summary(channel)));
    }
    let row = |channel: &ChannelSummary| {
        let ChannelSummary { channel, kind, topic, role: mine, messages, unread, mentions, .. } = channel;
        let numbers = [unread, mentions, messages].map(u64::to_string);
        let mut row = vec![channel.to_string(), kind.as_str().into(), role(*mine)];
        row.extend(numbers);
        row.push(topic.clone());
        row
    };
    let rows: Vec<_> = channels.iter().map(row).collect();
    table(&["CHANNEL", "KIND", "ROLE", "UNREAD", "MENTIONS", "MESSAGES", "TOPIC"], &rows)
}

fn show(report: &ChannelReport) -> Result<(), Failure> {
    let said = |what: &str, value: String| vec![what.to_owned(), value];
    let about = [
        said("kind", report.kind.as_str().into()),
        said("topic", report.topic.clone()),
        said("post", report.post.as_str().into()),
        said("created", lines::when(report.created_us).unwrap_or_else(|| "-".into())),
        said("durability", report.durability.as_str().into()),
        said("messages", format!("{} ({} to {} are kept)", report.messages, report.first, report.head)),
        said("your role", role(report.you)),
        said("members", report.members_total.to_string()),
    ];
    table(&["channel", report.channel.as_str()], &about)?;
    if report.members.is_empty() {
        return Ok(());
    }
    say("")?;
    let row = |member: &thalweg_client::MemberEntry| {
        let since = lines::when(member.since_us).unwrap_or_else(|| "-".into());
        vec![member.user.to_string(), member.role.as_str().into(), since]
    };
    table(&["USER", "ROLE", "SINCE"], &report.members.iter().map(row).collect::<Vec<_>>())
}
