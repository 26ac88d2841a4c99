//! Lines that begin with `/`.

use crate::event::Role;

/// What a line that begins with `/` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Slash {
    Help,
    Quit,
    Join(String),
    Leave,
    Create { channel: String, private: bool, topic: String },
    Invite(String),
    Kick(String),
    Ban(String),
    Role { user: String, role: Role },
    Topic(String),
    Direct(Vec<String>),
    Who,
    Whois(String),
    Info,
    Profile(Option<ProfileField>),
    Search(String),
    Reply(String),
    Edit(String),
    Delete,
    React(String),
    Thread,
    Read,
    Ai(String),
    Models,
    Stop,
    Resend,
    Drop,
    Away,
    Back,
    Mouse,
    Theme(String),
}

/// A part of our profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ProfileField {
    Name(String),
    About(String),
    Status(String),
}

/// A command: its name, what follows, and what it does.
pub(crate) struct Verb {
    pub(crate) name: &'static str,
    pub(crate) usage: &'static str,
    pub(crate) help: &'static str,
}

const fn verb(name: &'static str, usage: &'static str, help: &'static str) -> Verb {
    Verb { name, usage, help }
}

/// All commands, as the help lists them.
#[rustfmt::skip]
pub(crate) const VERBS: &[Verb] = &[
    verb("join",    "CHANNEL",               "come into a channel"),
    verb("leave",   "",                      "leave this channel for good"),
    verb("create",  "CHANNEL [--private] [TOPIC]", "make a channel"),
    verb("dm",      "USER…",                 "talk to people directly"),
    verb("topic",   "[TEXT]",                "give this channel a topic; without text, none"),
    verb("info",    "",                      "what is known of this channel"),
    verb("who",     "",                      "who is here"),
    verb("whois",   "USER",                  "somebody's profile"),
    verb("invite",  "USER",                  "let somebody in"),
    verb("kick",    "USER",                  "put somebody out"),
    verb("ban",     "USER",                  "keep somebody out"),
    verb("role",    "USER ROLE",             "reader, member, moderator or owner"),
    verb("reply",   "[TEXT]",                "reply to the picked message, or the newest"),
    verb("edit",    "[TEXT]",                "edit the picked message, or your newest"),
    verb("delete",  "",                      "delete the picked message, or your newest"),
    verb("react",   "EMOJI",                 "react to the picked message, or the newest; again: take it back"),
    verb("thread",  "",                      "only the replies to the picked message"),
    verb("search",  "WORDS",                 "search this channel"),
    verb("read",    "",                      "mark everything here as read"),
    verb("ai",      "QUESTION",              "ask the model, in this channel (as @ai does)"),
    verb("models",  "",                      "models that answer"),
    verb("stop",    "",                      "stop the answer that is being written"),
    verb("resend",  "",                      "send again what failed"),
    verb("drop",    "",                      "forget what failed"),
    verb("profile", "[name|about|status TEXT]", "your profile"),
    verb("away",    "",                      "say that you are away"),
    verb("back",    "",                      "say that you are back"),
    verb("mouse",   "",                      "give the mouse to the terminal, to select text, or take it back"),
    verb("theme",   "dark|light|plain",      "how it looks"),
    verb("help",    "",                      "keys and commands"),
    verb("quit",    "",                      "leave"),
];

