//! `thalweg doc put`: a document that reads like a file.

use std::io::Read as _;

use thalweg_client::{Client, ClientError, Document, Operation, Operations, Position, ReadForm, Tally};
use thalweg_protocol::limits::DOCUMENT_BYTES_MAX;

use super::{connected, diffs};
use crate::connect::ConnectArgs;
use crate::failure::{During as _, Failure, exit};
use crate::plain::say;

/// A document that may become as large as this is measured before it is edited.
const MEASURED_BYTES: usize = DOCUMENT_BYTES_MAX / 2;
/// Bytes that a part of an edit costs in a document besides its text, at most.
const PART_BYTES: usize = 48;
/// A long insertion is made in pieces of so many bytes at least.
const PIECE_BYTES: usize = 32 << 10;

/// Edit a document so that it reads like a file; what is the same stays, and with it others' cursors
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Its name; made if there is none
    document: String,
    /// The file; `-` reads standard input
    file: String,
    #[command(flatten)]
    connect: ConnectArgs,
}

const EXAMPLES: &str = "\
Examples:
  thalweg doc put notes notes.md
  thalweg doc get notes | sed 's/tea/coffee/' | thalweg doc put notes -

A text that the document has no room for changes nothing. A long one is edited in several pieces: should one of them be \
refused, it is said at which revision the document was left, and how to take that back.";

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    // Before the node is asked anything.
    let text = text_of(&args.file)?;
    let client = connected(&args.connect).await?;
    let name = args.document.as_str();
    let mut document: Document = client.document(name).open().await?;
    let before = document.revision();
    let current = document.text();
    let edits = diffs::edits(&current, &text);
    if edits.is_empty() {
        return say(&format!("{name} reads so already; it is revision {before}"));
    }
    let Tally { inserted, deleted } = Tally::of(&edits);
    let written = match fits(&client, name, &current, &edits).await {
        Ok(()) => write(&mut document, &edits).await.map_err(Failure::from),
        Err(failure) => Err(failure),
    };
    match written {
        Ok(revision) => say(&format!("{name} is revision {revision} (+{inserted} -{deleted})")),
        Err(failure) => Err(left_at(&client, name, before, failure).await),
    }
}

/// The text of a file, or of standard input.
fn text_of(file: &str) -> Result<String, Failure> {
    // One byte more than there may be shows that there is more.
    let limit = DOCUMENT_BYTES_MAX as u64 + 1;
    let mut bytes = Vec::new();
    let read = match file {
        "-" => std::io::stdin().lock().take(limit).read_to_end(&mut bytes),
        path => std::fs::File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes)),
    };
    read.during(if file == "-" { "reading standard input" } else { file })?;
    if bytes.len() > DOCUMENT_BYTES_MAX {
        return Err(Failure::failed(format!("{file} is longer than a document may be: {DOCUMENT_BYTES_MAX} bytes")));
    }
    String::from_utf8(bytes).map_err(|error| {
        Failure::failed(format!("{file} is not text: byte {} is not UTF-8", error.utf8_error().valid_up_to()))
    })
}

/// Bytes that edits put into a text and take out of it, with what the parts cost besides.
fn bytes_of(text: &str, edits: &Operations) -> (usize, usize) {
    let (mut inserted, mut deleted) = (0, 0);
    let mut rest = text.chars();
    let mut units = |length: u32| {
        let (mut left, mut bytes) = (length as usize, 0);
        while left > 0 {
            let Some(c) = rest.next() else { break };
            left = left.saturating_sub(c.len_utf16());
            bytes += c.len_utf8();
        }
        bytes
    };
    for part in edits.parts() {
        match part {
            Operation::Retain(length) => drop(units(*length)),
            Operation::Insert(text) => inserted += text.len() + PART_BYTES * (1 + text.len() / PIECE_BYTES),
            Operation::Delete(length) => {
                deleted += units(*length);
                inserted += PART_BYTES;
            }
        }
    }
    (inserted, deleted)
}

/// Refuses edits that the document has no room for, before any of them is made.
async fn fits(client: &Client, name: &str, text: &str, edits: &Operations) -> Result<(), Failure> {
    let (inserted, deleted) = bytes_of(text, edits);
    if text.len() + inserted <= MEASURED_BYTES || inserted <= deleted {
        return Ok(());
    }
    // All of it, with what is no text and what is remembered of what was deleted.
    let bytes = client.read_document(name, Position(0), ReadForm::State).await?.bytes.len();
    let needed = (bytes + inserted).saturating_sub(deleted);
    if needed <= DOCUMENT_BYTES_MAX {
        return Ok(());
    }
    let text = format!(
        "{name} would have {needed} bytes with this text, what it remembers of its past among them, and may have \
         {DOCUMENT_BYTES_MAX}; nothing was changed"
    );
    Err(Failure::new(exit::REFUSED, text))
}

/// What edits take out, and what they put into what is left then.
fn parted(edits: &Operations) -> (Operations, Operations) {
    let deletes = edits.parts().iter().filter(|part| !matches!(part, Operation::Insert(_)));
    let inserts = edits.parts().iter().filter(|part| !matches!(part, Operation::Delete(_)));
    (Operations::of(deletes.cloned()), Operations::of(inserts.cloned()))
}

/// Makes the edits: what is taken out first, so that there is room for what is put in.
async fn write(document: &mut Document, edits: &Operations) -> Result<Position, ClientError> {
    let (deletes, inserts) = parted(edits);
    for edits in [deletes, inserts] {
        if !edits.is_empty() {
            drop(document.edit(&edits)?);
        }
    }
    document.flush().await
}

/// Says how a document was left that some of the edits were made in.
async fn left_at(client: &Client, name: &str, before: Position, failure: Failure) -> Failure {
    let Ok(now) = client.read_document(name, Position(0), ReadForm::Text).await else { return failure };
    if now.revision <= before {
        return failure;
    }
    let back = match before {
        Position(0) => format!("`thalweg doc rm {name}` takes it away again"),
        before => format!("`thalweg doc restore {name} {before}` takes that back"),
    };
    let Failure { exit, message } = failure;
    Failure::new(exit, format!("{message}; {name} was left half changed, at revision {}: {back}", now.revision))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_out_goes_first() {
        let check = |before: &str, after: &str, bytes: (usize, usize)| {
            let edits = diffs::edits(before, after);
            let (deletes, inserts) = parted(&edits);
            let between = deletes.apply(before).expect("it fits");
            assert!(between.len() <= before.len().min(after.len()), "{between:?}");
            assert_eq!(inserts.apply(&between).expect("it fits"), after);
            let (inserted, deleted) = bytes_of(before, &edits);
            assert_eq!((inserted % PART_BYTES, deleted), bytes, "{before:?} {after:?}");
        };
        check("", "new\n", (4, 0));
        check("old\n", "", (0, 4));
        check("one\ntwo\nthree\n", "one\n2\nthree\nfour 👍\n", (1 + 10, 3));
        check("日本\n👍\n", "日本\n👎\n", (4, 4));
    }
}
