//! The terminal: taken, and given back whatever happens.

use std::io::{IsTerminal as _, Stdout, Write as _, stdin, stdout};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use crossterm::cursor::Show;
use crossterm::event::{
    DisableBracketedPaste, DisableFocusChange, DisableMouseCapture, EnableBracketedPaste, EnableFocusChange,
    EnableMouseCapture,
};
use crossterm::execute;
use crossterm::style::Print;
use crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;

use crate::app::App;

/// Terminals take no more at a time.
const COPY_BYTES_MAX: usize = 64 << 10;

/// Whether the terminal is ours to give back.
static TAKEN: AtomicBool = AtomicBool::new(false);
static HOOK: Once = Once::new();

/// Why a chat over the whole screen cannot be, if it cannot: standard input and output must be a terminal that moves its
/// cursor.
pub fn obstacle() -> Option<&'static str> {
    if !stdin().is_terminal() {
        return Some("standard input is not a terminal");
    }
    if !stdout().is_terminal() {
        return Some("standard output is not a terminal");
    }
    let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    dumb.then_some("the terminal cannot move its cursor (TERM is dumb or not set)")
}

/// The terminal, ours until this is dropped or the program panics.
pub(crate) struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Screen {
    pub(crate) fn take() -> std::io::Result<Self> {
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                // First, so that what is said of the panic can be read.
                give_back();
                before(panic);
            }));
        });
        enable_raw_mode()?;
        TAKEN.store(true, Ordering::SeqCst);
        // From here on dropping gives back what was taken.
        let screen = Self { terminal: Terminal::new(CrosstermBackend::new(stdout()))? };
        execute!(stdout(), EnterAlternateScreen, EnableBracketedPaste, EnableFocusChange, EnableMouseCapture)?;
        Ok(screen)
    }

    /// Columns and lines.
    pub(crate) fn size(&self) -> std::io::Result<(u16, u16)> {
        let size = self.terminal.size()?;
        Ok((size.width, size.height))
    }

    pub(crate) fn draw(&mut self, app: &App) -> std::io::Result<()> {
        self.draw_with(|frame| crate::view::render(app, frame))
    }

    pub(crate) fn draw_with(&mut self, draw: impl FnOnce(&mut ratatui::Frame<'_>)) -> std::io::Result<()> {
        self.terminal.draw(draw).map(drop)
    }

    /// Puts a text into the clipboard of the terminal, if it has one and it is not too much for it (OSC 52).
    pub(crate) fn copy(&mut self, text: &str) -> std::io::Result<()> {
        if text.len() > COPY_BYTES_MAX {
            return Ok(());
        }
        execute!(stdout(), Print(format!("\u{1b}]52;c;{}\u{7}", base64(text.as_bytes()))))
    }

    /// Draws everything again with the next [`draw`](Self::draw).
    pub(crate) fn clear(&mut self) -> std::io::Result<()> {
        self.terminal.clear()
    }

    pub(crate) fn mouse(&mut self, ours: bool) -> std::io::Result<()> {
        if ours { execute!(stdout(), EnableMouseCapture) } else { execute!(stdout(), DisableMouseCapture) }
    }

    pub(crate) fn bell(&mut self) -> std::io::Result<()> {
        execute!(stdout(), Print('\u{7}'))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Leaves the terminal as it was found. Errors have nobody left to be told to.
fn give_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        let _ = execute!(
            stdout(),
            DisableMouseCapture,
            DisableFocusChange,
            DisableBracketedPaste,
            LeaveAlternateScreen,
            Show
        );
        let _ = disable_raw_mode();
        let _ = stdout().flush();
    }
}

/// Base64 with padding (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let number =
            group.iter().enumerate().fold(0_u32, |number, (at, byte)| number | u32::from(*byte) << (16 - 8 * at));
        for at in 0..4 {
            let letter = LETTERS[(number >> (18 - 6 * at)) as usize & 63];
            text.push(if at <= group.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clipboards_are_filled() {
        let check = |text: &str, expected: &str| assert_eq!(base64(text.as_bytes()), expected);
        check("", "");
        check("f", "Zg==");
        check("fo", "Zm8=");
        check("foo", "Zm9v");
        check("foobar", "Zm9vYmFy");
    }
}
