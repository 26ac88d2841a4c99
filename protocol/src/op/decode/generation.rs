//! What is asked of models, and what they say.

use bytes::Bytes;

use super::{body, invalid, name};
use crate::generated::thalweg::wire;
use crate::generation::{
    AskRequest, ChatMessage, Constraint, FinishReason, OnDetach, Priority, Role, Sampling, TokenChance, TokenDetail,
    Usage, check_embed_texts,
};
use crate::limits::{
    CONSTRAINT_BYTES_MAX, EMBED_TEXTS_MAX, EMBED_VALUES_MAX, GENERATION_TOKENS, LOGIT_BIASES_MAX, LOGPROBS_MAX,
    TOKEN_DETAILS_MAX,
};
use crate::op::{ClientOp, ServerOp};
use crate::reject::{Reject, RejectCode};

pub(super) fn read_ask(table: &wire::Ask<'_>) -> Result<AskRequest, Reject> {
    let messages = table.messages().into_iter().flatten().map(|message| {
        let role = match message.role() {
            wire::Role::System => Role::System,
            wire::Role::User => Role::User,
            wire::Role::Assistant => Role::Assistant,
            wire::Role::Tool => Role::Tool,
            other => return Err(invalid(format!("role is {}; 0 to 3", other.0))),
        };
        Ok(ChatMessage { role, content: message.content().unwrap_or_default().to_owned() })
    });
    let request = AskRequest {
        model: table.model().map(|model| name("model", Some(model))).transpose()?,
        messages: messages.collect::<Result<_, _>>()?,
        sampling: read_sampling(table)?,
        has_seed: table.has_seed(),
        on_detach: match table.keep_ms() {
            0 => OnDetach::Cancel,
            ms => OnDetach::Keep(ms.into()),
        },
        lead: table.lead(),
        raw: table.raw(),
        priority: match table.priority() {
            wire::Priority::Normal => Priority::Normal,
            wire::Priority::Low => Priority::Low,
            wire::Priority::High => Priority::High,
            other => return Err(invalid(format!("priority is {}; 0 to 2", other.0))),
        },
        deadline_ms: table.deadline_ms(),
    };
    request.check()?;
    Ok(request)
}

fn read_sampling(table: &wire::Ask<'_>) -> Result<Sampling, Reject> {
    let biases = table.logit_bias().map_or(0, |biases| biases.len());
    if biases > LOGIT_BIASES_MAX {
        let text = format!("logit_bias has {biases} tokens; at most {LOGIT_BIASES_MAX}");
        return Err(Reject::new(RejectCode::ParameterInvalid, text));
    }
    Ok(Sampling {
        temperature: table.temperature(),
        top_p: table.top_p(),
        top_k: table.top_k(),
        min_p: table.min_p(),
        repetition_penalty: table.repetition_penalty(),
        frequency_penalty: table.frequency_penalty(),
        presence_penalty: table.presence_penalty(),
        logit_bias: table.logit_bias().into_iter().flatten().map(|bias| (bias.id(), bias.bias())).collect(),
        logprobs: table.has_logprobs().then(|| table.logprobs()),
        constraint: read_constraint(table)?,
        seed: table.seed(),
        max_tokens: if table.max_tokens() == 0 { GENERATION_TOKENS } else { table.max_tokens() },
        stop: table.stop().into_iter().flatten().map(str::to_owned).collect(),
    })
}

fn read_constraint(table: &wire::Ask<'_>) -> Result<Constraint, Reject> {
    let text = table.constraint().unwrap_or_default();
    if text.len() > CONSTRAINT_BYTES_MAX {
        let text = format!("constraint has {} bytes; at most {CONSTRAINT_BYTES_MAX}", text.len());
        return Err(Reject::new(RejectCode::ParameterInvalid, text));
    }
    Ok(match table.constraint_kind() {
        wire::ConstraintKind::None => Constraint::None,
        wire::ConstraintKind::Json => Constraint::Json,
        wire::ConstraintKind::JsonSchema => Constraint::JsonSchema(text.to_owned()),
        wire::ConstraintKind::Regex => Constraint::Regex(text.to_owned()),
        wire::ConstraintKind::Lark => Constraint::Lark(text.to_owned()),
        other => return Err(invalid(format!("constraint_kind is {}; 0 to 4", other.0))),
    })
}

