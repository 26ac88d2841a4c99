//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::response::{IntoResponse, Response};
use thalweg_protocol::generation::AskRequest;
use thalweg_protocol::limits::{GENERATION_TOKENS, LOGPROBS_MAX};
use thalweg_protocol::trace::TraceContext;

use super::asking::{ask_of, choices_of, messages_of, nth, sampling_of};
use super::choice::Answers;
use super::parameters::ChatRequest;
use super::tools::{self, Calling};
use super::writing::{Endpoint, Writer};
use super::{Caller, intake, stream, trace_of};
use crate::error::Refusal;
use crate::port::Session;
use crate::stage::Stage;

/// What a request means.
pub(super) struct Plan {
    pub(super) asks: Vec<AskRequest>,
    pub(super) per_prompt: usize,
    pub(super) calling: Calling,
    pub(super) endpoint: Endpoint,
    pub(super) logprobs: bool,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
}

pub(super) async fn create(
    State(stage): State<Arc<Stage>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, Refusal> {
    let (headers, context) = (request.headers().clone(), trace_of(request.headers()));
    // First who it is: nobody else's body is read.
    let session = caller.session(&stage, &headers).await?;
    plan(intake::read(&stage, request).await?)?.carry_out(&session, context).await
}

impl Plan {
    /// Asks, and tells what comes.
    pub(super) async fn carry_out(
        self,
        session: &Arc<Session>,
        context: Option<TraceContext>,
    ) -> Result<Response, Refusal> {
        let Self { asks, per_prompt, calling, endpoint, logprobs, stream, include_usage } = self;
        let mut answers = Answers::open(session, asks, per_prompt, calling, context).await?;
        let mut writer = Writer::new(endpoint, answers.about(), answers.count(), logprobs, include_usage && stream);
        if stream {
            answers.begin().await?;
            return Ok(stream::respond(answers, writer));
        }
        while let Some(piece) = std::future::poll_fn(|cx| answers.poll_piece(cx)).await {
            let (index, piece) = piece?;
            writer.gather(index, piece);
        }
        Ok(Json(writer.whole(answers.usage())).into_response())
    }
}

/// What a request means, or what in it cannot be.
pub(super) fn plan(mut request: ChatRequest) -> Result<Plan, Refusal> {
    refuse_unsupported(&request)?;
    let logprobs = match (request.logprobs.unwrap_or(false), request.top_logprobs) {
        (true, top) => Some(top.unwrap_or(0)),
        (false, None | Some(0)) => None,
        (false, Some(_)) => {
            return Err(Refusal::parameter("top_logprobs", "top_logprobs needs logprobs to be true"));
        }
    };
    if let Some(top) = logprobs.filter(|&top| top > LOGPROBS_MAX) {
        return Err(Refusal::parameter("top_logprobs", format!("top_logprobs is {top}; at most {LOGPROBS_MAX}")));
    }
    if request.messages.is_empty() {
        return Err(Refusal::parameter("messages", "messages is empty; give at least one"));
    }
    let knobs = request.knobs();
    let max_tokens = request.max_completion_tokens.or(knobs.max_tokens).unwrap_or(GENERATION_TOKENS);
    let mut sampling = sampling_of(&knobs, max_tokens, logprobs)?;
    let mut messages = messages_of(request.messages)?;
    let given = request.tools.unwrap_or_default();
    let calling = tools::apply(given, request.tool_choice, &mut messages, &mut sampling.constraint)?;
    let per_prompt = choices_of(knobs.n, 1)?;
    let ask = ask_of(&knobs, messages, sampling)?;
    Ok(Plan {
        asks: (0..per_prompt).map(|index| nth(&ask, index)).collect(),
        per_prompt,
        calling,
        endpoint: Endpoint::Chat,
        logprobs: logprobs.is_some() && calling != Calling::Must,
        stream: knobs.stream,
        include_usage: knobs.include_usage,
    })
}

/// What would change what the answer means, if it were ignored.
fn refuse_unsupported(request: &ChatRequest) -> Result<(), Refusal> {
    let refuse = |field: &str, instead: &str| {
        let text = format!("{field} is not supported{instead}");
        Err(Refusal::parameter(field, text))
    };
    if request.functions.is_some() {
        return refuse("functions", "; give them as tools");
    }
    if request.function_call.is_some() {
        return refuse("function_call", "; use tool_choice");
    }
    if request.audio.is_some() {
        return refuse("audio", "; this node's models write text only");
    }
    if request.web_search_options.is_some() {
        return refuse("web_search_options", "; this node searches nothing");
    }
    if request.modalities.as_ref().is_some_and(|modalities| modalities.iter().any(|modality| modality != "text")) {
        return refuse("modalities", " but for text");
    }
    if request.store == Some(true) {
        return refuse("store", "; answers are not kept for later use");
    }
    // One call at a time satisfies both values.
    let _ = request.parallel_tool_calls;
    Ok(())
}
