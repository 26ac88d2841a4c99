//! What is asked: the same questions in the same order for the same options, whichever way they go.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use thalweg_protocol::limits::GENERATION_TOKENS_MAX;
use thalweg_workload::behaviour::prompt;

use super::chat_lengths::TURNS;
use crate::cli::{Lengths, TokensArgs};

/// Tokens that stand for a word of an answer: vocabularies of today need about four for three English words.
const TOKENS_PER_WORD: f64 = 4.0 / 3.0;
/// What is added to a token's logit so that it is not drawn.
pub(super) const NEVER: f32 = -100.0;

/// One question.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Question {
    /// What all questions begin with.
    pub(super) system: Option<String>,
    pub(super) prompt: String,
    /// Most tokens of the answer.
    pub(super) length: u32,
    pub(super) seed: u64,
}

/// Makes questions.
pub(super) struct Questions<'a> {
    args: &'a TokensArgs,
    system: Option<String>,
    rng: StdRng,
    asked: u64,
}

impl<'a> Questions<'a> {
    pub(super) fn new(args: &'a TokensArgs) -> Self {
        let mut rng = StdRng::seed_from_u64(args.seed);
        let system = (args.system_words > 0).then(|| prompt(args.system_words, &mut rng));
        Self { args, system, rng, asked: 0 }
    }

    pub(super) fn next(&mut self) -> Question {
        let (words, length) = match self.args.lengths {
            Lengths::Fixed => (self.args.prompt_words, self.args.length),
            Lengths::Chat => {
                let (words, answer) = TURNS[self.rng.random_range(0..TURNS.len())];
                let tokens = (f64::from(answer) * TOKENS_PER_WORD).ceil() as u32;
                (u32::from(words), tokens.clamp(1, GENERATION_TOKENS_MAX))
            }
        };
        let prompt = match &self.args.prompt {
            Some(text) => text.clone(),
            None => prompt(words, &mut self.rng),
        };
        self.asked += 1;
        Question { system: self.system.clone(), prompt, length, seed: self.asked }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        tokens: TokensArgs,
    }

    fn first(line: &str, count: usize) -> Vec<Question> {
        let cli = Cli::parse_from(std::iter::once("tokens").chain(line.split_whitespace()));
        let mut questions = Questions::new(&cli.tokens);
        (0..count).map(|_| questions.next()).collect()
    }

    #[test]
    fn questions_depend_on_the_options_alone() {
        let words = |question: &Question| question.prompt.split(' ').count();
        let fixed = first("--prompt-words 7 --length 5", 3);
        assert_eq!(fixed, first("--prompt-words 7 --length 5", 3));
        assert!(fixed.iter().all(|q| words(q) == 7 && q.length == 5 && q.system.is_none()), "{fixed:?}");
        assert_ne!(fixed[0].prompt, fixed[1].prompt, "no two prompts share what can be cached");
        assert_ne!(fixed[0].prompt, first("--prompt-words 7 --length 5 --seed 2", 1)[0].prompt);
        let common = first("--system-words 40", 2);
        assert!(common[0].system.as_ref().is_some_and(|s| s.split(' ').count() == 40));
        assert_eq!(common[0].system, common[1].system);
    }

    #[test]
    fn lengths_of_chats_are_those_of_real_ones() {
        let mut lengths: Vec<(usize, u32)> =
            first("--lengths chat", 2_000).iter().map(|q| (q.prompt.split(' ').count(), q.length)).collect();
        let is_one = |&(words, tokens): &(usize, u32)| {
            let tokens_of = |answer: u16| (f64::from(answer) * TOKENS_PER_WORD).ceil() as u32;
            TURNS.iter().any(|&(before, answer)| usize::from(before) == words && tokens_of(answer) == tokens)
        };
        assert!(lengths.iter().all(is_one));
        lengths.sort_unstable();
        lengths.dedup();
        assert!(lengths.len() > TURNS.len() / 2, "many of them occur");
    }
}
