//! A core's end of the web stage: what is asked over HTTP and only a core can answer.

use std::time::Instant;

use thalweg_protocol::limits::TURN_INPUTS_MAX;
use thalweg_protocol::reject::{Reject, RejectCode};
use thalweg_web::{CoreEnd, Question, Said, WebAnswer, WebRequest};

use crate::core_loop::Core;
use crate::report::Asker;

/// What a token must allow admin of, for its holder to see the metrics.
const METRICS: &str = "metrics";

/// The ends of the rings to those threads of the web stage that ask this core.
pub(crate) struct WebDesk {
    ends: Vec<CoreEnd>,
}

impl WebDesk {
    pub(crate) fn new(ends: Vec<CoreEnd>) -> Self {
        Self { ends }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ends.iter().all(CoreEnd::is_empty)
    }

    /// Answers a request of the thread with this index.
    pub(crate) fn answer(&mut self, thread: usize, number: u64, said: Result<Said, Reject>) {
        if let Some(end) = self.ends.get_mut(thread) {
            end.answer(WebAnswer { number, said });
        }
    }
}

impl Core {
    /// Takes what the web stage asks.
    pub(crate) fn web_requests(&mut self) -> usize {
        let mut work = 0;
        for thread in 0..self.web.ends.len() {
            for _ in 0..TURN_INPUTS_MAX {
                let Some(request) = self.web.ends[thread].receive() else { break };
                work += 1;
                self.web_request(thread, request);
            }
        }
        work
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
