//! What training takes, by formula: parameters, bytes of memory, floating-point operations.
//!
//! Everything is a pure function of the specification, so a plan can be made before anything is allocated. Activations
//! are counted as the kernels' own backwards keep them; `tests/memory.rs` holds the counts against what is allocated.

use std::collections::BTreeSet;

use crate::{
    AttentionSpec, DecoderSpec, FfnSpec, GatedDeltaSpec, HeadSpec, LayerSpec, MixerSpec, Role, SparseSpec, TensorSpec,
};

/// Numbers of the model's own weights.
pub fn parameters(inventory: &[TensorSpec]) -> u64 {
    inventory.iter().map(TensorSpec::elements).sum()
}

/// Numbers of the weights in matrix products that run for a token: linear layers, the experts it goes through, and head;
/// not the look-up of embeddings.
pub fn product_parameters(spec: &DecoderSpec, inventory: &[TensorSpec]) -> u64 {
    inventory.iter().map(|tensor| product_numbers(spec, tensor)).sum::<u64>() + head_parameters(spec)
}

/// Numbers of a tensor that a token is multiplied with, the head left out.
fn product_numbers(spec: &DecoderSpec, tensor: &TensorSpec) -> u64 {
    match (tensor.role, tensor.layer.map(|layer| &spec.layers[layer].ffn)) {
        (Role::Linear(_) | Role::Router | Role::SharedGate, _) => tensor.elements(),
        (Role::Experts, Some(FfnSpec::Sparse(sparse))) => {
            tensor.elements() / sparse.experts as u64 * sparse.active as u64
        }
        _ => 0,
    }
}

/// Numbers of the model that take part in the forward pass of one token.
pub fn active_parameters(spec: &DecoderSpec, inventory: &[TensorSpec]) -> u64 {
    let idle = |tensor: &TensorSpec| match tensor.role {
        Role::Experts => tensor.elements() - product_numbers(spec, tensor),
        _ => 0,
    };
    inventory.iter().map(|tensor| tensor.elements() - idle(tensor)).sum()
}

/// Numbers of the head's matrix, its own or the embedding's.
pub fn head_parameters(spec: &DecoderSpec) -> u64 {
    spec.vocab_size as u64 * spec.hidden_size as u64
}

/// What is trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Learned {
    /// Adapters.
    Adapters {
        /// Module paths, as the inventory has them.
        modules: BTreeSet<String>,
        /// Rank of every one.
        rank: usize,
    },
    /// Tensors of the base, by inventory name.
    Base(BTreeSet<String>),
}

impl Learned {
    /// Nothing is trained.
    pub fn nothing() -> Self {
        Self::Base(BTreeSet::new())
    }

    /// Trained numbers that belong to a tensor: of its adapter, or its own.
    pub fn numbers_of(&self, tensor: &TensorSpec) -> u64 {
        match self {
            Self::Adapters { modules, rank } => match &tensor.module {
                Some(module) if modules.contains(module) => *rank as u64 * width(tensor),
                _ => 0,
            },
            Self::Base(names) if names.contains(&tensor.name) => tensor.elements(),
            Self::Base(_) => 0,
        }
    }

    /// All trained numbers.
    pub fn numbers(&self, inventory: &[TensorSpec]) -> u64 {
        inventory.iter().map(|tensor| self.numbers_of(tensor)).sum()
    }

    /// Trained numbers that are the base's own.
    fn of_the_base(&self, inventory: &[TensorSpec]) -> u64 {
        match self {
            Self::Adapters { .. } => 0,
            Self::Base(_) => self.numbers(inventory),
        }
    }

    /// Rank of a tensor's adapter, 0 without one.
    fn rank_of(&self, tensor: &TensorSpec) -> u64 {
        match self {
            Self::Adapters { modules, rank } if tensor.module.as_ref().is_some_and(|m| modules.contains(m)) => {
                *rank as u64
            }
            _ => 0,
        }
    }
}

/// How much of the forward pass is kept for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Layers, counted from the top, whose activations are kept; those below keep one residual and are run again. All
    /// of them is `recompute = "none"`, zero is `recompute = "all"`.
    pub layers: usize,
}

