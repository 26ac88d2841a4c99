//! A conversation as a person reads it: names, messages, and answers that grow while they are written.

use std::collections::VecDeque;
use std::io::Write;

use thalweg_client::{Change, ChangeKind, GenerationId, Item, Message};

use crate::plain::harmless;

/// Answers followed at a time; the oldest beyond that is shown whole, when it is finished.
const ANSWERS_MAX: usize = 64;

/// An answer that is followed from its first token.
#[derive(Debug)]
struct Answer {
    id: GenerationId,
    begun: bool,
}

/// Writes items of one channel as lines.
#[derive(Debug)]
pub(crate) struct Transcript<W> {
    out: W,
    colours: bool,
    answers: VecDeque<Answer>,
    /// The answer whose line is not ended.
    open: Option<GenerationId>,
}

impl<W: Write> Transcript<W> {
    pub(crate) fn new(out: W, colours: bool) -> Self {
        Self { out, colours, answers: VecDeque::new(), open: None }
    }

    /// Shows what happened in the channel.
    pub(crate) fn item(&mut self, item: &Item) -> std::io::Result<()> {
        match item {
            Item::Message(message) => self.message(message),
            Item::GenerationStarted { generation, .. } => {
                if self.answers.len() == ANSWERS_MAX {
                    self.answers.pop_front();
                }
                self.answers.push_back(Answer { id: *generation, begun: false });
                Ok(())
            }
            Item::Tokens { generation, user, text, .. } => {
                self.tokens(*generation, user.as_str(), &String::from_utf8_lossy(text))
            }
            Item::GenerationEnded { generation, user, reason, .. } => {
                self.forget(*generation);
                self.notice(&format!("{user}: {reason}"))
            }
            Item::Change(change) => self.change(change),
            // A transcript says what was said.
            Item::Presence(_) | Item::Typing { .. } => Ok(()),
            Item::Missed { from, to } => self.notice(&format!("messages {from} to {to} are missing")),
            Item::Rewound { to } => {
                self.notice(&format!("the node came back with less than it had; messages after {to} are gone"))
            }
        }
    }

    /// Shows a line of our own, which the node does not echo.
    pub(crate) fn said(&mut self, user: &str, text: &str) -> std::io::Result<()> {
        self.end_line()?;
        self.line(user, text)
    }

    /// Shows a remark that nobody said.
    pub(crate) fn notice(&mut self, text: &str) -> std::io::Result<()> {
        self.end_line()?;
        let (dim, reset) = if self.colours { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
        writeln!(self.out, "{dim}({}){reset}", harmless(text))?;
        self.out.flush()
    }

    fn message(&mut self, message: &Message) -> std::io::Result<()> {
        // An answer that was followed is on the screen already.
        if let Some(id) = message.generation
            && self.forget(id)
        {
            return if self.open == Some(id) { self.end_line() } else { Ok(()) };
        }
        self.end_line()?;
        self.line(message.user.as_str(), &String::from_utf8_lossy(&message.body))
    }

    fn change(&mut self, change: &Change) -> std::io::Result<()> {
        let user = change.user.as_str();
        match &change.kind {
            ChangeKind::Edited { body, redacted: false, target, .. } => {
                self.notice(&format!("{user} changed message {target}: {}", String::from_utf8_lossy(body)))
            }
            ChangeKind::Edited { .. } => Ok(()),
            ChangeKind::Redacted { target } => self.notice(&format!("{user} took message {target} back")),
            ChangeKind::Reacted { target, emoji } => {
                self.notice(&format!("{user} reacts to message {target}: {emoji}"))
            }
            ChangeKind::Unreacted { .. } => Ok(()),
            ChangeKind::Member { user: whose, role: Some(role) } => {
                self.notice(&format!("{whose} is {} now", role.as_str()))
            }
            ChangeKind::Member { user: whose, role: None } => self.notice(&format!("{whose} is no member any more")),
            ChangeKind::Info { topic } => self.notice(&format!("{user} changed the channel; its topic: {topic}")),
        }
    }

    fn tokens(&mut self, id: GenerationId, user: &str, text: &str) -> std::io::Result<()> {
        let Some(answer) = self.answers.iter_mut().find(|answer| answer.id == id) else { return Ok(()) };
        let begun = std::mem::replace(&mut answer.begun, true);
        if self.open != Some(id) {
            self.end_line()?;
            let more = if begun { "… " } else { "" };
            write!(self.out, "{} {more}", self.name(user))?;
            self.open = Some(id);
        }
        let text = if begun { text } else { text.trim_start() };
        write!(self.out, "{}", harmless(text))?;
        self.out.flush()
    }

    /// Whether the answer was followed, and anything of it is on the screen.
    fn forget(&mut self, id: GenerationId) -> bool {
        let Some(at) = self.answers.iter().position(|answer| answer.id == id) else { return false };
        self.answers.remove(at).is_some_and(|answer| answer.begun)
    }

    fn end_line(&mut self) -> std::io::Result<()> {
        if self.open.take().is_some() {
            writeln!(self.out)?;
        }
        Ok(())
    }

    fn line(&mut self, user: &str, text: &str) -> std::io::Result<()> {
        writeln!(self.out, "{} {}", self.name(user), harmless(text))?;
        self.out.flush()
    }

    fn name(&self, user: &str) -> String {
        if !self.colours {
            return format!("{user}:");
        }
        // The same colour for the same name; models stand out.
        let colour = 31 + user.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into())) % 6;
        let weight = if user.starts_with("ai/") { "1;" } else { "" };
        format!("\x1b[{weight}{colour}m{user}:\x1b[0m")
    }
}

