//! Models that write in documents.
//!
//! A model is one more editor. Its place is held by the characters around it, so that whatever others do moves it along and
//! never cuts it; what it writes are edits of the document like any other, part of the records of its generation, and paced
//! by them. Others see it as an editor with a name and a cursor. If the text around its place is another one than it was told,
//! and is at rest, it begins anew with what it has written so far.

use std::sync::Arc;

use bytes::Bytes;
use thalweg_domain::document::{Anchor, Document};
use thalweg_domain::permission::{Action as Access, Principal};
use thalweg_domain::record::{GenerationRequest, Posting};
use thalweg_domain::routing::{Need, TOKEN_BYTES};
use thalweg_protocol::document::{AskInDocument, DocumentAccess, Operation, Operations, Place, utf16_len};
use thalweg_protocol::generation::{ChatMessage, OnDetach, Priority, Sampling};
use thalweg_protocol::ids::{ChannelId, ChannelKey, GenerationId, Name, Position};
use thalweg_protocol::limits::{
    DOCUMENT_ASKS_MAX, DOCUMENT_CONTEXT_BYTES, DOCUMENT_REFRESH_MS, DOCUMENT_REFRESHES_MAX, GENERATION_TOKENS_MAX,
    INSTRUCTION_BYTES_MAX, LEAD_TOKENS,
};
use thalweg_protocol::op::ServerOp;
use thalweg_protocol::reject::{Reject, RejectCode};

use super::prompt::{self, Around};
use super::{Waiting, no_document, no_revision};
use crate::contract::{Origin, OwnerMessage};
use crate::generations::{Begin, author};
use crate::owner::{Action, unknown};
use crate::shard::{Deadline, Shard};

/// Those who find as many models in a document as may be are told to come back after this, in milliseconds.
const WRITERS_DELAY_MS: u32 = 1_000;
/// Times that a document may break under one model: what breaks it each time is that model.
const BREAKS_MAX: u32 = 3;
/// Who types a line that begins so in a document, and ends it, asks a model.
const CALL: &str = "@ai ";
/// The editors that models are have numbers from here on, which no other editor has.
const MODEL_EDITORS: u64 = 3 << 51;

/// Where a model writes, and what it was told.
pub(crate) struct Writer {
    document: ChannelKey,
    id: ChannelId,
    /// Under which name.
    user: Name,
    instruction: String,
    /// What is to be written anew, until the first token came.
    selection: Option<(Anchor, Anchor)>,
    /// The text of that.
    selected: String,
    /// Before what it wrote.
    start: Anchor,
    /// Behind what it wrote.
    at: Anchor,
    /// What comes before its first token.
    prefix: &'static str,
    wrote: bool,
    messages: Vec<ChatMessage>,
    /// Bytes of the text around that it may be told.
    room: usize,
    refreshes: u32,
    /// When it is looked whether the text around is another one.
    refresh_at: Option<u64>,
    /// Whether its document could not be read, or cannot take what it says: that is of no use then.
    is_lost: bool,
    /// How often its document broke under what it said.
    breaks: u32,
}

impl Writer {
    /// What the model is told: as it is now.
    pub(crate) fn messages(&self) -> &[ChatMessage] {
        &self.messages
    }

    /// What it is to be told now; `None` if its place is gone.
    fn retell(&self, document: &Document) -> Option<Vec<ChatMessage>> {
        let text = document.text();
        let (from, to) = match &self.selection {
            Some((from, to)) => (document.offset(from)?, document.offset(to)?),
            None => (document.offset(&self.start)?, document.offset(&self.at)?),
        };
        let around = Around::new(&text, from, to, self.room);
        let selected = if self.selection.is_some() { around.between } else { &self.selected };
        Some(prompt::messages(&around, selected, &self.instruction))
    }

