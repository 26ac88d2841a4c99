//! One generation at a remote, from its submit to its end.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use thalweg_protocol::generation::{FinishReason, Usage};
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_ring::{Bell, Producer};
use thalweg_worker::stage::{Event, Submit, Times};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::answer::{Answer, Piece};
use crate::config::RemoteModel;
use crate::connect::{Dialer, Reply};
use crate::fault::Fault;
use crate::limits::{REMOTE_RETRY_MS, REMOTE_RUNNING_MAX};
use crate::lines::{Lines, TooLong};
use crate::request;

/// A core whose ring is full is looked at again after so long; it does not say when it made room.
const RING_RETRY: Duration = Duration::from_millis(1);

/// The ring to a core.
pub(crate) struct Port {
    events: RefCell<Producer<Event>>,
    bell: Arc<Bell>,
    /// Events of the thread itself that found the ring full. No command of this core is taken while there are any, so they
    /// are at most those of one turn.
    pub(crate) held: RefCell<VecDeque<Event>>,
    pub(crate) gone: Cell<bool>,
}

impl Port {
    pub(crate) fn new(events: Producer<Event>, bell: Arc<Bell>) -> Self {
        Self { events: RefCell::new(events), bell, held: RefCell::default(), gone: Cell::new(false) }
    }

    /// Puts an event on the ring; gives it back if that is full. Drops it if nobody is there.
    fn push(&self, event: Event) -> Result<(), Event> {
        if self.gone.get() {
            return Ok(());
        }
        self.events.borrow_mut().push(event)?;
        self.bell.ring();
        Ok(())
    }

    /// Puts an event on the ring, once there is room.
    async fn emit(&self, mut event: Event) {
        while let Err(back) = self.push(event) {
            event = back;
            sleep(RING_RETRY).await;
        }
    }

    /// Puts an event on the ring or, if that is full, keeps it for [`flush`](Self::flush).
    pub(crate) fn tell(&self, event: Event) {
        self.held.borrow_mut().push_back(event);
        self.flush();
    }

    /// Puts what was kept on the ring. False if there is no room for all of it.
    pub(crate) fn flush(&self) -> bool {
        let mut held = self.held.borrow_mut();
        while let Some(event) = held.pop_front() {
            if let Err(event) = self.push(event) {
                held.push_front(event);
                return false;
            }
        }
        true
    }

    /// Looks whether the core is there; true once, if it is not any more.
    pub(crate) fn went(&self) -> bool {
        let went = !self.gone.get() && self.events.borrow().is_abandoned();
        if went {
            self.gone.set(true);
            self.held.borrow_mut().clear();
        }
        went
    }
}

/// A model, as it is served.
pub(crate) struct Served {
    model: RefCell<Arc<RemoteModel>>,
    slots: Semaphore,
    waiting: Cell<usize>,
}

impl Served {
    pub(crate) fn new(model: RemoteModel) -> Self {
        let slots = Semaphore::new(REMOTE_RUNNING_MAX);
        Self { model: RefCell::new(Arc::new(model)), slots, waiting: Cell::new(0) }
    }

    /// What is known of it now.
    pub(crate) fn model(&self) -> Arc<RemoteModel> {
        Arc::clone(&self.model.borrow())
    }

    /// Has it asked in another way from now on; what runs goes on as it began.
    pub(crate) fn change(&self, model: RemoteModel) {
        *self.model.borrow_mut() = Arc::new(model);
    }

    /// Generations that wait for a place.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.get()
    }
}

/// One generation waits for a place, until this is dropped.
pub(crate) struct Waiting(Rc<Served>);

impl Waiting {
    pub(crate) fn new(served: &Rc<Served>) -> Self {
        served.waiting.set(served.waiting.get() + 1);
        Self(Rc::clone(served))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get() - 1);
    }
}

/// What a generation is told while it runs.
pub(crate) struct Control {
    credit: Cell<u32>,
    /// Why it is to end; empty if nobody wants it any more.
    cancelled: RefCell<Option<&'static str>>,
    /// Whether its first token came.
    began: Cell<bool>,
    notify: Notify,
}

