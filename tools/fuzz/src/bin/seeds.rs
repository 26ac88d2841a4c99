//! Writes inputs that fuzzing begins with: `seeds FOLDER` makes a folder for each target that has some. They are what the
//! golden files have, what editors of Yjs write, and what somebody thought of.

use std::fs;
use std::path::{Path, PathBuf};

// Its runtime counts what the crates we use do, in this program too.
use libfuzzer_sys as _;
use thalweg_domain::document::{Document, NODE_CLIENTS};
use thalweg_fuzz::joined;
use thalweg_protocol::document::{AwarenessEntry, AwarenessUpdate, Operation, Operations};
use yrs::types::Attrs;
use yrs::{
    Any, Array, ArrayPrelim, ClientID, Doc, Map, MapPrelim, OffsetKind, Options, Text, TextPrelim, Transact,
    TransactionMut, WriteTxn, Xml, XmlElementPrelim, XmlFragment, XmlTextPrelim,
};

type Failure = Box<dyn std::error::Error>;

/// Inputs of a target.
type Seeds = Vec<Vec<u8>>;

fn main() -> Result<(), Failure> {
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or("say which folder: seeds FOLDER")?);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let wire = golden(&root.join("protocol/schema/golden_v1.txt"))?;
    let journal = root.join("engine/journal/golden");
    // What decodes the one kind of operation refuses the other: both are of use to both.
    write(&folder, "client_op", &wire)?;
    write(&folder, "server_op", &wire)?;
    write(&folder, "record", &golden(&journal.join("record_v1.txt"))?)?;
    let mut states = Vec::new();
    for layout in ["states_v1.txt", "states_v2.txt", "states_v3.txt"] {
        states.extend(golden(&journal.join(layout))?);
    }
    write(&folder, "state_section", &states)?;
    write(&folder, "frame_splitter", &lanes(&wire))?;
    write(&folder, "names", &names())?;
    write(&folder, "update", &updates())?;
    write(&folder, "edits", &choices())?;
    write(&folder, "operations", &operations())?;
    write(&folder, "awareness", &awareness())?;
    write(&folder, "places", &places())
}

fn write(folder: &Path, target: &str, seeds: &[Vec<u8>]) -> Result<(), Failure> {
    let folder = folder.join(target);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    for (at, seed) in seeds.iter().enumerate() {
        fs::write(folder.join(format!("{at:03}")), seed)?;
    }
    Ok(())
}

/// The lines of a file of hexadecimal digits.
fn golden(path: &Path) -> Result<Seeds, Failure> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let byte = |pair: &[u8]| Some(u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    let line = |line: &str| line.as_bytes().chunks(2).map(byte).collect::<Option<Option<Vec<u8>>>>().flatten();
    text.lines()
        .map(|digits| line(digits).ok_or_else(|| format!("{}: no hexadecimal", path.display()).into()))
        .collect()
}

/// Lanes of a few operations each, and how they are cut.
fn lanes(wire: &[Vec<u8>]) -> Seeds {
    let frame = |payload: &Vec<u8>| [&thalweg_protocol::frame::header(payload.len(), 7)[..], payload].concat();
    let lane = |(at, payloads): (usize, &[Vec<u8>])| {
        [vec![1 + 5 * at as u8], payloads.iter().flat_map(frame).collect()].concat()
    };
    wire.chunks(4).enumerate().map(lane).collect()
}

fn names() -> Seeds {
    const TEXTS: [&str; 8] = [
        "general",
        "équipe/🌊",
        "gen-008f000200000007",
        "18446744073709551615",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "write:team-*",
        "read:*a*b*c*",
        "admin:*",
    ];
    TEXTS.map(|text| text.as_bytes().to_vec()).to_vec()
}

/// A client's copy of a document, empty.
fn editor(client: u64) -> Doc {
    Doc::with_options(Options { offset_kind: OffsetKind::Utf16, ..Options::with_client_id(ClientID::new(client)) })
}

