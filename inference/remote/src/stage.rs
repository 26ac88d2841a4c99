//! The thread that asks remotes, and its rings.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use thalweg_protocol::generation::{FinishReason, Usage};
use thalweg_protocol::ids::{GenerationId, Name};
use thalweg_protocol::limits::TURN_INPUTS_MAX;
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_ring::{Bell, Consumer, Producer, ring};
use thalweg_worker::stage::{Command, Event, Submit};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::LocalSet;
use tokio::time::Instant;

use crate::config::{RemoteError, RemoteModel};
use crate::connect::Dialer;
use crate::course::{Control, Course, Port, Served};
use crate::limits::{REMOTE_MODELS_MAX, REMOTE_RETRY_MS, REMOTE_WAITING_MAX};

/// How long what runs may go on after its model is gone from the settings.
const LEAVE: Duration = Duration::from_secs(30);
/// A core that is gone is noticed after so long, while generations run.
const LOOK: Duration = Duration::from_millis(250);
/// A core whose ring was full is looked at again after so long.
const RING_RETRY: Duration = Duration::from_millis(1);
/// What a generation hears that ran at a model that was unloaded.
const UNLOADED: &str = "the model was unloaded";
/// Time to tell the cores of the end of everything.
const ENDING: Duration = Duration::from_secs(1);

/// What the thread is told by others than cores.
enum Mail {
    /// These are the models from now on. Told when they are.
    All(Vec<RemoteModel>, SyncSender<()>),
    /// One model more, or another way to one. Likewise.
    One(RemoteModel, SyncSender<()>),
    /// This one is no more. How many generations were cancelled for it is told when none of its is left.
    Remove(Name, Duration, SyncSender<Result<u64, RemoteError>>),
}

struct Shared {
    bell: Arc<Bell>,
    stop: AtomicBool,
    /// Whether there is mail; so that nobody takes the lock in vain.
    has_mail: AtomicBool,
    mail: Mutex<Vec<Mail>>,
}

impl Shared {
    fn mail(&self) -> MutexGuard<'_, Vec<Mail>> {
        // Nothing panics while it is held.
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves something for the thread. If it ended, whoever waits for an answer is told so by the drop.
    fn post(&self, mail: Mail) {
        {
            let mut waiting = self.mail();
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            waiting.push(mail);
        }
        self.has_mail.store(true, Ordering::Release);
        self.bell.ring();
    }
}

/// The running stage. Dropping it shuts it down.
pub struct RemoteStage {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What one core holds of the stage. Dropping it cancels its generations.
pub struct RemoteLink {
    commands: Producer<Command>,
    events: Consumer<Event>,
    bell: Arc<Bell>,
}

impl RemoteLink {
    /// Sends a command. Gives it back if the ring is full.
    ///
    /// # Errors
    /// The command, to be sent later.
    #[allow(clippy::result_large_err, reason = "it is what was given")]
    pub fn send(&mut self, command: Command) -> Result<(), Command> {
        self.commands.push(command)?;
        self.bell.ring();
        Ok(())
    }

    /// The next event.
    pub fn receive(&mut self) -> Option<Event> {
        self.events.pop()
    }

    /// Whether no event waits.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
}

/// Changes what a stage serves, from any thread but a core's: some of it waits.
#[derive(Clone)]
pub struct RemoteHandle {
    shared: Arc<Shared>,
}

impl RemoteHandle {
    /// Serves exactly these from now on. What runs at others ends within half a minute.
    ///
    /// # Errors
    /// If two have one name, there are too many, or the stage ended; then nothing changes.
    pub fn configure(&self, models: Vec<RemoteModel>) -> Result<(), RemoteError> {
        check(&models)?;
        let (tell, told) = sync_channel(1);
        self.shared.post(Mail::All(models, tell));
        told.recv().map_err(|_| RemoteError::Ended)
    }

    /// Serves one more, or asks one in another way.
    ///
    /// # Errors
    /// If the stage ended.
    pub fn put(&self, model: RemoteModel) -> Result<(), RemoteError> {
        let (tell, told) = sync_channel(1);
        self.shared.post(Mail::One(model, tell));
        told.recv().map_err(|_| RemoteError::Ended)
    }

