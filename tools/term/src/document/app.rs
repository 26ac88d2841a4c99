//! An editor of a document: everything a person sees and does there, as a value.

use std::collections::BTreeMap;
use std::time::Duration;

use thalweg_client::{DocumentAccess, GenerationId, Operations};

use super::body::Body;
use super::call::Call;
use super::event::{EditCommand, EditEvent, Peer};
use crate::editor::Editor;
use crate::ink::Ink;
use crate::text;
use crate::theme::Theme;

/// How long a remark stands.
const NOTICE_FOR: Duration = Duration::from_secs(6);
/// Rows above and below the cursor that are kept in sight.
const MARGIN: usize = 2;
/// Lines whose rows are remembered.
const CACHE_MAX: usize = 512;

/// What an editor starts with.
#[derive(Debug, Clone)]
pub struct EditOptions {
    /// The document's name.
    pub document: String,
    /// Who we are.
    pub user: String,
    /// Its text.
    pub text: String,
    /// What may be done to it.
    pub access: DocumentAccess,
    /// How it looks.
    pub theme: Theme,
    /// Columns and lines of the terminal.
    pub size: (u16, u16),
}

/// A line of input at the foot of the screen.
#[derive(Debug, Clone)]
pub(super) enum Prompt {
    /// A text to look for.
    Find(Editor),
    /// A line to go to.
    Line(Editor),
    /// What a model shall do.
    Ask(Editor),
}

impl Prompt {
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Find(_) => "Find: ",
            Self::Line(_) => "Go to line: ",
            Self::Ask(_) => "Ask the AI: ",
        }
    }

    pub(super) fn editor(&self) -> &Editor {
        let (Self::Find(editor) | Self::Line(editor) | Self::Ask(editor)) = self;
        editor
    }

    pub(super) fn editor_mut(&mut self) -> &mut Editor {
        let (Self::Find(editor) | Self::Line(editor) | Self::Ask(editor)) = self;
        editor
    }
}

/// How a model stands that was asked here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asking {
    /// The node was asked.
    Waits,
    Writes {
        generation: GenerationId,
        model: String,
        stopped: bool,
        /// It is to be taken back once it is over: what is still under way would come after that.
        undo_when_over: bool,
    },
}

/// So many edits, in words.
pub(super) fn edits_of(edits: u64) -> String {
    if edits == 1 { "1 edit".to_owned() } else { format!("{edits} edits") }
}

/// A row of the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) line: usize,
    /// In characters from the beginning of the text.
    pub(super) from: usize,
    pub(super) to: usize,
    /// Whether the line begins with it.
    pub(super) first: bool,
}

/// An editor of a document.
///
/// [`handle`](Self::handle) takes what happened and gives what is to be done; [`render_edit`](super::render_edit) shows it. It
/// reads no clock and does no I/O. Its text is the document's as long as every [`EditCommand::Edit`] is carried out before
/// the next change of others is told.
#[derive(Debug)]
pub struct EditApp {
    pub(super) document: String,
    pub(super) user: String,
    pub(super) access: DocumentAccess,
    pub(super) theme: Theme,
    pub(super) size: (u16, u16),
    pub(super) body: Body,
    /// In characters.
    pub(super) cursor: usize,
    /// Where the selection begins.
    pub(super) anchor: Option<usize>,
    /// The column that the cursor goes to in lines that are long enough.
    pub(super) goal: Option<usize>,
    /// Where the first row of the screen begins.
    pub(super) top: usize,
    /// Whether the first row follows the cursor, or stays where the wheel put it.
    pub(super) follows: bool,
    pub(super) peers: Vec<Peer>,
    pub(super) unsaved: u64,
    /// Why the node is away.
    pub(super) offline: Option<String>,
    /// Why nothing works any more.
    pub(super) over: Option<String>,
    pub(super) prompt: Option<Prompt>,
    /// What was looked for last.
    pub(super) sought: String,
    pub(super) asking: Option<Asking>,
    /// An own line asked a model that has not begun.
    pub(super) call: Option<Call>,
    pub(super) clipboard: String,
    pub(super) numbers: bool,
    pub(super) help: bool,
    pub(super) notice: Option<(String, Ink, Duration)>,
    /// Leaving was asked for although something is not saved: it is done once that is, or when it is asked for again.
    pub(super) leaving: bool,
    pub(super) now: Duration,
    pub(super) rows: Vec<Row>,
    cache: BTreeMap<usize, Vec<usize>>,
    cached: (u64, usize),
    told: Option<(usize, usize, u64)>,
    commands: Vec<EditCommand>,
}

