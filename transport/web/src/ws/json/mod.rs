//! `/ws`: channels, documents and generations in JSON, for people who write their own client.
//!
//! A message is one JSON object, with a `type`; `transport/web/schema/ws.schema.json`, which is served at
//! `/ws/schema.json`, says what each type has. What a client sends has an `id`, and what answers it has the same; what
//! follows a subscription or a watch is named after the `id` of the request that made it. The first message is `hello`,
//! unless a token came with the upgrade. A message that cannot be carried out is answered by an `error`, and the others are
//! not affected.

mod edits;
mod news;
mod requests;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};
use thalweg_protocol::document::{AwarenessUpdate, DocumentForm, DocumentNews, DocumentOp, ReadForm};
use thalweg_protocol::ids::{Name, Position, Request, Sequence, Subscription, Watch};
use thalweg_protocol::limits::{DOCUMENT_BYTES_MAX, LEAD_MESSAGES, LEAD_TOKENS, LEAD_TOKENS_MAX, LEAD_UPDATES};
use thalweg_protocol::op::{ClientOp, DeliveryKind, ServerOp};
use thalweg_protocol::reject::{Reject, RejectCode};

use super::close::Close;
use super::protocol::{Effect, Input, Message, Protocol, Taken};
use super::replica::Numbers;
use crate::limits::{SOCKET_IN_FLIGHT_BYTES, SOCKET_IN_FLIGHT_MAX, SOCKET_READING_MAX};
use news::News;
use requests::{Asked, CreditBy, Writes, invalid};

const SESSION: u32 = 0;
/// Set in the numbers of requests that begin to read a generation: their frames are not counted, also when nobody reads
/// them any more.
const WATCHES: u32 = 1 << 31;
/// Documents under way to one client at a time.
const READS_MAX: usize = 4;
/// Bytes of a document as it is read: its JSON is longer than its state.
const READ_BYTES_MAX: u64 = 8 * DOCUMENT_BYTES_MAX as u64;

/// What is read under a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Channel,
    Document(DocumentForm),
    Generation,
}

/// Something that a client reads.
struct Subject {
    /// The client's number.
    id: u64,
    kind: Kind,
    credit: CreditBy,
    /// Credit is given each so many messages or tokens.
    step: u64,
    /// How much was taken and not reported, and for generations up to which token it was.
    unreported: u64,
    reported: u64,
    /// A document's state, as far as it is there.
    state: BytesMut,
}

/// What a request that is not answered was.
enum Pending {
    Hello {
        id: Option<u64>,
    },
    /// Its answer is told as it is.
    Plain {
        id: u64,
        bytes: usize,
        sequence: Option<Sequence>,
    },
    /// Begins to read.
    Reading {
        id: u64,
    },
    /// Its answer comes in parts.
    Read {
        id: u64,
        document: Name,
        form: ReadForm,
        bytes: BytesMut,
    },
}

/// One client.
pub(crate) struct Json {
    is_open: bool,
    /// A hello was sent and is not answered.
    waits: bool,
    numbers: Numbers,
    writes: Writes,
    pending: BTreeMap<u32, Pending>,
    pending_bytes: usize,
    subjects: BTreeMap<u32, Subject>,
    by_id: BTreeMap<u64, u32>,
    effects: VecDeque<Effect>,
}

impl Json {
    /// With the token that came with the upgrade, if one did.
    pub(crate) fn new(token: Option<String>) -> Self {
        let mut json = Self {
            is_open: false,
            waits: false,
            numbers: Numbers::default(),
            writes: Writes::default(),
            pending: BTreeMap::new(),
            pending_bytes: 0,
            subjects: BTreeMap::new(),
            by_id: BTreeMap::new(),
            effects: VecDeque::new(),
        };
        if let Some(token) = token {
            json.waits = true;
            json.pending.insert(0, Pending::Hello { id: None });
            json.effects.push_back(Effect::Open { session: SESSION, id: None, token });
        }
        json
    }

    fn send(&mut self, news: News) {
        self.effects.push_back(Effect::Send(Message::Text(news.text()), None));
    }

