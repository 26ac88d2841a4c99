//! Who comes in at a core, and who has to go: hellos, logins, what administrators want of the gate, revocation and expiry.
//!
//! A core decides by its snapshot of who may come in. What it cannot know it asks the gate, and goes on; the answer comes by
//! ring.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use thalweg_domain::permission::{Action, Principal};
use thalweg_protocol::ids::{Request, SessionId};
use thalweg_protocol::limits::RECONNECT_DELAY_MS;
use thalweg_protocol::op::{Hello, Login, ServerOp};
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_quic::Link as QuicLink;
use thalweg_shard::{AuditEvent as ShardEvent, Input};

use crate::core_loop::Core;
use crate::gate::{
    Access, Admission, Asker, AuditEvent, Awaiting, GateLink, LOGINS_PER_CONNECTION_MAX, NODE_TENANT, Refusal,
    SWEEP_SESSIONS, Secret, Source, Told, Wanted, administers_node, is_over,
};
use crate::memory::PRESSURE_NEWCOMERS;
use crate::sessions::{going_away, shard_link};
use crate::stats::CoreStats;

/// The wall clock may be set, so that expiries are looked for at least this often.
const EXPIRY_LOOK_S: u64 = 60;

/// One core's part of the gate.
pub(crate) struct Entrance {
    access: Arc<Access>,
    gate: GateLink,
    /// Where a comparison of all sessions with a new snapshot goes on, by the number of the connection.
    sweep: Option<u64>,
    /// Questions asked before that snapshot came.
    asked: u64,
    /// Whether the comparison left somebody out who waits for the answer to one of them.
    left_out: bool,
    /// Sessions by the end of their credentials, in seconds since 1970.
    expiring: BTreeSet<(u64, u64)>,
    next_look: Option<Instant>,
    revoked: u64,
    expired: u64,
}

impl Entrance {
    pub(crate) fn new(access: Arc<Access>, gate: GateLink) -> Self {
        let (sweep, asked, left_out, expiring, next_look, revoked, expired) =
            (None, 0, false, BTreeSet::new(), None, 0, 0);
        Self { access, gate, sweep, asked, left_out, expiring, next_look, revoked, expired }
    }

    /// Whether a turn would find something to do.
    pub(crate) fn has_something(&self) -> bool {
        self.sweep.is_some() || !self.gate.is_empty()
    }

    /// When expiries are to be looked for.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        self.next_look
    }

    /// A connection is gone.
    pub(crate) fn closed(&mut self, link: QuicLink, principal: &Principal) {
        self.expiring.remove(&(principal.credential.expires_s, link.number()));
    }

    pub(crate) fn audit(&mut self, event: AuditEvent) {
        self.gate.audit(event);
    }

    pub(crate) fn count(&self, stats: &mut CoreStats) {
        stats.counters.insert("sessions_revoked", self.revoked);
        stats.counters.insert("sessions_expired", self.expired);
        stats.counters.insert("audit_lost", self.gate.audit_lost());
    }

    /// Looks for expiries no later than that of a new session.
    fn look_at(&mut self, now: Instant, wall_s: u64) {
        let Some((first_s, _)) = self.expiring.first() else { return self.next_look = None };
        let in_s = first_s.saturating_sub(wall_s).clamp(1, EXPIRY_LOOK_S);
        let at = now + Duration::from_secs(in_s);
        self.next_look = Some(self.next_look.filter(|next| *next > now).map_or(at, |next| next.min(at)));
    }
}

impl Core {
    fn wall_s(&self) -> u64 {
        self.now().wall_us / 1_000_000
    }