fn edit(doc: &Doc, run: impl FnOnce(&mut TransactionMut<'_>)) -> Vec<u8> {
    let mut txn = doc.transact_mut();
    run(&mut txn);
    txn.encode_update_v1()
}

/// What an editor sends that uses all there is.
fn updates() -> Seeds {
    let doc = editor(5);
    let bold = || Attrs::from([("bold".into(), Any::Bool(true))]);
    let image = Any::from_json("{\"image\":\"tide.png\"}").expect("is JSON");
    let steps: [&dyn Fn(&mut TransactionMut<'_>); 8] = [
        &|txn| txn.get_or_insert_text("content").insert(txn, 0, "The tide \u{1f30a} turns"),
        &|txn| txn.get_or_insert_text("content").remove_range(txn, 4, 5),
        &|txn| txn.get_or_insert_text("content").format(txn, 0, 3, bold()),
        &|txn| drop(txn.get_or_insert_text("content").insert_embed(txn, 2, image.clone())),
        &|txn| {
            let list = txn.get_or_insert_array("list");
            list.insert_range(
                txn,
                0,
                [Any::from(1), Any::from("two"), Any::Null, Any::from(0.5), Any::from(1i64 << 40)],
            );
            list.push_back(txn, ArrayPrelim::from([Any::from(vec![1u8, 2]), Any::from(true)]));
            list.remove(txn, 1);
        },
        &|txn| {
            let map = txn.get_or_insert_map("map");
            map.insert(txn, "a", "one");
            map.insert(txn, "a", TextPrelim::new("nested"));
            map.insert(txn, "b", MapPrelim::from([("c", 5)]));
            map.remove(txn, "b");
        },
        &|txn| {
            let page = txn.get_or_insert_xml_fragment("page");
            let paragraph = page.insert(txn, 0, XmlElementPrelim::empty("p"));
            paragraph.insert_attribute(txn, "class", "wide");
            let text = paragraph.insert(txn, 0, XmlTextPrelim::new("words"));
            text.format(txn, 1, 2, bold());
        },
        &|txn| txn.get_or_insert_xml_fragment("page").remove_range(txn, 0, 1),
    ];
    let sent: Vec<Vec<u8>> = steps.iter().map(|step| edit(&doc, step)).collect();
    let mut seeds: Seeds = sent.iter().map(|update| joined(&[update])).collect();
    seeds.extend((2..=sent.len()).map(|count| joined(&sent[..count])));
    let mut node = Document::new(NODE_CLIENTS);
    for update in &sent {
        node.replay(update).expect("an editor made it");
    }
    seeds.push(joined(&[node.state()]));
    seeds
}

/// Bytes that decide what editors do: any will do, as long as they differ.
fn choices() -> Seeds {
    let drawn = |seed: u8| {
        let step = |state: &mut u32, _| {
            *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223); // Numerical Recipes
            Some((*state >> 24) as u8)
        };
        (0..64 * usize::from(1 + seed % 4)).scan(u32::from(seed) << 16, step).collect()
    };
    (0..32).map(drawn).collect()
}

fn operations() -> Seeds {
    use Operation::{Delete, Insert, Retain};
    let text = "a tide \u{1f30a} turns";
    let edits = [
        Operations::of([Insert("x".into())]),
        Operations::of([Retain(3), Insert("é\u{1f30a}".into()), Delete(2), Retain(1), Insert("y".into())]),
        Operations::of([Delete(7)]),
        Operations::of([Retain(9), Delete(2), Retain(1), Delete(3)]),
        Operations::new(),
    ];
    let pairs = edits.iter().flat_map(|one| edits.iter().map(move |other| (one, other)));
    pairs.map(|(one, other)| joined(&[&one.encode(), &other.encode(), text.as_bytes()])).collect()
}

fn awareness() -> Seeds {
    let entry = |client, state: Option<&'static str>| AwarenessEntry {
        client,
        clock: client + 1,
        state: state.map(|state| state.as_bytes().into()),
    };
    let entries = [entry(1, Some("{\"user\":{\"name\":\"ada\"}}")), entry(1 << 52, None), entry(300, Some("null "))];
    (0..=entries.len()).map(|count| AwarenessUpdate { entries: entries[..count].to_vec() }.encode().to_vec()).collect()
}

fn places() -> Seeds {
    let mut document = Document::new(NODE_CLIENTS);
    document.edit(&Operations::new().insert("the tide \u{1f30a}")).expect("it is empty");
    let mut seeds = vec![vec![0], [&[0][..], &document.state_vector()].concat()];
    let anchors = [(0, true), (4, false), (4, true), (11, true)];
    let anchors = anchors.map(|(offset, after)| document.anchor(offset, after).expect("is in the text"));
    seeds.extend(anchors.iter().map(|anchor| [&[1][..], &anchor.encode()].concat()));
    seeds.push([&[1][..], &[2, 4], b"page", &[0]].concat());
    seeds
}
