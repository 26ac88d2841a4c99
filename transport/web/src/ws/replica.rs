//! One client's copy of a document, kept in step with the node's by the sync protocol of Yjs. What it is wrapped in differs
//! between [`yjs`](super::yjs) and [`hocuspocus`](super::hocuspocus); what happens is the same.
//!
//! A client begins with its state vector (step 1). That opens the document; what the client lacks is told (step 2), and the
//! node's own state vector, so that what the client did offline comes in its step 2. From then on edits go both ways. For a
//! client that first wants to hear what it may do, the document is opened with nothing told, and once more with its step 1.
//!
//! Clients do not keep edits that they sent. An edit that the node could not keep for now (no room, too much at once, an
//! earlier one missing) is therefore not held here either: the client is asked by another step 1 for everything that the
//! node lacks, which is beyond what the node has now: beyond what it had when the document was opened could be more than one
//! edit may be. If that does not help, or the client does not answer, it is parted with, and sends what is missing when it comes
//! back.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use thalweg_protocol::chat::{Post, PostKind};
use thalweg_protocol::document::{
    AwarenessEntry, AwarenessUpdate, DocumentAccess, DocumentForm, DocumentNews, DocumentOp, OpenDocument,
};
use thalweg_protocol::ids::{Name, Position, Request, Sequence, Subscription};
use thalweg_protocol::limits::{
    AWARENESS_BYTES_MAX, AWARENESS_CLIENTS_MAX, DOCUMENT_UPDATE_BYTES_MAX, STATE_VECTOR_BYTES_MAX,
};
use thalweg_protocol::op::{ClientOp, DeliveryKind, Publish, ServerOp};
use thalweg_protocol::reject::{Reject, RejectCode};

use crate::limits::{
    SOCKET_CREDIT_UPDATES, SOCKET_IN_FLIGHT_BYTES, SOCKET_IN_FLIGHT_MAX, SOCKET_RETRIES_MAX, SOCKET_RETRY_MS,
};

/// An update of nothing: no structs, and nothing deleted.
const NOTHING: &[u8] = &[0, 0];
/// The state vector of nothing.
const NO_VECTOR: &[u8] = &[0];
/// A client that was asked for what it has is parted with if it does not say so for this long.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// Numbers of one socket's requests and writes, over all its sessions.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    request: u32,
    sequence: u64,
}

impl Numbers {
    pub(super) fn request(&mut self) -> Request {
        self.request += 1;
        Request(self.request)
    }

    pub(super) fn sequence(&mut self) -> Sequence {
        self.sequence += 1;
        Sequence(self.sequence)
    }
}

/// What the client is to be told in the words that all protocols of Yjs share.
#[derive(Debug, PartialEq)]
pub(super) enum Told {
    /// Step 1: the node's state vector.
    Step1(Bytes),
    /// Step 2: what the client lacked, up to a revision.
    Step2(Bytes, Position),
    /// An edit, up to a revision.
    Update(Bytes, Position),
    /// What others say of themselves.
    Awareness(Bytes),
}

/// What the client is to be told.
#[derive(Debug, PartialEq)]
pub(super) enum Said {
    /// A message.
    Told(Told),
    /// The document is open, and the client may do this.
    Opened(DocumentAccess),
    /// So many of the client's edits are durable.
    Saved(u32),
    /// So many of the client's edits are not made: it may not make them. It may go on reading.
    Refused(Reject, u32),
    /// The document is closed for this client.
    Ended(Reject),
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub(super) enum Wish {
    Ask(Request, ClientOp),
    Tell(ClientOp),
    Say(Said),
}

#[derive(Debug)]
enum Asked {
    Open,
    /// The node's state vector as it is now.
    Vector,
    Leave,
    Write(Write),
}

#[derive(Debug)]
struct Write {
    bytes: usize,
    /// How many of the client's edits it stands for.
    covers: u32,
    /// It deletes at most. A step 2 always has all that its client ever saw deleted, also when it has nothing new.
    only_deletes: bool,
    answers: bool,
}

/// How far it is with asking the client for what was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resync {
    None,
    Wanted { at: Duration },
    Asked { since: Duration },
}

