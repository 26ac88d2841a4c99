//! The rings between a thread of the stage and its core.
//!
//! A [question](WebRequest) carries a number and is answered once, under that number. As many may be on the way as there
//! are slots, those included that nobody waits for any more, so that neither ring is ever full: when the limit is
//! reached the stage refuses, and the core is not pressed. What web [sessions](crate::SessionInput) send and receive goes
//! over a second pair of rings beside them.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use thalweg_protocol::limits::WEB_QUESTIONS_MAX;
use thalweg_protocol::reject::Reject;
use thalweg_ring::{Bell, Consumer, Producer, ring};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use crate::error::Refusal;
use crate::exposition::Exposition;
use crate::limits::{RING_RETRY_MS, SESSION_RING_SLOTS};
use crate::port::{SessionInput, SessionOutput, Sessions};

/// A thread that hears nothing looks this often whether its core is still there.
const HEARING_LOOK: Duration = Duration::from_millis(500);

/// What a thread of the stage asks its core.
#[derive(Debug)]
pub struct WebRequest {
    /// Under which the answer is given.
    pub number: u64,
    /// What is wanted.
    pub question: Question,
}

/// What can be asked of a core.
#[derive(Debug)]
pub enum Question {
    /// Everything the node measured and counted. Answered by [`Said::Measured`].
    Measure {
        /// Who asks: a token that must allow admin of `metrics`. None if the asker sits on this machine.
        token: Option<String>,
    },
}

/// What a core answers.
pub struct WebAnswer {
    /// The number of the request.
    pub number: u64,
    /// What it said, or why it does not say it.
    pub said: Result<Said, Reject>,
}

/// What a core can say.
pub enum Said {
    /// The answer to [`Question::Measure`], as it was collected; the stage's thread writes it out, not the core.
    Measured(Box<dyn Exposed>),
}

/// Something that can be written as metrics. Called on a thread of the stage, where files may be read.
pub trait Exposed: Send {
    /// Adds families to an exposition. Names are unique over all that are added.
    fn expose(self: Box<Self>, into: &mut Exposition);
}

/// A thread's ends of the rings; see [`link()`].
pub struct WebLink {
    requests: Producer<WebRequest>,
    answers: Consumer<WebAnswer>,
    inputs: Producer<SessionInput>,
    outputs: Consumer<SessionOutput>,
    core: Arc<Bell>,
    own: Arc<Bell>,
}

/// The core's ends of the rings; see [`link()`].
pub struct CoreEnd {
    requests: Consumer<WebRequest>,
    answers: Producer<WebAnswer>,
    inputs: Consumer<SessionInput>,
    outputs: Producer<SessionOutput>,
    /// What found no room on the ring, in order. Bounded as `port` says: each reader by its credit.
    backlog: VecDeque<SessionOutput>,
    web: Arc<Bell>,
}

/// Joins a thread of the stage to the core with this bell.
///
/// # Errors
/// If the system has no descriptor left for the thread's bell.
pub fn link(core: &Arc<Bell>) -> io::Result<(WebLink, CoreEnd)> {
    let own = Bell::new()?;
    let (requests, asked) = ring(WEB_QUESTIONS_MAX);
    let (answers, told) = ring(WEB_QUESTIONS_MAX);
    let web = Arc::clone(&own);
    let (inputs, taken) = ring(SESSION_RING_SLOTS);
    let (outputs, heard) = ring(SESSION_RING_SLOTS);
    let link = WebLink { requests, answers: told, inputs, outputs: heard, core: Arc::clone(core), own };
    Ok((link, CoreEnd { requests: asked, answers, inputs: taken, outputs, backlog: VecDeque::new(), web }))
}

impl CoreEnd {
    /// The next request.
    pub fn receive(&mut self) -> Option<WebRequest> {
        self.requests.pop()
    }

    /// Answers a request, once.
    pub fn answer(&mut self, answer: WebAnswer) {
        // There are as many slots for answers as requests may be on the way, so a refusal means that the stage is gone.
        if self.answers.push(answer).is_ok() {
            self.web.ring();
        }
    }

    /// What happened to a session.
    pub fn session_input(&mut self) -> Option<SessionInput> {
        self.inputs.pop()
    }

    /// Tells a session something; later, if the ring is full.
    pub fn tell(&mut self, output: SessionOutput) {
        self.backlog.push_back(output);
        self.flush();
    }

