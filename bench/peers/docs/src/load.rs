//! One run: editors connect, type by schedule, and are asked in the end whether they read the same.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mio::{Events, Poll};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use yrs::updates::decoder::Decode;
use yrs::updates::encoder::Encode;
use yrs::{ReadTxn, StateVector, Transact};

use crate::book::Book;
use crate::process::Process;
use crate::protocol::{Heard, Protocol};
use crate::scan::scan;
use crate::socket::{Alarm, Socket};
use crate::typing::{Hand, Typist};

/// Editors that connect at a time.
const AT_ONCE: usize = 32;
/// How long connecting and the first exchange may take, beside 10 ms for each editor.
const SETUP: Duration = Duration::from_secs(20);
/// Messages of one editor that are read before others have their turn, and what is due is typed.
const READ_MAX: usize = 64;
/// Client ids begin here: five bytes each, as most of the random ones that editors draw.
const CLIENTS: u64 = 1 << 30;
/// Documents of which a new reader fetches all in the end.
const WITNESSES: usize = 8;

/// Longest latency that is told apart from longer ones, ns: 10 minutes.
const LATENCY_NS_MAX: u64 = 600_000_000_000;

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("the bounds are constants")
}

/// Sums over all documents.
struct Totals {
    latencies: Histogram<u64>,
    /// Keystrokes that are measured begin here; those before are warming up.
    from_ns: u64,
    delivered: u64,
    frames: u64,
    /// Times that a reader was told of an author's edits without having had those before: must stay 0.
    gaps: u64,
}

impl Totals {
    fn record(&mut self, intended_ns: u64, now_ns: u64) {
        if intended_ns >= self.from_ns {
            self.latencies.saturating_record(now_ns.saturating_sub(intended_ns).max(1));
        }
    }
}

/// What is to be run.
#[derive(Debug, Clone)]
pub struct Plan {
    pub server: SocketAddr,
    /// With `{doc}` for the document's name.
    pub url: String,
    pub protocol: Protocol,
    pub token: String,
    pub documents: usize,
    pub editors: usize,
    /// Editors of each document that apply everything; the others read whose edits they got.
    pub full: usize,
    pub page: usize,
    /// Keystrokes a second in all documents.
    pub rate: f64,
    /// Awareness updates a second of each editor.
    pub awareness: f64,
    pub warmup: Duration,
    pub duration: Duration,
    pub grace: Duration,
    pub seed: u64,
    pub server_pid: Option<u32>,
}

/// What came of it.
pub struct Outcome {
    pub latencies: Histogram<u64>,
    pub acks: Histogram<u64>,
    pub late: Histogram<u64>,
    pub seconds: f64,
    pub ops: u64,
    pub deliveries: u64,
    pub undelivered: u64,
    pub gaps: u64,
    pub frames: u64,
    pub sent_bytes: u64,
    pub received_bytes: u64,
    pub server_cpu_s: Option<f64>,
    pub server_rss: Option<u64>,
    pub own_cpu_s: f64,
    pub converged: bool,
    pub disagreement: String,
}

struct Editor {
    socket: Socket,
    typist: Typist,
    document: usize,
    seat: usize,
    full: bool,
    ready: bool,
    /// Intended times of what the server has not said it took.
    untaken: VecDeque<u64>,
    said: u64,
}

struct Sample {
    at_ns: u64,
    ops: u64,
    delivered: u64,
    frames: u64,
    sent: u64,
    received: u64,
    own_cpu_s: f64,
    server_cpu_s: Option<f64>,
}

pub struct Load {
    plan: Plan,
    start: Instant,
    poll: Poll,
    alarm: Alarm,
    editors: Vec<Editor>,
    books: Vec<Book>,
    names: Vec<String>,
    totals: Totals,
    acks: Histogram<u64>,
    late: Histogram<u64>,
    rng: StdRng,
    /// The next intended keystroke and the next awareness, ns; `None` while nobody types.
    next_key: Option<u64>,
    next_aware: Option<u64>,
    typed: u64,
    page_clock: u32,
    ready: usize,
    /// Editors that may have more to read than they were given time for.
    unread: VecDeque<usize>,
}

pub fn run(plan: &Plan) -> Result<Outcome, String> {
    let mut load = Load::new(plan).map_err(|error| format!("setting up: {error}"))?;
    load.connect()?;
    load.measure()
}

fn nanos(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}

