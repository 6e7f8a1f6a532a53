//! Shapes of published models, to plan with where no checkpoint is at hand.
//!
//! As their `config.json` gives them; counts of parameters are held against the published ones by a test. What does not
//! change what a model takes (rotary bases, context lengths) is left out.

use serde_json::{Value, json};

use crate::{DecoderSpec, family};

/// A published model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// As its repository on the hub is called: `Qwen/Qwen3-8B`.
    pub name: &'static str,
    shape: Shape,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    model_type: &'static str,
    vocab: usize,
    hidden: usize,
    layers: usize,
    /// Query and key/value heads of attention.
    heads: [usize; 2],
    head_dim: usize,
    /// Width of the feed-forward part; of each expert where there are some.
    inner: usize,
    tied: bool,
    /// Key and value heads of linear attention.
    delta: Option<[usize; 2]>,
    /// Experts, those that a token goes through, and the width of the shared one, 0 for none.
    experts: Option<[usize; 3]>,
}

const QWEN2: Shape = Shape {
    model_type: "qwen2",
    vocab: 152_064,
    hidden: 0,
    layers: 0,
    heads: [0, 0],
    head_dim: 128,
    inner: 0,
    tied: false,
    delta: None,
    experts: None,
};
const QWEN3: Shape = Shape { model_type: "qwen3", vocab: 151_936, ..QWEN2 };
const QWEN3_MOE: Shape = Shape { model_type: "qwen3_moe", experts: Some([128, 8, 0]), ..QWEN3 };
const QWEN3_5: Shape =
    Shape { model_type: "qwen3_5_text", vocab: 248_320, head_dim: 256, delta: Some([16, 32]), ..QWEN2 };
const QWEN3_5_MOE: Shape = Shape { model_type: "qwen3_5_moe_text", experts: Some([256, 8, 512]), ..QWEN3_5 };

const fn sized(shape: Shape, hidden: usize, layers: usize, heads: [usize; 2], inner: usize) -> Shape {
    Shape { hidden, layers, heads, inner, ..shape }
}

const fn tied(shape: Shape) -> Shape {
    Shape { tied: true, ..shape }
}

const fn model(name: &'static str, shape: Shape) -> Published {
    Published { name, shape }
}

/// Every size of Qwen2.5, 3, 3-Next and 3.5; later series and specialised models of the same sizes share their shapes.
pub const PUBLISHED: &[Published] = &[
    model("Qwen/Qwen2.5-0.5B", Shape { vocab: 151_936, head_dim: 64, ..tied(sized(QWEN2, 896, 24, [14, 2], 4864)) }),
    model("Qwen/Qwen2.5-1.5B", Shape { vocab: 151_936, ..tied(sized(QWEN2, 1536, 28, [12, 2], 8960)) }),
    model("Qwen/Qwen2.5-3B", Shape { vocab: 151_936, ..tied(sized(QWEN2, 2048, 36, [16, 2], 11008)) }),
    model("Qwen/Qwen2.5-7B", sized(QWEN2, 3584, 28, [28, 4], 18944)),
    model("Qwen/Qwen2.5-14B", sized(QWEN2, 5120, 48, [40, 8], 13824)),
    model("Qwen/Qwen2.5-32B", sized(QWEN2, 5120, 64, [40, 8], 27648)),
    model("Qwen/Qwen2.5-72B", sized(QWEN2, 8192, 80, [64, 8], 29568)),
    model("Qwen/Qwen3-0.6B", tied(sized(QWEN3, 1024, 28, [16, 8], 3072))),
    model("Qwen/Qwen3-1.7B", tied(sized(QWEN3, 2048, 28, [16, 8], 6144))),
    model("Qwen/Qwen3-4B", tied(sized(QWEN3, 2560, 36, [32, 8], 9728))),
    model("Qwen/Qwen3-8B", sized(QWEN3, 4096, 36, [32, 8], 12288)),
    model("Qwen/Qwen3-14B", sized(QWEN3, 5120, 40, [40, 8], 17408)),
    model("Qwen/Qwen3-32B", sized(QWEN3, 5120, 64, [64, 8], 25600)),
    model("Qwen/Qwen3-30B-A3B", sized(QWEN3_MOE, 2048, 48, [32, 4], 768)),
    model("Qwen/Qwen3-235B-A22B", sized(QWEN3_MOE, 4096, 94, [64, 4], 1536)),
    model(
        "Qwen/Qwen3-Next-80B-A3B",
        Shape {
            model_type: "qwen3_next",
            vocab: 151_936,
            experts: Some([512, 10, 512]),
            ..sized(QWEN3_5, 2048, 48, [16, 2], 512)
        },
    ),
    model("Qwen/Qwen3.5-0.8B", Shape { delta: Some([16, 16]), ..tied(sized(QWEN3_5, 1024, 24, [8, 2], 3584)) }),
    model("Qwen/Qwen3.5-2B", Shape { delta: Some([16, 16]), ..tied(sized(QWEN3_5, 2048, 24, [8, 2], 6144)) }),
    model("Qwen/Qwen3.5-4B", tied(sized(QWEN3_5, 2560, 32, [16, 4], 9216))),
    model("Qwen/Qwen3.5-9B", sized(QWEN3_5, 4096, 32, [16, 4], 12288)),
    model("Qwen/Qwen3.5-27B", Shape { delta: Some([16, 48]), ..sized(QWEN3_5, 5120, 64, [24, 4], 17408) }),
    model("Qwen/Qwen3.5-35B-A3B", sized(QWEN3_5_MOE, 2048, 40, [16, 2], 512)),
    model(
        "Qwen/Qwen3.5-122B-A10B",
        Shape { delta: Some([16, 64]), experts: Some([256, 8, 1024]), ..sized(QWEN3_5_MOE, 3072, 48, [32, 2], 1024) },
    ),
    model(
        "Qwen/Qwen3.5-397B-A17B",
        Shape { delta: Some([16, 64]), experts: Some([512, 10, 1024]), ..sized(QWEN3_5_MOE, 4096, 60, [32, 2], 1024) },
    ),
];

