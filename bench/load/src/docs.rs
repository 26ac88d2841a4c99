//! `bench docs`: documents that several edit at once.
//!
//! A delivery is one edit that one of its author's peers was told of: by the (client, clock) of its insertion, however
//! many edits the frame holds. Editors of positional operations are told apart by revisions instead.

mod book;
mod editors;
mod rows;
mod scan;
mod setup;
mod thin;
mod typing;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use thalweg_protocol::chat::{Post, PostKind};
use thalweg_protocol::document::{AwarenessEntry, AwarenessUpdate, DocumentForm, DocumentNews, DocumentOp};
use thalweg_protocol::ids::{Name, Position, Sequence, Subscription};
use thalweg_protocol::limits::{
    DOCUMENT_UPDATE_BYTES_MAX, DOCUMENTS_PER_SESSION_MAX, FRAME_HEADER_BYTES, IN_FLIGHT_MAX, LEAD_UPDATES,
};
use thalweg_protocol::op::{ClientOp, DeliveryKind, Publish, ServerOp};
use thalweg_protocol::reject::Reject;
use thalweg_workload::{Arrivals, Schedule};

use crate::cli::{Context, DocsArgs, EditForm, Idle};
use crate::clock::nanos;
use crate::error::LoadError;
use crate::latency::Latencies;
use crate::process::Process;
use crate::report::Row;
use crate::swarm::{Greeting, LinkId, Seen, Swarm};
use editors::{Editor, Hands, Line, Sent};

/// Handshakes, or documents being opened, at a time.
const AT_ONCE: usize = 64;
/// How long each part of the setup may take, beside 5 ms for each editor.
const SETUP_LIMIT: Duration = Duration::from_secs(20);
/// How long deliveries are waited for after the last edit.
const GRACE: Duration = Duration::from_secs(10);
/// A reader reports what it consumed after so many frames.
const CREDIT_EVERY: u32 = LEAD_UPDATES / 4;
/// The number of a publish: above those of subscriptions.
const REQUESTS_FROM: u32 = 1_000_000;
/// Edits that may be refused, and sent again, before the run is given up.
const REFUSED_MAX: u64 = 100_000;
/// Yjs client ids begin here: five bytes each, as most of the random ones that editors draw.
const CLIENTS: u64 = 1 << 30;
/// Longest recording.
const TRACE_BYTES_MAX: u64 = 256 << 20;

/// What came by a moment of the run, and what it cost.
#[derive(Clone, Copy, Default)]
struct Sample {
    at_ns: u64,
    typed: u64,
    delivered: u64,
    frames: u64,
    merged: u64,
    in_bytes: u64,
    out_bytes: u64,
    awareness_bytes: u64,
    server_cpu_s: Option<f64>,
    own_cpu_s: f64,
}

/// Memory of the server at the marks of a run, in bytes.
#[derive(Clone, Copy, Default)]
struct Memory {
    connected: Option<u64>,
    opened: Option<u64>,
    ended: Option<u64>,
    left: Option<u64>,
}

/// See the module.
struct Docs<'a> {
    args: &'a DocsArgs,
    context: &'a Context,
    form: DocumentForm,
    prefix: String,
    /// By seat, then by document: see [`Self::at`].
    editors: Vec<Editor>,
    /// By link.
    lines: Vec<Line>,
    /// By document; of the one kind or the other.
    books: Vec<book::Book>,
    revisions: Vec<thin::Revisions>,
    ready: usize,
    rng: StdRng,
    measured: Range<u64>,
    now: Sample,
    memory: Memory,
    acknowledged: u64,
    refused: BTreeMap<&'static str, u64>,
    /// Frames that did not follow what their reader had: must stay 0.
    gaps: u64,
    /// Times that a reader was given the whole document anew.
    restarts: u64,
    deliveries: Latencies,
    acks: Latencies,
    late: Latencies,
}

pub(crate) fn run(args: &DocsArgs, context: &Context) -> Result<Vec<Row>, LoadError> {
    check(args)?;
    let greeting = Greeting::Hello { token: context.target.token.clone() };
    let mut swarm = Swarm::new(&context.target, greeting, context.idle.unwrap_or(Idle::Park))?;
    let mut docs = Docs::new(args, context)?;
    docs.set_up(&mut swarm)?;
    let samples = docs.load(&mut swarm)?;
    let disagreement = docs.compare(&mut swarm)?;
    docs.leave(&mut swarm)?;
    swarm.close();
    docs.rows(samples, disagreement.as_deref())
}

