//! Which model answers a request: a pure function of what was asked and of what is known of the models.
//!
//! A request may name a model, a *class* of models, [`AUTO`], or nothing. Of a class those count that the asker may ask, that
//! are well, whose context is long enough, and that are expected to begin in time; of these the cheapest; of equals each in
//! turn.

use std::collections::BTreeSet;

use thalweg_protocol::generation::{AskRequest, ChatMessage, Constraint};
use thalweg_protocol::ids::Name;
use thalweg_protocol::reject::{Reject, RejectCode};

/// What a request says that leaves the class to its complexity.
pub const AUTO: &str = "auto";
/// The class of simple requests, if there are both.
pub const FAST: &str = "fast";
/// The class of complex requests, if there are both.
pub const ACCURATE: &str = "accurate";

/// How many models a request may be handed on to, one after another, since those before them cannot answer.
pub const FALLBACKS_MAX: usize = 2;

/// How many bytes of a prompt make a token, about: of English prose somewhat more, of code and other scripts less. The stage
/// counts exactly; the router must not wait for that.
pub const TOKEN_BYTES: usize = 4;

/// From this [`Need::complexity`] on a request is complex.
pub const COMPLEX: u32 = 24;

/// When somebody should come back who wanted a model that another request tries at the moment, in milliseconds.
const TRYING_RETRY_MS: u32 = 1_000;

/// Whether a model can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It answers, as far as is known.
    Up,
    /// It failed, and one request may try whether it is well again.
    Trying {
        /// Which try this is.
        attempt: u32,
    },
    /// It fails, or is not there yet: nobody is sent there.
    Down {
        /// It will be tried again within so many milliseconds.
        retry_ms: u32,
    },
}

/// What the router knows of a model that answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelCard {
    /// The name requests give.
    pub name: Name,
    /// What it is good for: [`FAST`], [`ACCURATE`], or a word of the operator's.
    pub class: Name,
    /// What a token of it costs compared with the others; 0 is free.
    pub cost: u32,
    /// Longest conversation and answer together, in tokens.
    pub context_tokens: u32,
    /// Whether it can be asked.
    pub health: Health,
    /// How long it is expected to take to the first token apart from the prompt, in milliseconds: mostly its queue.
    pub first_token_ms: u32,
    /// What each token of the prompt adds to that, in microseconds.
    pub prompt_us: u32,
    /// The model that answers in its place while it cannot.
    pub fallback: Option<Name>,
    /// Whether it goes on with an answer that it began; those that are run elsewhere do not.
    pub resumes: bool,
}

impl ModelCard {
    /// How long it is expected to take to the first token of such a request, in milliseconds.
    pub fn expected_ms(&self, need: &Need) -> u64 {
        u64::from(self.first_token_ms) + u64::from(self.prompt_us) * u64::from(need.prompt_tokens()) / 1_000
    }

    /// Whether it cannot be asked at present.
    pub fn is_down(&self) -> bool {
        matches!(self.health, Health::Down { .. })
    }
}

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Need {
    /// Bytes of the conversation so far.
    pub prompt_bytes: usize,
    /// Lines of it.
    pub turns: usize,
    /// Longest answer, in tokens.
    pub max_tokens: u32,
    /// Whether the answer must have a form.
    pub constrained: bool,
    /// Within how many milliseconds it must begin; 0: whenever it does.
    pub budget_ms: u32,
}

impl Need {
    /// What a request of a client needs.
    pub fn of_ask(ask: &AskRequest) -> Self {
        Self {
            max_tokens: ask.sampling.max_tokens,
            constrained: ask.sampling.constraint != Constraint::None,
            budget_ms: ask.deadline_ms,
            ..Self::of_conversation(&ask.messages)
        }
    }

    /// What a conversation needs that goes on.
    pub fn of_conversation(messages: &[ChatMessage]) -> Self {
        let prompt_bytes = messages.iter().map(|message| message.content.len()).sum();
        Self { prompt_bytes, turns: messages.len(), ..Self::default() }
    }

    /// Tokens of the prompt, about.
    pub fn prompt_tokens(&self) -> u32 {
        u32::try_from(self.prompt_bytes.div_ceil(TOKEN_BYTES)).unwrap_or(u32::MAX)
    }