    /// Sends what the ring had no room for.
    pub fn flush(&mut self) {
        if self.backlog.is_empty() {
            return;
        }
        while let Some(output) = self.backlog.pop_front() {
            if let Err(output) = self.outputs.push(output) {
                if self.outputs.is_abandoned() {
                    self.backlog.clear();
                } else {
                    self.backlog.push_front(output);
                }
                break;
            }
        }
        self.web.ring();
    }

    /// What waits for room on the ring to the stage.
    pub fn backlog(&self) -> usize {
        self.backlog.len()
    }

    /// Whether there is nothing to take, and nothing left to send.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.inputs.is_empty() && self.backlog.is_empty()
    }
}

impl Drop for CoreEnd {
    fn drop(&mut self) {
        // Whoever waits for this core is told by the rings, once these are looked at; they are dropped after this, so
        // that the thread may look too early and looks again after a while.
        self.web.ring();
    }
}

/// Where a thread's handlers ask the core.
pub(crate) struct Desk {
    asking: Mutex<Asking>,
    sessions: Mutex<Sessions>,
    core: Arc<Bell>,
}

struct Asking {
    requests: Producer<WebRequest>,
    /// Requests that are not answered. Those that nobody waits for any more stay until they are.
    waiting: HashMap<u64, oneshot::Sender<Result<Said, Reject>>>,
    last: u64,
}

/// Where a thread hears what the core says.
pub(crate) struct Hearing {
    answers: Consumer<WebAnswer>,
    outputs: Consumer<SessionOutput>,
    bell: AsyncFd<BellFd>,
}

struct BellFd(Arc<Bell>);

impl AsRawFd for BellFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.fd()
    }
}

impl WebLink {
    /// Makes the ends usable. Must be called within the thread's runtime.
    pub(crate) fn open(self) -> io::Result<(Desk, Hearing)> {
        // SAFETY: a bell has the same open descriptor from its making until it is dropped, and the `AsyncFd` keeps it.
        let bell = unsafe { AsyncFd::register_with_interest(BellFd(self.own), Interest::READABLE) };
        let bell = bell.map_err(io::Error::from)?;
        let asking = Asking { requests: self.requests, waiting: HashMap::new(), last: 0 };
        let (asking, sessions) = (Mutex::new(asking), Mutex::new(Sessions::new(self.inputs)));
        let hearing = Hearing { answers: self.answers, outputs: self.outputs, bell };
        Ok((Desk { asking, sessions, core: self.core }, hearing))
    }
}

impl Desk {
    /// Asks the core, and waits for its answer.
    ///
    /// # Errors
    /// What the core says, or 503: too many questions wait, the core is gone, or it does not answer in time.
    pub(crate) async fn ask(&self, question: Question, patience: Duration) -> Result<Said, Refusal> {
        let answer = self.begin(question)?;
        match tokio::time::timeout(patience, answer).await {
            Ok(Ok(said)) => said.map_err(Refusal::from),
            Ok(Err(_)) => Err(gone()),
            Err(_) => {
                let text = format!("the node's core did not answer within {} ms; try again", patience.as_millis());
                Err(unavailable("core_silent", text))
            }
        }
    }

    fn begin(&self, question: Question) -> Result<oneshot::Receiver<Result<Said, Reject>>, Refusal> {
        let (sender, receiver) = oneshot::channel();
        let mut asking = self.lock();
        if asking.requests.is_abandoned() {
            return Err(gone());
        }
        if asking.waiting.len() >= WEB_QUESTIONS_MAX {
            let text = format!("{WEB_QUESTIONS_MAX} questions wait for the node's core; try again");
            return Err(unavailable("busy", text));
        }
        asking.last += 1;
        let number = asking.last;
        if asking.requests.push(WebRequest { number, question }).is_err() {
            return Err(unavailable("busy", "the ring to the node's core is full; try again"));
        }
        asking.waiting.insert(number, sender);
        drop(asking);
        self.core.ring();
        Ok(receiver)
    }

    fn answered(&self, answer: WebAnswer) {
        if let Some(asker) = self.lock().waiting.remove(&answer.number) {
            // Nobody is left who wants to know, if the asker lost patience or went away.
            drop(asker.send(answer.said));
        }
    }

    /// How many questions the core has not answered.
    pub(crate) fn unanswered(&self) -> usize {
        self.lock().waiting.len()
    }

    /// The sessions of this thread. Never held across an await.
    pub(crate) fn sessions(&self) -> MutexGuard<'_, Sessions> {
        // Nothing panics while it is held; if it did, what it guards would still be whole.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the core.
    pub(crate) fn ring(&self) {
        self.core.ring();
    }