/// See the module.
#[derive(Debug)]
pub(super) struct Replica {
    document: Name,
    subscription: Option<Subscription>,
    is_open: bool,
    is_over: bool,
    /// The client said what it has. Before, nothing of the document is told.
    has_begun: bool,
    /// The node's state vector when it was last told. It has at least that since.
    vector: Bytes,
    /// Whether the node has more since.
    is_stale: bool,
    /// The document is opened once more, only to be told that.
    probe: Option<Subscription>,
    /// The state under way, and whether it answers a step 1.
    state: BytesMut,
    answers: bool,
    asked: BTreeMap<u32, Asked>,
    write_bytes: usize,
    resync: Resync,
    /// Edits of the client that the node does not have.
    lost: u32,
    tries: u32,
    unreported: u32,
    /// What the client last said of itself.
    own: Option<Bytes>,
    others: BTreeMap<u64, (u64, Option<Bytes>)>,
    now: Duration,
    wishes: VecDeque<Wish>,
}

/// Whether trying again may help.
fn is_passing(code: RejectCode) -> bool {
    matches!(
        code,
        RejectCode::UpdateIncomplete
            | RejectCode::Busy
            | RejectCode::RateLimited
            | RejectCode::QuotaExceeded
            | RejectCode::Overloaded
            | RejectCode::StorageFull
            | RejectCode::Draining
    )
}

/// Why an edit of so many bytes is not taken. What the client answers to a question of the node's own is asked for again: from
/// what the node has by then, when the client comes back.
fn too_long(bytes: usize, answers: bool, is_resync: bool) -> Reject {
    let max = DOCUMENT_UPDATE_BYTES_MAX;
    if is_resync {
        let text = format!("what was lost on the way came in {bytes} bytes; at most {max}: come back with it");
        return Reject::new(RejectCode::Busy, text);
    }
    let text = if answers {
        format!("{bytes} bytes of edits at once; at most {max}: reload, and paste them in pieces")
    } else {
        format!("an edit of {bytes} bytes; at most {max}: paste in pieces")
    };
    Reject::new(RejectCode::BodyTooLarge, text)
}

impl Replica {
    pub(super) fn new(document: Name) -> Self {
        Self {
            document,
            subscription: None,
            is_open: false,
            is_over: false,
            has_begun: false,
            vector: Bytes::from_static(NO_VECTOR),
            is_stale: false,
            probe: None,
            state: BytesMut::new(),
            answers: false,
            asked: BTreeMap::new(),
            write_bytes: 0,
            resync: Resync::None,
            lost: 0,
            tries: 0,
            unreported: 0,
            own: None,
            others: BTreeMap::new(),
            now: Duration::ZERO,
            wishes: VecDeque::new(),
        }
    }

    pub(super) fn poll(&mut self) -> Option<Wish> {
        self.wishes.pop_front()
    }

    /// Whether so much is unanswered that nothing more should come.
    pub(super) fn is_full(&self) -> bool {
        self.asked.len() >= SOCKET_IN_FLIGHT_MAX || self.write_bytes >= SOCKET_IN_FLIGHT_BYTES
    }

    pub(super) fn document(&self) -> &Name {
        &self.document
    }

    /// Under which number it is read.
    pub(super) fn subscription(&self) -> Option<Subscription> {
        self.subscription
    }

    /// Whether a subject is this document's subscription.
    pub(super) fn reads(&self, subject: u32) -> bool {
        self.subscription == Some(Subscription(subject))
    }

    fn say(&mut self, said: Said) {
        self.wishes.push_back(Wish::Say(said));
    }

    fn tell(&mut self, told: Told) {
        self.say(Said::Told(told));
    }

    fn ask(&mut self, request: Request, op: ClientOp, asked: Asked) {
        self.asked.insert(request.0, asked);
        self.wishes.push_back(Wish::Ask(request, op));
    }

