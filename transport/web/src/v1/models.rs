//! `GET /v1/models` and `GET /v1/models/{id}`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::HeaderMap;
use serde_json::{Value, json};
use thalweg_protocol::reject::{Reject, RejectCode};

use super::Caller;
use crate::error::Refusal;
use crate::stage::Stage;

/// What a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ModelKind {
    /// It answers.
    Chat,
    /// It says what texts are about.
    Embedding,
}

/// A model that can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelCard {
    /// The name requests give.
    pub name: String,
    /// What it is for.
    pub kind: ModelKind,
    /// Its class: a request may name that instead.
    pub class: String,
    /// What a token of it costs compared with the others.
    pub cost: u32,
    /// Whether it can be asked, in a word: `ready`, `loading`, `draining`, `down`, `trying`.
    pub state: &'static str,
    /// Longest conversation and answer together, or longest text, in tokens.
    pub context_tokens: u32,
    /// When it was loaded, in seconds since 1970.
    pub loaded_s: u64,
}

/// Says which models there are, the default first, at any time and from any thread, without asking a core.
pub type ModelList = Arc<dyn Fn() -> Vec<ModelCard> + Send + Sync>;

impl ModelCard {
    fn write(&self) -> Value {
        let kind = match self.kind {
            ModelKind::Chat => "chat",
            ModelKind::Embedding => "embedding",
        };
        json!({
            "id": self.name, "object": "model", "created": self.loaded_s, "owned_by": "thalweg",
            "context_length": self.context_tokens, "kind": kind, "class": self.class, "cost": self.cost,
            "state": self.state,
        })
    }
}

fn cards(stage: &Stage) -> Vec<ModelCard> {
    let mut cards = stage.models();
    // The order of each kind stays, for the first is the default.
    cards.sort_by_key(|card| card.kind);
    cards
}

pub(super) async fn list(
    State(stage): State<Arc<Stage>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    caller.session(&stage, &headers).await?;
    let data: Vec<Value> = cards(&stage).iter().map(ModelCard::write).collect();
    Ok(Json(json!({"object": "list", "data": data})))
}

pub(super) async fn one(
    State(stage): State<Arc<Stage>>,
    Extension(caller): Extension<Caller>,
    Path(model): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    caller.session(&stage, &headers).await?;
    let cards = cards(&stage);
    if let Some(card) = cards.iter().find(|card| card.name == model) {
        return Ok(Json(card.write()));
    }
    let names: Vec<&str> = cards.iter().map(|card| card.name.as_str()).collect();
    let text = match &names[..] {
        [] => "this node has no model; `thalweg models pull` gets one".to_owned(),
        names => format!("there is no such model; this node has {}", names.join(", ")),
    };
    Err(Reject::new(RejectCode::ModelUnknown, text).into())
}
