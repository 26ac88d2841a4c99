//! Beside our own pass, on the processor: the same files, the same steps, the same logits within a tolerance.

use candle_core::quantized::GgmlDType;
use thalweg_scheduler::{BlockCopy, Step};

use super::*;
use crate::decoder::Decoder;
use crate::decoder::tests::{VOCABULARY, add, write_as};
use crate::kernel::Kernels;
use crate::testing::model_path;

/// The largest difference of two passes' logits that is allowed, as a part of the largest logit.
#[derive(Debug, Clone, Copy)]
struct Tolerance(f32);

/// Weights that both keep as they are, floats throughout; our own pass keeps keys and values as F16.
const SAME_WEIGHTS: Tolerance = Tolerance(2e-3);
/// Everything is F16 on the device.
const HALVES: Tolerance = Tolerance(1e-2);
/// Our own pass quantises what it multiplies by quantised weights, to 8 bits.
const QUANTISED: Tolerance = Tolerance(8e-2);

/// Bounds so small that everything is split.
const NARROW: Bounds = Bounds { gathered: 90, scores: 8 * 300 };

/// The model by our own pass and by tensors.
fn load(name: &str, rich: bool, format: Option<GgmlDType>, dtype: DType, bounds: Bounds) -> [Arc<dyn Model>; 2] {
    let path = write_as(&format!("tensor-{name}"), rich, format);
    let style = Style { rope: if rich { Rope::Halves } else { Rope::Pairs } };
    let file = Gguf::open(&path).expect("opens");
    let own = Decoder::load(&file, Kernels::choose().expect("kernels"), "small", style).expect("loads");
    let tensors = TensorModel::load_as(&file, &Device::Cpu, dtype, "small", style).expect("loads");
    std::fs::remove_file(&path).expect("removed");
    [Arc::new(own), Arc::new(TensorModel { bounds, ..tensors })]
}

fn runners(models: [Arc<dyn Model>; 2], blocks: usize) -> [Box<dyn Runner>; 2] {
    models.map(|model| model.runner(blocks, 200, Arc::new(Team::alone())))
}

/// Runs a step by both and compares all logits.
fn compare(runners: &mut [Box<dyn Runner>; 2], step: &Step, tolerance: Tolerance, what: &str) {
    runners.iter_mut().for_each(|runner| runner.step(step));
    let [own, tensors] = [&runners[0], &runners[1]].map(|runner| runner.logits());
    let wanted = step.rows.iter().filter(|row| row.wants_logits).count();
    assert_eq!((own.len() % wanted.max(1), own.len()), (0, tensors.len()), "{what}");
    let largest = own.iter().fold(0.0_f32, |most, logit| most.max(logit.abs()));
    let mut worst = 0.0_f32;
    for (one, other) in own.iter().zip(tensors) {
        assert!(other.is_finite(), "{what}: a logit is {other}");
        worst = worst.max((one - other).abs());
    }
    assert!(worst <= tolerance.0 * largest, "{what}: {worst} of {largest} is more than {tolerance:?}");
}

#[test]
fn logits_are_those_of_our_own_pass_at_every_position() {
    let tokens: Vec<u32> = (0..150).map(|n| n * 31 % VOCABULARY as u32).collect();
    let check = |name: &str, format, dtype, tolerance| {
        for (rich, bounds) in [(false, BOUNDS), (true, BOUNDS), (true, NARROW), (false, NARROW)] {
            let models = load(name, rich, format, dtype, bounds);
            for chunk in [150, 64, 37, 1] {
                if chunk == 1 && bounds == NARROW {
                    continue;
                }
                let mut runners = runners(models.clone(), 8);
                for start in (0..tokens.len()).step_by(chunk) {
                    let mut step = Step::default();
                    add(&mut step, &tokens, start, chunk.min(tokens.len() - start), &[5, 1, 4]);
                    let what = format!("{name}, rich: {rich}, {bounds:?}, chunks of {chunk}, from {start}");
                    compare(&mut runners, &step, tolerance, &what);
                }
            }
        }
    };
    check("floats", Some(GgmlDType::F16), DType::F32, SAME_WEIGHTS);
    check("halves", Some(GgmlDType::F16), DType::F16, HALVES);
    check("quantised", None, DType::F32, QUANTISED);
}

