//! Texts that have to be something: JSON, of a schema, matched by an expression, of a grammar.
//!
//! A constraint is compiled once into a grammar, and each answer follows it with a parser of its own: before a token is
//! drawn the parser says which tokens may come, after it the parser is moved on. Compiled grammars are kept, because the
//! same schema comes with every request of a program.
//!
//! Compiling foreign text is bounded: in the grammar's size, in work, and in what is asked for ([`Cost`]). It can
//! still take a while, so that who must not wait looks into the memory ([`Grammars::known`]) and has somebody else
//! [compile](Grammars::compile).

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::api::TopLevelGrammar;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Map, Value, json};
use thalweg_protocol::generation::Constraint;
use thalweg_protocol::reject::{Reject, RejectCode};

use crate::sampling::Allowed;

/// Compiled constraints of one vocabulary that are kept, those used least recently go.
const KEPT: usize = 32;
/// Work on the first automaton of a grammar's lexer; 50 a microsecond.
const COMPILE_FUEL: u64 = 400_000;
/// Work on the lexer for one mask: as long as a small model's step.
const MASK_FUEL: u64 = 100_000;
/// Parser items for one mask.
const MASK_ITEMS: usize = 30_000;
/// Symbols of a grammar.
const GRAMMAR_SYMBOLS: usize = 150_000;
/// States of one grammar's lexer, each of about two kilobytes.
const LEXER_STATES: usize = 20_000;
/// Largest divisor of `multipleOf`, without its decimal point: the automaton has a state for each remainder.
const DIVISOR_MAX: u64 = 10_000;
/// Stack for compiling, of which what is not used takes no memory. A stack that overflows ends the process.
const COMPILE_STACK_BYTES: usize = 64 << 20;
/// Objects in a schema, itself and those inside of it. Compiling takes a time that grows with the square of their number,
/// and nests as deep as they do.
const SCHEMAS_MAX: usize = 1_000;
/// References in a schema, which nest what they refer to.
const REFERENCES_MAX: usize = 200;
/// Schemas, or expressions of a grammar, that one text has to satisfy at once: what they allow together can take time that
/// doubles with each.
const CONJUNCTS_MAX: usize = 8;
/// Lines of a grammar. A rule has one at least, and rules nest what they name.
const GRAMMAR_LINES_MAX: usize = 400;
/// Between two parts of JSON: nothing or one space. A small model that may indent spends its tokens on spaces, and now and
/// then all of those it was given.
const WHITESPACE: &str = r" ";

/// A constraint that could not be followed to the end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the answer cannot follow its {kind} any further: {reason}")]
pub struct Lost {
    kind: &'static str,
    reason: String,
}

/// Compiles constraints for the tokens of one vocabulary. Shared by threads; the lock is held for look-ups alone.
pub struct Grammars {
    factory: ParserFactory,
    /// What was compiled or refused, the one used last at the end.
    known: Mutex<VecDeque<(Constraint, Result<Fresh, Reject>)>>,
}

/// A parser at the beginning of a text.
type Fresh = Arc<Matcher>;

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammars").finish_non_exhaustive()
    }
}