/// What of a layer learns, by the last part of its modules' names.
struct Learns<'a> {
    tensors: &'a [&'a TensorSpec],
    learned: &'a Learned,
}

impl Learns<'_> {
    /// `numbers` if any of these modules learns, which then needs its input.
    fn input_of(&self, part: &str, leaves: &[&str], numbers: u64) -> u64 {
        let is_one = |module: &str| {
            module.rsplit_once('.').is_some_and(|(path, leaf)| path.ends_with(part) && leaves.contains(&leaf))
        };
        let any = self
            .tensors
            .iter()
            .any(|tensor| tensor.module.as_deref().is_some_and(is_one) && self.learned.numbers_of(tensor) > 0);
        if any { numbers } else { 0 }
    }
}

/// Numbers that a layer keeps for each token when its activations are kept: its input and the residual between its parts
/// with the norms' factors, what its two parts keep, and the adapters' middles.
pub fn kept_by_layer(hidden: usize, layer: &LayerSpec, tensors: &[&TensorSpec], learned: &Learned) -> u64 {
    let hidden = hidden as u64;
    let learns = Learns { tensors, learned };
    let mixer = match &layer.mixer {
        MixerSpec::Attention(attention) => kept_by_attention(hidden, attention, &learns),
        MixerSpec::GatedDelta(delta) => kept_by_delta(hidden, delta, &learns),
    };
    let ffn = match &layer.ffn {
        FfnSpec::Dense { inner, .. } => kept_by_mlp(hidden, *inner as u64, "mlp", &learns),
        FfnSpec::Sparse(sparse) => kept_by_experts(hidden, sparse, &learns),
    };
    let middles: u64 = tensors.iter().map(|tensor| learned.rank_of(tensor)).sum();
    2 * (hidden + 1) + mixer + ffn + middles
}

/// The normed input, queries and keys before their own norms, rotated queries and keys, values, the gate, the output and
/// its log-sum-exp.
fn kept_by_attention(hidden: u64, spec: &AttentionSpec, learns: &Learns<'_>) -> u64 {
    let [heads, kv_heads, size] = [spec.heads, spec.kv_heads, spec.head_dim].map(|n| n as u64);
    let before_norms = if spec.qk_norm.is_some() { (heads + kv_heads) * (size + 1) } else { 0 };
    // The gate's projection, its logistic, and the gated output that the last projection may need.
    let gate = if spec.output_gate { 3 * heads * size } else { 0 };
    learns.input_of("self_attn", &["q_proj", "k_proj", "v_proj"], hidden)
        + before_norms
        + (2 * heads + 2 * kv_heads) * size
        + heads
        + gate
}

/// The normed input, the convolution's input and output, decays and write strengths, gate and output of the recurrence,
/// a state each 64 tokens, and what the last projection needs.
fn kept_by_delta(hidden: u64, spec: &GatedDeltaSpec, learns: &Learns<'_>) -> u64 {
    let (values, heads) = (spec.values() as u64, spec.value_heads as u64);
    let states = heads * (spec.key_dim * spec.value_dim) as u64 / 64;
    let inputs = ["in_proj_qkvz", "in_proj_ba", "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"];
    learns.input_of("linear_attn", &inputs, hidden)
        + 2 * spec.convolved() as u64
        + 5 * heads
        + 2 * values
        + states
        + learns.input_of("linear_attn", &["out_proj"], values)
}

/// The normed input, gate and up, and their product.
fn kept_by_mlp(hidden: u64, inner: u64, part: &str, learns: &Learns<'_>) -> u64 {
    learns.input_of(part, &["gate_proj", "up_proj"], hidden) + 2 * inner + learns.input_of(part, &["down_proj"], inner)
}

/// Probabilities, and for each expert that a token goes through gate, up and output; the shared expert as any other.
fn kept_by_experts(hidden: u64, spec: &SparseSpec, learns: &Learns<'_>) -> u64 {
    let (active, inner) = (spec.active as u64, spec.inner as u64);
    let shared = spec.shared.map_or(0, |inner| kept_by_mlp(0, inner as u64, "shared_expert", learns) + hidden + 1);
    2 * spec.experts as u64
        + active * (2 * inner + hidden + 2)
        + learns.input_of("experts", &["gate_up_proj"], active * hidden)
        + learns.input_of("experts", &["down_proj"], active * inner)
        + learns.input_of("shared_expert", &["gate_proj", "up_proj"], hidden)
        + shared
}

