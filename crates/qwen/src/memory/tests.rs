//! Counts of published models and what changes them.
#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::*;
use crate::{MixerSpec, family, inventory};

struct Model {
    spec: DecoderSpec,
    inventory: Vec<TensorSpec>,
    learned: Learned,
}

/// A published size of Qwen3 or Qwen2.5.
fn model(
    kind: &str,
    hidden: usize,
    layers: usize,
    heads: (usize, usize),
    inner: usize,
    vocab: usize,
    tied: bool,
) -> Model {
    let config = json!({
        "model_type": kind, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads.0,
        "num_key_value_heads": heads.1, "head_dim": 128, "intermediate_size": inner, "vocab_size": vocab,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 40960, "tie_word_embeddings": tied,
    });
    let spec = family::resolve(&config).unwrap();
    let inventory = inventory(&spec);
    let learned = Learned::adapters(&inventory, 16);
    Model { spec, inventory, learned }
}

fn small() -> Model {
    model("qwen3", 1024, 28, (16, 8), 3072, 151936, true)
}

fn flops_of(model: &Model, context: f64, kept: usize) -> Flops {
    flops(&FlopInput {
        spec: &model.spec,
        inventory: &model.inventory,
        learned: &model.learned,
        context,
        kept: Kept { layers: kept },
    })
}

#[track_caller]
fn assert_rounds_to(found: f64, expected: f64, step: f64) {
    assert!((found - expected).abs() <= step / 2.0 + 1e-9, "{found} is not {expected}");
}

/// Billions of parameters, of product parameters, millions of LoRA parameters at rank 16, and GFLOP a token at 2048
/// tokens without and with recomputation, as tabulated from these formulas for published models.
#[test]
fn published_models_count_as_tabulated() {
    for (model, params, products, lora, gflop, gflop_again) in [
        (small(), 0.60, 0.60, 10.1, 3.15, 4.29),
        (model("qwen3", 4096, 36, (32, 8), 12288, 151936, false), 8.19, 7.57, 43.6, 32.35, 46.93),
        (model("qwen2", 3584, 28, (28, 4), 18944, 152064, false), 7.62, 7.07, 40.4, 29.76, 43.30),
        (model("qwen3", 5120, 64, (64, 8), 25600, 151936, false), 32.76, 31.98, 134.2, 135.18, 200.01),
    ] {
        assert_rounds_to(parameters(&model.inventory) as f64 / 1e9, params, 0.01);
        assert_rounds_to(product_parameters(&model.spec, &model.inventory) as f64 / 1e9, products, 0.01);
        assert_rounds_to(model.learned.numbers(&model.inventory) as f64 / 1e6, lora, 0.1);
        let layers = model.spec.layers.len();
        assert_rounds_to(flops_of(&model, 2048.0, layers).model() / 1e9, gflop, 0.01);
        assert_rounds_to(flops_of(&model, 2048.0, 0).total() / 1e9, gflop_again, 0.01);
    }
}

#[test]
fn a_window_bounds_the_attention() {
    let mut model = small();
    let free = flops_of(&model, 8192.0, 28);
    assert_rounds_to(free.model() / 1e9, 5.26, 0.01);
    for layer in &mut model.spec.layers {
        let MixerSpec::Attention(attention) = &mut layer.mixer else { unreachable!() };
        attention.window = Some(8192);
    }
    assert_eq!(flops_of(&model, 8192.0, 28), free);
    for layer in &mut model.spec.layers {
        let MixerSpec::Attention(attention) = &mut layer.mixer else { unreachable!() };
        attention.window = Some(1);
    }
    let windowed = flops_of(&model, 8192.0, 28);
    // One key a token, as in sequences of two.
    assert_rounds_to(windowed.model() / 1e6, flops_of(&small(), 2.0, 28).model() / 1e6, 0.1);
}

