//! `POST /v1/completions`: the prompt as it stands, without a chat template.

use std::sync::Arc;

use axum::extract::{Extension, Request, State};
use axum::response::Response;
use thalweg_protocol::generation::{AskRequest, ChatMessage, Role};

use super::asking::{ask_of, choices_of, nth, sampling_of};
use super::chat::Plan;
use super::parameters::CompletionRequest;
use super::tools::Calling;
use super::writing::Endpoint;
use super::{Caller, intake, trace_of};
use crate::error::Refusal;
use crate::stage::Stage;

/// Tokens of an answer to a request that does not say (OpenAI's default).
const TOKENS: u32 = 16;
/// Likeliest tokens that are told (OpenAI's limit of this endpoint).
const TOP_LOGPROBS_MAX: u8 = 5;

pub(super) async fn create(
    State(stage): State<Arc<Stage>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Refusal> {
    let (headers, context) = (request.headers().clone(), trace_of(request.headers()));
    let session = caller.session(&stage, &headers).await?;
    plan(intake::read(&stage, request).await?)?.carry_out(&session, context).await
}

/// What a request means, or what in it cannot be.
pub(super) fn plan(mut request: CompletionRequest) -> Result<Plan, Refusal> {
    let knobs = request.knobs();
    if request.echo == Some(true) {
        return Err(Refusal::parameter("echo", "echo is not supported; the prompt is yours already"));
    }
    if request.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
        return Err(Refusal::parameter(
            "suffix",
            "suffix is not supported; this node's models write from left to right",
        ));
    }
    if request.best_of.is_some_and(|best_of| best_of != knobs.n.unwrap_or(1)) {
        return Err(Refusal::parameter("best_of", "best_of is not supported; ask for n answers and choose among them"));
    }
    if let Some(top) = request.logprobs.filter(|&top| top > TOP_LOGPROBS_MAX) {
        return Err(Refusal::parameter("logprobs", format!("logprobs is {top}; at most {TOP_LOGPROBS_MAX}")));
    }
    let prompts = request.prompt.into_vec();
    if prompts.is_empty() || prompts.iter().any(String::is_empty) {
        return Err(Refusal::parameter("prompt", "prompt is empty; give at least one character of each"));
    }
    let per_prompt = choices_of(knobs.n, prompts.len())?;
    let sampling = sampling_of(&knobs, knobs.max_tokens.unwrap_or(TOKENS), request.logprobs)?;
    let mut asks = Vec::new();
    for content in prompts {
        let messages = vec![ChatMessage { role: Role::User, content }];
        let ask = AskRequest { raw: true, ..ask_of(&knobs, messages, sampling.clone())? };
        asks.extend((0..per_prompt).map(|index| nth(&ask, index)));
    }
    Ok(Plan {
        asks,
        per_prompt,
        calling: Calling::Off,
        endpoint: Endpoint::Completions,
        logprobs: request.logprobs.is_some(),
        stream: knobs.stream,
        include_usage: knobs.include_usage,
    })
}
