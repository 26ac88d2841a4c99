//! What administrators ask of the gate: whether they may, and doing it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use thalweg_domain::permission::{Action, Permission, Principal};
use thalweg_protocol::ids::Name;
use thalweg_protocol::limits::MANAGED_BYTES_MAX;
use thalweg_protocol::reject::{Reject, RejectCode};

use super::access::{MODEL_PREFIX, Source, identify};
use super::apikeys::{API_KEY_PREFIX, parse_key_id};
use super::audit::AuditEvent;
use super::command::{Command, covers, wrong};
use super::keeper::{Asked, Keeper, reject_of};
use super::keyring::Claims;
use super::limits::LISTED_MAX;
use super::link::Told;
use super::login::{user_exists, user_unknown};
use super::revocations::{Revoked, parse_id};

/// The tenant whose administrators may be given the whole node.
pub(crate) const NODE_TENANT: &str = "default";
/// Bytes of an answer that lists, around the entries.
const ENVELOPE_BYTES: usize = 256;

/// Who asked, in which question, from where.
type Given = (Asked, SocketAddr);
/// What was asked for, and with what, for the audit log.
type Deed = (&'static str, String);

/// Whether a principal administers the node as a whole, rather than its tenant: for that its tenant must be `default`, so that
/// no `admin:*` of another one reaches beyond it.
pub(crate) fn administers_node(principal: &Principal) -> bool {
    principal.tenant.as_str() == NODE_TENANT && principal.may(Action::Admin, "node")
}

pub(super) fn require_node(principal: &Principal, what: &str) -> Result<(), Reject> {
    if administers_node(principal) {
        return Ok(());
    }
    let text = format!(
        "{} may not {what}: that is for administrators of the node (tenant {NODE_TENANT}, admin:node)",
        principal.user
    );
    Err(Reject::new(RejectCode::Forbidden, text))
}

impl Keeper {
    /// Carries out a command, or begins to.
    pub(super) fn manage(&mut self, asked: Asked, remote: SocketAddr, principal: &Arc<Principal>, json: &[u8]) {
        let given = (asked, remote);
        let command = match Command::parse(json) {
            Ok(command) => command,
            Err(reject) => return self.refuse_managed(given, principal, ("manage", String::new()), reject),
        };
        let word = command.word();
        match self.carry_out(given, principal, command) {
            Ok(Some((object, mut answer))) => {
                if let Some(fields) = answer.as_object_mut() {
                    fields.insert("ok".into(), json!(true));
                }
                self.answer_managed(given, principal, (word, object), Bytes::from(answer.to_string()));
            }
            // Its password is being hashed, or its model is read.
            Ok(None) => {}
            Err((object, reject)) => self.refuse_managed(given, principal, (word, object), reject),
        }
    }

    pub(super) fn answer_managed(&mut self, given: Given, principal: &Principal, deed: Deed, answer: Bytes) {
        self.note_managed(given, principal, deed, None);
        self.tell(given.0, Told::Managed(Ok(answer)));
    }

    pub(super) fn refuse_managed(&mut self, given: Given, principal: &Principal, deed: Deed, reject: Reject) {
        self.note_managed(given, principal, deed, Some(reject.code));
        self.tell(given.0, Told::Managed(Err(reject)));
    }

    fn note_managed(
        &mut self,
        (_, remote): Given,
        principal: &Principal,
        (action, object): Deed,
        code: Option<RejectCode>,
    ) {
        let event = AuditEvent::new(self.now.wall_us, action, object).by(principal, Some(remote)).refused(code);
        self.audit.push(&event);
    }

    /// The object and the answer; `None` if the answer comes later.
    fn carry_out(
        &mut self,
        given: Given,
        principal: &Arc<Principal>,
        command: Command,
    ) -> Result<Option<(String, Value)>, (String, Reject)> {
        let object = self.object(principal, &command);
        let done = match command {
            Command::UserAdd { tenant, user, password, allow } => {
                let who = self.subject(principal, tenant, user);
                let begun = who.and_then(|who| {
                    self.may_give(principal, &who.1, &allow)?;
                    if self.users.get(&who.0, &who.1).is_some() {
                        return Err(user_exists(&who.1));
                    }
                    self.keep_password(given, principal, who, password, ("user-add", Some(allow)))
                });
                return begun.map(|()| None).map_err(|reject| (object, reject));
            }
            Command::UserPassword { tenant, user, password, old } => {
                let own = user == principal.user && tenant.as_ref().is_none_or(|tenant| *tenant == principal.tenant);
                let begun = match old {
                    Some(old) if own => self.change_own_password(given, principal, (old, password)),
                    _ => self
                        .existing(principal, tenant, user)
                        .and_then(|who| self.keep_password(given, principal, who, password, ("user-password", None))),
                };
                return begun.map(|()| None).map_err(|reject| (object, reject));
            }
            Command::ModelLoad { .. } | Command::ModelUnload { .. } => {
                let deed = (command.word(), object.clone());
                let begun = match command.into_job() {
                    Some(job) => self.begin_model(given, principal, deed, job),
                    None => Err(wrong("not about a model")),
                };
                return begun.map(|()| None).map_err(|reject| (object, reject));
            }
            Command::ModelList {} => self.do_model_list(principal),
            Command::Revoke { .. } => self.do_revoke(principal, command),
            Command::Token { tenant, user, allow, ttl_s } => self.do_token(principal, tenant, user, allow, ttl_s),
            Command::RotateKeys { drop_old } => self.do_rotate(principal, drop_old),
            Command::UserRemove { tenant, user } => self.do_user_remove(principal, tenant, user),
            Command::UserList { tenant, after } => self.do_user_list(principal, tenant, &after),
            Command::UserAllow { tenant, user, allow } => self.do_user_allow(principal, tenant, user, allow),
            Command::KeyCreate { .. } => self.do_key_create(principal, command),
            Command::KeyList { tenant, after } => self.do_key_list(principal, tenant, &after),
            Command::KeyRemove { key } => self.do_key_remove(principal, &key),
            Command::Reload {} => self.do_reload(principal),
            Command::Config {} => self.do_config(principal),
            Command::Audit { limit, tenant } => self.do_audit(principal, limit, tenant),
        };
        match done {
            Ok(answer) => Ok(Some((object, answer))),
            Err(reject) => Err((object, reject)),
        }
    }

    /// What a command is about, for the audit log. No secret.
    fn object(&self, principal: &Principal, command: &Command) -> String {
        let of =
            |tenant: &Option<Name>, user: &Name| format!("{}/{user}", tenant.as_ref().unwrap_or(&principal.tenant));
        match command {
            Command::Token { tenant, user, .. }
            | Command::UserAdd { tenant, user, .. }
            | Command::UserRemove { tenant, user }
            | Command::UserPassword { tenant, user, .. }
            | Command::UserAllow { tenant, user, .. }
            | Command::KeyCreate { tenant, user, .. }
            | Command::Revoke { tenant, user: Some(user), .. } => of(tenant, user),
            Command::Revoke { token: Some(token), .. } => match parse_id(&token.0) {
                Some(id) => format!("token {id:032x}"),
                None => identify(&token.0).map_or_else(String::new, |(_, id, _)| format!("token {id:032x}")),
            },
            Command::Revoke { apikey: Some(key), .. } | Command::KeyRemove { key } => {
                key_id(key).map_or_else(String::new, |id| format!("key {id:016x}"))
            }
            Command::UserList { tenant, .. }
            | Command::KeyList { tenant, .. }
            | Command::Audit { tenant, .. }
            | Command::Revoke { tenant, .. } => tenant.as_ref().unwrap_or(&principal.tenant).to_string(),
            Command::RotateKeys { drop_old } => if *drop_old { "drop_old" } else { "" }.into(),
            Command::ModelLoad { name, .. } | Command::ModelUnload { name, .. } => name.to_string(),
            Command::Reload {} | Command::Config {} | Command::ModelList {} => String::new(),
        }
    }

    /// The tenant a command is about: the administrator's own, or any for one of the node. Says the same of tenants that are
    /// there and that are not.
    fn tenant(&self, principal: &Principal, named: Option<Name>) -> Result<Name, Reject> {
        principal.require(Action::Admin, "access")?;
        match named {
            Some(tenant) if tenant != principal.tenant => {
                require_node(principal, "administer another tenant")?;
                Ok(tenant)
            }
            _ => Ok(principal.tenant.clone()),
        }
    }

    fn subject(&self, principal: &Principal, tenant: Option<Name>, user: Name) -> Result<(Name, Name), Reject> {
        let tenant = self.tenant(principal, tenant)?;
        if user.as_str().starts_with(MODEL_PREFIX) {
            let text = format!("names that begin with {MODEL_PREFIX} are the models'; choose another");
            return Err(Reject::new(RejectCode::NameReserved, text));
        }
        Ok((tenant, user))
    }

    /// Nobody gives away more than they have; who administers the node has everything.
    fn may_give(&self, principal: &Principal, user: &Name, allow: &[Permission]) -> Result<(), Reject> {
        if administers_node(principal) {
            return Ok(());
        }
        covers(&principal.permissions, allow).map_err(|missing| {
            let text = format!("{} may not let {user} do what it may not itself: {missing}", principal.user);
            Reject::new(RejectCode::Forbidden, text)
        })
    }

    /// A user that is there, and has no more rights than the administrator.
    fn existing(&self, principal: &Principal, tenant: Option<Name>, user: Name) -> Result<(Name, Name), Reject> {
        let (tenant, user) = self.subject(principal, tenant, user)?;
        let allow = match self.users.get(&tenant, &user) {
            Some(about) => about.allow.clone(),
            None => return Err(user_unknown(&user)),
        };
        self.may_give(principal, &user, &allow)?;
        Ok((tenant, user))
    }

    /// Revokes durably; API keys among what is revoked are removed.
    pub(super) fn revoke(&mut self, what: Revoked, reason: &str) -> Result<usize, Reject> {
        let failed = |error| reject_of(&error);
        let (tenant, user) = match &what {
            Revoked::Token { .. } => (None, None),
            Revoked::User { tenant, user } => (Some(tenant.clone()), Some(user.clone())),
            Revoked::Tenant { tenant } => (Some(tenant.clone()), None),
        };
        let mut revocations = (*self.access.revocations).clone();
        revocations.add(what, reason, self.now.wall_s()).map_err(failed)?;
        self.put_revocations(revocations).map_err(failed)?;
        let mut removed = 0;
        if let Some(tenant) = tenant {
            let mut api_keys = (*self.access.api_keys).clone();
            removed = api_keys.remove_of(&tenant, user.as_ref());
            if removed > 0 {
                self.put_api_keys(api_keys).map_err(failed)?;
            }
        }
        self.refresh_local();
        Ok(removed)
    }

    fn do_revoke(&mut self, principal: &Principal, command: Command) -> Result<Value, Reject> {
        let Command::Revoke { token, apikey, user, tenant, reason, .. } = command else {
            return Err(wrong("not a revoke"));
        };
        if let Some(key) = apikey {
            return self.do_key_remove(principal, &key);
        }
        if let Some(token) = token {
            let (of, id, expires_s) = self.token_named(&token.0)?;
            let tenant = self.tenant(principal, tenant.or(of))?;
            self.revoke(Revoked::Token { tenant, id, expires_s }, &reason)?;
            return Ok(json!({ "id": format!("{id:032x}") }));
        }
        let tenant = self.tenant(principal, tenant)?;
        let what = match user {
            Some(user) => Revoked::User { tenant, user },
            None => Revoked::Tenant { tenant },
        };
        let keys_removed = self.revoke(what, &reason)?;
        Ok(json!({ "keys_removed": keys_removed }))
    }

    /// Tenant, id and expiry of a token that is named by its id or by its text.
    fn token_named(&self, text: &str) -> Result<(Option<Name>, u128, Option<u64>), Reject> {
        if let Some(id) = parse_id(text) {
            return Ok((None, id, None));
        }
        if text.starts_with(API_KEY_PREFIX) {
            return Err(wrong("revoke: that is an API key; name it as apikey"));
        }
        if let Ok(admission) = self.access.check(text, self.now.wall_s())
            && !matches!(admission.source, Source::ApiKey { .. })
        {
            return Ok((Some(admission.tenant), admission.credential.id, Some(admission.credential.expires_s)));
        }
        identify(text)
            .ok_or_else(|| wrong("revoke: token is neither a token nor the 32 hexadecimal digits of a token's id"))
    }

    fn do_token(
        &mut self,
        principal: &Principal,
        tenant: Option<Name>,
        user: Name,
        allow: Vec<Permission>,
        ttl_s: u64,
    ) -> Result<Value, Reject> {
        let (tenant, user) = self.subject(principal, tenant, user)?;
        self.may_give(principal, &user, &allow)?;
        let claims = Claims { tenant, user, allow, ttl: Duration::from_secs(ttl_s) };
        let minted = self.mint(&claims).map_err(|error| reject_of(&error))?;
        let id = format!("{:032x}", minted.id);
        Ok(json!({ "token": minted.token, "id": id, "expires_s": minted.expires_s }))
    }

    fn do_rotate(&mut self, principal: &Principal, drop_old: bool) -> Result<Value, Reject> {
        principal.require(Action::Admin, "access")?;
        require_node(principal, "rotate the node's keys")?;
        let kid = self.ring.rotate(self.now.wall_s(), drop_old).map_err(|error| reject_of(&error))?;
        self.keys_changed();
        self.refresh_local();
        let key = |(kid, created_s, last_expiry_s): (&str, u64, u64)| json!({ "key": kid, "created_s": created_s, "last_expiry_s": last_expiry_s });
        let keys: Vec<Value> = self.ring.list().map(key).collect();
        Ok(json!({ "key": kid, "keys": keys }))
    }

    fn do_user_remove(&mut self, principal: &Principal, tenant: Option<Name>, user: Name) -> Result<Value, Reject> {
        let (tenant, user) = self.existing(principal, tenant, user)?;
        let mut users = self.users.clone();
        users.remove(&tenant, &user);
        self.put_users(users).map_err(|error| reject_of(&error))?;
        let keys_removed = self.revoke(Revoked::User { tenant, user }, "the user was removed")?;
        Ok(json!({ "keys_removed": keys_removed }))
    }

    fn do_user_allow(
        &mut self,
        principal: &Principal,
        tenant: Option<Name>,
        user: Name,
        allow: Vec<Permission>,
    ) -> Result<Value, Reject> {
        let (tenant, user) = self.existing(principal, tenant, user)?;
        self.may_give(principal, &user, &allow)?;
        let mut users = self.users.clone();
        let mut about = users.get(&tenant, &user).cloned().ok_or_else(|| user_unknown(&user))?;
        (about.allow, about.changed_s) = (allow, self.now.wall_s());
        users.put(tenant, user, about).and_then(|()| self.put_users(users)).map_err(|error| reject_of(&error))?;
        Ok(json!({}))
    }

    fn do_user_list(&self, principal: &Principal, tenant: Option<Name>, after: &str) -> Result<Value, Reject> {
        let tenant = self.tenant(principal, tenant)?;
        let users = self.users.of(&tenant).filter(|(user, _)| user.as_str() > after).map(|(user, about)| {
            let (created_s, changed_s) = (about.created_s, about.changed_s);
            json!({ "user": user.as_str(), "allow": texts(&about.allow), "created_s": created_s, "changed_s": changed_s })
        });
        let (users, more) = page(users);
        Ok(json!({ "tenant": tenant.as_str(), "users": users, "more": more }))
    }

    fn do_key_create(&mut self, principal: &Principal, command: Command) -> Result<Value, Reject> {
        let Command::KeyCreate { tenant, user, allow, ttl_s, note } = command else {
            return Err(wrong("not a key-create"));
        };
        let who = self.subject(principal, tenant, user)?;
        self.may_give(principal, &who.1, &allow)?;
        // A key is as good as a token: one that is made in the second of a revocation is not covered by it.
        let created_s = self.access.revocations.issued_s(&who.0, &who.1, self.now.wall_s());
        let expires_s = ttl_s.map_or(0, |ttl_s| created_s + ttl_s);
        let mut api_keys = (*self.access.api_keys).clone();
        let made = api_keys.create(who, allow, (created_s, expires_s), note);
        let (id, key) = made.map_err(|error| reject_of(&error))?;
        self.put_api_keys(api_keys).map_err(|error| reject_of(&error))?;
        Ok(json!({ "key": key, "id": format!("{id:016x}"), "expires_s": expires_s }))
    }

    fn do_key_list(&self, principal: &Principal, tenant: Option<Name>, after: &str) -> Result<Value, Reject> {
        let tenant = self.tenant(principal, tenant)?;
        let after =
            if after.is_empty() { None } else { Some(key_id(after).ok_or_else(|| wrong("after: no id of a key"))?) };
        let api_keys = self.access.api_keys.iter().filter(|(id, key)| key.tenant == tenant && Some(*id) > after);
        let (keys, more) = page(api_keys.map(|(id, key)| {
            json!({
                "id": format!("{id:016x}"), "user": key.user.as_str(), "allow": texts(&key.allow),
                "created_s": key.created_s, "expires_s": key.expires_s, "note": key.note,
            })
        }));
        Ok(json!({ "tenant": tenant.as_str(), "keys": keys, "more": more }))
    }

    fn do_key_remove(&mut self, principal: &Principal, key: &str) -> Result<Value, Reject> {
        principal.require(Action::Admin, "access")?;
        let unknown =
            || Reject::new(RejectCode::ParameterInvalid, "there is no such API key in the tenant; see key-list");
        let id = key_id(key)
            .ok_or_else(|| wrong("key: give the 16 hexadecimal digits of the key's id, or the whole key"))?;
        let about = self.access.api_keys.get(id).ok_or_else(unknown)?;
        // One of another tenant is as unknown as one that is not there.
        if about.tenant != principal.tenant && !administers_node(principal) {
            return Err(unknown());
        }
        let mut api_keys = (*self.access.api_keys).clone();
        api_keys.remove(id);
        self.put_api_keys(api_keys).map_err(|error| reject_of(&error))?;
        Ok(json!({ "id": format!("{id:016x}") }))
    }

    fn do_reload(&mut self, principal: &Principal) -> Result<Value, Reject> {
        principal.require(Action::Admin, "config")?;
        require_node(principal, "reload the node's configuration")?;
        let Some(reloader) = self.reloader.clone() else {
            return Err(Reject::new(RejectCode::ParameterInvalid, "this node reads no configuration again"));
        };
        match reloader.reload() {
            Ok(report) => Ok(json!({ "reload": report })),
            Err(error) => Err(Reject::new(RejectCode::ParameterInvalid, error.to_string())),
        }
    }

    fn do_config(&self, principal: &Principal) -> Result<Value, Reject> {
        principal.require(Action::Admin, "config")?;
        require_node(principal, "see the node's configuration")?;
        let running = self.reloader.as_ref().and_then(|reloader| reloader.running());
        Ok(json!({ "config": running }))
    }

    fn do_audit(&self, principal: &Principal, limit: usize, tenant: Option<Name>) -> Result<Value, Reject> {
        principal.require(Action::Admin, "access")?;
        let whose = match tenant {
            None if administers_node(principal) => None,
            tenant => Some(self.tenant(principal, tenant)?),
        };
        let (events, more) = self.audit.tail(whose.as_ref(), limit.min(LISTED_MAX), MANAGED_BYTES_MAX - ENVELOPE_BYTES);
        let mut answer = json!({ "events": events, "more": more });
        // How much the whole node lost says something of what others do.
        if whose.is_none() {
            answer["lost"] = json!(self.audit.dropped());
        }
        Ok(answer)
    }
}

/// The id of an API key that is named by it, or by its whole text.
fn key_id(text: &str) -> Option<u64> {
    match text.strip_prefix(API_KEY_PREFIX) {
        Some(rest) => parse_key_id(rest.split('_').next()?),
        None => parse_key_id(text),
    }
}

fn texts(allow: &[Permission]) -> Vec<String> {
    allow.iter().map(Permission::to_string).collect()
}

/// As many entries as fit in an answer, and whether there are more.
fn page(mut entries: impl Iterator<Item = Value>) -> (Vec<Value>, bool) {
    let (mut page, mut left) =
        (Vec::new(), MANAGED_BYTES_MAX - ENVELOPE_BYTES - thalweg_protocol::limits::NAME_BYTES_MAX);
    for entry in entries.by_ref() {
        let bytes = entry.to_string().len() + 1;
        if page.len() >= LISTED_MAX || bytes > left {
            return (page, true);
        }
        left -= bytes;
        page.push(entry);
    }
    (page, false)
}
