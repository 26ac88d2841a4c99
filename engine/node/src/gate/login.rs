//! Passwords: logging in with one, and changing one.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use thalweg_domain::permission::{Permission, Principal};
use thalweg_protocol::ids::{Name, SessionId};
use thalweg_protocol::limits::PASSWORD_BYTES_MAX;
use thalweg_protocol::reject::{Reject, RejectCode};

use super::command::Secret;
use super::keeper::{Asked, HashJob, HashResult, HashTask, Keeper, Output, reject_of};
use super::keyring::Claims;
use super::limits::{HASHES_WAITING_MAX, LOGINS_AT_ONCE_MAX};
use super::link::Told;
use super::revocations::Revoked;
use super::users::User;

/// What a password that is being hashed is for.
pub(crate) struct Hashing {
    asked: Asked,
    remote: SocketAddr,
    purpose: Purpose,
}

enum Purpose {
    /// To let somebody in, if it is the one of this hash.
    LogIn { who: (Name, Name), against: Option<String> },
    /// To change it, if it is the one of this hash.
    Prove { principal: Arc<Principal>, against: Option<String>, new: Secret },
    /// To keep it: of a new user, or of one that is there.
    Keep { principal: Arc<Principal>, who: (Name, Name), allow: Option<Vec<Permission>>, action: &'static str },
}

/// The same for a wrong password, a user that is not there, and one of another tenant.
fn login_failed(wait_ms: u32) -> Reject {
    Reject::new(RejectCode::LoginFailed, "tenant, user or password is wrong").retry_after_ms(wait_ms)
}

impl Keeper {
    /// Begins to check a password. The answer comes when it was hashed, unless there is no point.
    pub(super) fn login(&mut self, asked: Asked, remote: SocketAddr, who: (Name, Name), password: Secret) {
        let from = remote.ip();
        let wait_ms = self.attempts.wait_ms(&who, from, self.now.mono_us);
        let reject = if !self.config.login {
            let text = "this node takes no passwords (access.login is off); use a token";
            Some(Reject::new(RejectCode::LoginFailed, text))
        } else if password.0.len() > PASSWORD_BYTES_MAX {
            Some(login_failed(0))
        } else if wait_ms > 0 {
            let text = "too many logins failed; come back after the delay";
            Some(Reject::new(RejectCode::RateLimited, text).retry_after_ms(wait_ms))
        } else {
            self.too_many(from)
        };
        if let Some(reject) = reject {
            self.note("login", String::new(), (Some(&who.0), Some(&who.1), SessionId(0)), remote, Some(reject.code));
            return self.tell(asked, Told::LoggedIn(Err(reject)));
        }
        let against = self.users.get(&who.0, &who.1).map(|user| user.password.clone());
        let task = HashTask::Compare(against.clone().map(Secret));
        self.hash(Hashing { asked, remote, purpose: Purpose::LogIn { who, against } }, password, task);
    }

    /// Whether too many passwords are being hashed, in all or from one address.
    fn too_many(&self, from: IpAddr) -> Option<Reject> {
        let here = self.hashing.values().filter(|hashing| hashing.remote.ip() == from).count();
        if here >= LOGINS_AT_ONCE_MAX {
            let text = "too many logins at once; wait for the answers";
            return Some(Reject::new(RejectCode::RateLimited, text).retry_after_ms(1_000));
        }
        (self.hashing.len() >= HASHES_WAITING_MAX).then(busy)
    }

    fn hash(&mut self, hashing: Hashing, password: Secret, task: HashTask) {
        self.hashings += 1;
        let ticket = self.hashings;
        self.hashing.insert(ticket, hashing);
        self.outputs.push_back(Output::Hash(HashJob { ticket, password, task }));
    }