/// Numbers of a token that exist beside what is kept while one layer runs: of the forward alone, and in its backward.
fn passing(hidden: usize, layer: &LayerSpec) -> (u64, u64) {
    let mixer = match &layer.mixer {
        MixerSpec::Attention(spec) => hidden + spec.query_rows() + (spec.heads + 2 * spec.kv_heads) * spec.head_dim,
        MixerSpec::GatedDelta(spec) => hidden + 2 * spec.convolved() + 2 * spec.values(),
    };
    let inner = match &layer.ffn {
        FfnSpec::Dense { inner, .. } => *inner,
        FfnSpec::Sparse(sparse) => sparse.active * (sparse.inner + hidden / 2) + sparse.shared.unwrap_or(0),
    };
    let forward = 2 * hidden + mixer.max(3 * inner);
    // The gradient of the activation becomes those of gate and up, while its own input has been given back.
    let backward = 3 * hidden + mixer.max(2 * inner);
    (forward as u64, backward as u64)
}

/// What a plan of memory depends on.
#[derive(Debug, Clone, Copy)]
pub struct MemoryInput<'a> {
    /// The model.
    pub spec: &'a DecoderSpec,
    /// Its tensors.
    pub inventory: &'a [TensorSpec],
    /// What is trained.
    pub learned: &'a Learned,
    /// Bytes of a frozen weight on the device.
    pub weight_bytes: u64,
    /// Bytes of an activation.
    pub activation_bytes: u64,
    /// Tokens of the largest micro-batch.
    pub tokens: u64,
    /// Layers whose activations are kept.
    pub kept: Kept,
    /// Rows of logits that exist at a time.
    pub head_rows: u64,
    /// Tokens of the largest batch of an evaluation; 0 without one.
    pub eval_tokens: u64,
}

/// Bytes by purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryPlan {
    /// The base's frozen weights.
    pub weights: u64,
    /// Trained numbers and their two moments, f32.
    pub trained: u64,
    /// Their gradients, f32.
    pub gradients: u64,
    /// Residuals and activations kept from the forward pass.
    pub kept: u64,
    /// What the backward of one layer takes, with its activations where it is run again.
    pub layer: u64,
    /// Logits of one chunk, hidden states before and after the final norm, and the gradient of a trained head.
    pub head: u64,
    /// What an evaluation takes, without tapes.
    pub eval: u64,
    /// The update of the largest trained tensor.
    pub update: u64,
}

impl MemoryPlan {
    /// Everything that is held at the worst moment: the head's chunk and a layer's backward never live together, an
    /// evaluation and an update find no activations.
    pub fn total(&self) -> u64 {
        let step = self.gradients + (self.kept + self.head.max(self.layer)).max(self.update);
        self.weights + self.trained + step.max(self.eval)
    }
}