impl EditApp {
    /// An editor with the cursor at the beginning.
    pub fn new(options: EditOptions) -> Self {
        let EditOptions { document, user, text, access, theme, size } = options;
        let mut app = Self {
            document: text::clean_line(&document),
            user: text::clean_line(&user),
            access,
            theme,
            size,
            body: Body::new(&text),
            cursor: 0,
            anchor: None,
            goal: None,
            top: 0,
            follows: true,
            peers: Vec::new(),
            unsaved: 0,
            offline: None,
            over: None,
            prompt: None,
            sought: String::new(),
            asking: None,
            call: None,
            clipboard: String::new(),
            numbers: false,
            help: false,
            notice: None,
            leaving: false,
            now: Duration::ZERO,
            rows: Vec::new(),
            cache: BTreeMap::new(),
            cached: (0, 0),
            told: None,
            commands: Vec::new(),
        };
        app.arrange();
        app
    }

    /// The text as it is shown, to compare.
    pub fn text(&self) -> String {
        self.body.text()
    }

    /// Where the selection begins and the cursor is, in characters from the beginning.
    pub fn selection(&self) -> (usize, usize) {
        (self.anchor.unwrap_or(self.cursor), self.cursor)
    }

    /// When [`EditEvent::Timer`] is wanted, counted like `now`.
    pub fn wake(&self) -> Option<Duration> {
        self.notice.as_ref().map(|(_, _, until)| *until)
    }

    /// Takes what happened at `now`, and gives what is to be done.
    pub fn handle(&mut self, now: Duration, event: EditEvent) -> Vec<EditCommand> {
        self.now = now;
        self.notice.take_if(|(_, _, until)| *until <= now);
        match event {
            EditEvent::Key(key) => self.key(key),
            EditEvent::Mouse(mouse) => self.mouse(mouse),
            EditEvent::Typed(text) => self.typed(&text),
            EditEvent::Paste(text) => self.paste(&text),
            EditEvent::Resize { columns, lines } => self.size = (columns, lines),
            EditEvent::Timer => {}
            EditEvent::Changed { operations, user, generation } => {
                if let Some(generation) = generation {
                    self.model_edits(generation, user.as_deref(), &operations);
                }
                self.change(&operations);
            }
            EditEvent::Reverted(Some(operations)) => self.reverted(&operations),
            EditEvent::Reverted(None) => self.say("nothing to take back here", Ink::Note),
            EditEvent::Reset { text, reason } => {
                let operations = self.body.replacement(0, self.body.length(), &text);
                self.body.apply(&operations);
                self.cursor = self.body.settled(self.cursor);
                (self.anchor, self.call) = (None, None);
                self.say(&reason, Ink::Error);
            }
            EditEvent::Refused { reject, text } => {
                self.clipboard = text;
                let reason =
                    format!("your text is in the clipboard (Ctrl-V), the node did not take it: {}", reject.message);
                self.say(&reason, Ink::Error);
            }
            EditEvent::Others(peers) => {
                self.models_are(&peers);
                self.peers = peers;
            }
            EditEvent::Unsaved(unsaved) => {
                self.unsaved = unsaved;
                if self.leaving && unsaved == 0 {
                    self.command(EditCommand::Quit);
                }
            }
            EditEvent::Offline(reason) => self.offline = Some(text::clean_line(&reason)),
            EditEvent::Online(access) => {
                self.access = access;
                self.offline = None;
                self.say("the node is back; edits of both sides are merged", Ink::Good);
            }
            EditEvent::Version { name, user } => {
                self.say(
                    &format!("{} named this version: {}", text::clean_line(&user), text::clean_line(&name)),
                    Ink::Note,
                );
            }
            EditEvent::Asked { generation, model } => {
                let (model, stopped, undo_when_over) = (text::clean_line(&model), false, false);
                self.asking = Some(Asking::Writes { generation, model, stopped, undo_when_over });
            }
            EditEvent::Answered(result) => self.answered(result),
            EditEvent::Kept(Ok(file)) => self.say(&format!("the text is in {file}"), Ink::Good),
            EditEvent::Kept(Err(reason)) => self.say(&format!("no copy could be written: {reason}"), Ink::Error),
            EditEvent::Ended(reason) => {
                self.over = Some(text::clean_line(&reason));
                self.asking = None;
            }
        }
        self.arrange();
        self.tell_cursor();
        std::mem::take(&mut self.commands)
    }