impl Control {
    pub(crate) fn new(credit: u32) -> Self {
        let (credit, began) = (Cell::new(credit), Cell::new(false));
        Self { credit, cancelled: RefCell::default(), began, notify: Notify::new() }
    }

    /// Tokens with an index below `until` may be produced.
    pub(crate) fn grant(&self, until: u32) {
        self.credit.set(self.credit.get().max(until));
        self.notify.notify_waiters();
    }

    pub(crate) fn cancel(&self, why: &'static str) {
        self.cancelled.borrow_mut().get_or_insert(why);
        self.notify.notify_waiters();
    }

    async fn until(&self, holds: impl Fn() -> bool) {
        loop {
            // Made before it is looked, so that nothing told in between is missed.
            let told = self.notify.notified();
            if holds() {
                return;
            }
            told.await;
        }
    }

    async fn may_produce(&self, index: u32) {
        self.until(|| self.credit.get() > index).await;
    }

    async fn cancellation(&self) {
        self.until(|| self.cancelled.borrow().is_some()).await;
    }

    /// The deadline passes, and it has not begun.
    async fn expiry(&self, deadline: Option<Instant>) {
        let Some(deadline) = deadline else { return std::future::pending().await };
        tokio::time::sleep_until(deadline).await;
        if self.began.get() {
            std::future::pending().await
        }
    }
}

/// How it ended.
enum End {
    Finished(FinishReason, Option<Usage>),
    Failed(Fault),
    Refused(Reject),
    Cancelled,
    Expired,
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        Self::Failed(fault)
    }
}

/// See the module.
pub(crate) struct Course {
    submit: Box<Submit>,
    served: Rc<Served>,
    port: Rc<Port>,
    control: Rc<Control>,
    dialer: Rc<Dialer>,
    waiting: Option<Waiting>,
    times: Option<Box<Times>>,
    produced: u32,
}

impl Course {
    pub(crate) fn new(
        submit: Box<Submit>,
        served: Rc<Served>,
        port: Rc<Port>,
        control: Rc<Control>,
        dialer: Rc<Dialer>,
    ) -> Self {
        let waiting = Some(Waiting::new(&served));
        let times = submit.traced.then(|| Times::new(submit.generation, std::time::Instant::now()));
        Self { submit, served, port, control, dialer, waiting, times, produced: 0 }
    }

    /// Runs it to its end, of which `ended` is told right before the core is.
    pub(crate) async fn run(mut self, ended: impl FnOnce()) {
        let control = Rc::clone(&self.control);
        let deadline = (self.submit.deadline_ms > 0)
            .then(|| Instant::from_std(self.submit.submitted) + Duration::from_millis(self.submit.deadline_ms.into()));
        let end = tokio::select! {
            biased;
            () = control.cancellation() => End::Cancelled,
            () = control.expiry(deadline) => End::Expired,
            end = self.go() => end.unwrap_or_else(|end| end),
        };
        let model = self.served.model();
        if let End::Failed(fault) = &end
            && fault.is_of_remote()
        {
            let (host, began) = (&model.endpoint.host, self.control.began.get());
            tracing::warn!(model = %model.name, host, began, %fault, "a remote model failed");
        }
        // Its place is free, and the connection closed, before anybody hears of the end.
        drop(self.waiting.take());
        if let Some(times) = self.times.take() {
            self.port.emit(Event::Traced(times.end())).await;
        }
        let event = self.event(end, model.name.as_str());
        ended();
        self.port.emit(event).await;
    }

