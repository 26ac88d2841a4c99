//! The run: lives of the node, one after the other, while the crowd goes on.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use thalweg_client::{ChannelOptions, Durability, Position, SessionId};
use thalweg_workload::auditor::ChannelIndex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::Options;
use crate::crowd::{self, CHANNELS, Place, SHORT_MESSAGES, channel_name};
use crate::documents::{self, Marks};
use crate::ledger::Ledger;
use crate::node::{self, Node};

/// Rounds between two lines of progress.
const REPORT_EVERY: u64 = 10;
/// How long a life lasts once the node serves, in milliseconds.
const LIFE_MS: std::ops::Range<u64> = 20..450;
/// The same with a model, which takes longer to say something.
const LIFE_WITH_MODEL_MS: std::ops::Range<u64> = 100..1_500;
/// A node that is killed while it recovers gets so long, in milliseconds.
const RECOVERY_MS: std::ops::Range<u64> = 0..80;
/// How long everybody may take to get everything in the end.
const SETTLE: Duration = Duration::from_secs(60);
/// Messages that the channels keep that keep everything.
const KEEP_ALL: u32 = u32::MAX;

/// How lives ended.
#[derive(Debug, Default)]
struct Ends {
    killed: u64,
    killed_in_recovery: u64,
    drained: u64,
}