    /// Lets a client in, refuses it, or asks the gate about it.
    pub(crate) fn hello(&mut self, now: Instant, link: QuicLink, request: Request, hello: Hello) {
        let Some(connection) = self.sessions.connection(link) else { return };
        let remote = connection.remote;
        if connection.waits {
            let text = "a hello or login is being answered; wait for that";
            return self.refuse_hello(now, link, request, Reject::new(RejectCode::HelloExpected, text));
        }
        if self.draining.is_some() {
            return self.refuse_hello(now, link, request, going_away());
        }
        let checked = self.shared.reception.negotiate(&hello).map_err(Refusal::Final);
        match checked.and_then(|_| self.entrance.access.check(&hello.token, self.wall_s())) {
            Ok(admission) => self.admit(now, link, request, &hello, admission),
            Err(Refusal::Final(reject)) => self.refuse_hello(now, link, request, reject),
            Err(Refusal::AskIssuer(_)) => {
                let wanted = Wanted::Check { token: Secret(hello.token.clone()) };
                let asker = Asker { link, request, what: Awaiting::Hello(Box::new(hello)) };
                match self.entrance.gate.ask(asker, remote, wanted) {
                    Ok(()) => self.sessions.set_waits(link, true),
                    Err(reject) => self.refuse_hello(now, link, request, reject),
                }
            }
        }
    }

    fn admit(&mut self, now: Instant, link: QuicLink, request: Request, hello: &Hello, admission: Admission) {
        let Some(connection) = self.sessions.connection(link) else { return };
        let (at, wall_s, remote) = (self.now(), self.wall_s(), connection.remote);
        let principal = Arc::new(admission.principal(hello.session));
        let version = match self.shared.reception.negotiate(hello) {
            Ok(version) => version,
            Err(reject) => return self.refuse_hello(now, link, request, reject),
        };
        // Whoever could do something about it is let in.
        if self.pressure >= PRESSURE_NEWCOMERS && !administers_node(&principal) {
            let text = "the node is short of memory and takes no new sessions; come back after the delay";
            let reject = Reject::new(RejectCode::Overloaded, text).retry_after_ms(RECONNECT_DELAY_MS);
            return self.refuse_hello(now, link, request, reject);
        }
        tracing::debug!(?link, tenant = %principal.tenant, user = %principal.user, "session opened");
        let object = described(&admission);
        self.entrance.audit(AuditEvent::new(at.wall_us, "hello", object).by(&principal, Some(remote)));
        if principal.credential.expires_s != 0 {
            self.entrance.expiring.insert((principal.credential.expires_s, link.number()));
            self.entrance.look_at(now, wall_s);
        }
        self.sessions.opened(link, Arc::clone(&principal), admission.source);
        let welcome = self.shared.reception.welcome(version, &principal, self.shard.routes());
        self.reply(now, link, request, &ServerOp::Welcome(welcome));
        self.shard.handle(at, Input::Opened { link: shard_link(link), principal });
    }

    /// Turns a client away whose hello is refused.
    fn refuse_hello(&mut self, now: Instant, link: QuicLink, request: Request, reject: Reject) {
        let remote = self.sessions.connection(link).map(|connection| connection.remote);
        let event = AuditEvent::new(self.now().wall_us, "hello", String::new()).refused(Some(reject.code));
        self.entrance.audit(AuditEvent { remote, ..event });
        self.turn_away(now, link, request, reject);
    }

    /// Has the gate check a password.
    pub(crate) fn log_in(&mut self, now: Instant, link: QuicLink, request: Request, login: Login) {
        let Some(connection) = self.sessions.connection(link) else { return };
        let (remote, waits, logins) = (connection.remote, connection.waits, connection.logins);
        let reject = if waits {
            Reject::new(RejectCode::Busy, "a hello or login is being answered; wait for that").retry_after_ms(1_000)
        } else if logins >= LOGINS_PER_CONNECTION_MAX {
            let text = format!("{logins} logins were tried over this connection; make another");
            return self.turn_away(now, link, request, Reject::new(RejectCode::LoginFailed, text));
        } else if self.draining.is_some() {
            return self.turn_away(now, link, request, going_away());
        } else {
            let Login { tenant, user, password } = login;
            let wanted = Wanted::Login { tenant, user, password: Secret(password) };
            match self.entrance.gate.ask(Asker { link, request, what: Awaiting::Login }, remote, wanted) {
                Ok(()) => return self.sessions.set_waits(link, true),
                Err(reject) => reject,
            }
        };
        self.reply(now, link, request, &ServerOp::Reject(reject));
    }

