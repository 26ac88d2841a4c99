//! Commands on their way to the node, and what comes back. Every request is a task of its own: nothing waits for the network
//! but these tasks, and what they bring goes through one bounded queue.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use thalweg_client::{
    Ack, ChannelAbout, ChannelChange, ChannelOptions, Client, ClientError, ConnectionState, Position, Post, PostKind,
    ProfileText, RejectCode, Subscription,
};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use crate::event::{Answer, Command, Event, Link, Refusal, Request, State, Ticket, Welcome};
use crate::spell;
use crate::timeline::UNSENT_MAX;

/// Hits of one search request.
const HITS: u32 = 50;

/// A write on its way: writes of one session keep their order.
struct Write {
    ticket: Ticket,
    channel: String,
    body: String,
    post: Post,
}

/// The ways to the node.
pub(crate) struct Wire {
    client: Client,
    events: mpsc::Sender<Event>,
    writes: mpsc::Sender<Write>,
    watched: BTreeMap<String, AbortHandle>,
    tasks: JoinSet<()>,
}

/// Microseconds since 1970, UTC.
pub(crate) fn wall_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

impl Wire {
    pub(crate) fn new(client: Client, events: mpsc::Sender<Event>) -> Self {
        let (writes, queue) = mpsc::channel(UNSENT_MAX);
        let mut tasks = JoinSet::new();
        tasks.spawn(write_in_order(client.clone(), queue, events.clone()));
        tasks.spawn(follow_connection(client.clone(), events.clone()));
        Self { client, events, writes, watched: BTreeMap::new(), tasks }
    }

    /// A task that panicked; `None` as long as all is well. Cancel-safe.
    pub(crate) async fn panicked(&mut self) -> Option<String> {
        match self.tasks.join_next().await {
            Some(Err(error)) if error.is_panic() => Some(error.to_string()),
            Some(_) => None,
            None => std::future::pending().await,
        }
    }

    /// Carries a command out that is for the node; gives what is known at once to have come of it.
    pub(crate) fn carry(&mut self, command: Command) -> Option<Event> {
        match command {
            Command::Watch { channel, make } => {
                let task = watch(self.client.clone(), channel.clone(), make, self.events.clone());
                let task = self.tasks.spawn(task);
                if let Some(before) = self.watched.insert(channel, task) {
                    before.abort();
                }
            }
            Command::Unwatch { channel } => {
                if let Some(task) = self.watched.remove(&channel) {
                    task.abort();
                }
            }
            Command::Typing { channel, on } => self.client.typing(&channel, on),
            Command::Present(state) => {
                let client = self.client.clone();
                // Told again with the next change, and by the SDK to a node that was restarted.
                self.tasks.spawn(async move { drop(client.set_presence(state == State::Away).await) });
            }
            Command::Ask { ticket, request } => return self.ask(ticket, request),
            Command::Quit | Command::Redraw | Command::Mouse(_) | Command::Bell => {}
        }
        None
    }

    fn ask(&mut self, ticket: Ticket, request: Request) -> Option<Event> {
        let request = match write_of(ticket, request) {
            Ok(write) => {
                return self.writes.try_send(write).err().map(|error| {
                    let reason = match error {
                        mpsc::error::TrySendError::Full(_) => "too much waits to be sent",
                        mpsc::error::TrySendError::Closed(_) => "the connection is over",
                    };
                    refused(ticket, reason.to_owned())
                });
            }
            Err(request) => request,
        };
        let (client, events) = (self.client.clone(), self.events.clone());
        self.tasks.spawn(async move {
            let result = answer(&client, request).await.map_err(|error| refusal(&error));
            // Nobody waits for it when the application is gone.
            let _ = events.send(Event::Answered { ticket, result }).await;
        });
        None
    }