/// Runs it all; whether nothing was wrong. An error means that it could not be told.
pub(crate) async fn run(options: &Options) -> Result<bool, String> {
    let directory = scratch(options.seed)?;
    println!("seed {} in {}", options.seed, directory.display());
    let ledger = Ledger::default();
    let result = lives(options, &directory, &ledger).await;
    let sound = match &result {
        Ok(problems) => {
            problems.iter().take(20).for_each(|problem| println!("  {problem}"));
            problems.is_empty()
        }
        Err(_) => false,
    };
    if (sound || options.memory) && !options.keep {
        fs::remove_dir_all(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    } else {
        println!("the data and the node's log are in {}", directory.display());
    }
    result.map(|_| sound)
}

fn scratch(seed: u64) -> Result<PathBuf, String> {
    let path = std::env::temp_dir().join(format!("thalweg-chaos-{}-{seed}", std::process::id()));
    fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(path)
}

async fn lives(options: &Options, directory: &Path, ledger: &Ledger) -> Result<Vec<String>, String> {
    let mut rng = StdRng::seed_from_u64(options.seed);
    let (end, over) = watch::channel(false);
    let place = Place { data: node::data(directory), ledger: ledger.clone(), over, seed: rng.random() };
    let mut node = Node::start(options, directory, rng.random_range(1..=options.cores_max))?;
    node.ready().await?;
    make_channels(&place, options.memory).await?;
    let marks = Marks::default();
    let (mut writers, mut readers) = crowd(&place, options, &marks);

    let (start, mut ends) = (Instant::now(), Ends::default());
    let (mut rounds, mut reported) = (0, 0);
    while rounds < options.rounds && options.budget.is_none_or(|budget| start.elapsed() < budget) {
        let life_ms = if options.model.is_some() { LIFE_WITH_MODEL_MS } else { LIFE_MS };
        sleep(Duration::from_millis(rng.random_range(life_ms))).await;
        if rng.random_ratio(1, 15) {
            node.drain().await?;
            ends.drained += 1;
        } else {
            node.kill()?;
            ends.killed += 1;
        }
        rounds += 1;
        node = Node::start(options, directory, rng.random_range(1..=options.cores_max))?;
        while rounds < options.rounds && rng.random_ratio(1, 4) {
            sleep(Duration::from_millis(rng.random_range(RECOVERY_MS))).await;
            node.kill()?;
            ends.killed_in_recovery += 1;
            rounds += 1;
            node = Node::start(options, directory, rng.random_range(1..=options.cores_max))?;
        }
        node.ready().await?;
        if rounds / REPORT_EVERY > reported || ledger.standing().1 > 0 {
            reported = rounds / REPORT_EVERY;
            report(ledger, rounds, node.cores, start.elapsed());
        }
        if ledger.standing().1 > 0 {
            break;
        }
    }
    let took = start.elapsed();
    // An error means that nobody is left, and then the judge says why.
    let _ = end.send(true);
    let settled = settle(&place, &mut writers, &mut readers).await;
    if let Err(complaint) = node.drain().await {
        ledger.complain(complaint);
    }
    let problems = ledger.judge(settled);
    println!("{} edits of a document acknowledged by {} editors", marks.saved(), documents::EDITORS);
    summary(ledger, rounds, &ends, took, problems.len());
    Ok(problems)
}

async fn make_channels(place: &Place, memory: bool) -> Result<(), String> {
    let client = place.connect(SessionId(rand::random())).await.ok_or("the node lets nobody in")?;
    for channel in (0..CHANNELS).map(ChannelIndex) {
        let keep_messages = if channel.0 + 1 == CHANNELS { SHORT_MESSAGES } else { KEEP_ALL };
        let durability = Some(if memory { Durability::Memory } else { Durability::Disk });
        let options = match memory {
            // Nothing is kept long enough to fill the default.
            true => ChannelOptions { durability, ..ChannelOptions::default() },
            false => {
                ChannelOptions { keep_messages, keep_bytes: 1 << 36, keep_age: None, durability, ..Default::default() }
            }
        };
        let made = client.create_channel(channel_name(channel), options).await;
        made.map_err(|error| format!("making {}: {error}", channel_name(channel)))?;
    }
    client.close().await;
    Ok(())
}

/// Those who begin things, and those who stay to the end.
fn crowd(place: &Place, options: &Options, marks: &Marks) -> (JoinSet<()>, JoinSet<()>) {
    let (mut writers, mut readers) = (JoinSet::new(), JoinSet::new());
    // A model needs what is left of the machine.
    let writing = if options.model.is_some() { 1 } else { 4 };
    for person in 1..=writing {
        writers.spawn_local(crowd::write(place.clone(), person));
    }
    for person in 11..=12 {
        writers.spawn_local(crowd::visit(place.clone(), person));
    }
    writers.spawn_local(crowd::look_up(place.clone(), 21));
    // Documents are on disk whatever channels are, so there is nothing to notice with `--memory`.
    if !options.memory {
        for editor in 0..documents::EDITORS {
            writers.spawn_local(documents::edit(place.clone(), marks.clone(), editor));
        }
    }
    if options.model.is_some() {
        for person in 31..=32 {
            writers.spawn_local(crowd::ask(place.clone(), person));
        }
    }
    for channel in (0..CHANNELS).map(ChannelIndex) {
        readers.spawn_local(crowd::stay(place.clone(), channel));
    }
    (writers, readers)
}

/// Lets everybody come to an end, and has new readers read it all once more; whether that worked in time.
async fn settle(place: &Place, writers: &mut JoinSet<()>, readers: &mut JoinSet<()>) -> bool {
    let ending = async { while writers.join_next().await.is_some() {} };
    if timeout(SETTLE, ending).await.is_err() {
        place.ledger.complain(format!("{} writes were not answered within {SETTLE:?}", place.ledger.open()));
        return false;
    }
    let channels = (0..CHANNELS).map(ChannelIndex);
    channels.clone().for_each(|channel| drop(readers.spawn_local(crowd::stay(place.clone(), channel))));
    let looking_up = async {
        let Some(client) = place.connect(SessionId(rand::random())).await else { return };
        for channel in channels {
            let head = place.ledger.head(channel);
            if let Err(complaint) = crowd::pages(place, &client, channel, Position(0), head, u64::MAX).await {
                place.ledger.complain(complaint);
            }
        }
        client.close().await;
    };
    let waiting = async {
        looking_up.await;
        // Who has something to complain about need not see the end.
        while !place.ledger.is_settled() && place.ledger.standing().1 == 0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let settled = timeout(SETTLE, waiting).await.is_ok();
    if !settled {
        place.ledger.complain(format!("readers did not get everything within {SETTLE:?}"));
    }
    readers.abort_all();
    // The judge is told of everything that arrived: also of what should not have.
    true
}

fn report(ledger: &Ledger, rounds: u64, cores: u64, took: Duration) {
    let (counts, wrong) = ledger.standing();
    println!(
        "{rounds} rounds in {:.0} s, {cores} cores: {} sent, {} acknowledged ({} repeated), {} delivered, {} reconnects, {wrong} wrong",
        took.as_secs_f64(),
        counts.sent,
        counts.acked,
        counts.duplicates,
        counts.delivered,
        counts.reconnects
    );
}

fn summary(ledger: &Ledger, rounds: u64, ends: &Ends, took: Duration, wrong: usize) {
    let (counts, _) = ledger.standing();
    println!(
        "{rounds} rounds in {:.0} s ({:.1} a second): {} killed, {} killed while recovering, {} drained",
        took.as_secs_f64(),
        rounds as f64 / took.as_secs_f64(),
        ends.killed,
        ends.killed_in_recovery,
        ends.drained
    );
    println!(
        "{} messages sent, {} acknowledged, of those {} recognised as repeated; {} of unknown fate",
        counts.sent, counts.acked, counts.duplicates, counts.expired
    );
    println!(
        "{} delivered to {} readers, {} notices of what is no longer kept, {} pages of history, {} reconnects",
        counts.delivered, counts.readers, counts.missed, counts.pages, counts.reconnects
    );
    if counts.answers > 0 {
        println!("{} answers watched, {} tokens, {} rewound", counts.answers, counts.tokens, counts.rewound);
    }
    println!("{wrong} violations");
}