    /// Has the gate carry out what an administrator wants.
    pub(crate) fn manage(
        &mut self,
        now: Instant,
        link: QuicLink,
        request: Request,
        principal: Arc<Principal>,
        json: Bytes,
    ) {
        let Some(connection) = self.sessions.connection(link) else { return };
        let (remote, asker) = (connection.remote, Asker { link, request, what: Awaiting::Manage });
        if let Err(reject) = self.entrance.gate.ask(asker, remote, Wanted::Manage { principal, json }) {
            self.reply(now, link, request, &ServerOp::Reject(reject));
        }
    }

    /// Whether a principal may do something to the node as a whole, which goes into the audit log either way.
    pub(crate) fn may_do(&mut self, link: QuicLink, principal: &Principal, what: &'static str) -> Result<(), Reject> {
        let allowed = principal.require(Action::Admin, what).and_then(|()| {
            if principal.tenant.as_str() == NODE_TENANT {
                return Ok(());
            }
            let text = format!("{what} is for administrators of the node, whose tenant is {NODE_TENANT}");
            Err(Reject::new(RejectCode::Forbidden, text))
        });
        let remote = self.sessions.connection(link).map(|connection| connection.remote);
        let code = allowed.as_ref().err().map(|reject| reject.code);
        // Whoever reads statistics every second would fill the log with it.
        if what != "stats" || code.is_some() {
            let event = AuditEvent::new(self.now().wall_us, what, String::new()).by(principal, remote);
            self.entrance.audit(event.refused(code));
        }
        allowed
    }

    /// Whether a token lets its holder do something to the node as a whole. No session comes of it.
    pub(crate) fn administers(&self, token: &str, what: &str) -> Result<bool, Reject> {
        match self.entrance.access.check(token, self.wall_s()) {
            Ok(admission) => {
                let principal = admission.principal(SessionId(0));
                Ok(principal.tenant.as_str() == NODE_TENANT && principal.may(Action::Admin, what))
            }
            Err(Refusal::Final(reject)) => Err(reject),
            Err(Refusal::AskIssuer(_)) => {
                let text = "the key of the token is not known yet; open a session with it first";
                Err(Reject::new(RejectCode::IssuerUnavailable, text).retry_after_ms(1_000))
            }
        }
    }

    /// A decision of the shard's.
    pub(crate) fn shard_decided(&mut self, event: ShardEvent) {
        let ShardEvent { principal, action, object, refused } = event;
        let event = AuditEvent::new(self.now().wall_us, action, object).by(&principal, None).refused(refused);
        self.entrance.audit(event);
    }

    /// Takes what the gate has to say, and goes on with comparing sessions with the last snapshot.
    pub(crate) fn gate_news(&mut self, now: Instant) -> usize {
        // Before answers are taken: whoever revokes itself is told that it is done, a turn before it has to go.
        let mut work = self.sweep(now);
        if let Some(access) = self.entrance.gate.access() {
            self.entrance.access = access;
            self.entrance.sweep = Some(0);
            self.entrance.asked = self.entrance.gate.asked();
            work += 1;
        }
        while let Some((Asker { link, request, what }, told)) = self.entrance.gate.answer() {
            work += 1;
            self.gate_told(now, link, request, what, told);
            if std::mem::take(&mut self.entrance.left_out) {
                self.entrance.sweep = Some(0);
            }
        }
        work
    }