    /// Sends what a subject's reader is told, for which its core gives credit up to `mark` once it is taken.
    fn tell(&mut self, subject: u32, news: News, mark: Option<u64>) {
        let taken = mark.map(|mark| Taken { session: SESSION, subject, mark });
        self.effects.push_back(Effect::Send(Message::Text(news.text()), taken));
    }

    fn refuse(&mut self, id: Option<u64>, reject: &Reject) {
        self.send(news::error("error", reject).perhaps("id", id));
    }

    fn message(&mut self, message: Message) {
        let Message::Text(text) = message else {
            let text =
                "bytes; messages are JSON texts. y-websocket and Hocuspocus have /yjs/{document} and /hocuspocus";
            return self.refuse(None, &Reject::new(RejectCode::FrameInvalid, text));
        };
        match Asked::read(&text) {
            Err((id, reject)) => self.refuse(id, &reject),
            Ok(mut asked) => {
                let id = asked.id;
                if let Err(reject) = self.carry_out(&mut asked) {
                    self.refuse(id, &reject);
                }
            }
        }
    }

    fn carry_out(&mut self, asked: &mut Asked) -> Result<(), Reject> {
        let kind = asked.kind.as_str();
        if !requests::TYPES.contains(&kind) {
            let kind: String = kind.chars().take(64).collect();
            let text = format!("there is no type {kind:?}; there are {}", requests::TYPES.join(", "));
            return Err(Reject::new(RejectCode::OperationUnknown, text));
        }
        if kind == "hello" {
            return self.hello(asked);
        }
        if !self.is_open {
            let text = "the first message is a hello with a token";
            return Err(Reject::new(RejectCode::HelloExpected, text));
        }
        match kind {
            "credit" => return self.credit(&asked.fields()?),
            "awareness" => return self.awareness(&asked.fields()?),
            _ => {}
        }
        let id = asked.id.ok_or_else(|| invalid(format!("{kind} has no id")))?;
        let is_open = |pending: &Pending| match pending {
            Pending::Hello { id: own } => *own == Some(id),
            Pending::Plain { id: own, .. } | Pending::Reading { id: own } | Pending::Read { id: own, .. } => *own == id,
        };
        if self.by_id.contains_key(&id) || self.pending.values().any(is_open) {
            return Err(invalid(format!("id {id} is that of a request that is not over; give another")));
        }
        match kind {
            "subscribe" | "open" | "ask" | "watch" => self.begin_reading(id, asked),
            "publish" | "edit" | "version" | "restore" => self.write(id, asked),
            "read" => self.read(id, asked),
            _ => {
                let op = self.plain(asked)?;
                self.ask(Pending::Plain { id, bytes: 0, sequence: None }, op);
                Ok(())
            }
        }
    }

    fn ask(&mut self, pending: Pending, op: ClientOp) {
        let request = self.numbers.request();
        self.pending.insert(request.0, pending);
        self.effects.push_back(Effect::Ask { session: SESSION, request, op });
    }

    fn hello(&mut self, asked: &mut Asked) -> Result<(), Reject> {
        if self.is_open || self.waits {
            return Err(Reject::new(
                RejectCode::HelloExpected,
                "a second hello; open another socket for another token",
            ));
        }
        let hello: requests::HelloFields = asked.fields()?;
        let id = hello.session()?;
        (self.waits, self.writes.is_named) = (true, id.is_some());
        self.pending.insert(0, Pending::Hello { id: asked.id });
        self.effects.push_back(Effect::Open { session: SESSION, id, token: hello.token });
        Ok(())
    }

