//! Completion of /commands, #channels, @people and :emoji:.

use crate::app::App;
use crate::editor::Editor;
use crate::event::{ChannelKind, Role};
use crate::slash::VERBS;
use crate::text::clean_line;
use crate::theme::Theme;

/// Candidates that are offered.
const CANDIDATES_MAX: usize = 50;
/// Lines of candidates that are shown.
pub(crate) const SHOWN_MAX: usize = 6;
/// Letters after `:` from which on emoji are offered.
const EMOJI_FROM: usize = 2;
/// The longest word that is completed, in bytes.
const WORD_BYTES_MAX: usize = 160;

/// One way to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// What is put in.
    pub(crate) text: String,
    /// What is said about it.
    pub(crate) note: String,
}

/// What may be meant by the word before the cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Completion {
    /// Where the word begins, in bytes.
    start: usize,
    /// The word as it was typed.
    typed: String,
    pub(crate) candidates: Vec<Candidate>,
    /// The one that was put in.
    pub(crate) chosen: Option<usize>,
}

impl App {
    /// Offers what may be meant, as one types.
    pub(crate) fn suggest(&mut self) {
        self.completion = self.candidates().filter(|completion| !completion.candidates.is_empty());
    }

    /// Tab: puts in the next candidate, or the one before.
    pub(crate) fn complete(&mut self, forward: bool) {
        if self.completion.is_none() {
            self.suggest();
        }
        let Some(completion) = &mut self.completion else { return };
        let count = completion.candidates.len();
        let next = match (completion.chosen, forward) {
            (None, true) => 0,
            (None, false) => count - 1,
            (Some(at), true) => (at + 1) % count,
            (Some(at), false) => (at + count - 1) % count,
        };
        completion.chosen = Some(next);
        let (start, text) = (completion.start, completion.candidates[next].text.clone());
        if count == 1 {
            self.completion = None;
        }
        if let Some(chat) = self.chats.get_mut(&self.open) {
            chat.editor.complete(start, &text);
        }
    }

    fn candidates(&self) -> Option<Completion> {
        let chat = self.chat()?;
        let before = chat.editor.before();
        let start = before
            .rfind(char::is_whitespace)
            .map_or(0, |at| at + before[at..].chars().next().map_or(1, char::len_utf8));
        let word = &before[start..];
        if word.len() > WORD_BYTES_MAX {
            return None;
        }
        let verb = before.strip_prefix('/').filter(|_| start > 0).and_then(|line| line.split_whitespace().next());
        let rest = word.get(1..).unwrap_or_default();
        let found = match word.chars().next() {
            Some('/') if start == 0 && !word.starts_with("//") => commands(rest),
            Some('#') => self.channels(rest, "#"),
            Some('@') => self.users(rest, "@"),
            Some(':') if rest.chars().count() >= EMOJI_FROM => emoji(rest),
            _ => match verb {
                Some("join") => self.channels(word, "#"),
                Some("dm" | "whois" | "invite" | "kick" | "ban") => self.users(word, "@"),
                Some("role") if before.split_whitespace().count() <= 2 && !before.ends_with(' ') => {
                    self.users(word, "@")
                }
                Some("role") => words(Role::ALL[2..].iter().map(|role| role.as_str()), word),
                Some("theme") => words(Theme::NAMES.iter().copied(), word),
                Some("profile") => words(["name", "about", "status"].into_iter(), word),
                _ => return None,
            },
        };
        Some(Completion { start, typed: word.to_owned(), candidates: found, chosen: None })
    }

    fn channels(&self, prefix: &str, sign: &str) -> Vec<Candidate> {
        let chats = self.chats.values().filter(|chat| chat.kind != ChannelKind::Direct && matches(&chat.name, prefix));
        let candidate =
            |chat: &crate::chat::Chat| Candidate { text: format!("{sign}{} ", chat.name), note: chat.topic.clone() };
        chats.map(candidate).take(CANDIDATES_MAX).collect()
    }

