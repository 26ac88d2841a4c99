//! What clients do with generations, and what they make of their tokens.

use bytes::Bytes;
use thalweg_protocol::generation::{AskRequest, FinishReason, OnDetach, TextHash};
use thalweg_protocol::ids::{Epoch, GenerationId, Watch};
use thalweg_protocol::op::{ClientOp, ServerOp, WatchRequest};
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_workload::auditor::{Event as Seen, WatchId};

use super::Asked;
use crate::faults::Fault;
use crate::world::{Plant, World};

/// A watched generation.
#[derive(Debug, Clone)]
pub(super) struct Watching {
    id: WatchId,
    pub(super) generation: Option<GenerationId>,
    pub(super) greeted: bool,
    next: u32,
    lead: u32,
    pub(super) owed: bool,
    /// The token that `text` begins with.
    start: u32,
    /// What came so far.
    text: Vec<u8>,
    /// The life of the node that the newest of it came from; 0 if nothing came.
    epoch: u64,
}

impl Watching {
    fn new(id: WatchId, generation: Option<GenerationId>, from: u32, lead: u32) -> Self {
        let (greeted, owed, epoch) = (false, false, 0);
        Self { id, generation, greeted, next: from, lead, owed, start: from, text: Vec::new(), epoch }
    }

    pub(super) fn next(&self) -> u32 {
        self.next
    }
}

impl World {
    pub(super) fn ask(&mut self, client: usize) {
        let words = if self.chance(0.1) { 400 } else { 1 + self.below(20) as usize };
        let mut request = AskRequest::prompt("why? ".repeat(words));
        request.sampling.max_tokens = 1 + self.below(200) as u32;
        request.on_detach = if self.chance(0.5) { OnDetach::Cancel } else { OnDetach::Keep(self.below(100)) };
        request.lead = [0, 1, 5, 40][self.below(4) as usize];
        request.model = self.models.word();
        let lead = request.lead;
        let id = WatchId(self.fresh_number());
        let number = self.request(client, &ClientOp::Ask(Box::new(request)), Asked::Generation);
        self.clients[client].watches.insert(number, Watching::new(id, None, 0, lead));
    }

    fn heard_of(&mut self) -> Option<(GenerationId, u32)> {
        let at = self.pick(self.heard.len())?;
        self.heard.iter().nth(at).map(|(&id, &tokens)| (id, tokens))
    }

    pub(super) fn watch(&mut self, client: usize) {
        let Some((generation, tokens)) = self.heard_of() else { return };
        let from = self.below(u64::from(tokens) + 1) as u32;
        if from > 0 {
            self.faults.count(Fault::WatchedFromMiddle);
        }
        let lead = [0, 1, 5][self.below(3) as usize];
        let id = WatchId(self.fresh_number());
        let generation = Some(generation);
        self.send_watch(client, Watching::new(id, generation, from, lead));
    }

    pub(super) fn send_watch(&mut self, client: usize, mut watching: Watching) {
        let Some(generation) = watching.generation else { return };
        watching.owed = false;
        let seen = (watching.start == 0 && watching.epoch != 0).then(|| TextHash::of(&watching.text));
        let (from, lead, epoch) = (watching.next, watching.lead, Epoch(watching.epoch));
        let op = ClientOp::Watch(WatchRequest { generation, from, lead, epoch, seen });
        let number = self.request(client, &op, Asked::Generation);
        self.clients[client].watches.insert(number, watching);
    }

    pub(super) fn cancel(&mut self, client: usize) {
        if let Some((generation, _)) = self.heard_of() {
            self.request(client, &ClientOp::Cancel { generation }, Asked::Other);
        }
    }

    pub(super) fn unwatch(&mut self, client: usize) {
        let Some(at) = self.pick(self.clients[client].watches.len()) else { return };
        let Some((&number, _)) = self.clients[client].watches.iter().nth(at) else { return };
        self.request(client, &ClientOp::Unwatch { watch: Watch(number) }, Asked::Other);
        let Some(watching) = self.clients[client].watches.remove(&number) else { return };
        if watching.greeted {
            // As far as this watcher is concerned the generation ends here.
            self.auditor.record(Seen::Finished { watch: watching.id, tokens: watching.next });
        }
    }