    /// Serves one no more. What runs there may go on for `grace` and is then cancelled. Waits for that, and gives how many
    /// were cancelled.
    ///
    /// # Errors
    /// If there is no such model, or the stage ended.
    pub fn remove(&self, name: &Name, grace: Duration) -> Result<u64, RemoteError> {
        let (tell, told) = sync_channel(1);
        self.shared.post(Mail::Remove(name.clone(), grace, tell));
        told.recv().unwrap_or(Err(RemoteError::Ended))
    }
}

fn check(models: &[RemoteModel]) -> Result<(), RemoteError> {
    if models.len() > REMOTE_MODELS_MAX {
        return Err(RemoteError::TooMany(models.len()));
    }
    let twice = models.iter().enumerate().find(|(n, model)| models[..*n].iter().any(|other| other.name == model.name));
    twice.map_or(Ok(()), |(_, model)| Err(RemoteError::Twice(model.name.clone())))
}

impl RemoteStage {
    /// Starts the thread; it rings `bells[i]` whenever an event for core `i` was put on its ring. Gives one link per core.
    ///
    /// # Errors
    /// If two models have one name, there are too many, or the system refuses a thread or a descriptor.
    pub fn start(
        models: Vec<RemoteModel>,
        bells: &[Arc<Bell>],
        ring_slots: usize,
    ) -> Result<(Self, Vec<RemoteLink>), RemoteError> {
        check(&models)?;
        let bell = Bell::new()?;
        let (mut ports, mut links) = (Vec::new(), Vec::new());
        for core in bells {
            let (commands, inbox) = ring(ring_slots);
            let (outbox, events) = ring(ring_slots);
            ports.push((inbox, outbox, Arc::clone(core)));
            links.push(RemoteLink { commands, events, bell: Arc::clone(&bell) });
        }
        let (stop, has_mail) = (AtomicBool::new(false), AtomicBool::new(false));
        let shared = Arc::new(Shared { bell, stop, has_mail, mail: Mutex::default() });
        let (report, started) = sync_channel(1);
        let own = Arc::clone(&shared);
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let made = runtime.and_then(|runtime| Ok((runtime, Dialer::new()?)));
            let (runtime, dialer) = match made {
                Ok(made) => made,
                Err(error) => return drop(report.send(Err(error))),
            };
            let _ = report.send(Ok(()));
            let local = LocalSet::new();
            let room = Room::new(own, models, ports, dialer);
            if let Err(error) = runtime.block_on(local.run_until(room.work())) {
                tracing::error!(%error, "the stage for remote models ended");
            }
        };
        let thread = std::thread::Builder::new().name("thalweg-remote".into()).spawn(run)?;
        let stage = Self { shared, thread: Some(thread) };
        started.recv().unwrap_or_else(|_| Err(io::Error::other("its thread ended")))?;
        Ok((stage, links))
    }

    /// Changes what is served, for other threads.
    pub fn handle(&self) -> RemoteHandle {
        RemoteHandle { shared: Arc::clone(&self.shared) }
    }

    /// Ends all generations as cancelled, and waits for the thread.
    pub fn shutdown(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.bell.ring();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of remote models ended by a panic");
        }
        // Who posts from now on is told that nobody is there.
        self.shared.mail().clear();
    }
}

impl Drop for RemoteStage {
    fn drop(&mut self) {
        self.shutdown();
    }
}

struct BellFd(Arc<Bell>);

impl AsRawFd for BellFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.fd()
    }
}

/// A generation that runs or waits.
struct Live {
    control: Rc<Control>,
    port: usize,
    served: Rc<Served>,
}

type Lives = Rc<RefCell<HashMap<GenerationId, Live>>>;

/// A model that is served no more, of which something may run yet.
struct Leaving {
    served: Rc<Served>,
    until: Instant,
    cancelled: u64,
    tell: Option<SyncSender<Result<u64, RemoteError>>>,
}

/// Everything the thread has.
struct Room {
    shared: Arc<Shared>,
    inboxes: Vec<Consumer<Command>>,
    ports: Vec<Rc<Port>>,
    served: Vec<Rc<Served>>,
    leaving: Vec<Leaving>,
    lives: Lives,
    /// A generation ended.
    ended: Rc<Notify>,
    dialer: Rc<Dialer>,
}

impl Room {
    fn new(
        shared: Arc<Shared>,
        models: Vec<RemoteModel>,
        ports: Vec<(Consumer<Command>, Producer<Event>, Arc<Bell>)>,
        dialer: Dialer,
    ) -> Self {
        let (mut inboxes, mut outlets) = (Vec::new(), Vec::new());
        for (inbox, outbox, bell) in ports {
            inboxes.push(inbox);
            outlets.push(Rc::new(Port::new(outbox, bell)));
        }
        let mut room = Self {
            shared,
            inboxes,
            ports: outlets,
            served: Vec::new(),
            leaving: Vec::new(),
            lives: Lives::default(),
            ended: Rc::new(Notify::new()),
            dialer: Rc::new(dialer),
        };
        models.into_iter().for_each(|model| room.put(model));
        room
    }