    fn answered(&mut self, result: Result<String, String>) {
        let undone = match self.asking.take() {
            Some(Asking::Writes { generation, undo_when_over: true, .. }) => Some(generation),
            _ => None,
        };
        match (result, undone) {
            (Ok(_), Some(_)) => self.say("the AI stopped, and what it wrote is taken back", Ink::Good),
            (Ok(text), None) => self.say(&text, Ink::Good),
            (Err(reason), _) => self.say(&format!("the AI: {reason}"), Ink::Error),
        }
        if let Some(generation) = undone.filter(|_| self.may_write()) {
            self.command(EditCommand::TakeBack(generation));
        }
    }

    pub(super) fn command(&mut self, command: EditCommand) {
        self.commands.push(command);
    }

    pub(super) fn say(&mut self, what: &str, ink: Ink) {
        self.notice = Some((text::clean_line(what), ink, self.now + NOTICE_FOR));
    }

    /// Whether the text may be changed here; says so if not.
    pub(super) fn may_write(&mut self) -> bool {
        let reason = match (self.access, &self.over) {
            (_, Some(_)) => "it is over; Ctrl-Q leaves",
            (DocumentAccess::Write, None) => return true,
            (DocumentAccess::Comment, None) => "you may comment in this document, not change its text",
            (DocumentAccess::Read, None) => "you may read this document, not change it",
        };
        self.say(reason, Ink::Warning);
        false
    }

    /// The selection, or the cursor twice.
    pub(super) fn selected(&self) -> (usize, usize) {
        let anchor = self.anchor.unwrap_or(self.cursor);
        (anchor.min(self.cursor), anchor.max(self.cursor))
    }

    /// Puts a text in the place of what lies between, as an own edit.
    pub(super) fn replace(&mut self, from: usize, to: usize, text: &str) {
        if from == to && text.is_empty() {
            return;
        }
        let operations = self.body.replacement(from, to, text);
        self.moved_peers(&operations);
        self.body.apply(&operations);
        self.cursor = self.body.settled(from + text.chars().count());
        (self.anchor, self.goal, self.follows) = (None, None, true);
        // It is the document's at once, and saved a little later.
        self.unsaved = self.unsaved.max(1);
        self.command(EditCommand::Edit(operations));
    }

    fn moved_peers(&mut self, operations: &Operations) {
        self.moved_call(operations);
        let moved = |offset: u32| operations.offset_after(offset, false);
        for peer in &mut self.peers {
            peer.cursor = peer.cursor.map(|(from, to)| (moved(from), moved(to)));
        }
    }

    /// Others changed the text: everything stays where it was in it.
    fn change(&mut self, operations: &Operations) {
        let place = |body: &Body, at: usize, follows: bool| operations.offset_after(body.utf16(at), follows);
        let cursor = place(&self.body, self.cursor, false);
        let anchor = self.anchor.map(|anchor| place(&self.body, anchor, false));
        let top = place(&self.body, self.top, false);
        self.moved_peers(operations);
        self.body.apply(operations);
        self.cursor = self.body.settled(self.body.of_utf16(cursor));
        self.anchor = anchor.map(|anchor| self.body.settled(self.body.of_utf16(anchor)));
        self.top = self.body.of_utf16(top);
    }

    /// An own edit was taken back: the cursor goes there.
    fn reverted(&mut self, operations: &Operations) {
        self.moved_peers(operations);
        let end = self.body.apply(operations);
        self.cursor = self.body.settled(end.unwrap_or(self.cursor));
        (self.anchor, self.goal, self.follows) = (None, None, true);
        self.unsaved = self.unsaved.max(1);
    }

    /// Tells others where the cursor is, if it is elsewhere.
    fn tell_cursor(&mut self) {
        let (anchor, cursor) = self.selection();
        let told = (anchor, cursor, self.body.version());
        if self.told != Some(told) {
            self.told = Some(told);
            let (from, to) = (self.body.utf16(anchor), self.body.utf16(cursor));
            self.commands.push(EditCommand::Cursor(from, to));
        }
    }

    /// Lines of the screen for text.
    pub(super) fn height(&self) -> usize {
        let lines = usize::from(self.size.1);
        lines.saturating_sub(2 + usize::from(self.banner().is_some())).max(1)
    }

