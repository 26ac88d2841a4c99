//! The answers to one request: several generations, read as one sequence of pieces.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::http::StatusCode;
use thalweg_protocol::generation::{AskRequest, FinishReason, TokenDetail, Usage};
use thalweg_protocol::op::ServerOp;
use thalweg_protocol::trace::TraceContext;
use tokio::task::JoinSet;

use super::tools::{CallReader, Calling, Read};
use crate::error::Refusal;
use crate::port::{Reader, Session};

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Piece {
    /// More of its text, and how likely the tokens were.
    Text { text: String, details: Vec<TokenDetail> },
    /// A call begins, the one of this index.
    Call { call: usize, id: String, name: String },
    /// More of the arguments of a call.
    Arguments { call: usize, text: String },
    /// It is over.
    Finish { reason: &'static str },
}

struct Choice {
    reader: Reader,
    calls: CallReader,
    /// How many calls began.
    begun: usize,
    over: bool,
}

/// A piece on its way out; with the last piece of a frame goes the credit for it.
struct Ready {
    choice: usize,
    piece: Piece,
    taken: Option<u32>,
}

/// The answers to one request. Dropping them ends what is not over.
pub(super) struct Answers {
    choices: Vec<Choice>,
    ready: VecDeque<Ready>,
    /// Answers to the same prompt follow each other; each prompt is counted once.
    per_prompt: usize,
    usage: Usage,
}

impl Answers {
    /// Asks for all of them at once, and waits until all have begun. `per_prompt`: how many there are to each prompt.
    pub(super) async fn open(
        session: &Arc<Session>,
        asks: Vec<AskRequest>,
        per_prompt: usize,
        calling: Calling,
        context: Option<TraceContext>,
    ) -> Result<Self, Refusal> {
        let mut asking = JoinSet::new();
        for (index, ask) in asks.into_iter().enumerate() {
            let session = Arc::clone(session);
            asking.spawn(async move { (index, session.ask(ask, context).await) });
        }
        let mut readers = Vec::new();
        while let Some(asked) = asking.join_next().await {
            // A panic of the task is one of ours, and goes on here.
            let (index, reader) = asked.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
            readers.push((index, reader?));
        }
        readers.sort_by_key(|(index, _)| *index);
        let choice = |(_, reader)| Choice { reader, calls: CallReader::new(calling), begun: 0, over: false };
        let choices = readers.into_iter().map(choice).collect();
        Ok(Self { choices, ready: VecDeque::new(), per_prompt, usage: Usage::default() })
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.choices.len()
    }

    /// The model that answers, and the number of the first generation, which names the answer.
    pub(super) fn about(&self) -> (String, u64) {
        self.choices
            .first()
            .map_or_else(Default::default, |first| (first.reader.model.clone(), first.reader.generation.0))
    }

    /// What the answers that are over cost.
    pub(super) fn usage(&self) -> Usage {
        self.usage
    }

    /// The next piece and the index of its answer; `None` once all are over.
    pub(super) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<(usize, Piece), Refusal>>> {
        loop {
            if let Some(Ready { choice, piece, taken }) = self.ready.pop_front() {
                if let Some(index) = taken {
                    self.choices[choice].reader.taken(index);
                }
                return Poll::Ready(Some(Ok((choice, piece))));
            }
            let mut progressed = false;
            for index in 0..self.choices.len() {
                if self.choices[index].over {
                    continue;
                }
                match self.choices[index].reader.poll_next(cx) {
                    Poll::Pending => {}
                    Poll::Ready(Some(Ok(op))) => {
                        progressed = true;
                        if let Err(refusal) = self.take(index, op) {
                            return Poll::Ready(Some(Err(refusal)));
                        }
                    }
                    Poll::Ready(Some(Err(refusal))) => return Poll::Ready(Some(Err(refusal))),
                    Poll::Ready(None) => self.choices[index].over = true,
                }
            }
            if self.choices.iter().all(|choice| choice.over) && self.ready.is_empty() {
                return Poll::Ready(None);
            }
            if !progressed && self.ready.is_empty() {
                return Poll::Pending;
            }
        }
    }

    /// Waits until there is a first piece, so that a refusal can still be told by a status.
    pub(super) async fn begin(&mut self) -> Result<(), Refusal> {
        let Some(first) = std::future::poll_fn(|cx| self.poll_piece(cx)).await else { return Ok(()) };
        let (choice, piece) = first?;
        self.ready.push_front(Ready { choice, piece, taken: None });
        Ok(())
    }

    fn take(&mut self, index: usize, op: ServerOp) -> Result<(), Refusal> {
        let choice = &mut self.choices[index];
        match op {
            ServerOp::Tokens { index: first, count, text, details } => {
                let read = choice.calls.push(&String::from_utf8_lossy(&text));
                let mut pieces = choice.pieces(read);
                // How likely tokens were that are part of a call is nowhere to be told.
                if !details.is_empty() && !choice.calls.called {
                    match pieces.iter_mut().find(|piece| matches!(piece, Piece::Text { .. })) {
                        Some(Piece::Text { details: of, .. }) => *of = details,
                        _ => pieces.insert(0, Piece::Text { text: String::new(), details }),
                    }
                }
                let until = first.saturating_add(count);
                if pieces.is_empty() {
                    choice.reader.taken(until);
                }
                self.queue(index, pieces, Some(until));
                Ok(())
            }
            ServerOp::Finished { reason, usage, message } => {
                choice.over = true;
                let read = choice.calls.finish();
                let mut pieces = choice.pieces(read);
                let reason = match reason {
                    FinishReason::Stop if choice.calls.called => "tool_calls",
                    FinishReason::Stop => "stop",
                    FinishReason::Length => "length",
                    FinishReason::Cancelled => {
                        let text = "the answer was cancelled by somebody else, or with its node";
                        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "cancelled", text));
                    }
                    FinishReason::Failed => {
                        return Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", message));
                    }
                };
                pieces.push(Piece::Finish { reason });
                self.usage.completion_tokens += usage.completion_tokens;
                if index.is_multiple_of(self.per_prompt) {
                    self.usage.prompt_tokens += usage.prompt_tokens;
                    self.usage.cached_tokens += usage.cached_tokens;
                }
                self.queue(index, pieces, None);
                Ok(())
            }
            ServerOp::Ended(reject) => Err(reject.into()),
            // The name of the answer, which is known; nothing else comes on a generation's lane.
            _ => Ok(()),
        }
    }

    fn queue(&mut self, choice: usize, pieces: Vec<Piece>, taken: Option<u32>) {
        let last = pieces.len().saturating_sub(1);
        let ready = |(at, piece)| Ready { choice, piece, taken: taken.filter(|_| at == last) };
        self.ready.extend(pieces.into_iter().enumerate().map(ready));
    }
}

impl Choice {
    fn pieces(&mut self, read: Vec<Read>) -> Vec<Piece> {
        let piece = |read| match read {
            Read::Text(text) => Piece::Text { text, details: Vec::new() },
            Read::Call(name) => {
                self.begun += 1;
                let id = format!("call_{:016x}_{}", self.reader.generation.0, self.begun);
                Piece::Call { call: self.begun - 1, id, name }
            }
            Read::Arguments(text) => Piece::Arguments { call: self.begun.saturating_sub(1), text },
        };
        let is_something = |piece: &Piece| !matches!(piece, Piece::Text { text, .. } if text.is_empty());
        read.into_iter().map(piece).filter(is_something).collect()
    }
}