impl Grammars {
    /// `bytes` of every token, none for those without text; `ends`: the tokens that end an answer, at least one.
    ///
    /// # Errors
    /// Why these tokens cannot be used, for the log.
    pub fn new(bytes: &[Box<[u8]>], ends: &[u32]) -> Result<Self, String> {
        let Some(&end) = ends.first().filter(|_| ends.iter().all(|&end| (end as usize) < bytes.len())) else {
            return Err("the vocabulary has no token that ends an answer".into());
        };
        let info = TokRxInfo::new(bytes.len() as u32, end);
        // A token that begins with this byte would be taken for a special one; no text has it.
        let word = |bytes: &[u8]| {
            if bytes.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER) { Vec::new() } else { bytes.to_vec() }
        };
        let words: Vec<Vec<u8>> = bytes.iter().map(|bytes| word(bytes)).collect();
        let trie = TokTrie::from(&info, &words).with_eos_tokens(ends);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = SlicedBiasComputer::general_slices();
        let factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices);
        let mut factory = factory.map_err(|error| error.to_string())?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.initial_lexer_fuel = COMPILE_FUEL;
        limits.step_lexer_fuel = MASK_FUEL;
        limits.step_max_items = MASK_ITEMS;
        limits.max_lexer_states = LEXER_STATES;
        limits.max_grammar_size = GRAMMAR_SYMBOLS;
        limits.precompute_large_lexemes = false;
        limits.verbose_errors = false;
        Ok(Self { factory, known: Mutex::default() })
    }

    /// Whether a constraint was compiled, or refused.
    pub fn is_known(&self, constraint: &Constraint) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().any(|(other, _)| other == constraint)
    }

    /// A parser of a constraint that was compiled, or why it was refused; none if it has to be compiled first.
    pub fn known(&self, constraint: &Constraint) -> Option<Result<Follower, Reject>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let at = known.iter().position(|(other, _)| other == constraint)?;
        let entry = known.remove(at)?;
        let found = entry.1.clone();
        known.push_back(entry);
        drop(known);
        Some(found.map(|fresh| Follower::new(&fresh, constraint)))
    }

    /// Compiles a constraint, or says why it cannot be followed, and keeps the result.
    ///
    /// # Errors
    /// `constraint_invalid`, which says where and why.
    pub fn compile(&self, constraint: &Constraint) -> Result<Follower, Reject> {
        if let Some(known) = self.known(constraint) {
            return known;
        }
        // Foreign code fed with foreign text: it may panic, and calls itself as deep as the text nests.
        let result = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("thalweg-compile".into()).stack_size(COMPILE_STACK_BYTES);
            let thread = thread.spawn_scoped(scope, || self.compile_fresh(constraint))?;
            Ok(thread.join().unwrap_or_else(|_| Err("the compiler of constraints failed at it".into())))
        });
        let result = result.map_err(|error: std::io::Error| {
            Reject::new(RejectCode::Busy, format!("no thread can be started to compile the constraint: {error}"))
        })?;
        let refusal = |reason: String| {
            let text = format!("{}: {}", constraint.as_str(), reason.lines().next().unwrap_or_default());
            Reject::new(RejectCode::ConstraintInvalid, text)
        };
        let result = result.map(Arc::new).map_err(refusal);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() == KEPT {
            known.pop_front();
        }
        known.push_back((constraint.clone(), result.clone()));
        drop(known);
        result.map(|fresh| Follower::new(&fresh, constraint))
    }

    fn compile_fresh(&self, constraint: &Constraint) -> Result<Matcher, String> {
        let grammar = grammar(constraint)?;
        let parser = self.factory.create_parser(grammar);
        let matcher = Matcher::new(parser);
        if let Some(error) = matcher.get_error() {
            return Err(error);
        }
        // A grammar that allows no text at all often shows only when the first token is looked for.
        let mut probe = matcher.deep_clone();
        match probe.compute_mask_or_eos() {
            Ok(mask) if mask.num_set() > 0 => Ok(matcher),
            Ok(_) => Err("no text satisfies it".into()),
            Err(error) => Err(explain(&probe, &error.to_string())),
        }
    }
}

/// What went wrong with a parser, in words.
fn explain(matcher: &Matcher, error: &str) -> String {
    use llguidance::api::StopReason;
    match matcher.stop_reason() {
        StopReason::LexerTooComplex | StopReason::ParserTooComplex => {
            "it is too complex to be followed token by token; make it smaller or less ambiguous".into()
        }
        _ if error.contains("NoExtension") => "no text satisfies it".into(),
        _ => error.lines().next().unwrap_or_default().into(),
    }
}

fn grammar(constraint: &Constraint) -> Result<TopLevelGrammar, String> {
    Ok(match constraint {
        Constraint::None => TopLevelGrammar::from_regex(r"(?s:.*)"),
        Constraint::Json => TopLevelGrammar::from_json_schema(json!({ "type": "object", "x-guidance": spacing() })),
        Constraint::JsonSchema(text) => {
            let schema: Value = serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}"))?;
            Cost::default().add(&schema, &mut String::from("#"))?;
            TopLevelGrammar::from_json_schema(spaced(schema)?)
        }
        Constraint::Regex(text) => TopLevelGrammar::from_regex(text),
        Constraint::Lark(text) => TopLevelGrammar::from_lark(with_schemas(text)?),
    })
}

fn spacing() -> Value {
    json!({ "whitespace_pattern": WHITESPACE })
}

/// The schema with our bound on white space, which is not the asker's to change.
fn spaced(schema: Value) -> Result<Value, String> {
    match schema {
        Value::Object(mut fields) => {
            fields.insert("x-guidance".into(), spacing());
            Ok(Value::Object(fields))
        }
        Value::Bool(true) => Ok(Value::Object(Map::from_iter([("x-guidance".to_owned(), spacing())]))),
        Value::Bool(false) => Err("it is false, which no text satisfies".into()),
        other => Err(format!("it is {other}; a schema is an object or a boolean")),
    }
}