    /// Writes in a document that is at hand.
    fn write(&mut self, document: &mut Document, text: &str) -> Result<(Bytes, Operations), Reject> {
        let gone = || Reject::new(RejectCode::OperationsInvalid, "the place that the model wrote at is gone");
        let (offset, deleted) = match &self.selection {
            Some((from, to)) => {
                let (from, to) = (document.offset(from).ok_or_else(gone)?, document.offset(to).ok_or_else(gone)?);
                (from, to.saturating_sub(from))
            }
            None => (document.offset(&self.at).ok_or_else(gone)?, 0),
        };
        let prefix = if self.wrote { "" } else { self.prefix };
        let inserted = format!("{prefix}{text}");
        let end = offset + utf16_len(&inserted);
        let edit = [Operation::Retain(offset), Operation::Insert(inserted), Operation::Delete(deleted)];
        let operations = Operations::of(edit);
        let update = document.edit(&operations)?;
        if !self.wrote {
            self.start = document.anchor(offset + utf16_len(prefix), true).ok_or_else(gone)?;
        }
        self.at = document.anchor(end, false).ok_or_else(gone)?;
        (self.wrote, self.selection) = (true, None);
        Ok((update, operations))
    }

    /// What others are shown of it.
    fn state(&self, id: GenerationId) -> Bytes {
        let (anchor, head) = match &self.selection {
            Some((from, to)) => (from, to),
            None => (&self.at, &self.at),
        };
        prompt::awareness(&self.user, id, &anchor.json(), &head.json())
    }
}

/// What became of a text that a model wrote.
pub(crate) enum Written {
    /// It is in the document, which is told with the generation's own event.
    Posting(Posting),
    /// It is of no use any more.
    Nothing,
    /// The document is not at hand now.
    Later,
}

/// The number of the editor that a generation is.
fn editor_of(id: GenerationId) -> u64 {
    MODEL_EDITORS | (id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 13)
}

/// What somebody asked for, and where.
struct Task {
    instruction: String,
    model: Option<Name>,
    /// From where to where, in code units of the text now.
    place: (u32, u32),
    prefix: &'static str,
    sampling: Sampling,
    has_seed: bool,
}

impl Shard {
    /// A client asks that a model write in a document.
    pub(super) fn request_ask_in_document(
        &mut self,
        origin: Origin,
        principal: Arc<Principal>,
        ask: Box<AskInDocument>,
    ) -> Result<(), Reject> {
        self.not_draining()?;
        self.newcomers_are_served()?;
        principal.require(Access::Write, ask.document.as_str())?;
        if ask.instruction.trim().is_empty() || ask.instruction.len() > INSTRUCTION_BYTES_MAX {
            let text = format!("an instruction has 1 to {INSTRUCTION_BYTES_MAX} bytes of text");
            return Err(Reject::new(RejectCode::ParameterInvalid, text));
        }
        self.may_ask_more(origin.link, &principal)?;
        self.admit_request(origin.link)?;
        let partition = self.partition(&principal.tenant, ask.document.as_str());
        self.tell_owner(partition, OwnerMessage::AskInDocument { origin, principal, ask });
        Ok(())
    }

    /// A model shall write in a document of this core.
    pub(crate) fn ask_in_document(&mut self, origin: Origin, principal: &Arc<Principal>, ask: AskInDocument) {
        let document = ChannelKey { tenant: principal.tenant.clone(), channel: ask.document.clone() };
        let found = match self.existing_channel(&document) {
            Ok(Some(channel)) if !channel.is_document() => Err(no_document(&document.channel)),
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(unknown(&document)),
            Err(reject) => Err(reject),
        };
        match found {
            Ok(()) => {
                let (principal, ask) = (Arc::clone(principal), Box::new(ask));
                self.with_document(&document, Waiting::Ask { origin, principal, ask });
            }
            Err(reject) => self.refuse(origin, reject),
        }
    }

    /// A model shall write in a document that is in memory.
    pub(super) fn ask_in_ready_document(
        &mut self,
        origin: Origin,
        principal: &Arc<Principal>,
        document: &ChannelKey,
        ask: AskInDocument,
    ) {
        let AskInDocument { instruction, model, place, max_tokens, temperature, seed, .. } = ask;
        let mut sampling = Sampling { temperature, seed: seed.unwrap_or_default(), ..Sampling::default() };
        if max_tokens > 0 {
            sampling.max_tokens = max_tokens.min(GENERATION_TOKENS_MAX);
        }
        let begun = sampling.check().and_then(|()| self.place_in(document, &place)).and_then(|place| {
            let has_seed = seed.is_some();
            let task = Task { instruction, model, place, prefix: "", sampling, has_seed };
            self.begin_writing(Some(origin), principal, document, task, origin.trace)
        });
        if let Err(reject) = begun {
            self.refuse(origin, reject);
        }
    }

