//! What the gate knows and decides: keys, revocations, users, API keys, issuers, the audit log.
//!
//! The keeper is called by the gate's thread: [`handle`](Keeper::handle) a question, then drain [`poll`](Keeper::poll). It
//! writes its files itself, but hashes no password and asks no issuer: those it gives out as jobs.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use thalweg_protocol::ids::{Name, SessionId};
use thalweg_protocol::reject::{Reject, RejectCode};

use super::access::{Access, Refusal};
use super::apikeys::ApiKeys;
use super::attempts::Attempts;
use super::audit::{AuditEvent, AuditLog};
use super::command::Secret;
use super::config::{AccessConfig, AccessConfigError, Issuer};
use super::issuers::{IssuerDesk, Wait};
use super::jwks::IssuerKey;
use super::keyring::{Claims, KeyRing, Minted};
use super::limits::LEEWAY_S;
use super::link::{Question, Told, Wanted};
use super::login::Hashing;
use super::revocations::Revocations;
use super::store::AccessError;
use super::users::Users;
use crate::identity::{TOKEN_FILE, write_secret};
use crate::models::{ModelDesk, ModelJob};
use crate::reload::Reloader;

/// How often what has expired is looked for, in microseconds.
const PRUNE_US: u64 = 60_000_000;
/// The local token lives so long; it is made anew at each start, and before it expires.
const LOCAL_TOKEN_TTL_S: u64 = 365 * 24 * 3600;

/// The time: since 1970, and of a clock that does not step. In microseconds.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Now {
    pub(crate) wall_us: u64,
    pub(crate) mono_us: u64,
}

impl Now {
    /// Now, on a clock that counts from a moment.
    pub(crate) fn since(origin: Instant) -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { wall_us: wall.as_micros() as u64, mono_us: origin.elapsed().as_micros() as u64 }
    }

    pub(crate) fn wall_s(self) -> u64 {
        self.wall_us / 1_000_000
    }
}

/// Who asked: a core, and its number for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) core: usize,
    pub(crate) number: u64,
}

/// What the keeper wants done.
#[derive(Debug)]
pub(crate) enum Output {
    /// Answer a core.
    Tell(Asked, Told),
    /// Hash a password; [`Keeper::hashed`] follows.
    Hash(HashJob),
    /// Ask an issuer, known by this number, for its keys; [`Keeper::issuer_answered`] follows.
    Fetch(u64, Arc<Issuer>),
    /// Load or unload a model; [`Keeper::model_done`] follows under this ticket.
    Model(u64, ModelJob),
}

/// Work that takes long on purpose.
#[derive(Debug)]
pub(crate) struct HashJob {
    pub(crate) ticket: u64,
    pub(crate) password: Secret,
    pub(crate) task: HashTask,
}

/// What to do with a password.
#[derive(Debug)]
pub(crate) enum HashTask {
    /// Make a hash of it.
    Make,
    /// Compare it with a hash; with none, take as long and say no.
    Compare(Option<Secret>),
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum HashResult {
    Made(Result<String, String>),
    Compared(bool),
}

/// Who waits for an issuer's keys.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    asked: Asked,
    token: Secret,
}

/// See the module.
pub(crate) struct Keeper {
    pub(super) data: PathBuf,
    pub(super) config: AccessConfig,
    pub(super) ring: KeyRing,
    pub(super) users: Users,
    pub(super) access: Access,
    /// Whether the cores have to be told.
    pub(super) changed: bool,
    pub(super) attempts: Attempts,
    pub(super) audit: AuditLog,
    pub(super) hashing: BTreeMap<u64, Hashing>,
    pub(super) hashings: u64,
    pub(super) outputs: VecDeque<Output>,
    pub(super) reloader: Option<Arc<Reloader>>,
    pub(super) models: Option<Arc<ModelDesk>>,
    /// Administrators who wait for a model, by ticket.
    pub(super) model_jobs: BTreeMap<u64, super::models::Waits>,
    pub(super) model_tickets: u64,
    pub(super) now: Now,
    /// In the order of `access.issuers`, each with its number.
    issuers: Vec<(u64, IssuerDesk<Waiting>)>,
    issuers_made: u64,
    local: Option<(Claims, Minted)>,
    next_prune_us: u64,
}