pub(super) fn read_embed(table: &wire::Embed<'_>) -> Result<ClientOp, Reject> {
    let count = table.texts().map_or(0, |texts| texts.len());
    if count > EMBED_TEXTS_MAX {
        let text = format!("texts has {count} entries; 1 to {EMBED_TEXTS_MAX}");
        return Err(Reject::new(RejectCode::ParameterInvalid, text));
    }
    let texts: Vec<String> = table.texts().into_iter().flatten().map(str::to_owned).collect();
    check_embed_texts(&texts)?;
    Ok(ClientOp::Embed { model: table.model().map(|model| name("model", Some(model))).transpose()?, texts })
}

pub(super) fn read_tokens(payload: &Bytes, table: &wire::Tokens<'_>) -> Result<ServerOp, Reject> {
    let details = table.details().map_or(0, |details| details.len());
    if details > TOKEN_DETAILS_MAX {
        return Err(invalid(format!("details has {details} tokens; at most {TOKEN_DETAILS_MAX}")));
    }
    let details = table.details().into_iter().flatten().map(|detail| read_detail(payload, &detail));
    Ok(ServerOp::Tokens {
        index: table.index(),
        count: table.count(),
        text: body(payload, table.text()),
        details: details.collect::<Result<_, _>>()?,
    })
}

fn read_detail(payload: &Bytes, table: &wire::TokenDetail<'_>) -> Result<TokenDetail, Reject> {
    let (chances, texts) = (table.top().map_or(0, |top| top.len()), body(payload, table.texts()));
    if chances > LOGPROBS_MAX.into() {
        return Err(invalid(format!("top has {chances} tokens; at most {LOGPROBS_MAX}")));
    }
    let mut at = 0_usize;
    let top = table.top().into_iter().flatten().map(|chance| {
        let end = at.checked_add(chance.text_bytes() as usize).filter(|&end| end <= texts.len());
        let end = end.ok_or_else(|| invalid("a text of top reaches beyond texts"))?;
        let text = texts.slice(at..end);
        at = end;
        Ok(TokenChance { id: chance.id(), text, logprob: chance.logprob() })
    });
    Ok(TokenDetail {
        index: table.index(),
        id: table.id(),
        text: body(payload, table.text()),
        logprob: table.logprob(),
        top: top.collect::<Result<_, _>>()?,
    })
}

pub(super) fn read_finished(table: &wire::Finished<'_>) -> Result<ServerOp, Reject> {
    Ok(ServerOp::Finished {
        reason: match table.reason() {
            wire::FinishReason::Stop => FinishReason::Stop,
            wire::FinishReason::Length => FinishReason::Length,
            wire::FinishReason::Cancelled => FinishReason::Cancelled,
            wire::FinishReason::Failed => FinishReason::Failed,
            other => return Err(invalid(format!("reason is {}; 0 to 3", other.0))),
        },
        usage: Usage {
            prompt_tokens: table.prompt_tokens(),
            completion_tokens: table.completion_tokens(),
            cached_tokens: table.cached_tokens(),
        },
        message: table.message().unwrap_or_default().to_owned(),
    })
}

pub(super) fn read_embedded(table: &wire::Embedded<'_>) -> Result<ServerOp, Reject> {
    let (values, dimensions) = (table.vectors().map_or(0, |vectors| vectors.len()), table.dimensions());
    if values > EMBED_VALUES_MAX {
        return Err(invalid(format!("vectors has {values} numbers; at most {EMBED_VALUES_MAX}")));
    }
    if !values.is_multiple_of(dimensions.max(1) as usize) {
        return Err(invalid(format!("vectors has {values} numbers, which is no multiple of {dimensions} dimensions")));
    }
    let vectors = table.vectors().into_iter().flatten().collect();
    Ok(ServerOp::Embedded { model: name("model", table.model())?, dimensions, vectors, tokens: table.tokens() })
}
