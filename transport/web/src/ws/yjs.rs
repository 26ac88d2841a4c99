//! `/yjs/{document}`: the protocol of y-websocket. One document, one session; the token comes with the upgrade.
//!
//! Messages are a type and what belongs to it: 0 sync (then 0 step 1, 1 step 2, 2 update), 1 awareness, 2 auth (0: permission
//! denied, and why), 3 query awareness. There is no answer to an edit.

use std::collections::VecDeque;

use bytes::Bytes;
use thalweg_protocol::ids::{Name, Position, Request};
use thalweg_protocol::op::ServerOp;
use thalweg_protocol::reject::{Reject, RejectCode};

use super::close::Close;
use super::lib0::{Malformed, Reader, Writer};
use super::protocol::{Effect, Input, Message, Protocol, Taken};
use super::replica::{Numbers, Replica, Said, Told, Wish};
use crate::limits::SOCKET_UPDATE_MESSAGE_BYTES_MAX;

/// Types of messages.
pub(super) const SYNC: u64 = 0;
pub(super) const AWARENESS: u64 = 1;
pub(super) const AUTH: u64 = 2;
pub(super) const QUERY_AWARENESS: u64 = 3;
/// Types of sync messages.
pub(super) const STEP_1: u64 = 0;
pub(super) const STEP_2: u64 = 1;
pub(super) const UPDATE: u64 = 2;
/// The only message of type auth.
const DENIED: u64 = 0;

/// What clients send, beside what they are wrapped in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Step1(Bytes),
    Write { update: Bytes, answers: bool },
    Awareness(Bytes),
    QueryAwareness,
}

/// Reads what follows the type of a message that all protocols of Yjs have; `None` if it is of another type.
pub(super) fn hear(kind: u64, reader: &mut Reader) -> Result<Option<Heard>, Malformed> {
    Ok(Some(match kind {
        SYNC => match reader.number()? {
            STEP_1 => Heard::Step1(reader.bytes()?),
            STEP_2 => Heard::Write { update: reader.bytes()?, answers: true },
            UPDATE => Heard::Write { update: reader.bytes()?, answers: false },
            _ => return Ok(None),
        },
        AWARENESS => Heard::Awareness(reader.bytes()?),
        QUERY_AWARENESS => Heard::QueryAwareness,
        _ => return Ok(None),
    }))
}

/// Takes what was heard to the document.
pub(super) fn take(replica: &mut Replica, heard: Heard, numbers: &mut Numbers) {
    match heard {
        Heard::Step1(vector) => replica.step1(vector, numbers),
        Heard::Write { update, answers } => replica.write(update, answers, numbers),
        Heard::Awareness(update) => replica.awareness(update, numbers),
        Heard::QueryAwareness => replica.query_awareness(),
    }
}

/// Writes what a client is told behind what it is wrapped in, of which `head` is given the room; and gives the revision up to
/// which the client then has everything, if it is told of edits.
pub(super) fn write(told: &Told, head: impl FnOnce(usize) -> Writer) -> (Bytes, Option<Position>) {
    let (step, bytes, revision) = match told {
        Told::Step1(vector) => (STEP_1, vector, None),
        Told::Step2(state, revision) => (STEP_2, state, Some(*revision)),
        Told::Update(update, revision) => (UPDATE, update, Some(*revision)),
        Told::Awareness(update) => return (head(update.len()).number(AWARENESS).bytes(update).finish(), None),
    };
    (head(bytes.len()).number(SYNC).number(step).bytes(bytes).finish(), revision)
}

/// Bytes that cannot be read, as what the client is told.
pub(super) fn malformed(what: Malformed) -> Reject {
    Reject::new(RejectCode::FrameInvalid, format!("not a message of this protocol: {what}"))
}

const SESSION: u32 = 0;

/// One client.
pub(crate) struct Yjs {
    replica: Replica,
    numbers: Numbers,
    is_welcome: bool,
    effects: VecDeque<Effect>,
}

impl Yjs {
    /// Opens a document for the holder of a token.
    pub(crate) fn new(document: Name, token: String) -> Self {
        let effects = VecDeque::from([Effect::Open { session: SESSION, id: None, token }]);
        Self { replica: Replica::new(document), numbers: Numbers::default(), is_welcome: false, effects }
    }

