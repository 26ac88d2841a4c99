//! The shell of an editor: joins the terminal and a document.

use std::time::{Duration, Instant};

use thalweg_client::{
    Client, ClientError, Document, DocumentAccess, DocumentEvent, FinishReason, GenerationId, ModelEdit, TextChange,
};
use tokio::sync::mpsc;

use super::app::{EditApp, EditOptions};
use super::copy;
use super::event::{EditCommand, EditEvent, Peer};
use super::view::render_edit;
use crate::input::{Input, Said, gathered};
use crate::screen::Screen;
use crate::shell::{Ends, FAREWELL, FRAME, TermError};
use crate::theme::Theme;

/// Events that are taken in before the screen is drawn again.
const BURST: usize = 256;
/// Answers of models that wait for the application.
const ANSWERS_MAX: usize = 16;

/// Edits a document over the whole terminal until the person leaves, or a signal ends it. The terminal is given back as it
/// was found. Must be called within a tokio runtime; while the terminal takes no output, that thread waits.
///
/// # Errors
/// [`TermError::Terminal`] if standard input and output are not a terminal that works; [`TermError::Unsaved`] if
/// the last edits did not reach the node: the text is in a file then, unless the person said to leave without them;
/// [`TermError::Ended`] if the document was ended, because it was deleted for instance.
pub async fn edit(document: Document, theme: Theme) -> Result<(), TermError> {
    let mut screen = Screen::take()?;
    let options = EditOptions {
        document: document.name().to_string(),
        user: document.client().welcome().user.to_string(),
        text: document.text(),
        access: document.access(),
        theme,
        size: screen.size()?,
    };
    let (answers_in, answers) = mpsc::channel(ANSWERS_MAX);
    let app = EditApp::new(options);
    let mut desk = Desk {
        app,
        document,
        answers_in,
        answers,
        looked_up: None,
        began: Instant::now(),
        over: false,
        ended: false,
        end: None,
    };
    let result = desk.turn(&mut screen).await;
    drop(screen);
    let Desk { document, over: said_so, end, .. } = desk;
    let left = document.unacknowledged();
    if left > 0 {
        // What was typed last may still be on its way.
        let _ = tokio::time::timeout(FAREWELL, document.flush()).await;
    }
    let edits = document.unacknowledged();
    // Who was not asked, because the terminal went away for instance, finds what they wrote in a file.
    let kept = match edits {
        0 => None,
        _ if said_so => None,
        _ => Some(copy::keep(document.name().as_str(), &document.text())),
    };
    let client = document.client().clone();
    drop(document);
    let _ = tokio::time::timeout(FAREWELL, client.close()).await;
    result?;
    match (edits, end) {
        (0, None) => Ok(()),
        (0, Some(error)) => Err(TermError::Ended(error)),
        (edits, _) => Err(TermError::Unsaved { edits, kept: kept.transpose()? }),
    }
}

/// What a turn of the loop waited for.
enum Woken {
    Terminal(Option<std::io::Result<Vec<crossterm::event::Event>>>),
    Document(Result<Option<DocumentEvent>, ClientError>),
    Answer(Answer),
    Timer,
    Signal,
}

/// What came of something that was asked of the node.
enum Answer {
    /// Something for the editor.
    Event(EditEvent),
    /// What a model wrote.
    LookedUp(Result<ModelEdit, ClientError>),
}

struct Desk {
    app: EditApp,
    document: Document,
    answers_in: mpsc::Sender<Answer>,
    answers: mpsc::Receiver<Answer>,
    /// The model's edit that the node is being asked about, to take it back.
    looked_up: Option<GenerationId>,
    began: Instant,
    over: bool,
    /// The document gives nothing more.
    ended: bool,
    /// Why.
    end: Option<ClientError>,
}

impl Desk {
    async fn turn(&mut self, screen: &mut Screen) -> Result<(), TermError> {
        let mut input = Input::start()?;
        let mut ends = Ends::new()?;
        let mut drawn: Option<Instant> = None;
        let mut fresh = true;
        self.tell_others(screen)?;
        while !self.over {
            let due = drawn.map_or(Duration::ZERO, |drawn| FRAME.saturating_sub(drawn.elapsed()));
            if fresh && due.is_zero() {
                let app = &self.app;
                screen.draw_with(|frame| render_edit(app, frame))?;
                drawn = Some(Instant::now());
                fresh = false;
            }
            let wake = self.app.wake().map(|at| at.saturating_sub(self.began.elapsed()));
            let sleep = if fresh { due } else { wake.unwrap_or(Duration::from_secs(3_600)) };
            let woken = tokio::select! {
                said = input.next() => Woken::Terminal(said),
                event = self.document.next(), if !self.ended => Woken::Document(event),
                Some(answer) = self.answers.recv() => Woken::Answer(answer),
                () = tokio::time::sleep(sleep) => Woken::Timer,
                () = ends.any() => Woken::Signal,
            };
            match woken {
                // The end of the input is the end of the terminal.
                Woken::Terminal(None) | Woken::Signal => return Ok(()),
                Woken::Terminal(Some(said)) => {
                    for event in gathered(said?).into_iter().filter_map(taken) {
                        if !self.over {
                            self.handle(event, screen)?;
                        }
                    }
                    // More keys may be there already; what was typed is sent first.
                    tokio::task::yield_now().await;
                }
                Woken::Document(event) => self.happened(event, screen).await?,
                Woken::Answer(Answer::Event(event)) => {
                    if let EditEvent::Asked { generation, .. } = &event {
                        self.document.adopt(*generation);
                    }
                    self.handle(event, screen)?;
                }
                Woken::Answer(Answer::LookedUp(edit)) => {
                    let event = self.looked_up(edit);
                    self.handle(event, screen)?;
                }
                Woken::Timer if fresh => continue,
                Woken::Timer => self.handle(EditEvent::Timer, screen)?,
            }
            fresh = true;
        }
        Ok(())
    }

