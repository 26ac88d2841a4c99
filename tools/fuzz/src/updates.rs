//! Yjs updates that are well formed and else anything: what editors make, and what they never would.
//!
//! Bytes that are drawn at random are refused at their first lengths. Here the bytes of an input decide instead what an
//! update consists of: which client inserts what kind of content beside what, and what is deleted. So what is behind the
//! decoder is reached too.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use thalweg_domain::document::{Document, NODE_CLIENTS};
use thalweg_protocol::document::{COMMENTS_ROOT, ROOT};
use yrs::updates::decoder::Decode;

/// Clients that edit. The last is one that only nodes edit as.
const CLIENTS: [u64; 6] = [1, 2, 3, 70_000, NODE_CLIENTS - 1, NODE_CLIENTS];
const ROOTS: [&str; 6] = [ROOT, "list", "map", "page", COMMENTS_ROOT, ""];
const KEYS: [&str; 3] = ["a", "bold", ""];
const VALUES: [&str; 6] = ["true", "null", "{\"image\":1}", "\"text\"", "1", "no JSON"];
const TEXTS: [&str; 8] = ["a", "bc", "\u{1f30a}", "x\u{1f30a}y\u{301}", "\n", "a tide", "漢字", "\u{fffc}"];

/// The bytes of an input, which decide what happens; when they are used up, the first of all choices is made.
pub struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    /// Those that an input makes.
    pub fn new(input: &'a [u8]) -> Self {
        Self(input)
    }

    /// Whether all were made.
    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let Some((&byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        byte
    }

    /// A number below `sides`.
    pub fn below(&mut self, sides: u8) -> u8 {
        self.byte() % sides
    }

    fn of<T: Copy, const N: usize>(&mut self, choices: [T; N]) -> T {
        choices[usize::from(self.byte()) % N]
    }
}

/// Prints an update, what became of it, and what the document says since, if `THALWEG_FUZZ_SHOW` is set: `cargo xtask fuzz`
/// does when it runs with an input.
pub fn show(document: &Document, update: &[u8], became: &dyn std::fmt::Debug) {
    static IS_ASKED: OnceLock<bool> = OnceLock::new();
    if *IS_ASKED.get_or_init(|| std::env::var_os("THALWEG_FUZZ_SHOW").is_some()) {
        let known = yrs::Update::decode_v1(update).map(|update| format!("{update:?}"));
        eprintln!("{update:?}\n    {known:?}\n    -> {became:?}\n    {}", document.json());
    }
}

/// Up to where each client's edits are known.
pub type Clocks = BTreeMap<u64, u32>;

/// Reads a state vector that a document gave.
pub fn clocks(state_vector: &[u8]) -> Clocks {
    let mut rest = state_vector;
    let mut number = move || {
        let mut number = 0u64;
        for shift in (0..).step_by(7) {
            let (&byte, after) = rest.split_first().expect("a document's own state vector is whole");
            rest = after;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        number
    };
    (0..number()).map(|_| (number(), number() as u32)).collect()
}

/// Writes an update piece by piece.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
    }

    fn id(&mut self, (client, clock): (u64, u32)) {
        self.number(client);
        self.number(u64::from(clock));
    }
}

/// The update that choices make, on top of what a document has.
pub fn update(choices: &mut Choices<'_>, document: &Document) -> Vec<u8> {
    let known = clocks(&document.state_vector());
    let mut made = known.clone();
    let mut sections: Vec<(u64, u32, usize, Writer)> = Vec::new();
    for _ in 0..choices.below(4) {
        let client = choices.of(CLIENTS);
        if sections.iter().any(|(other, ..)| *other == client) {
            continue;
        }
        let next = known.get(&client).copied().unwrap_or(0);
        // Mostly what follows; else what is known in part, or a gap.
        let begin = match choices.below(16) {
            0..12 => next,
            12..14 => next.saturating_sub(u32::from(choices.below(8))),
            14 => 0,
            _ => next + 1,
        };
        let (mut clock, mut writer) = (begin, Writer::default());
        let count = usize::from(choices.below(6)) + 1;
        for _ in 0..count {
            clock += put_struct(&mut writer, choices, &made, (client, clock));
            let end = made.entry(client).or_default();
            *end = clock.max(*end);
        }
        sections.push((client, begin, count, writer));
    }
    let mut whole = Writer::default();
    whole.number(sections.len() as u64);
    for (client, begin, count, writer) in sections {
        whole.number(count as u64);
        whole.id((client, begin));
        whole.0.extend(writer.0);
    }
    put_deletes(&mut whole, choices, &made);
    whole.0
}