    /// Leaves: the node is told, which `patience` bounds.
    pub(crate) async fn close(self, patience: std::time::Duration) {
        let Self { client, mut tasks, writes, .. } = self;
        drop(writes);
        tasks.abort_all();
        let _ = tokio::time::timeout(patience, client.close()).await;
        tasks.shutdown().await;
    }
}

fn refused(ticket: Ticket, reason: String) -> Event {
    Event::Answered { ticket, result: Err(Refusal { reason, retry_after: None }) }
}

fn refusal(error: &ClientError) -> Refusal {
    let reason = match error.reject() {
        Some(reject) if !reject.message.is_empty() => reject.message.to_string(),
        _ => error.to_string(),
    };
    Refusal { reason, retry_after: error.retry_after() }
}

/// A request that is a write; any other comes back.
fn write_of(ticket: Ticket, request: Request) -> Result<Write, Request> {
    let write = |channel, body, kind, target| {
        Ok(Write { ticket, channel, body, post: Post { kind, target: Position(target) } })
    };
    match request {
        Request::Post { channel, body, reply_to } => write(channel, body, PostKind::Message, reply_to),
        Request::Edit { channel, position, body } => write(channel, body, PostKind::Edit, position),
        Request::Redact { channel, position } => write(channel, String::new(), PostKind::Redact, position),
        Request::React { channel, position, emoji, on } => {
            write(channel, emoji, if on { PostKind::React } else { PostKind::Unreact }, position)
        }
        other => Err(other),
    }
}

/// Starts writes in their order, and waits for their answers beside each other.
async fn write_in_order(client: Client, mut queue: mpsc::Receiver<Write>, events: mpsc::Sender<Event>) {
    let mut acks = JoinSet::new();
    loop {
        tokio::select! {
            write = queue.recv() => {
                let Some(Write { ticket, channel, body, post }) = write else { return };
                match client.write_start(&channel, body, post).await {
                    Ok(ack) => {
                        acks.spawn(acknowledged(ticket, ack, events.clone()));
                    }
                    Err(error) => {
                        let event = Event::Answered { ticket, result: Err(refusal(&error)) };
                        let _ = events.send(event).await;
                    }
                }
            }
            Some(_) = acks.join_next(), if !acks.is_empty() => {}
        }
    }
}

async fn acknowledged(ticket: Ticket, ack: Ack, events: mpsc::Sender<Event>) {
    let sent = |published: thalweg_client::Published| Answer::Sent {
        position: published.position.0,
        at_us: published.timestamp_us,
    };
    let result = ack.await.map(sent).map_err(|error| refusal(&error));
    let _ = events.send(Event::Answered { ticket, result }).await;
}

/// Tells how the connection stands, and who the node says that we are.
async fn follow_connection(client: Client, events: mpsc::Sender<Event>) {
    let mut connection = client.connection();
    let mut greeted = false;
    loop {
        let state = connection.borrow_and_update().clone();
        let over = matches!(state, ConnectionState::Closed { .. });
        let link = match state {
            ConnectionState::Connected { epoch } => Link::Up { epoch },
            ConnectionState::Leaving { reconnect_delay } => Link::Leaving { delay: reconnect_delay },
            ConnectionState::Reconnecting { attempt, reason } => Link::Trying { attempt, reason },
            ConnectionState::Closed { error } => Link::Over { reason: refusal(&error).reason },
        };
        let up = matches!(link, Link::Up { .. });
        if events.send(Event::Link(link)).await.is_err() {
            return;
        }
        if up && !greeted {
            greeted = true;
            let welcome = client.welcome();
            let event = Event::Welcome(Welcome {
                user: welcome.user.to_string(),
                tenant: welcome.tenant.to_string(),
                server: welcome.server,
                models: welcome.models,
            });
            if events.send(event).await.is_err() {
                return;
            }
        }
        if over || connection.changed().await.is_err() {
            return;
        }
    }
}

