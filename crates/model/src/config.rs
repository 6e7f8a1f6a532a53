//! The recipe sections `[model]`, `[lora]` and `[full]`: which checkpoint, and what of it is trained.

use qwen_tune_qwen::targets::{LayerFilter, LoraTargets};
use qwen_tune_qwen::{Auto, KeyLayout, TensorSpec};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which checkpoint to start from and how its weights are held.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Directory of a Hugging Face checkpoint (config.json, safetensors, tokenizer.json).
    #[schemars(extend("x-may-change-on-resume" = true))]
    pub base: String,
    /// Hub revision the directory was taken from; recorded in the adapter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-may-change-on-resume" = true))]
    pub revision: Option<String>,
    /// Number format of frozen weights and of activations. `bf16` takes half the memory of `f32`; adapters, moments and losses
    /// are f32 with both. `auto`: f32 on a CPU, bf16 on a GPU.
    #[serde(default)]
    pub dtype: ComputeDtype,
    /// Quantise the frozen weights of linear layers while they are loaded, for adapters to be trained beside them (QLoRA, Dettmers et
    /// al. 2023, arXiv 2305.14314). Embedding, head, norms and routers stay as `dtype` says. Merged exports take the base's own
    /// weights. A GGUF file in blocks is trained in those and takes `none`.
    #[serde(default)]
    pub quantize: Quantize,
    /// Take the SHA-256 of the base's configuration, tokenizer, template and weights, keep it with everything made from
    /// it, and refuse to go on with another base. `false` goes on deliberately.
    #[serde(default = "yes")]
    #[schemars(extend("x-may-change-on-resume" = true))]
    pub lock: bool,
}

fn yes() -> bool {
    true
}

/// Number format of frozen weights, activations and their gradients. What is trained (adapters, or weights in full
/// fine-tuning unless `full.master` says otherwise), its gradients and moments, the weights of norms and the loss are f32 whatever it is, and so are the sums inside
/// every operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ComputeDtype {
    /// f32 on a CPU, bf16 on a GPU that multiplies it.
    #[default]
    Auto,
    /// 32-bit floats everywhere: for comparisons to the last digits, and where a run in bf16 does not stay stable.
    F32,
    /// bf16, where memory is short or the device multiplies it faster: GPUs, CPUs with AVX-512-BF16. Other CPUs widen it to
    /// f32 for products, which takes half the memory but no less time. Eight bits of each number are kept, which training
    /// takes well; the loss of a fine-tune differs in the third digit.
    Bf16,
}

/// Quantisation of frozen weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Quantize {
    /// Weights stay as `dtype` says.
    #[default]
    None,
    /// 4-bit normal floats with scales of 8 bits for every 64 numbers, which decode as those of bitsandbytes: 4.13 bits a weight;
    /// keys and values of attention, few but touchy, in `int8`. Scales are chosen for the input channels that count; some
    /// tokens are taken through the model for that as it is loaded.
    Nf4,
    /// 8-bit integers with a scale for every output: 8 bits a weight, and hardly another loss than without.
    Int8,
    /// ggml's 4-bit integers with a scale for every 32 numbers: 4.5 bits a weight, for a model that ends as `q4_0`.
    #[serde(rename = "q4_0")]
    Q4_0,
}

impl Quantize {
    /// As a recipe names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Nf4 => "nf4",
            Self::Int8 => "int8",
            Self::Q4_0 => "q4_0",
        }
    }

    /// What a linear layer is quantised to.
    #[must_use]
    pub fn of(self, tensor: &TensorSpec) -> Self {
        if self == Self::Nf4 && tensor.is_key_or_value() { Self::Int8 } else { self }
    }

    /// Whether any weight is quantised.
    #[must_use]
    pub fn is_quantised(self) -> bool {
        self != Self::None
    }
}

/// Low-rank adapters: `y = W x + alpha / rank * B A x` with W frozen (Hu et al. 2021, arXiv 2106.09685).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rows of A and columns of B. More rank learns more and costs memory in proportion.
    pub rank: usize,
    /// Numerator of the scale; `2 * rank` is a common choice.
    pub alpha: f64,
    /// Probability that an input channel of A is dropped while training.
    pub dropout: f64,
    /// What gets an adapter: `all-linear`, `attention`, `mlp`, or a list of module names or globs.
    pub target: LoraTargets,
    /// Adapters on the routed experts of a mixture, one for each expert: most of its parameters, and of the adapter's.
    pub experts: bool,
    /// Adapters on routers and on the gates of shared experts.
    pub router: bool,
    /// `default` (A uniform, B zero) or the directory of a PEFT adapter to go on from; its rank, alpha and modules are taken.
    pub init: String,
    /// Scale by `alpha / sqrt(rank)` (arXiv 2312.03732).
    pub rslora: bool,
    /// Weight-decomposed adapters. Not there yet.
    pub dora: bool,
    /// Learning-rate ratio of B to A (arXiv 2402.12354). Not there yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plus_ratio: Option<f64>,
    /// Modules that are trained themselves, beside the adapters, and saved whole with them: names, paths or globs such as
    /// `["embed_tokens", "lm_head"]`, where new tokens have to be learnt. They take the memory of full fine-tuning, and the
    /// adapters' learning rate, of which a tenth is usual for them. Where the head is the embedding (tied), either name means
    /// both, and both are saved.
    pub modules_to_save: Vec<String>,
    /// Which layers: `all`, or a list of indices and ranges such as `["0-3", 7]`.
    pub layers: LayerFilter,
    /// Module paths in the adapter's files: those of the text class (`model.layers`), of the multimodal class
    /// (`model.language_model.layers`), or `auto`: of the class that the base's own configuration names. Both are read.
    #[schemars(extend("x-may-change-on-resume" = true))]
    pub key_layout: Auto<KeyLayout>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            target: LoraTargets::default(),
            experts: false,
            router: false,
            init: "default".to_owned(),
            rslora: false,
            dora: false,
            plus_ratio: None,
            modules_to_save: Vec::new(),
            layers: LayerFilter::default(),
            key_layout: Auto::Auto,
        }
    }
}

impl LoraConfig {
    /// The factor on `B A x`.
    #[must_use]
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }
}

/// Full fine-tuning: base weights themselves are trained.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FullConfig {
    /// Globs over tensor names (`embed_tokens.weight`, `layers.0.*`) that stay frozen.
    pub freeze: Vec<String>,
    /// Globs over tensor names that are trained; empty trains all that `freeze` leaves.
    pub train: Vec<String>,
    /// Number format in which trained matrices are held: `f32`, or `bf16` without any copy in f32.
    pub master: Master,
}

/// Number format in which the trained matrices of full fine-tuning are held from update to update. Gradients of several
/// micro-batches are added in f32 and an update is computed in f32 with either; norms and biases are held in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Master {
    /// Four bytes a number. With `model.dtype = "bf16"` products round these on their way in; no second copy is kept.
    #[default]
    F32,
    /// Two bytes a number, for `model.dtype = "bf16"`. Updates are rounded stochastically: up with the probability of the
    /// part that would be lost, so that small ones count on average. The weights as they are saved are the trained ones
    /// exactly.
    Bf16,
}