impl Published {
    /// A model by its name on the hub; `-Base` and `-Instruct` and the like have their size's shape.
    pub fn named(name: &str) -> Option<&'static Self> {
        let begins = |model: &&Published| {
            name.strip_prefix(model.name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        // `Qwen3.5-35B-A3B` begins with no other's name today; the longest stays right if one ever does.
        PUBLISHED.iter().filter(begins).max_by_key(|model| model.name.len())
    }

    /// Its name without the organisation's.
    pub fn short_name(&self) -> &'static str {
        self.name.rsplit('/').next().unwrap_or(self.name)
    }

    /// What it is.
    ///
    /// # Panics
    /// Never: every shape is resolved by a test.
    pub fn spec(&self) -> DecoderSpec {
        family::resolve(&self.config()).expect("invariant: every published shape resolves")
    }

    /// As much of its `config.json` as decides what it takes.
    fn config(&self) -> Value {
        let Shape { model_type, vocab, hidden, layers, heads, head_dim, inner, tied, delta, experts } = self.shape;
        let mut config = json!({
            "model_type": model_type, "vocab_size": vocab, "hidden_size": hidden, "num_hidden_layers": layers,
            "num_attention_heads": heads[0], "num_key_value_heads": heads[1], "head_dim": head_dim,
            "intermediate_size": inner, "rms_norm_eps": 1e-6, "max_position_embeddings": 32768,
            "tie_word_embeddings": tied,
        });
        if let Some([keys, values]) = delta {
            config["full_attention_interval"] = 4.into();
            config["linear_num_key_heads"] = keys.into();
            config["linear_num_value_heads"] = values.into();
            config["linear_key_head_dim"] = 128.into();
            config["linear_value_head_dim"] = 128.into();
        }
        if let Some([count, active, shared]) = experts {
            config["num_experts"] = count.into();
            config["num_experts_per_tok"] = active.into();
            config["moe_intermediate_size"] = inner.into();
            config["norm_topk_prob"] = true.into();
            if shared > 0 {
                config["shared_expert_intermediate_size"] = shared.into();
            }
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{inventory, memory};

    /// Billions of parameters of the language models, as their cards or names round them.
    const COUNTS: &[(&str, f64, f64)] = &[
        ("Qwen/Qwen2.5-0.5B", 0.49, 0.01),
        ("Qwen/Qwen2.5-1.5B", 1.54, 0.01),
        ("Qwen/Qwen2.5-3B", 3.09, 0.01),
        ("Qwen/Qwen2.5-7B", 7.61, 0.02),
        ("Qwen/Qwen2.5-14B", 14.7, 0.1),
        ("Qwen/Qwen2.5-32B", 32.5, 0.3),
        ("Qwen/Qwen2.5-72B", 72.7, 0.1),
        ("Qwen/Qwen3-0.6B", 0.6, 0.01),
        ("Qwen/Qwen3-1.7B", 1.7, 0.03),
        ("Qwen/Qwen3-4B", 4.0, 0.03),
        ("Qwen/Qwen3-8B", 8.2, 0.05),
        ("Qwen/Qwen3-14B", 14.8, 0.05),
        ("Qwen/Qwen3-32B", 32.8, 0.05),
        ("Qwen/Qwen3-30B-A3B", 30.5, 0.05),
        ("Qwen/Qwen3-235B-A22B", 235.0, 0.5),
        ("Qwen/Qwen3-Next-80B-A3B", 80.0, 1.0),
        ("Qwen/Qwen3.5-0.8B", 0.75, 0.01),
        ("Qwen/Qwen3.5-2B", 1.9, 0.1),
        ("Qwen/Qwen3.5-4B", 4.2, 0.02),
        ("Qwen/Qwen3.5-9B", 8.95, 0.02),
        ("Qwen/Qwen3.5-27B", 26.9, 0.1),
        ("Qwen/Qwen3.5-35B-A3B", 35.0, 1.0),
        ("Qwen/Qwen3.5-122B-A10B", 122.0, 3.0),
        ("Qwen/Qwen3.5-397B-A17B", 397.0, 5.0),
    ];

    #[test]
    fn parameters_are_as_many_as_published() {
        assert_eq!(COUNTS.len(), PUBLISHED.len());
        for (model, (name, billions, within)) in PUBLISHED.iter().zip(COUNTS) {
            assert_eq!(model.name, *name);
            let found = memory::parameters(&inventory(&model.spec())) as f64 / 1e9;
            assert!((found - billions).abs() <= *within, "{name}: {found:.3} billion, published {billions}");
        }
    }

    #[test]
    fn a_tuned_model_has_the_shape_of_its_size() {
        for (name, found) in [
            ("Qwen/Qwen3-8B", Some("Qwen/Qwen3-8B")),
            ("Qwen/Qwen2.5-7B-Instruct", Some("Qwen/Qwen2.5-7B")),
            ("Qwen/Qwen3-30B-A3B-Instruct-2507", Some("Qwen/Qwen3-30B-A3B")),
            ("Qwen/Qwen3-80B", None),
            ("someone/else", None),
        ] {
            assert_eq!(Published::named(name).map(|model| model.name), found);
        }
    }
}