/// Some code unit or value that is there; now and then one that is not.
fn some_id(choices: &mut Choices<'_>, made: &Clocks, own: (u64, u32)) -> (u64, u32) {
    if choices.below(3) == 0 && own.1 > 0 {
        return (own.0, own.1 - 1);
    }
    let Some((&client, &clock)) = made.iter().nth(usize::from(choices.byte()) % made.len().max(1)) else {
        return (1, u32::from(choices.byte()));
    };
    match choices.byte() {
        0xff => (client, clock),
        byte => (client, u32::from(byte) % clock.max(1)),
    }
}

/// Writes a struct, and says how long it is.
fn put_struct(writer: &mut Writer, choices: &mut Choices<'_>, made: &Clocks, own: (u64, u32)) -> u32 {
    const KINDS: [u8; 16] = [4, 4, 4, 4, 7, 7, 7, 1, 3, 5, 6, 8, 8, 0, 10, 9];
    let kind = choices.of(KINDS);
    if kind == 0 || kind == 10 {
        let length = u32::from(choices.below(8)) + 1;
        writer.byte(kind);
        writer.number(u64::from(length));
        return length;
    }
    let place = choices.byte();
    let [left, right] = [1, 2].map(|side| if place & side != 0 { Some(some_id(choices, made, own)) } else { None });
    let is_beside = left.is_some() || right.is_some();
    let has_key = !is_beside && place & 0x0c == 0x0c;
    let beside = u8::from(left.is_some()) << 7 | u8::from(right.is_some()) << 6;
    writer.byte(kind | beside | u8::from(has_key) << 5);
    left.into_iter().chain(right).for_each(|id| writer.id(id));
    if !is_beside {
        if place & 0x30 == 0x30 {
            writer.number(0);
            writer.id(some_id(choices, made, own));
        } else {
            writer.number(1);
            writer.text(choices.of(ROOTS));
        }
        if has_key {
            writer.text(choices.of(KEYS));
        }
    }
    put_content(writer, choices, kind)
}

fn put_content(writer: &mut Writer, choices: &mut Choices<'_>, kind: u8) -> u32 {
    match kind {
        1 => {
            let length = u32::from(choices.below(8)) + 1;
            writer.number(u64::from(length));
            return length;
        }
        3 => {
            writer.number(2);
            writer.0.extend([1, 2]);
        }
        4 => {
            let text = choices.of(TEXTS);
            writer.text(text);
            return text.encode_utf16().count() as u32;
        }
        5 => writer.text(choices.of(VALUES)),
        6 => {
            writer.text(choices.of(KEYS));
            writer.text(choices.of(VALUES));
        }
        7 => match choices.below(7) {
            named @ (3 | 5) => {
                writer.byte(named);
                writer.text(choices.of(ROOTS));
            }
            other => writer.byte(other),
        },
        8 => {
            let count = choices.below(3) + 1;
            writer.number(u64::from(count));
            for _ in 0..count {
                put_any(writer, choices, 0);
            }
            return u32::from(count);
        }
        _ => {
            writer.text("guid");
            writer.byte(127);
        }
    }
    1
}

fn put_any(writer: &mut Writer, choices: &mut Choices<'_>, depth: u8) {
    match choices.below(if depth < 3 { 10 } else { 8 }) {
        0 => writer.byte(127),
        1 => writer.byte(126),
        2 => writer.byte(120),
        3 => writer.0.extend([125, 0x45]),
        4 => {
            writer.byte(123);
            writer.0.extend(f64::to_be_bytes(0.5));
        }
        5 => {
            writer.byte(119);
            writer.text(choices.of(TEXTS));
        }
        6 => writer.0.extend([116, 1, 7]),
        7 => {
            writer.byte(122);
            writer.0.extend(i64::to_be_bytes(-5));
        }
        8 => {
            writer.0.extend([117, 2]);
            put_any(writer, choices, depth + 1);
            put_any(writer, choices, depth + 1);
        }
        _ => {
            writer.0.extend([118, 1]);
            writer.text(choices.of(KEYS));
            put_any(writer, choices, depth + 1);
        }
    }
}

fn put_deletes(writer: &mut Writer, choices: &mut Choices<'_>, made: &Clocks) {
    let mut deletes: Vec<(u64, Vec<(u32, u32)>)> = Vec::new();
    for (&client, &clock) in made {
        let mut at = 0;
        let mut ranges = Vec::new();
        for _ in 0..choices.below(8).saturating_sub(4) {
            let start = at + u32::from(choices.byte()) % clock.max(1);
            let length = u32::from(choices.below(8)) + 1;
            at = start + length;
            ranges.push((start, length));
        }
        // What is beyond the end is refused: seldom of use.
        if choices.below(8) > 0 {
            ranges.retain(|(start, length)| start + length <= clock);
        }
        if !ranges.is_empty() {
            deletes.push((client, ranges));
        }
    }
    writer.number(deletes.len() as u64);
    for (client, ranges) in deletes {
        writer.number(client);
        writer.number(ranges.len() as u64);
        for (start, length) in ranges {
            writer.number(u64::from(start));
            writer.number(u64::from(length));
        }
    }
}
