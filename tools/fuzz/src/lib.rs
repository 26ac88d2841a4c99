//! What fuzz targets share: how an input is cut into pieces, how long one may take, and updates as no editor makes them.

pub mod updates;

use std::time::{Duration, Instant};

/// What handling an input of at most [`SLOW_PER_BYTES`] may take. In a release build that is 100 ms; the build that is
/// fuzzed counts every branch and checks every sum, which makes it about five times as slow.
const SLOW: Duration = Duration::from_millis(500);
/// Larger inputs may take in proportion to their length.
const SLOW_PER_BYTES: usize = 4 << 10;
/// A machine that does other things makes one run slow, but not so many.
const TRIES: usize = 5;

/// Runs `handle`, which does the same whenever it is run.
///
/// # Panics
/// If it takes longer than an input of so many bytes may, each time it is tried: a slow input is a bug as any other.
pub fn quickly(input_bytes: usize, mut handle: impl FnMut()) {
    let most = SLOW * u32::try_from(input_bytes / SLOW_PER_BYTES + 1).expect("inputs have no gigabytes");
    let mut quickest = Duration::MAX;
    for _ in 0..TRIES {
        let start = Instant::now();
        handle();
        quickest = quickest.min(start.elapsed());
        if quickest <= most {
            return;
        }
    }
    panic!("{input_bytes} bytes take {quickest:?}, and may take {most:?}");
}

/// Cuts an input into pieces, each of which stands behind its length, `u16` little endian; the last ends with the input.
pub fn pieces(mut input: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let [low, high, rest @ ..] = input else { return None };
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (piece, rest) = rest.split_at(length);
        input = rest;
        Some(piece)
    })
}

/// The input that [`pieces`] cuts into these.
pub fn joined<T: AsRef<[u8]>>(pieces: &[T]) -> Vec<u8> {
    let mut input = Vec::new();
    for piece in pieces.iter().map(T::as_ref) {
        let length = u16::try_from(piece.len()).expect("pieces of seeds are short");
        input.extend_from_slice(&length.to_le_bytes());
        input.extend_from_slice(piece);
    }
    input
}