#[test]
fn training_the_base_costs_its_gradient() {
    let model = small();
    let all = Learned::Base(model.inventory.iter().map(|tensor| tensor.name.clone()).collect());
    let flops = flops(&FlopInput {
        spec: &model.spec,
        inventory: &model.inventory,
        learned: &all,
        context: 0.0,
        kept: Kept { layers: 28 },
    });
    let products = product_parameters(&model.spec, &model.inventory) as f64;
    assert_eq!(flops.model(), 6.0 * products);
}

fn input<'a>(model: &'a Model, learned: &'a Learned, layers: usize) -> MemoryInput<'a> {
    let weights = WeightBytes::of(&model.inventory, learned, |tensor| 2 * tensor.elements());
    MemoryInput {
        spec: &model.spec,
        inventory: &model.inventory,
        learned,
        formats: Formats::default(),
        weights: Box::leak(Box::new(weights)),
        activation_bytes: 2,
        batch: Extent::of([256; 8]),
        accumulates: true,
        kept: Kept { layers },
        ffn_chunk: None,
        head_tokens: 2048,
        head_rows: 512,
        forms: Forms::Cpu,
        eval: Extent::of([4096]),
        update_in_place: false,
        offload: Offload::None,
    }
}

fn plan_with(model: &Model, learned: &Learned, layers: usize, offload: Offload) -> MemoryPlan {
    plan(&MemoryInput { offload, ..input(model, learned, layers) })
}

fn plan_of(model: &Model, learned: &Learned, layers: usize) -> MemoryPlan {
    plan_with(model, learned, layers, Offload::None)
}

/// Bytes of the angles of 2,048 positions of [`small`].
const ANGLES: u64 = 2048 * 64 * 8;

#[test]
fn memory_adds_up() {
    let model = small();
    let lora = &model.learned;
    let kept = plan_of(&model, lora, 28);
    let again = plan_of(&model, lora, 0);
    let row = 1024 * 2;
    assert_eq!(again.kept, ANGLES + 2048 * 28 * row);
    let of_layer = (kept.kept - ANGLES) / 28;
    assert_eq!(again.layer - kept.layer, of_layer - 2048 * row, "a layer run again holds what it else had kept");
    let half = plan_of(&model, lora, 14);
    assert_eq!(half.kept, (kept.kept + again.kept) / 2);
    assert_eq!(kept.weights, parameters(&model.inventory) * 2);
    assert_eq!(kept.trained + kept.gradients, lora.numbers(&model.inventory) * 16);
    // Gate, up and activation beside the residual, which are more than a block's logits.
    assert_eq!(kept.eval, 4096 * (64 * 8 + 2 * row + 3 * 3072 * 2));
    let largest = 2048 * 3072 * 2;
    assert_eq!((again.step, again.holes), (again.gradients + again.kept + again.layer, largest));
    assert_eq!(again.total(), again.weights + again.trained + (again.step + largest).max(again.eval));
}

#[test]
fn gradients_come_while_activations_go() {
    let model = small();
    let all = Learned::Base(model.inventory.iter().map(|tensor| tensor.name.clone()).collect());
    let plan = |learned, accumulates, layers| plan(&MemoryInput { accumulates, ..input(&model, learned, layers) });
    let (first, later) = (plan(&all, false, 28), plan(&all, true, 28));
    assert_eq!((first.kept, first.gradients), (later.kept, later.gradients));
    assert!(first.step < later.step);
    assert_eq!(later.step, later.gradients + (later.kept + later.layer).max(later.kept + later.head));
    // With adapters the first moments of the backward are the worst, whatever is there already.
    let (first, later) = (plan(&model.learned, false, 28), plan(&model.learned, true, 28));
    assert!(first.step < later.step && later.step - first.step <= later.gradients);
}