    /// Requests whose answer is told as it is.
    fn plain(&mut self, asked: &mut Asked) -> Result<ClientOp, Reject> {
        Ok(match asked.kind.as_str() {
            "ping" => {
                asked.fields::<requests::NoFields>()?;
                ClientOp::Ping { nonce: 0 }
            }
            "create" => ClientOp::CreateChannel(asked.fields::<requests::CreateFields>()?.op()?),
            "delete" => {
                let fields: requests::ChannelFields = asked.fields()?;
                ClientOp::DeleteChannel { channel: requests::name("channel", &fields.channel)? }
            }
            "history" => {
                let fields: requests::HistoryFields = asked.fields()?;
                let channel = requests::name("channel", &fields.channel)?;
                ClientOp::ReadHistory { channel, from: Position(fields.from), limit: fields.limit }
            }
            "write" => ClientOp::Document(DocumentOp::Ask(Box::new(asked.fields::<edits::WriteFields>()?.op()?))),
            "cancel" => {
                let fields: requests::GenerationFields = asked.fields()?;
                ClientOp::Cancel { generation: requests::generation(&fields.generation)? }
            }
            "unwatch" => {
                let fields: requests::WatchedFields = asked.fields()?;
                let watch = Watch(self.end_reading("watch", fields.watch, |kind| kind == Kind::Generation)?);
                ClientOp::Unwatch { watch }
            }
            _ => {
                let id = asked.fields::<requests::SubscriptionFields>()?.subscription;
                let subject = self.end_reading("subscription", id, |kind| kind != Kind::Generation)?;
                ClientOp::Unsubscribe { subscription: Subscription(subject) }
            }
        })
    }

    fn subject_of(&self, field: &str, id: u64, fits: impl Fn(Kind) -> bool) -> Result<u32, Reject> {
        let subject = self.by_id.get(&id).copied();
        let subject = subject.filter(|subject| self.subjects.get(subject).is_some_and(|found| fits(found.kind)));
        subject.ok_or_else(|| Reject::new(RejectCode::SubscriptionInvalid, format!("there is no {field} {id}")))
    }

    /// Nothing more is told about it.
    fn end_reading(&mut self, field: &str, id: u64, fits: impl Fn(Kind) -> bool) -> Result<u32, Reject> {
        let subject = self.subject_of(field, id, fits)?;
        self.forget(subject);
        Ok(subject)
    }

    fn forget(&mut self, subject: u32) {
        if let Some(subject) = self.subjects.remove(&subject) {
            self.by_id.remove(&subject.id);
        }
    }

    fn begin_reading(&mut self, id: u64, asked: &mut Asked) -> Result<(), Reject> {
        if self.subjects.len() >= SOCKET_READING_MAX {
            let text =
                format!("the socket reads {SOCKET_READING_MAX} channels, documents and generations; end one first");
            return Err(Reject::new(RejectCode::LimitReached, text));
        }
        let (kind, lead, credit, op) = match asked.kind.as_str() {
            "subscribe" => {
                let fields: requests::SubscribeFields = asked.fields()?;
                let (lead, credit) = (fields.lead, fields.credit);
                (Kind::Channel, lead, credit, ClientOp::Subscribe(fields.op()?))
            }
            "open" => {
                let fields: edits::OpenFields = asked.fields()?;
                let (lead, credit) = (fields.lead, fields.credit);
                let open = fields.op()?;
                (Kind::Document(open.form), lead, credit, ClientOp::Document(DocumentOp::Open(open)))
            }
            "ask" => {
                let fields: requests::AskFields = asked.fields()?;
                let (lead, credit) = (fields.lead, fields.credit);
                (Kind::Generation, lead, credit, ClientOp::Ask(Box::new(fields.op()?)))
            }
            _ => {
                let fields: requests::WatchFields = asked.fields()?;
                let (lead, credit) = (fields.lead, fields.credit);
                (Kind::Generation, lead, credit, ClientOp::Watch(fields.op()?))
            }
        };
        let usual = match kind {
            Kind::Channel => LEAD_MESSAGES,
            Kind::Document(_) => LEAD_UPDATES,
            Kind::Generation => LEAD_TOKENS,
        };
        // What is too much of the others is refused by the core; of this it takes the most that it allows.
        let lead = if kind == Kind::Generation { lead.min(LEAD_TOKENS_MAX) } else { lead };
        let step = u64::from(if lead == 0 { usual } else { lead }.div_ceil(4));
        let mut request = self.numbers.request();
        if kind == Kind::Generation {
            request.0 |= WATCHES;
        }
        let subject = Subject { id, kind, credit, step, unreported: 0, reported: 0, state: BytesMut::new() };
        self.subjects.insert(request.0, subject);
        self.by_id.insert(id, request.0);
        self.pending.insert(request.0, Pending::Reading { id });
        self.effects.push_back(Effect::Ask { session: SESSION, request, op });
        Ok(())
    }