    fn gate_told(&mut self, now: Instant, link: QuicLink, request: Request, what: Awaiting, told: Told) {
        if !matches!(what, Awaiting::Manage) {
            self.sessions.set_waits(link, false);
        }
        match (what, told) {
            (Awaiting::Hello(_), Told::Checked(Ok(_))) if self.draining.is_some() => {
                self.refuse_hello(now, link, request, going_away());
            }
            (Awaiting::Hello(hello), Told::Checked(Ok(admission))) => {
                let Admission { tenant, user, credential, source, .. } = &*admission;
                // The newest snapshot may be newer than the answer.
                match self.entrance.access.objection(tenant, user, credential, source, self.wall_s()) {
                    None => self.admit(now, link, request, &hello, *admission),
                    Some(reject) => self.refuse_hello(now, link, request, reject),
                }
            }
            (Awaiting::Hello(_), Told::Checked(Err(reject))) => self.refuse_hello(now, link, request, reject),
            (Awaiting::Login, Told::LoggedIn(Ok((token, expires_s)))) => {
                let expires_us = expires_s.saturating_mul(1_000_000);
                self.reply(now, link, request, &ServerOp::LoggedIn { token, expires_us });
            }
            (Awaiting::Login, Told::LoggedIn(Err(reject))) => {
                self.sessions.count_login(link);
                self.reply(now, link, request, &ServerOp::Reject(reject));
            }
            (Awaiting::Manage, Told::Managed(Ok(json))) => self.reply(now, link, request, &ServerOp::Managed { json }),
            (Awaiting::Manage, Told::Managed(Err(reject))) => {
                self.reply(now, link, request, &ServerOp::Reject(reject));
            }
            (Awaiting::Hello(_) | Awaiting::Login | Awaiting::Manage, _) => {
                debug_assert!(false, "each question has its kind of answer");
            }
        }
    }

    /// Compares some sessions with the snapshot, and parts with those that it speaks against.
    fn sweep(&mut self, now: Instant) -> usize {
        let Some(from) = self.entrance.sweep else { return 0 };
        let (mut last, mut looked, wall_s) = (from, 0, self.wall_s());
        let mut against = Vec::new();
        for (number, connection) in self.sessions.connections_from(from).take(SWEEP_SESSIONS) {
            (last, looked) = (number, looked + 1);
            let (Some(principal), Some(source)) = (&connection.principal, &connection.source) else { continue };
            let Principal { tenant, user, credential, .. } = &**principal;
            if let Some(reject) = self.entrance.access.objection(tenant, user, credential, source, wall_s) {
                let link = QuicLink::from_number(number);
                if self.entrance.gate.awaits(link, self.entrance.asked) {
                    self.entrance.left_out = true;
                } else {
                    against.push((link, reject));
                }
            }
        }
        self.entrance.sweep = (looked == SWEEP_SESSIONS).then(|| last + 1);
        let parted = against.len();
        for (link, reject) in against {
            self.part(now, link, &reject);
        }
        parted + 1
    }

    /// Parts with those whose credentials have expired.
    pub(crate) fn expire(&mut self, now: Instant) -> usize {
        if self.entrance.next_look.is_none_or(|at| at > now) {
            return 0;
        }
        let (mut parted, wall_s) = (0, self.wall_s());
        while let Some(&(_, number)) = self.entrance.expiring.first() {
            let link = QuicLink::from_number(number);
            let principal = self.sessions.connection(link).and_then(|connection| connection.principal.clone());
            if principal.is_some_and(|principal| !is_over(&principal.credential, wall_s)) {
                break;
            }
            self.entrance.expiring.pop_first();
            let text = "the credential of this session has expired; come back with a new one";
            self.part(now, link, &Reject::new(RejectCode::TokenExpired, text));
            parted += 1;
        }
        self.entrance.look_at(now, wall_s);
        parted
    }

    /// Ends a session that may not go on.
    fn part(&mut self, now: Instant, link: QuicLink, reject: &Reject) {
        let Some((principal, remote)) = self.sessions.who(link) else { return };
        let expired = reject.code == RejectCode::TokenExpired;
        *if expired { &mut self.entrance.expired } else { &mut self.entrance.revoked } += 1;
        tracing::debug!(?link, user = %principal.user, code = %reject.code, "session ended");
        let event = AuditEvent::new(self.now().wall_us, "session-end", String::new()).by(&principal, Some(remote));
        self.entrance.audit(event.refused(Some(reject.code)));
        self.close(now, link, reject.code, &reject.message);
    }
}

/// What a session's credential is, for the audit log.
fn described(admission: &Admission) -> String {
    let id = admission.credential.id;
    match &admission.source {
        Source::Own { .. } => format!("token {id:032x}"),
        Source::ApiKey { id } => format!("key {id:016x}"),
        Source::Issuer { url } => format!("token {id:032x} of {url}"),
    }
}
