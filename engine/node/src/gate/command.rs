//! What an administrator can ask of the gate: JSON that says `{"command": …}`, checked as it is read.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use thalweg_domain::permission::{Permission, matches};
use thalweg_protocol::ids::Name;
use thalweg_protocol::limits::{MANAGE_BYTES_MAX, PASSWORD_BYTES_MAX, TOKEN_BYTES_MAX};
use thalweg_protocol::reject::{Reject, RejectCode};

use super::limits::{
    MODEL_GRACE_MS_MAX, MODEL_PATH_BYTES_MAX, NOTE_BYTES_MAX, PASSWORD_BYTES_MIN, PERMISSIONS_MAX, TOKEN_TTL_S_MAX,
};
use crate::models::ModelJob;

/// A text that is not shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(crate) struct Secret(pub(crate) String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// A command. A tenant that is not named is the administrator's own.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Command {
    /// Lets what was given out be good no longer: one token (its text, or its id), one API key (its text, or its id),
    /// everything of a user, or everything of a tenant. Just one of the four.
    Revoke {
        #[serde(default)]
        token: Option<Secret>,
        #[serde(default)]
        apikey: Option<String>,
        #[serde(default, deserialize_with = "user_or_none")]
        user: Option<Name>,
        #[serde(default, deserialize_with = "tenant")]
        tenant: Option<Name>,
        /// Everything of the tenant.
        #[serde(default)]
        everybody: bool,
        #[serde(default, deserialize_with = "reason")]
        reason: String,
    },
    /// Signs a token.
    Token {
        #[serde(default, deserialize_with = "tenant")]
        tenant: Option<Name>,
        #[serde(deserialize_with = "user")]
        user: Name,
        #[serde(deserialize_with = "allow")]
        allow: Vec<Permission>,
        #[serde(deserialize_with = "ttl_s")]
        ttl_s: u64,
    },
    /// Signs with a new key from now on.
    RotateKeys {
        /// Whether what the old keys signed is good no longer.
        #[serde(default)]
        drop_old: bool,
    },
    /// Adds a user who logs in with a password.
    UserAdd {
        #[serde(default, deserialize_with = "tenant")]
        tenant: Option<Name>,
        #[serde(deserialize_with = "user")]
        user: Name,
        #[serde(deserialize_with = "password")]
        password: Secret,
        #[serde(deserialize_with = "allow")]
        allow: Vec<Permission>,
    },
    /// Removes a user; whatever it was given is revoked.
    UserRemove {
        #[serde(default, deserialize_with = "tenant")]
        tenant: Option<Name>,
        #[serde(deserialize_with = "user")]
        user: Name,
    },
    /// Lists users.
    UserList {
        #[serde(default, deserialize_with = "tenant")]
        tenant: Option<Name>,
        /// Those whose names come after this one.
        #[serde(default)]
        after: String,
    },
    /// Gives a user another password, which ends what the user was given before. Users may do so for themselves.
    UserPassword {
        #[serde(default, deserialize_with = "tenant")]
        tenant: Option<Name>,
        #[serde(deserialize_with = "user")]
        user: Name,
        #[serde(deserialize_with = "password")]
        password: Secret,
        /// The password until now: who gives it needs no permission to change their own.
        #[serde(default, deserialize_with = "old_password")]
        old: Option<Secret>,
    },
    /// Changes what a user may do from the next login on.
    UserAllow {
        #[serde(default, deserialize_with = "tenant")]
        tenant: Option<Name>,
        #[serde(deserialize_with = "user")]
        user: Name,
        #[serde(deserialize_with = "allow")]
        allow: Vec<Permission>,
    },
    /// Makes an API key.
    KeyCreate {
        #[serde(default, deserialize_with = "tenant")]
        tenant: Option<Name>,
        #[serde(deserialize_with = "user")]
        user: Name,
        #[serde(deserialize_with = "allow")]
        allow: Vec<Permission>,
        /// Without, it is good until it is removed.
        #[serde(default, deserialize_with = "ttl_s_or_none")]
        ttl_s: Option<u64>,
        #[serde(default, deserialize_with = "note")]
        note: String,
    },
    /// Lists API keys, without their secrets.
    KeyList {
        #[serde(default, deserialize_with = "tenant")]
        tenant: Option<Name>,
        /// Those whose ids come after this one.
        #[serde(default)]
        after: String,
    },
    /// Removes an API key.
    KeyRemove { key: String },
    /// Reads the configuration again.
    Reload {},
    /// Shows the configuration in effect.
    Config {},
    /// Lists models.
    ModelList {},
    /// Reads a model's file, which lies on the node's machine, and serves it.
    ModelLoad {
        #[serde(deserialize_with = "model")]
        name: Name,
        #[serde(deserialize_with = "model_path")]
        path: PathBuf,
        /// What it is good for.
        #[serde(default, deserialize_with = "class")]
        class: Option<Name>,
        /// What a token of it costs compared with others.
        #[serde(default)]
        cost: u32,
        /// Who answers in its place while it cannot.
        #[serde(default, deserialize_with = "fallback")]
        fallback: Option<Name>,
    },
    /// Serves a model no more.
    ModelUnload {
        #[serde(deserialize_with = "model")]
        name: Name,
        /// How long what runs may go on.
        #[serde(default = "grace_ms_default", deserialize_with = "grace_ms")]
        grace_ms: u64,
    },
    /// Shows the newest audit events.
    Audit {
        #[serde(default = "audit_limit")]
        limit: usize,
        /// Of this tenant; who may see all tenants' sees them without.
        #[serde(default, deserialize_with = "tenant")]
        tenant: Option<Name>,
    },
}

