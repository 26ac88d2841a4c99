//! `thalweg edit`: a document over the whole terminal, or what a model shall do in it.

use std::io::{Write as _, stdout};
use std::time::Duration;

use serde_json::json;
use thalweg_client::{
    AsName as _, AskInDocument, Client, Document, DocumentAccess, FinishReason, Generation, GenerationId, Name, Part,
    Position, Text, utf16_len,
};
use thalweg_protocol::limits::DOCUMENT_CONTEXT_BYTES;
use thalweg_term::Ends;

use crate::command::chat::theme;
use crate::connect::{ConnectArgs, block_on};
use crate::failure::{Failure, exit, output};
use crate::lines;
use crate::plain::harmless;

/// How long to wait for a node that went away, for somebody who looks at it and can leave.
const RECONNECT_SEEN: Duration = Duration::from_secs(7 * 24 * 3_600);
/// The same for a script.
const RECONNECT: Duration = Duration::from_secs(30);
/// How long a model that was asked may take to say that it begins, once it is to be stopped.
const FAREWELL: Duration = Duration::from_secs(2);

/// Edit a document together with others and models
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The document; made if there is none
    document: String,
    /// No editor: have a model do this, print what it writes, and end
    #[arg(long, value_name = "INSTRUCTION")]
    ai: Option<String>,
    /// With --ai: write at the end of this line
    #[arg(long, value_name = "LINE", requires = "ai", conflicts_with = "lines", value_parser = clap::value_parser!(u32).range(1..))]
    at: Option<u32>,
    /// With --ai: write these lines anew
    #[arg(long, value_name = "A-B", requires = "ai", value_parser = parse_lines)]
    lines: Option<(u32, u32)>,
    /// With --ai: which model [default: the node's first]
    #[arg(long, short, value_name = "M", requires = "ai")]
    model: Option<String>,
    /// With --ai: most tokens to write [default: the node's]
    #[arg(long, value_name = "N", requires = "ai", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,
    /// With --ai: one JSON object a line, as `thalweg ask --json` prints them
    #[arg(long, requires = "ai")]
    json: bool,
    /// How it looks [default: plain if NO_COLOR is set, else dark]
    #[arg(long, value_parser = ["dark", "light", "plain"])]
    theme: Option<String>,
    #[command(flatten)]
    connect: ConnectArgs,
}

const EXAMPLES: &str = "\
Examples:
  thalweg edit notes                       everybody's cursors; F1 shows the keys
  thalweg edit notes --server node:4433    the same from another machine
  thalweg edit notes --ai \"tighten this paragraph\" --lines 3-7
  thalweg edit notes --ai \"write a title\" --at 1

Everything is saved as you type. Edits made while the node is away are kept as long as the editor runs, and merged when it \
is back; who leaves before that is asked, and can keep a copy in a file.

In the editor Ctrl-A asks the AI about the selection, or to write at the cursor; Esc stops it, Ctrl-Z takes back all that \
it wrote. A line `@ai …` in the text asks it too, from any editor. Without --at and --lines, --ai writes the whole document \
anew, if it is short. Scripts edit with `thalweg doc`.";

fn parse_lines(text: &str) -> Result<(u32, u32), String> {
    let what = "give two numbers of lines, the first and the last, like 3-7";
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.trim().parse::<u32>().ok().filter(|number| *number > 0);
    let pair = number(from).zip(number(to)).ok_or(what)?;
    if pair.0 <= pair.1 { Ok(pair) } else { Err(what.to_owned()) }
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    crate::connect::log_to_stderr(false, if args.ai.is_some() { "warn" } else { "error" });
    if args.ai.is_some() {
        return block_on(ask(args));
    }
    if let Some(obstacle) = thalweg_term::obstacle() {
        return Err(Failure::usage(format!(
            "edit takes the whole terminal, but {obstacle}; scripts use `thalweg doc get` and `thalweg doc put`, or \
             `thalweg edit {} --ai INSTRUCTION`",
            args.document
        )));
    }
    block_on(async {
        let client = args.connect.connect("edit", RECONNECT_SEEN).await?;
        let document: Document = client.document(args.document.as_str()).open().await?;
        thalweg_term::edit(document, theme(args.theme.as_deref())).await.map_err(|error| match error {
            thalweg_term::TermError::Unsaved { .. } => Failure::new(exit::INCOMPLETE, error.to_string()),
            thalweg_term::TermError::Ended(error) => error.into(),
            error => Failure::failed(error.to_string()),
        })
    })
}

/// Where in a text lines begin and end, in UTF-16 code units: from the first character of the first to the end of the last.
fn place_of_lines(text: &str, (first, last): (u32, u32)) -> Option<(u32, u32)> {
    let (mut at, mut from) = (0, None);
    for (number, line) in (1..).zip(text.split('\n')) {
        if number == first {
            from = Some(at);
        }
        let end = at + utf16_len(line.strip_suffix('\r').unwrap_or(line));
        if number == last {
            return from.map(|from| (from, end));
        }
        at += utf16_len(line) + 1;
    }
    None
}

/// Where the model shall write.
fn place(args: &Args, text: &str) -> Result<(u32, u32), Failure> {
    let count = text.split('\n').count();
    let missing = || Failure::usage(format!("{} has {count} lines", args.document));
    match (args.at, args.lines) {
        (Some(line), _) => place_of_lines(text, (line, line)).map(|(_, end)| (end, end)).ok_or_else(missing),
        (None, Some(lines)) => place_of_lines(text, lines).ok_or_else(missing),
        (None, None) if text.len() <= DOCUMENT_CONTEXT_BYTES => Ok((0, utf16_len(text))),
        (None, None) => Err(Failure::usage(format!(
            "{} is too long to be written anew as a whole; say which lines are meant, like --lines 1-{}",
            args.document,
            count.min(20)
        ))),
    }
}