    /// Where a place is in the text of a document now.
    fn place_in(&mut self, document: &ChannelKey, place: &Place) -> Result<(u32, u32), Reject> {
        let nowhere = || {
            let text = format!("the place is not in the text of {}", document.channel);
            Reject::new(RejectCode::ParameterInvalid, text)
        };
        match place {
            Place::Anchors { start, end } => {
                let (start, end) = (Anchor::decode(start)?, Anchor::decode(end)?);
                let ready = self.documents.ready(document).ok_or_else(|| unknown(document))?;
                let start = ready.document.offset(&start).ok_or_else(nowhere)?;
                let end = ready.document.offset(&end).ok_or_else(nowhere)?;
                Ok((start.min(end), start.max(end)))
            }
            Place::Offsets { revision, start, end } => {
                self.flush_document(document);
                let newest = self.decided_revision(document);
                if *revision > newest {
                    return Err(no_revision(&document.channel, *revision, newest));
                }
                let ready = self.documents.ready(document).ok_or_else(|| unknown(document))?;
                let (mut start, mut end) = (*start, *end);
                if *revision != Position(0) && *revision != newest {
                    let since = ready.deltas.as_ref().and_then(|deltas| deltas.since(*revision));
                    let since = since.ok_or_else(|| {
                        let text = format!(
                            "what happened to {} since revision {revision} is not known any more",
                            document.channel
                        );
                        Reject::new(RejectCode::RevisionUnknown, text)
                    })?;
                    for operations in since {
                        // What others put at its ends does not become a part of a selection.
                        let is_empty = start == end;
                        start = operations.offset_after(start, !is_empty);
                        end = if is_empty { start } else { operations.offset_after(end, false).max(start) };
                    }
                }
                if start > end || ready.document.anchor(end, false).is_none() {
                    return Err(nowhere());
                }
                Ok((start, end))
            }
        }
    }

    /// Begins to write in a document that is in memory, at a place.
    fn begin_writing(
        &mut self,
        origin: Option<Origin>,
        principal: &Arc<Principal>,
        document: &ChannelKey,
        task: Task,
        trace: u64,
    ) -> Result<(), Reject> {
        let id = self.may_begin_writing(principal, document)?;
        let (mut sampling, has_seed) = (task.sampling.clone(), task.has_seed);
        let (model, writer) = self.prepare_writer(principal, document, id, task)?;
        let partition = self.partition(&document.tenant, document.channel.as_str());
        let generation = self.next_generation(partition)?;
        if !has_seed {
            sampling.seed = generation.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ self.now.wall_us;
        }
        let asked = ServerOp::Asked { generation, model: model.to_string() };
        let actions = origin.into_iter().map(|origin| Action::Answer { origin, op: asked.clone() }).collect();
        let fallbacks = self.fallbacks(principal, &model);
        let request = GenerationRequest {
            tenant: principal.tenant.clone(),
            user: principal.user.clone(),
            model,
            channel: Some((document.clone(), id)),
            messages: writer.messages.clone(),
            sampling,
            on_detach: OnDetach::Keep(0),
            raw: false,
            priority: Priority::Normal,
            deadline_ms: 0,
        };
        self.counters.document_asks += 1;
        self.generations.writer_begins(document, generation);
        self.count_models(document);
        let state = writer.state(generation);
        self.model_aware(document, generation, editor_of(generation), &writer.user, state);
        let writer = Some(Box::new(writer));
        let begin = Begin { logged: true, credit: LEAD_TOKENS, trace, fallbacks, writer, actions, ..Begin::default() };
        self.begin(generation, Arc::new(request), begin);
        Ok(())
    }

    /// Checks that a model may begin to write in a document for somebody; gives which document that is.
    fn may_begin_writing(&mut self, principal: &Principal, document: &ChannelKey) -> Result<ChannelId, Reject> {
        self.not_draining()?;
        self.storage_has_room()?;
        let channel = self.existing_channel(document)?.ok_or_else(|| unknown(document))?;
        let id = channel.id();
        let access = channel.roster().document_access(principal, &document.channel)?;
        if access != DocumentAccess::Write {
            let text = format!("you may {} {} and let no model write in it", access.as_str(), document.channel);
            return Err(Reject::new(RejectCode::Forbidden, text));
        }
        if self.generations.writers_in(document) >= DOCUMENT_ASKS_MAX {
            let text = format!("{DOCUMENT_ASKS_MAX} models write in {} already; wait or stop one", document.channel);
            return Err(Reject::new(RejectCode::Busy, text).retry_after_ms(WRITERS_DELAY_MS));
        }
        Ok(id)
    }

