//! Texts to vectors.

use thalweg_protocol::generation::check_embed_texts;
use thalweg_protocol::ids::Name;
use thalweg_protocol::op::{ClientOp, ServerOp};

use crate::client::Client;
use crate::entries::Repeat;
use crate::error::ClientError;

/// What a model makes of texts.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// The model that made them.
    pub model: Name,
    /// Numbers of each vector.
    pub dimensions: usize,
    /// Tokens of all texts together: what is counted against the quota.
    pub tokens: u32,
    values: Vec<f32>,
}

impl Embeddings {
    /// The vectors, one for each text and in their order, each of length 1: the cosine of two texts is the sum of the
    /// products of their vectors.
    pub fn vectors(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.dimensions)
    }
}

impl Client {
    /// Turns texts into vectors, whose distance says how much they are about the same. `model`: the node's first that
    /// makes embeddings if none is given. A text has at most as many tokens as the model takes (256 for all-MiniLM-L6-v2);
    /// a longer one is refused and not cut, and all of the request with it.
    ///
    /// # Errors
    /// [`ClientError::Refused`]: `embeddings_unsupported`, `model_unknown`, `prompt_too_long` (naming the text),
    /// `parameter_invalid` (too many texts, or none), `busy`, `rate_limited`, `quota_exceeded` or `forbidden`.
    pub async fn embed(&self, model: Option<Name>, texts: Vec<String>) -> Result<Embeddings, ClientError> {
        check_embed_texts(&texts).map_err(ClientError::Refused)?;
        let count = texts.len();
        match self.call(ClientOp::Embed { model, texts }, Repeat::Again).await? {
            ServerOp::Embedded { model, dimensions, vectors, tokens } => {
                let dimensions = dimensions as usize;
                if dimensions == 0 || vectors.len() != count * dimensions {
                    let text =
                        format!("{count} texts were answered with {} numbers of {dimensions} each", vectors.len());
                    return Err(ClientError::Protocol(text));
                }
                Ok(Embeddings { model, dimensions, tokens, values: vectors })
            }
            other => Err(ClientError::unexpected("Embedded", &other)),
        }
    }
}
