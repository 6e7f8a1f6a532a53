//! What training takes, by formula: parameters, bytes of memory, floating-point operations.
//!
//! Everything is a pure function of the specification, so a plan can be made before anything is allocated. Activations
//! are counted as the kernels' own backwards keep them; `tests/memory.rs` holds the counts against what is allocated.

use std::collections::BTreeSet;

use crate::{DecoderSpec, FfnSpec, HeadSpec, LayerSpec, MixerSpec, Role, TensorSpec};

/// Numbers of the model's own weights.
pub fn parameters(inventory: &[TensorSpec]) -> u64 {
    inventory.iter().map(TensorSpec::elements).sum()
}

/// Numbers of the weights in matrix products that run for a token: linear layers and head, not the look-up of
/// embeddings.
pub fn product_parameters(spec: &DecoderSpec, inventory: &[TensorSpec]) -> u64 {
    let linears = inventory.iter().filter(|tensor| matches!(tensor.role, Role::Linear(_)));
    linears.map(TensorSpec::elements).sum::<u64>() + head_parameters(spec)
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

/// Numbers that a layer keeps for each token when its activations are kept: its input and the residual between its parts
/// with the norms' factors, what the norms and the activation hand to linear layers that learn, queries and keys before
/// their own norms, rotated queries and keys, values, the attention's output and log-sum-exp, gate and up, and the
/// adapters' middles.
pub fn kept_by_layer(hidden: usize, layer: &LayerSpec, tensors: &[&TensorSpec], learned: &Learned) -> u64 {
    let MixerSpec::Attention(attention) = &layer.mixer;
    let FfnSpec::Dense { inner, .. } = layer.ffn;
    let (hidden, inner) = (hidden as u64, inner as u64);
    let [heads, kv_heads, size] = [attention.heads, attention.kv_heads, attention.head_dim].map(|n| n as u64);
    let learns = |leaves: &[&str]| {
        tensors.iter().any(|tensor| {
            let leaf = tensor.module.as_deref().and_then(|module| module.rsplit('.').next());
            leaf.is_some_and(|leaf| leaves.contains(&leaf)) && learned.numbers_of(tensor) > 0
        })
    };
    let when = |wanted: bool, numbers: u64| if wanted { numbers } else { 0 };
    let middles: u64 = tensors.iter().map(|tensor| learned.rank_of(tensor)).sum();
    2 * (hidden + 1)
        + when(learns(&["q_proj", "k_proj", "v_proj"]), hidden)
        + when(attention.qk_norm.is_some(), (heads + kv_heads) * (size + 1))
        + (2 * heads + 2 * kv_heads) * size
        + heads
        + when(learns(&["gate_proj", "up_proj"]), hidden)
        + 2 * inner
        + when(learns(&["down_proj"]), inner)
        + middles
}

/// Numbers of a token that exist beside what is kept while one layer runs: of the forward alone, and in its backward.
fn passing(hidden: usize, layer: &LayerSpec) -> (u64, u64) {
    let MixerSpec::Attention(attention) = &layer.mixer;
    let FfnSpec::Dense { inner, .. } = layer.ffn;
    let (queries, keys) = (attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim);
    let mixer = hidden + 2 * queries + 2 * keys;
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
    let attention: f64 = input.spec.layers.iter().map(|layer| attention_flops(layer, input.context)).sum();
    let layers = input.spec.layers.len().max(1) as f64;
    let again = (layers - input.kept.layers as f64).max(0.0) / layers;
    Flops {
        forward: 2.0 * products + 2.0 * adapters + attention,
        backward: 2.0 * products + 2.0 * trained_base + 4.0 * adapters + 2.0 * attention,
        recompute: again * (2.0 * (products - head) + 2.0 * adapters + attention),
    }
}

/// Scores and weighted sums: four operations a channel for each key seen, half of the sequence on average.
fn attention_flops(layer: &LayerSpec, context: f64) -> f64 {
    let MixerSpec::Attention(attention) = &layer.mixer;
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
    let matrices = input.inventory.iter().filter(|t| matches!(t.role, Role::Linear(_)) || is_head(input.spec, t));
    matrices.filter(|tensor| names.contains(&tensor.name)).map(TensorSpec::elements).sum()
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
            let MixerSpec::Attention(attention) = &mut layer.mixer;
            attention.window = Some(8192);
        }
        assert_eq!(flops_of(&model, 8192.0, 28), free);
        for layer in &mut model.spec.layers {
            let MixerSpec::Attention(attention) = &mut layer.mixer;
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