/// Reads a channel until it ends or nobody wants it any more.
async fn watch(client: Client, channel: String, make: bool, events: mpsc::Sender<Event>) {
    let options = thalweg_client::SubscribeOptions { make, presence: true, ..Default::default() };
    let shut = |reason: String| Event::Shut { channel: channel.clone(), reason };
    let mut subscription: Subscription = match client.subscribe(&channel, options).await {
        Ok(subscription) => subscription,
        Err(error) => {
            let mut reason = refusal(&error).reason;
            if error.reject().is_some_and(|reject| reject.code == RejectCode::KindMismatch) {
                reason = format!("{channel} is a document: leave, and do `thalweg edit {channel}`");
            }
            let _ = events.send(shut(reason)).await;
            return;
        }
    };
    let (next, head) = (subscription.first().0, subscription.head().0);
    let mut result = events.send(Event::Opened { channel: channel.clone(), next, head }).await;
    while result.is_ok() {
        let event = match subscription.next().await {
            Ok(Some(item)) => Event::Item { channel: channel.clone(), item: spell::item(item, wall_us()) },
            Ok(None) => return,
            Err(error) => {
                let _ = events.send(shut(refusal(&error).reason)).await;
                return;
            }
        };
        // Waits while the application is busy: the node then sends less.
        result = events.send(event).await;
    }
}

/// Asks the node.
async fn answer(client: &Client, request: Request) -> Result<Answer, ClientError> {
    let done = |()| Answer::Done;
    match request {
        Request::Cancel { generation } => client.cancel(generation).await.map(done),
        Request::History { channel, from, limit } => {
            client.read_history(&channel, Position(from), limit).await.map(|page| Answer::Page(spell::page(page)))
        }
        Request::Search { channel, query, before } => {
            let before = Some(Position(before)).filter(|before| before.0 != 0);
            let page = client.search_page(&channel, query, before, HITS).await?;
            let hits = page.items.into_iter().filter_map(|item| spell::delivery(item, 0)).collect();
            Ok(Answer::Found { hits, next: page.next.map_or(0, |next| next.0) })
        }
        Request::Channels => {
            let mut channels = client.channels(false).await?;
            // Documents are edited, not talked in.
            channels.retain(|channel| channel.kind != thalweg_client::ChannelKind::Document);
            Ok(Answer::Channels(channels.into_iter().map(spell::summary).collect()))
        }
        Request::About { channel } => client.about_channel(&channel).await.map(spell::about),
        Request::Join { channel } => client.join(&channel).await.map(done),
        Request::Leave { channel } => client.leave(&channel).await.map(done),
        Request::Create { channel, private, topic } => {
            let kind = if private { thalweg_client::ChannelKind::Private } else { thalweg_client::ChannelKind::Open };
            let about = ChannelAbout { kind, topic, ..ChannelAbout::default() };
            let options = ChannelOptions { about, ..ChannelOptions::default() };
            client.create_channel(&channel, options).await.map(|_| Answer::Done)
        }
        Request::Direct { users } => client.open_direct(&users).await.map(spell::about),
        Request::SetRole { channel, user, role } => {
            client.set_member(&channel, &user, role.map(spell::member_role)).await.map(done)
        }
        Request::SetTopic { channel, topic } => {
            let change = ChannelChange { topic: Some(topic), ..ChannelChange::default() };
            client.set_channel(&channel, change).await.map(done)
        }
        Request::MarkRead { channel, position, number } => {
            client.mark_read(&channel, Position(position), number).await.map(done)
        }
        Request::Profile { user } => client.profile(&user).await.map(spell::profile),
        Request::SetProfile { display, about, status } => {
            client.set_profile(ProfileText { display, about, status }).await.map(done)
        }
        Request::Who { channel } => client.who_is_in(&channel).await.map(spell::who),
        Request::Post { .. } | Request::Edit { .. } | Request::Redact { .. } | Request::React { .. } => {
            Err(ClientError::Protocol("a write was asked for as a question".to_owned()))
        }
    }
}
