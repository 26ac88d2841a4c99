//! The rings between the cores and the gate.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use thalweg_domain::permission::Principal;
use thalweg_protocol::ids::{Name, Request};
use thalweg_protocol::op::Hello;
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_quic::Link as QuicLink;
use thalweg_ring::{Bell, Consumer, Producer, ring};

use super::access::{Access, Admission};
use super::audit::AuditEvent;
use super::command::Secret;
use super::limits::{AUDIT_RING_SLOTS, GATE_QUESTIONS_MAX};

/// Snapshots on their way to a core: the newest is enough, so that few slots are.
const ACCESS_SLOTS: usize = 2;

/// What a core asks.
#[derive(Debug)]
pub(crate) struct Question {
    /// The core's number for it.
    pub(crate) number: u64,
    pub(crate) remote: SocketAddr,
    pub(crate) wanted: Wanted,
}

/// What it asks for.
#[derive(Debug)]
pub(crate) enum Wanted {
    /// Whom a token lets in that names a key which the core does not know.
    Check { token: Secret },
    /// A token for a user's password.
    Login { tenant: Name, user: Name, password: Secret },
    /// Something an administrator wants.
    Manage { principal: Arc<Principal>, json: Bytes },
}

/// What the gate answers.
#[derive(Debug)]
pub(crate) enum Told {
    Checked(Result<Box<Admission>, Reject>),
    LoggedIn(Result<(String, u64), Reject>),
    Managed(Result<Bytes, Reject>),
}

/// What a core puts on the ring for the audit log.
#[derive(Debug)]
enum Noted {
    Event(AuditEvent),
    /// So many events found no room.
    Lost(u64),
}

/// For whom a core asked.
#[derive(Debug)]
pub(crate) struct Asker {
    pub(crate) link: QuicLink,
    pub(crate) request: Request,
    pub(crate) what: Awaiting,
}

/// What the answer is for.
#[derive(Debug)]
pub(crate) enum Awaiting {
    Hello(Box<Hello>),
    Login,
    Manage,
}

/// One core's ends.
pub(crate) struct GateLink {
    questions: Producer<Question>,
    answers: Consumer<(u64, Told)>,
    access: Consumer<Arc<Access>>,
    audit: Producer<Noted>,
    bell: Arc<Bell>,
    askers: BTreeMap<u64, Asker>,
    asked: u64,
    lost: u64,
    lost_in_all: u64,
}

impl GateLink {
    /// Asks on behalf of a connection.
    ///
    /// # Errors
    /// `busy` if too many wait.
    pub(crate) fn ask(&mut self, asker: Asker, remote: SocketAddr, wanted: Wanted) -> Result<(), Reject> {
        let busy = || Reject::new(RejectCode::Busy, "too many wait at the gate").retry_after_ms(1_000);
        if self.askers.len() >= GATE_QUESTIONS_MAX {
            return Err(busy());
        }
        self.asked += 1;
        let number = self.asked;
        self.questions.push(Question { number, remote, wanted }).map_err(|_| busy())?;
        self.askers.insert(number, asker);
        self.bell.ring();
        Ok(())
    }

    /// The next answer, and for whom it is.
    pub(crate) fn answer(&mut self) -> Option<(Asker, Told)> {
        loop {
            let (number, told) = self.answers.pop()?;
            if let Some(asker) = self.askers.remove(&number) {
                return Some((asker, told));
            }
        }
    }

    /// Questions asked so far.
    pub(crate) fn asked(&self) -> u64 {
        self.asked
    }

    /// Whether a connection waits for the answer to one of the first `asked` questions.
    pub(crate) fn awaits(&self, link: QuicLink, asked: u64) -> bool {
        self.askers.range(..=asked).any(|(_, asker)| asker.link == link)
    }

    /// The newest snapshot, if there is a new one.
    pub(crate) fn access(&mut self) -> Option<Arc<Access>> {
        std::iter::from_fn(|| self.access.pop()).last()
    }

    /// Hands an event to the audit log; counts it if there is no room.
    pub(crate) fn audit(&mut self, event: AuditEvent) {
        if self.lost > 0 && self.audit.push(Noted::Lost(self.lost)).is_ok() {
            self.lost = 0;
        }
        if self.audit.push(Noted::Event(event)).is_err() {
            self.lost += 1;
            self.lost_in_all += 1;
        }
        self.bell.ring();
    }

    /// Events for which there was no room.
    pub(crate) fn audit_lost(&self) -> u64 {
        self.lost_in_all
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.answers.is_empty() && self.access.is_empty()
    }
}

/// The gate's ends of the rings to one core.
pub(crate) struct Desk {
    questions: Consumer<Question>,
    answers: Producer<(u64, Told)>,
    access: Producer<Arc<Access>>,
    audit: Consumer<Noted>,
    bell: Arc<Bell>,
    /// A snapshot that found no room.
    held: Option<Arc<Access>>,
}

impl Desk {
    pub(crate) fn question(&mut self) -> Option<Question> {
        self.questions.pop()
    }

    /// Takes what was noted: events, and the number of those that were lost.
    pub(crate) fn noted(&mut self, mut event: impl FnMut(Result<AuditEvent, u64>)) {
        for _ in 0..AUDIT_RING_SLOTS {
            match self.audit.pop() {
                Some(Noted::Event(noted)) => event(Ok(noted)),
                Some(Noted::Lost(count)) => event(Err(count)),
                None => return,
            }
        }
    }

    pub(crate) fn answer(&mut self, number: u64, told: Told) {
        // There are as many slots as a core may have questions, so a refusal means that the core is gone.
        if self.answers.push((number, told)).is_ok() {
            self.bell.ring();
        }
    }

    /// Sends a snapshot, or keeps it until there is room; without one, tries the one that was kept.
    pub(crate) fn send(&mut self, access: Option<&Arc<Access>>) {
        if let Some(access) = access.cloned().or_else(|| self.held.take()) {
            self.held = self.access.push(access).err();
            self.bell.ring();
        }
    }

    /// Whether a snapshot waits for room.
    pub(crate) fn holds_access(&self) -> bool {
        self.held.is_some()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.questions.is_empty() && self.audit.is_empty()
    }
}

/// Makes the rings between the gate, whose bell is given, and a core.
pub(crate) fn link(gate: &Arc<Bell>, core: &Arc<Bell>) -> (GateLink, Desk) {
    let (ask, questions) = ring(GATE_QUESTIONS_MAX);
    let (tell, answers) = ring(GATE_QUESTIONS_MAX);
    let (send, access) = ring(ACCESS_SLOTS);
    let (note, audit) = ring(AUDIT_RING_SLOTS);
    let link = GateLink {
        questions: ask,
        answers,
        access,
        audit: note,
        bell: Arc::clone(gate),
        askers: BTreeMap::new(),
        asked: 0,
        lost: 0,
        lost_in_all: 0,
    };
    (link, Desk { questions, answers: tell, access: send, audit, bell: Arc::clone(core), held: None })
}