/// A grammar whose JSON Schemas (`%json {…}`) are held to what schemas alone are held to.
fn with_schemas(grammar: &str) -> Result<String, String> {
    const MARK: &str = "%json";
    if grammar.lines().count() > GRAMMAR_LINES_MAX {
        return Err(format!("it has more than {GRAMMAR_LINES_MAX} lines; make it smaller"));
    }
    if grammar.matches('&').count() >= CONJUNCTS_MAX {
        return Err(format!("more than {CONJUNCTS_MAX} expressions are to be satisfied at once (\"&\")"));
    }
    let mut cost = Cost::default();
    let (mut rest, mut out) = (grammar, String::with_capacity(grammar.len()));
    while let Some((before, after)) = rest.split_once(MARK) {
        let mut values = serde_json::Deserializer::from_str(after).into_iter::<Value>();
        let schema = values.next().unwrap_or_else(|| Ok(Value::Null));
        let schema = schema.map_err(|error| format!("no schema follows {MARK}: {error}"))?;
        cost.add(&schema, &mut format!("{MARK} #"))?;
        out.extend([before, MARK, " ", &spaced(schema)?.to_string()]);
        rest = &after[values.byte_offset()..];
    }
    out.push_str(rest);
    Ok(out)
}

/// What schemas ask for that the compiler takes long for, or nests deep for.
#[derive(Debug, Default)]
struct Cost {
    schemas: usize,
    references: usize,
    conjuncts: usize,
}

impl Cost {
    /// Adds a schema. Refuses what would cost too much, naming where it stands. `path`: a JSON Pointer to `schema`.
    fn add(&mut self, schema: &Value, path: &mut String) -> Result<(), String> {
        match schema {
            Value::Object(fields) => {
                self.add_object(fields, path)?;
                fields.iter().try_for_each(|(name, value)| self.add_inside(name, value, path))
            }
            Value::Array(values) => {
                values.iter().enumerate().try_for_each(|(at, value)| self.add_inside(&at.to_string(), value, path))
            }
            _ => Ok(()),
        }
    }

    fn add_inside(&mut self, name: &str, value: &Value, path: &mut String) -> Result<(), String> {
        let length = path.len();
        path.push('/');
        path.push_str(&name.replace('~', "~0").replace('/', "~1"));
        let result = self.add(value, path);
        path.truncate(length);
        result
    }

    /// Adds an object, without what is inside of it.
    fn add_object(&mut self, fields: &Map<String, Value>, path: &str) -> Result<(), String> {
        self.schemas += 1;
        let many = |count: usize, max: usize, what: &str| match count > max {
            true => Err(format!("{path} is one of more than {max} {what}; make it smaller")),
            false => Ok(()),
        };
        if let Some(Value::Array(all)) = fields.get("allOf") {
            self.conjuncts += all.len().saturating_sub(1) + usize::from(fields.len() > 1);
        }
        if fields.get("$ref").is_some_and(Value::is_string) {
            self.references += 1;
            let says_nothing = |name: &str| ["$ref", "title", "description", "default", "$defs"].contains(&name);
            self.conjuncts += usize::from(!fields.keys().all(|name| says_nothing(name)));
        }
        many(self.schemas, SCHEMAS_MAX, "objects")?;
        many(self.references, REFERENCES_MAX, "references")?;
        many(self.conjuncts, CONJUNCTS_MAX, "schemas to be satisfied at once")?;
        match fields.get("multipleOf") {
            Some(Value::Number(divisor)) if digits_of(&divisor.to_string()).is_none_or(|d| d > DIVISOR_MAX) => {
                Err(format!("{path}/multipleOf is {divisor}; its digits are at most {DIVISOR_MAX}"))
            }
            _ => Ok(()),
        }
    }
}

/// The digits of a number in decimal, without its point and its sign; none if there are too many, or an exponent.
fn digits_of(number: &str) -> Option<u64> {
    let digits: String = number.chars().filter(|c| !matches!(c, '.' | '-')).collect();
    digits.parse().ok()
}

/// One answer that follows a constraint.
pub struct Follower {
    matcher: Matcher,
    mask: SimpleVob,
    kind: &'static str,
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl Follower {
    fn new(fresh: &Matcher, constraint: &Constraint) -> Self {
        Self { matcher: fresh.deep_clone(), mask: SimpleVob::default(), kind: constraint.as_str() }
    }

    /// The tokens that may come next.
    ///
    /// # Errors
    /// [`Lost`] if that would take too long to find out.
    pub fn allowed(&mut self) -> Result<Allowed<'_>, Lost> {
        match self.matcher.compute_mask_or_eos() {
            Ok(mask) => self.mask = mask,
            Err(error) => return Err(self.lost(&error.to_string())),
        }
        Ok(Allowed(self.mask.as_slice()))
    }

    /// The answer grew by a token. Gives whether the constraint is satisfied and nothing can follow.
    ///
    /// # Errors
    /// [`Lost`] if the token may not come here.
    pub fn push(&mut self, token: u32) -> Result<bool, Lost> {
        match self.matcher.consume_token(token) {
            Ok(()) => Ok(self.matcher.is_stopped()),
            Err(error) => Err(self.lost(&error.to_string())),
        }
    }

    fn lost(&self, error: &str) -> Lost {
        Lost { kind: self.kind, reason: explain(&self.matcher, error) }
    }
}
