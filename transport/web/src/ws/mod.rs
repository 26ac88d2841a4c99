//! WebSockets (RFC 6455): documents for stock editors, and everything for those who write their own.
//!
//! A connection is upgraded ([`upgrade`]), and from then on a [`socket`] carries messages between its client and the
//! sessions that its [`protocol`] opens on the core behind the thread: [`yjs`], [`hocuspocus`] or [`json`]. What a client may
//! do is decided by its core, as it is for clients over QUIC.

mod close;
mod gauge;
mod hocuspocus;
mod json;
mod lib0;
mod protocol;
mod replica;
mod socket;
mod upgrade;
mod yjs;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use thalweg_protocol::ids::Name;
use thalweg_protocol::reject::{Reject, RejectCode};

use crate::error::Refusal;
use crate::stage::Stage;
use hocuspocus::Hocuspocus;
use json::Json;
use yjs::Yjs;

/// The endpoints, as they stand in metrics and in the node's log.
pub(crate) const ENDPOINTS: [&str; 3] = ["yjs", "hocuspocus", "ws"];

/// What is said over `/ws`, as JSON Schema. Kept by hand; a test holds every message that is sent to it.
const SCHEMA: &str = include_str!("../../schema/ws.schema.json");

pub(crate) fn routes() -> Router<Arc<Stage>> {
    Router::new()
        .route("/yjs/{*document}", get(yjs))
        .route("/hocuspocus", get(hocuspocus))
        .route("/ws", get(ws))
        .route("/ws/schema.json", get(schema))
}

async fn schema() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/schema+json")], SCHEMA)
}

async fn yjs(
    State(stage): State<Arc<Stage>>,
    Path(document): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    let upgrade = upgrade::read(&stage, 0, request)?;
    // In a browser a page does not see how an upgrade was refused: what is wrong is said over the socket.
    let document = Name::new(&document).map_err(|error| {
        let text = format!("the document's name, which is what follows /yjs/, {error}");
        Reject::new(RejectCode::NameInvalid, text)
    });
    let protocol = match (document, upgrade.token()) {
        (Err(reject), _) => Err(reject),
        (_, None) => Err(upgrade::no_token()),
        (Ok(document), Some(token)) => Ok(Yjs::new(document, token)),
    };
    Ok(upgrade.accept(stage, protocol))
}

async fn hocuspocus(State(stage): State<Arc<Stage>>, request: Request) -> Result<Response, Refusal> {
    let upgrade = upgrade::read(&stage, 1, request)?;
    Ok(upgrade.accept(stage, Ok(Hocuspocus::default())))
}

async fn ws(State(stage): State<Arc<Stage>>, request: Request) -> Result<Response, Refusal> {
    let upgrade = upgrade::read(&stage, 2, request)?;
    let token = upgrade.token();
    Ok(upgrade.accept(stage, Ok(Json::new(token))))
}