#[test]
fn chunks_take_of_a_feed_forward_part_what_a_chunk_takes() {
    let model = small();
    let plan = |ffn_chunk, layers, offload| {
        plan(&MemoryInput { ffn_chunk, offload, accumulates: false, ..input(&model, &model.learned, layers) })
    };
    let sizes = [None, Some(1024), Some(512)].map(|chunk| plan(chunk, 0, Offload::Inputs).total());
    assert!(sizes[0] > sizes[1] && sizes[1] >= sizes[2], "{sizes:?}");
    assert_eq!(plan(None, 0, Offload::None).total(), plan(Some(2048), 0, Offload::None).total());
    // Where a layer keeps what it has computed there is nothing to split, but in an evaluation.
    let (whole, chunked) = (plan(None, 28, Offload::None), plan(Some(512), 28, Offload::None));
    assert_eq!((whole.step, whole.kept), (chunked.step, chunked.kept));
    assert!(chunked.eval < whole.eval);
}

#[test]
fn recurrences_keep_their_states_between_chunks_only() {
    let config = json!({
        "model_type": "qwen3_5", "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 64, "intermediate_size": 512, "vocab_size": 1024, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 4096, "full_attention_interval": 4, "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "linear_key_head_dim": 64, "linear_value_head_dim": 32,
    });
    let spec = family::resolve(&config).unwrap();
    let inventory = inventory(&spec);
    let learned = Learned::adapters(&inventory, 16);
    let kept = |batch| {
        plan(&MemoryInput {
            spec: &spec,
            inventory: &inventory,
            learned: &learned,
            formats: Formats::default(),
            weights: &WeightBytes::default(),
            activation_bytes: 4,
            batch,
            accumulates: true,
            kept: Kept { layers: 4 },
            ffn_chunk: None,
            head_tokens: batch.tokens,
            head_rows: 512,
            forms: Forms::Cpu,
            eval: Extent::default(),
            update_in_place: true,
            offload: Offload::None,
        })
        .kept
    };
    let (long, short) = (kept(Extent::of([2048])), kept(Extent::of([64; 32])));
    assert_eq!(long - short, 31 * 3 * (4 * 64 * 32) * 4, "31 borders, three layers, a state of each value head");
}

#[test]
fn what_is_trained_decides_what_is_kept() {
    let model = small();
    let Learned::Adapters { ranks, .. } = &model.learned else { unreachable!() };
    let of = |wanted: &dyn Fn(&str) -> bool| Learned::Adapters {
        ranks: ranks
            .iter()
            .filter(|(module, _)| wanted(module))
            .map(|(module, rank)| (module.clone(), *rank))
            .collect(),
        whole: BTreeSet::new(),
    };
    let all = plan_of(&model, &model.learned, 28).kept;
    let attention = plan_of(&model, &of(&|module| module.contains("self_attn")), 28).kept;
    // Three middles: inputs are formed again, whatever learns.
    assert_eq!(all - attention, 2048 * 28 * 4 * 3 * 16);
    let upper = plan_of(&model, &of(&|module| module.starts_with("layers.27.")), 28).kept;
    assert_eq!(upper - ANGLES, (all - ANGLES) / 28, "nothing is kept below the lowest adapter");
    let base = Learned::Base(model.inventory.iter().map(|tensor| tensor.name.clone()).collect());
    let full = plan_of(&model, &base, 28);
    assert_eq!((full.weights, full.trained), (0, parameters(&model.inventory) * 12));
    let hidden_states = 3 * 1024 * 2 * 2048;
    let chunk = 512 * 4 * (151936 + 8192 + 2 * 1024);
    assert_eq!(full.head, hidden_states + chunk + head_parameters(&model.spec) * 4);
    // A frozen head's logits exist for one block of it.
    let block = 512 * (4096 * (4 + 2) + 1024 * (4 + 2 * 2));
    assert_eq!(plan_of(&model, &model.learned, 28).head, hidden_states + block);
    assert_eq!(plan_of(&model, &Learned::nothing(), 28).kept, ANGLES);
}