    /// How hard the request is, from 0 to 80: a point for each 128 bytes of the prompt (up to 40) and for each line of the
    /// conversation (up to 16), one for each 64 tokens that may be answered beyond 512 (up to 12), and 12 if the answer must
    /// have a form. From [`COMPLEX`] on it is complex: a page and a half of text, or less with a schema.
    pub fn complexity(&self) -> u32 {
        let points = |amount: usize, each: usize, most: usize| (amount / each).min(most) as u32;
        points(self.prompt_bytes, 128, 40)
            + points(self.turns, 1, 16)
            + points((self.max_tokens as usize).saturating_sub(512), 64, 12)
            + if self.constrained { 12 } else { 0 }
    }
}

/// Why a model was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The request named it, or it is the default.
    Named,
    /// The request named its class.
    Class,
    /// By the request's complexity.
    Auto,
    /// The one that was meant is down.
    Fallback,
}

impl Reason {
    /// All, in order.
    pub const ALL: [Self; 4] = [Self::Named, Self::Class, Self::Auto, Self::Fallback];

    /// The reason as a word, for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Named => "named",
            Self::Class => "class",
            Self::Auto => "auto",
            Self::Fallback => "fallback",
        }
    }
}

/// A model that was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice<'a> {
    /// Which.
    pub card: &'a ModelCard,
    /// Why.
    pub reason: Reason,
}

/// What the words of a request mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning<'a> {
    /// This model.
    Model(&'a ModelCard),
    /// Any model of a class, or any at all.
    Class(Option<&'a Name>, Reason),
}

/// The models that answer, in the order they were configured.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Routes {
    /// The first is the default, unless another is named.
    pub cards: Vec<ModelCard>,
    /// What a request means that names nothing: a model, a class or [`AUTO`].
    pub default: Option<Name>,
}

impl Routes {
    /// A model by its name.
    pub fn get(&self, name: &str) -> Option<&ModelCard> {
        self.cards.iter().find(|card| card.name.as_str() == name)
    }

    /// The classes there are, each once, in the order of their first models.
    pub fn classes(&self) -> Vec<&Name> {
        let mut seen = BTreeSet::new();
        self.cards.iter().map(|card| &card.class).filter(|class| seen.insert(*class)).collect()
    }

