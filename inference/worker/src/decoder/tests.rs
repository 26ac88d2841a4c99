//! A small model of random weights, in all formats at once: the same bits whoever computes them, and beside what.

use std::path::PathBuf;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use thalweg_scheduler::{BlockCopy, Part, Row, SequenceId, Step};

use super::*;
use crate::kernel::Isa;

const WIDTH: usize = 256;
const HIDDEN: usize = 512;
pub(crate) const VOCABULARY: usize = 300;
const HEAD: usize = 32;
const HEADS: usize = 8;
const KV_HEADS: usize = 2;

/// Numbers in -1..1, the same every time.
fn noise(count: usize, seed: &str) -> Vec<f32> {
    let mut state = seed.bytes().fold(7_u32, |state, byte| state.wrapping_mul(31).wrapping_add(u32::from(byte)));
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Writes the model; `rich`: with biases and norms of heads. Removed by who calls.
fn write(name: &str, rich: bool) -> PathBuf {
    write_as(name, rich, None)
}

/// The same with all matrices in one format.
pub(crate) fn write_as(name: &str, rich: bool, format: Option<GgmlDType>) -> PathBuf {
    let metadata = [
        ("general.architecture", Value::String("small".into())),
        ("small.embedding_length", Value::U32(WIDTH as u32)),
        ("small.block_count", Value::U32(2)),
        ("small.attention.head_count", Value::U32(HEADS as u32)),
        ("small.attention.head_count_kv", Value::U32(KV_HEADS as u32)),
        ("small.feed_forward_length", Value::U32(HIDDEN as u32)),
        ("small.context_length", Value::U32(512)),
        ("small.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("tokenizer.ggml.tokens", Value::Array((0..VOCABULARY).map(|n| Value::String(n.to_string())).collect())),
    ];
    let mut tensors: Vec<(String, QTensor)> = Vec::new();
    let mut put = |name: String, shape: &[usize], kind: GgmlDType| {
        let scale = if shape.len() == 2 { 2.0 / (shape[1] as f32).sqrt() } else { 0.5 };
        let shift = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
        let values: Vec<f32> = noise(shape.iter().product(), &name).iter().map(|v| v * scale + shift).collect();
        let values = Tensor::from_vec(values, shape, &Device::Cpu).expect("a tensor");
        let kind = format.filter(|_| shape.len() == 2).unwrap_or(kind);
        tensors.push((name, QTensor::quantize(&values, kind).expect("candle quantises")));
    };
    use GgmlDType::{BF16, F16, F32, Q4_0, Q4_1, Q4K, Q5_0, Q6K, Q8_0};
    put("token_embd.weight".into(), &[VOCABULARY, WIDTH], Q6K);
    put("output_norm.weight".into(), &[WIDTH], F32);
    for (layer, kinds) in
        [[Q4K, Q6K, Q4_0, Q4_1, Q8_0, Q4K, Q6K], [F16, BF16, F32, Q5_0, Q4K, Q4_0, Q8_0]].iter().enumerate()
    {
        let (kv, all) = (KV_HEADS * HEAD, HEADS * HEAD);
        let shapes = [
            ("attn_q", all, WIDTH),
            ("attn_k", kv, WIDTH),
            ("attn_v", kv, WIDTH),
            ("attn_output", WIDTH, all),
            ("ffn_gate", HIDDEN, WIDTH),
            ("ffn_up", HIDDEN, WIDTH),
            ("ffn_down", WIDTH, HIDDEN),
        ];
        for ((part, outputs, inputs), kind) in shapes.into_iter().zip(kinds) {
            put(format!("blk.{layer}.{part}.weight"), &[outputs, inputs], *kind);
            if rich && ["attn_q", "attn_k", "attn_v"].contains(&part) {
                put(format!("blk.{layer}.{part}.bias"), &[outputs], F32);
            }
        }
        for part in ["attn_norm", "ffn_norm"] {
            put(format!("blk.{layer}.{part}.weight"), &[WIDTH], F32);
        }
        if rich {
            put(format!("blk.{layer}.attn_q_norm.weight"), &[HEAD], F32);
            put(format!("blk.{layer}.attn_k_norm.weight"), &[HEAD], F32);
        }
    }
    let path = std::env::temp_dir().join(format!("thalweg-decoder-{name}-{}.gguf", std::process::id()));
    let mut file = std::fs::File::create(&path).expect("a file");
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut file, &metadata, &tensors).expect("written");
    path
}

fn load(isa: Isa, name: &str, rich: bool) -> Option<Arc<Decoder>> {
    let kernels = Kernels::new(isa).ok()?;
    let path = write(&format!("{name}-{isa}"), rich);
    let rope = if rich { Rope::Halves } else { Rope::Pairs };
    let model = Gguf::open(&path).and_then(|file| Decoder::load(&file, kernels, "small", Style { rope }));
    std::fs::remove_file(&path).expect("removed");
    Some(Arc::new(model.expect("loads")))
}

/// Adds a part with so many of `tokens` from `start` on, all of which want logits.
pub(crate) fn add(step: &mut Step, tokens: &[u32], start: usize, count: usize, table: &[u32]) {
    let (part, first) = (step.parts.len() as u32, step.rows.len());
    let row = |at: usize| Row { part, position: at as u32, token: tokens[at], wants_logits: true };
    step.rows.extend((start..start + count).map(row));
    let (at, blocks) = (step.tables.len(), table.len());
    step.tables.extend_from_slice(table);
    step.parts.push(Part { id: SequenceId(1), first, count, table: at, blocks, wants_logits: true, index: 0 });
}

fn bits(logits: &[f32]) -> Vec<u32> {
    assert!(logits.iter().all(|logit| logit.is_finite()), "numbers");
    logits.iter().map(|logit| logit.to_bits()).collect()
}

#[test]
fn logits_depend_on_neither_team_nor_chunks_nor_company_nor_instruction_set() {
    let tokens: Vec<u32> = (0..150).map(|n| n * 31 % VOCABULARY as u32).collect();
    let table = [5, 1, 4];
    for rich in [false, true] {
        let mut expected: Option<Vec<u32>> = None;
        for isa in Isa::ALL {
            let Some(model) = load(isa, "same", rich) else {
                println!("skipped: this processor has no {isa}");
                continue;
            };
            let mut check = |threads: usize, chunk: usize, beside: bool| {
                let team = Arc::new(Team::new(threads, &[]).expect("threads"));
                let mut runner = Arc::clone(&model).runner(8, 200, team);
                let mut got = Vec::new();
                for start in (0..tokens.len()).step_by(chunk) {
                    let mut step = Step::default();
                    let mine = chunk.min(tokens.len() - start);
                    let skip = if beside { 1 } else { 0 };
                    if beside {
                        add(&mut step, &[9; 64], start % 40, 1, &[0]);
                    }
                    add(&mut step, &tokens, start, mine, &table);
                    if beside {
                        add(&mut step, &[7; 64], start % 30, 3, &[7]);
                    }
                    runner.step(&step);
                    got.extend(bits(&runner.logits()[skip * VOCABULARY..(skip + mine) * VOCABULARY]));
                }
                let expected = expected.get_or_insert_with(|| got.clone());
                assert!(
                    *expected == got,
                    "{isa}, {threads} threads, chunks of {chunk}, beside: {beside}, rich: {rich}"
                );
            };
            check(1, 150, false);
            check(3, 150, false);
            check(2, 64, true);
            if isa != Isa::Scalar {
                check(1, 1, false);
                check(2, 1, true);
                check(1, 37, true);
            }
        }
    }
}

/// A prefix that was computed by another sequence, in blocks that are shared and one that is copied.
#[test]
fn a_copied_prefix_is_as_good_as_a_computed_one() {
    let kernels = Kernels::choose().expect("kernels");
    let model = load(kernels.isa(), "copy", false).expect("available");
    let tokens: Vec<u32> = (0..120).map(|n| n * 17 % VOCABULARY as u32).collect();
    let mut runner = Arc::clone(&model).runner(6, 200, Arc::new(Team::alone()));
    let mut step = Step::default();
    add(&mut step, &tokens, 0, 120, &[0, 1]);
    runner.step(&step);
    let all = bits(runner.logits());
    for copied in [1, 20, 50] {
        let mut step = Step { copies: vec![BlockCopy { from: 1, to: 3, tokens: copied }], ..Step::default() };
        let start = 64 + copied as usize;
        add(&mut step, &tokens, start, 120 - start, &[0, 3]);
        runner.step(&step);
        assert!(bits(runner.logits()) == all[start * VOCABULARY..], "{copied} tokens copied");
    }
}

#[test]
fn a_step_that_cannot_be_is_refused_before_anything_is_written() {
    let kernels = Kernels::choose().expect("kernels");
    let model = load(kernels.isa(), "refused", false).expect("available");
    let mut runner = Arc::clone(&model).runner(2, 8, Arc::new(Team::new(2, &[]).expect("threads")));
    let mut check = |tokens: &[u32], start: usize, table: &[u32]| {
        let mut step = Step::default();
        add(&mut step, tokens, start, 1, table);
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runner.step(&step)));
        assert!(run.is_err(), "{tokens:?} from {start} in {table:?}");
    };
    check(&[VOCABULARY as u32], 0, &[0]);
    check(&[1; 65], 64, &[0]);
    check(&[1], 0, &[2]);
}