/// Why there is no keeper, or it does not take a configuration.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// A file of the gate cannot be used.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The configuration makes no sense.
    #[error(transparent)]
    Config(#[from] AccessConfigError),
}

impl Keeper {
    /// Opens what a data directory holds.
    pub(crate) fn open(data: &Path, config: AccessConfig, now: Now) -> Result<Self, GateError> {
        let ring = KeyRing::open(data, now.wall_s())?;
        let access = Access {
            keys: ring.public(),
            revocations: Arc::new(Revocations::read(data)?),
            api_keys: Arc::new(ApiKeys::read(data)?),
            issuers: Arc::new([]),
        };
        let audit = AuditLog::open(data, config.audit_file_bytes, config.audit_files)?;
        let mut keeper = Self {
            data: data.to_owned(),
            config: AccessConfig::default(),
            ring,
            users: Users::read(data)?,
            access,
            changed: true,
            attempts: Attempts::default(),
            audit,
            hashing: BTreeMap::new(),
            hashings: 0,
            outputs: VecDeque::new(),
            reloader: None,
            models: None,
            model_jobs: BTreeMap::new(),
            model_tickets: 0,
            now,
            issuers: Vec::new(),
            issuers_made: 0,
            local: None,
            next_prune_us: now.mono_us + PRUNE_US,
        };
        keeper.configure(config)?;
        Ok(keeper)
    }

    /// Takes over another configuration. Issuers whose settings did not change keep their keys.
    pub(crate) fn configure(&mut self, config: AccessConfig) -> Result<(), AccessConfigError> {
        let issuers = config.checked_issuers()?;
        let mut before = std::mem::take(&mut self.issuers);
        for issuer in issuers {
            let known = before.iter().position(|(_, desk)| *desk.keys.issuer == issuer);
            let entry = known.map(|at| before.swap_remove(at)).unwrap_or_else(|| {
                self.issuers_made += 1;
                (self.issuers_made, IssuerDesk::new(Arc::new(issuer)))
            });
            self.issuers.push(entry);
        }
        self.audit.set_bounds(config.audit_file_bytes, config.audit_files);
        self.config = config;
        self.issuers_changed();
        for waiting in before.iter_mut().flat_map(|(_, desk)| desk.take_waiting()) {
            self.check(waiting);
        }
        Ok(())
    }

    /// Reads the signing keys again.
    pub(crate) fn reread_keys(&mut self) -> Result<(), AccessError> {
        self.ring = KeyRing::open(&self.data, self.now.wall_s())?;
        self.keys_changed();
        Ok(())
    }

    /// Makes the token that lets clients on this machine in, and keeps it good from now on.
    pub(crate) fn local_token(&mut self, mut claims: Claims) -> Result<String, AccessError> {
        claims.ttl = Duration::from_secs(LOCAL_TOKEN_TTL_S);
        let minted = self.mint(&claims)?;
        write_secret(&self.data.join(TOKEN_FILE), minted.token.as_bytes())?;
        let token = minted.token.clone();
        self.local = Some((claims, minted));
        Ok(token)
    }

    /// What every core needs to know.
    pub(crate) fn snapshot(&self) -> Arc<Access> {
        Arc::new(self.access.clone())
    }

    /// The snapshot, if it changed since it was last asked for.
    pub(crate) fn news(&mut self) -> Option<Arc<Access>> {
        std::mem::take(&mut self.changed).then(|| self.snapshot())
    }

    /// Has models loaded and unloaded by this.
    pub(crate) fn set_models(&mut self, models: Arc<ModelDesk>) {
        self.models = Some(models);
    }

    /// What loads and unloads models, if anything does.
    pub(crate) fn models(&self) -> Option<Arc<ModelDesk>> {
        self.models.clone()
    }

    /// Who reloads the node's settings.
    pub(crate) fn set_reloader(&mut self, reloader: Arc<Reloader>) {
        self.reloader = Some(reloader);
    }

