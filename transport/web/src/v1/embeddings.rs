//! `POST /v1/embeddings`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Request, State};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use thalweg_protocol::generation::check_embed_texts;
use thalweg_protocol::op::{ClientOp, ServerOp};
use thalweg_protocol::reject::{Reject, RejectCode};

use super::asking::model_of;
use super::parameters::{EmbeddingRequest, EncodingFormat};
use super::{Caller, intake, trace_of};
use crate::error::Refusal;
use crate::stage::Stage;

pub(super) async fn create(
    State(stage): State<Arc<Stage>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Json<Value>, Refusal> {
    let (headers, context) = (request.headers().clone(), trace_of(request.headers()));
    let session = caller.session(&stage, &headers).await?;
    let request: EmbeddingRequest = intake::read(&stage, request).await?;
    let model = model_of(request.model.as_deref())?;
    let texts = request.input.into_vec();
    if let Some(empty) = texts.iter().position(String::is_empty) {
        return Err(Refusal::parameter("input", format!("input {empty} is empty")));
    }
    let about_input = |reject: Reject| Refusal { param: Some("input".into()), ..Refusal::from(reject) };
    check_embed_texts(&texts).map_err(about_input)?;
    let format = request.encoding_format.unwrap_or_default();
    match session.request(ClientOp::Embed { model, texts }, context).await? {
        ServerOp::Embedded { model, dimensions, vectors, tokens } => {
            if let Some(wanted) = request.dimensions.filter(|&wanted| wanted != dimensions) {
                let text = format!("dimensions is {wanted}; vectors of {model} have {dimensions} and cannot be cut");
                return Err(Refusal::parameter("dimensions", text));
            }
            Ok(Json(write(model.as_str(), dimensions, &vectors, tokens, format)))
        }
        _ => Err(Reject::new(RejectCode::Internal, "the node answered something else, which is a defect").into()),
    }
}

fn write(model: &str, dimensions: u32, vectors: &[f32], tokens: u32, format: EncodingFormat) -> Value {
    let one = |(index, vector): (usize, &[f32])| {
        let embedding = match format {
            EncodingFormat::Float => json!(vector),
            EncodingFormat::Base64 => {
                let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
                json!(STANDARD.encode(bytes))
            }
        };
        json!({"object": "embedding", "index": index, "embedding": embedding})
    };
    let data: Vec<Value> = vectors.chunks(dimensions.max(1) as usize).enumerate().map(one).collect();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    json!({"object": "list", "model": model, "data": data, "usage": usage})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_written_as_numbers_and_as_base64() {
        let write = |format| write("m", 2, &[1.0, -0.5, 0.25, 2.0], 7, format);
        let floats = write(EncodingFormat::Float);
        assert_eq!(floats["data"][1]["embedding"], json!([0.25, 2.0]));
        assert_eq!((&floats["data"][1]["index"], &floats["usage"]["total_tokens"]), (&json!(1), &json!(7)));
        let base64 = write(EncodingFormat::Base64);
        assert_eq!(base64["data"][0]["embedding"], "AACAPwAAAL8=");
    }
}
