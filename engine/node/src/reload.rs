//! Taking in changed settings while the node runs.
//!
//! A reload reads everything first and changes nothing until all of it is sound: a broken file, or a certificate that does not
//! match its key, leaves the node as it was. What can be changed is then handed to the cores by ring; connections that are
//! there stay. What cannot be changed without a restart is reported by name.
//!
//! Runs on the thread of whoever asks (signals, the gate), never on a core's.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use serde_json::Value;
use thalweg_domain::routing::Routes;
use thalweg_protocol::ids::Name;
use thalweg_quic::{QuicError, TlsIdentity};
use thalweg_ring::{Bell, Producer};

use crate::certificate::{Certificate, CertificateError, CertificateFiles, State};
use crate::config::{Limits, ModelSettings, NodeConfig};
use crate::gate::{AccessConfig, GateHandle};
use crate::identity::{DataDir, IdentityError};
use crate::memory::default_budget;
use crate::models::{ModelDesk, News, Registry, Remotes, ServedModels};
use crate::vitals::Vitals;

/// Changes that wait for a core at a time. Each is taken in its next turn, so a core that leaves as many has stalled.
pub(crate) const CONTROL_SLOTS: usize = 16;

/// Changes that one reload may have for a core.
const CHANGES_MAX: usize = 2;

/// Where a node's settings come from, to be read again while it runs.
pub trait SettingsSource: Send + Sync {
    /// Reads all of them, and changes nothing.
    ///
    /// # Errors
    /// What is wrong, one problem a line, with where it stands and what to write instead.
    fn read(&self) -> Result<Fresh, String>;

    /// The settings in effect, each with where it came from; secrets are left out.
    fn running(&self) -> Value;
}

/// The [`SettingsSource`] of a node, if it has one. A node without reads only its certificate again.
#[derive(Clone, Default)]
pub struct Source(pub Option<Arc<dyn SettingsSource>>);

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Source(some)" } else { "Source(none)" })
    }
}

/// Settings that were read again.
pub struct Fresh {
    /// The certificate of an operator's own; without, the node shows the one it made.
    pub certificate: Option<CertificateFiles>,
    /// What sessions, users and tenants may do and have.
    pub limits: Arc<Limits>,
    /// Who may come in.
    pub access: AccessConfig,
    /// Memory the node may use, in bytes; without, as much as by default.
    pub memory_budget_bytes: Option<u64>,
    /// What is said of models one by one.
    pub model_settings: Vec<ModelSettings>,
    /// What a request means that names no model.
    pub model_default: Option<Name>,
    /// Settings that differ from those in effect and can be changed now, by name.
    pub changed: Vec<String>,
    /// Settings that differ and need a restart, by name.
    pub needs_restart: Vec<String>,
    /// Puts into effect what only the program around the node knows, such as the level of the log, and makes these settings
    /// the running ones. Called last, once nothing can fail any more.
    pub commit: Box<dyn FnOnce() + Send>,
}

/// What a reload changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ReloadReport {
    /// Settings that are in effect now and were not before, by name.
    pub changed: Vec<String>,
    /// Settings that differ from those in effect until the node is restarted, by name.
    pub needs_restart: Vec<String>,
    /// The key hash of the certificate, if another is shown now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
}