impl Load {
    fn new(plan: &Plan) -> io::Result<Self> {
        let poll = Poll::new()?;
        let alarm = Alarm::new(poll.registry(), usize::MAX - 1)?;
        let rng = StdRng::seed_from_u64(plan.seed);
        // Documents of their own for every run, whatever the seed.
        let run: u32 = rand::rng().random();
        let totals = Totals { latencies: histogram(), from_ns: u64::MAX, delivered: 0, frames: 0, gaps: 0 };
        Ok(Self {
            start: Instant::now(),
            poll,
            alarm,
            editors: Vec::new(),
            books: (0..plan.documents).map(|_| Book::new(plan.editors)).collect(),
            names: (0..plan.documents).map(|at| format!("bench-{run:08x}-{at}")).collect(),
            totals,
            acks: histogram(),
            late: histogram(),
            rng,
            next_key: None,
            next_aware: None,
            typed: 0,
            page_clock: 0,
            ready: 0,
            unread: VecDeque::new(),
            plan: plan.clone(),
        })
    }

    fn now_ns(&self) -> u64 {
        nanos(self.start.elapsed())
    }

    /// Connects everybody: first one editor of each document, who writes its page, then the others, who wait for it.
    fn connect(&mut self) -> Result<(), String> {
        let limit = SETUP + Duration::from_millis(10) * (self.plan.documents * self.plan.editors) as u32;
        for seat in 0..self.plan.editors {
            for document in 0..self.plan.documents {
                self.open(document, seat)?;
                if (self.editors.len() - self.ready) >= AT_ONCE {
                    let enough = self.editors.len() - AT_ONCE / 2;
                    self.pump(limit, |load| load.ready >= enough)?;
                }
            }
            let all = self.editors.len();
            if !self.pump(limit, |load| load.ready == all)? {
                return Err(format!("{} of {all} editors were ready within {limit:?}", self.ready));
            }
            if seat == 0 {
                self.write_pages()?;
            }
        }
        Ok(())
    }

    fn open(&mut self, document: usize, seat: usize) -> Result<(), String> {
        let (plan, name) = (&self.plan, &self.names[document]);
        let mut socket = Socket::connect(plan.server, &plan.url.replace("{doc}", name))?;
        let client = CLIENTS + (document * plan.editors + seat) as u64;
        let typist = Typist::new(client, Hand::new(plan.seed ^ client.wrapping_mul(0x9e37_79b9_7f4a_7c15), None));
        let first = plan.protocol.token(name, &plan.token);
        socket.send(first.unwrap_or_else(|| plan.protocol.step1(name, &state_vector(&typist))))?;
        socket.register(self.poll.registry(), self.editors.len()).map_err(|error| error.to_string())?;
        // What came right behind the handshake was read with it, and no event will announce it.
        self.unread.push_back(self.editors.len());
        let full = seat < plan.full;
        self.editors.push(Editor {
            socket,
            typist,
            document,
            seat,
            full,
            ready: false,
            untaken: VecDeque::new(),
            said: 0,
        });
        Ok(())
    }

    fn write_pages(&mut self) -> Result<(), String> {
        for document in 0..self.plan.documents {
            let editor = &mut self.editors[document];
            let page = editor.typist.page(self.plan.page);
            self.page_clock = self.plan.page as u32;
            editor.socket.send(self.plan.protocol.update(&self.names[document], &page))?;
            editor.untaken.push_back(u64::MAX);
        }
        Ok(())
    }

    fn measure(mut self) -> Result<Outcome, String> {
        let server = self.plan.server_pid.map(Process::new);
        let own = Process::own();
        let begin = self.now_ns() + 5_000_000;
        let from = begin + nanos(self.plan.warmup);
        let end = from + nanos(self.plan.duration);
        self.totals.from_ns = from;
        self.next_key = Some(begin);
        let aware = self.plan.awareness * self.editors.len() as f64;
        self.next_aware = (aware > 0.0).then_some(begin);
        self.pump_to(from)?;
        let before = self.sample(&own, server.as_ref());
        self.pump_to(end)?;
        let after = self.sample(&own, server.as_ref());
        let (ops, late) = (after.ops - before.ops, self.late.clone());
        (self.next_key, self.next_aware) = (None, None);
        let grace = self.plan.grace;
        self.pump(grace, |load| load.books.iter().all(|book| book.outstanding() == 0))?;
        let undelivered: u64 = self.books.iter().map(Book::outstanding).sum();
        let now_ns = self.now_ns();
        for book in &self.books {
            book.missing(|intended_ns| self.totals.record(intended_ns, now_ns));
        }
        let disagreement = self.disagreement(undelivered);
        Ok(Outcome {
            late,
            seconds: (after.at_ns - before.at_ns) as f64 / 1e9,
            ops,
            deliveries: after.delivered - before.delivered,
            undelivered,
            gaps: self.totals.gaps,
            frames: after.frames - before.frames,
            sent_bytes: after.sent - before.sent,
            received_bytes: after.received - before.received,
            server_cpu_s: after.server_cpu_s.zip(before.server_cpu_s).map(|(after, before)| after - before),
            server_rss: server.and_then(|server| server.resident_bytes()),
            own_cpu_s: after.own_cpu_s - before.own_cpu_s,
            converged: disagreement.is_empty(),
            disagreement,
            latencies: self.totals.latencies,
            acks: self.acks,
        })
    }

