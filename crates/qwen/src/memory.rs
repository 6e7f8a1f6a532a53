//! What training takes, by formula: parameters, bytes of memory, floating-point operations.
//!
//! Everything is a pure function of the specification, so a plan can be made before anything is allocated. Activations
//! are counted as a backward written by hand would save them: two residuals, rotated q, k, v, the attention's output,
//! gate and up, and the adapters' middles; norms and products of activations are computed again.

use crate::{DecoderSpec, FfnSpec, LayerSpec, MixerSpec, Role, TensorSpec};

/// Bytes of a trained number: its value, gradient and two moments, all f32.
pub const BYTES_PER_TRAINED: u64 = 16;

/// Numbers of the model's own weights.
pub fn parameters(inventory: &[TensorSpec]) -> u64 {
    inventory.iter().map(TensorSpec::elements).sum()
}

/// Numbers of the weights that satisfy `is_trained`.
pub fn trained_parameters(inventory: &[TensorSpec], is_trained: impl Fn(&TensorSpec) -> bool) -> u64 {
    inventory.iter().filter(|tensor| is_trained(tensor)).map(TensorSpec::elements).sum()
}

/// Numbers of the adapters on these modules: `rank * (in + out)` each.
pub fn adapter_parameters(inventory: &[TensorSpec], modules: &[String], rank: usize) -> u64 {
    adapted(inventory, modules).map(|tensor| rank as u64 * width(tensor)).sum()
}

/// Numbers of the weights in matrix products that run for a token: linear layers and head, not the look-up of
/// embeddings.
pub fn product_parameters(spec: &DecoderSpec, inventory: &[TensorSpec]) -> u64 {
    let linears = trained_parameters(inventory, |tensor| matches!(tensor.role, Role::Linear(_)));
    linears + head_parameters(spec)
}

/// Numbers of the head's matrix, its own or the embedding's.
pub fn head_parameters(spec: &DecoderSpec) -> u64 {
    spec.vocab_size as u64 * spec.hidden_size as u64
}

/// How much of the forward pass is kept for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Layers whose activations are kept; the others keep one residual and are run again. All of them is
    /// `recompute = "none"`, zero is `recompute = "all"`.
    pub layers: usize,
}

/// Numbers a layer saves for each token when its activations are kept.
pub fn saved_by_layer(hidden: usize, layer: &LayerSpec, adapter_rank_sum: usize) -> u64 {
    let MixerSpec::Attention(attention) = &layer.mixer;
    let FfnSpec::Dense { inner, .. } = layer.ffn;
    let queries = attention.heads * attention.head_dim;
    let keys = attention.kv_heads * attention.head_dim;
    (2 * hidden + queries + 2 * keys + queries + 2 * inner + adapter_rank_sum) as u64
}

/// What a plan of memory depends on.
#[derive(Debug, Clone, Copy)]
pub struct MemoryInput<'a> {
    /// The model.
    pub spec: &'a DecoderSpec,
    /// Its tensors.
    pub inventory: &'a [TensorSpec],
    /// Bytes of a weight on the device.
    pub weight_bytes: u64,
    /// Bytes of an activation.
    pub activation_bytes: u64,
    /// Modules with adapters, empty in full fine-tuning.
    pub modules: &'a [String],
    /// Rank of the adapters.
    pub rank: usize,
    /// Numbers of the base that are trained, zero with adapters.
    pub trained_base: u64,
    /// Tokens of the largest micro-batch.
    pub tokens: u64,
    /// Layers whose activations are kept.
    pub kept: Kept,
    /// Rows of logits that exist at a time.
    pub head_rows: u64,
}

/// Bytes by purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryPlan {
    /// The base's weights.
    pub weights: u64,
    /// Trained numbers with their gradients and moments; weights of the base that are trained count in `weights` too.
    pub trained: u64,
    /// Residuals and activations kept from the forward pass.
    pub saved: u64,
    /// Activations of one layer that is run again, where any is.
    pub block: u64,
    /// Logits of one chunk, and their gradient.
    pub head: u64,
}

impl MemoryPlan {
    /// Everything that is held at the worst moment: the head's chunk and a layer that is run again never live together.
    pub fn total(&self) -> u64 {
        self.weights + self.trained + self.saved + self.block.max(self.head)
    }
}

