//! Texts that clients want embedded: from their sessions to the inference stage, and the vectors back.
//!
//! Nothing of it is kept: a client that loses its connection asks again.

use std::collections::BTreeMap;
use std::time::Instant;

use thalweg_protocol::ids::{Name, Request};
use thalweg_protocol::op::ServerOp;
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_quic::Link as QuicLink;
use thalweg_worker::stage::{Embed, Embeddings};

use crate::core_loop::Core;
use crate::sessions::shard_link;

/// Requests for embeddings of one session that may be unanswered; one more is refused.
const OF_SESSION_MAX: usize = 32;
/// The same for all sessions of a core: what bounds the table, and the commands on their way to the stage.
const OF_CORE_MAX: usize = 1_024;
/// When a session that was refused for that may come again, in milliseconds.
const RETRY_MS: u32 = 1_000;

/// Who waits for vectors.
#[derive(Default)]
pub(crate) struct Embeds {
    asked: BTreeMap<u64, (QuicLink, Request)>,
    /// The number of the last job.
    last: u64,
}

impl Embeds {
    /// Requests that are not answered.
    pub(crate) fn len(&self) -> usize {
        self.asked.len()
    }

    fn begin(&mut self, link: QuicLink, request: Request) -> Result<u64, Reject> {
        if self.asked.values().filter(|(other, _)| *other == link).count() >= OF_SESSION_MAX {
            let text =
                format!("{OF_SESSION_MAX} requests for embeddings of the session wait; await their answers first");
            return Err(Reject::new(RejectCode::LimitReached, text));
        }
        if self.asked.len() >= OF_CORE_MAX {
            let text = format!("{OF_CORE_MAX} requests for embeddings wait already; try again later");
            return Err(Reject::new(RejectCode::Busy, text).retry_after_ms(RETRY_MS));
        }
        self.last += 1;
        self.asked.insert(self.last, (link, request));
        Ok(self.last)
    }
}

impl Core {
    /// Sends a session's texts to the stage, or tells it why not.
    pub(crate) fn embed(
        &mut self,
        now: Instant,
        link: QuicLink,
        request: Request,
        model: Option<Name>,
        texts: Vec<String>,
    ) {
        if let Err(reject) = self.begin_embed(link, request, model, texts) {
            self.reply(now, link, request, &ServerOp::Reject(reject));
        }
    }

    fn begin_embed(
        &mut self,
        link: QuicLink,
        request: Request,
        model: Option<Name>,
        texts: Vec<String>,
    ) -> Result<(), Reject> {
        let Some(model) = model.or_else(|| self.inference.embedding_model().cloned()) else {
            let text = "no model of this node makes embeddings; pull one and start the node with it";
            return Err(Reject::new(RejectCode::EmbeddingsUnsupported, text));
        };
        self.shard.may_embed(shard_link(link), &model)?;
        if !self.inference.is_there() {
            return Err(Reject::new(RejectCode::ModelUnknown, "this node runs no models"));
        }
        let job = self.embeds.begin(link, request)?;
        self.inference.embed(Embed { job, model: Some(model), texts, submitted: Instant::now() });
        Ok(())
    }

    /// Answers those whose texts were embedded, or could not be.
    pub(crate) fn answer_embeds(&mut self, now: Instant) {
        while let Some((job, result)) = self.inference.next_embedded() {
            let Some((link, request)) = self.embeds.asked.remove(&job) else { continue };
            let op = match result {
                Ok(Embeddings { model, dimensions, vectors, tokens }) => {
                    self.shard.embedded(shard_link(link), tokens);
                    ServerOp::Embedded { model, dimensions, vectors, tokens }
                }
                Err(reject) => ServerOp::Reject(reject),
            };
            self.reply(now, link, request, &op);
        }
    }
}