    fn sample(&self, own: &Process, server: Option<&Process>) -> Sample {
        Sample {
            at_ns: self.now_ns(),
            ops: self.typed,
            delivered: self.totals.delivered,
            frames: self.totals.frames,
            sent: self.editors.iter().map(|editor| editor.socket.sent).sum(),
            received: self.editors.iter().map(|editor| editor.socket.received).sum(),
            own_cpu_s: own.cpu_seconds().unwrap_or(0.0),
            server_cpu_s: server.and_then(Process::cpu_seconds),
        }
    }

    fn pump_to(&mut self, end_ns: u64) -> Result<(), String> {
        let limit = Duration::from_nanos(end_ns.saturating_sub(self.now_ns()));
        self.pump(limit, |_| false).map(drop)
    }

    /// Serves everybody until it is done or the time is over; whether it was done.
    fn pump(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> Result<bool, String> {
        let end = Instant::now() + limit;
        let end_ns = nanos(end.saturating_duration_since(self.start));
        let mut events = Events::with_capacity(1_024);
        loop {
            if done(self) {
                return Ok(true);
            }
            self.type_due(end_ns)?;
            let now_ns = self.now_ns();
            if now_ns >= end_ns {
                return Ok(false);
            }
            let next = [self.next_key, self.next_aware].into_iter().flatten().min().unwrap_or(u64::MAX).min(end_ns);
            let wait = if self.unread.is_empty() && next > now_ns { None } else { Some(Duration::ZERO) };
            if wait.is_none() {
                let at = self.start + Duration::from_nanos(next);
                self.alarm.set(at).map_err(|error| error.to_string())?;
            }
            match self.poll.poll(&mut events, wait) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error.to_string()),
                _ => {}
            }
            for event in &events {
                let at = event.token().0;
                if at >= self.editors.len() {
                    continue;
                }
                if event.is_writable() {
                    self.editors[at].socket.flush()?;
                }
                if event.is_readable() && !self.unread.contains(&at) {
                    self.unread.push_back(at);
                }
            }
            for _ in 0..self.unread.len() {
                let Some(at) = self.unread.pop_front() else { break };
                if self.read(at)? {
                    self.unread.push_back(at);
                }
                self.type_due(end_ns)?;
            }
        }
    }

    /// Types what is due, whether or not the server keeps up.
    fn type_due(&mut self, end_ns: u64) -> Result<(), String> {
        while let Some(intended_ns) = self.next_key.filter(|&at| at <= self.now_ns().min(end_ns)) {
            self.key(intended_ns)?;
            self.next_key = Some(intended_ns + self.gap_ns(self.plan.rate));
        }
        while let Some(at) = self.next_aware.filter(|&at| at <= self.now_ns().min(end_ns)) {
            let editor = &mut self.editors[self.rng.random_range(0..self.books.len() * self.plan.editors)];
            editor.said += 1;
            let name = &self.names[editor.document];
            let client = CLIENTS + (editor.document * self.plan.editors + editor.seat) as u64;
            editor.socket.send(self.plan.protocol.awareness(name, client, editor.said))?;
            let rate = self.plan.awareness * self.editors.len() as f64;
            self.next_aware = Some(at + self.gap_ns(rate));
        }
        Ok(())
    }

    /// Independent arrivals: exponential distances.
    fn gap_ns(&mut self, rate: f64) -> u64 {
        (-(1.0 - self.rng.random::<f64>()).ln() / rate * 1e9) as u64
    }

    fn key(&mut self, intended_ns: u64) -> Result<(), String> {
        let at = self.rng.random_range(0..self.editors.len());
        let editor = &mut self.editors[at];
        let update = editor.typist.key();
        let mut clock = 0;
        scan(&update, |_, _, end| clock = end);
        self.books[editor.document].typed(editor.seat, clock, intended_ns);
        let message = self.plan.protocol.update(&self.names[editor.document], &update);
        if self.plan.protocol == Protocol::Hocuspocus {
            editor.untaken.push_back(intended_ns);
        }
        editor.socket.send(message)?;
        self.typed += 1;
        if intended_ns >= self.totals.from_ns {
            let now_ns = nanos(self.start.elapsed());
            self.late.saturating_record(now_ns.saturating_sub(intended_ns).max(1));
        }
        Ok(())
    }

    /// Reads some messages of an editor; whether there may be more.
    fn read(&mut self, at: usize) -> Result<bool, String> {
        for _ in 0..READ_MAX {
            let Some(frame) = self.editors[at].socket.read()? else { return Ok(false) };
            let mut rest = &frame[..];
            while !rest.is_empty() {
                let heard = self.plan.protocol.hear(&mut rest);
                self.hear(at, heard.ok_or("the server sent what is no message")?)?;
            }
        }
        Ok(true)
    }

    fn hear(&mut self, at: usize, heard: Heard<'_>) -> Result<(), String> {
        let (protocol, editor) = (self.plan.protocol, &mut self.editors[at]);
        let name = &self.names[editor.document];
        match heard {
            Heard::Update(update) => self.take(at, update, false),
            Heard::Step2(update) => self.take(at, update, true),
            Heard::Step1(vector) => {
                let theirs = StateVector::decode_v1(vector).unwrap_or_default();
                let lacking = editor.typist.doc.transact().encode_diff_v1(&theirs);
                editor.socket.send(protocol.step2(name, &lacking))?;
                if protocol == Protocol::Hocuspocus {
                    editor.untaken.push_back(u64::MAX);
                }
                Ok(())
            }
            Heard::Authenticated => editor.socket.send(protocol.step1(name, &state_vector(&editor.typist))),
            Heard::Taken => {
                let intended_ns = editor.untaken.pop_front().unwrap_or(u64::MAX);
                if intended_ns >= self.totals.from_ns && intended_ns != u64::MAX {
                    let now_ns = nanos(self.start.elapsed());
                    self.acks.saturating_record(now_ns.saturating_sub(intended_ns).max(1));
                }
                Ok(())
            }
            Heard::Refused(why) => Err(format!("the server refused: {why}")),
            Heard::Other => Ok(()),
        }
    }

    fn take(&mut self, at: usize, update: &[u8], first: bool) -> Result<(), String> {
        let now_ns = nanos(self.start.elapsed());
        let (editors, page_clock, seat_clients) = (self.plan.editors, self.page_clock, CLIENTS);
        let editor = &mut self.editors[at];
        let (book, totals) = (&mut self.books[editor.document], &mut self.totals);
        totals.frames += 1;
        let first_client = seat_clients + (editor.document * editors) as u64;
        let (reader, mut page) = (editor.seat, editor.seat == 0);
        let valid = scan(update, |client, from, end| {
            let Some(author) = client.checked_sub(first_client).filter(|&at| at < editors as u64) else { return };
            page |= author == 0 && end >= page_clock;
            let in_order = book.got(reader, author as usize, from, end, |intended_ns| {
                totals.delivered += 1;
                totals.record(intended_ns, now_ns);
            });
            totals.gaps += u64::from(!in_order);
        });
        if !valid {
            return Err("the server sent what is no update".into());
        }
        if (editor.full || !editor.ready) && !editor.typist.apply(update) {
            return Err("the server sent an update that cannot be applied".into());
        }
        if !editor.ready && page && (first || editor.seat != 0) {
            editor.ready = true;
            self.ready += 1;
        }
        Ok(())
    }

    /// Empty if everybody reads the same: all know all edits, those who apply everything have the same text, and so does
    /// somebody who comes now.
    fn disagreement(&mut self, undelivered: u64) -> String {
        if let Some(document) = self.books.iter().position(|book| !book.agree()) {
            return format!("{undelivered} deliveries are missing, the first in document {document}");
        }
        for document in 0..self.plan.documents {
            let mut full = self.editors.iter().filter(|editor| editor.document == document && editor.full);
            let Some(text) = full.next().map(|editor| editor.typist.read()) else { continue };
            if full.any(|editor| editor.typist.read() != text) {
                return format!("two editors of document {document} read different texts");
            }
            if document < WITNESSES
                && let Err(why) = self.witness(document, &text)
            {
                return format!("document {document}: {why}");
            }
        }
        String::new()
    }

    /// Fetches a document anew and compares.
    fn witness(&self, document: usize, text: &str) -> Result<(), String> {
        let (plan, name) = (&self.plan, &self.names[document]);
        let mut socket = Socket::connect(plan.server, &plan.url.replace("{doc}", name))?;
        let mut typist = Typist::new(1, Hand::new(0, None));
        let token = plan.protocol.token(name, &plan.token);
        socket.send(token.unwrap_or_else(|| plan.protocol.step1(name, &state_vector(&typist))))?;
        let end = Instant::now() + SETUP;
        while Instant::now() < end {
            let Some(frame) = socket.read()? else {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            let mut rest = &frame[..];
            while !rest.is_empty() {
                match plan.protocol.hear(&mut rest) {
                    Some(Heard::Authenticated) => {
                        socket.send(plan.protocol.step1(name, &state_vector(&typist)))?;
                    }
                    Some(Heard::Step2(update) | Heard::Update(update)) => {
                        typist.apply(update);
                    }
                    _ => {}
                }
            }
            if typist.read() == text {
                return Ok(());
            }
        }
        Err("who comes now reads another text".into())
    }
}

fn state_vector(typist: &Typist) -> Vec<u8> {
    typist.doc.transact().state_vector().encode_v1()
}