    fn write(&mut self, id: u64, asked: &mut Asked) -> Result<(), Reject> {
        let publish = match asked.kind.as_str() {
            "publish" => {
                let fields: requests::PublishFields = asked.fields()?;
                let sequence = self.writes.number(fields.sequence, true)?;
                fields.op(sequence)?
            }
            "edit" => {
                let fields: edits::EditFields = asked.fields()?;
                let sequence = self.writes.number(fields.sequence, fields.repeats())?;
                fields.op(sequence)?
            }
            "version" => {
                let fields: edits::VersionFields = asked.fields()?;
                let sequence = self.writes.number(fields.sequence, true)?;
                fields.op(sequence)?
            }
            _ => {
                let fields: edits::RestoreFields = asked.fields()?;
                let sequence = self.writes.number(fields.sequence, true)?;
                fields.op(sequence)?
            }
        };
        let (bytes, sequence) = (publish.body.len(), Some(publish.sequence));
        self.pending_bytes += bytes;
        self.ask(Pending::Plain { id, bytes, sequence }, ClientOp::Publish(publish));
        Ok(())
    }

    fn read(&mut self, id: u64, asked: &mut Asked) -> Result<(), Reject> {
        let reads = self.pending.values().filter(|pending| matches!(pending, Pending::Read { .. })).count();
        if reads >= READS_MAX {
            let text = format!("{READS_MAX} documents are being read; wait for one");
            return Err(Reject::new(RejectCode::Busy, text));
        }
        let fields: edits::ReadFields = asked.fields()?;
        let (document, form) = (requests::name("document", &fields.document)?, fields.form());
        let op = DocumentOp::Read { document: document.clone(), revision: Position(fields.revision), form, offset: 0 };
        self.ask(Pending::Read { id, document, form, bytes: BytesMut::new() }, ClientOp::Document(op));
        Ok(())
    }

    fn credit(&mut self, fields: &requests::CreditFields) -> Result<(), Reject> {
        let op = match (fields.subscription, fields.position, fields.watch, fields.index) {
            (Some(id), Some(position), None, None) => {
                let subject = self.subject_of("subscription", id, |kind| kind != Kind::Generation)?;
                ClientOp::Consumed { subscription: Subscription(subject), position: Position(position) }
            }
            (None, None, Some(id), Some(index)) => {
                let subject = self.subject_of("watch", id, |kind| kind == Kind::Generation)?;
                ClientOp::TokensConsumed { watch: Watch(subject), index }
            }
            _ => return Err(invalid("credit has either subscription and position, or watch and index")),
        };
        // Not one that must arrive: clients send as many as they like, and each says all that those before it did.
        self.effects.push_back(Effect::Ask { session: SESSION, request: self.numbers.request(), op });
        Ok(())
    }

    fn awareness(&mut self, fields: &edits::AwarenessFields) -> Result<(), Reject> {
        let of_document = |kind| matches!(kind, Kind::Document(_));
        let subject = self.subject_of("subscription", fields.subscription, of_document)?;
        let op = DocumentOp::ShareAwareness { subscription: Subscription(subject), update: fields.update()? };
        let request = self.numbers.request();
        self.effects.push_back(Effect::Ask { session: SESSION, request, op: ClientOp::Document(op) });
        Ok(())
    }