/// Bytes that training needs.
pub fn plan(input: &MemoryInput<'_>) -> MemoryPlan {
    let MemoryInput { spec, inventory, learned, tokens, .. } = *input;
    let hidden = spec.hidden_size as u64;
    let lowest = lowest_trained(inventory, learned);
    let layers: Vec<(u64, u64, u64)> = spec
        .layers
        .iter()
        .enumerate()
        .map(|(index, layer)| {
            let tensors: Vec<&TensorSpec> = inventory.iter().filter(|tensor| tensor.layer == Some(index)).collect();
            let (forward, backward) = passing(spec.hidden_size, layer);
            (kept_by_layer(spec.hidden_size, layer, &tensors, learned), forward, backward)
        })
        .collect();
    let again = layers.len() - input.kept.layers.min(layers.len());
    // Below everything trained nothing is kept and no gradient flows.
    let (mut kept, mut layer) = (0, 0);
    for (index, (all, _, backward)) in layers.iter().enumerate().skip(lowest.unwrap_or(layers.len())) {
        let (residual, run_again) = if index < again { (hidden, *all) } else { (*all, 0) };
        kept += residual;
        layer = layer.max(backward + run_again);
    }
    let forward = layers.iter().map(|(_, forward, _)| *forward).max().unwrap_or(0);
    let trained = learned.numbers(inventory);
    let largest = inventory.iter().map(|tensor| learned.numbers_of(tensor)).max().unwrap_or(0);
    let head_trained = inventory.iter().any(|tensor| is_head(spec, tensor) && learned.numbers_of(tensor) > 0);
    let head_gradient = if head_trained { head_parameters(spec) } else { 0 };
    let logits = |tokens: u64| tokens.min(input.head_rows) * spec.vocab_size as u64;
    let activations = |numbers: u64| numbers * input.activation_bytes;
    MemoryPlan {
        weights: (parameters(inventory) - learned.of_the_base(inventory)) * input.weight_bytes,
        trained: trained * 3 * 4,
        gradients: trained * 4,
        kept: activations(kept * tokens),
        layer: activations(layer * tokens),
        head: activations(4 * hidden * tokens) + (logits(tokens) + head_gradient) * 4,
        eval: if input.eval_tokens == 0 {
            0
        } else {
            activations(forward * input.eval_tokens)
                .max(activations(3 * hidden * input.eval_tokens) + logits(input.eval_tokens) * 4)
        },
        update: 4 * largest * 4,
    }
}

fn is_head(spec: &DecoderSpec, tensor: &TensorSpec) -> bool {
    match spec.head {
        HeadSpec::Tied => tensor.role == Role::Embedding,
        HeadSpec::Own => tensor.role == Role::Head,
    }
}

/// The lowest layer with anything trained in it or below it; `None` if only what lies above the layers is trained.
fn lowest_trained(inventory: &[TensorSpec], learned: &Learned) -> Option<usize> {
    let trained = inventory.iter().filter(|tensor| learned.numbers_of(tensor) > 0);
    trained.filter_map(|tensor| if tensor.role == Role::Embedding { Some(0) } else { tensor.layer }).min()
}

/// What the count of operations depends on.
#[derive(Debug, Clone, Copy)]
pub struct FlopInput<'a> {
    /// The model.
    pub spec: &'a DecoderSpec,
    /// Its tensors.
    pub inventory: &'a [TensorSpec],
    /// What is trained.
    pub learned: &'a Learned,
    /// Mean length of a sequence as its tokens see it, `E[n²] / E[n]`; of equal lengths, the length.
    pub context: f64,
    /// Layers whose activations are kept.
    pub kept: Kept,
}

/// Operations for one token, a multiplication and an addition counting two.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Flops {
    /// The forward pass.
    pub forward: f64,
    /// Gradients of inputs, adapters and trained weights.
    pub backward: f64,
    /// Layers that are run again.
    pub recompute: f64,
}

impl Flops {
    /// What the mathematics needs: model FLOPs, of which utilisation is a fraction.
    pub fn model(&self) -> f64 {
        self.forward + self.backward
    }

    /// What is executed.
    pub fn total(&self) -> f64 {
        self.model() + self.recompute
    }
}

/// Operations that training takes for each token.
pub fn flops(input: &FlopInput<'_>) -> Flops {
    let products = product_parameters(input.spec, input.inventory) as f64;
    let head = head_parameters(input.spec) as f64;
    let (adapters, trained_base) = match input.learned {
        Learned::Adapters { .. } => (input.learned.numbers(input.inventory) as f64, 0.0),
        Learned::Base(names) => (0.0, trained_products(input, names) as f64),
    };
    let attention: f64 = input.spec.layers.iter().map(|layer| mixing_flops(layer, input.context)).sum();
    let layers = input.spec.layers.len().max(1) as f64;
    let again = (layers - input.kept.layers as f64).max(0.0) / layers;
    Flops {
        forward: 2.0 * products + 2.0 * adapters + attention,
        backward: 2.0 * products + 2.0 * trained_base + 4.0 * adapters + 2.0 * attention,
        recompute: again * (2.0 * (products - head) + 2.0 * adapters + attention),
    }
}