impl Command {
    /// Reads a command.
    ///
    /// # Errors
    /// `request_invalid`, naming the field and what is known.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, Reject> {
        if json.len() > MANAGE_BYTES_MAX {
            return Err(wrong(format!("the request has {} bytes; at most {MANAGE_BYTES_MAX}", json.len())));
        }
        let command: Self =
            serde_json::from_slice(json).map_err(|error| wrong(format!("the request is not valid: {error}")))?;
        if let Self::Revoke { token, apikey, user, tenant, everybody, .. } = &command {
            let alone = [token.is_some(), apikey.is_some(), user.is_some(), *everybody];
            if alone.iter().filter(|given| **given).count() != 1 {
                return Err(wrong("revoke: say just one of token, apikey, user, or everybody (of a tenant)"));
            }
            if tenant.is_some() && apikey.is_some() {
                return Err(wrong("revoke: an API key belongs to one tenant already; leave tenant out"));
            }
            if token.as_ref().is_some_and(|token| token.0.len() > TOKEN_BYTES_MAX) {
                return Err(wrong("revoke: token is longer than any token"));
            }
        }
        Ok(command)
    }

    /// The command as users write it.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Revoke { .. } => "revoke",
            Self::Token { .. } => "token",
            Self::RotateKeys { .. } => "rotate-keys",
            Self::UserAdd { .. } => "user-add",
            Self::UserRemove { .. } => "user-remove",
            Self::UserList { .. } => "user-list",
            Self::UserPassword { .. } => "user-password",
            Self::UserAllow { .. } => "user-allow",
            Self::KeyCreate { .. } => "key-create",
            Self::KeyList { .. } => "key-list",
            Self::KeyRemove { .. } => "key-remove",
            Self::Reload {} => "reload",
            Self::Config {} => "config",
            Self::Audit { .. } => "audit",
            Self::ModelList {} => "model-list",
            Self::ModelLoad { .. } => "model-load",
            Self::ModelUnload { .. } => "model-unload",
        }
    }

    /// What is to be done about a model, if it is about one.
    pub(crate) fn into_job(self) -> Option<ModelJob> {
        match self {
            Self::ModelLoad { name, path, class, cost, fallback } => {
                Some(ModelJob::Load { name, path, class, cost, fallback })
            }
            Self::ModelUnload { name, grace_ms } => {
                Some(ModelJob::Unload { name, grace: Duration::from_millis(grace_ms) })
            }
            _ => None,
        }
    }
}

pub(crate) fn wrong(text: impl Into<Cow<'static, str>>) -> Reject {
    Reject::new(RejectCode::RequestInvalid, text)
}

/// Whether one who holds `held` may give away `asked`: only what is covered. A `*` of the asked pattern is covered by one of
/// the held only, so that the pattern can be compared as if it were a name.
pub(crate) fn covers(held: &[Permission], asked: &[Permission]) -> Result<(), Permission> {
    let covered = |asked: &Permission| {
        held.iter().any(|held| held.action == asked.action && matches(&held.pattern, &asked.pattern))
    };
    asked.iter().find(|asked| !covered(asked)).map_or(Ok(()), |asked| Err(asked.clone()))
}

fn model<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Name, D::Error> {
    name(deserializer, "name")
}

fn class<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Name>, D::Error> {
    name_or_none(deserializer, "class")
}

fn fallback<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Name>, D::Error> {
    name_or_none(deserializer, "fallback")
}

fn model_path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let text = String::deserialize(deserializer).map_err(|error| D::Error::custom(format!("path: {error}")))?;
    let path = PathBuf::from(&text);
    if text.len() <= MODEL_PATH_BYTES_MAX && path.is_absolute() {
        return Ok(path);
    }
    let text =
        format!("path: give the whole path of a file of the node's machine, of at most {MODEL_PATH_BYTES_MAX} bytes");
    Err(D::Error::custom(text))
}

fn grace_ms_default() -> u64 {
    30_000
}