/// Reads a line that begins with `/`.
///
/// # Errors
/// What is wrong with it, for people.
pub(crate) fn parse(line: &str) -> Result<Slash, String> {
    let line = line.strip_prefix('/').unwrap_or(line);
    let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    let Some(verb) = VERBS.iter().find(|verb| verb.name == name) else {
        return Err(format!("/{name} is not known; /help lists what is"));
    };
    let usage = || format!("write it so: /{} {}", verb.name, verb.usage);
    let one = || {
        let name = rest.trim_start_matches(['#', '@']);
        let single = !name.is_empty() && !name.contains(char::is_whitespace);
        if single { Ok(name.to_owned()) } else { Err(usage()) }
    };
    let text = || if rest.is_empty() { Err(usage()) } else { Ok(rest.to_owned()) };
    Ok(match name {
        "join" => Slash::Join(one()?),
        "leave" => Slash::Leave,
        "create" => create(rest).ok_or_else(usage)?,
        "dm" => {
            let users: Vec<String> =
                rest.split_whitespace().map(|user| user.trim_start_matches('@').to_owned()).collect();
            if users.is_empty() || users.iter().any(String::is_empty) {
                return Err(usage());
            }
            Slash::Direct(users)
        }
        "topic" => Slash::Topic(rest.to_owned()),
        "info" => Slash::Info,
        "who" => Slash::Who,
        "whois" => Slash::Whois(one()?),
        "invite" => Slash::Invite(one()?),
        "kick" => Slash::Kick(one()?),
        "ban" => Slash::Ban(one()?),
        "role" => {
            let (user, role) = rest.split_once(char::is_whitespace).ok_or_else(usage)?;
            let role = Role::ALL.into_iter().find(|known| known.as_str() == role.trim()).ok_or_else(usage)?;
            Slash::Role { user: user.trim_start_matches('@').to_owned(), role }
        }
        "reply" => Slash::Reply(rest.to_owned()),
        "edit" => Slash::Edit(rest.to_owned()),
        "delete" => Slash::Delete,
        "react" => Slash::React(text()?),
        "thread" => Slash::Thread,
        "search" => Slash::Search(text()?),
        "read" => Slash::Read,
        "ai" => Slash::Ai(text()?),
        "models" => Slash::Models,
        "stop" => Slash::Stop,
        "resend" => Slash::Resend,
        "drop" => Slash::Drop,
        "profile" => Slash::Profile(profile(rest).map_err(|()| usage())?),
        "away" => Slash::Away,
        "back" => Slash::Back,
        "mouse" => Slash::Mouse,
        "theme" => Slash::Theme(one()?),
        "help" => Slash::Help,
        _ => Slash::Quit,
    })
}

fn create(rest: &str) -> Option<Slash> {
    let mut private = false;
    let mut words = rest.split_whitespace().filter(|word| {
        private |= *word == "--private";
        *word != "--private"
    });
    let channel = words.next()?.trim_start_matches('#').to_owned();
    let topic = words.collect::<Vec<_>>().join(" ");
    (!channel.is_empty()).then_some(Slash::Create { channel, private, topic })
}

fn profile(rest: &str) -> Result<Option<ProfileField>, ()> {
    let (field, value) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let value = value.trim().to_owned();
    match field {
        "" => Ok(None),
        "name" => Ok(Some(ProfileField::Name(value))),
        "about" => Ok(Some(ProfileField::About(value))),
        "status" => Ok(Some(ProfileField::Status(value))),
        _ => Err(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_or_explained() {
        let check = |line: &str, expected: Slash| assert_eq!(parse(line), Ok(expected), "{line}");
        check("/join #general", Slash::Join("general".into()));
        check(
            "/create team --private what we do",
            Slash::Create { channel: "team".into(), private: true, topic: "what we do".into() },
        );
        check("/dm @ada bob", Slash::Direct(vec!["ada".into(), "bob".into()]));
        check("/role @ada moderator", Slash::Role { user: "ada".into(), role: Role::Moderator });
        check("/topic", Slash::Topic(String::new()));
        check("/profile status  at lunch ", Slash::Profile(Some(ProfileField::Status("at lunch".into()))));
        check("/profile", Slash::Profile(None));
        check("/search two words", Slash::Search("two words".into()));
        let refused = |line: &str, expected: &str| {
            let said = parse(line).expect_err(line);
            assert!(said.contains(expected), "{line}: {said}");
        };
        refused("/nonsense", "/nonsense is not known; /help");
        refused("/", "/help");
        refused("/join", "/join CHANNEL");
        refused("/join two words", "/join CHANNEL");
        refused("/role ada king", "/role USER ROLE");
        refused("/react", "/react EMOJI");
        refused("/dm", "/dm USER");
        for verb in VERBS {
            // Every command that is listed is known.
            let line = format!("/{} a member", verb.name);
            assert!(!parse(&line).is_err_and(|said| said.contains("not known")), "{line}");
        }
    }
}