    async fn work(mut self) -> io::Result<()> {
        let bell = BellFd(Arc::clone(&self.shared.bell));
        // SAFETY: a bell has the same open descriptor from its making until it is dropped, and the `AsyncFd` keeps it.
        let waiter = unsafe { AsyncFd::register_with_interest(bell, Interest::READABLE) }.map_err(io::Error::from)?;
        let bell = Arc::clone(&self.shared.bell);
        while !self.shared.stop.load(Ordering::Acquire) {
            self.turn();
            bell.prepare();
            if self.nothing_waits() {
                tokio::select! {
                    ready = waiter.readable() => {
                        let mut ready = ready?;
                        // Clears the bell. Nobody rings it again before the next `prepare`, so no ring is lost between.
                        bell.wait(Some(Duration::ZERO));
                        ready.clear_ready();
                    }
                    () = self.ended.notified() => {}
                    () = self.patience() => {}
                }
            } else {
                // Those who were begun get their turn.
                tokio::task::yield_now().await;
            }
            bell.awake();
        }
        self.end().await;
        Ok(())
    }

    /// Sleeps as long as nothing has to be looked at: for ever, if nothing runs.
    async fn patience(&self) {
        let held = self.ports.iter().any(|port| !port.held.borrow().is_empty());
        let leaves = self.leaving.iter().map(|leaving| leaving.until.saturating_duration_since(Instant::now())).min();
        let look = (!self.lives.borrow().is_empty()).then_some(LOOK);
        match held.then_some(RING_RETRY).into_iter().chain(leaves).chain(look).min() {
            Some(longest) => tokio::time::sleep(longest).await,
            None => std::future::pending().await,
        }
    }

    fn nothing_waits(&self) -> bool {
        let commands = self.inboxes.iter().zip(&self.ports).any(|(inbox, port)| {
            // What a core sent waits for what it has not taken.
            !inbox.is_empty() && port.held.borrow().is_empty()
        });
        let stops = self.shared.stop.load(Ordering::Acquire);
        !commands && !stops && !self.shared.has_mail.load(Ordering::Acquire)
    }

    fn turn(&mut self) {
        if self.shared.has_mail.swap(false, Ordering::AcqRel) {
            let mail = std::mem::take(&mut *self.shared.mail());
            mail.into_iter().for_each(|mail| self.take(mail));
        }
        for n in 0..self.ports.len() {
            let port = Rc::clone(&self.ports[n]);
            if port.went() {
                self.lives.borrow().values().filter(|live| live.port == n).for_each(|live| live.control.cancel(""));
            }
            port.flush();
            for _ in 0..TURN_INPUTS_MAX {
                if !port.held.borrow().is_empty() {
                    break;
                }
                let Some(command) = self.inboxes[n].pop() else { break };
                if !port.gone.get() {
                    self.command(n, command);
                }
            }
        }
        self.settle_leaving();
    }

    fn take(&mut self, mail: Mail) {
        match mail {
            Mail::One(model, tell) => {
                self.put(model);
                let _ = tell.send(());
            }
            Mail::All(models, tell) => {
                let stays = |served: &Rc<Served>| models.iter().any(|model| model.name == served.model().name);
                let gone: Vec<_> = self.served.extract_if(.., |served| !stays(served)).collect();
                gone.into_iter().for_each(|served| self.leave(served, LEAVE, None));
                models.into_iter().for_each(|model| self.put(model));
                let _ = tell.send(());
            }
            Mail::Remove(name, grace, tell) => {
                match self.served.iter().position(|served| served.model().name == name) {
                    Some(at) => {
                        let served = self.served.remove(at);
                        self.leave(served, grace, Some(tell));
                    }
                    // Who asked waits for it.
                    None => drop(tell.send(Err(RemoteError::Unknown(name)))),
                }
            }
        }
    }

    fn put(&mut self, model: RemoteModel) {
        if model.key.is_some() && !model.endpoint.tls && !is_here(&model.endpoint.host) {
            let (name, host) = (&model.name, &model.endpoint.host);
            tracing::warn!(model = %name, host, "the key of a remote model travels without TLS; use https");
        }
        match self.served.iter().find(|served| served.model().name == model.name) {
            Some(served) => served.change(model),
            None => self.served.push(Rc::new(Served::new(model))),
        }
    }

    fn leave(&mut self, served: Rc<Served>, grace: Duration, tell: Option<SyncSender<Result<u64, RemoteError>>>) {
        self.leaving.push(Leaving { served, until: Instant::now() + grace, cancelled: 0, tell });
    }