fn grace_ms<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let grace_ms = u64::deserialize(deserializer).map_err(|error| D::Error::custom(format!("grace_ms: {error}")))?;
    if grace_ms <= MODEL_GRACE_MS_MAX {
        return Ok(grace_ms);
    }
    Err(D::Error::custom(format!("grace_ms: {grace_ms} is more than {MODEL_GRACE_MS_MAX} (10 minutes)")))
}

fn audit_limit() -> usize {
    100
}

fn name<'de, D: Deserializer<'de>>(deserializer: D, field: &str) -> Result<Name, D::Error> {
    let text = String::deserialize(deserializer).map_err(|error| D::Error::custom(format!("{field}: {error}")))?;
    Name::new(&text).map_err(|error| D::Error::custom(format!("{field}: the name {error}")))
}

fn name_or_none<'de, D: Deserializer<'de>>(deserializer: D, field: &str) -> Result<Option<Name>, D::Error> {
    let text =
        Option::<String>::deserialize(deserializer).map_err(|error| D::Error::custom(format!("{field}: {error}")))?;
    let name = text.map(|text| Name::new(&text)).transpose();
    name.map_err(|error| D::Error::custom(format!("{field}: the name {error}")))
}

fn tenant<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Name>, D::Error> {
    name_or_none(deserializer, "tenant")
}

fn user<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Name, D::Error> {
    name(deserializer, "user")
}

fn user_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Name>, D::Error> {
    name_or_none(deserializer, "user")
}

fn allow<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Permission>, D::Error> {
    let texts =
        Vec::<String>::deserialize(deserializer).map_err(|error| D::Error::custom(format!("allow: {error}")))?;
    if texts.len() > PERMISSIONS_MAX {
        return Err(D::Error::custom(format!("allow: {} permissions; at most {PERMISSIONS_MAX}", texts.len())));
    }
    let parse = |text: &String| text.parse().map_err(|error| D::Error::custom(format!("allow: {error}")));
    texts.iter().map(parse).collect()
}

fn ttl_s<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let ttl_s = u64::deserialize(deserializer).map_err(|error| D::Error::custom(format!("ttl_s: {error}")))?;
    if (1..=TOKEN_TTL_S_MAX).contains(&ttl_s) {
        return Ok(ttl_s);
    }
    Err(D::Error::custom(format!("ttl_s: {ttl_s} is not in 1 to {TOKEN_TTL_S_MAX} (400 days)")))
}

fn ttl_s_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let ttl_s =
        Option::<u64>::deserialize(deserializer).map_err(|error| D::Error::custom(format!("ttl_s: {error}")))?;
    if ttl_s.is_none_or(|ttl_s| (1..=u64::from(u32::MAX)).contains(&ttl_s)) {
        return Ok(ttl_s);
    }
    Err(D::Error::custom(format!("ttl_s: it is not in 1 to {}; leave it out for a key without an end", u32::MAX)))
}

fn password<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
    // What serde says of a wrong value may show it.
    let text = String::deserialize(deserializer).map_err(|_| D::Error::custom("password: it is not a text"))?;
    if (PASSWORD_BYTES_MIN..=PASSWORD_BYTES_MAX).contains(&text.len()) {
        return Ok(Secret(text));
    }
    let text = format!("password: it has {} bytes; give {PASSWORD_BYTES_MIN} to {PASSWORD_BYTES_MAX}", text.len());
    Err(D::Error::custom(text))
}

fn old_password<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Secret>, D::Error> {
    let text = String::deserialize(deserializer).map_err(|_| D::Error::custom("old: it is not a text"))?;
    if text.len() > PASSWORD_BYTES_MAX {
        return Err(D::Error::custom(format!("old: it is longer than {PASSWORD_BYTES_MAX} bytes")));
    }
    Ok(Some(Secret(text)))
}

fn bounded<'de, D: Deserializer<'de>>(deserializer: D, field: &str) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer).map_err(|error| D::Error::custom(format!("{field}: {error}")))?;
    if text.len() > NOTE_BYTES_MAX || text.chars().any(char::is_control) {
        let text = format!("{field}: at most {NOTE_BYTES_MAX} bytes without control characters");
        return Err(D::Error::custom(text));
    }
    Ok(text)
}

fn reason<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    bounded(deserializer, "reason")
}

