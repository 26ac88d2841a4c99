//! `/hocuspocus`: the protocol of Hocuspocus's provider, version 4. Several documents over one socket; the token of each comes
//! in a message.
//!
//! A message begins with the address of its document: the document's name, or name, a zero byte and a number of the
//! provider's, so that one socket can have a document several times. Then comes a type: those of [`yjs`](super::yjs), of
//! which auth has others inside (0 token, 1 permission denied, 2 authenticated, and as what), and 4 sync without an answering
//! step 1, 5 stateless, 7 close, 8 sync status. Each edit is answered by a status, once it is durable.
//!
//! Providers of today send their token and step 1 at once; older ones wait for "authenticated" with their step 1, so that
//! one that is silent for a moment is answered first.
//!
//! Stateless messages go to what an operator adds to a Hocuspocus server. There is nothing like it here, so that they are
//! refused in kind.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use serde_json::json;
use thalweg_protocol::document::DocumentAccess;
use thalweg_protocol::ids::{Name, Request};
use thalweg_protocol::limits::TOKEN_BYTES_MAX;
use thalweg_protocol::op::ServerOp;
use thalweg_protocol::reject::{Reject, RejectCode};

use super::close::Close;
use super::lib0::{Malformed, Reader, Writer};
use super::protocol::{Effect, Input, Message, Protocol, Taken};
use super::replica::{Numbers, Replica, Said, Wish};
use super::yjs::{AUTH, AWARENESS, SYNC, hear, malformed, take, write};
use crate::limits::{
    SOCKET_ADDRESS_BYTES_MAX, SOCKET_DOCUMENTS_MAX, SOCKET_MESSAGE_BYTES_MAX, SOCKET_SESSIONS_MAX,
    SOCKET_UPDATE_MESSAGE_BYTES_MAX,
};

const SYNC_REPLY: u64 = 4;
const STATELESS: u64 = 5;
const CLOSE: u64 = 7;
const SYNC_STATUS: u64 = 8;
/// Messages of type auth.
const TOKEN: u64 = 0;
const DENIED: u64 = 1;
const AUTHENTICATED: u64 = 2;
/// Messages of the whole socket, one byte long.
const PING: &[u8] = &[9];
const PONG: &[u8] = &[10];

struct Open {
    session: u32,
    replica: Replica,
    is_authenticated: bool,
}

struct Session {
    token: String,
    is_welcome: bool,
    /// One session is not told what it did itself; so who has a document twice needs two.
    documents: BTreeSet<Name>,
}

/// One client.
#[derive(Default)]
pub(crate) struct Hocuspocus {
    /// By address.
    open: BTreeMap<String, Open>,
    sessions: BTreeMap<u32, Session>,
    opened: u32,
    /// Addresses whose messages are passed over until they show a token: they were told that they need one, or that their
    /// document is closed.
    closed: BTreeSet<String>,
    numbers: Numbers,
    effects: VecDeque<Effect>,
}

/// The name of an address's document.
fn name_of(address: &str) -> &str {
    address.split('\0').next().unwrap_or_default()
}

/// Whether a client may be waiting to hear that it is authenticated.
fn waits(sessions: &BTreeMap<u32, Session>, open: &Open) -> bool {
    open.replica.awaits_step1() && sessions.get(&open.session).is_some_and(|session| session.is_welcome)
}

fn head(address: &str, room: usize, kind: u64) -> Writer {
    Writer::with_room(address.len() + room).text(address).number(kind)
}

impl Hocuspocus {
    fn send(&mut self, message: Bytes) {
        self.effects.push_back(Effect::Send(Message::Binary(message), None));
    }

    fn deny(&mut self, address: &str, reject: &Reject) {
        self.send(head(address, 64, AUTH).number(DENIED).text(&reject.to_string()).finish());
        self.pass_over(address);
    }

    /// What a provider still sends under an address is nothing to answer.
    fn pass_over(&mut self, address: &str) {
        if address.len() > SOCKET_ADDRESS_BYTES_MAX {
            // Those are passed over as they are.
            return;
        }
        self.closed.insert(address.to_owned());
        if self.closed.len() > SOCKET_DOCUMENTS_MAX {
            let text = format!("{SOCKET_DOCUMENTS_MAX} documents were refused or closed; come back for the others");
            self.part(&Reject::new(RejectCode::LimitReached, text));
        }
    }

    fn part(&mut self, reject: &Reject) {
        self.effects.push_back(Effect::Close(Close::from(reject)));
    }

    fn message(&mut self, message: Message) {
        let Message::Binary(bytes) = message else {
            let text = "a text; Hocuspocus's messages are binary. /ws speaks JSON";
            return self.part(&Reject::new(RejectCode::FrameInvalid, text));
        };
        match &bytes[..] {
            PING => return self.send(Bytes::from_static(PONG)),
            PONG => return,
            _ => {}
        }
        if let Err(what) = self.read(Reader::new(bytes)) {
            self.part(&malformed(what));
        }
    }