fn check(args: &DocsArgs) -> Result<(), LoadError> {
    let wrong = |text: String| Err(LoadError::Usage(text));
    if args.documents == 0 || args.editors < 2 {
        return wrong("give at least one document and two editors of each".into());
    }
    if args.per_connection == 0 || args.per_connection > DOCUMENTS_PER_SESSION_MAX {
        let (got, most) = (args.per_connection, DOCUMENTS_PER_SESSION_MAX);
        return wrong(format!("--per-connection is {got}; a connection has 1 to {most} documents open"));
    }
    let most = DOCUMENT_UPDATE_BYTES_MAX / 2;
    if args.page == 0 || args.page > most {
        return wrong(format!("--page is {}; give 1 to {most} characters", args.page));
    }
    Ok(())
}

/// Reads what was recorded: a JSON array of [place, code units that go, text that comes].
fn recorded(args: &DocsArgs) -> Result<Option<Arc<Vec<typing::Recorded>>>, LoadError> {
    let Some(path) = &args.trace else { return Ok(None) };
    let what = || format!("reading {}", path.display());
    let bytes = std::fs::metadata(path).map_err(LoadError::io(what()))?.len();
    if bytes > TRACE_BYTES_MAX {
        return Err(LoadError::Usage(format!("{} has {bytes} bytes; {TRACE_BYTES_MAX} are read", path.display())));
    }
    let text = std::fs::read_to_string(path).map_err(LoadError::io(what()))?;
    let wrong = |error: serde_json::Error| {
        let form = "an array of [place, code units that go, text that comes]";
        LoadError::Usage(format!("{} is not {form}: {error}", path.display()))
    };
    serde_json::from_str(&text).map(|edits| Some(Arc::new(edits))).map_err(wrong)
}

impl<'a> Docs<'a> {
    fn new(args: &'a DocsArgs, context: &'a Context) -> Result<Self, LoadError> {
        let recorded = recorded(args)?;
        let editors = (0..args.documents * args.editors)
            .map(|at| {
                let (seat, document) = (at / args.documents, at % args.documents);
                Editor::new(args, seat, document, recorded.clone())
            })
            .collect();
        let links = args.documents.div_ceil(args.per_connection) * args.editors;
        let thin = args.form == EditForm::Operations;
        let (replicas, thins) = if thin { (0, args.documents) } else { (args.documents, 0) };
        Ok(Self {
            args,
            context,
            form: if thin { DocumentForm::Operations } else { DocumentForm::Updates },
            prefix: format!("bench/docs-{:08x}", rand::rng().random::<u32>()),
            editors,
            lines: (0..links).map(|_| Line::default()).collect(),
            books: (0..replicas).map(|_| book::Book::new(args.editors)).collect(),
            revisions: (0..thins).map(|_| thin::Revisions::new(args.editors)).collect(),
            ready: 0,
            rng: StdRng::seed_from_u64(args.seed),
            measured: 0..0,
            now: Sample::default(),
            memory: Memory::default(),
            acknowledged: 0,
            refused: BTreeMap::new(),
            gaps: 0,
            restarts: 0,
            deliveries: Latencies::new(),
            acks: Latencies::new(),
            late: Latencies::new(),
        })
    }

    fn name(&self, document: usize) -> Name {
        Name::new(&format!("{}/{document}", self.prefix)).expect("a valid name")
    }

    /// The editor that sits there.
    fn at(&self, document: usize, seat: usize) -> usize {
        seat * self.args.documents + document
    }

    /// Whose subscription this is. Editors of one document are on different links, since a session is not told of its own
    /// edits.
    fn editor_of(&self, link: LinkId, subject: u32) -> Result<usize, LoadError> {
        let (group, seat) = (link / self.args.editors, link % self.args.editors);
        let place = (subject as usize).wrapping_sub(1);
        let document = group * self.args.per_connection + place;
        if place >= self.args.per_connection || document >= self.args.documents {
            return Err(LoadError::Protocol(format!("there is no subscription {subject}")));
        }
        Ok(self.at(document, seat))
    }