    /// What a request means that names this, or nothing.
    ///
    /// # Errors
    /// `model_unknown`.
    pub fn meaning(&self, named: Option<&str>, need: &Need) -> Result<Meaning<'_>, Reject> {
        let Some(first) = self.cards.first() else {
            let text = "this node has no model; `thalweg models pull` gets one";
            return Err(Reject::new(RejectCode::ModelUnknown, text));
        };
        let Some(word) = named.or(self.default.as_ref().map(Name::as_str)) else { return Ok(Meaning::Model(first)) };
        if let Some(card) = self.get(word) {
            return Ok(Meaning::Model(card));
        }
        let class = |class: &str| self.cards.iter().map(|card| &card.class).find(|other| other.as_str() == class);
        match (class(word), class(FAST), class(ACCURATE)) {
            (Some(class), ..) => Ok(Meaning::Class(Some(class), Reason::Class)),
            (None, Some(fast), Some(accurate)) if word == AUTO => {
                let wanted = if need.complexity() < COMPLEX { fast } else { accurate };
                Ok(Meaning::Class(Some(wanted), Reason::Auto))
            }
            (None, ..) if word == AUTO => Ok(Meaning::Class(None, Reason::Auto)),
            // What was configured may have been unloaded since.
            (None, ..) if named.is_none() => Ok(Meaning::Model(first)),
            (None, ..) => {
                let text = format!("there is no model {word}; this node has {}", self.listed());
                Err(Reject::new(RejectCode::ModelUnknown, text))
            }
        }
    }

    /// What there is, for somebody who asked for something else.
    fn listed(&self) -> String {
        let names = self.cards.iter().map(|card| card.name.as_str()).collect::<Vec<_>>().join(", ");
        let classes = self.classes();
        match classes.len() {
            0 | 1 => names,
            _ => {
                format!("{names}; of the classes {}", classes.iter().map(|c| c.as_str()).collect::<Vec<_>>().join(", "))
            }
        }
    }

    /// The model that answers a request. `turn` counts requests of this meaning, so that equals take turns; `may` says which
    /// models the asker may ask.
    ///
    /// # Errors
    /// `model_unknown`; `forbidden`, if none of those that were meant may be asked; `busy`, if none of those that may be
    /// asked can be.
    pub fn choose(
        &self,
        named: Option<&str>,
        need: &Need,
        turn: u64,
        may: impl Fn(&Name) -> bool,
    ) -> Result<Choice<'_>, Reject> {
        match self.meaning(named, need)? {
            Meaning::Model(card) if !may(&card.name) => Err(forbidden(&card.name)),
            Meaning::Model(card) if !card.is_down() => Ok(Choice { card, reason: Reason::Named }),
            Meaning::Model(card) => self.fallback(card, &may).ok_or_else(|| down([card].into_iter())),
            Meaning::Class(class, reason) => {
                let of_class = |card: &&ModelCard| class.is_none_or(|class| card.class == *class);
                let allowed: Vec<_> = self.cards.iter().filter(of_class).filter(|card| may(&card.name)).collect();
                if allowed.is_empty() {
                    return Err(forbidden(class.unwrap_or(&self.cards[0].name)));
                }
                let well: Vec<_> = allowed.iter().copied().filter(|card| !card.is_down()).collect();
                match best(well, need, turn) {
                    Some(card) => Ok(Choice { card, reason }),
                    None => {
                        let fallback = allowed.iter().find_map(|card| self.fallback(card, &may));
                        fallback.ok_or_else(|| down(allowed.into_iter()))
                    }
                }
            }
        }
    }

    /// Who answers for a model that is down.
    fn fallback(&self, card: &ModelCard, may: &impl Fn(&Name) -> bool) -> Option<Choice<'_>> {
        let mut next = card.fallback.as_ref();
        for _ in 0..FALLBACKS_MAX {
            let card = self.get(next?.as_str())?;
            if !card.is_down() && may(&card.name) {
                return Some(Choice { card, reason: Reason::Fallback });
            }
            next = card.fallback.as_ref();
        }
        None
    }

    /// Who answers in place of a model that fails before its first token, in the order in which they are asked: those of its
    /// fallbacks, and theirs, that the asker may ask.
    pub fn fallbacks(&self, model: &Name, may: impl Fn(&Name) -> bool) -> Vec<Name> {
        let mut fallbacks: Vec<Name> = Vec::new();
        let mut next = self.get(model.as_str()).and_then(|card| card.fallback.as_ref());
        for _ in 0..FALLBACKS_MAX {
            let Some(card) = next.and_then(|next| self.get(next.as_str())) else { break };
            if may(&card.name) && card.name != *model && !fallbacks.contains(&card.name) {
                fallbacks.push(card.name.clone());
            }
            next = card.fallback.as_ref();
        }
        fallbacks
    }

    /// Somebody tries a model: for others it is down until there is news of it. Does nothing unless it may be tried. Gives
    /// which try that is.
    pub fn take_try(&mut self, name: &Name) -> Option<u32> {
        let card = self.cards.iter_mut().find(|card| card.name == *name)?;
        let Health::Trying { attempt } = card.health else { return None };
        card.health = Health::Down { retry_ms: TRYING_RETRY_MS };
        Some(attempt)
    }
}

/// The best of a class for a request; nothing if there are none.
fn best<'a>(mut cards: Vec<&'a ModelCard>, need: &Need, turn: u64) -> Option<&'a ModelCard> {
    let longest = cards.iter().map(|card| card.context_tokens).max()?;
    let tokens = need.prompt_tokens().saturating_add(need.max_tokens);
    // If all are too short, the longest refuses with exact numbers.
    cards.retain(|card| card.context_tokens >= tokens.min(longest));
    if need.budget_ms > 0 {
        let quickest = cards.iter().map(|card| card.expected_ms(need)).min()?;
        let most = u64::from(need.budget_ms).max(quickest);
        cards.retain(|card| card.expected_ms(need) <= most);
    }
    let cheapest = cards.iter().map(|card| card.cost).min()?;
    cards.retain(|card| card.cost == cheapest);
    cards.get((turn % cards.len().max(1) as u64) as usize).copied()
}

fn forbidden(name: &Name) -> Reject {
    let text = format!("the token does not allow asking {name}; it needs ask:{name}, or ask of a model of that class");
    Reject::new(RejectCode::Forbidden, text)
}

/// None of these can be asked.
fn down<'a>(cards: impl Iterator<Item = &'a ModelCard>) -> Reject {
    let mut names = Vec::new();
    let mut retry_ms = u32::MAX;
    for card in cards {
        names.push(card.name.as_str());
        if let Health::Down { retry_ms: ms } = card.health {
            retry_ms = retry_ms.min(ms);
        }
    }
    let (names, does) = (names.join(", "), if names.len() == 1 { "does" } else { "do" });
    let text = format!("{names} {does} not answer at present, and no fallback does; come back after the delay");
    Reject::new(RejectCode::Busy, text).retry_after_ms(retry_ms)
}

#[cfg(test)]
mod tests;
