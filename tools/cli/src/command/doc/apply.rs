//! `thalweg doc apply`: positional operations from standard input.

use std::io::BufRead as _;
use std::time::Duration;

use serde_json::Value;
use thalweg_client::{DocumentEvent, Operation, Operations, Position, TextSession};
use thalweg_protocol::limits::OPERATIONS_MAX;
use tokio::sync::mpsc;

use crate::connect::ConnectArgs;
use crate::duration;
use crate::failure::{Failure, exit};
use crate::plain::print;

/// Lines read ahead of what was sent.
const LINES_AHEAD: usize = 64;

/// Edit by positional operations from standard input, a JSON array a line
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The document; made if there is none
    document: String,
    /// How long to wait for a node that went away
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration::parse)]
    timeout: Duration,
    #[command(flatten)]
    connect: ConnectArgs,
}

const EXAMPLES: &str = "\
Examples:
  echo '[{\"insert\":\"# Notes\\n\"}]' | thalweg doc apply notes
  echo '[{\"retain\":2},{\"delete\":5},{\"insert\":\"Aim\"}]' | thalweg doc apply notes
  echo '{\"revision\":7,\"ops\":[{\"insert\":\"# \"}]}' | thalweg doc apply notes

A line is an array of {\"retain\":n}, {\"insert\":\"text\"} and {\"delete\":n}, from the beginning of the text on; what is left \
of it at the end is kept. Lengths count UTF-16 code units, as browsers do. It is made on the text as it is then, or as it \
was at the revision that is named, and transformed over what others did since. For each line the revision it made is \
printed, once it is durable.";

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let client = args.connect.connect("doc", args.timeout).await?;
    let mut session: TextSession = client.document(args.document.as_str()).open_text().await?;
    let mut lines = read_lines();
    let mut number = 0_u64;
    loop {
        let line = tokio::select! {
            line = lines.recv() => line,
            event = session.next() => {
                refused(event?, number)?;
                continue;
            }
        };
        let Some(line) = line else { return Ok(()) };
        number += 1;
        let line = line.map_err(|error| Failure::failed(format!("reading standard input: {error}")))?;
        if line.trim().is_empty() {
            continue;
        }
        let (revision, operations) =
            parse(&line).map_err(|reason| Failure::usage(format!("line {number} of the input: {reason}")))?;
        let made = match revision {
            Some(revision) => client.edit_document(args.document.as_str(), revision, &operations).await?.position,
            None => {
                session.edit(&operations).map_err(|error| Failure::from(error).during(format!("line {number}")))?;
                session.flush().await.map_err(|error| Failure::from(error).during(format!("line {number}")))?
            }
        };
        print(&made.to_string())?;
    }
}

/// An edit that was refused ends the command; all else is of no interest.
fn refused(event: Option<DocumentEvent>, number: u64) -> Result<(), Failure> {
    match event {
        Some(DocumentEvent::Refused { reject, .. }) => {
            Err(Failure::new(exit::REFUSED, format!("line {number}: the node refused: {reject}")))
        }
        Some(_) => Ok(()),
        None => Err(Failure::new(exit::INCOMPLETE, "the connection was closed")),
    }
}

/// Reads standard input on a thread of its own, which ends with the program.
fn read_lines() -> mpsc::Receiver<std::io::Result<String>> {
    let (sender, lines) = mpsc::channel(LINES_AHEAD);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// What a line says: at which revision, if that is said, and what.
fn parse(line: &str) -> Result<(Option<Position>, Operations), String> {
    let value: Value = serde_json::from_str(line).map_err(|error| format!("not JSON: {error}"))?;
    let (revision, parts) = match &value {
        Value::Array(parts) => (None, parts),
        Value::Object(fields) => {
            let revision = fields.get("revision").and_then(Value::as_u64).filter(|revision| *revision > 0);
            let revision = revision.ok_or("an object needs \"revision\", a number above 0")?;
            let parts = fields.get("ops").and_then(Value::as_array).ok_or("an object needs \"ops\", an array")?;
            (Some(Position(revision)), parts)
        }
        _ => return Err("give an array of operations".to_owned()),
    };
    if parts.len() > OPERATIONS_MAX {
        return Err(format!("{} parts; at most {OPERATIONS_MAX} are allowed: give several lines", parts.len()));
    }
    let parts: Vec<Operation> = parts.iter().map(part).collect::<Result<_, _>>()?;
    Ok((revision, Operations::of(parts)))
}

fn part(value: &Value) -> Result<Operation, String> {
    let what = || format!("{value} is none of {{\"retain\":n}}, {{\"insert\":\"text\"}}, {{\"delete\":n}}");
    let fields = value.as_object().filter(|fields| fields.len() == 1).ok_or_else(what)?;
    let (name, value) = fields.iter().next().ok_or_else(what)?;
    let length = || value.as_u64().and_then(|length| u32::try_from(length).ok()).ok_or_else(what);
    match name.as_str() {
        "retain" => Ok(Operation::Retain(length()?)),
        "delete" => Ok(Operation::Delete(length()?)),
        "insert" => Ok(Operation::Insert(value.as_str().ok_or_else(what)?.to_owned())),
        _ => Err(what()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_or_refused() {
        let check = |line: &str, expected: Option<(Option<u64>, Operations)>| {
            let found =
                parse(line).ok().map(|(revision, operations)| (revision.map(|position| position.0), operations));
            assert_eq!(found, expected, "{line}");
        };
        let edit = Operations::new().retain(2).insert("a👍").delete(3);
        check(r#"[{"retain":2},{"insert":"a👍"},{"delete":3}]"#, Some((None, edit.clone())));
        check(r#"{"revision":7,"ops":[{"retain":2},{"insert":"a👍"},{"delete":3}]}"#, Some((Some(7), edit)));
        check("[]", Some((None, Operations::new())));
        for wrong in [
            "",
            "x",
            "7",
            "{}",
            r#"{"revision":0,"ops":[]}"#,
            r#"[{"retain":-1}]"#,
            r#"[{"retain":1,"delete":1}]"#,
            r#"[{"insert":3}]"#,
            r#"[{"keep":3}]"#,
            r#"[{"retain":4294967296}]"#,
            "[[]]",
        ] {
            check(wrong, None);
        }
    }
}