    /// Columns beside the text, for numbers of lines.
    pub(super) fn gutter(&self) -> usize {
        if !self.numbers || self.size.0 < 20 {
            return 0;
        }
        self.body.lines().to_string().len() + 1
    }

    /// Columns for text.
    pub(super) fn columns(&self) -> usize {
        // The cursor stands behind the last character.
        usize::from(self.size.0).saturating_sub(self.gutter() + 1).max(2)
    }

    /// What is wrong with the connection.
    pub(super) fn banner(&self) -> Option<String> {
        if let Some(reason) = &self.over {
            return Some(match self.unsaved {
                0 => format!("it is over: {reason} (Ctrl-S keeps a copy)"),
                edits => format!("{} did not reach the node, Ctrl-S keeps a copy: {reason}", edits_of(edits)),
            });
        }
        let reason = self.offline.as_ref()?;
        let edits = match self.unsaved {
            0 => "you can go on editing".to_owned(),
            1 => "1 edit is kept and will be merged".to_owned(),
            edits => format!("{edits} edits are kept and will be merged"),
        };
        Some(format!("offline: {edits} ({reason})"))
    }

    /// Where the rows of a line begin, in characters from the beginning of the line.
    pub(super) fn rows_of(&mut self, line: usize) -> Vec<usize> {
        let columns = self.columns();
        if self.cached != (self.body.version(), columns) || self.cache.len() > CACHE_MAX {
            self.cache.clear();
            self.cached = (self.body.version(), columns);
        }
        self.cache.entry(line).or_insert_with(|| self.body.rows(line, columns)).clone()
    }

    /// The row that a place is in: its line, and which of the line's.
    pub(super) fn row_of(&mut self, at: usize) -> (usize, usize) {
        let line = self.body.line_of(at);
        let within = at - self.body.line_start(line);
        let rows = self.rows_of(line);
        (line, rows.partition_point(|start| *start <= within).saturating_sub(1))
    }

    /// The row so many rows before.
    pub(super) fn rows_before(&mut self, (mut line, mut row): (usize, usize), mut count: usize) -> (usize, usize) {
        while count > row {
            if line == 0 {
                return (0, 0);
            }
            count -= row + 1;
            line -= 1;
            row = self.rows_of(line).len() - 1;
        }
        (line, row - count)
    }

    /// The row so many rows after.
    pub(super) fn rows_after(&mut self, (mut line, mut row): (usize, usize), mut count: usize) -> (usize, usize) {
        loop {
            let last = self.rows_of(line).len() - 1;
            if row + count <= last {
                return (line, row + count);
            }
            if line + 1 >= self.body.lines() {
                return (line, last);
            }
            count -= last - row + 1;
            (line, row) = (line + 1, 0);
        }
    }

    /// Where a row begins.
    pub(super) fn start_of(&mut self, (line, row): (usize, usize)) -> usize {
        let rows = self.rows_of(line);
        self.body.line_start(line) + rows[row.min(rows.len() - 1)]
    }

    /// Where a row ends: before the next, or before the end of the line.
    pub(super) fn end_of(&mut self, (line, row): (usize, usize)) -> usize {
        let rows = self.rows_of(line);
        match rows.get(row + 1) {
            Some(next) => self.body.line_start(line) + next,
            None => self.body.line_end(line),
        }
    }

    /// Sees to it that the cursor is in sight, and finds the rows of the screen.
    fn arrange(&mut self) {
        self.cursor = self.cursor.min(self.body.length());
        let height = self.height();
        let mut top = self.row_of(self.top.min(self.body.length()));
        if self.follows {
            let margin = MARGIN.min((height - 1) / 2);
            let cursor = self.row_of(self.cursor);
            let highest = self.rows_before(cursor, margin);
            let lowest = self.rows_before(cursor, height - 1 - margin);
            let last = self.rows_after(cursor, margin);
            let end = self.rows_before(last, height - 1);
            if top > highest {
                top = highest;
            } else if top < lowest.min(end) {
                top = lowest.min(end);
            }
        }
        self.top = self.start_of(top);
        self.rows.clear();
        let (mut line, mut row) = top;
        while self.rows.len() < height && line < self.body.lines() {
            let rows = self.rows_of(line);
            let start = self.body.line_start(line);
            while row < rows.len() && self.rows.len() < height {
                let from = start + rows[row];
                let to = self.end_of((line, row));
                self.rows.push(Row { line, from, to: to.max(from), first: row == 0 });
                row += 1;
            }
            (line, row) = (line + 1, 0);
        }
    }
}