    pub(super) fn generated(&mut self, client: usize, number: u32, op: ServerOp) {
        let epoch = self.clients[client].epoch;
        let Some(watching) = self.clients[client].watches.get_mut(&number) else { return };
        let (watch, from) = (watching.id, watching.next);
        if !matches!(op, ServerOp::Tokens { .. }) {
            self.note(format_args!("client {client} watch {number} is {watch:?}, at {from}"));
        }
        let Some(watching) = self.clients[client].watches.get_mut(&number) else { return };
        match op {
            ServerOp::Asked { generation, .. } => {
                watching.generation = Some(generation);
                let again = std::mem::replace(&mut watching.greeted, true);
                self.auditor.record(if again { Seen::Rewatched { watch } } else { Seen::Watched { watch, from } });
            }
            ServerOp::Rewound { to } => self.rewound(client, number, to),
            ServerOp::Tokens { index, count, text, .. } => self.tokens(client, number, (index, count), &text),
            ServerOp::Finished { reason, usage, .. } => {
                self.faults.add(Fault::Cancelled, u64::from(reason == FinishReason::Cancelled));
                self.faults.add(Fault::Failed, u64::from(reason == FinishReason::Failed));
                self.compare_text(client, number, epoch);
                self.clients[client].watches.remove(&number);
                self.auditor.record(Seen::Finished { watch, tokens: usage.completion_tokens });
            }
            ServerOp::Ended(reject) => {
                self.clients[client].watches.remove(&number);
                self.faults.add(Fault::Busy, u64::from(reject.code == RejectCode::Busy));
                self.faults.add(Fault::PromptTooLong, u64::from(reject.code == RejectCode::PromptTooLong));
                self.auditor.record(Seen::Finished { watch, tokens: 0 });
            }
            op => self.violation(format!("client {client}: {op:?} on a generation's lane")),
        }
    }

    /// Whether what a watcher has of a generation is what the generation is in this life of the node.
    fn compare_text(&mut self, client: usize, number: u32, epoch: u64) {
        let Some(watching) = self.clients[client].watches.get(&number) else { return };
        let Some(generation) = watching.generation else { return };
        let (start, next) = (watching.start, watching.next);
        let expected = self.said.version(generation, epoch).and_then(|version| version.range(start, next));
        if start < next && expected.map(str::as_bytes) != Some(&watching.text[..]) {
            let has = String::from_utf8_lossy(&watching.text).into_owned();
            let text = format!("tokens {start} to {next} of {generation} are {has:?}, not {expected:?}");
            self.violation(format!("client {client}: {text}"));
        }
    }

    fn rewound(&mut self, client: usize, number: u32, to: u32) {
        self.faults.count(Fault::Rewound);
        let epoch = self.clients[client].epoch;
        let Some(watching) = self.clients[client].watches.get_mut(&number) else { return };
        let watch = watching.id;
        if watching.epoch == epoch {
            let text = format!("client {client}: watch {number} was rewound within one life of the node");
            return self.violation(text);
        }
        watching.next = to;
        watching.start = watching.start.min(to);
        let (start, generation) = (watching.start, watching.generation);
        let version = generation.and_then(|generation| self.said.version(generation, epoch));
        let kept = version.and_then(|version| version.range(start, to)).unwrap_or_default();
        let stands = watching.text.starts_with(kept.as_bytes());
        watching.text.truncate(kept.len());
        self.auditor.record(Seen::Rewound { watch, to });
        if !stands {
            self.violation(format!("client {client}: watch {number} was rewound to {to}, which does not stand"));
        }
    }

    fn tokens(&mut self, client: usize, number: u32, (index, count): (u32, u32), text: &Bytes) {
        let own = &mut self.clients[client];
        let (epoch, slow) = (own.epoch, own.slow);
        let Some(watching) = own.watches.get_mut(&number) else { return };
        let watch = watching.id;
        watching.next = index + count;
        watching.text.extend_from_slice(text);
        let first = std::mem::replace(&mut watching.epoch, epoch) != epoch;
        let Some(generation) = watching.generation else {
            return self.violation(format!("client {client}: tokens before their generation was named"));
        };
        let version = self.said.version(generation, epoch);
        let mut expected = version.and_then(|v| v.range(index, index + count)).map(str::to_owned);
        let known = self.heard.entry(generation).or_insert(0);
        *known = (*known).max(index + count);
        let mut times = 1;
        if self.planted == 0 {
            match self.options.plant {
                Some(Plant::LoseTokens) => (times, self.planted) = (0, 1),
                Some(Plant::DoubleTokens) => (times, self.planted) = (2, 1),
                Some(Plant::ChangeText) => (expected, self.planted) = (Some("!".into()), 1),
                _ => {}
            }
        }
        if expected.as_ref().map(String::as_bytes) != Some(&text[..]) {
            self.violation(format!("client {client}: tokens {index} of {generation} are {text:?}, not {expected:?}"));
        } else if first {
            self.compare_text(client, number, epoch);
        }
        for _ in 0..times {
            self.auditor.record(Seen::Tokens { watch, index, count });
        }
        if slow {
            if let Some(watching) = self.clients[client].watches.get_mut(&number) {
                watching.owed = true;
            }
            self.faults.count(Fault::CreditWithheld);
        } else {
            self.say(client, 0, &ClientOp::TokensConsumed { watch: Watch(number), index: index + count });
        }
    }

    /// A request to ask or watch was refused.
    pub(super) fn generation_refused(&mut self, client: usize, request: u32, reject: &Reject) {
        self.faults.add(Fault::DrainingRefused, u64::from(reject.code == RejectCode::Draining));
        self.faults.add(Fault::FullRefused, u64::from(reject.code == RejectCode::StorageFull));
        self.check_unrouted(client, reject);
        let watching = self.clients[client].watches.remove(&request);
        if watching.is_some_and(|watching| watching.greeted) {
            self.violation(format!("client {client}: a watch could not be taken up again: {reject}"));
        }
    }
}
