//! How things look.

use ratatui::style::{Color, Modifier, Style};

use crate::ink::Ink;

/// How everything looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Theme {
    /// For a dark terminal.
    Dark,
    /// For a light one.
    Light,
    /// Without colours: bold, dim, underlined and reversed alone.
    Plain,
}

/// Names as they are seen on black.
const AUTHORS_DARK: [u8; 12] = [39, 43, 78, 112, 149, 179, 208, 203, 204, 170, 141, 111];
/// Names as they are seen on white.
const AUTHORS_LIGHT: [u8; 12] = [25, 30, 28, 64, 94, 130, 166, 160, 161, 126, 92, 61];

impl Theme {
    /// What [`named`](Self::named) knows.
    pub const NAMES: [&str; 3] = ["dark", "light", "plain"];

    /// The theme of this name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "dark" => Some(Self::Dark),
            "light" => Some(Self::Light),
            "plain" => Some(Self::Plain),
            _ => None,
        }
    }

    fn colour(self, dark: Color, light: Color) -> Style {
        match self {
            Self::Dark => Style::new().fg(dark),
            Self::Light => Style::new().fg(light),
            Self::Plain => Style::new(),
        }
    }

    /// How a piece of text looks.
    pub(crate) fn style(self, ink: Ink) -> Style {
        let dim = if self == Self::Plain { Style::new().add_modifier(Modifier::DIM) } else { Style::new() };
        let faint = self.colour(Color::Indexed(245), Color::Indexed(243)).patch(dim);
        match ink {
            Ink::Plain => Style::new(),
            Ink::Dim | Ink::Note => faint,
            Ink::Strong => Style::new().add_modifier(Modifier::BOLD),
            Ink::Author(number) => {
                let at = usize::from(number) % AUTHORS_DARK.len();
                let style = self.colour(Color::Indexed(AUTHORS_DARK[at]), Color::Indexed(AUTHORS_LIGHT[at]));
                style.add_modifier(Modifier::BOLD)
            }
            Ink::Model => {
                self.colour(Color::Indexed(80), Color::Indexed(23)).add_modifier(Modifier::BOLD | Modifier::ITALIC)
            }
            Ink::Mention | Ink::Channel => {
                self.colour(Color::Indexed(75), Color::Indexed(26)).add_modifier(Modifier::BOLD)
            }
            Ink::Called => {
                let style = self.colour(Color::Indexed(221), Color::Indexed(88)).add_modifier(Modifier::BOLD);
                if self == Self::Plain { style.add_modifier(Modifier::REVERSED) } else { style }
            }
            Ink::Link => self.colour(Color::Indexed(75), Color::Indexed(26)).add_modifier(Modifier::UNDERLINED),
            Ink::Code => self.colour(Color::Indexed(180), Color::Indexed(94)),
            Ink::Quote => faint.add_modifier(Modifier::ITALIC),
            Ink::Reaction(mine) => {
                let style = self.colour(Color::Indexed(252), Color::Indexed(238));
                if mine { style.add_modifier(Modifier::BOLD | Modifier::UNDERLINED) } else { style }
            }
            Ink::Error => self.colour(Color::Indexed(203), Color::Indexed(124)).add_modifier(Modifier::BOLD),
            Ink::Good => self.colour(Color::Indexed(78), Color::Indexed(28)),
            Ink::Warning => self.colour(Color::Indexed(221), Color::Indexed(130)),
            Ink::Pending => faint.add_modifier(Modifier::ITALIC),
            Ink::Day => faint,
            Ink::New => self.colour(Color::Indexed(203), Color::Indexed(124)).add_modifier(Modifier::BOLD),
        }
    }

    /// The lines that frame the screen.
    pub(crate) fn bar(self) -> Style {
        match self {
            Self::Dark => Style::new().bg(Color::Indexed(236)),
            Self::Light => Style::new().bg(Color::Indexed(253)),
            Self::Plain => Style::new().add_modifier(Modifier::REVERSED),
        }
    }

    /// The message, channel or candidate that is picked.
    pub(crate) fn picked(self) -> Style {
        match self {
            Self::Dark => Style::new().bg(Color::Indexed(238)),
            Self::Light => Style::new().bg(Color::Indexed(252)),
            Self::Plain => Style::new().add_modifier(Modifier::REVERSED),
        }
    }
}
