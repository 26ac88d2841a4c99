//! Documents: what editing, reopening and keeping one open costs.
//!
//! ```text
//! documents [OPERATIONS] [DOCUMENTS]
//! ```
//! Somebody types OPERATIONS (259,778, as many as the editing trace of the CRDT benchmarks has) into one document, each key an
//! update of its own: a seeded model of writing a paper, in which the cursor mostly stays, seven keys in ten insert and three
//! delete. Then DOCUMENTS (1,000) of one page are opened and kept. One line of JSON each.

use std::time::Instant;

use thalweg_domain::document::{Document, NODE_CLIENTS};
use thalweg_protocol::document::{DocumentAccess, ROOT};
use yrs::{ClientID, Doc, OffsetKind, Options, Text, Transact};

/// Characters of a page.
const PAGE: u32 = 3_000;

/// Seeded chance (xorshift64*).
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as u32 % sides.max(1)
    }
}

/// The updates of somebody who types.
fn typing(client: u64, operations: u32, seed: u64) -> Vec<Vec<u8>> {
    let options = Options { offset_kind: OffsetKind::Utf16, ..Options::with_client_id(ClientID::new(client)) };
    let doc = Doc::with_options(options);
    let text = doc.get_or_insert_text(ROOT);
    let (mut dice, mut cursor, mut length) = (Dice(seed | 1), 0u32, 0u32);
    let mut updates = Vec::with_capacity(operations as usize);
    let mut is_deleting = false;
    for _ in 0..operations {
        // Keys of a kind come in runs, and the cursor jumps now and then: most often close by.
        if dice.below(12) == 0 {
            is_deleting = dice.below(10) < 3;
        }
        if dice.below(120) == 0 {
            cursor = if dice.below(4) == 0 { dice.below(length + 1) } else { cursor.saturating_sub(dice.below(200)) };
        } else if dice.below(60) == 0 {
            cursor = length;
        }
        let mut txn = doc.transact_mut();
        if is_deleting && cursor > 0 {
            cursor -= 1;
            length -= 1;
            text.remove_range(&mut txn, cursor, 1);
        } else {
            let key = ["e", "t", "a", "o", "i", "n", " ", "s"][dice.below(8) as usize];
            text.insert(&mut txn, cursor, key);
            cursor += 1;
            length += 1;
        }
        updates.push(txn.encode_update_v1());
    }
    updates
}

/// Applies updates one by one, as a node does.
fn apply(document: &mut Document, updates: &[Vec<u8>]) {
    for update in updates {
        let checked = document.check(update).expect("an update of an editor");
        document.apply(checked, update, DocumentAccess::Write).expect("what was checked is applied");
    }
}

/// Resident bytes of this process.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: usize = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * 4_096
}

fn main() {
    let number =
        |at: usize, default: u32| std::env::args().nth(at).map_or(default, |text| text.parse().expect("a number"));
    let (operations, documents) = (number(1, 259_778), number(2, 1_000));
    let updates = typing(1, operations, 7);
    let sent: usize = updates.iter().map(Vec::len).sum();
    let mut document = Document::new(NODE_CLIENTS);
    let begun = Instant::now();
    apply(&mut document, &updates);
    let apply_s = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    let state = document.state();
    let encode_ms = begun.elapsed().as_secs_f64() * 1e3;
    let mut reopened: Vec<f64> = (0..9)
        .map(|n| {
            let begun = Instant::now();
            let opened = Document::open(NODE_CLIENTS + n, &state).expect("its state is a state");
            let took = begun.elapsed().as_secs_f64() * 1e3;
            assert_eq!(opened.state_vector(), document.state_vector());
            took
        })
        .collect();
    reopened.sort_by(f64::total_cmp);
    let compact = Document::open(NODE_CLIENTS, &state).expect("opens").state().len();
    println!(
        "{{\"bench\":\"typing\",\"operations\":{operations},\"update_bytes\":{sent},\"apply_s\":{apply_s:.3},\"apply_us\":{:.2},\
         \"text_bytes\":{},\"estimate_bytes\":{},\"snapshot_bytes\":{},\"snapshot_bytes_reopened\":{compact},\
         \"encode_ms\":{encode_ms:.2},\"reopen_ms\":{:.2}}}",
        apply_s * 1e6 / f64::from(operations),
        document.text().len(),
        document.bytes(),
        state.len(),
        reopened[4],
    );
    drop((document, updates));
    let pages: Vec<Vec<u8>> = (0..20)
        .map(|n| {
            let mut page = Document::new(NODE_CLIENTS);
            apply(&mut page, &typing(n + 1, PAGE * 2, n));
            page.state().to_vec()
        })
        .collect();
    let before = resident();
    let held: Vec<Document> = (0..documents)
        .map(|n| Document::open(NODE_CLIENTS + u64::from(n), &pages[n as usize % pages.len()]).expect("opens"))
        .collect();
    let bytes = resident().saturating_sub(before) / documents.max(1) as usize;
    let text: usize = held.iter().map(|page| page.text().len()).sum::<usize>() / documents.max(1) as usize;
    let places: usize = held.iter().map(Document::places_bytes).sum::<usize>() / documents.max(1) as usize;
    println!(
        "{{\"bench\":\"open_page\",\"documents\":{documents},\"text_bytes\":{text},\"resident_bytes\":{bytes},\
         \"beyond_text_bytes\":{},\"places_bytes\":{places}}}",
        bytes.saturating_sub(text),
    );
}
