//! What was let in once and is to be no longer: tokens by their id, users and tenants by a moment.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::{Deserialize, Serialize};
use thalweg_protocol::ids::Name;

use super::limits::{LEEWAY_S, REVOCATIONS_MAX, REVOCATIONS_PER_TENANT_MAX, TOKEN_TTL_S_MAX};
use super::store::{self, AccessError, Stored};

/// What is revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Revoked {
    /// One token, or API key, by its id.
    Token {
        tenant: Name,
        id: u128,
        /// When it expires by itself, if known.
        expires_s: Option<u64>,
    },
    /// Everything a user was given until now.
    User { tenant: Name, user: Name },
    /// Everything anybody in a tenant was given until now.
    Tenant { tenant: Name },
}

/// All revocations in force. Those about what has expired by itself are dropped by [`prune`](Self::prune).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Revocations {
    /// By tenant too, so that nobody revokes, or brings back, what is another tenant's.
    tokens: HashMap<(Name, u128), Token>,
    users: HashMap<(Name, Name), Moment>,
    tenants: HashMap<Name, Moment>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Token {
    until_s: u64,
    reason: String,
}

/// What was issued before is revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Moment {
    before_s: u64,
    reason: String,
}

impl Moment {
    /// Nothing that was issued before it is good after this.
    fn until_s(&self) -> u64 {
        self.before_s + TOKEN_TTL_S_MAX + LEEWAY_S
    }
}

impl Revocations {
    /// Reads those of a data directory.
    pub(crate) fn read(data: &Path) -> Result<Self, AccessError> {
        let Some(file) = store::read::<File>(data)? else { return Ok(Self::default()) };
        let mut all = Self::default();
        for entry in file.revoked {
            let named = |what: &str, text: &str| {
                Name::new(text).map_err(|error| store::damaged::<File>(data, format!("{what} {text:?} {error}")))
            };
            let (tenant, reason) = (named("tenant", &entry.tenant)?, entry.reason);
            match (entry.token, entry.user) {
                (Some(id), None) => {
                    let id =
                        parse_id(&id).ok_or_else(|| store::damaged::<File>(data, format!("{id:?} is no token id")))?;
                    all.tokens.insert((tenant, id), Token { until_s: entry.at_s, reason });
                }
                (None, Some(user)) => {
                    all.users.insert((tenant, named("user", &user)?), Moment { before_s: entry.at_s, reason });
                }
                (None, None) => {
                    all.tenants.insert(tenant, Moment { before_s: entry.at_s, reason });
                }
                (Some(_), Some(_)) => {
                    return Err(store::damaged::<File>(data, "an entry names both a token and a user".into()));
                }
            }
        }
        Ok(all)
    }

    /// Writes them: when this returns they are on the disk.
    pub(crate) fn write(&self, data: &Path) -> Result<(), AccessError> {
        let mut revoked = Vec::with_capacity(self.len());
        let entry = |tenant: &Name, at_s, reason: &String| Entry {
            tenant: tenant.to_string(),
            user: None,
            token: None,
            at_s,
            reason: reason.clone(),
        };
        for ((tenant, id), token) in self.tokens.iter().collect::<BTreeMap<_, _>>() {
            revoked.push(Entry { token: Some(format!("{id:032x}")), ..entry(tenant, token.until_s, &token.reason) });
        }
        for ((tenant, user), moment) in self.users.iter().collect::<BTreeMap<_, _>>() {
            revoked.push(Entry { user: Some(user.to_string()), ..entry(tenant, moment.before_s, &moment.reason) });
        }
        for (tenant, moment) in self.tenants.iter().collect::<BTreeMap<_, _>>() {
            revoked.push(entry(tenant, moment.before_s, &moment.reason));
        }
        store::write(data, &File { revoked })
    }

    /// Adds one, at `now_s`. Everything issued up to and within this second is meant.
    ///
    /// # Errors
    /// If there is no room, with what to do.
    pub(crate) fn add(&mut self, what: Revoked, reason: &str, now_s: u64) -> Result<(), AccessError> {
        self.prune(now_s);
        let (tenant, new) = match &what {
            Revoked::Token { tenant, id, .. } => (tenant, !self.tokens.contains_key(&(tenant.clone(), *id))),
            Revoked::User { tenant, user } => (tenant, !self.users.contains_key(&(tenant.clone(), user.clone()))),
            Revoked::Tenant { tenant } => (tenant, !self.tenants.contains_key(tenant)),
        };
        if new {
            self.check_room(tenant)?;
        }
        let moment = Moment { before_s: self.next_before_s(&what, now_s), reason: reason.to_owned() };
        match what {
            Revoked::Token { tenant, id, expires_s } => {
                let until_s = expires_s.unwrap_or(now_s + TOKEN_TTL_S_MAX).saturating_add(LEEWAY_S);
                self.tokens.insert((tenant, id), Token { until_s, reason: moment.reason });
            }
            Revoked::User { tenant, user } => drop(self.users.insert((tenant, user), moment)),
            Revoked::Tenant { tenant } => {
                // What is about single users and tokens of before is covered.
                self.users.retain(|(of, _), _| *of != tenant);
                self.tenants.insert(tenant, moment);
            }
        }
        Ok(())
    }