#[test]
fn formats_decide_what_trained_numbers_take() {
    let model = small();
    let bytes = |learned: &Learned, coded_moments, narrow_values| {
        learned.held(&model.inventory, Formats { coded_moments, narrow_values })
    };
    let all = Learned::Base(model.inventory.iter().map(|tensor| tensor.name.clone()).collect());
    let (matrices, vectors): (Vec<_>, Vec<_>) = model.inventory.iter().partition(|tensor| tensor.shape.len() > 1);
    let numbers = |tensors: &[&TensorSpec]| tensors.iter().map(|tensor| tensor.elements()).sum::<u64>();
    let (matrices, vectors) = (numbers(&matrices), numbers(&vectors));
    assert_eq!(bytes(&all, false, false), 12 * (matrices + vectors));
    // Every matrix here has a multiple of 256 numbers.
    let codes = 2 * matrices + 2 * 4 * matrices / 256;
    assert_eq!(bytes(&all, true, false), 4 * matrices + codes + 12 * vectors);
    assert_eq!(bytes(&all, true, true), 2 * matrices + codes + 12 * vectors);
    assert_eq!(bytes(&all, false, true), 10 * matrices + 12 * vectors);
    // Adapters stay f32; all of these have codes.
    let adapters = model.learned.numbers(&model.inventory);
    assert_eq!(bytes(&model.learned, true, true), 4 * adapters + 2 * adapters + 2 * 4 * adapters / 256);

    let Learned::Adapters { ranks, .. } = model.learned.clone() else { unreachable!() };
    let beside = Learned::Adapters { ranks, whole: ["embed_tokens.weight".to_owned()].into() };
    let embedding = head_parameters(&model.spec);
    assert_eq!(beside.numbers(&model.inventory), adapters + embedding);
    let (plain, more) = (plan_of(&model, &model.learned, 28), plan_of(&model, &beside, 28));
    assert_eq!(more.gradients - plain.gradients, 4 * embedding);
    assert_eq!(plain.weights - more.weights, 2 * embedding, "it is frozen no longer");
    // Logits in chunks, as a head that learns has them, and its gradient.
    assert_eq!(more.head, 2048 * 3 * 1024 * 2 + 512 * 4 * (151936 + 8192 + 2 * 1024) + 4 * embedding);
}

#[test]
fn what_waits_elsewhere_is_off_the_device_and_nothing_is_lost() {
    let model = model("qwen3", 4096, 36, (32, 8), 12288, 151936, false);
    let of = |layers, offload| plan_with(&model, &model.learned, layers, offload);
    let both = |plan: &MemoryPlan| plan.weights + plan.kept + plan.host;
    let (matrix, input) = (151936 * 4096 * 2, 2048 * 4096 * 2);
    let here = of(0, Offload::None);
    for offload in Offload::ALL {
        let plan = of(0, offload);
        assert_eq!(both(&plan), both(&here));
        assert_eq!(
            (plan.trained, plan.gradients, plan.layer, plan.head),
            (here.trained, here.gradients, here.layer, here.head)
        );
    }
    assert_eq!(here.weights - of(0, Offload::Embedding).weights, matrix);
    assert_eq!(of(0, Offload::Inputs).kept, ANGLES + 2 * input);
    assert_eq!(
        of(35, Offload::Inputs).kept - ANGLES - (of(36, Offload::Inputs).kept - ANGLES) * 35 / 36,
        input,
        "one input, which waits for nobody"
    );
    let layer = (parameters(&model.inventory) * 2 - 2 * matrix - 4096 * 2) / 36;
    assert_eq!(of(0, Offload::Weights).weights, matrix + 4096 * 2 + layer);
    let tied = small();
    assert_eq!(
        plan_with(&tied, &tied.learned, 0, Offload::Embedding).weights,
        plan_of(&tied, &tied.learned, 0).weights
    );
}