/// Why nothing was reloaded.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The settings cannot be read.
    #[error("nothing was changed: {0}")]
    Settings(String),
    /// The certificate cannot be used.
    #[error("nothing was changed: {0}")]
    Certificate(#[from] CertificateError),
    /// The data directory cannot be used.
    #[error("nothing was changed: {0}")]
    Identity(#[from] IdentityError),
    /// The transport does not take the certificate.
    #[error("nothing was changed: {0}")]
    Quic(#[from] QuicError),
    /// A model cannot be asked elsewhere as it is to be.
    #[error("nothing was changed: model.{model}: {source}")]
    Model {
        /// Which model.
        model: Name,
        /// Why not.
        source: thalweg_remote::RemoteError,
    },
    /// A core does not take what it is given.
    #[error("core {0} has not taken earlier changes; it is stalled. Try again, or restart the node")]
    Core(usize),
}

/// A change on its way to a core.
#[derive(Debug, Clone)]
pub(crate) enum Control {
    /// Show this certificate from now on.
    Identity(TlsIdentity),
    /// Hold sessions, users and tenants to these from now on.
    Limits(Arc<Limits>),
    /// These models can be asked from now on.
    Routes {
        /// Who is chosen by which.
        routes: Arc<Routes>,
        /// Where each runs, and where to note what became of requests.
        served: ServedModels,
    },
}

/// Reloads the settings of a node that runs. Shared by all who may ask for it.
pub struct Reloader {
    source: Source,
    data: Arc<DataDir>,
    vitals: Arc<Vitals>,
    registry: Arc<Registry>,
    state: Mutex<Inner>,
}

/// What one reload at a time may touch.
struct Inner {
    /// To each core.
    controls: Vec<(Producer<Control>, Arc<Bell>)>,
    /// The files given at the start, for a node without a source.
    given: Option<CertificateFiles>,
    shown: Shown,
    limits: Arc<Limits>,
    /// Who keeps keys and issuers.
    gate: Option<GateHandle>,
    /// Who serves models.
    models: Option<Arc<ModelDesk>>,
}

/// What is known of the certificate that is shown.
struct Shown {
    chain: Vec<rustls::pki_types::CertificateDer<'static>>,
}

impl Reloader {
    pub(crate) fn new(
        config: &NodeConfig,
        data: Arc<DataDir>,
        vitals: Arc<Vitals>,
        certificate: &Certificate,
        registry: Arc<Registry>,
        mut controls: Vec<(Producer<Control>, Arc<Bell>)>,
    ) -> Self {
        for (ring, _) in &mut controls {
            ring.push(Control::Limits(Arc::clone(&config.limits))).expect("a new ring has room");
        }
        vitals.set_certificate_expiry(certificate.validity.until_s);
        let shown = Shown { chain: certificate.chain.clone() };
        let (given, limits) = (config.certificate.clone(), Arc::clone(&config.limits));
        let state = Mutex::new(Inner { controls, given, shown, limits, gate: None, models: None });
        Self { source: config.source.clone(), data, vitals, registry, state }
    }

    /// Has the gate told of keys and issuers.
    pub(crate) fn set_gate(&self, gate: GateHandle) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).gate = Some(gate);
    }

    /// Has models that run elsewhere served by this.
    pub(crate) fn set_models(&self, models: Arc<ModelDesk>) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).models = Some(models);
    }

    /// Tells all cores of other models; false if one of them has not taken earlier changes yet, and none was told.
    pub(crate) fn tell_models(&self, news: &News) -> bool {
        let mut inner = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Room for a reload stays.
        if inner.controls.iter_mut().any(|(ring, _)| ring.free() <= CHANGES_MAX) {
            return false;
        }
        let control = Control::Routes { routes: Arc::clone(&news.routes), served: Arc::clone(&news.served) };
        inner.tell(&control).is_ok()
    }

    /// Reads the settings again, and puts into effect what can be changed now. Gives what was changed.
    ///
    /// # Errors
    /// [`ReloadError`]; then the node goes on as it was.
    pub fn reload(&self) -> Result<ReloadReport, ReloadError> {
        // Whoever panicked here had not begun to change anything that is not whole.
        let mut inner = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = self.reload_once(&mut inner);
        self.vitals.count_reload(result.is_ok());
        match &result {
            Ok(report) => tracing::info!(
                changed = report.changed.join(","),
                needs_restart = report.needs_restart.join(","),
                certificate = report.certificate.as_deref().unwrap_or("unchanged"),
                "settings were reloaded"
            ),
            Err(error) => tracing::error!(%error, "settings were not reloaded"),
        }
        result
    }

    fn reload_once(&self, inner: &mut Inner) -> Result<ReloadReport, ReloadError> {
        let fresh = self.source.0.as_ref().map(|source| source.read().map_err(ReloadError::Settings)).transpose()?;
        let files = fresh.as_ref().map_or(inner.given.as_ref(), |fresh| fresh.certificate.as_ref());
        let certificate = self.new_certificate(inner, files)?;
        let identity = certificate.as_ref().map(Certificate::identity).transpose()?;
        let remotes = fresh.as_ref().map(|fresh| Remotes::read(&fresh.model_settings)).transpose();
        let remotes = remotes.map_err(|(model, source)| ReloadError::Model { model, source })?;
        if let Some(full) = inner.controls.iter_mut().position(|(ring, _)| ring.free() < CHANGES_MAX) {
            return Err(ReloadError::Core(full));
        }
        let mut report = ReloadReport::default();
        if let (Some(certificate), Some(identity)) = (certificate, identity) {
            report.certificate = Some(certificate.key_sha256.clone());
            inner.tell(&Control::Identity(identity))?;
            self.vitals.set_certificate_expiry(certificate.validity.until_s);
            if let Err(error) = self.data.announce_key(&certificate.key_sha256) {
                tracing::warn!(%error, "clients on this machine do not learn the node's new key");
            }
            inner.shown = Shown { chain: certificate.chain };
        }
        if let Some(gate) = &inner.gate {
            gate.reload(fresh.as_ref().map(|fresh| fresh.access.clone()));
        }
        let Some(fresh) = fresh else { return Ok(report) };
        (report.changed, report.needs_restart) = (fresh.changed, fresh.needs_restart);
        if fresh.limits != inner.limits {
            inner.tell(&Control::Limits(Arc::clone(&fresh.limits)))?;
            inner.limits = fresh.limits;
        }
        if let (Some(models), Some(remotes)) = (&inner.models, remotes)
            && let Err(error) = models.configure(remotes)
        {
            tracing::error!(%error, "models that run elsewhere stay as they were");
        }
        self.registry.describe(&fresh.model_settings, fresh.model_default);
        self.vitals.set_budget(fresh.memory_budget_bytes.unwrap_or_else(default_budget));
        (fresh.commit)();
        Ok(report)
    }

    /// The certificate of these files, if it is another than the one that is shown.
    fn new_certificate(
        &self,
        inner: &Inner,
        files: Option<&CertificateFiles>,
    ) -> Result<Option<Certificate>, ReloadError> {
        let Some(files) = files else {
            let made = Certificate::made(&self.data)?;
            // It is made anew each time, but only its key counts.
            let shown = inner.shown.chain.first().is_some_and(|first| spki(first) == spki(&made.chain[0]));
            return Ok((!shown).then_some(made));
        };
        let certificate = Certificate::read(files)?;
        if certificate.chain == inner.shown.chain {
            return Ok(None);
        }
        match certificate.validity.now() {
            State::Valid(_) => Ok(Some(certificate)),
            state => {
                let state = state.to_string();
                Err(CertificateError::NotValidNow { path: files.certificate.clone(), state }.into())
            }
        }
    }

    /// The settings in effect, with where each came from, if the node knows.
    pub fn running(&self) -> Option<Value> {
        self.source.0.as_ref().map(|source| source.running())
    }
}

impl Inner {
    /// Tells all cores. None of them is full: it was looked at, and nobody else puts anything there.
    fn tell(&mut self, control: &Control) -> Result<(), ReloadError> {
        for (core, (ring, bell)) in self.controls.iter_mut().enumerate() {
            ring.push(control.clone()).map_err(|_| ReloadError::Core(core))?;
            bell.ring();
        }
        Ok(())
    }
}

fn spki(certificate: &rustls::pki_types::CertificateDer<'_>) -> Option<Vec<u8>> {
    let parsed = rustls::server::ParsedCertificate::try_from(certificate).ok()?;
    Some(parsed.subject_public_key_info().to_vec())
}