    /// What is issued before this is revoked now: up to and within this second, and beyond it what was issued since an
    /// earlier revocation of this second, see [`issued_s`](Self::issued_s).
    fn next_before_s(&self, what: &Revoked, now_s: u64) -> u64 {
        let of = |tenant: &Name| self.tenants.get(tenant).map_or(0, |moment| moment.before_s);
        let latest_s = match what {
            Revoked::Token { .. } => 0,
            Revoked::User { tenant, user } => {
                let user = self.users.get(&(tenant.clone(), user.clone()));
                of(tenant).max(user.map_or(0, |moment| moment.before_s))
            }
            Revoked::Tenant { tenant } => {
                let users = self.users.iter().filter(|((of, _), _)| of == tenant);
                users.map(|(_, moment)| moment.before_s).fold(of(tenant), u64::max)
            }
        };
        if latest_s > now_s { latest_s + 1 } else { now_s + 1 }
    }

    fn check_room(&self, tenant: &Name) -> Result<(), AccessError> {
        let of = self.tokens.keys().filter(|(of, _)| of == tenant).count()
            + self.users.keys().filter(|(of, _)| of == tenant).count();
        let (count, most, whose) = if of >= REVOCATIONS_PER_TENANT_MAX {
            (of, REVOCATIONS_PER_TENANT_MAX, "of the tenant")
        } else {
            (self.len(), REVOCATIONS_MAX, "of the node")
        };
        if count < most {
            return Ok(());
        }
        let text = format!(
            "there are {count} revocations {whose}, as many as are kept; revoke by user or by tenant, or rotate the keys and drop the old"
        );
        Err(AccessError::Full(text))
    }

    /// Whether a credential is revoked.
    pub(crate) fn covers(&self, tenant: &Name, user: &Name, id: u128, issued_s: u64) -> bool {
        let before = |moment: Option<&Moment>| moment.is_some_and(|moment| issued_s < moment.before_s);
        (id != 0 && !self.tokens.is_empty() && self.tokens.contains_key(&(tenant.clone(), id)))
            || before(self.tenants.get(tenant))
            || (!self.users.is_empty() && before(self.users.get(&(tenant.clone(), user.clone()))))
    }

    /// The earliest second at which something may be issued that is not covered.
    pub(crate) fn issued_s(&self, tenant: &Name, user: &Name, now_s: u64) -> u64 {
        let user = self.users.get(&(tenant.clone(), user.clone()));
        let moments = [self.tenants.get(tenant), user];
        // A revocation covers the second it is made in; a token of the same second says the next. No further than clocks
        // may differ: then it waits.
        moments.into_iter().flatten().map(|moment| moment.before_s).fold(now_s, u64::max).min(now_s + LEEWAY_S - 1)
    }

    /// Drops what is about nothing any more. Says whether there was any.
    pub(crate) fn prune(&mut self, now_s: u64) -> bool {
        let before = self.len();
        self.tokens.retain(|_, token| token.until_s >= now_s);
        self.users.retain(|_, moment| moment.until_s() >= now_s);
        self.tenants.retain(|_, moment| moment.until_s() >= now_s);
        self.len() < before
    }

    pub(crate) fn len(&self) -> usize {
        self.tokens.len() + self.users.len() + self.tenants.len()
    }
}