    /// Parts with the client.
    fn end(&mut self, reject: Reject, numbers: &mut Numbers) {
        if !self.is_over {
            self.leave(numbers);
            self.say(Said::Ended(reject));
        }
    }

    /// The client closes the document.
    pub(super) fn leave(&mut self, numbers: &mut Numbers) {
        self.is_over = true;
        for subscription in [self.subscription.take(), self.probe.take()].into_iter().flatten() {
            let request = numbers.request();
            self.ask(request, ClientOp::Unsubscribe { subscription }, Asked::Leave);
        }
    }

    /// The client says what it has: it is told what it lacks. When it says so again, it is told anew.
    pub(super) fn step1(&mut self, vector: Bytes, numbers: &mut Numbers) {
        if self.is_over {
            return;
        }
        if vector.len() > STATE_VECTOR_BYTES_MAX {
            let text = format!("a state vector of {} bytes; at most {STATE_VECTOR_BYTES_MAX}", vector.len());
            return self.end(Reject::new(RejectCode::BodyTooLarge, text), numbers);
        }
        self.has_begun = true;
        self.open(vector, numbers);
    }

    /// Whether the client has not said what it has, and the document was not opened without.
    pub(super) fn awaits_step1(&self) -> bool {
        !self.has_begun && !self.is_over && self.subscription.is_none()
    }

    /// Opens the document for a client that waits to hear what it may do before it says what it has.
    pub(super) fn open_early(&mut self, numbers: &mut Numbers) {
        self.open(Bytes::new(), numbers);
    }

    fn open(&mut self, vector: Bytes, numbers: &mut Numbers) {
        self.leave(numbers);
        (self.is_over, self.is_open) = (false, false);
        self.state.clear();
        let request = numbers.request();
        self.subscription = Some(Subscription(request.0));
        let op = self.opening(vector, true);
        self.ask(request, op, Asked::Open);
    }

    fn opening(&self, vector: Bytes, make: bool) -> ClientOp {
        let (document, form) = (self.document.clone(), DocumentForm::Updates);
        ClientOp::Document(DocumentOp::Open(OpenDocument { document, state: vector, form, make, lead: 0, known: None }))
    }

    /// The client edited; `answers`: it says what it has beyond a state vector it was told (step 2).
    pub(super) fn write(&mut self, update: Bytes, answers: bool, numbers: &mut Numbers) {
        if self.is_over {
            return;
        }
        let mut covers = 1;
        let is_resync = answers && matches!(self.resync, Resync::Asked { .. });
        if is_resync {
            self.resync = Resync::None;
            covers = std::mem::take(&mut self.lost);
        }
        if &update[..] == NOTHING {
            return self.say(Said::Saved(covers));
        }
        if update.len() > DOCUMENT_UPDATE_BYTES_MAX {
            return self.end(too_long(update.len(), answers, is_resync), numbers);
        }
        if self.resync != Resync::None {
            // What the client is asked for contains it.
            self.lost += covers;
            return;
        }
        let write = Write { bytes: update.len(), covers, only_deletes: update.first() == Some(&0), answers };
        self.write_bytes += write.bytes;
        let publish = Publish {
            channel: self.document.clone(),
            sequence: numbers.sequence(),
            retry: false,
            make: false,
            body: update,
            key: 0,
            post: Post { kind: PostKind::Update, target: Position(0) },
        };
        let request = numbers.request();
        self.ask(request, ClientOp::Publish(publish), Asked::Write(write));
    }

