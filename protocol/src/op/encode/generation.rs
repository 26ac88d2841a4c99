//! What is asked of models, and what they say.

use super::{Builder, Offset};
use crate::generated::thalweg::wire;
use crate::generation::{AskRequest, Constraint, FinishReason, OnDetach, Priority, Role, Sampling, TokenDetail, Usage};
use crate::ids::Name;

fn role(role: Role) -> wire::Role {
    match role {
        Role::System => wire::Role::System,
        Role::User => wire::Role::User,
        Role::Assistant => wire::Role::Assistant,
        Role::Tool => wire::Role::Tool,
    }
}

fn priority(priority: Priority) -> wire::Priority {
    match priority {
        Priority::Normal => wire::Priority::Normal,
        Priority::Low => wire::Priority::Low,
        Priority::High => wire::Priority::High,
    }
}

fn constraint_kind(constraint: &Constraint) -> wire::ConstraintKind {
    match constraint {
        Constraint::None => wire::ConstraintKind::None,
        Constraint::Json => wire::ConstraintKind::Json,
        Constraint::JsonSchema(_) => wire::ConstraintKind::JsonSchema,
        Constraint::Regex(_) => wire::ConstraintKind::Regex,
        Constraint::Lark(_) => wire::ConstraintKind::Lark,
    }
}

pub(super) fn build_ask(b: &mut Builder, ask: &AskRequest) -> (wire::Op, Offset) {
    let messages: Vec<_> = ask
        .messages
        .iter()
        .map(|message| {
            let content = Some(b.create_string(&message.content));
            wire::ChatMessage::create(b, &wire::ChatMessageArgs { role: role(message.role), content })
        })
        .collect();
    let messages = Some(b.create_vector(&messages));
    let sampling = &ask.sampling;
    let stop: Vec<_> = sampling.stop.iter().map(|stop| b.create_string(stop)).collect();
    let stop = Some(b.create_vector(&stop));
    let model = ask.model.as_ref().map(|model| b.create_string(model.as_str()));
    // What is not said is not written, so that a frame without it is that of the first version.
    let constraint = Some(sampling.constraint.text()).filter(|text| !text.is_empty());
    let constraint = constraint.map(|text| b.create_string(text));
    let biases: Vec<_> = sampling.logit_bias.iter().map(|&(id, bias)| wire::TokenBias::new(id, bias)).collect();
    let logit_bias = (!biases.is_empty()).then(|| b.create_vector(&biases));
    let Sampling { temperature, top_p, top_k, min_p, seed, max_tokens, .. } = *sampling;
    let Sampling { repetition_penalty, frequency_penalty, presence_penalty, .. } = *sampling;
    let args = wire::AskArgs {
        model,
        messages,
        stop,
        max_tokens,
        temperature,
        top_p,
        top_k,
        seed,
        has_seed: ask.has_seed,
        keep_ms: match ask.on_detach {
            OnDetach::Cancel => 0,
            OnDetach::Keep(ms) => u32::try_from(ms).unwrap_or(u32::MAX),
        },
        lead: ask.lead,
        min_p,
        repetition_penalty,
        frequency_penalty,
        presence_penalty,
        logit_bias,
        has_logprobs: sampling.logprobs.is_some(),
        logprobs: sampling.logprobs.unwrap_or(0),
        constraint_kind: constraint_kind(&sampling.constraint),
        constraint,
        raw: ask.raw,
        priority: priority(ask.priority),
        deadline_ms: ask.deadline_ms,
    };
    table!(b, Ask, args)
}

pub(super) fn build_embed(b: &mut Builder, model: Option<&Name>, texts: &[String]) -> (wire::Op, Offset) {
    let texts: Vec<_> = texts.iter().map(|text| b.create_string(text)).collect();
    let texts = Some(b.create_vector(&texts));
    let model = model.map(|model| b.create_string(model.as_str()));
    table!(b, Embed, wire::EmbedArgs { model, texts })
}

/// About how many bytes details take in a frame.
pub(super) fn details_bytes(details: &[TokenDetail]) -> usize {
    details.iter().map(|detail| 48 + detail.text.len() + 20 * detail.top.len()).sum()
}

pub(super) fn build_tokens(
    b: &mut Builder,
    (index, count): (u32, u32),
    text: &[u8],
    details: &[TokenDetail],
) -> (wire::Op, Offset) {
    let details: Vec<_> = details.iter().map(|detail| build_detail(b, detail)).collect();
    let details = (!details.is_empty()).then(|| b.create_vector(&details));
    let text = Some(b.create_vector(text));
    table!(b, Tokens, wire::TokensArgs { index, count, text, details })
}

fn build_detail<'b>(b: &mut Builder, detail: &TokenDetail) -> flatbuffers::WIPOffset<wire::TokenDetail<'b>> {
    let TokenDetail { index, id, logprob, .. } = *detail;
    let chances: Vec<_> =
        detail.top.iter().map(|c| wire::TokenChance::new(c.id, c.logprob, c.text.len() as u32)).collect();
    let texts: Vec<u8> = detail.top.iter().flat_map(|chance| chance.text.iter().copied()).collect();
    let text = Some(b.create_vector(&detail.text));
    let top = (!chances.is_empty()).then(|| b.create_vector(&chances));
    let texts = (!texts.is_empty()).then(|| b.create_vector(&texts));
    wire::TokenDetail::create(b, &wire::TokenDetailArgs { index, id, text, logprob, top, texts })
}

pub(super) fn build_finished(b: &mut Builder, reason: FinishReason, usage: Usage, message: &str) -> (wire::Op, Offset) {
    let message = Some(b.create_string(message));
    let reason = match reason {
        FinishReason::Stop => wire::FinishReason::Stop,
        FinishReason::Length => wire::FinishReason::Length,
        FinishReason::Cancelled => wire::FinishReason::Cancelled,
        FinishReason::Failed => wire::FinishReason::Failed,
    };
    let Usage { prompt_tokens, completion_tokens, cached_tokens } = usage;
    table!(b, Finished, wire::FinishedArgs { reason, prompt_tokens, completion_tokens, message, cached_tokens })
}

pub(super) fn build_embedded(
    b: &mut Builder,
    model: &Name,
    dimensions: u32,
    vectors: &[f32],
    tokens: u32,
) -> (wire::Op, Offset) {
    let vectors = Some(b.create_vector(vectors));
    let model = Some(b.create_string(model.as_str()));
    table!(b, Embedded, wire::EmbeddedArgs { model, dimensions, vectors, tokens })
}
