//! The shell: joins the terminal, the node and the clock to the application.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use thalweg_client::{Client, ClientError};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::app::{App, Options};
use crate::clock::{Now, Zone};
use crate::event::{Command, Event};
use crate::input::Input;
use crate::screen::Screen;
use crate::theme::Theme;
use crate::wire::{Wire, wall_us};

/// Events that wait for the application; beyond that their makers wait, and the node sends less.
const EVENTS_MAX: usize = 1_024;
/// Events that are taken in before the screen is drawn again.
const BURST: usize = 256;
/// Least time between two pictures: nobody sees more.
pub(crate) const FRAME: Duration = Duration::from_millis(16);
/// How long leaving may take.
pub(crate) const FAREWELL: Duration = Duration::from_secs(2);

/// Why a chat ended that should not have.
#[derive(Debug, thiserror::Error)]
pub enum TermError {
    /// The terminal cannot be used.
    #[error("the terminal: {0}")]
    Terminal(#[from] std::io::Error),
    /// A part of this program panicked.
    #[error("a defect of this program: {0}")]
    Defect(String),
    /// Edits of a document were not saved when the editor was left.
    #[error("{}", unsaved(*.edits, .kept.as_ref()))]
    Unsaved {
        /// How many.
        edits: u64,
        /// Where the text was put, with them; `None` if the person left them behind.
        kept: Option<PathBuf>,
    },
    /// The node ended the document, or it was lost.
    #[error(transparent)]
    Ended(ClientError),
}

fn unsaved(edits: u64, kept: Option<&PathBuf>) -> String {
    let edits = if edits == 1 { "your last edit".to_owned() } else { format!("{edits} of your last edits") };
    match kept {
        Some(file) => format!("{edits} did not reach the node; the text with all of them is in {}", file.display()),
        None => format!("{edits} did not reach the node; left without them, as you said"),
    }
}

/// Talks over the whole terminal until the person leaves, or a signal ends it. The terminal is given back as it was found.
/// Must be called within a tokio runtime; while the terminal takes no output, that thread waits.
///
/// # Errors
/// [`TermError::Terminal`] if standard input and output are not a terminal that works.
pub async fn run(client: Client, channel: &str, theme: Theme) -> Result<(), TermError> {
    let mut screen = Screen::take()?;
    let options = Options { channel: channel.to_owned(), theme, zone: Zone::local(), size: screen.size()? };
    let (sender, mut events) = mpsc::channel(EVENTS_MAX);
    let mut shell =
        Shell { app: App::new(options), wire: Wire::new(client, sender), began: Instant::now(), over: false };
    let result = shell.turn(&mut screen, &mut events).await;
    drop(screen);
    shell.part(&mut events).await;
    shell.wire.close(FAREWELL).await;
    result
}

struct Shell {
    app: App,
    wire: Wire,
    began: Instant,
    over: bool,
}

impl Shell {
    fn now(&self) -> Now {
        Now { mono: self.began.elapsed(), wall_us: wall_us() }
    }

    async fn turn(&mut self, screen: &mut Screen, events: &mut mpsc::Receiver<Event>) -> Result<(), TermError> {
        let mut input = Input::start()?;
        let mut ends = Ends::new()?;
        let mut drawn: Option<Instant> = None;
        let mut fresh = true;
        while !self.over {
            let due = drawn.map_or(Duration::ZERO, |drawn| FRAME.saturating_sub(drawn.elapsed()));
            if fresh && due.is_zero() {
                screen.draw(&self.app)?;
                drawn = Some(Instant::now());
                fresh = false;
            }
            let wake = self.app.wake().map(|at| at.saturating_sub(self.began.elapsed()));
            let sleep = if fresh { due } else { wake.unwrap_or(Duration::from_secs(3_600)) };
            tokio::select! {
                said = input.next() => {
                    // The end of the input is the end of the terminal.
                    let Some(said) = said.transpose()? else { return Ok(()) };
                    for event in said.into_iter().filter_map(taken) {
                        if !self.over {
                            self.handle(event, screen)?;
                        }
                    }
                    fresh = true;
                    // More keys may be there already; the connection is served first.
                    tokio::task::yield_now().await;
                }
                event = events.recv() => {
                    let mut next = event;
                    for _ in 0..BURST {
                        let Some(event) = next else { break };
                        self.handle(event, screen)?;
                        next = events.try_recv().ok();
                    }
                    if let Some(event) = next {
                        self.handle(event, screen)?;
                    }
                    fresh = true;
                }
                () = tokio::time::sleep(sleep) => {
                    if !fresh {
                        self.handle(Event::Timer, screen)?;
                        fresh = true;
                    }
                }
                () = ends.any() => return Ok(()),
                panicked = self.wire.panicked() => {
                    if let Some(what) = panicked {
                        return Err(TermError::Defect(what));
                    }
                }
            }
        }
        Ok(())
    }

    /// What was written last may still be on its way.
    async fn part(&mut self, events: &mut mpsc::Receiver<Event>) {
        let deadline = tokio::time::Instant::now() + FAREWELL;
        while self.app.is_up() && self.app.unconfirmed() > 0 {
            let Ok(Some(event)) = tokio::time::timeout_at(deadline, events.recv()).await else { return };
            // Nobody is there to do anything more.
            let _ = self.app.handle(self.now(), event);
        }
    }

    fn handle(&mut self, event: Event, screen: &mut Screen) -> Result<(), TermError> {
        let now = self.now();
        let mut commands = self.app.handle(now, event);
        // What is refused at once is answered at once, which may give more to do.
        while !commands.is_empty() {
            let mut more = Vec::new();
            for command in commands {
                match command {
                    Command::Quit => self.over = true,
                    Command::Redraw => screen.clear()?,
                    Command::Mouse(ours) => screen.mouse(ours)?,
                    Command::Bell => screen.bell()?,
                    other => {
                        if let Some(event) = self.wire.carry(other) {
                            more.extend(self.app.handle(now, event));
                        }
                    }
                }
            }
            commands = more;
        }
        Ok(())
    }
}

/// What the terminal says, as far as it concerns the application.
fn taken(event: crossterm::event::Event) -> Option<Event> {
    use crossterm::event::Event as Terminal;
    Some(match event {
        Terminal::Key(key) => Event::Key(key),
        Terminal::Mouse(mouse) => Event::Mouse(mouse),
        Terminal::Paste(text) => Event::Paste(text),
        Terminal::Resize(columns, lines) => Event::Resize { columns, lines },
        Terminal::FocusGained => Event::Focus(true),
        Terminal::FocusLost => Event::Focus(false),
    })
}

/// Signals that end a program: it leaves, and gives the terminal back.
#[derive(Debug)]
pub struct Ends([Signal; 4]);

impl Ends {
    /// Takes SIGTERM, SIGHUP, SIGINT and SIGQUIT: from now on they end nothing by themselves.
    ///
    /// # Errors
    /// If the system does not allow it.
    pub fn new() -> std::io::Result<Self> {
        let kinds = [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt(), SignalKind::quit()];
        let [terminate, hangup, interrupt, quit] = kinds.map(signal);
        Ok(Self([terminate?, hangup?, interrupt?, quit?]))
    }

    /// Waits for one of them. Cancel-safe.
    pub async fn any(&mut self) {
        let [terminate, hangup, interrupt, quit] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
            _ = interrupt.recv() => {}
            _ = quit.recv() => {}
        }
    }
}