    /// The document says something, and perhaps more at once.
    async fn happened(
        &mut self,
        first: Result<Option<DocumentEvent>, ClientError>,
        screen: &mut Screen,
    ) -> Result<(), TermError> {
        let mut next = Some(first);
        let mut moved = false;
        for _ in 0..BURST {
            let Some(event) = next.take() else { break };
            match event {
                Ok(Some(event)) => moved |= self.told(event, screen)?,
                Ok(None) => {
                    (self.ended, self.end) = (true, Some(ClientError::Closed));
                    self.handle(EditEvent::Ended("the connection was closed".to_owned()), screen)?;
                    return Ok(());
                }
                Err(error) => {
                    self.handle(EditEvent::Ended(reason(&error)), screen)?;
                    (self.ended, self.end) = (true, Some(error));
                    return Ok(());
                }
            }
            next = tokio::select! {
                biased;
                event = self.document.next() => Some(event),
                () = std::future::ready(()) => None,
            };
        }
        if let Some(Ok(Some(event))) = next {
            moved |= self.told(event, screen)?;
        }
        // Once, whatever came: where everybody is takes a look at all of them.
        if moved { self.tell_others(screen) } else { Ok(()) }
    }

    /// The document says something. Whether others are elsewhere by it.
    fn told(&mut self, event: DocumentEvent, screen: &mut Screen) -> Result<bool, TermError> {
        let moved = matches!(event, DocumentEvent::Changed(_) | DocumentEvent::Others);
        match event {
            DocumentEvent::Changed(TextChange { operations, user, generation, .. }) => {
                let user = user.map(|user| user.to_string());
                self.handle(EditEvent::Changed { operations, user, generation }, screen)?;
            }
            DocumentEvent::Others => {}
            DocumentEvent::Version { name, user, .. } => {
                self.handle(EditEvent::Version { name, user: user.to_string() }, screen)?;
            }
            DocumentEvent::Saved { .. } => {}
            DocumentEvent::Refused { reject, text } => self.handle(EditEvent::Refused { reject, text }, screen)?,
            DocumentEvent::Offline { reason } => self.handle(EditEvent::Offline(reason), screen)?,
            DocumentEvent::Online => {
                let access: DocumentAccess = self.document.access();
                self.handle(EditEvent::Online(access), screen)?;
            }
        }
        let unsaved = self.document.unacknowledged();
        self.handle(EditEvent::Unsaved(unsaved), screen)?;
        Ok(moved)
    }

    fn tell_others(&mut self, screen: &mut Screen) -> Result<(), TermError> {
        let peer = |other: thalweg_client::Other| Peer {
            generation: other.state.get("generation").and_then(|id| id.as_str()?.parse().ok()),
            client: other.client,
            name: other.name,
            cursor: other.cursor,
        };
        let peers = self.document.others().into_iter().map(peer).collect();
        self.handle(EditEvent::Others(peers), screen)
    }

    fn handle(&mut self, event: EditEvent, screen: &mut Screen) -> Result<(), TermError> {
        let mut waiting = vec![event];
        while let Some(event) = waiting.pop() {
            for command in self.app.handle(self.began.elapsed(), event) {
                match command {
                    EditCommand::Quit => self.over = true,
                    EditCommand::Redraw => screen.clear()?,
                    EditCommand::Copy(text) => screen.copy(&text)?,
                    other => waiting.extend(self.carry(other)),
                }
            }
        }
        Ok(())
    }

