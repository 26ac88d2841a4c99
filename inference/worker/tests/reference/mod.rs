//! The same models in candle's operations, on weights dequantised to f32, for one whole sequence: slow and plain.

#![allow(dead_code, reason = "every test uses a part")]

use std::path::Path;

use candle_core::quantized::gguf_file;
use candle_core::{D, Device, Result, Tensor};
use thalweg_worker::decoder::Dimensions;

/// Logits after every token. `halves`: the first half of a head is rotated with the second, not neighbours with each other.
/// Biases of queries, keys and values and norms of their heads are applied if the file has them.
pub(crate) fn logits(path: &Path, d: &Dimensions, halves: bool, tokens: &[u32]) -> Result<Vec<Vec<f32>>> {
    let cpu = &Device::Cpu;
    let mut file = std::fs::File::open(path)?;
    let content = gguf_file::Content::read(&mut file)?;
    let mut tensor = |name: &str| match content.tensor_infos.contains_key(name) {
        true => content.tensor(&mut file, name, cpu)?.dequantize(cpu).map(Some),
        false => Ok(None),
    };
    let norm = |x: &Tensor, w: &Tensor| {
        let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(d.epsilon))?.sqrt()?;
        x.broadcast_div(&scale)?.broadcast_mul(w)
    };
    let (n, pairs) = (tokens.len(), d.head_width / 2);
    let factors = tensor("rope_freqs.weight")?.map_or(Ok(vec![1.0; pairs]), |factors| factors.to_vec1::<f32>())?;
    let angle = |at: usize| {
        let turn = d.rope_base.powf(-((at % pairs) as f32) / pairs as f32) / factors[at % pairs] / d.rope_stretch;
        (at / pairs) as f32 * turn
    };
    let angles = Tensor::from_vec((0..n * pairs).map(angle).collect::<Vec<f32>>(), (n, 1, pairs), cpu)?;
    let (cos, sin) = (angles.cos()?, angles.sin()?);
    let rotate = |x: &Tensor| {
        let heads = x.dim(1)?;
        let (a, b) = match halves {
            true => (x.narrow(2, 0, pairs)?, x.narrow(2, pairs, pairs)?),
            false => {
                let pair = x.reshape((n, heads, pairs, 2))?;
                (pair.narrow(3, 0, 1)?.squeeze(3)?, pair.narrow(3, 1, 1)?.squeeze(3)?)
            }
        };
        let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let second = (a.broadcast_mul(&sin)? + b.broadcast_mul(&cos)?)?;
        match halves {
            true => Tensor::cat(&[first, second], 2),
            false => Tensor::stack(&[first, second], 3)?.reshape((n, heads, d.head_width)),
        }
    };
    let mask: Vec<f32> = (0..n * n).map(|at| if at % n > at / n { f32::NEG_INFINITY } else { 0.0 }).collect();
    let mask = Tensor::from_vec(mask, (n, n), cpu)?;
    let embedding = tensor("token_embd.weight")?.expect("an embedding");
    let mut x = embedding.index_select(&Tensor::new(tokens, cpu)?, 0)?;
    for layer in 0..d.layers {
        let mut part = |name: &str| tensor(&format!("blk.{layer}.{name}"));
        let h = norm(&x, &part("attn_norm.weight")?.expect("a norm"))?;
        let mut heads_of = |name: &str, heads: usize| -> Result<Tensor> {
            let mut product = h.matmul(&part(&format!("{name}.weight"))?.expect("a weight").t()?)?;
            if let Some(bias) = part(&format!("{name}.bias"))? {
                product = product.broadcast_add(&bias)?;
            }
            let product = product.reshape((n, heads, d.head_width))?;
            match part(&format!("{name}_norm.weight"))? {
                Some(weight) => norm(&product, &weight),
                None => Ok(product),
            }
        };
        let q = rotate(&heads_of("attn_q", d.heads)?)?;
        let (k, v) = (rotate(&heads_of("attn_k", d.kv_heads)?)?, heads_of("attn_v", d.kv_heads)?);
        let mut heads = Vec::new();
        for head in 0..d.heads {
            let of = |t: &Tensor, at: usize| t.narrow(1, at, 1)?.squeeze(1)?.contiguous();
            let kv = head / (d.heads / d.kv_heads);
            let scores = (of(&q, head)?.matmul(&of(&k, kv)?.t()?)? / (d.head_width as f64).sqrt())?;
            let scores = scores.broadcast_add(&mask)?;
            let e = scores.broadcast_sub(&scores.max_keepdim(1)?)?.exp()?;
            heads.push(e.broadcast_div(&e.sum_keepdim(1)?)?.matmul(&of(&v, kv)?)?);
        }
        let mut weight = |name: &str| Ok::<_, candle_core::Error>(part(&format!("{name}.weight"))?.expect("a weight"));
        x = (x + Tensor::cat(&heads, 1)?.matmul(&weight("attn_output")?.t()?)?)?;
        let h = norm(&x, &weight("ffn_norm")?)?;
        let gate = h.matmul(&weight("ffn_gate")?.t()?)?.silu()?;
        let hidden = (gate * h.matmul(&weight("ffn_up")?.t()?)?)?;
        x = (x + hidden.matmul(&weight("ffn_down")?.t()?)?)?;
    }
    let last = norm(&x, &tensor("output_norm.weight")?.expect("a norm"))?;
    let output = tensor("output.weight")?.unwrap_or(embedding);
    last.matmul(&output.t()?)?.to_vec2()
}

/// How two sets of logits differ.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Difference {
    /// Standard deviation of the differences, as a part of that of the reference.
    pub(crate) error: f64,
    /// Kullback-Leibler divergence of the distributions, nats.
    pub(crate) divergence: f64,
}

/// Compares logits of one position with the reference's.
pub(crate) fn compare(got: &[f32], expected: &[f32]) -> Difference {
    assert_eq!(got.len(), expected.len());
    // What is added to all logits alike changes no probability.
    let centred = |all: &[f32]| {
        let mean = all.iter().map(|&l| f64::from(l)).sum::<f64>() / all.len() as f64;
        all.iter().map(|&l| f64::from(l) - mean).collect::<Vec<f64>>()
    };
    let rms = |all: &mut dyn Iterator<Item = f64>| (all.map(|l| l * l).sum::<f64>() / got.len() as f64).sqrt();
    let (centred_got, centred_expected) = (centred(got), centred(expected));
    let spread = rms(&mut centred_expected.iter().copied());
    let error = rms(&mut centred_got.iter().zip(&centred_expected).map(|(g, e)| g - e));
    let logs = |all: &[f32]| {
        let most = all.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = all.iter().map(|&l| f64::from(l - most).exp()).sum();
        all.iter().map(|&l| f64::from(l - most) - sum.ln()).collect::<Vec<f64>>()
    };
    let divergence = logs(expected).iter().zip(logs(got)).map(|(e, g)| e.exp() * (e - g)).sum();
    Difference { error: error / spread, divergence }
}