    fn answered(&mut self, request: Request, said: Result<ServerOp, Reject>) {
        if let Ok(ServerOp::ServerRestarting { reconnect_delay_ms }) = said {
            return self.send(News::new("restarting").with("reconnect_delay_ms", reconnect_delay_ms));
        }
        let Some(pending) = self.pending.remove(&request.0) else { return };
        match (pending, said) {
            (Pending::Hello { id }, Ok(ServerOp::Welcome(welcome))) => {
                (self.is_open, self.waits) = (true, false);
                self.send(news::welcome(&welcome).perhaps("id", id));
            }
            (Pending::Hello { id }, said) => {
                let unexpected = || Reject::new(RejectCode::Internal, "the node gave another answer");
                let reject = said.err().unwrap_or_else(unexpected);
                self.refuse(id, &reject);
                self.effects.push_back(Effect::Close(Close::from(reject)));
            }
            (Pending::Plain { id, bytes, sequence }, said) => {
                self.pending_bytes -= bytes;
                self.plainly(id, said, sequence);
            }
            (Pending::Reading { id }, Err(reject)) => {
                self.forget(request.0);
                self.refuse(Some(id), &reject);
            }
            (
                Pending::Reading { id },
                Ok(ServerOp::Document(DocumentNews::Opened { revision, bytes, access, made, vector, .. })),
            ) => {
                let news = News::new("opened").with("id", id).with("revision", revision.0).with("bytes", bytes);
                let news = news.with("access", access.as_str()).with("made", made);
                self.send(if vector.is_empty() { news } else { news.base64("vector", &vector) });
            }
            (Pending::Reading { id }, said) => self.plainly(id, said, None),
            (Pending::Read { id, .. }, Err(reject)) => self.refuse(Some(id), &reject),
            (Pending::Read { id, document, form, bytes }, Ok(op)) => self.part(id, document, form, bytes, op),
        }
    }

    fn plainly(&mut self, id: u64, said: Result<ServerOp, Reject>, sequence: Option<Sequence>) {
        match said {
            Err(reject) => self.refuse(Some(id), &reject),
            Ok(op) => match news::answer(&op) {
                Some(news) => self.send(news.with("id", id).perhaps("sequence", sequence.map(|sequence| sequence.0))),
                None => self.refuse(Some(id), &Reject::new(RejectCode::Internal, "the node gave another answer")),
            },
        }
    }

    /// A part of a document that is read.
    fn part(&mut self, id: u64, document: Name, form: ReadForm, mut bytes: BytesMut, op: ServerOp) {
        let ServerOp::Document(DocumentNews::State { revision, total, bytes: part, .. }) = op else {
            return self.refuse(Some(id), &Reject::new(RejectCode::Internal, "the node gave another answer"));
        };
        if total > READ_BYTES_MAX {
            let text =
                format!("the document has {total} bytes in this form; at most {READ_BYTES_MAX} over this protocol");
            return self.refuse(Some(id), &Reject::new(RejectCode::DocumentTooLarge, text));
        }
        bytes.extend_from_slice(&part);
        if (bytes.len() as u64) < total && !part.is_empty() {
            let offset = bytes.len() as u64;
            let op = DocumentOp::Read { document: document.clone(), revision, form, offset };
            return self.ask(Pending::Read { id, document, form, bytes }, ClientOp::Document(op));
        }
        self.send(news::document(form, revision.0, &bytes).with("id", id));
    }

    fn frame(&mut self, number: u32, payload: &Bytes) {
        let Some(subject) = self.subjects.get_mut(&number) else { return };
        let (id, kind) = (subject.id, subject.kind);
        let op = match ServerOp::decode(payload) {
            Ok(op) => op,
            Err(reject) => ServerOp::Ended(reject),
        };
        let of = if kind == Kind::Generation { "watch" } else { "subscription" };
        match op {
            ServerOp::Delivery(delivery) => {
                let news = match (kind, delivery.kind) {
                    (Kind::Document(_), DeliveryKind::Update) => news::update(&delivery),
                    (Kind::Document(_), DeliveryKind::Version) => news::version(&delivery),
                    _ => news::delivery(&delivery),
                };
                self.tell(number, news.with(of, id), Some(delivery.position.0));
            }
            ServerOp::Missed { from, to } => {
                let news = News::new("missed").with(of, id).with("from", from.0).with("to", to.0);
                self.tell(number, news, None);
            }
            ServerOp::Document(DocumentNews::State { revision, offset, total, bytes }) => {
                if offset == 0 {
                    subject.state.clear();
                }
                subject.state.extend_from_slice(&bytes);
                if subject.state.len() as u64 >= total {
                    let state = std::mem::take(&mut subject.state);
                    let is_update = kind == Kind::Document(DocumentForm::Updates);
                    let news = news::state(is_update, revision.0, &state).with(of, id);
                    self.tell(number, news, Some(revision.0));
                }
            }
            ServerOp::Document(DocumentNews::Operations(operations)) => match news::operations(&operations) {
                Ok(news) => self.tell(number, news.with(of, id), Some(operations.to.0)),
                Err(reject) => self.over(number, of, id, &reject),
            },
            ServerOp::Document(DocumentNews::Awareness { update }) => {
                if let Ok(update) = AwarenessUpdate::decode(&update) {
                    self.send(news::awareness(&update).with(of, id));
                }
            }
            ServerOp::Ended(reject) => self.over(number, of, id, &reject),
            op => self.generation(number, id, op),
        }
    }