/// Every format a file may have its weights in, those without kernels included, is near what candle makes of it.
#[test]
fn weights_are_what_candle_says() {
    let path = write("weights", false);
    let file = Gguf::open(&path).expect("opens");
    let mut reader = std::fs::File::open(&path).expect("opens");
    let content = gguf_file::Content::read(&mut reader).expect("reads");
    let kernels = Kernels::new(Isa::Scalar).expect("always there");
    let mut kinds = std::collections::BTreeSet::new();
    for (name, info) in content.tensor_infos.iter().filter(|(_, info)| info.shape.dims().len() == 2) {
        let (outputs, inputs) = (info.shape.dims()[0], info.shape.dims()[1]);
        let ours = packed(&file, kernels, name, outputs, inputs).expect("packs");
        let tensor = content.tensor(&mut reader, name, &Device::Cpu).and_then(|t| t.dequantize(&Device::Cpu));
        let expected = tensor.and_then(|tensor| tensor.to_vec2::<f32>()).expect("candle dequantises");
        let largest = expected.iter().flatten().fold(0.0_f32, |most, value| most.max(value.abs()));
        let mut row = vec![0.0; inputs];
        for (output, expected) in expected.iter().enumerate() {
            ours.dequantise_row(output, &mut row);
            let error = row.iter().zip(expected).fold(0.0_f32, |most, (a, b)| most.max((a - b).abs()));
            let kept = if info.ggml_dtype == GgmlDType::Q5_0 { 0.005 } else { 0.000_5 };
            assert!(error <= kept * largest, "{name}, {:?}: {error} of {largest}", info.ggml_dtype);
        }
        kinds.insert(format!("{:?}", info.ggml_dtype));
    }
    std::fs::remove_file(&path).expect("removed");
    assert_eq!(kinds.len(), 9, "{kinds:?}");
}
