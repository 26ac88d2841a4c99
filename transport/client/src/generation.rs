//! Reading a model's answer.

use bytes::Bytes;
use thalweg_protocol::generation::{FinishReason, Usage};
use thalweg_protocol::ids::GenerationId;
use tokio::sync::mpsc;

use crate::client::Handle;
use crate::entries::Failure;
use crate::error::ClientError;

/// What comes on a generation's lane.
#[derive(Debug)]
pub(crate) enum Event {
    Tokens { index: u32, count: u32, text: Bytes },
    Finished { reason: FinishReason, usage: Usage, message: String },
}

/// Some tokens of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The index of the first token, from 0.
    pub index: u32,
    /// How many tokens: one, but when the node is busy.
    pub count: u32,
    /// Their text; empty while a character's last token has not come.
    pub text: String,
}

/// How an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Why it ended.
    pub reason: FinishReason,
    /// What it cost.
    pub usage: Usage,
    /// What failed, if it failed.
    pub message: String,
}

/// A model's answer that is being read. Taking pieces is what lets the model go on; dropping it ends the reading, and with
/// the last reader the generation, unless it was asked to be kept.
///
/// Over a lost connection it goes on after the last token that came, without gaps or repetitions.
#[derive(Debug)]
pub struct Generation {
    pub(crate) handle: Handle,
    pub(crate) key: u64,
    pub(crate) id: GenerationId,
    pub(crate) model: String,
    pub(crate) queue: mpsc::Receiver<Event>,
    pub(crate) failure: Failure,
    pub(crate) finished: Option<Finished>,
    /// Tokens taken since the node was told, and after how many it is told.
    pub(crate) unreported: u32,
    pub(crate) report_every: u32,
}

impl Generation {
    /// Its id, with which it can be [watched](crate::Client::watch) from anywhere and [cancelled](crate::Client::cancel).
    pub fn id(&self) -> GenerationId {
        self.id
    }

    /// The model that answers.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// The next tokens; `None` once the answer is [finished](Self::finished). Cancel-safe.
    ///
    /// # Errors
    /// [`ClientError::Ended`] if the node ended the reading; [`ClientError::Refused`] if the answer could not be resumed after
    /// a restart of the node; [`ClientError::Lost`] if the connection did not come back in time.
    pub async fn next(&mut self) -> Result<Option<Piece>, ClientError> {
        if self.finished.is_some() {
            return Ok(None);
        }
        match self.queue.recv().await {
            Some(Event::Tokens { index, count, text }) => {
                self.unreported = self.unreported.saturating_add(count);
                if self.unreported >= self.report_every {
                    self.unreported = 0;
                    self.handle.with(|state| state.tokens_consumed(self.key, index.saturating_add(count)));
                }
                Ok(Some(Piece { index, count, text: String::from_utf8_lossy(&text).into_owned() }))
            }
            Some(Event::Finished { reason, usage, message }) => {
                self.finished = Some(Finished { reason, usage, message });
                Ok(None)
            }
            None => Err(self.failure.get().cloned().unwrap_or(ClientError::Closed)),
        }
    }

    /// How it ended, once [`next`](Self::next) gave `None`.
    pub fn finished(&self) -> Option<&Finished> {
        self.finished.as_ref()
    }

    /// Reads the rest of the answer: its text from here on, and how it ended.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub async fn finish(mut self) -> Result<(String, Finished), ClientError> {
        let mut text = String::new();
        while let Some(piece) = self.next().await? {
            text.push_str(&piece.text);
        }
        let finished = self.finished.take().expect("next() gives None only when it is finished");
        Ok((text, finished))
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.handle.with(|state| state.unwatch(self.key));
    }
}