async fn ask(args: Args) -> Result<(), Failure> {
    let model = args.model.as_deref().map(|model| model.as_name("model")).transpose()?;
    let client = args.connect.connect("edit", RECONNECT).await?;
    // Opening it makes it, and says what may be done; the text is that of one revision.
    let document: Document = client.document(args.document.as_str()).open().await?;
    let made = document.made();
    let mut ends = Ends::new().map_err(|error| Failure::failed(format!("signals: {error}")))?;
    let begun = begin(&client, &args, document, model);
    tokio::pin!(begun);
    let (asked, stops) = tokio::select! {
        asked = &mut begun => (asked, false),
        // It may have begun already.
        () = ends.any() => match tokio::time::timeout(FAREWELL, begun).await {
            Ok(asked) => (asked, true),
            Err(_) => return Err(Failure::new(exit::INCOMPLETE, "stopped before a model began")),
        },
    };
    let (generation, model) = match asked {
        Ok(asked) => asked,
        Err(failure) => {
            if made {
                unmake(&client, &args.document).await;
            }
            return Err(failure);
        }
    };
    if !args.json {
        eprintln!("{generation} {model} writes in {}", args.document);
    }
    let answer = client.watch(generation, 0, None).await?;
    let finished = tokio::select! {
        finished = follow(answer, args.json) => finished?,
        () = async { if !stops { ends.any().await } } => {
            client.cancel(generation).await?;
            let text = format!("stopped; what it wrote stays in {}: `thalweg doc log {0}` shows it", args.document);
            return Err(Failure::new(exit::INCOMPLETE, text));
        }
    };
    outcome(&client, &args, finished).await
}

/// Asks the model.
async fn begin(
    client: &Client,
    args: &Args,
    mut document: Document,
    model: Option<Name>,
) -> Result<(GenerationId, String), Failure> {
    if document.access() != DocumentAccess::Write {
        let text = format!("you may {} {}, not write in it", document.access().as_str(), args.document);
        return Err(Failure::new(exit::REFUSED, text));
    }
    let (from, to) = place(args, &document.text())?;
    let ask = document.ask_at(from, to, args.ai.clone().unwrap_or_default());
    let ask = AskInDocument { model, max_tokens: args.max_tokens.unwrap_or(0), ..ask };
    drop(document);
    Ok(client.ask_in_document(ask).await?)
}

/// Takes a document back that was made for a model which does not write, unless somebody else wrote in it already.
async fn unmake(client: &Client, document: &str) {
    if client.read_text(document, Position(0)).await.is_ok_and(|(_, text)| text.is_empty()) {
        // Why there is no text is what is told.
        drop(client.delete_channel(document).await);
    }
}

/// Prints what a model writes, as it does.
async fn follow(mut answer: Generation, json: bool) -> Result<(Text, thalweg_client::Finished), Failure> {
    if json {
        crate::plain::print(&lines::asked(&answer))?;
    }
    let mut text = Text::default();
    while let Some(part) = answer.next().await? {
        text.take(&part);
        let Part::Piece(piece) = &part else { continue };
        let mut out = stdout().lock();
        let written = match json {
            true => writeln!(out, "{}", json!({ "index": piece.index, "token": piece.text })),
            false => write!(out, "{}", harmless(&piece.text)),
        };
        written.and_then(|()| out.flush()).map_err(|error| output(&error))?;
    }
    let finished = answer.finished().cloned().expect("next() gives None only when it is finished");
    Ok((text, finished))
}

/// Says how it ended.
async fn outcome(
    client: &Client,
    args: &Args,
    (text, finished): (Text, thalweg_client::Finished),
) -> Result<(), Failure> {
    let tokens = finished.usage.completion_tokens;
    let revision =
        client.read_document(args.document.as_str(), Position(0), thalweg_client::ReadForm::Text).await?.revision;
    if args.json {
        let line = json!({
            "text": text.as_str(), "finish_reason": finished.reason.as_str(), "revision": revision.0,
            "tokens": tokens, "error": finished.message,
        });
        crate::plain::print(&line.to_string())?;
    } else {
        println!();
    }
    match finished.reason {
        FinishReason::Failed => Err(Failure::failed(format!("the model failed: {}", finished.message))),
        FinishReason::Cancelled => {
            Err(Failure::new(exit::INCOMPLETE, format!("somebody stopped it after {tokens} tokens, which stay")))
        }
        _ if args.json => Ok(()),
        _ => {
            eprintln!("{tokens} tokens; {} is at revision {revision}", args.document);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found() {
        let check = |text: &str, lines: (u32, u32), expected: Option<(u32, u32)>| {
            assert_eq!(place_of_lines(text, lines), expected, "{text:?} {lines:?}");
        };
        check("", (1, 1), Some((0, 0)));
        check("one\ntwo\nthree", (1, 1), Some((0, 3)));
        check("one\ntwo\nthree", (2, 3), Some((4, 13)));
        check("one\r\ntwo\r\n", (2, 2), Some((5, 8)));
        check("👍\n日", (2, 2), Some((3, 4)));
        check("one", (2, 2), None);
        check("one\ntwo", (1, 3), None);
    }
}