    fn lock(&self) -> MutexGuard<'_, Asking> {
        // Nothing panics while it is held; if it did, what it guards would still be whole.
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn gone() -> Refusal {
    unavailable("core_gone", "the node's core has ended; the node is going away")
}

pub(crate) fn unavailable(code: &'static str, message: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, code, message).retry_after_ms(1_000)
}

impl Hearing {
    /// Hands answers and news to those who wait for them; ends only if the bell cannot be waited for.
    pub(crate) async fn run(mut self, desk: Arc<Desk>) -> io::Result<()> {
        loop {
            let settled = self.hear(&desk);
            let bell = Arc::clone(&self.bell.get_ref().0);
            bell.prepare();
            if self.answers.is_empty() && self.outputs.is_empty() {
                // A core says nothing when it has made room, or has gone: those are looked for.
                let patience = if settled { HEARING_LOOK } else { Duration::from_millis(RING_RETRY_MS) };
                if let Ok(ready) = tokio::time::timeout(patience, self.bell.readable()).await {
                    let mut ready = ready?;
                    // Clears the bell. Nobody rings it again before the next `prepare`, so no ring is lost between the two.
                    bell.wait(Some(Duration::ZERO));
                    ready.clear_ready();
                }
            }
            bell.awake();
        }
    }

    /// Takes what there is; says whether all that the stage had to say is on the ring.
    fn hear(&mut self, desk: &Desk) -> bool {
        while let Some(answer) = self.answers.pop() {
            desk.answered(answer);
        }
        let mut sessions = desk.sessions();
        // One lock for all of them: nobody else wants it, since the thread is busy with this.
        while let Some(output) = self.outputs.pop() {
            sessions.deliver(output);
        }
        if self.outputs.is_abandoned() && sessions.count() > 0 && self.outputs.is_empty() {
            sessions.abandon();
        }
        sessions.flush()
    }
}

#[cfg(test)]
mod tests {
    use thalweg_protocol::reject::RejectCode;

    use super::*;

    struct Nothing;

    impl Exposed for Nothing {
        fn expose(self: Box<Self>, _: &mut Exposition) {}
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
    }

    fn question() -> Question {
        Question::Measure { token: None }
    }

    #[test]
    fn answers_find_who_asked_whatever_their_order() {
        let bell = Bell::new().expect("a bell");
        let (web, mut core) = link(&bell).expect("linked");
        let thread = std::thread::spawn(move || {
            let mut held = Vec::new();
            while held.len() < 3 {
                held.extend(std::iter::from_fn(|| core.receive()));
                std::thread::yield_now();
            }
            for request in held.into_iter().rev() {
                let said = match request.number {
                    2 => Err(Reject::new(RejectCode::Forbidden, "no")),
                    _ => Ok(Said::Measured(Box::new(Nothing))),
                };
                core.answer(WebAnswer { number: request.number, said });
            }
            core
        });
        runtime().block_on(async {
            let (desk, hearing) = web.open().expect("opened");
            let desk = Arc::new(desk);
            let hears = tokio::spawn(hearing.run(Arc::clone(&desk)));
            let patience = Duration::from_secs(60);
            let ask = || desk.ask(question(), patience);
            let (one, two, three) = tokio::join!(ask(), ask(), ask());
            assert!(one.is_ok() && three.is_ok());
            assert_eq!(two.err().map(|refusal| refusal.code), Some("forbidden"));
            assert_eq!(desk.unanswered(), 0);
            hears.abort();
        });
        drop(thread.join().expect("no panic"));
    }

    #[test]
    fn a_core_that_is_slow_full_or_gone_is_told_apart() {
        let bell = Bell::new().expect("a bell");
        let (web, core) = link(&bell).expect("linked");
        runtime().block_on(async {
            let (desk, _hearing) = web.open().expect("opened");
            let ask = || desk.ask(question(), Duration::ZERO);
            for _ in 0..WEB_QUESTIONS_MAX {
                assert_eq!(ask().await.err().map(|refusal| refusal.code), Some("core_silent"));
            }
            assert_eq!(ask().await.err().map(|refusal| refusal.code), Some("busy"));
            drop(core);
            let refusal = ask().await.err().expect("refused");
            assert_eq!((refusal.code, refusal.status.as_u16()), ("core_gone", 503));
        });
    }
}