    /// Types by schedule for the time of the run, and waits for what is late; what there was at the beginning and the end.
    fn load(&mut self, swarm: &mut Swarm) -> Result<(Sample, Sample), LoadError> {
        let start_ns = swarm.clock().now_ns();
        let from = start_ns + nanos(self.args.warmup);
        self.measured = from..from + nanos(self.args.duration);
        let editors = self.editors.len() as f64;
        let mut schedule = |rate: f64| {
            let mut schedule = Schedule::new(Arrivals::Poisson, rate, start_ns);
            let next = schedule.next(&mut self.rng);
            (schedule, next)
        };
        let (mut keys, mut aware) = (schedule(self.args.rate), schedule(self.args.awareness * editors));
        let (own, mut before, mut after) = (Process::own(), None, None);
        swarm.run_until(self.args.warmup + self.args.duration + GRACE, |swarm, seen| {
            if let Some((link, seen)) = seen {
                self.see(swarm, link, seen)?;
                return Ok(false);
            }
            let at_ns = swarm.clock().now_ns();
            let (begins, ends) = (at_ns >= self.measured.start, at_ns >= self.measured.end);
            if (before.is_none() && begins) || (after.is_none() && ends) {
                let (server_cpu_s, own_cpu_s) = (self.context.server_cpu()?, own.cpu_seconds()?);
                let sample = Sample { at_ns, server_cpu_s, own_cpu_s, ..self.now };
                if before.is_none() { before = Some(sample) } else { after = Some(sample) }
            }
            if !ends {
                while let Some(at) = due(&mut keys, swarm.clock().now_ns(), &mut self.rng) {
                    self.key(swarm, at)?;
                }
                while due(&mut aware, at_ns, &mut self.rng).is_some() {
                    self.share_awareness(swarm);
                }
                let next = [keys.1, aware.1].into_iter().flatten().min();
                swarm.wake_at(next.map_or(self.measured.end, |next| next.min(self.measured.end)));
            }
            Ok(after.is_some() && self.outstanding() == 0 && self.unanswered() == 0)
        })?;
        self.memory.ended = self.resident()?;
        let wanted = self.now.typed * (self.args.editors as u64 - 1);
        let incomplete = LoadError::Incomplete {
            what: "deliveries",
            got: self.now.delivered,
            wanted,
            seconds: (self.args.duration + GRACE).as_secs(),
        };
        before.zip(after).ok_or(incomplete)
    }

    fn outstanding(&self) -> u64 {
        let replicas: u64 = self.books.iter().map(book::Book::outstanding).sum();
        replicas + self.revisions.iter().map(thin::Revisions::outstanding).sum::<u64>()
    }

    fn unanswered(&self) -> usize {
        self.lines.iter().map(|line| line.unanswered.len() + line.held.len()).sum()
    }

    /// Somebody types.
    fn key(&mut self, swarm: &mut Swarm, intended_ns: u64) -> Result<(), LoadError> {
        let at = self.rng.random_range(0..self.editors.len());
        let line = &mut self.lines[self.editors[at].link];
        if line.unanswered.len() >= IN_FLIGHT_MAX - 8 {
            // The protocol allows no more; it still counts from when it was intended.
            line.held.push_back((at, intended_ns));
            return Ok(());
        }
        self.key_of(swarm, at, intended_ns)
    }

    fn key_of(&mut self, swarm: &mut Swarm, at: usize, intended_ns: u64) -> Result<(), LoadError> {
        self.now.typed += 1;
        if self.measured.contains(&intended_ns) {
            self.late.record(intended_ns, swarm.clock().now_ns());
        }
        let editor = &mut self.editors[at];
        match &mut editor.hands {
            Hands::Replica(typist) => {
                let update = typist.key();
                let mut clock = 0;
                scan::scan(&update, |_, _, end| clock = end);
                self.books[editor.document].typed(editor.seat, clock, intended_ns);
                self.publish(swarm, at, PostKind::Update, Position(0), update.into(), intended_ns)
            }
            Hands::Thin(thin) => {
                thin.key(intended_ns).map_err(|reject| broken(&reject))?;
                self.revisions[editor.document].typed();
                self.send_operations(swarm, at)
            }
        }
    }

    /// Sends what a thin editor has to send, if it waits for nothing.
    fn send_operations(&mut self, swarm: &mut Swarm, at: usize) -> Result<(), LoadError> {
        let Hands::Thin(thin) = &mut self.editors[at].hands else { return Ok(()) };
        let Some((operations, revision)) = thin.next() else { return Ok(()) };
        let now_ns = swarm.clock().now_ns();
        self.publish(swarm, at, PostKind::Operations, revision, operations.encode(), now_ns)
    }