/// Sequences of very different lengths decode in one step with the chunk of a prompt between them.
#[test]
fn sequences_do_not_see_each_other() {
    let tokens: Vec<u32> = (0..200).map(|n| n * 17 % VOCABULARY as u32).collect();
    let lengths = [130, 3, 64, 1, 127, 40];
    let table = |n: usize| [3 * n as u32, 3 * n as u32 + 1, 3 * n as u32 + 2];
    for bounds in [BOUNDS, NARROW] {
        let mut runners = runners(load("ragged", true, Some(GgmlDType::F16), DType::F32, bounds), 21);
        for (n, length) in lengths.into_iter().enumerate() {
            let mut step = Step::default();
            add(&mut step, &tokens[n..], 0, length, &table(n));
            compare(&mut runners, &step, SAME_WEIGHTS, "alone");
        }
        for later in 0..3 {
            let mut step = Step::default();
            for (n, length) in lengths.into_iter().enumerate() {
                add(&mut step, &tokens[n..], length + later, 1, &table(n));
            }
            add(&mut step, &tokens[6..], later * 30, 30, &table(6));
            // Most rows of a prompt want none.
            for row in step.rows.iter_mut().filter(|row| row.part == 6 && row.position % 7 != 0) {
                row.wants_logits = false;
            }
            compare(&mut runners, &step, SAME_WEIGHTS, &format!("{bounds:?}, {later} later"));
        }
    }
}

#[test]
fn a_copied_prefix_is_as_good_as_a_computed_one() {
    let tokens: Vec<u32> = (0..120).map(|n| n * 17 % VOCABULARY as u32).collect();
    let mut runners = runners(load("copy", false, Some(GgmlDType::F16), DType::F32, BOUNDS), 6);
    let mut step = Step::default();
    add(&mut step, &tokens, 0, 120, &[0, 1]);
    compare(&mut runners, &step, SAME_WEIGHTS, "the first");
    let all = runners[1].logits().to_vec();
    for copied in [1, 20, 50] {
        let mut step = Step { copies: vec![BlockCopy { from: 1, to: 3, tokens: copied }], ..Step::default() };
        let start = 64 + copied as usize;
        add(&mut step, &tokens, start, 120 - start, &[0, 3]);
        compare(&mut runners, &step, SAME_WEIGHTS, &format!("{copied} tokens copied"));
        let again = runners[1].logits().iter().zip(&all[start * VOCABULARY..]);
        assert!(again.fold(0.0_f32, |most, (one, other)| most.max((one - other).abs())) < 1e-3);
    }
}

#[test]
fn a_step_that_cannot_be_is_refused_before_anything_is_written() {
    let mut runners = runners(load("refused", false, None, DType::F32, BOUNDS), 2);
    let mut check = |tokens: &[u32], start: usize, table: &[u32]| {
        let mut step = Step::default();
        add(&mut step, tokens, start, 1, table);
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runners[1].step(&step)));
        assert!(run.is_err(), "{tokens:?} from {start} in {table:?}");
    };
    check(&[VOCABULARY as u32], 0, &[0]);
    check(&[1; 65], 64, &[0]);
    check(&[1], 0, &[2]);
}

/// The real model says the same: the likeliest next token of most positions, and nearly the same logits.
#[test]
fn the_real_model_goes_on_as_by_our_own_pass() {
    let file = Gguf::open(&model_path()).expect("opens");
    let own = crate::model::load_at(&file, &Place::Cpu).expect("loads");
    let tensors = crate::model::load_at(&file, &Place::Device(Device::Cpu)).expect("loads");
    let mut runners = runners([own, tensors], 4);
    let text = "The river ran slowly past the old mill, and nobody in the village remembered who had built it or why.";
    let vocabulary = crate::tokenizer::Vocabulary::load(&file).expect("loads");
    let tokens = vocabulary.encode(text).expect("encodes");
    let mut step = Step::default();
    add(&mut step, &tokens, 0, tokens.len(), &[2]);
    runners.iter_mut().for_each(|runner| runner.step(&step));
    let count = vocabulary.len();
    let likeliest = |runner: &dyn Runner| -> Vec<usize> {
        let most = |row: &[f32]| (0..count).max_by(|&a, &b| row[a].total_cmp(&row[b])).expect("tokens");
        runner.logits().chunks_exact(count).map(most).collect()
    };
    let [own, tensors] = [&runners[0], &runners[1]].map(|runner| likeliest(&**runner));
    let same = own.iter().zip(&tensors).filter(|(one, other)| one == other).count();
    assert!(same * 10 >= own.len() * 9, "{same} of {} tokens are the same", own.len());
}
