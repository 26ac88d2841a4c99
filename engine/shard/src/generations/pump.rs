//! What watchers are sent at the end of a turn, and how far the inference stage may run ahead.

use thalweg_protocol::ids::GenerationId;
use thalweg_protocol::limits::TOKEN_DETAILS_MAX;
use thalweg_protocol::op::ServerOp;

use super::resume::Comparison;
use crate::contract::{InferenceCommand, Output, SessionMessage};
use crate::counters::Stage;
use crate::shard::Shard;

impl Shard {
    /// Lets the inference stage run as far ahead as the fastest watcher allows.
    pub(super) fn extend_credit(&mut self, id: GenerationId) {
        let Some(owned) = self.generations.owned.get(&id) else { return };
        let until = owned.watchers.iter().map(|watcher| watcher.consumed.saturating_add(watcher.lead)).max();
        self.grant(id, until.unwrap_or(0));
    }

    pub(super) fn grant(&mut self, id: GenerationId, until: u32) {
        let Some(owned) = self.generations.owned.get_mut(&id) else { return };
        if until > owned.credit && !owned.ends() {
            owned.credit = until;
            let generation = owned.attempt;
            self.output(Output::Inference(InferenceCommand::Credit { generation, until }));
        }
    }

    /// Sends watchers what came over the turn, as far as their credit goes.
    pub(crate) fn pump_generations(&mut self) {
        let mut dirty = std::mem::take(&mut self.generations.dirty);
        dirty.sort_unstable();
        dirty.dedup();
        for id in dirty.drain(..) {
            self.pump(id);
        }
        // Keep the memory for the next turn; whatever was marked meanwhile waits for it.
        dirty.append(&mut self.generations.dirty);
        self.generations.dirty = dirty;
    }

    fn pump(&mut self, id: GenerationId) {
        let Some(owned) = self.generations.owned.get_mut(&id).filter(|owned| owned.announced) else { return };
        let tokens = owned.generation.tokens();
        let arrived_us = owned.arrived_us.take();
        let mut frames = Vec::new();
        for watcher in &mut owned.watchers {
            match watcher.unverified.map(|unverified| unverified.compare(&owned.generation, watcher.sent)) {
                None => {}
                Some(Comparison::Later) => continue,
                Some(Comparison::Same) => watcher.unverified = None,
                Some(Comparison::Differs { rewind_to: to }) => {
                    watcher.unverified = None;
                    (watcher.sent, watcher.consumed) = (to, to);
                    let op = ServerOp::Rewound { to };
                    frames.push((watcher.core, watcher.link, watcher.watch, op, false));
                }
            }
            let until = tokens.min(watcher.consumed.saturating_add(watcher.lead));
            while until > watcher.sent {
                let index = watcher.sent;
                // A frame holds so many details; what has none needs no bound but the watcher's lead.
                let most = if owned.details.is_empty() { u32::MAX } else { TOKEN_DETAILS_MAX as u32 };
                let count = (until - index).min(most);
                let to = index + count;
                let (text, details) = (owned.generation.text(index, to), owned.details.between(index, to));
                let op = ServerOp::Tokens { index, count, text, details };
                watcher.sent = to;
                frames.push((watcher.core, watcher.link, watcher.watch, op, false));
            }
        }
        owned.details.forget(owned.watchers.iter().map(|watcher| watcher.sent).min().unwrap_or(u32::MAX));
        if let Some(ending) = owned.generation.ending() {
            let op = match &owned.refusal {
                Some(reject) => ServerOp::Ended(reject.clone()),
                None => {
                    ServerOp::Finished { reason: ending.reason, usage: ending.usage, message: ending.message.clone() }
                }
            };
            owned.watchers.retain(|watcher| {
                let done = watcher.sent == tokens;
                if done {
                    frames.push((watcher.core, watcher.link, watcher.watch, op.clone(), true));
                }
                !done
            });
        }
        if let Some(since_us) = arrived_us.filter(|_| !frames.is_empty()) {
            self.sample(Stage::TokenOut, since_us);
        }
        for (core, link, watch, op, last) in frames {
            let payload = op.encode();
            self.tell_session(core, SessionMessage::Generation { link, watch, payload, last });
        }
    }
}
