//! `thalweg embed`: texts to vectors.

use std::io::BufRead as _;
use std::time::Duration;

use serde_json::json;
use thalweg_client::{Client, Name};
use thalweg_protocol::limits::PROMPT_BYTES_MAX;

use crate::connect::{ConnectArgs, block_on};
use crate::failure::Failure;
use crate::plain::print;

/// How long to wait for a node that went away.
const PATIENCE: Duration = Duration::from_secs(30);
/// Texts of one request: enough for the model to work at its pace, and few enough for others to have their turn.
const BATCH: usize = 32;

/// Turn texts into vectors: texts about the same have vectors that point the same way
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The texts; `-` reads them from standard input, a text a line
    #[arg(required = true, value_name = "TEXT|-")]
    texts: Vec<String>,
    /// Which model [default: the node's first that makes embeddings]
    #[arg(long, short, value_name = "M")]
    model: Option<String>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

const EXAMPLES: &str = "\
Examples:
  thalweg embed 'how do I reset my password'
  thalweg embed - --json < questions.txt > vectors.jsonl

Prints a line of numbers for each text, in their order; its length as a vector is 1. A text that has more tokens than the
model takes is refused, not cut.
JSON: {\"index\":0,\"model\":\"M\",\"vector\":[…]}";

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    crate::connect::log_to_stderr(false, "warn");
    let model = args.model.as_deref().map(Name::new).transpose();
    let model = model.map_err(|error| Failure::usage(format!("the model's name {error}")))?;
    let from_input = args.texts == ["-"];
    block_on(async {
        let client = args.connect.connect("embed", PATIENCE).await?;
        let mut out = Vectors { client: &client, model, json: args.json, done: 0 };
        let mut batch = Batch::default();
        if from_input {
            for line in std::io::stdin().lock().lines() {
                let line = line.map_err(|error| Failure::failed(format!("reading standard input: {error}")))?;
                if let Some(full) = batch.add(line) {
                    out.print(full).await?;
                }
            }
        } else {
            for text in args.texts {
                if let Some(full) = batch.add(text) {
                    out.print(full).await?;
                }
            }
        }
        out.print(batch.texts).await?;
        client.close().await;
        Ok(())
    })
}

/// Texts that go into one request.
#[derive(Default)]
struct Batch {
    texts: Vec<String>,
    bytes: usize,
}

impl Batch {
    /// Adds a text; gives those before it if they make a request.
    fn add(&mut self, text: String) -> Option<Vec<String>> {
        let full = self.texts.len() == BATCH || !self.texts.is_empty() && self.bytes + text.len() > PROMPT_BYTES_MAX;
        let before = full.then(|| std::mem::take(self).texts);
        self.bytes += text.len();
        self.texts.push(text);
        before
    }
}

struct Vectors<'a> {
    client: &'a Client,
    model: Option<Name>,
    json: bool,
    /// Texts that were printed.
    done: usize,
}

impl Vectors<'_> {
    async fn print(&mut self, texts: Vec<String>) -> Result<(), Failure> {
        if texts.is_empty() {
            return Ok(());
        }
        let made = self.client.embed(self.model.clone(), texts).await?;
        for vector in made.vectors() {
            let line = match self.json {
                true => json!({"index": self.done, "model": made.model.as_str(), "vector": vector}).to_string(),
                false => vector.iter().map(f32::to_string).collect::<Vec<_>>().join(" "),
            };
            print(&line)?;
            self.done += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_hold_what_they_may() {
        let check = |texts: &[usize], expected: &[usize]| {
            let mut batch = Batch::default();
            let mut sizes: Vec<usize> =
                texts.iter().filter_map(|&len| batch.add("x".repeat(len))).map(|b| b.len()).collect();
            sizes.push(batch.texts.len());
            assert_eq!(sizes, expected, "{texts:?}");
        };
        check(&[], &[0]);
        check(&[0, 5, 0], &[3]);
        check(&[1; 2 * BATCH + 1], &[BATCH, BATCH, 1]);
        check(&[PROMPT_BYTES_MAX, 1, PROMPT_BYTES_MAX], &[1, 1, 1]);
    }
}