    fn message(&mut self, message: Message) {
        let Message::Binary(bytes) = message else {
            let text = "a text; y-websocket's messages are binary. /ws speaks JSON";
            return self.part(&Reject::new(RejectCode::FrameInvalid, text));
        };
        let mut reader = Reader::new(bytes);
        let heard = reader.number().and_then(|kind| Ok((kind, hear(kind, &mut reader)?)));
        match heard {
            Ok((_, Some(heard))) => take(&mut self.replica, heard, &mut self.numbers),
            Ok((kind, None)) => {
                let text = format!("a message of type {kind}, or of a kind in it, that y-websocket does not have");
                self.part(&Reject::new(RejectCode::OperationUnknown, text));
            }
            Err(what) => self.part(&malformed(what)),
        }
    }

    fn part(&mut self, reject: &Reject) {
        if matches!(reject.code, RejectCode::Forbidden | RejectCode::TokenInvalid | RejectCode::TokenExpired) {
            self.deny(reject);
        }
        self.effects.push_back(Effect::Close(Close::from(reject)));
    }

    fn deny(&mut self, reject: &Reject) {
        let message = Writer::default().number(AUTH).number(DENIED).text(&reject.to_string()).finish();
        self.effects.push_back(Effect::Send(Message::Binary(message), None));
    }

    fn answered(&mut self, request: Request, said: Result<ServerOp, Reject>) {
        match (request.0, &said) {
            (0, Ok(ServerOp::Welcome(_))) => self.is_welcome = true,
            // That the node restarts is said again when it closes the session.
            (0, Ok(_)) => {}
            (0, Err(reject)) => self.part(reject),
            _ => drop(self.replica.answered(request, &said, &mut self.numbers)),
        }
    }

    /// Makes effects of what the document wants.
    fn gather(&mut self) {
        while let Some(wish) = self.replica.poll() {
            let effect = match wish {
                Wish::Ask(request, op) => Effect::Ask { session: SESSION, request, op },
                Wish::Tell(op) => Effect::Tell { session: SESSION, op },
                Wish::Say(said) => {
                    self.say(said);
                    continue;
                }
            };
            self.effects.push_back(effect);
        }
    }

    fn say(&mut self, said: Said) {
        let told = match said {
            Said::Told(told) => told,
            Said::Opened(_) | Said::Saved(_) => return,
            Said::Refused(reject, _) => return self.deny(&reject),
            Said::Ended(reject) => return self.part(&reject),
        };
        let (message, mark) = write(&told, Writer::with_room);
        let taken = mark.and_then(|revision| {
            let subject = self.replica.subscription()?.0;
            Some(Taken { session: SESSION, subject, mark: revision.0 })
        });
        self.effects.push_back(Effect::Send(Message::Binary(message), taken));
    }
}

impl Protocol for Yjs {
    fn handle(&mut self, input: Input) {
        match input {
            Input::Message(message) => self.message(message),
            Input::Answered { request, said, .. } => self.answered(request, said),
            Input::Frame { subject, payload, .. } if self.replica.reads(subject) => {
                self.replica.frame(&payload, &mut self.numbers);
            }
            // Of a reading that ended.
            Input::Frame { .. } => {}
            Input::Closed { reject, .. } => self.part(&reject),
            Input::Taken(taken) if self.replica.reads(taken.subject) => self.replica.taken(taken.mark),
            Input::Taken(_) => {}
            Input::Tick(now) => self.replica.tick(now, &mut self.numbers),
            Input::Quiet => {
                let nobody = Writer::default().number(AWARENESS).bytes(&[0]).finish();
                self.effects.push_back(Effect::Send(Message::Binary(nobody), None));
            }
        }
        self.gather();
    }

    fn poll(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn is_full(&self) -> bool {
        !self.is_welcome || self.replica.is_full()
    }

    fn message_bytes_max(&self) -> usize {
        // Nothing is read of a client whose token was not checked.
        SOCKET_UPDATE_MESSAGE_BYTES_MAX
    }
}

#[cfg(test)]
pub(super) mod tests;
