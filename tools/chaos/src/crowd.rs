//! Who uses the node while it is killed: writers, readers that stay, readers that come and go, readers of history, and
//! people who ask the model. Each has a session of its own and takes down what it does and sees.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use thalweg_client::{
    Ack, AskRequest, Client, ClientError, ConnectionState, From, Generation, GenerationId, Item, Message, OnDetach,
    Part, Position, RejectCode, Sampling, SessionId, SubscribeOptions, Text,
};
use thalweg_protocol::ids::Sequence;
use thalweg_workload::auditor::{BodyHash, ChannelIndex, Event, ReaderId, WatchId};
use thalweg_workload::behaviour::{STAMP_BYTES, Stamp, prompt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::ledger::Ledger;

/// Channels that are written to.
pub(crate) const CHANNELS: u32 = 4;
/// The last of them keeps only so many messages, so that history goes away while it is read.
pub(crate) const SHORT_MESSAGES: u32 = 500;
/// Longest time a client may wait for a node that is killed again and again.
const PATIENCE: Duration = Duration::from_secs(60);
/// Distance of two tries of somebody who comes in while no node is there.
pub(crate) const AGAIN: Duration = Duration::from_millis(20);
/// Unanswered writes of one writer.
const IN_FLIGHT: usize = 64;
/// Largest body, bytes; most are a tenth of it.
const BODY_BYTES: usize = 4_096;
/// Longest stay of a reader that comes and goes.
const VISIT: Duration = Duration::from_secs(2);
/// Tokens of an answer.
const TOKENS: u32 = 48;

/// What a channel is called.
pub(crate) fn channel_name(channel: ChannelIndex) -> String {
    format!("chaos-{}", channel.0)
}

/// Where everybody is.
#[derive(Clone)]
pub(crate) struct Place {
    /// The node's data directory.
    pub(crate) data: PathBuf,
    pub(crate) ledger: Ledger,
    /// True once no more is to be begun.
    pub(crate) over: watch::Receiver<bool>,
    pub(crate) seed: u64,
}

impl Place {
    /// Randomness of one person.
    pub(crate) fn rng(&self, person: u64) -> StdRng {
        StdRng::seed_from_u64(self.seed ^ person.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub(crate) fn is_over(&self) -> bool {
        *self.over.borrow()
    }

    /// Comes in, however long the node is away.
    pub(crate) async fn connect(&self, session: SessionId) -> Option<Client> {
        let start = Instant::now();
        loop {
            let builder = Client::builder().local(&self.data).session(session).name("thalweg-chaos");
            let builder = builder.reconnect(Some(PATIENCE)).connect_timeout(PATIENCE).in_flight_max(IN_FLIGHT);
            match builder.connect().await {
                Ok(client) => {
                    tokio::task::spawn_local(count_reconnects(client.connection(), self.ledger.clone()));
                    return Some(client);
                }
                // A node that goes, or is gone; or a file that it is just writing.
                Err(_) if start.elapsed() < PATIENCE => sleep(AGAIN).await,
                Err(error) => {
                    self.ledger.complain(format!("{session} could not come in: {error}"));
                    return None;
                }
            }
        }
    }
}

async fn count_reconnects(mut connection: watch::Receiver<ConnectionState>, ledger: Ledger) {
    let mut last = None;
    loop {
        match &*connection.borrow_and_update() {
            ConnectionState::Connected { epoch } => {
                let again = last.replace(*epoch).is_some_and(|last| last != *epoch);
                ledger.count(|counts| counts.reconnects += u64::from(again));
            }
            ConnectionState::Closed { .. } => return,
            _ => {}
        }
        if connection.changed().await.is_err() {
            return;
        }
    }
}

/// A write that waits for its answer.
struct Open {
    sequence: Sequence,
    channel: ChannelIndex,
    ack: Ack,
}

/// Writes to all channels until it is over, then waits for the last answer.
pub(crate) async fn write(place: Place, person: u64) {
    let mut rng = place.rng(person);
    let session = SessionId(rng.random());
    let Some(client) = place.connect(session).await else { return };
    let mut open: VecDeque<Open> = VecDeque::new();
    let (mut sequence, mut next) = (Sequence(0), Instant::now());
    while !(place.is_over() && open.is_empty()) {
        tokio::select! {
            () = sleep_until(next), if open.len() < IN_FLIGHT && !place.is_over() => {
                next = Instant::now() + Duration::from_micros(rng.random_range(200..20_000));
                for _ in 0..rng.random_range(1..=16_usize.min(IN_FLIGHT - open.len())) {
                    sequence = Sequence(sequence.0 + 1);
                    let channel = ChannelIndex(rng.random_range(0..CHANNELS));
                    let largest = if rng.random_ratio(1, 20) { BODY_BYTES } else { BODY_BYTES / 10 };
                    let body = Stamp { intended_ns: 0, session, sequence }.body(rng.random_range(STAMP_BYTES..largest));
                    // Taken down before it leaves, so that nobody can see it earlier.
                    place.ledger.record(Event::Sent { session, sequence, channel, body: BodyHash::of(&body) });
                    match client.publish_start(channel_name(channel), body).await {
                        Ok(ack) => open.push_back(Open { sequence, channel, ack }),
                        Err(error) => return place.ledger.complain(format!("{session} cannot write: {error}")),
                    }
                }
            }
            result = oldest(&mut open) => {
                let Open { sequence, channel, .. } = open.pop_front().expect("the oldest was just answered");
                if !answered(&place, session, sequence, channel, result) {
                    return;
                }
            }
            () = sleep(AGAIN), if open.is_empty() => {}
        }
    }
    client.close().await;
}

async fn oldest(open: &mut VecDeque<Open>) -> Result<thalweg_client::Published, ClientError> {
    match open.front_mut() {
        Some(first) => (&mut first.ack).await,
        None => std::future::pending().await,
    }
}

/// Takes down an answer; whether it makes sense to go on.
fn answered(
    place: &Place,
    session: SessionId,
    sequence: Sequence,
    channel: ChannelIndex,
    result: Result<thalweg_client::Published, ClientError>,
) -> bool {
    match result {
        Ok(published) => {
            let position = published.position;
            place.ledger.acked(Event::Acked { session, sequence, position }, channel, position, published.duplicate);
            true
        }
        Err(ClientError::SessionExpired(_)) => {
            place.ledger.expired();
            true
        }
        Err(ClientError::Refused(reject)) => {
            place.ledger.record(Event::Refused { session, sequence });
            place.ledger.complain(format!("{session} #{sequence} was refused: {reject}"));
            true
        }
        Err(error) => {
            place.ledger.complain(format!("{session} #{sequence} was never answered: {error}"));
            false
        }
    }
}

fn delivered(reader: ReaderId, item: &Item) -> Option<Event> {
    Some(match item {
        Item::Message(Message { position, body, generation: None, .. }) => {
            Event::Delivered { reader, position: *position, body: BodyHash::of(body) }
        }
        Item::Message(Message { position, body, .. }) | Item::Tokens { position, text: body, .. } => {
            Event::DeliveredGenerated { reader, position: *position, body: BodyHash::of(body) }
        }
        Item::GenerationStarted { position, .. } | Item::GenerationEnded { position, .. } => {
            Event::DeliveredGenerated { reader, position: *position, body: BodyHash::of(b"") }
        }
        Item::Missed { from, to } => Event::Missed { reader, from: *from, to: *to },
        // Nobody here does such things.
        Item::Change(_) | Item::Presence(_) | Item::Typing { .. } | Item::Rewound { .. } => return None,
    })
}

/// Reads a channel from its start, and stays until the run is judged.
pub(crate) async fn stay(place: Place, channel: ChannelIndex) {
    let reader = place.ledger.reader();
    place.ledger.stays(reader, channel);
    let session = SessionId(rand::random());
    let Some(client) = place.connect(session).await else { return };
    read(&place, &client, reader, session, channel, From::Start, u64::MAX).await;
}

/// Reads `items` of a channel.
async fn read(
    place: &Place,
    client: &Client,
    reader: ReaderId,
    session: SessionId,
    channel: ChannelIndex,
    from: From,
    items: u64,
) {
    let options = SubscribeOptions { from, make: false, ..SubscribeOptions::default() };
    let mut subscription = match client.subscribe(channel_name(channel), options).await {
        Ok(subscription) => subscription,
        Err(error) => return place.ledger.complain(format!("{} cannot be read: {error}", channel_name(channel))),
    };
    place.ledger.record(Event::Subscribed { reader, session, channel, next: subscription.first() });
    for _ in 0..items {
        match subscription.next().await {
            Ok(Some(item)) => match delivered(reader, &item) {
                Some(event) => place.ledger.record(event),
                None => {
                    let name = channel_name(channel);
                    return place.ledger.complain(format!("reader {} of {name}, which is on disk: {item:?}", reader.0));
                }
            },
            Ok(None) => return,
            Err(error) => {
                return place.ledger.complain(format!(
                    "reader {} of {} ended: {error}",
                    reader.0,
                    channel_name(channel)
                ));
            }
        }
    }
}

/// Readers that come, begin anywhere, and go.
pub(crate) async fn visit(place: Place, person: u64) {
    let mut rng = place.rng(person);
    while !place.is_over() {
        sleep(Duration::from_millis(rng.random_range(0..300))).await;
        let channel = ChannelIndex(rng.random_range(0..CHANNELS));
        let head = place.ledger.head(channel);
        let from = match rng.random_range(0..4) {
            0 => From::Start,
            1 => From::End,
            _ => From::Position(Position(rng.random_range(1..=head.0.max(1)))),
        };
        let (session, reader) = (SessionId(rng.random()), place.ledger.reader());
        let Some(client) = place.connect(session).await else { return };
        let items = rng.random_range(1..5_000);
        // Leaving in the middle of a sentence is what visitors do.
        let _ = timeout(VISIT, read(&place, &client, reader, session, channel, from, items)).await;
        place.ledger.left(reader);
        client.close().await;
    }
}

/// Reads pages of history at random places.
pub(crate) async fn look_up(place: Place, person: u64) {
    let mut rng = place.rng(person);
    let Some(client) = place.connect(SessionId(rng.random())).await else { return };
    while !place.is_over() {
        sleep(Duration::from_millis(rng.random_range(0..200))).await;
        let channel = ChannelIndex(rng.random_range(0..CHANNELS));
        let head = place.ledger.head(channel);
        let from = Position(rng.random_range(0..=head.0));
        if let Err(complaint) = pages(&place, &client, channel, from, head, rng.random_range(1..4)).await {
            place.ledger.complain(complaint);
        }
    }
    client.close().await;
}

/// Reads up to `count` pages. All that was acknowledged before, up to `head`, must be there.
pub(crate) async fn pages(
    place: &Place,
    client: &Client,
    channel: ChannelIndex,
    mut from: Position,
    head: Position,
    count: u64,
) -> Result<(), String> {
    let name = channel_name(channel);
    for _ in 0..count {
        let page = client.read_history(&name, from, 0).await;
        let page = page.map_err(|error| format!("history of {name} from {from}: {error}"))?;
        place.ledger.count(|counts| counts.pages += 1);
        if page.head < head {
            return Err(format!("{name} ends at {} although {head} was acknowledged", page.head));
        }
        let mut expected = from.max(page.first).max(Position(1));
        for item in &page.items {
            let (position, body) = match item {
                Item::Message(message) => (message.position, &message.body),
                other => return Err(format!("history of {name}: {other:?}")),
            };
            if position != expected {
                return Err(format!("history of {name}: {position} came where {expected} was next"));
            }
            expected = position.next();
            place.ledger.record(Event::Read { channel, position, body: BodyHash::of(body) });
        }
        if page.next != expected {
            return Err(format!("history of {name}: after {expected} it goes on at {}", page.next));
        }
        if page.next > page.head {
            return Ok(());
        }
        if page.items.is_empty() {
            return Err(format!("history of {name} is empty at {from}, before its end at {}", page.head));
        }
        from = page.next;
    }
    Ok(())
}

/// Asks the model and follows its answers; somebody else joins in later, and both must have read the same.
pub(crate) async fn ask(place: Place, person: u64) {
    let mut rng = place.rng(person);
    let (Some(client), Some(other)) =
        (place.connect(SessionId(rng.random())).await, place.connect(SessionId(rng.random())).await)
    else {
        return;
    };
    while !place.is_over() {
        let sampling = Sampling { seed: rng.random(), temperature: 0.8, max_tokens: TOKENS, ..Sampling::default() };
        let on_detach = OnDetach::Keep(600_000);
        let question = format!("Write about {}.", prompt(4, &mut rng));
        let request = AskRequest { sampling, has_seed: true, on_detach, ..AskRequest::prompt(question) };
        let generation = match client.ask(request).await {
            Ok(generation) => generation,
            Err(ClientError::Refused(reject)) if matches!(reject.code, RejectCode::Busy | RejectCode::Draining) => {
                sleep(AGAIN).await;
                continue;
            }
            Err(error) => return place.ledger.complain(format!("a question was not taken: {error}")),
        };
        let id = generation.id();
        let late = async {
            sleep(Duration::from_millis(rng.random_range(0..500))).await;
            match other.watch(id, 0, None).await {
                Ok(generation) => follow(&place, generation).await,
                Err(error) => Err(format!("{id} cannot be watched: {error}")),
            }
        };
        match tokio::join!(follow(&place, generation), late) {
            (Ok(first), Ok(second)) if first == second => {}
            (Ok(first), Ok(second)) => place.ledger.complain(format!("{id} reads {first:?} and {second:?}")),
            (first, second) => {
                [first.err(), second.err()]
                    .into_iter()
                    .flatten()
                    .for_each(|complaint| place.ledger.complain(complaint));
            }
        }
        check_again(&place, &other, id).await;
    }
}

/// A finished answer can be read again.
async fn check_again(place: &Place, client: &Client, id: GenerationId) {
    match client.watch(id, 0, None).await {
        Ok(generation) => {
            if let Err(complaint) = follow(place, generation).await {
                place.ledger.complain(complaint);
            }
        }
        Err(error) => place.ledger.complain(format!("{id} was finished and cannot be read again: {error}")),
    }
}

/// Reads an answer from its first token to its end; gives its text.
async fn follow(place: &Place, mut generation: Generation) -> Result<String, String> {
    let (watch, mut text): (WatchId, _) = (place.ledger.watch(), Text::default());
    place.ledger.record(Event::Watched { watch, from: 0 });
    let failed = |id: GenerationId, error: &ClientError| format!("{id} ended in the middle: {error}");
    while let Some(part) = generation.next().await.map_err(|error| failed(generation.id(), &error))? {
        match &part {
            Part::Piece(piece) => {
                place.ledger.record(Event::Tokens { watch, index: piece.index, count: piece.count });
            }
            Part::Rewound { to } => {
                // The SDK came back over another connection, and does not say so to whom it is not of use.
                place.ledger.record(Event::Rewatched { watch });
                place.ledger.record(Event::Rewound { watch, to: *to });
            }
        }
        text.take(&part);
    }
    let finished = generation.finished().expect("next() gives None only when it is finished");
    place.ledger.record(Event::Finished { watch, tokens: finished.usage.completion_tokens });
    match finished.reason {
        thalweg_client::FinishReason::Stop | thalweg_client::FinishReason::Length => Ok(text.into_string()),
        other => Err(format!("{} ended as {}: {}", generation.id(), other.as_str(), finished.message)),
    }
}
