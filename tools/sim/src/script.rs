//! What the scripted model says: a function of the generation, the place in it and, where the model is not repeatable, the
//! life of the node; and what it said in which life.

use std::collections::BTreeMap;

use thalweg_protocol::ids::GenerationId;

fn mix(generation: GenerationId, index: u32) -> u64 {
    let mut x = generation.0 ^ u64::from(index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// How a generation ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Close {
    /// With its last token.
    Last,
    /// With an end that is no token.
    End,
    /// By failing.
    Failed,
}

/// Tokens a generation has if nobody ends it earlier: 1 to 160.
pub(crate) fn tokens(generation: GenerationId) -> u32 {
    (mix(generation, u32::MAX) % 160) as u32 + 1
}

pub(crate) fn close(generation: GenerationId) -> Close {
    match mix(generation, u32::MAX - 1) % 10 {
        0 => Close::Failed,
        1..=4 => Close::End,
        _ => Close::Last,
    }
}

/// The token at `index`. `variant` tells models apart that are not repeatable.
pub(crate) fn token(generation: GenerationId, index: u32, variant: u64) -> u32 {
    ((mix(generation, index) ^ variant.wrapping_mul(0x9e37_79b9)) % 32_000) as u32
}

/// The text of a token; some have none.
pub(crate) fn text(token: u32) -> String {
    match token {
        token if token % 11 == 0 => String::new(),
        token if token % 7 == 0 => format!("ü{token} "),
        token => format!("{token} "),
    }
}

/// What a generation consisted of in one life of the node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Version {
    epoch: u64,
    pub(crate) tokens: Vec<u32>,
    text: String,
    /// Where in `text` each token begins.
    starts: Vec<usize>,
}

impl Version {
    pub(crate) fn push(&mut self, token: u32) {
        self.starts.push(self.text.len());
        self.tokens.push(token);
        self.text.push_str(&text(token));
    }

    fn start(&self, token: u32) -> Option<usize> {
        match self.starts.get(token as usize) {
            Some(&start) => Some(start),
            None => (token as usize == self.starts.len()).then_some(self.text.len()),
        }
    }

    /// The text of the tokens `from..to`, if there are that many.
    pub(crate) fn range(&self, from: u32, to: u32) -> Option<&str> {
        self.text.get(self.start(from)?..self.start(to)?)
    }

    pub(crate) fn all(&self) -> &str {
        &self.text
    }
}

/// All that was said. It outlives the node.
#[derive(Debug, Default)]
pub(crate) struct Said {
    generations: BTreeMap<GenerationId, Vec<Version>>,
    prompts: BTreeMap<GenerationId, Vec<u32>>,
    /// Later attempts of generations, the newest last, and what each took the place of.
    attempts: BTreeMap<GenerationId, Vec<GenerationId>>,
    before: BTreeMap<GenerationId, GenerationId>,
}

impl Said {
    /// A later attempt of a generation takes the place of one before.
    pub(crate) fn anew(&mut self, generation: GenerationId, before: GenerationId, attempt: GenerationId) {
        self.attempts.entry(generation).or_default().push(attempt);
        self.before.insert(attempt, before);
    }

    /// Whether tokens were said by what an attempt took the place of.
    fn was_said_before(&self, attempt: GenerationId, produced: &[u32]) -> bool {
        let mut before = self.before.get(&attempt);
        while let Some(id) = before {
            if let Some(last) = self.generations.get(id).and_then(|versions| versions.last()) {
                return last.tokens.starts_with(produced);
            }
            before = self.before.get(id);
        }
        false
    }

    /// A generation begins, or goes on after `produced`. Says what is wrong with that.
    pub(crate) fn begin(
        &mut self,
        generation: GenerationId,
        epoch: u64,
        prompt: &[u32],
        produced: &[u32],
    ) -> Result<(), String> {
        let was_said = produced.is_empty() || self.was_said_before(generation, produced);
        let versions = self.generations.entry(generation).or_default();
        let first = self.prompts.entry(generation).or_insert_with(|| prompt.to_vec());
        let sound = match versions.last() {
            Some(last) if last.epoch == epoch => Err(format!("{generation} was begun twice in one life")),
            Some(last) if !last.tokens.starts_with(produced) => {
                Err(format!("{generation} goes on after {} tokens that were not its own", produced.len()))
            }
            None if !was_said => Err(format!("{generation} begins with tokens")),
            _ if first != prompt => Err(format!("{generation} goes on with another prompt")),
            _ => Ok(()),
        };
        let mut version = Version { epoch, ..Version::default() };
        produced.iter().for_each(|&token| version.push(token));
        versions.push(version);
        sound
    }

    /// A generation was refused after it was begun: it may be begun again.
    pub(crate) fn refuse(&mut self, generation: GenerationId) {
        if let Some(versions) = self.generations.get_mut(&generation) {
            versions.pop();
        }
    }

    /// The generation as it was in a life, or the last one before.
    pub(crate) fn version(&self, generation: GenerationId, epoch: u64) -> Option<&Version> {
        let attempts = self.attempts.get(&generation).into_iter().flatten().rev();
        attempts
            .chain([&generation])
            .find_map(|attempt| self.generations.get(attempt)?.iter().rev().find(|version| version.epoch <= epoch))
    }

    pub(crate) fn current(&mut self, generation: GenerationId) -> Option<&mut Version> {
        self.generations.get_mut(&generation)?.last_mut()
    }
}