/// The id of a token as people write it: 32 hexadecimal digits.
pub(crate) fn parse_id(text: &str) -> Option<u128> {
    let hexadecimal = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    hexadecimal.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

/// `access/revoked.json`.
#[derive(Serialize, Deserialize)]
struct File {
    revoked: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    tenant: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    /// Of a token: until when the entry is kept. Of a user or tenant: what was issued before is revoked.
    at_s: u64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    reason: String,
}

impl Stored for File {
    const PATH: &'static str = "access/revoked.json";
    const REMEDY: &'static str = "or remove it, but then everything that was revoked is good again: rotate the keys and drop the old ones after that";
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::identity::tests::TempDir;

    const NOW: u64 = 1_000_000;

    fn name(text: &str) -> Name {
        Name::new(text).expect("valid")
    }

    fn sample() -> Revocations {
        let mut all = Revocations::default();
        let add = |all: &mut Revocations, what| all.add(what, "lost", NOW).expect("room");
        add(&mut all, Revoked::Token { tenant: name("a"), id: 7, expires_s: Some(NOW + 100) });
        add(&mut all, Revoked::User { tenant: name("a"), user: name("ada") });
        add(&mut all, Revoked::Tenant { tenant: name("b") });
        all
    }

    #[test]
    fn what_is_covered() {
        let all = sample();
        let check = |tenant: &str, user: &str, id: u128, issued_s: u64, expected: bool| {
            let got = all.covers(&name(tenant), &name(user), id, issued_s);
            assert_eq!(got, expected, "{tenant} {user} {id} {issued_s}");
        };
        check("a", "bob", 7, NOW + 9, true);
        check("c", "bob", 7, NOW + 9, false);
        check("a", "bob", 8, NOW - 9, false);
        check("a", "ada", 8, NOW - 9, true);
        check("a", "ada", 8, NOW, true);
        check("a", "ada", 8, NOW + 1, false);
        check("b", "ada", 0, NOW, true);
        check("b", "ada", 0, NOW + 1, false);
        check("c", "ada", 0, NOW, false);
        assert_eq!(all.issued_s(&name("a"), &name("ada"), NOW), NOW + 1);
        assert_eq!(all.issued_s(&name("a"), &name("bob"), NOW), NOW);
        assert_eq!(all.issued_s(&name("b"), &name("bob"), NOW + 5), NOW + 5);
        // What was issued since is covered by another one of the same second.
        let mut all = all;
        all.add(Revoked::User { tenant: name("a"), user: name("ada") }, "again", NOW).expect("room");
        assert!(all.covers(&name("a"), &name("ada"), 8, NOW + 1));
        assert_eq!(all.issued_s(&name("a"), &name("ada"), NOW), NOW + 2);
        all.add(Revoked::Tenant { tenant: name("a") }, "all", NOW).expect("room");
        assert!(all.covers(&name("a"), &name("ada"), 8, NOW + 2) && !all.covers(&name("a"), &name("ada"), 8, NOW + 3));
    }

    #[test]
    fn entries_go_when_what_they_name_has_expired() {
        let mut all = sample();
        assert!(!all.prune(NOW + 100 + LEEWAY_S));
        assert!(all.prune(NOW + 101 + LEEWAY_S));
        assert_eq!(all.len(), 2);
        assert!(!all.prune(NOW + TOKEN_TTL_S_MAX + LEEWAY_S));
        assert!(all.prune(NOW + TOKEN_TTL_S_MAX + LEEWAY_S + 2));
        assert_eq!(all, Revocations::default());
    }

    #[test]
    fn they_are_kept() {
        let dir = TempDir::new();
        store::make_directories(dir.path()).expect("made");
        assert_eq!(Revocations::read(dir.path()).expect("none"), Revocations::default());
        sample().write(dir.path()).expect("written");
        assert_eq!(Revocations::read(dir.path()).expect("there"), sample());
        let check = |revoked: &str, says: &str| {
            let text = format!("{{\"version\":1,\"revoked\":[{revoked}]}}");
            fs::write(dir.path().join(File::PATH), text).expect("written");
            let error = Revocations::read(dir.path()).expect_err("damaged").to_string();
            assert!(error.contains(says) && error.contains("good again"), "{error} lacks {says:?}");
        };
        check("{\"tenant\":\"a b\",\"at_s\":1}", "tenant \"a b\"");
        check("{\"tenant\":\"a\",\"token\":\"xyz\",\"at_s\":1}", "\"xyz\" is no token id");
        check("{\"tenant\":\"a\"}", "missing field `at_s`");
        check("{\"tenant\":\"a\",\"usr\":\"x\",\"at_s\":1}", "unknown field `usr`");
    }

    #[test]
    fn they_are_bounded() {
        let mut all = Revocations::default();
        let token = |tenant: &str, id| Revoked::Token { tenant: name(tenant), id, expires_s: None };
        for id in 1..=REVOCATIONS_PER_TENANT_MAX as u128 {
            all.tokens.insert((name("a"), id), Token { until_s: u64::MAX, reason: String::new() });
        }
        let error = all.add(token("a", 0xffff_ffff), "", NOW).expect_err("full").to_string();
        assert!(error.contains("of the tenant") && error.contains("rotate"), "{error}");
        all.add(token("a", 1), "again", NOW).expect("it is there already");
        all.add(token("b", 0xffff_ffff), "", NOW).expect("another tenant has room");
    }
}
