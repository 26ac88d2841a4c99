//! Going on after the end of an earlier life of the node: generations that were cut off, and readers that come back.

use thalweg_domain::generation::Generation;
use thalweg_domain::partition::GenerationState;
use thalweg_protocol::generation::{FinishReason, OnDetach};
use thalweg_protocol::ids::{Epoch, GenerationId};
use thalweg_protocol::limits::{GENERATION_KEEP_MS, LEAD_TOKENS, RESUME_GRACE_MS};
use thalweg_protocol::reject::{Reject, RejectCode};

use super::Owned;
use crate::shard::{Deadline, Shard};

/// Tokens that somebody got from an earlier life of the node, up to where it wants to go on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unverified {
    /// The fingerprint of their text; without it they cannot be compared.
    seen: Option<u64>,
    /// Where to go back to if the text is another one.
    rewind_to: u32,
}

/// How what somebody saw compares with what there is.
pub(super) enum Comparison {
    /// Not all of it came again.
    Later,
    /// It is the same.
    Same,
    /// It is another text, or cannot be compared.
    Differs {
        /// The token to go back to.
        rewind_to: u32,
    },
}

impl Unverified {
    /// What somebody who wants to go on at token `from` saw in an earlier life of the node and is yet to be compared with
    /// what there is, if anything. `seen_in` is the life in which it got those tokens.
    pub(super) fn of(
        owned: &Owned,
        from: u32,
        epoch: Epoch,
        seen_in: Epoch,
        seen: Option<u64>,
    ) -> Result<Option<Self>, Reject> {
        let tokens = owned.generation.tokens();
        let Some(recovered) = owned.recovered.filter(|_| from > 0 && seen_in != epoch) else {
            if from <= tokens {
                return Ok(None);
            }
            let text = format!("token {from} is beyond the {tokens} there are");
            return Err(Reject::new(RejectCode::ParameterInvalid, text));
        };
        // Text of the life before this one is the same up to what was durable then. Of older ones nothing is known. Somebody
        // who knows neither life nor text has none that could differ.
        let durable = seen_in.0 + 1 == epoch.0 || (seen.is_none() && seen_in == Epoch(0));
        if seen.is_none() && durable && from <= recovered {
            return Ok(None);
        }
        let rewind_to = if durable { recovered.min(from) } else { 0 };
        Ok(Some(Self { seen, rewind_to }))
    }

    /// Compares the tokens before `to`, all of which somebody has, with what there is.
    pub(super) fn compare(self, generation: &Generation, to: u32) -> Comparison {
        let Self { seen, rewind_to } = self;
        if seen.is_some() && to > generation.tokens() && generation.ending().is_none() {
            return Comparison::Later;
        }
        let same = to <= generation.tokens() && seen == Some(generation.text_hash(to));
        if same { Comparison::Same } else { Comparison::Differs { rewind_to } }
    }
}

impl Shard {
    /// Takes up a generation that the log left behind: one that was cut off goes on.
    pub(crate) fn restore_generation(&mut self, id: GenerationId, state: GenerationState) {
        // One without a beginning expired with it.
        let Some(request) = state.request.filter(|_| !state.deleted) else { return };
        let mut generation = Generation::new(request);
        let mut text = &state.text[..];
        for token in &state.tokens {
            let (own, rest) = text.split_at((token.bytes as usize).min(text.len()));
            generation.apply_token(token.id, own);
            text = rest;
        }
        let tokens = generation.tokens();
        let mut owned = Owned::new(id, generation, true, tokens.saturating_add(LEAD_TOKENS));
        (owned.announced, owned.recorded, owned.recovered) = (true, tokens, Some(tokens));
        if let Some((ending, at_us)) = state.ending {
            let keep_us = GENERATION_KEEP_MS * 1_000;
            let age_us = self.now.wall_us.saturating_sub(at_us);
            if age_us < keep_us {
                owned.generation.apply_ending(ending);
                self.deadlines.insert((self.now.mono_us + keep_us - age_us, Deadline::Expired(id)));
                self.generations.owned.insert(id, owned);
            }
            return;
        }
        self.generations.unfinished += 1;
        self.counters.resumed += 1;
        let (model, in_channel) = (owned.generation.request.model.clone(), owned.channel().is_some());
        let wait_ms = match owned.generation.request.on_detach {
            OnDetach::Keep(ms) => ms.max(RESUME_GRACE_MS),
            OnDetach::Cancel => RESUME_GRACE_MS,
        };
        if !in_channel {
            // Its reader lost its connection with the node and needs some time to come back.
            let at = self.now.mono_us + wait_ms * 1_000;
            owned.detached_at = Some(at);
            self.deadlines.insert((at, Deadline::Detached(id)));
        }
        let document = owned.channel().map(|(key, _)| key.clone()).filter(|key| self.is_document(key));
        self.generations.owned.insert(id, owned);
        if document.is_some() {
            // Where it wrote is known to nobody any more. What it wrote stays.
            let message = "the node was restarted while the model wrote; what is written stays".to_owned();
            return self.finish(id, FinishReason::Failed, message, None);
        }
        if self.routes().get(model.as_str()).is_some() {
            return self.submit(id);
        }
        let message = format!("the node was restarted without the model {model}");
        self.finish(id, FinishReason::Failed, message, None);
    }

    /// Whether a generation of an earlier life, or one that was begun anew, was only refused for the crowd: then it is handed
    /// over again later. One that was stopped ends.
    pub(super) fn waits_to_resume(&mut self, id: GenerationId, reject: &Reject) -> bool {
        let begun = |owned: &&mut Owned| (owned.recovered.is_some() || owned.attempt != id) && !owned.stopping;
        let recovered = self.generations.owned.get_mut(&id).filter(begun);
        match recovered {
            Some(owned) if reject.code == RejectCode::Busy => {
                let at = self.now.mono_us + u64::from(reject.retry_after_ms.max(1)) * 1_000;
                owned.resume_at = Some(at);
                self.deadlines.insert((at, Deadline::Resume(id)));
                true
            }
            _ => false,
        }
    }
}
