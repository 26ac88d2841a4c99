//! What the terminal says, read by a thread of its own.
//!
//! What is pasted into a terminal that does not mark pastes comes as keys, thousands at once. They are handed over in bursts,
//! so that whoever takes them draws, and sends, once for many of them.

use std::io;

use crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::sync::mpsc;

/// Events that are read ahead; what is beyond them waits in the terminal.
const AHEAD: usize = 1_024;
/// Events of one burst: the connection has its turn between two, and the screen is drawn.
const BURST: usize = 1_024;

/// The keys, the mouse and the size of the terminal.
pub(crate) struct Input {
    events: mpsc::Receiver<io::Result<Event>>,
    burst: Vec<io::Result<Event>>,
    /// Why nothing more comes, if something came before that.
    failed: Option<io::Error>,
}

impl Input {
    /// Begins to read. The thread that does ends with the program, or with the first event after this is dropped.
    ///
    /// # Errors
    /// If there is no further thread.
    pub(crate) fn start() -> io::Result<Self> {
        let (sender, events) = mpsc::channel(AHEAD);
        std::thread::Builder::new().name("thalweg-keys".to_owned()).spawn(move || {
            loop {
                let event = crossterm::event::read();
                let failed = event.is_err();
                if sender.blocking_send(event).is_err() || failed {
                    return;
                }
            }
        })?;
        Ok(Self { events, burst: Vec::new(), failed: None })
    }

    /// What came since this was last asked, at least one event; `None` at the end of the terminal. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<io::Result<Vec<Event>>> {
        if let Some(error) = self.failed.take() {
            return Some(Err(error));
        }
        if self.events.recv_many(&mut self.burst, BURST).await == 0 {
            return None;
        }
        let mut events = Vec::with_capacity(self.burst.len());
        for event in self.burst.drain(..) {
            match event {
                Ok(event) => events.push(event),
                Err(error) => self.failed = Some(error),
            }
        }
        match self.failed.take_if(|_| events.is_empty()) {
            Some(error) => Some(Err(error)),
            None => Some(Ok(events)),
        }
    }
}

/// A part of a burst.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    /// Several keys that stand for what is written on them: line ends are `\n`.
    Typed(String),
    /// Anything else.
    Event(Event),
}

/// What a key puts into a text, if that is all it does.
fn letter(event: &Event) -> Option<char> {
    let Event::Key(KeyEvent { code, modifiers, kind, .. }) = event else { return None };
    if *kind == KeyEventKind::Release {
        return None;
    }
    match (code, *modifiers) {
        (KeyCode::Char(c), KeyModifiers::NONE | KeyModifiers::SHIFT) if !c.is_control() => Some(*c),
        // A line feed, as some terminals paste it.
        (KeyCode::Enter, KeyModifiers::NONE) | (KeyCode::Char('j'), KeyModifiers::CONTROL) => Some('\n'),
        (KeyCode::Tab, KeyModifiers::NONE) => Some('\t'),
        _ => None,
    }
}

/// Joins the keys of a burst that were typed one after the other.
pub(crate) fn gathered(burst: Vec<Event>) -> Vec<Said> {
    let mut said = Vec::new();
    let mut run: Vec<Event> = Vec::new();
    let close = |run: &mut Vec<Event>, said: &mut Vec<Said>| match run.len() {
        0 => {}
        1 => said.extend(run.drain(..).map(Said::Event)),
        _ => said.push(Said::Typed(run.drain(..).filter_map(|event| letter(&event)).collect())),
    };
    for event in burst {
        if letter(&event).is_none() {
            close(&mut run, &mut said);
            said.push(Said::Event(event));
        } else {
            run.push(event);
        }
    }
    close(&mut run, &mut said);
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(code: KeyCode, modifiers: KeyModifiers) -> Event {
        Event::Key(KeyEvent::new(code, modifiers))
    }

    #[test]
    fn what_is_typed_in_one_burst_is_one_text() {
        let plain = |code| key(code, KeyModifiers::NONE);
        let control = |c| key(KeyCode::Char(c), KeyModifiers::CONTROL);
        let check = |burst: &[Event], expected: &[Said]| assert_eq!(gathered(burst.to_vec()), expected, "{burst:?}");
        let typed = |text: &str| Said::Typed(text.to_owned());
        check(&[], &[]);
        check(&[plain(KeyCode::Char('a'))], &[Said::Event(plain(KeyCode::Char('a')))]);
        check(&[plain(KeyCode::Char('a')), key(KeyCode::Char('B'), KeyModifiers::SHIFT)], &[typed("aB")]);
        check(
            &[plain(KeyCode::Char('a')), plain(KeyCode::Enter), plain(KeyCode::Tab), control('j')],
            &[typed("a\n\t\n")],
        );
        check(
            &[plain(KeyCode::Char('a')), plain(KeyCode::Char('b')), control('q'), plain(KeyCode::Char('c'))],
            &[typed("ab"), Said::Event(control('q')), Said::Event(plain(KeyCode::Char('c')))],
        );
        check(
            &[plain(KeyCode::Left), plain(KeyCode::Backspace)],
            &[Said::Event(plain(KeyCode::Left)), Said::Event(plain(KeyCode::Backspace))],
        );
    }

    #[tokio::test]
    async fn the_end_comes_after_what_was_said_before_it() {
        let (sender, events) = mpsc::channel(AHEAD);
        let mut input = Input { events, burst: Vec::new(), failed: None };
        for code in [KeyCode::Char('a'), KeyCode::Enter] {
            sender.send(Ok(key(code, KeyModifiers::NONE))).await.expect("it is read");
        }
        sender.send(Err(io::Error::other("it was unplugged"))).await.expect("it is read");
        drop(sender);
        assert_eq!(input.next().await.expect("events").expect("no error").len(), 2);
        assert!(input.next().await.expect("why").is_err());
        assert!(input.next().await.is_none());
    }
}