    /// A request was answered; whether it was one of this document.
    pub(super) fn answered(
        &mut self,
        request: Request,
        said: &Result<ServerOp, Reject>,
        numbers: &mut Numbers,
    ) -> bool {
        let Some(asked) = self.asked.remove(&request.0) else { return false };
        match asked {
            Asked::Leave => {}
            Asked::Open if self.reads(request.0) => match said {
                Ok(ServerOp::Document(DocumentNews::Opened { revision, bytes, access, vector, .. })) => {
                    self.opened(*revision, *bytes, *access, vector.clone(), numbers);
                }
                Ok(_) => self.end(Reject::new(RejectCode::Internal, "the node gave another answer"), numbers),
                Err(reject) => {
                    self.subscription = None;
                    self.end(reject.clone(), numbers);
                }
            },
            Asked::Open => {}
            Asked::Write(write) => {
                self.write_bytes -= write.bytes;
                self.wrote(&write, said, numbers);
                self.pump(numbers);
            }
            Asked::Vector => {
                if let Ok(ServerOp::Document(DocumentNews::Opened { vector, .. })) = said
                    && !vector.is_empty()
                {
                    self.vector = vector.clone();
                }
                // Otherwise what it had will do, if the answer is not too long.
                if let Some(subscription) = self.probe.take() {
                    self.ask(numbers.request(), ClientOp::Unsubscribe { subscription }, Asked::Leave);
                }
                self.pump(numbers);
            }
        }
        true
    }

    fn opened(&mut self, revision: Position, bytes: u64, access: DocumentAccess, vector: Bytes, numbers: &mut Numbers) {
        (self.is_open, self.answers) = (true, self.has_begun);
        if !vector.is_empty() {
            (self.vector, self.is_stale) = (vector, false);
        }
        self.say(Said::Opened(access));
        if bytes == 0 && self.has_begun {
            self.told(Bytes::from_static(NOTHING), revision);
        }
        if let Some(own) = self.own.clone() {
            self.share(own, numbers);
        }
    }

    /// A state is there as a whole.
    fn told(&mut self, state: Bytes, revision: Position) {
        if std::mem::take(&mut self.answers) {
            self.tell(Told::Step2(state, revision));
            self.tell(Told::Step1(self.vector.clone()));
        } else {
            self.is_stale = true;
            self.tell(Told::Update(state, revision));
        }
    }

    fn wrote(&mut self, write: &Write, said: &Result<ServerOp, Reject>, numbers: &mut Numbers) {
        let reject = match said {
            Ok(_) => {
                (self.tries, self.is_stale) = (0, true);
                return self.say(Said::Saved(write.covers));
            }
            Err(reject) => reject,
        };
        match reject.code {
            // A reader's step 2 has the deletions it was told of; that it may make none is no news to anybody.
            RejectCode::Forbidden if write.answers && write.only_deletes => self.say(Said::Saved(write.covers)),
            RejectCode::Forbidden => self.say(Said::Refused(reject.clone(), write.covers)),
            code if is_passing(code) => {
                self.lost += write.covers;
                if self.resync != Resync::None {
                    return;
                }
                if self.tries == SOCKET_RETRIES_MAX {
                    return self.end(reject.clone(), numbers);
                }
                let least = if code == RejectCode::UpdateIncomplete && self.tries == 0 { 0 } else { SOCKET_RETRY_MS };
                let delay = (least << self.tries).max(u64::from(reject.retry_after_ms));
                self.tries += 1;
                self.resync = Resync::Wanted { at: self.now + Duration::from_millis(delay) };
            }
            _ => self.end(reject.clone(), numbers),
        }
    }

    /// Asks the client for what was lost, once all that it sent was answered; and before that the node for what it has.
    fn pump(&mut self, numbers: &mut Numbers) {
        let Resync::Wanted { at } = self.resync else { return };
        let waits = self.asked.values().any(|asked| matches!(asked, Asked::Write(_) | Asked::Vector));
        if self.now < at || waits || self.is_over {
            return;
        }
        if std::mem::take(&mut self.is_stale) {
            let request = numbers.request();
            self.probe = Some(Subscription(request.0));
            let op = self.opening(self.vector.clone(), false);
            return self.ask(request, op, Asked::Vector);
        }
        self.resync = Resync::Asked { since: self.now };
        self.tell(Told::Step1(self.vector.clone()));
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Duration, numbers: &mut Numbers) {
        self.now = now;
        self.pump(numbers);
        if let Resync::Asked { since } = self.resync
            && now.saturating_sub(since) > ANSWER_MAX
        {
            let text = "the client did not say what the node lacks of its edits; it has them and sends them when it comes back";
            self.end(Reject::new(RejectCode::Busy, text), numbers);
        }
    }

