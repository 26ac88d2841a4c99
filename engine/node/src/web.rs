//! A core's end of the web stage: what is asked over HTTP and only a core can answer, and the sessions of its clients.
//!
//! A web session is a connection like those over QUIC, with a link whose number no link of the transport has: the same
//! hello, gate, limits, audit and shard. What differs is that its operations come decoded and its frames leave by ring.

use std::collections::VecDeque;
use std::time::Instant;

use thalweg_protocol::ids::Request;
use thalweg_protocol::limits::TURN_INPUTS_MAX;
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_quic::Link;
use thalweg_shard::Input;
use thalweg_web::{
    CoreEnd, Question, Said, SessionEvent, SessionInput, SessionNews, SessionOutput, WebAnswer, WebRequest,
};

use crate::connection::Connection;
use crate::core_loop::Core;
use crate::report::Asker;
use crate::sessions::shard_link;
use crate::stats::CoreStats;

/// Set in the number of every link of a web session. The transport's have how often a slot was used before in their upper
/// half, which does not get this far.
const WEB: u64 = 1 << 63;
/// The session's number lies below the thread's index; a thread would have to open a million sessions a second for years
/// to use them up.
const SESSION_BITS: u32 = 48;

/// What a token must allow admin of, for its holder to see the metrics.
const METRICS: &str = "metrics";

/// The ends of the rings to those threads of the web stage that ask this core.
pub(crate) struct WebDesk {
    ends: Vec<CoreEnd>,
    /// Sessions that this core ended and that are still in its books.
    closed: VecDeque<Link>,
    opened: u64,
}

/// Whether a link is that of a web session.
pub(crate) fn is_web(link: Link) -> bool {
    link.number() & WEB != 0
}

/// The link of a session of the thread with this index.
fn link_of(thread: usize, session: u64) -> Link {
    Link::from_number(WEB | (thread as u64) << SESSION_BITS | session & ((1 << SESSION_BITS) - 1))
}

/// The thread and the session of a web session's link.
fn session_of(link: Link) -> (usize, u64) {
    let number = link.number() & !WEB;
    ((number >> SESSION_BITS) as usize, number & ((1 << SESSION_BITS) - 1))
}

impl WebDesk {
    pub(crate) fn new(ends: Vec<CoreEnd>) -> Self {
        Self { ends, closed: VecDeque::new(), opened: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.closed.is_empty() && self.ends.iter().all(CoreEnd::is_empty)
    }

    /// Tells a session something.
    pub(crate) fn tell(&mut self, link: Link, what: SessionNews) {
        debug_assert!(is_web(link), "the transport's links are the transport's");
        let (thread, session) = session_of(link);
        if let Some(end) = self.ends.get_mut(thread) {
            end.tell(SessionOutput { session, what });
        }
    }

    /// Ends a session; the books follow in the next turn.
    pub(crate) fn close(&mut self, link: Link, code: RejectCode, text: &str) {
        self.tell(link, SessionNews::Closed(Reject::new(code, text.to_owned())));
        self.closed.push_back(link);
    }

    pub(crate) fn count(&self, stats: &mut CoreStats) {
        stats.counters.insert("web_sessions_opened", self.opened);
        let backlog: usize = self.ends.iter().map(CoreEnd::backlog).sum();
        stats.gauges.insert("web_backlog", backlog as u64);
    }

    /// Answers a request of the thread with this index.
    pub(crate) fn answer(&mut self, thread: usize, number: u64, said: Result<Said, Reject>) {
        if let Some(end) = self.ends.get_mut(thread) {
            end.answer(WebAnswer { number, said });
        }
    }
}

impl Core {
    /// Takes what the web stage asks, and what its sessions do.
    pub(crate) fn web_requests(&mut self, now: Instant) -> usize {
        let mut work = self.web.closed.len();
        while let Some(link) = self.web.closed.pop_front() {
            self.connection_closed(link);
        }
        for thread in 0..self.web.ends.len() {
            self.web.ends[thread].flush();
            for _ in 0..TURN_INPUTS_MAX {
                let Some(input) = self.web.ends[thread].session_input() else { break };
                work += 1;
                self.web_session(now, thread, input);
            }
        }
        for thread in 0..self.web.ends.len() {
            for _ in 0..TURN_INPUTS_MAX {
                let Some(request) = self.web.ends[thread].receive() else { break };
                work += 1;
                self.web_request(thread, request);
            }
        }
        work
    }

    fn web_session(&mut self, now: Instant, thread: usize, input: SessionInput) {
        let SessionInput { session, what } = input;
        let link = link_of(thread, session);
        match what {
            SessionEvent::Open { remote, hello } => {
                self.web.opened += 1;
                self.sessions.connected(link, Connection::new(remote));
                self.hello(now, link, Request(0), *hello);
            }
            SessionEvent::Request { request, op, context } => self.operation(now, link, request, Ok(op), context),
            SessionEvent::Drained { bytes } => {
                let at = self.now();
                self.shard.handle(at, Input::Drained { link: shard_link(link), bytes });
            }
            SessionEvent::Close => self.connection_closed(link),
        }
    }

    fn web_request(&mut self, thread: usize, request: WebRequest) {
        let WebRequest { number, question } = request;
        match question {
            Question::Measure { token } => match self.may_measure(token.as_deref()) {
                Ok(()) => self.begin_report(Instant::now(), Asker::Web { thread, number }),
                Err(reject) => self.web.answer(thread, number, Err(reject)),
            },
        }
    }

    fn may_measure(&self, token: Option<&str>) -> Result<(), Reject> {
        // Who needs none was let in by the stage.
        let Some(token) = token else { return Ok(()) };
        if self.administers(token, METRICS)? {
            return Ok(());
        }
        let text = "the token does not allow admin of metrics; `thalweg admin token --allow admin:metrics` makes one";
        Err(Reject::new(RejectCode::Forbidden, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_web_sessions_are_told_apart() {
        let check = |thread: usize, session: u64| {
            let link = link_of(thread, session);
            assert!(is_web(link));
            assert_eq!(session_of(link), (thread, session));
        };
        check(0, 1);
        check(7, (1 << SESSION_BITS) - 1);
        check(255, 12_345);
        // A slot of the transport's that was used two thousand million times.
        assert!(!is_web(Link::from_number((i32::MAX as u64) << 32 | 5)));
    }
}