    /// Begins to make the hash of a password that is to be kept.
    pub(super) fn keep_password(
        &mut self,
        (asked, remote): (Asked, SocketAddr),
        principal: &Arc<Principal>,
        who: (Name, Name),
        password: Secret,
        (action, allow): (&'static str, Option<Vec<Permission>>),
    ) -> Result<(), Reject> {
        if self.hashing.len() >= HASHES_WAITING_MAX {
            return Err(busy());
        }
        let purpose = Purpose::Keep { principal: Arc::clone(principal), who, allow, action };
        self.hash(Hashing { asked, remote, purpose }, password, HashTask::Make);
        Ok(())
    }

    /// Begins to change somebody's own password, which the old one must be given for.
    pub(super) fn change_own_password(
        &mut self,
        (asked, remote): (Asked, SocketAddr),
        principal: &Arc<Principal>,
        (old, new): (Secret, Secret),
    ) -> Result<(), Reject> {
        let who = (principal.tenant.clone(), principal.user.clone());
        let wait_ms = self.attempts.wait_ms(&who, remote.ip(), self.now.mono_us);
        if wait_ms > 0 {
            let text = "too many passwords were wrong; come back after the delay";
            return Err(Reject::new(RejectCode::RateLimited, text).retry_after_ms(wait_ms));
        }
        if let Some(reject) = self.too_many(remote.ip()) {
            return Err(reject);
        }
        let against = self.users.get(&who.0, &who.1).map(|user| user.password.clone());
        let task = HashTask::Compare(against.clone().map(Secret));
        let purpose = Purpose::Prove { principal: Arc::clone(principal), against, new };
        self.hash(Hashing { asked, remote, purpose }, old, task);
        Ok(())
    }

    /// A password was hashed.
    pub(crate) fn hashed(&mut self, ticket: u64, result: HashResult) {
        let Some(Hashing { asked, remote, purpose }) = self.hashing.remove(&ticket) else { return };
        match (purpose, result) {
            (Purpose::LogIn { who, against }, HashResult::Compared(same)) => {
                let told = self.logged_in(&who, remote, same.then_some(against).flatten());
                let code = told.as_ref().err().map(|reject| reject.code);
                self.note("login", String::new(), (Some(&who.0), Some(&who.1), SessionId(0)), remote, code);
                self.tell(asked, Told::LoggedIn(told));
            }
            (Purpose::Prove { principal, against, new }, HashResult::Compared(same)) => {
                let who = (principal.tenant.clone(), principal.user.clone());
                let given = (asked, remote);
                let result = if same && against.is_some() {
                    self.attempts.succeeded(&who);
                    self.keep_password(given, &principal, who, new, ("user-password", None))
                } else {
                    Err(login_failed(self.attempts.failed(&who, remote.ip(), self.now.mono_us)))
                };
                if let Err(reject) = result {
                    self.refuse_managed(given, &principal, ("user-password", principal.user.to_string()), reject);
                }
            }
            (Purpose::Keep { principal, who, allow, action }, HashResult::Made(hash)) => {
                let object = format!("{}/{}", who.0, who.1);
                match self.keep(who, allow, hash) {
                    Ok(()) => {
                        let answer = Bytes::from(json!({ "ok": true }).to_string());
                        self.answer_managed((asked, remote), &principal, (action, object), answer);
                    }
                    Err(reject) => self.refuse_managed((asked, remote), &principal, (action, object), reject),
                }
            }
            (Purpose::LogIn { .. } | Purpose::Prove { .. }, HashResult::Made(_))
            | (Purpose::Keep { .. }, HashResult::Compared(_)) => {
                debug_assert!(false, "each kind of job has its kind of result");
            }
        }
    }

    /// The token of one whose password was compared; `hash` is the one it was right for.
    fn logged_in(
        &mut self,
        who: &(Name, Name),
        remote: SocketAddr,
        hash: Option<String>,
    ) -> Result<(String, u64), Reject> {
        // Somebody may have changed or removed the user meanwhile.
        let user = self.users.get(&who.0, &who.1).filter(|user| hash.as_ref() == Some(&user.password));
        let Some(user) = user else {
            return Err(login_failed(self.attempts.failed(who, remote.ip(), self.now.mono_us)));
        };
        let claims = Claims {
            tenant: who.0.clone(),
            user: who.1.clone(),
            allow: user.allow.clone(),
            ttl: Duration::from_secs(self.config.token_ttl_s),
        };
        self.attempts.succeeded(who);
        let minted = self.mint(&claims).map_err(|error| reject_of(&error))?;
        Ok((minted.token, minted.expires_s))
    }

    /// Keeps the hash of a password: of a new user if there is a list of what it may do, of one that is there otherwise.
    fn keep(
        &mut self,
        who: (Name, Name),
        allow: Option<Vec<Permission>>,
        hash: Result<String, String>,
    ) -> Result<(), Reject> {
        let password = hash.map_err(|error| {
            tracing::error!(error, "a password could not be hashed");
            Reject::new(RejectCode::Internal, "the password could not be hashed; the node's log says why")
        })?;
        let (now_s, there) = (self.now.wall_s(), self.users.get(&who.0, &who.1).cloned());
        let user = match (there, allow) {
            (None, Some(allow)) => User { allow, created_s: now_s, changed_s: now_s, password },
            (Some(user), None) => {
                // Whoever knew the old password may have a token.
                self.revoke(Revoked::User { tenant: who.0.clone(), user: who.1.clone() }, "the password was changed")?;
                User { changed_s: now_s, password, ..user }
            }
            (Some(_), Some(_)) => return Err(user_exists(&who.1)),
            (None, None) => return Err(user_unknown(&who.1)),
        };
        let mut users = self.users.clone();
        users.put(who.0, who.1, user).and_then(|()| self.put_users(users)).map_err(|error| reject_of(&error))
    }
}

fn busy() -> Reject {
    Reject::new(RejectCode::Busy, "too many passwords wait to be hashed").retry_after_ms(1_000)
}

pub(super) fn user_exists(user: &Name) -> Reject {
    let text =
        format!("there is a user {user} already; change it with user-password and user-allow, or remove it first");
    Reject::new(RejectCode::ParameterInvalid, text)
}

pub(super) fn user_unknown(user: &Name) -> Reject {
    Reject::new(RejectCode::UserUnknown, format!("there is no user {user} with a password in the tenant"))
}
