//! How the tokens of one answer are drawn: what it said so far and what it has to follow.

use bytes::Bytes;
use thalweg_protocol::generation::{Sampling, TokenChance, TokenDetail};

use crate::constraint::{Follower, Lost};
use crate::sampling::{DrawError, History, Sampler, logprobs};
use crate::tokenizer::Vocabulary;

/// A token that was drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawn {
    /// Its number.
    pub token: u32,
    /// Whether the constraint is satisfied with it, and nothing can follow.
    pub complete: bool,
    /// How likely it was, if that was asked for.
    pub detail: Option<Box<TokenDetail>>,
}

/// Why no token was drawn.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DrawingError {
    /// The logits give none.
    #[error(transparent)]
    Draw(#[from] DrawError),
    /// The constraint was lost.
    #[error(transparent)]
    Lost(#[from] Lost),
}

/// See the module. Two of the same request that went through the same tokens draw the same ones from then on.
#[derive(Debug)]
pub struct Drawing {
    sampling: Sampling,
    history: Option<History>,
    follower: Option<Follower>,
}

impl Drawing {
    /// `prompt`: its tokens; `follower`: of the constraint in `sampling`.
    pub fn new(sampling: Sampling, prompt: &[u32], follower: Option<Follower>) -> Self {
        Self { history: History::new(&sampling, prompt), sampling, follower }
    }

    /// A token that had been drawn before this began. Gives whether the constraint is satisfied with it.
    ///
    /// # Errors
    /// [`Lost`] if it does not follow the constraint.
    pub fn replay(&mut self, token: u32) -> Result<bool, Lost> {
        if let Some(history) = &mut self.history {
            history.push(token);
        }
        self.follower.as_mut().map_or(Ok(false), |follower| follower.push(token))
    }

    /// Draws the token at `index` of the answer.
    ///
    /// # Errors
    /// See [`DrawingError`].
    pub fn draw(
        &mut self,
        sampler: &mut Sampler,
        logits: &[f32],
        index: u32,
        vocabulary: &Vocabulary,
    ) -> Result<Drawn, DrawingError> {
        let Self { sampling, history, follower } = self;
        let allowed = follower.as_mut().map(Follower::allowed).transpose()?;
        let token = sampler.draw_among(logits, sampling, index, history.as_ref(), allowed)?;
        if let Some(history) = history {
            history.push(token);
        }
        let complete = follower.as_mut().map_or(Ok(false), |follower| follower.push(token))?;
        let detail = sampling.logprobs.map(|count| Box::new(detail(logits, index, token, count.into(), vocabulary)));
        Ok(Drawn { token, complete, detail })
    }
}

fn detail(logits: &[f32], index: u32, id: u32, count: usize, vocabulary: &Vocabulary) -> TokenDetail {
    let text = |id| Bytes::copy_from_slice(vocabulary.bytes(id));
    let (logprob, top) = logprobs(logits, id, count);
    let top = top.into_iter().map(|(id, logprob)| TokenChance { id, text: text(id), logprob });
    TokenDetail { index, id, text: text(id), logprob, top: top.collect() }
}