fn note<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    bounded(deserializer, "note")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn commands_are_read() {
        let name = |text| Name::new(text).expect("valid");
        let parse = |json: &str| Command::parse(json.as_bytes()).expect("valid");
        let expected = Command::Token {
            tenant: None,
            user: name("ada"),
            allow: vec!["read:*".parse().expect("valid")],
            ttl_s: 60,
        };
        assert_eq!(parse(r#"{"command":"token","user":"ada","allow":["read:*"],"ttl_s":60}"#), expected);
        assert_eq!(parse(r#"{"command":"rotate-keys"}"#), Command::RotateKeys { drop_old: false });
        assert_eq!(parse(r#"{"command":"reload"}"#), Command::Reload {});
        assert_eq!(parse(r#"{"command":"audit","limit":5}"#), Command::Audit { limit: 5, tenant: None });
        let command = parse(r#"{"command":"user-add","user":"ada","password":"correct horse","allow":[]}"#);
        assert!(!format!("{command:?}").contains("horse"), "passwords are not shown");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |json: &str, says: &[&str]| {
            let reject = Command::parse(json.as_bytes()).expect_err(json);
            assert_eq!(reject.code, RejectCode::RequestInvalid);
            assert!(says.iter().all(|says| reject.message.contains(says)), "{json}: {reject} lacks one of {says:?}");
        };
        check("", &["EOF"]);
        check("[]", &["request"]);
        check("{}", &["missing field `command`"]);
        check(r#"{"command":"fly"}"#, &["`fly`", "`rotate-keys`", "`user-add`"]);
        check(r#"{"command":"reload","now":true}"#, &["unknown field `now`"]);
        check(r#"{"command":"token","user":"ada","allow":[],"ttl":60}"#, &["unknown field `ttl`", "`ttl_s`"]);
        check(r#"{"command":"token","user":"ada","allow":[]}"#, &["missing field `ttl_s`"]);
        check(r#"{"command":"token","user":"a b","allow":[],"ttl_s":1}"#, &["user: the name holds ' '"]);
        check(r#"{"command":"token","user":"a","allow":["x"],"ttl_s":1}"#, &["allow: \"x\" is not a permission"]);
        check(r#"{"command":"token","user":"a","allow":[],"ttl_s":0}"#, &["ttl_s: 0 is not in 1"]);
        check(r#"{"command":"token","user":"a","allow":[],"ttl_s":-1}"#, &["ttl_s"]);
        check(r#"{"command":"token","user":1,"allow":[],"ttl_s":1}"#, &["user", "integer `1`"]);
        check(r#"{"command":"user-add","user":"a","password":"short","allow":[]}"#, &["password: it has 5 bytes"]);
        check(r#"{"command":"revoke"}"#, &["just one of token, apikey, user"]);
        check(r#"{"command":"revoke","token":"x","user":"a"}"#, &["just one of"]);
        check(r#"{"command":"revoke","user":"a","reason":"\u001b[2J"}"#, &["reason: at most"]);
        check(&format!(r#"{{"command":"{}"}}"#, "x".repeat(MANAGE_BYTES_MAX)), &["at most"]);
        check(&"[".repeat(10_000), &["not valid"]);
        check(&format!(r#"{{"command":"audit","limit":{}1{}}}"#, "[".repeat(9_000), "]".repeat(9_000)), &["not valid"]);
        let secret = r#"{"command":"user-add","user":"a","password":123456789,"allow":[]}"#;
        let reject = Command::parse(secret.as_bytes()).expect_err("no text");
        assert!(!reject.message.contains("123456789"), "{reject}");
    }

    #[test]
    fn only_what_is_held_can_be_given() {
        let all = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("valid")).collect::<Vec<Permission>>();
        let check = |held: &[&str], asked: &[&str], expected: bool| {
            assert_eq!(covers(&all(held), &all(asked)).is_ok(), expected, "{held:?} gives {asked:?}");
        };
        check(&["read:*"], &["read:*", "read:a", "read:a*b"], true);
        check(&["read:*"], &["write:a"], false);
        check(&["read:team-*"], &["read:team-a*", "read:team-*", "read:team-"], true);
        check(&["read:team-*"], &["read:*"], false);
        check(&["read:a"], &["read:*"], false);
        check(&["read:a*b"], &["read:a*b", "read:axb"], true);
        check(&["read:a*b"], &["read:a*"], false);
        check(&["read:*", "admin:access"], &["admin:*"], false);
        check(&[], &[], true);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = Command::parse(&bytes);
        }

        #[test]
        fn what_covers_matches_more(
            held in "[ab*]{1,6}", asked in "[ab*]{1,6}", name in "[ab]{0,8}",
        ) {
            let permission = |pattern: &str| vec![format!("read:{pattern}").parse().expect("valid")];
            if covers(&permission(&held), &permission(&asked)).is_ok() && matches(&asked, &name) {
                prop_assert!(matches(&held, &name), "{held} covers {asked} but not {name}");
            }
        }

        #[test]
        fn almost_commands_are_read_or_refused(
            command in "(revoke|token|user-add|key-create|audit|x)", field in "[a-z_]{1,8}", value in any::<i64>(),
        ) {
            let json = serde_json::json!({"command": command, "user": "a", field: value}).to_string();
            let _ = Command::parse(json.as_bytes());
        }
    }
}
