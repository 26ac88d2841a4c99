//! `thalweg doc watch`: edits as they come.

use std::time::Duration;

use serde_json::{Value, json};
use thalweg_client::{Document, DocumentEvent, Operation, Operations, TextChange};

use crate::connect::ConnectArgs;
use crate::duration;
use crate::failure::{Failure, exit};
use crate::plain::{harmless_line, print};
use crate::timestamp::rfc3339;

/// Characters of an edit that a line shows.
const SHOWN: usize = 60;

/// Print edits as they come
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The document
    document: String,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Edits to wait for, and then end
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// How long to wait for a node that went away
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration::parse)]
    timeout: Duration,
    #[command(flatten)]
    connect: ConnectArgs,
}

const EXAMPLES: &str = "\
Examples:
  thalweg doc watch notes
  thalweg doc watch notes --json --count 1     wait for the next edit

JSON:
  {\"revision\":9,\"ts\":…,\"user\":\"ada\",\"ops\":[{\"retain\":3},{\"insert\":\"x\"}]}
  {\"version\":\"draft\",\"revision\":9,\"user\":\"ada\"}
  {\"here\":[\"ada\",\"grace\"]}
  {\"event\":\"offline\"}, {\"event\":\"online\"}

An edit has \"generation\" where a model wrote; its \"ts\" is a time as in RFC 3339, its \"user\" null where several edits come \
as one.";

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let client = args.connect.connect("doc", args.timeout).await?;
    let mut document: Document = client.document(args.document.as_str()).make(false).open().await?;
    let mut left = args.count.unwrap_or(u64::MAX);
    let mut text = document.text();
    let mut here: Vec<String> = Vec::new();
    while left > 0 {
        let Some(event) = document.next().await? else {
            return Err(Failure::new(exit::INCOMPLETE, "the connection was closed"));
        };
        match event {
            DocumentEvent::Changed(change) if change.operations.is_empty() => {}
            DocumentEvent::Changed(change) => {
                left -= 1;
                let line = if args.json { json_of(&change).to_string() } else { line_of(&change, &text) };
                print(&line)?;
                text = document.text();
            }
            DocumentEvent::Version { name, revision, user, .. } => {
                let line = match args.json {
                    true => json!({ "version": name, "revision": revision.0, "user": user.as_str() }).to_string(),
                    false => harmless_line(&format!("{user}: revision {revision} is {name:?}")),
                };
                print(&line)?;
            }
            DocumentEvent::Others => {
                let now: Vec<String> = document.others().into_iter().map(|other| other.name).collect();
                if now != here {
                    let line = match args.json {
                        true => json!({ "here": now }).to_string(),
                        false => harmless_line(&format!("here: {}", now.join(", "))),
                    };
                    print(&line)?;
                    here = now;
                }
            }
            DocumentEvent::Offline { .. } | DocumentEvent::Online if args.json => {
                let what = if matches!(event, DocumentEvent::Online) { "online" } else { "offline" };
                print(&json!({ "event": what }).to_string())?;
            }
            DocumentEvent::Offline { reason } => eprintln!("thalweg: the node is away: {reason}"),
            DocumentEvent::Online => eprintln!("thalweg: the node is back"),
            DocumentEvent::Saved { .. } | DocumentEvent::Refused { .. } => {}
        }
    }
    Ok(())
}

fn parts(operations: &Operations) -> Value {
    let part = |part: &Operation| match part {
        Operation::Retain(length) => json!({ "retain": length }),
        Operation::Insert(text) => json!({ "insert": text }),
        Operation::Delete(length) => json!({ "delete": length }),
    };
    operations.parts().iter().map(part).collect()
}

fn json_of(change: &TextChange) -> Value {
    let ts = (change.timestamp_us != 0).then(|| rfc3339(change.timestamp_us));
    let mut line = json!({
        "revision": change.revision.0, "ts": ts, "user": change.user.as_ref().map(|user| user.as_str()),
        "ops": parts(&change.operations),
    });
    if let Some(generation) = change.generation {
        line["generation"] = json!(generation.to_string());
    }
    line
}

/// `9 ada 12:3 +"text" -4`: the revision, who, line and column of the first change, what was put in and taken out.
fn line_of(change: &TextChange, before: &str) -> String {
    let mut at = 0_usize;
    if let Some(Operation::Retain(length)) = change.operations.parts().first() {
        at = *length as usize;
    }
    let (mut line, mut column, mut units) = (1, 1, 0);
    for c in before.chars() {
        if units >= at {
            break;
        }
        units += c.len_utf16();
        (line, column) = if c == '\n' { (line + 1, 1) } else { (line, column + 1) };
    }
    let mut done = String::new();
    for part in change.operations.parts() {
        match part {
            Operation::Retain(_) => {}
            Operation::Insert(text) => {
                let shown: String = text.chars().take(SHOWN).collect();
                let more = if shown.len() < text.len() { "…" } else { "" };
                done += &format!(" +{shown:?}{more}");
            }
            Operation::Delete(length) => done += &format!(" -{length}"),
        }
    }
    let user = change.user.as_ref().map_or("several", |user| user.as_str());
    harmless_line(&format!("{} {user} {line}:{column}{done}", change.revision))
}

#[cfg(test)]
mod tests {
    use thalweg_client::{Name, Position};

    use super::*;

    #[test]
    fn an_edit_is_a_line() {
        let change = TextChange {
            operations: Operations::new().retain(5).insert("new\n").delete(2),
            revision: Position(9),
            timestamp_us: 1,
            user: Name::new("ada").ok(),
            generation: None,
        };
        assert_eq!(line_of(&change, "one\ntwo\n"), "9 ada 2:2 +\"new\\n\" -2");
        let line = json_of(&change);
        assert_eq!(line["ops"], json!([{ "retain": 5 }, { "insert": "new\n" }, { "delete": 2 }]));
        assert_eq!((&line["revision"], &line["user"]), (&json!(9), &json!("ada")));
    }
}