    fn publish(
        &mut self,
        swarm: &mut Swarm,
        at: usize,
        kind: PostKind,
        target: Position,
        body: Bytes,
        intended_ns: u64,
    ) -> Result<(), LoadError> {
        let line = &mut self.lines[self.editors[at].link];
        line.written += 1;
        let sent = Sent {
            request: line.next_request(),
            sequence: Sequence(line.written),
            at,
            post: Post { kind, target },
            body,
            intended_ns,
        };
        self.send(swarm, sent, false)
    }

    fn send(&mut self, swarm: &mut Swarm, sent: Sent, retry: bool) -> Result<(), LoadError> {
        let Editor { link, document, .. } = self.editors[sent.at];
        let publish = Publish {
            channel: self.name(document),
            sequence: sent.sequence,
            retry,
            make: false,
            body: sent.body.clone(),
            key: 0,
            post: sent.post,
        };
        let payload = ClientOp::Publish(publish).encode();
        self.now.out_bytes += (FRAME_HEADER_BYTES + payload.len()) as u64;
        swarm.send_payload(link, sent.request, &payload)?;
        self.lines[link].unanswered.push_back(sent);
        Ok(())
    }

    /// Somebody says where their cursor is.
    fn share_awareness(&mut self, swarm: &mut Swarm) {
        let at = self.rng.random_range(0..self.editors.len());
        let editor = &mut self.editors[at];
        editor.said += 1;
        let place = format!(r#"{{"tname":"{}","item":null,"assoc":0}}"#, typing::ROOT);
        let state = format!(
            r##"{{"user":{{"name":"editor {at}","color":"#30bced"}},"cursor":{{"anchor":{place},"head":{place}}}}}"##
        );
        let entry = AwarenessEntry { client: CLIENTS + at as u64, clock: editor.said, state: Some(state.into()) };
        let update = AwarenessUpdate { entries: vec![entry] }.encode();
        let subscription = Subscription(editor.number);
        let op = ClientOp::Document(DocumentOp::ShareAwareness { subscription, update });
        swarm.send_datagram(editor.link, 0, &op);
    }

    fn see(&mut self, swarm: &mut Swarm, link: LinkId, seen: Seen) -> Result<(), LoadError> {
        let (subject, op, bytes, at_ns) = match seen {
            Seen::Frame { subject, op, bytes, at_ns, .. } => (subject, op, bytes as u64, at_ns),
            Seen::Lost(reason) => return Err(swarm.lost(reason)),
            Seen::Ready | Seen::Bytes { .. } => return Ok(()),
        };
        self.now.in_bytes += bytes;
        match op {
            ServerOp::Delivery(delivery) if delivery.kind == DeliveryKind::Update => {
                let at = self.editor_of(link, subject)?;
                self.now.frames += 1;
                self.now.merged += u64::from(delivery.context.target != Position(0));
                self.take_update(at, &delivery.body, at_ns)?;
                self.credit(swarm, at, delivery.position, false)
            }
            ServerOp::Delivery(_) => Ok(()),
            ServerOp::Document(news) => self.see_news(swarm, link, subject, news, bytes, at_ns),
            ServerOp::Published { position, .. } => self.published(swarm, link, subject, position, at_ns),
            ServerOp::Reject(reject) => self.refused(swarm, link, subject, reject),
            ServerOp::Done => Ok(()),
            ServerOp::Ended(reject) => Err(LoadError::Refused { what: "a document, later", reject }),
            ServerOp::ServerRestarting { .. } => Err(swarm.lost("the node is restarting".into())),
            other => Err(LoadError::Protocol(format!("nobody asked for {other:?}"))),
        }
    }

    fn see_news(
        &mut self,
        swarm: &mut Swarm,
        link: LinkId,
        subject: u32,
        news: DocumentNews,
        bytes: u64,
        at_ns: u64,
    ) -> Result<(), LoadError> {
        if matches!(news, DocumentNews::Awareness { .. }) {
            self.now.awareness_bytes += bytes;
            return Ok(());
        }
        let at = self.editor_of(link, subject)?;
        match news {
            DocumentNews::Opened { bytes, revision, .. } => {
                if bytes == 0 {
                    self.begin(at, &[], revision, at_ns)?;
                }
                Ok(())
            }
            DocumentNews::State { revision, offset, total, bytes } => {
                let editor = &mut self.editors[at];
                if offset == 0 {
                    editor.state.clear();
                }
                if offset != editor.state.len() as u64 {
                    return Err(LoadError::Protocol(format!("a state goes on at {offset} of {total}")));
                }
                editor.state.extend_from_slice(&bytes);
                if (editor.state.len() as u64) < total {
                    return Ok(());
                }
                let state = std::mem::take(&mut editor.state);
                self.begin(at, &state, revision, at_ns)?;
                self.credit(swarm, at, revision, true)
            }
            DocumentNews::Operations(news) => {
                self.now.frames += 1;
                self.now.merged += u64::from(news.from != news.to);
                self.take_operations(at, &news, at_ns)?;
                self.send_operations(swarm, at)?;
                self.credit(swarm, at, news.to, false)
            }
            DocumentNews::Awareness { .. } => Ok(()),
        }
    }

    /// Reports what a reader consumed, now and then or at once.
    fn credit(&mut self, swarm: &mut Swarm, at: usize, position: Position, now: bool) -> Result<(), LoadError> {
        let editor = &mut self.editors[at];
        editor.frames += 1;
        if !now && editor.frames < CREDIT_EVERY {
            return Ok(());
        }
        editor.frames = 0;
        let payload = ClientOp::Consumed { subscription: Subscription(editor.number), position }.encode();
        self.now.out_bytes += (FRAME_HEADER_BYTES + payload.len()) as u64;
        swarm.send_payload(editor.link, 0, &payload)
    }

    fn published(
        &mut self,
        swarm: &mut Swarm,
        link: LinkId,
        request: u32,
        position: Position,
        at_ns: u64,
    ) -> Result<(), LoadError> {
        let sent = self.lines[link].answered(request)?;
        self.acknowledged += 1;
        if self.measured.contains(&sent.intended_ns) {
            self.acks.record(sent.intended_ns, at_ns);
        }
        // A page is there: whoever comes now gets it.
        self.editors[sent.at].revision = position;
        while self.lines[link].unanswered.len() < IN_FLIGHT_MAX - 8
            && let Some((at, intended_ns)) = self.lines[link].held.pop_front()
        {
            self.key_of(swarm, at, intended_ns)?;
        }
        Ok(())
    }

    /// What was refused is sent again: without it, what follows of the same editor could not be applied.
    fn refused(&mut self, swarm: &mut Swarm, link: LinkId, request: u32, reject: Reject) -> Result<(), LoadError> {
        if request < REQUESTS_FROM {
            return Err(LoadError::Refused { what: "to open a document", reject });
        }
        let count = self.refused.entry(reject.code.as_str()).or_default();
        *count += 1;
        if *count > REFUSED_MAX || self.args.form == EditForm::Operations {
            return Err(LoadError::Refused { what: "an edit", reject });
        }
        let mut sent = self.lines[link].answered(request)?;
        sent.request = self.lines[link].next_request();
        self.send(swarm, sent, true)
    }
}

fn broken(reject: &Reject) -> LoadError {
    LoadError::Protocol(format!("what it sent cannot be applied: {reject}"))
}

/// The next time of a schedule, if it has come.
fn due(of: &mut (Schedule, Option<u64>), now_ns: u64, rng: &mut StdRng) -> Option<u64> {
    let at = of.1.filter(|&at| at <= now_ns)?;
    of.1 = of.0.next(rng);
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_that_cannot_work_are_refused() {
        let check_args = |change: &dyn Fn(&mut DocsArgs), good: bool| {
            let mut args = DocsArgs {
                documents: 3,
                editors: 5,
                rate: 10.0,
                form: EditForm::Updates,
                per_connection: 1,
                page: 3_000,
                full: 2,
                awareness: 0.0,
                trace: None,
                seed: 1,
                duration: Duration::from_secs(1),
                warmup: Duration::ZERO,
                linger: Duration::ZERO,
            };
            change(&mut args);
            assert_eq!(check(&args).is_ok(), good, "{args:?}");
        };
        check_args(&|_| {}, true);
        check_args(&|args| args.per_connection = DOCUMENTS_PER_SESSION_MAX, true);
        check_args(&|args| args.per_connection = DOCUMENTS_PER_SESSION_MAX + 1, false);
        check_args(&|args| args.per_connection = 0, false);
        check_args(&|args| args.documents = 0, false);
        check_args(&|args| args.editors = 1, false);
        check_args(&|args| args.page = 0, false);
        check_args(&|args| args.page = DOCUMENT_UPDATE_BYTES_MAX, false);
    }
}