    /// The time of what follows.
    pub(crate) fn set_time(&mut self, now: Now) {
        self.now = now;
    }

    /// Takes a question of a core; its answer comes from [`poll`](Self::poll), perhaps later.
    pub(crate) fn handle(&mut self, core: usize, question: Question) {
        let Question { number, remote, wanted } = question;
        let asked = Asked { core, number };
        match wanted {
            Wanted::Check { token } => self.check(Waiting { asked, token }),
            Wanted::Login { tenant, user, password } => self.login(asked, remote, (tenant, user), password),
            Wanted::Manage { principal, json } => self.manage(asked, remote, &principal, &json),
        }
    }

    /// The next thing to be done.
    pub(crate) fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Takes an event for the audit log, or the number of those that were lost.
    pub(crate) fn noted(&mut self, event: Result<AuditEvent, u64>) {
        match event {
            Ok(event) => self.audit.push(&event),
            Err(count) => self.audit.lost(count, self.now.wall_us),
        }
    }

    /// Writes what was noted.
    pub(crate) fn flush_audit(&mut self) {
        self.audit.flush();
    }

    /// Leaves everything on the disk.
    pub(crate) fn close(&mut self) {
        self.audit.sync();
    }

    /// The numbers of the issuers there are.
    pub(crate) fn issuer_numbers(&self) -> impl Iterator<Item = u64> {
        self.issuers.iter().map(|(number, _)| *number)
    }

    /// When [`timeout`](Self::timeout) is to be called, on the clock that does not step.
    pub(crate) fn next_deadline_us(&self) -> u64 {
        self.issuers.iter().map(|(_, desk)| desk.next_us()).fold(self.next_prune_us, u64::min)
    }

    /// Does what is due.
    pub(crate) fn timeout(&mut self) {
        for (number, desk) in &mut self.issuers {
            if desk.is_due(self.now.mono_us) {
                self.outputs.push_back(Output::Fetch(*number, Arc::clone(&desk.keys.issuer)));
            }
        }
        if self.next_prune_us <= self.now.mono_us {
            self.next_prune_us = self.now.mono_us + PRUNE_US;
            if let Err(error) = self.prune() {
                tracing::warn!(%error, "what has expired stays in the files of the gate for now");
            }
            self.refresh_local();
            self.audit.sync();
        }
    }

    /// Drops what has expired.
    fn prune(&mut self) -> Result<(), AccessError> {
        let now_s = self.now.wall_s();
        let mut revocations = (*self.access.revocations).clone();
        if revocations.prune(now_s) {
            revocations.write(&self.data)?;
            self.access.revocations = Arc::new(revocations);
            self.changed = true;
        }
        let mut api_keys = (*self.access.api_keys).clone();
        // Those who are in with one are told by their core that it has expired, and need to find it for that.
        if api_keys.prune(now_s.saturating_sub(2 * LEEWAY_S)) {
            self.put_api_keys(api_keys)?;
        }
        if self.ring.prune(now_s)? {
            self.keys_changed();
        }
        Ok(())
    }

    /// Makes the local token anew if it is not good for long any more.
    pub(super) fn refresh_local(&mut self) {
        let Some((claims, minted)) = &self.local else { return };
        let now_s = self.now.wall_s();
        let good = self.access.check(&minted.token, now_s).is_ok() && minted.expires_s > now_s + LOCAL_TOKEN_TTL_S / 2;
        if good {
            return;
        }
        let claims = claims.clone();
        if let Err(error) = self.local_token(claims) {
            tracing::error!(%error, "clients on this machine cannot be let in with {TOKEN_FILE} any more");
        }
    }

    /// Signs a token.
    pub(super) fn mint(&mut self, claims: &Claims) -> Result<Minted, AccessError> {
        let issued_s = self.access.revocations.issued_s(&claims.tenant, &claims.user, self.now.wall_s());
        self.ring.mint(claims, issued_s)
    }

    pub(super) fn keys_changed(&mut self) {
        self.access.keys = self.ring.public();
        self.changed = true;
    }