    fn users(&self, prefix: &str, sign: &str) -> Vec<Candidate> {
        let mut names: Vec<(String, String)> = Vec::new();
        if matches("ai", prefix) && !self.welcome.models.is_empty() {
            names.push(("ai".to_owned(), "asks the model".to_owned()));
        }
        let open = self.chat().into_iter().flat_map(|chat| chat.people.keys());
        let others = self.chats.values().flat_map(|chat| chat.people.keys());
        for user in open.chain(others).filter(|user| matches(user, prefix) && **user != self.me) {
            if names.len() >= CANDIDATES_MAX {
                break;
            }
            if !names.iter().any(|(name, _)| name == user) {
                names.push((user.clone(), String::new()));
            }
        }
        names
            .into_iter()
            .map(|(name, note)| Candidate { text: format!("{sign}{} ", clean_line(&name)), note })
            .collect()
    }
}

fn matches(name: &str, prefix: &str) -> bool {
    let mut name = name.chars().flat_map(char::to_lowercase);
    prefix.chars().flat_map(char::to_lowercase).all(|c| name.next() == Some(c))
}

fn commands(prefix: &str) -> Vec<Candidate> {
    let verbs = VERBS.iter().filter(|verb| verb.name.starts_with(prefix));
    let candidate = |verb: &crate::slash::Verb| {
        let note =
            if verb.usage.is_empty() { verb.help.to_owned() } else { format!("{} – {}", verb.usage, verb.help) };
        Candidate { text: format!("/{} ", verb.name), note }
    };
    verbs.map(candidate).collect()
}

fn words<'a>(words: impl Iterator<Item = &'a str>, prefix: &str) -> Vec<Candidate> {
    let candidate = |word: &str| Candidate { text: format!("{word} "), note: String::new() };
    words.filter(|word| word.starts_with(prefix)).map(candidate).collect()
}

fn emoji(prefix: &str) -> Vec<Candidate> {
    let prefix = prefix.trim_end_matches(':').to_lowercase();
    let mut found: Vec<(usize, Candidate)> = Vec::new();
    for emoji in emojis::iter() {
        let code = emoji.shortcodes().find(|code| code.starts_with(&prefix));
        if let Some(code) = code {
            found.push((code.len(), Candidate { text: emoji.as_str().to_owned(), note: format!(":{code}:") }));
        }
    }
    // The shortest is the plainest.
    found.sort_by_key(|(length, _)| *length);
    found.into_iter().map(|(_, candidate)| candidate).take(CANDIDATES_MAX).collect()
}

/// A colon was typed: if it closes the name of an emoji, the emoji takes its place.
pub(crate) fn closed_emoji(editor: &mut Editor) {
    let Some(before) = editor.before().strip_suffix(':') else { return };
    let Some(open) = before.rfind(':') else { return };
    if let Some(emoji) = emojis::get_by_shortcode(&before[open + 1..]) {
        editor.complete(open, emoji.as_str());
    }
}

/// What is meant by the words of a reaction: `:tada:`, `tada` and 🎉 are the same.
pub(crate) fn emoji_of(text: &str) -> String {
    let text = text.trim();
    let code = text.trim_matches(':');
    emojis::get_by_shortcode(code).map_or_else(|| clean_line(text), |emoji| emoji.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emoji_are_found_by_their_names() {
        assert_eq!(emoji("tada").first().map(|c| c.text.as_str()), Some("🎉"));
        assert!(emoji("nonsense").is_empty());
        assert_eq!(emoji_of(":+1:"), "👍");
        assert_eq!(emoji_of("tada"), "🎉");
        assert_eq!(emoji_of("👍"), "👍");
        assert_eq!(emoji_of("ok"), emoji_of(":ok:"));
        let mut editor = Editor::default();
        "at :tada:".chars().for_each(|c| editor.type_char(c));
        closed_emoji(&mut editor);
        assert_eq!(editor.text(), "at 🎉");
        let mut editor = Editor::default();
        "it is 12:30:".chars().for_each(|c| editor.type_char(c));
        closed_emoji(&mut editor);
        assert_eq!(editor.text(), "it is 12:30:");
    }

    #[test]
    fn names_match_whatever_their_case() {
        assert!(matches("General", "gen") && matches("ada", "") && matches("É", "é"));
        assert!(!matches("ada", "adam"));
    }
}
