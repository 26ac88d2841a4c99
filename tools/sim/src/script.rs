//! What the scripted model says: a function of the generation and the place in it, and of nothing else.

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

/// The token at `index`.
pub(crate) fn token(generation: GenerationId, index: u32) -> u32 {
    (mix(generation, index) % 32_000) as u32
}

/// The text of the token at `index`; some have none.
pub(crate) fn text(generation: GenerationId, index: u32) -> String {
    match token(generation, index) {
        token if token % 11 == 0 => String::new(),
        token if token % 7 == 0 => format!("ü{token} "),
        token => format!("{token} "),
    }
}

/// The text of the tokens `from..to`.
pub(crate) fn range(generation: GenerationId, from: u32, to: u32) -> String {
    (from..to).map(|index| text(generation, index)).collect()
}