    /// Cancels what ran too long at models that are served no more, and tells when none is left.
    fn settle_leaving(&mut self) {
        let (lives, now) = (self.lives.borrow(), Instant::now());
        self.leaving.retain_mut(|leaving| {
            let mut left = 0;
            for live in lives.values().filter(|live| Rc::ptr_eq(&live.served, &leaving.served)) {
                left += 1;
                if now >= leaving.until {
                    live.control.cancel(UNLOADED);
                }
            }
            if left > 0 && now >= leaving.until && leaving.cancelled == 0 {
                leaving.cancelled = left;
                // It is told of the end of each.
                leaving.until = now + LOOK;
            }
            if left == 0
                && let Some(tell) = leaving.tell.take()
            {
                let _ = tell.send(Ok(leaving.cancelled));
            }
            left > 0
        });
    }

    fn command(&mut self, port: usize, command: Command) {
        match command {
            Command::Submit(submit) => self.submit(port, submit),
            Command::Credit { generation, until } => {
                if let Some(live) = self.lives.borrow().get(&generation) {
                    live.control.grant(until);
                }
            }
            Command::Cancel { generation } => {
                if let Some(live) = self.lives.borrow().get(&generation) {
                    live.control.cancel("");
                }
            }
            Command::Embed(embed) => {
                let text = "models that are run elsewhere make no embeddings here; name one of this node's";
                let reject = Reject::new(RejectCode::EmbeddingsUnsupported, text);
                self.ports[port].tell(Event::Embedded { job: embed.job, result: Err(reject) });
            }
        }
    }

    fn submit(&mut self, port: usize, submit: Box<Submit>) {
        let generation = submit.generation;
        let served = match self.find(&submit) {
            Ok(served) => served,
            Err(reject) => return self.ports[port].tell(Event::Refused { generation, reject }),
        };
        let control = Rc::new(Control::new(submit.credit));
        let live = Live { control: Rc::clone(&control), port, served: Rc::clone(&served) };
        self.lives.borrow_mut().insert(generation, live);
        let port = Rc::clone(&self.ports[port]);
        let course = Course::new(submit, served, Rc::clone(&port), control, Rc::clone(&self.dialer));
        let (lives, ended) = (Rc::clone(&self.lives), Rc::clone(&self.ended));
        let mut watch = Watch { generation, lives, ended, port, is_over: false };
        tokio::task::spawn_local(course.run(move || watch.over()));
    }

    /// The model for a generation, or why it is refused.
    fn find(&self, submit: &Submit) -> Result<Rc<Served>, Reject> {
        let generation = submit.generation;
        if self.lives.borrow().contains_key(&generation) {
            let text = format!("{generation} is running already; take another id");
            return Err(Reject::new(RejectCode::ParameterInvalid, text));
        }
        let found = match &submit.model {
            Some(name) => self.served.iter().find(|served| served.model().name == *name),
            None => self.served.first(),
        };
        let Some(served) = found else {
            let text = match &submit.model {
                Some(name) => format!("there is no model {name}, or not any more; ask for those there are"),
                None => "name a model".to_owned(),
            };
            return Err(Reject::new(RejectCode::ModelUnknown, text));
        };
        if served.waiting() >= REMOTE_WAITING_MAX {
            let text = format!("{REMOTE_WAITING_MAX} generations wait for the remote endpoint already: try later");
            return Err(Reject::new(RejectCode::Busy, text).retry_after_ms(REMOTE_RETRY_MS));
        }
        Ok(Rc::clone(served))
    }

    /// Cancels everything, and gives the cores a little time to hear of it.
    async fn end(&mut self) {
        self.lives.borrow().values().for_each(|live| live.control.cancel(""));
        let over = async {
            while !self.lives.borrow().is_empty() || !self.ports.iter().all(|port| port.went() || port.flush()) {
                tokio::time::sleep(RING_RETRY).await;
            }
        };
        if tokio::time::timeout(ENDING, over).await.is_err() {
            tracing::warn!("cores did not take the ends of generations at remote models");
        }
        // The last ends are put on the rings after their generations are let go of.
        tokio::task::yield_now().await;
    }
}

/// Whether a host is this machine.
fn is_here(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Sees to it that a generation is let go of and ends, also by a panic.
struct Watch {
    generation: GenerationId,
    lives: Lives,
    ended: Rc<Notify>,
    port: Rc<Port>,
    is_over: bool,
}

impl Watch {
    /// The core is about to be told of the end.
    fn over(&mut self) {
        self.is_over = true;
        self.lives.borrow_mut().remove(&self.generation);
        self.ended.notify_one();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        self.over();
        let message = "the node failed at a remote model; its log says more".to_owned();
        let (generation, reason, usage) = (self.generation, FinishReason::Failed, Usage::default());
        self.port.tell(Event::Finished { generation, reason, usage, message });
    }
}