    fn read(&mut self, mut reader: Reader) -> Result<(), Malformed> {
        let (address, kind) = (reader.text()?, reader.number()?);
        if kind == AUTH {
            if reader.number()? == TOKEN {
                let token = reader.text()?;
                self.authenticate(address, token);
            }
            return Ok(());
        }
        let Some(Open { replica, .. }) = self.open.get_mut(&address) else {
            if address.len() <= SOCKET_ADDRESS_BYTES_MAX && !self.closed.contains(&address) {
                let text = "a token is needed first; give the provider one, made by `thalweg admin token`";
                self.deny(&address, &Reject::new(RejectCode::TokenInvalid, text));
            }
            return Ok(());
        };
        match kind {
            CLOSE => {
                replica.leave(&mut self.numbers);
                self.gather(&address);
                self.close(&address, "provider_initiated");
            }
            STATELESS => {
                reader.text()?;
                let (code, message) = ("operation_unknown", "this server takes no stateless messages");
                let refusal = json!({"error": {"code": code, "message": message}});
                self.send(head(&address, 96, STATELESS).text(&refusal.to_string()).finish());
            }
            _ => {
                let kind = if kind == SYNC_REPLY { SYNC } else { kind };
                let Some(heard) = hear(kind, &mut reader)? else {
                    let text = format!("a message of type {kind}, or of a kind in it, that this server does not have");
                    let reject = Reject::new(RejectCode::OperationUnknown, text);
                    self.end(&address, &reject);
                    return Ok(());
                };
                take(replica, heard, &mut self.numbers);
                self.gather(&address);
            }
        }
        Ok(())
    }

    /// A document shows its token. A token for a document that is open changes nothing.
    fn authenticate(&mut self, address: String, token: String) {
        if self.open.contains_key(&address) {
            return;
        }
        if address.len() > SOCKET_ADDRESS_BYTES_MAX {
            let bytes = address.len();
            let text = format!("a document's name and number of {bytes} bytes; at most {SOCKET_ADDRESS_BYTES_MAX}");
            return self.deny(&address, &Reject::new(RejectCode::NameInvalid, text));
        }
        if token.len() > TOKEN_BYTES_MAX {
            let text = format!("the token is longer than {TOKEN_BYTES_MAX} bytes");
            return self.deny(&address, &Reject::new(RejectCode::TokenInvalid, text));
        }
        let document = match Name::new(name_of(&address)) {
            Ok(document) => document,
            Err(error) => {
                let reject = Reject::new(RejectCode::NameInvalid, format!("the document's name {error}"));
                return self.deny(&address, &reject);
            }
        };
        if self.open.len() >= SOCKET_DOCUMENTS_MAX {
            let text = format!("the socket has {SOCKET_DOCUMENTS_MAX} documents; close one, or open another socket");
            return self.deny(&address, &Reject::new(RejectCode::LimitReached, text));
        }
        let fits = |session: &Session| session.token == token && !session.documents.contains(&document);
        let session = self.sessions.iter().find(|(_, session)| fits(session)).map(|(&number, _)| number);
        let session = match session {
            Some(session) => session,
            None if self.sessions.len() >= SOCKET_SESSIONS_MAX => {
                let text = format!(
                    "the socket has {SOCKET_SESSIONS_MAX} sessions, one for each token and each time that it has a \
                     document; open another socket"
                );
                return self.deny(&address, &Reject::new(RejectCode::LimitReached, text));
            }
            None => {
                self.opened += 1;
                let new = Session { token: token.clone(), is_welcome: false, documents: BTreeSet::new() };
                self.sessions.insert(self.opened, new);
                self.effects.push_back(Effect::Open { session: self.opened, id: None, token });
                self.opened
            }
        };
        if let Some(session) = self.sessions.get_mut(&session) {
            session.documents.insert(document.clone());
        }
        self.closed.remove(&address);
        self.open.insert(address, Open { session, replica: Replica::new(document), is_authenticated: false });
    }

    /// Forgets a document, and its session if it was the last.
    fn forget(&mut self, address: &str) -> Option<Open> {
        let open = self.open.remove(address)?;
        if let Some(session) = self.sessions.get_mut(&open.session) {
            session.documents.remove(open.replica.document());
            if session.documents.is_empty() {
                self.sessions.remove(&open.session);
                self.effects.push_back(Effect::Leave { session: open.session });
            }
        }
        Some(open)
    }

    /// Tells the client that a document is closed, and forgets it.
    fn close(&mut self, address: &str, reason: &str) {
        self.forget(address);
        self.send(head(address, 64, CLOSE).text(reason).finish());
    }

    /// Ends a document for a reason. What may pass ends the socket, so that the client comes back and sends what it has.
    fn end(&mut self, address: &str, reject: &Reject) {
        let code = Close::from(reject).code;
        if !(4400..4500).contains(&code) {
            return self.part(reject);
        }
        // Applications log people out who are denied: that is for those who may not open it, and not for what they send.
        let is_denial = matches!(code, 4401 | 4403 | 4404);
        if !is_denial || self.open.get(address).is_some_and(|open| open.is_authenticated) {
            self.close(address, &reject.to_string());
            // The provider does not show its token again by itself: to tell it to would log people out.
            self.pass_over(address);
        } else {
            self.forget(address);
            self.deny(address, reject);
        }
    }

