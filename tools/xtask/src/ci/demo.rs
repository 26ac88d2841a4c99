//! The README's first command, as a program sees it: no terminal, a fresh data directory, real words of a real model.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::outcome::Outcome;

/// Far longer than the slowest machine needs; a demo that hangs must not hold the build machine for ever.
const TIME_MAX: Duration = Duration::from_secs(300);
/// How often to look whether it ended.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Fewer words of the model than this are no answer.
const WORDS_MIN: usize = 3;

/// Runs `thalweg demo` and reads what the model said in it.
pub(super) fn run(mut thalweg: Command) -> Result<Outcome> {
    let data = std::env::temp_dir().join(format!("thalweg-ci-demo-{}", std::process::id()));
    std::fs::create_dir_all(&data).with_context(|| format!("making {}", data.display()))?;
    for name in ["THALWEG_SERVER", "THALWEG_TOKEN", "THALWEG_DATA"] {
        thalweg.env_remove(name);
    }
    let spawned = thalweg.args(["demo", "--data"]).arg(&data).stdout(Stdio::piped()).spawn();
    let mut child = spawned.context("cannot run thalweg demo")?;
    let mut output = child.stdout.take().context("thalweg demo has no output")?;
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        output.read_to_end(&mut bytes).map(|_| bytes)
    });
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().context("waiting for thalweg demo")? {
            break status;
        }
        if start.elapsed() > TIME_MAX {
            child.kill().context("ending thalweg demo")?;
            child.wait().context("waiting for thalweg demo")?;
            bail!("thalweg demo did not end within {} s", TIME_MAX.as_secs());
        }
        std::thread::sleep(LOOK_EVERY);
    };
    let bytes = reader.join().expect("the reader does not panic").context("reading the output of thalweg demo")?;
    let transcript = String::from_utf8_lossy(&bytes);
    println!("{transcript}");
    std::fs::remove_dir_all(&data).with_context(|| format!("removing {}", data.display()))?;
    if !status.success() {
        bail!("thalweg demo ended with {status}");
    }
    match words_of_model(&transcript) {
        words if words < WORDS_MIN => {
            bail!("the model said {words} words in the demo; at least {WORDS_MIN} are an answer")
        }
        words => Ok(Outcome::passed_with(format!("the model said {words} words"))),
    }
}

/// Counts the words of the model in a transcript: lines whose speaker is `ai` or `ai/` and a model, and the lines that follow until somebody
/// else speaks. A speaker is a word with a colon at the begin of a line, perhaps behind a time.
fn words_of_model(transcript: &str) -> usize {
    let (mut count, mut speaking) = (0, false);
    for line in transcript.lines() {
        let mut words = line.split_whitespace().peekable();
        words.next_if(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains(':'));
        if let Some(speaker) = words.next_if(|word| word.ends_with(':')) {
            let speaker = speaker.trim_end_matches(':');
            speaking = speaker == "ai" || speaker.starts_with("ai/");
        }
        if speaking {
            count += words.filter(|word| word.contains(char::is_alphanumeric)).count();
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_models_words_are_told_from_others() {
        let check = |transcript: &str, expected: usize| {
            assert_eq!(words_of_model(transcript), expected, "{transcript}");
        };
        check("", 0);
        check("ada: hello there everyone", 0);
        check("ada: @ai what is QUIC?\nai: A transport - over UDP.", 4);
        check("12:30:01 ai: one two\n three\nbob: four", 3);
        check("ai/smollm2-135m: one two three", 3);
        check("air: one two three", 0);
        check("ai:\none two\n", 2);
    }
}