    /// Does to the document what was done to its text; gives what came of it.
    fn carry(&mut self, command: EditCommand) -> Option<EditEvent> {
        match command {
            EditCommand::Edit(operations) => {
                if let Err(error) = self.document.edit(&operations) {
                    return Some(EditEvent::Reset { text: self.document.text(), reason: reason(&error) });
                }
                return Some(EditEvent::Unsaved(self.document.unacknowledged()));
            }
            EditCommand::Separate => self.document.separate(),
            EditCommand::Undo => return self.undo(),
            EditCommand::TakeBack(generation) => return self.take_back(generation),
            EditCommand::Redo => return Some(reverted(self.document.redo(), &self.document)),
            EditCommand::Cursor(from, to) => self.document.set_cursor(Some((from, to))),
            EditCommand::Ask { from, to, instruction } => {
                let ask = self.document.ask_at(from, to, instruction);
                let (client, answers) = (self.document.client().clone(), self.answers_in.clone());
                // The node is asked about characters that it has to have.
                let saved = self.document.acknowledgement();
                tokio::spawn(async move {
                    match saved.await {
                        Ok(_) => ask_model(client, ask, answers).await,
                        Err(error) => {
                            let answered = EditEvent::Answered(Err(reason(&error)));
                            drop(answers.send(Answer::Event(answered)).await);
                        }
                    }
                });
            }
            EditCommand::Stop(generation) => {
                let client = self.document.client().clone();
                // A model that ended meanwhile cannot be stopped, and need not be.
                tokio::spawn(async move { drop(client.cancel(generation).await) });
            }
            EditCommand::Adopt(generation) => {
                self.document.adopt(generation);
                let (client, answers) = (self.document.client().clone(), self.answers_in.clone());
                tokio::spawn(async move {
                    let result = finished(&client, generation).await;
                    drop(answers.send(Answer::Event(EditEvent::Answered(result))).await);
                });
            }
            EditCommand::Keep => {
                let kept = copy::keep(self.document.name().as_str(), &self.document.text());
                let kept = kept.map(|file| file.display().to_string()).map_err(|error| error.to_string());
                return Some(EditEvent::Kept(kept));
            }
            EditCommand::Copy(_) | EditCommand::Redraw | EditCommand::Quit => {}
        }
        None
    }
}

impl Desk {
    fn undo(&mut self) -> Option<EditEvent> {
        match (self.document.undo(), self.document.undoes_generation()) {
            // A model's edit that was not all seen here.
            (Ok(None), Some(generation)) => self.take_back(generation),
            (result, _) => Some(reverted(result, &self.document)),
        }
    }

    /// Takes back what a model wrote; if not all of that was seen here, once the node said what it was.
    fn take_back(&mut self, generation: GenerationId) -> Option<EditEvent> {
        if self.document.has_seen(generation) {
            return Some(reverted(self.document.undo_seen(generation), &self.document));
        }
        if self.looked_up.replace(generation) != Some(generation) {
            let (client, answers) = (self.document.client().clone(), self.answers_in.clone());
            let (document, after) = (self.document.name().clone(), self.document.revision_before(generation));
            tokio::spawn(async move {
                let edit = client.model_edit(document, generation, after).await;
                drop(answers.send(Answer::LookedUp(edit)).await);
            });
        }
        None
    }

    /// The node said what a model wrote.
    fn looked_up(&mut self, edit: Result<ModelEdit, ClientError>) -> EditEvent {
        self.looked_up = None;
        let undone = edit.and_then(|edit| {
            let generation = edit.generation();
            self.document.learn(edit);
            self.document.undo_seen(generation)
        });
        reverted(undone, &self.document)
    }
}

fn reverted(result: Result<Option<thalweg_client::Operations>, ClientError>, document: &Document) -> EditEvent {
    match result {
        Ok(operations) => EditEvent::Reverted(operations),
        Err(error) => EditEvent::Reset { text: document.text(), reason: reason(&error) },
    }
}

fn reason(error: &ClientError) -> String {
    match error.reject() {
        Some(reject) if !reject.message.is_empty() => reject.message.to_string(),
        _ => error.to_string(),
    }
}

/// Asks a model, and waits until it wrote all it will.
async fn ask_model(client: Client, ask: thalweg_client::AskInDocument, answers: mpsc::Sender<Answer>) {
    let result = match client.ask_in_document(ask).await {
        Ok((generation, model)) => {
            if answers.send(Answer::Event(EditEvent::Asked { generation, model })).await.is_err() {
                return;
            }
            finished(&client, generation).await
        }
        Err(error) => Err(reason(&error)),
    };
    let _ = answers.send(Answer::Event(EditEvent::Answered(result))).await;
}

/// Waits for the end of what a model writes; gives what to say of it.
async fn finished(client: &Client, generation: GenerationId) -> Result<String, String> {
    let answer = client.watch(generation, 0, None).await.map_err(|error| reason(&error))?;
    let (_, finished) = answer.finish().await.map_err(|error| reason(&error))?;
    let tokens = finished.usage.completion_tokens;
    match finished.reason {
        FinishReason::Failed => Err(finished.message),
        FinishReason::Cancelled => Ok(format!("the AI was stopped after {tokens} tokens; Ctrl-Z takes them back")),
        _ => Ok(format!("the AI wrote {tokens} tokens; Ctrl-Z takes them back")),
    }
}

/// What the terminal says, as far as it concerns the editor.
fn taken(said: Said) -> Option<EditEvent> {
    use crossterm::event::Event as Terminal;
    let event = match said {
        Said::Typed(text) => return Some(EditEvent::Typed(text)),
        Said::Event(event) => event,
    };
    Some(match event {
        Terminal::Key(key) => EditEvent::Key(key),
        Terminal::Mouse(mouse) => EditEvent::Mouse(mouse),
        Terminal::Paste(text) => EditEvent::Paste(text),
        Terminal::Resize(columns, lines) => EditEvent::Resize { columns, lines },
        Terminal::FocusGained | Terminal::FocusLost => return None,
    })
}