/// Scores and weighted sums: four operations a channel for each key seen, half of the sequence on average. Of the delta
/// rule what its recurrence needs: the state decayed, read twice and written once.
fn mixing_flops(layer: &LayerSpec, context: f64) -> f64 {
    let attention = match &layer.mixer {
        MixerSpec::Attention(attention) => attention,
        MixerSpec::GatedDelta(spec) => {
            let state = (spec.value_heads * spec.key_dim * spec.value_dim) as f64;
            return 7.0 * state + 2.0 * (spec.kernel * spec.convolved()) as f64;
        }
    };
    let seen = match attention.window {
        Some(window) if (window as f64) < context => {
            let window = window as f64;
            window - window * window / (2.0 * context)
        }
        _ => context / 2.0,
    };
    4.0 * (attention.heads * attention.head_dim) as f64 * seen
}

/// Numbers of the matrices among these tensors: each costs a product more in the backward.
fn trained_products(input: &FlopInput<'_>, names: &BTreeSet<String>) -> u64 {
    let numbers = |tensor: &TensorSpec| {
        if is_head(input.spec, tensor) { tensor.elements() } else { product_numbers(input.spec, tensor) }
    };
    input.inventory.iter().filter(|tensor| names.contains(&tensor.name)).map(numbers).sum()
}

/// Rows and columns of a matrix together.
fn width(tensor: &TensorSpec) -> u64 {
    tensor.shape.iter().map(|&extent| extent as u64).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;
    use crate::{LayerFilter, LoraTargets, family, inventory};

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
        let modules = LoraTargets::default().resolve(&inventory, &LayerFilter::All).unwrap();
        let learned = Learned::Adapters { modules: modules.into_iter().collect(), rank: 16 };
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

    fn plan_of(model: &Model, learned: &Learned, layers: usize) -> MemoryPlan {
        plan(&MemoryInput {
            spec: &model.spec,
            inventory: &model.inventory,
            learned,
            weight_bytes: 2,
            activation_bytes: 2,
            tokens: 2048,
            kept: Kept { layers },
            head_rows: 512,
            eval_tokens: 4096,
        })
    }

    #[test]
    fn memory_adds_up() {
        let model = small();
        let lora = &model.learned;
        let kept = plan_of(&model, lora, 28);
        let again = plan_of(&model, lora, 0);
        assert_eq!(again.kept, 2048 * 28 * 1024 * 2);
        assert_eq!(again.layer - kept.layer, kept.kept / 28, "a layer that is run again holds what it else had kept");
        let half = plan_of(&model, lora, 14);
        assert_eq!(half.kept, (kept.kept + again.kept) / 2);
        assert_eq!(kept.weights, parameters(&model.inventory) * 2);
        assert_eq!(kept.trained + kept.gradients, lora.numbers(&model.inventory) * 16);
        // The head's logits are more than a block's activations here.
        assert_eq!(kept.eval, 4096 * 3 * 1024 * 2 + 512 * 151936 * 4);
        assert_eq!(again.total(), again.weights + again.trained + again.gradients + again.kept + again.head);
    }

    #[test]
    fn what_is_trained_decides_what_is_kept() {
        let model = small();
        let Learned::Adapters { modules, .. } = &model.learned else { unreachable!() };
        let of = |wanted: &dyn Fn(&str) -> bool| Learned::Adapters {
            modules: modules.iter().filter(|module| wanted(module)).cloned().collect(),
            rank: 16,
        };
        let all = plan_of(&model, &model.learned, 28).kept;
        let attention = plan_of(&model, &of(&|module| module.contains("self_attn")), 28).kept;
        // Inputs of gate and up, of down, and three middles.
        assert_eq!(all - attention, 2048 * 28 * 2 * (1024 + 3072 + 3 * 16));
        let upper = plan_of(&model, &of(&|module| module.starts_with("layers.27.")), 28).kept;
        assert_eq!(upper, all / 28, "nothing is kept below the lowest adapter");
        let base = Learned::Base(model.inventory.iter().map(|tensor| tensor.name.clone()).collect());
        let full = plan_of(&model, &base, 28);
        assert_eq!((full.weights, full.trained), (0, parameters(&model.inventory) * 12));
        assert_eq!(full.head - plan_of(&model, &model.learned, 28).head, head_parameters(&model.spec) * 4);
        assert_eq!(plan_of(&model, &Learned::nothing(), 28).kept, 0);
    }
}
