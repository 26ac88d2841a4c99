//! A channel: an ordered sequence of messages with a bounded history.

use std::collections::VecDeque;
use std::sync::Arc;

use thalweg_protocol::generation::{ChatMessage, Role};
use thalweg_protocol::ids::Position;
use thalweg_protocol::limits::{
    CONVERSATION_BYTES, CONVERSATION_MESSAGES, HISTORY_BATCH_BYTES, HISTORY_BATCH_MESSAGES, HISTORY_BYTES,
    HISTORY_MESSAGES,
};
use thalweg_protocol::op::DeliveryKind;
use thalweg_protocol::reject::{Reject, RejectCode};

use crate::record::{ChannelSettings, Message};

/// What calls a model in a channel.
pub const MENTION: &[u8] = b"@ai";

/// The state of a channel at its owner.
#[derive(Debug)]
pub struct Channel {
    settings: ChannelSettings,
    /// Kept messages, oldest first, without gaps.
    history: VecDeque<Arc<Message>>,
    history_bytes: u64,
    /// Where the newest applied message stands.
    head: Position,
    /// Where the newest decided message stands; ahead of `head` by what is not durable yet.
    decided: Position,
}

impl Channel {
    /// Checks what a channel shall keep; zeroes take the defaults.
    ///
    /// # Errors
    /// `parameter_invalid`, if it asks for more than this node allows.
    pub fn decide_settings(history_messages: u32, history_bytes: u64) -> Result<ChannelSettings, Reject> {
        let check = |what: &str, asked: u64, most: u64| match asked {
            0 => Ok(most),
            asked if asked <= most => Ok(asked),
            asked => {
                let text = format!("{what} is {asked}; at most {most}, or 0 for that");
                Err(Reject::new(RejectCode::ParameterInvalid, text))
            }
        };
        let messages = check("history_messages", history_messages.into(), HISTORY_MESSAGES.into())?;
        let history_bytes = check("history_bytes", history_bytes, HISTORY_BYTES)?;
        Ok(ChannelSettings { history_messages: messages as u32, history_bytes })
    }

    /// An empty channel.
    pub fn new(settings: ChannelSettings) -> Self {
        let (head, decided) = (Position(0), Position(0));
        Self { settings, history: VecDeque::new(), history_bytes: 0, head, decided }
    }

    /// Gives the next message its place. It counts from here on, though nobody sees it until it is applied.
    pub fn decide_position(&mut self) -> Position {
        self.decided = self.decided.next();
        self.decided
    }

    /// Takes a decided message in.
    pub fn apply(&mut self, message: Arc<Message>) {
        debug_assert_eq!(message.position, self.head.next(), "messages are applied in order, without gaps");
        self.head = message.position;
        self.decided = self.decided.max(self.head);
        self.history_bytes += message.body.len() as u64;
        self.history.push_back(message);
        while self.history.len() > 1
            && (self.history.len() > self.settings.history_messages as usize
                || self.history_bytes > self.settings.history_bytes)
        {
            let oldest = self.history.pop_front();
            self.history_bytes -= oldest.map_or(0, |message| message.body.len() as u64);
        }
    }

    /// Where the newest applied message stands.
    pub fn head(&self) -> Position {
        self.head
    }

    /// Where the oldest kept message stands; one after the head if none is kept.
    pub fn first(&self) -> Position {
        self.history.front().map_or(self.head.next(), |message| message.position)
    }

    /// The kept messages from `from` on, as many as fit in one answer; empty past the head.
    pub fn read(&self, from: Position) -> Vec<Arc<Message>> {
        let skip = from.0.saturating_sub(self.first().0) as usize;
        let mut bytes = 0;
        let fits = |message: &&Arc<Message>| {
            let first = bytes == 0;
            bytes += message.payload.len();
            first || bytes <= HISTORY_BATCH_BYTES
        };
        self.history.iter().skip(skip).take(HISTORY_BATCH_MESSAGES).take_while(fits).cloned().collect()
    }

    /// The recent past up to the head, as a model is given it: people's lines with their names, its own without.
    pub fn conversation(&self) -> Vec<ChatMessage> {
        let mut bytes = 0;
        let said = self.history.iter().rev().filter(|message| message.kind == DeliveryKind::Message);
        let mut lines: Vec<_> = said
            .map(|message| {
                let text = String::from_utf8_lossy(&message.body);
                let text = text.strip_prefix("@ai").map_or(&*text, str::trim_start);
                if message.generation.is_some() {
                    ChatMessage { role: Role::Assistant, content: text.to_owned() }
                } else {
                    ChatMessage { role: Role::User, content: format!("{}: {text}", message.user) }
                }
            })
            .take(CONVERSATION_MESSAGES)
            .take_while(|line| {
                bytes += line.content.len();
                bytes <= CONVERSATION_BYTES || bytes == line.content.len()
            })
            .collect();
        lines.reverse();
        lines
    }
}

/// Whether a message calls a model: it begins with `@ai` as a word and says something.
pub fn mentions_model(body: &[u8]) -> bool {
    body.strip_prefix(MENTION).is_some_and(|rest| {
        rest.first().is_some_and(u8::is_ascii_whitespace) && rest.iter().any(|b| !b.is_ascii_whitespace())
    })
}

#[cfg(test)]
mod tests;