    pub(super) fn put_revocations(&mut self, revocations: Revocations) -> Result<(), AccessError> {
        revocations.write(&self.data)?;
        self.access.revocations = Arc::new(revocations);
        self.changed = true;
        Ok(())
    }

    pub(super) fn put_api_keys(&mut self, api_keys: ApiKeys) -> Result<(), AccessError> {
        api_keys.write(&self.data)?;
        self.access.api_keys = Arc::new(api_keys);
        self.changed = true;
        Ok(())
    }

    pub(super) fn put_users(&mut self, users: Users) -> Result<(), AccessError> {
        users.write(&self.data)?;
        self.users = users;
        Ok(())
    }

    fn issuers_changed(&mut self) {
        self.access.issuers = self.issuers.iter().map(|(_, desk)| desk.keys.clone()).collect();
        self.changed = true;
    }

    /// Checks a token whose key a core did not know; asks its issuer if the gate does not either.
    fn check(&mut self, waiting: Waiting) {
        match self.access.check(&waiting.token.0, self.now.wall_s()) {
            Ok(admission) => self.tell(waiting.asked, Told::Checked(Ok(Box::new(admission)))),
            Err(Refusal::Final(reject)) => self.tell(waiting.asked, Told::Checked(Err(reject))),
            Err(Refusal::AskIssuer(at)) => match self.issuers[at].1.unknown(waiting, self.now.mono_us) {
                Wait::Waits => self.timeout(),
                Wait::Refused(waiting, reject) => self.tell(waiting.asked, Told::Checked(Err(reject))),
            },
        }
    }

    /// An issuer gave its keys, or not: those who waited for them are answered.
    pub(crate) fn issuer_answered(&mut self, number: u64, result: Result<Vec<IssuerKey>, String>) {
        let (now, found) = (self.now, self.issuers.iter_mut().find(|(known, _)| *known == number));
        // One that is no longer configured.
        let Some((_, desk)) = found else { return };
        let failed = result.is_err();
        let url = desk.keys.url.to_string();
        let waited = desk.answered(result, now.mono_us, now.wall_s());
        let refusal = desk.refusal(now.mono_us);
        if failed {
            let event = AuditEvent::new(now.wall_us, "issuer-keys", url).refused(Some(RejectCode::IssuerUnavailable));
            self.audit.push(&event);
        } else {
            self.issuers_changed();
        }
        for waiting in waited {
            let told = match self.access.check(&waiting.token.0, now.wall_s()) {
                Ok(admission) => Ok(Box::new(admission)),
                Err(Refusal::Final(reject)) => Err(reject),
                Err(Refusal::AskIssuer(_)) => Err(refusal.clone()),
            };
            self.tell(waiting.asked, Told::Checked(told));
        }
    }

    pub(super) fn tell(&mut self, asked: Asked, told: Told) {
        self.outputs.push_back(Output::Tell(asked, told));
    }

    /// Notes a decision of the gate's own.
    pub(super) fn note(
        &mut self,
        action: &'static str,
        object: String,
        who: (Option<&Name>, Option<&Name>, SessionId),
        remote: SocketAddr,
        refused: Option<RejectCode>,
    ) {
        let (tenant, user, session) = who;
        let event = AuditEvent {
            tenant: tenant.cloned(),
            user: user.cloned(),
            session,
            remote: Some(remote),
            refused,
            ..AuditEvent::new(self.now.wall_us, action, object)
        };
        self.audit.push(&event);
    }
}

/// What a client is told of a failure of the gate's files. The node's log says more, for it may name paths.
pub(super) fn reject_of(error: &AccessError) -> Reject {
    match error {
        AccessError::Full(text) => Reject::new(RejectCode::LimitReached, text.clone()),
        AccessError::TooLong { .. } => Reject::new(RejectCode::RequestInvalid, error.to_string()),
        AccessError::File(_) | AccessError::Damaged { .. } | AccessError::Later { .. } => {
            tracing::error!(%error, "the gate cannot keep what it was asked to");
            let text = "the gate cannot write its files, so nothing was changed; the node's log says why";
            Reject::new(RejectCode::Internal, text)
        }
    }
}
