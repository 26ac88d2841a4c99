//! A lane's bytes, cut anywhere: the frames are the same as those of the lane in one piece.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use thalweg_protocol::frame::{RawFrame, Splitter, header};

/// What a lane gave: its frames, whether it failed, and what waits for its end.
fn cut<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> (Vec<RawFrame>, bool, usize) {
    let mut splitter = Splitter::new();
    let mut frames = Vec::new();
    for chunk in chunks {
        splitter.push(Bytes::copy_from_slice(chunk));
        loop {
            match splitter.next() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => {
                    assert!(splitter.next().is_err(), "a failed splitter stays failed");
                    return (frames, true, 0);
                }
            }
        }
    }
    (frames, false, splitter.pending())
}

fuzz_target!(|input: &[u8]| {
    // The first byte says how the rest is chopped up.
    let Some((&step, lane)) = input.split_first() else { return };
    let whole = cut(std::iter::once(lane));
    let chopped = cut(lane.chunks(usize::from(step).max(1)));
    assert_eq!(whole, chopped);
    let (frames, failed, pending) = whole;
    let again: Vec<u8> =
        frames.iter().flat_map(|f| [&header(f.payload.len(), f.subject)[..], &f.payload].concat()).collect();
    assert!(lane.starts_with(&again), "frames written again are the bytes they were cut from");
    assert!(failed || again.len() + pending == lane.len(), "no byte is lost");
});