    /// A generation that is watched goes on.
    fn generation(&mut self, number: u32, id: u64, op: ServerOp) {
        let of = "watch";
        match op {
            ServerOp::Tokens { index, count, text, .. } => {
                let news = News::new("tokens").with(of, id).with("index", index).with("count", count);
                let news = news.with("text", String::from_utf8_lossy(&text));
                self.tell(number, news, Some(u64::from(index) + u64::from(count)));
            }
            ServerOp::Rewound { to } => {
                self.tell(number, News::new("rewound").with(of, id).with("to", to), Some(u64::from(to)));
            }
            ServerOp::Finished { reason, usage, message } => {
                let usage = serde_json::json!({
                    "prompt_tokens": usage.prompt_tokens,
                    "completion_tokens": usage.completion_tokens,
                    "cached_tokens": usage.cached_tokens,
                });
                let news = News::new("finished").with(of, id).with("reason", reason.as_str()).with("usage", usage);
                self.send(news.perhaps("message", (!message.is_empty()).then_some(message)));
                self.forget(number);
            }
            // Its first frame, which says what the answer said.
            _ => {}
        }
    }

    fn over(&mut self, number: u32, of: &str, id: u64, reject: &Reject) {
        self.send(news::error("ended", reject).with(of, id));
        self.forget(number);
    }

    fn taken(&mut self, taken: Taken) {
        let Some(subject) = self.subjects.get_mut(&taken.subject) else { return };
        if subject.credit == CreditBy::Manual {
            return;
        }
        let op = if subject.kind == Kind::Generation {
            // Not one after another if the generation was rewound.
            if (subject.reported..subject.reported + subject.step).contains(&taken.mark) {
                return;
            }
            subject.reported = taken.mark;
            ClientOp::TokensConsumed { watch: Watch(taken.subject), index: taken.mark as u32 }
        } else {
            subject.unreported += 1;
            if subject.unreported < subject.step {
                return;
            }
            subject.unreported = 0;
            ClientOp::Consumed { subscription: Subscription(taken.subject), position: Position(taken.mark) }
        };
        self.effects.push_back(Effect::Tell { session: SESSION, op });
    }
}

impl Protocol for Json {
    fn handle(&mut self, input: Input) {
        match input {
            Input::Message(message) => self.message(message),
            Input::Answered { request, said, .. } => self.answered(request, said),
            Input::Frame { subject, payload, .. } => self.frame(subject, &payload),
            Input::Closed { reject, .. } => {
                // A hello that is refused was answered already.
                if self.is_open {
                    self.send(news::error("closed", &reject));
                }
                self.effects.push_back(Effect::Close(Close::from(reject)));
            }
            Input::Taken(taken) => self.taken(taken),
            Input::Tick(_) | Input::Quiet => {}
        }
    }

    fn poll(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn is_full(&self) -> bool {
        self.waits || self.pending.len() >= SOCKET_IN_FLIGHT_MAX || self.pending_bytes >= SOCKET_IN_FLIGHT_BYTES
    }

    fn is_counted(&self, _session: u32, subject: u32) -> bool {
        subject & WATCHES == 0
    }
}
