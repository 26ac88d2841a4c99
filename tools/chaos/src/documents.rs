//! People who edit one document while its node is killed.
//!
//! Each types marks, characters that nobody else types and that it types once, wherever chance puts them. In the end every
//! copy must read the same as the node, and each mark whose durability was acknowledged must stand in it once.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use rand::Rng;
use thalweg_client::{Document, DocumentEvent, Position, SessionId};
use tokio::time::{Instant, sleep, sleep_until};

use crate::crowd::{AGAIN, Place};

/// The document that all edit.
const DOCUMENT: &str = "chaos-document";
/// People who edit it.
pub(crate) const EDITORS: u32 = 3;
/// Marks of each of them at most.
const MARKS_MAX: u32 = 5_000;
/// The first mark; as many characters as there are marks follow it, one code unit each.
const FIRST_MARK: u32 = 0x4e00;
/// Marks of one of them whose durability is not acknowledged.
const UNSAVED_MAX: usize = 64;
/// How long a copy may take to get what the node has.
const CATCH_UP: Duration = Duration::from_secs(20);

const _: () = assert!(FIRST_MARK + EDITORS * MARKS_MAX < 0xa000, "marks are of one block");

/// What all of them know.
#[derive(Clone, Default)]
pub(crate) struct Marks(Rc<Known>);

#[derive(Default)]
struct Known {
    saved: RefCell<BTreeSet<char>>,
    /// Those who have typed their last, and had it acknowledged.
    done: Cell<u32>,
}

impl Marks {
    /// How many are durable.
    pub(crate) fn saved(&self) -> usize {
        self.0.saved.borrow().len()
    }

    /// What is wrong with a text that should have all of them.
    fn judge(&self, text: &str) -> Option<String> {
        let mut found = BTreeSet::new();
        let twice = text.chars().find(|mark| !found.insert(*mark));
        let saved = self.0.saved.borrow();
        let lost: String = saved.difference(&found).take(20).collect();
        match twice {
            Some(mark) => Some(format!("{mark:?} stands in it twice")),
            None if !lost.is_empty() => Some(format!("it lacks {lost:?}, which it acknowledged")),
            None => None,
        }
    }
}

/// Edits until it is over, waits for the others, and looks at what there is then.
pub(crate) async fn edit(place: Place, marks: Marks, editor: u32) {
    if let Err(complaint) = try_edit(&place, &marks, editor).await {
        place.ledger.complain(format!("editor {editor} of {DOCUMENT}: {complaint}"));
    }
}

async fn try_edit(place: &Place, marks: &Marks, editor: u32) -> Result<(), String> {
    let mut rng = place.rng(100 + u64::from(editor));
    let Some(client) = place.connect(SessionId(rng.random())).await else { return Ok(()) };
    let opened = client.document(DOCUMENT).make(true).open().await;
    let mut document = opened.map_err(|error| format!("it cannot be opened: {error}"))?;
    let unsaved = Rc::new(Cell::new(0_usize));
    let (mut typed, mut next) = (0, Instant::now());
    while !place.is_over() || unsaved.get() > 0 {
        tokio::select! {
            () = sleep_until(next), if !place.is_over() && typed < MARKS_MAX && unsaved.get() < UNSAVED_MAX => {
                next = Instant::now() + Duration::from_millis(rng.random_range(5..60));
                let mark = char::from_u32(FIRST_MARK + editor * MARKS_MAX + typed).ok_or("there is no such mark")?;
                typed += 1;
                let at = rng.random_range(0..=document.length());
                let acknowledgement = document.insert(at, &mark.to_string()).map_err(|error| error.to_string())?;
                unsaved.set(unsaved.get() + 1);
                let (marks, unsaved, ledger) = (marks.clone(), Rc::clone(&unsaved), place.ledger.clone());
                tokio::task::spawn_local(async move {
                    match acknowledgement.await {
                        Ok(_) => drop(marks.0.saved.borrow_mut().insert(mark)),
                        Err(error) => ledger.complain(format!("{mark:?} was never acknowledged: {error}")),
                    }
                    unsaved.set(unsaved.get() - 1);
                });
            }
            event = document.next() => take(event)?,
            () = sleep(AGAIN) => {}
        }
    }
    marks.0.done.set(marks.0.done.get() + 1);
    while marks.0.done.get() < EDITORS {
        follow(&mut document).await?;
    }
    let read = document.client().read_text(DOCUMENT, Position(0)).await;
    let (revision, text) = read.map_err(|error| format!("it cannot be read: {error}"))?;
    let start = Instant::now();
    while document.text() != text && start.elapsed() < CATCH_UP {
        follow(&mut document).await?;
    }
    if document.text() != text {
        return Err(format!("this copy reads {:?}, the node at revision {revision} {text:?}", document.text()));
    }
    client.close().await;
    marks.judge(&text).map_or(Ok(()), Err)
}

/// Takes in what others did, for a moment.
async fn follow(document: &mut Document) -> Result<(), String> {
    tokio::select! {
        event = document.next() => take(event),
        () = sleep(AGAIN) => Ok(()),
    }
}

fn take(event: Result<Option<DocumentEvent>, thalweg_client::ClientError>) -> Result<(), String> {
    match event {
        Ok(Some(DocumentEvent::Refused { reject, .. })) => Err(format!("an edit was refused: {reject}")),
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err("it ended".into()),
        Err(error) => Err(format!("it ended: {error}")),
    }
}
