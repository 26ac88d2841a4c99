//! What a node writes to standard error: the level and the form can be changed while it runs.

use std::io::IsTerminal as _;

use tracing_subscriber::layer::{Layered, SubscriberExt as _};
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use crate::config::checked::LogSettings;

type Filtered = Layered<reload::Layer<EnvFilter, Registry>, Registry>;
type Form = Box<dyn Layer<Filtered> + Send + Sync>;

/// Changes level and form of the log. The default changes nothing, for those who have none.
#[derive(Clone, Default)]
pub(crate) struct LogHandle(Option<(Handle<EnvFilter, Registry>, Handle<Form, Filtered>)>);

/// Begins to write.
pub(crate) fn start(settings: &LogSettings) -> LogHandle {
    let (filter, filter_handle) = reload::Layer::new(filter(settings));
    let (form, form_handle) = reload::Layer::new(form(settings));
    tracing_subscriber::registry().with(filter).with(form).init();
    LogHandle(Some((filter_handle, form_handle)))
}

impl LogHandle {
    /// Writes so from now on.
    pub(crate) fn set(&self, settings: &LogSettings) {
        let Some((filters, forms)) = &self.0 else { return };
        let set = filters.reload(filter(settings)).and_then(|()| forms.reload(form(settings)));
        if let Err(error) = set {
            tracing::error!(%error, "the log goes on as it was");
        }
    }
}

/// Levels were checked when they were read.
fn filter(settings: &LogSettings) -> EnvFilter {
    EnvFilter::new(&settings.level)
}

fn form(settings: &LogSettings) -> Form {
    let layer = fmt::layer().with_writer(std::io::stderr);
    if settings.json {
        layer.json().boxed()
    } else {
        layer.with_ansi(std::io::stderr().is_terminal()).with_target(false).boxed()
    }
}