    fn answered(&mut self, session: u32, request: Request, said: &Result<ServerOp, Reject>) {
        match (request.0, said) {
            (0, Ok(ServerOp::Welcome(_))) => {
                if let Some(session) = self.sessions.get_mut(&session) {
                    session.is_welcome = true;
                }
            }
            (0, Ok(_)) => {}
            (0, Err(reject)) => self.closed(session, reject),
            _ => {
                let numbers = &mut self.numbers;
                let mut open = self.open.iter_mut().filter(|(_, open)| open.session == session);
                let address = open
                    .find_map(|(address, open)| open.replica.answered(request, said, numbers).then(|| address.clone()));
                if let Some(address) = address {
                    self.gather(&address);
                }
            }
        }
    }

    /// A session has ended, and with it its documents.
    fn closed(&mut self, session: u32, reject: &Reject) {
        let of = self.open.iter().filter(|(_, open)| open.session == session);
        for address in of.map(|(address, _)| address.clone()).collect::<Vec<_>>() {
            self.end(&address, reject);
        }
    }

    fn address_of(&self, session: u32, subject: u32) -> Option<String> {
        let reads = |open: &Open| open.session == session && open.replica.reads(subject);
        self.open.iter().find(|(_, open)| reads(open)).map(|(address, _)| address.clone())
    }

    /// Makes effects of what a document wants.
    fn gather(&mut self, address: &str) {
        while let Some(open) = self.open.get_mut(address)
            && let Some(wish) = open.replica.poll()
        {
            let session = open.session;
            match wish {
                Wish::Ask(request, op) => self.effects.push_back(Effect::Ask { session, request, op }),
                Wish::Tell(op) => self.effects.push_back(Effect::Tell { session, op }),
                Wish::Say(said) => self.say(address, said),
            }
        }
    }

    fn say(&mut self, address: &str, said: Said) {
        let (message, mark) = match said {
            Said::Told(told) => write(&told, |room| Writer::with_room(address.len() + room).text(address)),
            Said::Opened(access) => {
                let scope = if access == DocumentAccess::Read { "readonly" } else { "read-write" };
                let Some(open) = self.open.get_mut(address) else { return };
                if std::mem::replace(&mut open.is_authenticated, true) {
                    return;
                }
                (head(address, 16, AUTH).number(AUTHENTICATED).text(scope).finish(), None)
            }
            Said::Saved(count) => return self.say_status(address, count, true),
            Said::Refused(_, count) => return self.say_status(address, count, false),
            Said::Ended(reject) => return self.end(address, &reject),
        };
        let taken = mark.and_then(|revision| {
            let open = self.open.get(address)?;
            let subject = open.replica.subscription()?.0;
            Some(Taken { session: open.session, subject, mark: revision.0 })
        });
        self.effects.push_back(Effect::Send(Message::Binary(message), taken));
    }

    fn say_status(&mut self, address: &str, count: u32, kept: bool) {
        let message = head(address, 8, SYNC_STATUS).number(u64::from(kept)).finish();
        for _ in 0..count {
            self.send(message.clone());
        }
    }
}

impl Protocol for Hocuspocus {
    fn handle(&mut self, input: Input) {
        match input {
            Input::Message(message) => self.message(message),
            Input::Answered { session, request, said } => self.answered(session, request, &said),
            Input::Closed { session, reject } => self.closed(session, &reject),
            Input::Frame { session, subject, payload } => {
                let Some(address) = self.address_of(session, subject) else { return };
                if let Some(open) = self.open.get_mut(&address) {
                    open.replica.frame(&payload, &mut self.numbers);
                }
                self.gather(&address);
            }
            Input::Taken(taken) => {
                let Some(address) = self.address_of(taken.session, taken.subject) else { return };
                if let Some(open) = self.open.get_mut(&address) {
                    open.replica.taken(taken.mark);
                }
                self.gather(&address);
            }
            Input::Tick(now) => {
                for address in self.open.keys().cloned().collect::<Vec<_>>() {
                    if let Some(open) = self.open.get_mut(&address) {
                        if waits(&self.sessions, open) {
                            open.replica.open_early(&mut self.numbers);
                        }
                        open.replica.tick(now, &mut self.numbers);
                    }
                    self.gather(&address);
                }
            }
            Input::Quiet => {
                if let Some(address) = self.open.keys().next().cloned() {
                    self.send(head(&address, 8, AWARENESS).bytes(&[0]).finish());
                }
            }
        }
    }

    fn poll(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn is_in_a_hurry(&self) -> bool {
        self.open.values().any(|open| waits(&self.sessions, open))
    }

    fn is_full(&self) -> bool {
        self.sessions.values().any(|session| !session.is_welcome)
            || self.open.values().any(|open| open.replica.is_full())
    }

    fn message_bytes_max(&self) -> usize {
        let is_known = self.sessions.values().any(|session| session.is_welcome);
        if is_known { SOCKET_UPDATE_MESSAGE_BYTES_MAX } else { SOCKET_MESSAGE_BYTES_MAX }
    }
}

#[cfg(test)]
mod tests;
