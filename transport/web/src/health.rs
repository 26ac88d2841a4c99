//! Whether the node lives, and whether it takes work.
//!
//! `/health` and `/health/ready` (or `/health/readiness`) say 200 if clients should be sent here; `/health/live` (or
//! `/health/liveness`) says 200 unless the process should be killed and started again. All give the same JSON.
//!
//! A node whose disk is full is ready: reads go on, and writes are refused with a code that says why, which helps its
//! users more than no node. It says `degraded`, and `"writes": false`. So is one that is short of memory.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;

use crate::stage::Stage;

/// Where a node is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It reads its log and loads its models.
    Starting,
    /// It serves.
    Serving,
    /// It finishes what it has and takes nothing new.
    Draining,
    /// It cannot go on: its log failed, or a thread panicked. It is about to end.
    Failed,
}

/// How a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Where it is in its life.
    pub phase: Phase,
    /// Whether its disk is full: writes are refused, reads go on.
    pub storage_full: bool,
    /// How short of memory it is, 0 to 3.
    pub memory_pressure: u8,
    /// Cores it has.
    pub cores: u16,
    /// Those that have not looked around for too long.
    pub silent_cores: Vec<u16>,
    /// How long it has run.
    pub uptime: Duration,
    /// How often a node started on its data; 0 while that is not known.
    pub epoch: u64,
    /// Its version.
    pub version: &'static str,
}

/// Says how the node is, at any time and from any thread, without asking a core.
pub type HealthCheck = Arc<dyn Fn() -> Health + Send + Sync>;

impl Health {
    /// Whether clients should be sent here.
    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Serving && self.silent_cores.is_empty()
    }

    /// Whether the process should be left alone.
    pub fn is_live(&self) -> bool {
        self.phase != Phase::Failed && self.silent_cores.is_empty()
    }

    /// The state in a word.
    pub fn status(&self) -> &'static str {
        match self.phase {
            Phase::Failed => "failed",
            _ if !self.silent_cores.is_empty() => "stalled",
            Phase::Starting => "starting",
            Phase::Draining => "draining",
            Phase::Serving if self.storage_full || self.memory_pressure > 0 => "degraded",
            Phase::Serving => "ok",
        }
    }

    fn answer(&self, good: bool) -> Response {
        let body = json!({
            "status": self.status(),
            "ready": self.is_ready(),
            "live": self.is_live(),
            "draining": self.phase == Phase::Draining,
            "writes": self.phase == Phase::Serving && !self.storage_full && self.memory_pressure < 3,
            "memory_pressure": self.memory_pressure,
            "cores": self.cores,
            "silent_cores": self.silent_cores,
            "uptime_s": self.uptime.as_secs(),
            "epoch": self.epoch,
            "version": self.version,
        });
        if good {
            return Json(body).into_response();
        }
        let mut response = (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response();
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        response
    }
}

pub(crate) fn routes() -> Router<Arc<Stage>> {
    Router::new()
        .route("/health", get(ready))
        .route("/health/ready", get(ready))
        .route("/health/readiness", get(ready))
        .route("/health/live", get(live))
        .route("/health/liveness", get(live))
}

async fn ready(State(stage): State<Arc<Stage>>) -> Response {
    let health = stage.health();
    health.answer(health.is_ready())
}

async fn live(State(stage): State<Arc<Stage>>) -> Response {
    let health = stage.health();
    health.answer(health.is_live())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_should_get_clients_and_who_should_be_killed() {
        let fine = Health {
            phase: Phase::Serving,
            storage_full: false,
            memory_pressure: 0,
            cores: 2,
            silent_cores: Vec::new(),
            uptime: Duration::from_secs(1),
            epoch: 1,
            version: "0",
        };
        let check = |health: Health, expected: (&str, bool, bool)| {
            assert_eq!((health.status(), health.is_ready(), health.is_live()), expected, "{health:?}");
        };
        check(fine.clone(), ("ok", true, true));
        check(Health { storage_full: true, ..fine.clone() }, ("degraded", true, true));
        check(Health { memory_pressure: 1, ..fine.clone() }, ("degraded", true, true));
        check(Health { phase: Phase::Starting, ..fine.clone() }, ("starting", false, true));
        check(Health { phase: Phase::Draining, ..fine.clone() }, ("draining", false, true));
        check(Health { phase: Phase::Failed, ..fine.clone() }, ("failed", false, false));
        check(Health { silent_cores: vec![1], ..fine }, ("stalled", false, false));
    }
}