    /// What the core is told of the end.
    fn event(&self, end: End, name: &str) -> Event {
        let (generation, began) = (self.submit.generation, self.control.began.get());
        let usage = Usage { completion_tokens: self.produced, ..Usage::default() };
        let finished = |reason, usage, message| Event::Finished { generation, reason, usage, message };
        match end {
            End::Finished(reason, cost) => finished(reason, cost.unwrap_or(usage), String::new()),
            End::Cancelled => {
                let why = self.control.cancelled.borrow().unwrap_or_default();
                finished(FinishReason::Cancelled, usage, why.to_owned())
            }
            End::Failed(fault) if began => {
                finished(FinishReason::Failed, usage, format!("the remote endpoint of {name} failed: {fault}"))
            }
            End::Failed(fault) => Event::Refused { generation, reject: fault.reject(name) },
            End::Refused(reject) => Event::Refused { generation, reject },
            End::Expired => {
                let text = "the generation did not begin by its deadline; give it more time, or try later";
                let reject = Reject::new(RejectCode::Busy, text).retry_after_ms(REMOTE_RETRY_MS);
                Event::Refused { generation, reject }
            }
        }
    }

    async fn go(&mut self) -> Result<End, End> {
        let model = self.served.model();
        let body = request::body(&self.submit, &model.remote_name).map_err(End::Refused)?;
        let served = Rc::clone(&self.served);
        let _place = served.slots.acquire().await;
        drop(self.waiting.take());
        let now = std::time::Instant::now();
        self.submit.messages = Vec::new();
        if let Some(times) = &mut self.times {
            times.admitted = Some(now);
        }
        let by = Instant::from_std(now) + model.timeout;
        let reply = self.dialer.ask(&model, body, by).await?;
        let (generation, at) = (self.submit.generation, std::time::Instant::now());
        if let Some(times) = &mut self.times {
            times.first_row = Some(at);
        }
        let name = model.name.clone();
        self.port.emit(Event::Scheduled { generation, model: name, prompt_tokens: 0, at }).await;
        self.read(reply, by, model.timeout).await
    }

    /// Reads an answer to its end, as far as there is credit. Its first piece comes by `by`, the others within `patience` of
    /// each other.
    async fn read(&mut self, mut reply: Reply, by: Instant, patience: Duration) -> Result<End, End> {
        let (mut lines, mut answer, mut fault) = (Lines::default(), Answer::default(), None);
        let control = Rc::clone(&self.control);
        loop {
            while answer.has_piece() {
                if self.produced >= self.submit.sampling.max_tokens {
                    return Ok(End::Finished(FinishReason::Length, answer.usage()));
                }
                control.may_produce(self.produced).await;
                if let Some(piece) = answer.next_piece() {
                    self.give(piece).await;
                }
            }
            if let Some(fault) = fault {
                return Err(End::Failed(fault));
            }
            if answer.is_done() {
                break;
            }
            // Nothing is read for one who does not read.
            control.may_produce(self.produced).await;
            let next = match control.began.get() {
                false => timeout_at(by, reply.next()).await,
                true => timeout(patience, reply.next()).await,
            };
            let next = next.map_err(|_| Fault::Slow { what: "its next token", within: patience })?;
            match next {
                Ok(Some(bytes)) => fault = take(&mut lines, &mut answer, &bytes).err(),
                Ok(None) => break,
                Err(cut) => fault = answer.end().err().map(|_| cut),
            }
        }
        let (reason, usage) = answer.end()?;
        Ok(End::Finished(reason, usage))
    }

    /// Hands a piece to the core.
    async fn give(&mut self, Piece { text, detail }: Piece) {
        let (generation, index, at) = (self.submit.generation, self.produced, std::time::Instant::now());
        let detail = detail.map(|mut detail| {
            detail.index = index;
            detail
        });
        if let Some(times) = self.times.as_mut().filter(|times| times.first_token.is_none()) {
            times.first_token = Some(at);
        }
        // A remote does not say what number a token has; nothing is resumed there that could want one.
        let event = Event::Token { generation, index, id: index, text: Bytes::from(text), detail, at };
        self.port.emit(event).await;
        self.produced += 1;
        self.control.began.set(true);
    }
}

/// Takes bytes of an answer in.
fn take(lines: &mut Lines, answer: &mut Answer, bytes: &[u8]) -> Result<(), Fault> {
    lines.push(bytes);
    while let Some(data) = lines.next().map_err(|TooLong| Fault::EndlessLine)? {
        answer.read(&data)?;
    }
    Ok(())
}
