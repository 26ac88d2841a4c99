//! `thalweg doc log`: what a document was edited by.

use std::collections::VecDeque;

use serde_json::{Value, json};
use thalweg_client::{Client, GenerationId, LogPage, Position, Record, RecordKind, Replay, Tally};

use super::connected;
use crate::connect::ConnectArgs;
use crate::failure::Failure;
use crate::plain::{print, table};
use crate::timestamp::rfc3339;

/// Print what a document was edited by
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The document
    document: String,
    /// The last N alone
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// One JSON object a line; a model's writing piece by piece
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

const EXAMPLES: &str = "\
Examples:
  thalweg doc log notes --limit 20
  thalweg doc log notes --json | jq 'select(.version)'

JSON:
  {\"revision\":3,\"ts\":\"RFC 3339\",\"user\":\"ada\",\"inserted\":12,\"deleted\":0}
  {\"version\":\"draft\",\"revision\":3,\"ts\":\"RFC 3339\",\"user\":\"ada\"}

An edit has \"generation\" where a model wrote. Characters are counted in UTF-16 code units.";

/// The pages of what a document was edited by, one after the other.
pub(super) struct Pages<'a> {
    client: &'a Client,
    document: &'a str,
    /// Where the next one begins; `None` after the last.
    from: Option<Position>,
}

impl<'a> Pages<'a> {
    pub(super) fn new(client: &'a Client, document: &'a str) -> Self {
        Self { client, document, from: Some(Position(0)) }
    }

    pub(super) async fn next(&mut self) -> Result<Option<LogPage>, Failure> {
        let Some(from) = self.from else { return Ok(None) };
        let page = self.client.document_log(self.document, from, 0).await?;
        if page.next > page.head {
            self.from = None;
        } else if page.next <= from {
            let text = format!("the node broke the protocol: after position {from} it named {} as the next", page.next);
            return Err(Failure::failed(text));
        } else {
            self.from = Some(page.next);
        }
        Ok(Some(page))
    }
}

/// A line of the log.
#[derive(Debug, Clone)]
struct Entry {
    position: Position,
    timestamp_us: u64,
    user: String,
    generation: Option<GenerationId>,
    tally: Tally,
    /// The revision that was named, and the name.
    version: Option<(Position, String)>,
}

impl Entry {
    fn json(&self) -> Value {
        let (ts, user) = (rfc3339(self.timestamp_us), &self.user);
        let mut line = match &self.version {
            Some((revision, name)) => json!({ "version": name, "revision": revision.0, "ts": ts, "user": user }),
            None => json!({
                "revision": self.position.0, "ts": ts, "user": user, "inserted": self.tally.inserted,
                "deleted": self.tally.deleted,
            }),
        };
        if let Some(generation) = self.generation {
            line["generation"] = json!(generation.to_string());
        }
        line
    }

    fn row(&self) -> Vec<String> {
        let Tally { inserted, deleted } = self.tally;
        let (change, what) = match (&self.version, self.generation) {
            (Some((revision, name)), _) => (String::new(), format!("revision {revision} is {name:?}")),
            (None, generation) => {
                (format!("+{inserted} -{deleted}"), generation.map_or(String::new(), |id| format!("AI {id}")))
            }
        };
        // To the second: people do not read further.
        let time = rfc3339(self.timestamp_us);
        let time = format!("{} {}", &time[..10], &time[11..19]);
        vec![self.position.to_string(), time, self.user.clone(), change, what]
    }
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let client = connected(&args.connect).await?;
    let limit = args.limit.unwrap_or(usize::MAX);
    let mut entries: VecDeque<Entry> = VecDeque::new();
    let mut replay = Replay::default();
    let mut pages = Pages::new(&client, &args.document);
    while let Some(page) = pages.next().await? {
        for record in page.records {
            let Some(entry) = entry(&mut replay, record)? else { continue };
            match entries.back_mut() {
                // What a model wrote in one go is one line for people.
                Some(last) if !args.json && last.generation.is_some() && last.generation == entry.generation => {
                    last.tally.inserted += entry.tally.inserted;
                    last.tally.deleted += entry.tally.deleted;
                    (last.position, last.timestamp_us) = (entry.position, entry.timestamp_us);
                }
                _ => entries.push_back(entry),
            }
            if entries.len() > limit {
                entries.pop_front();
            }
        }
    }
    if args.json {
        return entries.iter().try_for_each(|entry| print(&entry.json().to_string()));
    }
    let rows: Vec<_> = entries.iter().map(Entry::row).collect();
    table(&["REVISION", "TIME (UTC)", "USER", "CHARACTERS", ""], &rows)
}

/// The line of a record; `None` if it is nothing for people. How much it put in and took out shows when it is done again.
fn entry(replay: &mut Replay, record: Record) -> Result<Option<Entry>, Failure> {
    let Record { position, timestamp_us, user, generation, kind } = record;
    let mut entry =
        Entry { position, timestamp_us, user: user.to_string(), generation, tally: Tally::default(), version: None };
    match kind {
        RecordKind::Edit(update) => entry.tally = Tally::of(&replay.apply(&update)?),
        RecordKind::Version { revision, name } => entry.version = Some((revision, name)),
        _ => return Ok(None),
    }
    Ok(Some(entry))
}