#[cfg(test)]
mod tests {
    use thalweg_client::{Name, Position};

    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).expect("valid")
    }

    fn said(user: &str, body: &'static str, generation: Option<u64>) -> Item {
        Item::Message(Message {
            position: Position(1),
            timestamp_us: 0,
            user: name(user),
            generation: generation.map(GenerationId),
            body: body.into(),
            key: 0,
            context: Default::default(),
        })
    }

    fn started(id: u64) -> Item {
        Item::GenerationStarted { position: Position(1), generation: GenerationId(id), user: name("ai/m") }
    }

    fn tokens(id: u64, text: &'static str) -> Item {
        Item::Tokens { position: Position(1), generation: GenerationId(id), user: name("ai/m"), text: text.into() }
    }

    #[test]
    fn conversations_are_readable() {
        let check = |items: &[Item], expected: &str| {
            let mut transcript = Transcript::new(Vec::new(), false);
            items.iter().try_for_each(|item| transcript.item(item)).expect("a vector takes all");
            assert_eq!(String::from_utf8(transcript.out).expect("text"), expected);
        };
        check(&[said("ada", "hi", None), said("grace", "a\u{1b}[2Jb", None)], "ada: hi\ngrace: a\u{fffd}[2Jb\n");
        // Followed from the start: the whole is not shown again.
        check(&[started(1), tokens(1, " He"), tokens(1, "llo"), said("ai/m", "Hello", Some(1))], "ai/m: Hello\n");
        // Joined in the middle: shown whole at the end.
        check(&[tokens(1, "llo"), said("ai/m", "Hello", Some(1))], "ai/m: Hello\n");
        // Somebody speaks in between.
        check(
            &[started(1), tokens(1, "He"), said("ada", "hm", None), tokens(1, "llo"), said("ai/m", "Hello", Some(1))],
            "ai/m: He\nada: hm\nai/m: … llo\n",
        );
        // Two at a time.
        check(
            &[
                started(1),
                started(2),
                tokens(1, "a"),
                tokens(2, "x"),
                said("ai/m", "a", Some(1)),
                said("ai/m", "x", Some(2)),
            ],
            "ai/m: a\nai/m: x\n",
        );
        // Nothing of it was seen before it was whole.
        check(&[started(1), said("ai/m", "Hello", Some(1))], "ai/m: Hello\n");
        let ended = Item::GenerationEnded {
            position: Position(1),
            generation: GenerationId(1),
            user: name("ai/m"),
            reason: "cancelled".into(),
        };
        check(&[started(1), tokens(1, "He"), ended], "ai/m: He\n(ai/m: cancelled)\n");
        check(&[Item::Missed { from: Position(3), to: Position(5) }], "(messages 3 to 5 are missing)\n");
    }
}