    /// The client says something of itself, or of others.
    pub(super) fn awareness(&mut self, update: Bytes, numbers: &mut Numbers) {
        if self.is_over {
            return;
        }
        if update.len() > AWARENESS_BYTES_MAX {
            let text = format!("an awareness update of {} bytes; at most {AWARENESS_BYTES_MAX}", update.len());
            return self.end(Reject::new(RejectCode::BodyTooLarge, text), numbers);
        }
        match AwarenessUpdate::decode(&update) {
            Err(reject) => return self.end(reject, numbers),
            Ok(decoded) if decoded.entries.iter().any(|entry| entry.state.is_some()) => self.own = Some(update.clone()),
            Ok(_) => {}
        }
        if self.is_open {
            self.share(update, numbers);
        }
    }

    fn share(&mut self, update: Bytes, numbers: &mut Numbers) {
        let Some(subscription) = self.subscription else { return };
        let op = ClientOp::Document(DocumentOp::ShareAwareness { subscription, update });
        // It has no answer, and may be lost: the client says it again.
        self.wishes.push_back(Wish::Ask(numbers.request(), op));
    }

    /// The client wants to know who is there.
    pub(super) fn query_awareness(&mut self) {
        let entries = self.others.iter().map(|(&client, (clock, state))| AwarenessEntry {
            client,
            clock: *clock,
            state: state.clone(),
        });
        let update = AwarenessUpdate { entries: entries.collect() };
        self.tell(Told::Awareness(update.encode()));
    }

    /// The document's subscription was told something.
    pub(super) fn frame(&mut self, payload: &Bytes, numbers: &mut Numbers) {
        let op = match ServerOp::decode(payload) {
            Ok(op) => op,
            Err(reject) => return self.end(reject, numbers),
        };
        match op {
            ServerOp::Delivery(_) | ServerOp::Document(_) if !self.has_begun => {}
            ServerOp::Delivery(delivery) if delivery.kind == DeliveryKind::Update => {
                self.is_stale = true;
                self.tell(Told::Update(delivery.body, delivery.position));
            }
            ServerOp::Delivery(delivery) => self.taken(delivery.position.0),
            ServerOp::Document(DocumentNews::State { revision, offset, total, bytes }) => {
                if offset == 0 {
                    self.state.clear();
                }
                self.state.extend_from_slice(&bytes);
                if self.state.len() as u64 >= total {
                    let state = std::mem::take(&mut self.state).freeze();
                    self.told(state, revision);
                }
            }
            ServerOp::Document(DocumentNews::Awareness { update }) => {
                self.note(&update);
                self.tell(Told::Awareness(update));
            }
            ServerOp::Ended(reject) => {
                self.subscription = None;
                self.end(reject, numbers);
            }
            _ => {}
        }
    }

    fn note(&mut self, update: &Bytes) {
        let Ok(update) = AwarenessUpdate::decode(update) else { return };
        for AwarenessEntry { client, clock, state } in update.entries {
            if state.is_none() {
                self.others.remove(&client);
            } else if self.others.len() < AWARENESS_CLIENTS_MAX || self.others.contains_key(&client) {
                self.others.insert(client, (clock, state));
            }
        }
    }

    /// The client took everything up to a revision.
    pub(super) fn taken(&mut self, revision: u64) {
        let Some(subscription) = self.subscription else { return };
        self.unreported += 1;
        if self.unreported >= SOCKET_CREDIT_UPDATES {
            self.unreported = 0;
            self.wishes.push_back(Wish::Tell(ClientOp::Consumed { subscription, position: Position(revision) }));
        }
    }
}
