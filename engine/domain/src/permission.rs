//! What a token's holder may do.

use std::fmt;
use std::str::FromStr;

use thalweg_protocol::ids::{Name, SessionId};
use thalweg_protocol::limits::NAME_BYTES_MAX;
use thalweg_protocol::reject::{Reject, RejectCode};

/// A kind of access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Subscribe to a channel.
    Read,
    /// Change what is commented on a document. Who may write may do that too.
    Comment,
    /// Publish to a channel, and create it.
    Write,
    /// Ask a model.
    Ask,
    /// See the node's statistics, drain it.
    Admin,
}

impl Action {
    /// All actions, for help texts.
    pub const ALL: [Self; 5] = [Self::Read, Self::Comment, Self::Write, Self::Ask, Self::Admin];

    /// The action as users spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Comment => "comment",
            Self::Write => "write",
            Self::Ask => "ask",
            Self::Admin => "admin",
        }
    }
}

/// One line of a token's permissions: an action, and a pattern of the names it covers. Written `ACTION:PATTERN`; in the
/// pattern `*` stands for any run of characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permission {
    /// What may be done.
    pub action: Action,
    /// To which channels or models; for [`Action::Admin`] to which parts of the node.
    pub pattern: String,
}

/// A text that is not a permission.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a permission; write ACTION:PATTERN with an action of read, comment, write, ask or admin, such as write:team-*"
)]
pub struct PermissionError(String);

impl FromStr for Permission {
    type Err = PermissionError;
    fn from_str(text: &str) -> Result<Self, PermissionError> {
        let error = || PermissionError(text.chars().take(NAME_BYTES_MAX).collect());
        let (action, pattern) = text.split_once(':').ok_or_else(error)?;
        let action = Action::ALL.into_iter().find(|a| a.as_str() == action).ok_or_else(error)?;
        if pattern.is_empty() || pattern.len() > NAME_BYTES_MAX {
            return Err(error());
        }
        Ok(Self { action, pattern: pattern.to_owned() })
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.action.as_str(), self.pattern)
    }
}

/// Whether `name` matches `pattern`, in which `*` stands for any run of characters. Takes at most
/// `pattern.len() * name.len()` steps, both of which are bounded by [`NAME_BYTES_MAX`].
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    // Where to go on when a later part does not fit: after the last star, one character further on.
    let mut retry: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&b'*') {
            retry = Some((p + 1, n));
            p += 1;
        } else if pattern.get(p) == Some(&name[n]) {
            (p, n) = (p + 1, n + 1);
        } else if let Some((after_star, from)) = retry {
            (p, n) = (after_star, from + 1);
            retry = Some((after_star, from + 1));
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&b| b == b'*')
}

/// What a session came in with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Credential {
    /// The token's own number; 0 if it has none.
    pub id: u128,
    /// When it was issued, in seconds since 1970; 0 if it does not say.
    pub issued_s: u64,
    /// When it ends, in seconds since 1970; 0 if it does not.
    pub expires_s: u64,
}

/// Who is at the other end of a session, as its token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// Whose data it may touch.
    pub tenant: Name,
    /// Under which name it writes.
    pub user: Name,
    /// Its session.
    pub session: SessionId,
    /// What it may do.
    pub permissions: Vec<Permission>,
    /// What it came in with.
    pub credential: Credential,
}

impl Principal {
    /// Somebody whose session does not end by itself.
    pub fn new(tenant: Name, user: Name, session: SessionId, permissions: Vec<Permission>) -> Self {
        Self { tenant, user, session, permissions, credential: Credential::default() }
    }

    /// Whether `action` on `name` is covered.
    pub fn may(&self, action: Action, name: &str) -> bool {
        self.permissions.iter().any(|p| p.action == action && matches(&p.pattern, name))
    }

    /// Refuses what is not covered, naming the permission that is missing.
    ///
    /// # Errors
    /// `forbidden`.
    pub fn require(&self, action: Action, name: &str) -> Result<(), Reject> {
        if self.may(action, name) {
            return Ok(());
        }
        let action = action.as_str();
        let text = format!("{} may not {action} {name}; the token needs {action}:{name}", self.user);
        Err(Reject::new(RejectCode::Forbidden, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let check = |pattern: &str, name: &str, expected: bool| {
            assert_eq!(matches(pattern, name), expected, "{pattern} against {name}");
        };
        check("*", "", true);
        check("*", "anything", true);
        check("general", "general", true);
        check("general", "general2", false);
        check("team-*", "team-a", true);
        check("team-*", "team-", true);
        check("team-*", "tea", false);
        check("*-logs", "a-logs-logs", true);
        check("a*b*c", "a-b-b-c", true);
        check("a*b*c", "a-c-b", false);
        check("**a", "ba", true);
        check("", "a", false);
        check(&"*a".repeat(40), &"a".repeat(128), true);
        check(&("*a".repeat(40) + "b"), &"a".repeat(128), false);
    }

    #[test]
    fn permissions_read_as_they_are_written() {
        let check = |text: &str, good: bool| {
            let parsed = text.parse::<Permission>();
            assert_eq!(parsed.is_ok(), good, "{text}");
            if let Ok(permission) = parsed {
                assert_eq!(permission.to_string(), text);
            }
        };
        check("read:*", true);
        check("ask:smollm2-*", true);
        check("admin:*", true);
        check("comment:plan-*", true);
        check("read", false);
        check("read:", false);
        check("delete:*", false);
    }
}