    /// Chooses who writes, and what it is told.
    fn prepare_writer(
        &mut self,
        principal: &Principal,
        document: &ChannelKey,
        id: ChannelId,
        task: Task,
    ) -> Result<(Name, Writer), Reject> {
        let Task { instruction, model, place: (from, to), prefix, sampling, .. } = task;
        let ready = self.documents.ready(document).ok_or_else(|| unknown(document))?;
        let text = ready.document.text();
        let selected = prompt::between(&text, from, to);
        if selected.len() > DOCUMENT_CONTEXT_BYTES {
            let reject =
                format!("{} bytes are to be written anew; at most {DOCUMENT_CONTEXT_BYTES} are", selected.len());
            return Err(Reject::new(RejectCode::ParameterInvalid, reject));
        }
        let gone = || Reject::new(RejectCode::OperationsInvalid, "the place is not in the document's text");
        let anchor = |offset, after| ready.document.anchor(offset, after).ok_or_else(gone);
        let (start, at) = (anchor(from, false)?, anchor(from, false)?);
        let selection = if from < to { Some((anchor(from, true)?, anchor(to, false)?)) } else { None };
        // Who is chosen is to have room for the least that must be told; the text around gets what is left.
        let least = prompt::messages(&Around::default(), selected, &instruction);
        let need = Need { max_tokens: sampling.max_tokens, ..Need::of_conversation(&least) };
        let model = self.route(principal, model.as_ref(), &need)?;
        let tokens = self.routes().get(model.as_str()).map_or(0, |card| card.context_tokens);
        let left = tokens.saturating_sub(sampling.max_tokens).saturating_sub(need.prompt_tokens());
        // Half as many bytes as tokens usually have, since some texts take more tokens than others.
        let room = (left as usize * TOKEN_BYTES / 2).min(DOCUMENT_CONTEXT_BYTES);
        let messages = prompt::messages(&Around::new(&text, from, to, room), selected, &instruction);
        let writer = Writer {
            document: document.clone(),
            id,
            user: author(&model),
            instruction,
            selection,
            selected: selected.to_owned(),
            start,
            at,
            prefix,
            wrote: false,
            messages,
            room,
            refreshes: 0,
            refresh_at: None,
            is_lost: false,
            breaks: 0,
        };
        Ok((model, writer))
    }

    /// While models write in a document it stays in memory.
    fn count_models(&mut self, document: &ChannelKey) {
        let models = self.generations.writers_in(document);
        if let Some(open) = self.documents.open.get_mut(document) {
            (open.models, open.used_us) = (models, self.now.mono_us);
        }
    }

    /// Somebody edited the text of a document. If that ended a line that speaks to a model, the model answers below it.
    pub(super) fn text_edited(
        &mut self,
        document: &ChannelKey,
        principal: &Arc<Principal>,
        operations: &Operations,
        trace: u64,
    ) {
        let Some(at) = prompt::ended_line(operations) else { return };
        let Some(ready) = self.documents.ready(document) else { return };
        let text = ready.document.text();
        let line = prompt::line_before(&text, at);
        let Some(instruction) = line.trim_start().strip_prefix(CALL).map(str::trim) else { return };
        if instruction.is_empty() || instruction.len() > INSTRUCTION_BYTES_MAX {
            return;
        }
        if !self.has_tokens_left(&document.tenant, &principal.user) {
            return;
        }
        let instruction = instruction.to_owned();
        let sampling = Sampling::default();
        let task = Task { instruction, model: None, place: (at, at), prefix: "\n", sampling, has_seed: false };
        if let Err(reject) = self.begin_writing(None, principal, document, task, trace) {
            // Nobody waits for an answer; that it was refused is counted, as any refusal is.
            self.counters.rejects[reject.code as usize] += 1;
        }
    }

