//! Going away: tell everybody, finish what was begun, close.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use thalweg_protocol::ids::Request;
use thalweg_protocol::limits::{DRAIN_MS, RECONNECT_DELAY_MS};
use thalweg_protocol::op::ServerOp;
use thalweg_protocol::reject::RejectCode;
use thalweg_shard::Input;

use crate::core_loop::Core;

/// Between two looks at whether a draining core is done.
const STEP: Duration = Duration::from_millis(10);
/// What was sent last gets this long to arrive before a draining core is gone.
const LINGER: Duration = Duration::from_millis(300);

/// How far a core is with going away.
pub(crate) struct Drain {
    deadline: Instant,
    next_step: Instant,
    /// When the last connections were closed; then it lingers.
    closed: Option<Instant>,
    /// How long the shard has had nothing to do.
    idle_since: Option<Instant>,
}

impl Core {
    pub(crate) fn next_drain_step(&self) -> Option<Instant> {
        self.draining.as_ref().map(|drain| drain.next_step)
    }

    /// Whether the core may go.
    pub(crate) fn drained(&self, now: Instant) -> bool {
        let closed = self.draining.as_ref().and_then(|drain| drain.closed);
        closed.is_some_and(|closed| now - closed >= LINGER || self.quic.connections() == 0 && self.web.is_empty())
    }

    /// Begins to drain when told to, and closes the connections when everything is done or the time is up.
    pub(crate) fn drain_step(&mut self, now: Instant) -> usize {
        let Some(drain) = &mut self.draining else {
            if !self.shared.drain.load(Ordering::Acquire) {
                return 0;
            }
            self.begin_drain(now);
            return 1;
        };
        if drain.next_step > now {
            return 0;
        }
        drain.next_step = now + STEP;
        if !self.shard.is_idle() || self.mesh.backlog() > 0 || self.embeds.len() > 0 {
            drain.idle_since = None;
        }
        // What is on its way over the mesh is not idle yet: the core must have been quiet for more than a step.
        let idle = self.shard.is_idle() && now - *drain.idle_since.get_or_insert(now) > 2 * STEP;
        if drain.closed.is_none() && (idle || now >= drain.deadline) {
            drain.closed = Some(now);
            for link in self.sessions.all() {
                self.close(now, link, RejectCode::Draining, "the node is restarting; come back");
            }
            return 1;
        }
        0
    }

    fn begin_drain(&mut self, now: Instant) {
        let deadline = now + Duration::from_millis(DRAIN_MS);
        self.draining = Some(Drain { deadline, next_step: now + STEP, closed: None, idle_since: None });
        let at = self.now();
        self.shard.handle(at, Input::Drain);
        let op = ServerOp::ServerRestarting { reconnect_delay_ms: RECONNECT_DELAY_MS };
        for link in self.sessions.open() {
            self.reply(now, link, Request(0), &op);
        }
    }
}