/// Bytes that a training step needs.
pub fn plan(input: &MemoryInput<'_>) -> MemoryPlan {
    let MemoryInput { spec, inventory, .. } = *input;
    let ranks = ranks_by_layer(spec, inventory, input.modules, input.rank);
    let per_token: Vec<u64> = spec
        .layers
        .iter()
        .zip(ranks)
        .map(|(layer, ranks)| saved_by_layer(spec.hidden_size, layer, ranks) * input.activation_bytes)
        .collect();
    let kept = input.kept.layers.min(per_token.len());
    // Which layers are kept does not matter where all are alike; where not, the largest are counted.
    let mut sorted = per_token;
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    let residual = spec.hidden_size as u64 * input.activation_bytes;
    let again = (sorted.len() - kept) as u64;
    let saved = sorted[..kept].iter().sum::<u64>() + again * residual;
    let block = if again > 0 { sorted.first().copied().unwrap_or(0) } else { 0 };
    let trained = adapter_parameters(inventory, input.modules, input.rank) + input.trained_base;
    MemoryPlan {
        weights: parameters(inventory) * input.weight_bytes,
        trained: trained * BYTES_PER_TRAINED,
        saved: saved * input.tokens,
        block: block * input.tokens,
        head: input.head_rows * spec.vocab_size as u64 * 4 * 2,
    }
}

/// What the count of operations depends on.
#[derive(Debug, Clone, Copy)]
pub struct FlopInput<'a> {
    /// The model.
    pub spec: &'a DecoderSpec,
    /// Its tensors.
    pub inventory: &'a [TensorSpec],
    /// Numbers of all adapters.
    pub adapters: u64,
    /// Numbers of the base's matrices that are trained.
    pub trained_base: u64,
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
    let adapters = input.adapters as f64;
    let attention: f64 = input.spec.layers.iter().map(|layer| attention_flops(layer, input.context)).sum();
    let layers = input.spec.layers.len().max(1) as f64;
    let again = (layers - input.kept.layers as f64).max(0.0) / layers;
    Flops {
        forward: 2.0 * products + 2.0 * adapters + attention,
        backward: 2.0 * products + 2.0 * input.trained_base as f64 + 4.0 * adapters + 2.0 * attention,
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

/// Sum of the ranks of the adapters in each layer.
fn ranks_by_layer(spec: &DecoderSpec, inventory: &[TensorSpec], modules: &[String], rank: usize) -> Vec<usize> {
    let mut ranks = vec![0; spec.layers.len()];
    for layer in adapted(inventory, modules).filter_map(|tensor| tensor.layer) {
        ranks[layer] += rank;
    }
    ranks
}

fn adapted<'a>(inventory: &'a [TensorSpec], modules: &'a [String]) -> impl Iterator<Item = &'a TensorSpec> {
    let chosen: std::collections::HashSet<&str> = modules.iter().map(String::as_str).collect();
    inventory.iter().filter(move |tensor| tensor.module.as_deref().is_some_and(|module| chosen.contains(module)))
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
        modules: Vec<String>,
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
        Model { spec, inventory, modules }
    }

    fn small() -> Model {
        model("qwen3", 1024, 28, (16, 8), 3072, 151936, true)
    }

    fn flops_of(model: &Model, context: f64, kept: usize) -> Flops {
        flops(&FlopInput {
            spec: &model.spec,
            inventory: &model.inventory,
            adapters: adapter_parameters(&model.inventory, &model.modules, 16),
            trained_base: 0,
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
            assert_rounds_to(adapter_parameters(&model.inventory, &model.modules, 16) as f64 / 1e6, lora, 0.1);
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
        let trained = trained_parameters(&model.inventory, |tensor| matches!(tensor.role, Role::Linear(_)));
        let flops = flops(&FlopInput {
            spec: &model.spec,
            inventory: &model.inventory,
            adapters: 0,
            trained_base: trained + head_parameters(&model.spec),
            context: 0.0,
            kept: Kept { layers: 28 },
        });
        let products = product_parameters(&model.spec, &model.inventory) as f64;
        assert_eq!(flops.model(), 6.0 * products);
    }

    fn plan_of(model: &Model, layers: usize) -> MemoryPlan {
        plan(&MemoryInput {
            spec: &model.spec,
            inventory: &model.inventory,
            weight_bytes: 2,
            activation_bytes: 2,
            modules: &model.modules,
            rank: 16,
            trained_base: 0,
            tokens: 2048,
            kept: Kept { layers },
            head_rows: 512,
        })
    }

    #[test]
    fn activations_are_those_of_a_lean_backward() {
        let model = small();
        let kept = plan_of(&model, 28);
        // 28 KiB a token and layer in bf16.
        assert_rounds_to(kept.saved as f64 / (2048.0 * 28.0 * 1024.0), 28.0, 1.0);
        assert_eq!(kept.block, 0);
        let again = plan_of(&model, 0);
        assert_eq!(again.saved, 2048 * 28 * 1024 * 2);
        assert_eq!(again.block, kept.saved / 28);
        let half = plan_of(&model, 14);
        assert_eq!(half.saved, (kept.saved + again.saved) / 2);
        assert_eq!(kept.weights, parameters(&model.inventory) * 2);
        assert_eq!(kept.trained, adapter_parameters(&model.inventory, &model.modules, 16) * 16);
        assert_eq!(kept.head, 512 * 151936 * 8);
        assert_eq!(again.total(), again.weights + again.trained + again.saved + again.head);
    }
}