    /// Writes what a model said since the last time.
    pub(crate) fn write_in_document(&mut self, generation: GenerationId, text: &[u8]) -> Written {
        let Some(mut writer) = self.take_writer(generation) else { return Written::Nothing };
        if writer.is_lost {
            self.put_writer(generation, writer);
            return Written::Nothing;
        }
        let (document, id, user) = (writer.document.clone(), writer.id, writer.user.clone());
        let text = String::from_utf8_lossy(text);
        let edited = self.model_edits(&document, id, generation, user, |document| writer.write(document, &text));
        let (state, user) = (writer.state(generation), writer.user.clone());
        self.put_writer(generation, writer);
        match edited {
            Ok(Some(posting)) => {
                self.model_aware(&document, generation, editor_of(generation), &user, state);
                Written::Posting(posting)
            }
            Ok(None) => self.write_later(generation, &document, id),
            // It was broken, by this or before, and is read anew.
            Err(_) if self.documents.ready(&document).is_none() && self.may_try_again(generation) => {
                self.write_later(generation, &document, id)
            }
            // Its place is gone, the document is as large as it may be, or it is being deleted.
            Err(_) => {
                self.stop(generation);
                Written::Nothing
            }
        }
    }

    /// Whether a model whose document broke may say the same again.
    fn may_try_again(&mut self, generation: GenerationId) -> bool {
        let Some(writer) = self.writer_mut(generation) else { return false };
        writer.breaks += 1;
        writer.is_lost = writer.breaks > BREAKS_MAX;
        !writer.is_lost
    }

    /// Sees to it that a document comes back into memory, so that a model can go on writing in it.
    fn write_later(&mut self, generation: GenerationId, document: &ChannelKey, id: ChannelId) -> Written {
        if self.channel_id(document).is_none_or(|(now, _)| now != id) {
            return Written::Nothing;
        }
        if !self.documents.open.contains_key(document) && self.begin_opening(document).is_err() {
            self.stop(generation);
            return Written::Nothing;
        }
        self.count_models(document);
        Written::Later
    }

    /// A document cannot be read: the models that write in it end.
    pub(super) fn writers_lose(&mut self, document: &ChannelKey) {
        for generation in self.generations.writers_of(document) {
            if let Some(writer) = self.writer_mut(generation) {
                writer.is_lost = true;
            }
            self.stop(generation);
        }
    }

    /// What a model wrote is in the log.
    pub(crate) fn model_wrote(&mut self, document: &ChannelKey) {
        self.write_snapshot_if_due(document);
    }

    /// A model has written its last.
    pub(crate) fn writer_ended(&mut self, generation: GenerationId, writer: Writer) {
        if let Some(at) = writer.refresh_at {
            self.deadlines.remove(&(at, Deadline::Refresh(generation)));
        }
        self.generations.writer_ends(&writer.document, generation);
        self.count_models(&writer.document);
        self.model_unaware(&writer.document, generation);
    }

    /// A document was edited, by a model or by somebody else. The models that write in it look at what is around them once it
    /// is at rest.
    pub(super) fn writers_look_around(&mut self, document: &ChannelKey, by: Option<GenerationId>) {
        let at = self.now.mono_us + DOCUMENT_REFRESH_MS * 1_000;
        for generation in self.generations.writers_of(document) {
            if by == Some(generation) {
                continue;
            }
            let Some(writer) = self.writer_mut(generation) else { continue };
            if writer.refreshes >= DOCUMENT_REFRESHES_MAX {
                continue;
            }
            let before = writer.refresh_at.replace(at);
            before.map(|before| self.deadlines.remove(&(before, Deadline::Refresh(generation))));
            self.deadlines.insert((at, Deadline::Refresh(generation)));
        }
    }

    /// The text around a model is at rest: if it is another one than the model was told, the model begins anew.
    pub(crate) fn refresh_due(&mut self, generation: GenerationId) {
        let Some(mut writer) = self.take_writer(generation) else { return };
        writer.refresh_at = None;
        let document = writer.document.clone();
        let retold = self.documents.ready(&document).and_then(|ready| writer.retell(&ready.document));
        let news = retold.filter(|messages| *messages != writer.messages && self.goes_on(generation));
        let refreshes = news.is_some();
        if let Some(messages) = news {
            writer.messages = messages;
            writer.refreshes += 1;
            self.counters.document_refreshes += 1;
        }
        self.put_writer(generation, writer);
        if refreshes {
            self.begin_anew(generation);
        }
    }

    /// Whether a channel of this core is a document.
    pub(crate) fn is_document(&mut self, key: &ChannelKey) -> bool {
        self.channel_mut(key).is_some_and(|channel| channel.is_document())
    }
}
