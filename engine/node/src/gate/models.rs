//! Models that administrators load and unload: by threads that work for the gate, since files and those who still read an
//! answer take their time.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};
use thalweg_domain::permission::{Action, Principal};
use thalweg_protocol::reject::{Reject, RejectCode};

use super::keeper::{Asked, Keeper, Output};
use super::limits::MODEL_JOBS_MAX;
use super::manage::require_node;
use crate::models::ModelJob;

/// An administrator who waits for a model.
#[derive(Debug)]
pub(super) struct Waits {
    asked: Asked,
    remote: SocketAddr,
    principal: Arc<Principal>,
    deed: (&'static str, String),
}

impl Keeper {
    fn may_models(&self, principal: &Principal) -> Result<(), Reject> {
        principal.require(Action::Admin, "models")?;
        require_node(principal, "change the node's models")
    }

    pub(super) fn do_model_list(&self, principal: &Principal) -> Result<Value, Reject> {
        self.may_models(principal)?;
        let models = self.models.as_ref().ok_or_else(no_models)?;
        Ok(models.list())
    }

    /// Begins to load or unload a model; [`model_done`](Self::model_done) answers.
    pub(super) fn begin_model(
        &mut self,
        (asked, remote): (Asked, SocketAddr),
        principal: &Arc<Principal>,
        deed: (&'static str, String),
        job: ModelJob,
    ) -> Result<(), Reject> {
        self.may_models(principal)?;
        if self.models.is_none() {
            return Err(no_models());
        }
        if self.model_jobs.len() >= MODEL_JOBS_MAX {
            let text = format!("{MODEL_JOBS_MAX} models are being loaded or unloaded; try again later");
            return Err(Reject::new(RejectCode::Busy, text).retry_after_ms(1_000));
        }
        self.model_tickets += 1;
        let waits = Waits { asked, remote, principal: Arc::clone(principal), deed };
        self.model_jobs.insert(self.model_tickets, waits);
        self.outputs.push_back(Output::Model(self.model_tickets, job));
        Ok(())
    }

    /// A model was loaded or unloaded, or not.
    pub(crate) fn model_done(&mut self, ticket: u64, result: Result<Value, Reject>) {
        let Some(Waits { asked, remote, principal, deed }) = self.model_jobs.remove(&ticket) else { return };
        match result {
            Ok(mut answer) => {
                if let Some(fields) = answer.as_object_mut() {
                    fields.insert("ok".into(), json!(true));
                }
                self.answer_managed((asked, remote), &principal, deed, Bytes::from(answer.to_string()));
            }
            Err(reject) => self.refuse_managed((asked, remote), &principal, deed, reject),
        }
    }
}

fn no_models() -> Reject {
    Reject::new(RejectCode::ParameterInvalid, "this node has no models that could be changed")
}
