//! [`AdapterConfig`]: `adapter_config.json`.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{AdapterError, Patterns, pattern::Compiled};
use crate::lock::Lock;

/// The settings of a LoRA adapter, with PEFT's names and defaults. Settings that are not fields here are kept as read.
///
/// A new one is written with the keys PEFT has had since long; those it added later default to what we do, and leaving
/// them out lets older versions read the file too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterConfig {
    /// Directory or hub id of the model the adapter was trained on.
    #[serde(default)]
    pub base_model_name_or_path: Option<String>,
    /// Rank of modules that `rank_pattern` does not mention.
    #[serde(default = "eight")]
    pub r: usize,
    /// Numerator of the scale of modules that `alpha_pattern` does not mention.
    #[serde(default = "eight_f", serialize_with = "integer_if_whole")]
    pub lora_alpha: f64,
    /// Probability with which an input channel was dropped in training.
    #[serde(default)]
    pub lora_dropout: f64,
    /// The modules adapted.
    #[serde(default)]
    pub target_modules: Option<TargetModules>,
    /// Single parameters adapted, such as `mlp.experts.down_proj`: what a module holds that is no linear layer of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_parameters: Option<Vec<String>>,
    /// Ranks by module.
    #[serde(default)]
    pub rank_pattern: Patterns<usize>,
    /// Alphas by module.
    #[serde(default)]
    pub alpha_pattern: Patterns<f64>,
    /// Scale by `alpha / √r` instead of `alpha / r`.
    #[serde(default)]
    pub use_rslora: bool,
    /// Modules trained and stored whole.
    #[serde(default)]
    pub modules_to_save: Option<Vec<String>>,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Which modules PEFT wraps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetModules {
    /// Names: a module is meant when its path equals one or ends in `.` and one.
    List(Vec<String>),
    /// A regular expression over whole paths, or `all-linear`.
    Pattern(String),
}

/// PEFT's default, for files that leave it out.
fn eight() -> usize {
    8
}

fn eight_f() -> f64 {
    8.0
}

/// PEFT declares `lora_alpha` an integer; some readers insist.
fn integer_if_whole<S: serde::Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if value.fract() == 0.0 && value.abs() < 9e15 {
        serializer.serialize_i64(*value as i64)
    } else {
        serializer.serialize_f64(*value)
    }
}

/// The one key of PEFT's that holds anything, that no reader looks at in an adapter with a `task_type`, and that PEFT
/// writes back. A key of our own would make PEFT warn everyone who loads the adapter to upgrade.
const FREE_KEY: &str = "auto_mapping";
/// The base's lock in there.
const LOCK_KEY: &str = "qwen_tune_base_lock";

/// Settings that change what the adapter computes, and why they are refused when they are set.
const REFUSED: &[(&str, &str)] = &[
    ("use_dora", "DoRA is not there yet"),
    ("fan_in_fan_out", "weights are [out, in] in all supported models"),
    ("layer_replication", "it changes the number of layers"),
    ("lora_bias", "biases inside adapters are not there yet"),
    ("trainable_token_indices", "training single token embeddings is not there yet"),
    ("alora_invocation_tokens", "activated LoRA is not there yet"),
    ("use_qalora", "it is not there yet"),
    ("use_bdlora", "it is not there yet"),
    ("arrow_config", "it is not there yet"),
    ("kasa_config", "it is not there yet"),
    ("monteclora_config", "it is not there yet"),
    ("megatron_config", "only models of transformers are supported"),
];

/// Initialisations that also change the frozen weights, so that the adapter does not fit the published base.
const BASE_CHANGING: &[&str] = &["pissa", "olora", "corda", "loftq", "lora_ga"];

impl AdapterConfig {
    /// The configuration of an adapter trained here.
    pub fn new(base: Option<String>, r: usize, lora_alpha: f64, target_modules: Vec<String>) -> Self {
        let other = [
            ("auto_mapping", Value::Null),
            ("bias", json!("none")),
            ("fan_in_fan_out", json!(false)),
            ("inference_mode", json!(true)),
            ("init_lora_weights", json!(true)),
            ("layers_pattern", Value::Null),
            ("layers_to_transform", Value::Null),
            ("peft_type", json!("LORA")),
            ("revision", Value::Null),
            ("task_type", json!("CAUSAL_LM")),
            ("use_dora", json!(false)),
        ];
        Self {
            base_model_name_or_path: base,
            r,
            lora_alpha,
            lora_dropout: 0.0,
            target_modules: Some(TargetModules::List(target_modules)),
            target_parameters: None,
            rank_pattern: Patterns::default(),
            alpha_pattern: Patterns::default(),
            use_rslora: false,
            modules_to_save: None,
            other: other.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        }
    }

    /// What the base model was when the adapter was trained, if the file says so.
    pub fn base_lock(&self) -> Option<Lock> {
        Lock::deserialize(self.other.get(FREE_KEY)?.get(LOCK_KEY)?).ok()
    }

    /// Writes down what the base model is, or takes that away.
    pub fn set_base_lock(&mut self, lock: Option<&Lock>) {
        let mut entries = match self.other.get(FREE_KEY) {
            Some(Value::Object(entries)) => entries.clone(),
            _ => Map::new(),
        };
        entries.shift_remove(LOCK_KEY);
        entries.extend(lock.map(|lock| (LOCK_KEY.to_owned(), json!(lock))));
        let value = if entries.is_empty() { Value::Null } else { Value::Object(entries) };
        self.other.insert(FREE_KEY.to_owned(), value);
    }

    /// Rank and scale by module.
    pub fn scaling(&self) -> Result<Scaling, AdapterError> {
        Ok(Scaling {
            r: self.r,
            alpha: self.lora_alpha,
            ranks: self.rank_pattern.compile("rank_pattern")?,
            alphas: self.alpha_pattern.compile("alpha_pattern")?,
            rslora: self.use_rslora,
        })
    }

    /// The file's text: keys sorted, as PEFT writes them.
    pub fn to_json(&self) -> String {
        let value = serde_json::to_value(self).expect("invariant: a configuration is JSON");
        let mut keys: Vec<(String, Value)> = match value {
            Value::Object(map) => map.into_iter().collect(),
            _ => unreachable!("invariant: a struct is an object"),
        };
        keys.sort_by(|(a, _), (b, _)| a.cmp(b));
        let sorted: Map<String, Value> = keys.into_iter().collect();
        serde_json::to_string_pretty(&sorted).expect("invariant: a configuration is JSON")
    }

    /// Parses the file's text; `path` is for messages. Every setting that is not supported is reported.
    pub fn from_json(path: &Path, text: &[u8]) -> Result<Self, Vec<AdapterError>> {
        let malformed = |reason: String| vec![AdapterError::ConfigMalformed { path: path.to_owned(), reason }];
        let config: Self = serde_json::from_slice(text).map_err(|error| malformed(error.to_string()))?;
        if config.r == 0 {
            return Err(malformed("`r` is 0; a rank is at least 1".to_owned()));
        }
        if let Some((pattern, _)) = config.rank_pattern.0.iter().find(|(_, rank)| *rank == 0) {
            return Err(malformed(format!("`rank_pattern` gives `{pattern}` rank 0; a rank is at least 1")));
        }
        let refused = config.refused(path);
        if refused.is_empty() { Ok(config) } else { Err(refused) }
    }

    fn refused(&self, path: &Path) -> Vec<AdapterError> {
        let refuse = |key: &str, reason: &'static str| AdapterError::Unsupported {
            path: path.to_owned(),
            key: key.to_owned(),
            value: self.other.get(key).map_or_else(|| "nothing".to_owned(), Value::to_string),
            reason,
        };
        let text = |key: &str| self.other.get(key).and_then(Value::as_str);
        let mut refused = Vec::new();
        if text("peft_type") != Some("LORA") {
            refused.push(refuse("peft_type", "only \"LORA\" is"));
        }
        if self.other.get("task_type").is_some_and(|task| !task.is_null() && task != "CAUSAL_LM") {
            refused.push(refuse("task_type", "only \"CAUSAL_LM\" is"));
        }
        if self.other.get("bias").is_some_and(|bias| bias != "none") {
            refused.push(refuse("bias", "only \"none\" is"));
        }
        if text("init_lora_weights").is_some_and(|init| BASE_CHANGING.iter().any(|name| init.starts_with(name))) {
            refused.push(refuse(
                "init_lora_weights",
                "it also changed the base weights; convert the adapter with PEFT's `path_initial_model_for_weight_conversion`",
            ));
        }
        for (key, reason) in REFUSED {
            if self.other.get(*key).is_some_and(is_set) {
                refused.push(refuse(key, reason));
            }
        }
        refused
    }
}

/// Whether a setting that is off by default was turned on.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(on) => *on,
        Value::Array(items) => !items.is_empty(),
        Value::Object(entries) => !entries.is_empty(),
        Value::Number(_) | Value::String(_) => true,
    }
}

/// Rank and scale of each module: [`AdapterConfig::scaling`].
#[derive(Debug)]
pub struct Scaling {
    r: usize,
    alpha: f64,
    ranks: Compiled<usize>,
    alphas: Compiled<f64>,
    rslora: bool,
}

impl Scaling {
    /// The rank of a module.
    pub fn rank(&self, module: &str) -> usize {
        self.ranks.find(module).unwrap_or(self.r)
    }

    /// The factor on `B·A` of a module: `alpha / r`, or `alpha / √r`.
    pub fn scale(&self, module: &str) -> f32 {
        let alpha = self.alphas.find(module).unwrap_or(self.alpha);
        let rank = self.rank(module) as f64;
        (alpha / if self.rslora { rank.sqrt() } else { rank }) as f32
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn read(text: &str) -> Result<AdapterConfig, Vec<AdapterError>> {
        AdapterConfig::from_json(Path::new("a/adapter_config.json"), text.as_bytes())
    }

    #[test]
    fn a_new_configuration_reads_as_it_looks() {
        let config = AdapterConfig::new(Some("Qwen/Qwen3-0.6B".to_owned()), 16, 32.0, vec!["q_proj".to_owned()]);
        let text = config.to_json();
        assert_eq!(
            text,
            r#"{
  "alpha_pattern": {},
  "auto_mapping": null,
  "base_model_name_or_path": "Qwen/Qwen3-0.6B",
  "bias": "none",
  "fan_in_fan_out": false,
  "inference_mode": true,
  "init_lora_weights": true,
  "layers_pattern": null,
  "layers_to_transform": null,
  "lora_alpha": 32,
  "lora_dropout": 0.0,
  "modules_to_save": null,
  "peft_type": "LORA",
  "r": 16,
  "rank_pattern": {},
  "revision": null,
  "target_modules": [
    "q_proj"
  ],
  "task_type": "CAUSAL_LM",
  "use_dora": false,
  "use_rslora": false
}"#
        );
        assert_eq!(read(&text).unwrap().to_json(), text);
    }

    #[test]
    fn unknown_keys_are_kept() {
        let text =
            r#"{"peft_type":"LORA","r":4,"lora_alpha":4.5,"peft_version":"0.21.2","loftq_config":{},"zeta":[1]}"#;
        let config = read(text).unwrap();
        assert_eq!(config.other["zeta"], json!([1]));
        let again = read(&config.to_json()).unwrap();
        assert_eq!(again.other["peft_version"], json!("0.21.2"));
        assert_eq!(again.lora_alpha, 4.5);
    }

    #[test]
    fn a_lock_is_read_back_and_leaves_what_else_is_there() {
        let lock = Lock::from_sums(&format!("{}  model.safetensors\n", "0".repeat(64))).unwrap();
        let mut config = read(r#"{"peft_type":"LORA","r":4,"auto_mapping":{"parent_library":"x"}}"#).unwrap();
        config.set_base_lock(Some(&lock));
        let mut again = read(&config.to_json()).unwrap();
        assert_eq!(again.base_lock(), Some(lock));
        assert_eq!(again.other["auto_mapping"]["parent_library"], json!("x"));
        again.set_base_lock(None);
        assert_eq!(again.base_lock(), None);
        assert_eq!(again.other["auto_mapping"], json!({"parent_library":"x"}));
        let mut new = AdapterConfig::new(None, 8, 16.0, Vec::new());
        let text = new.to_json();
        new.set_base_lock(None);
        assert_eq!(new.to_json(), text);
    }

    #[test]
    fn every_unsupported_setting_is_reported() {
        let faults = read(
            r#"{"peft_type":"LOHA","task_type":"SEQ_CLS","r":4,"bias":"all","use_dora":true,"fan_in_fan_out":true,
                "layer_replication":[[0,4]],"lora_bias":true,
                "init_lora_weights":"pissa_niter_4","use_qalora":false,"arrow_config":null}"#,
        )
        .unwrap_err();
        let keys: Vec<_> = faults
            .iter()
            .map(|fault| match fault {
                AdapterError::Unsupported { key, .. } => key.as_str(),
                other => panic!("{other}"),
            })
            .collect();
        assert_eq!(
            keys,
            [
                "peft_type",
                "task_type",
                "bias",
                "init_lora_weights",
                "use_dora",
                "fan_in_fan_out",
                "layer_replication",
                "lora_bias"
            ]
        );
        assert_eq!(
            faults[4].to_string(),
            "`a/adapter_config.json` sets `use_dora` to true, which is not supported: DoRA is not there yet"
        );
    }

    #[test]
    fn malformed_configurations_are_named() {
        for (text, reason) in [
            ("{", "EOF while parsing an object at line 1 column 1"),
            (r#"{"peft_type":"LORA","r":0}"#, "`r` is 0; a rank is at least 1"),
            (
                r#"{"peft_type":"LORA","r":4,"rank_pattern":{"mlp.experts.down_proj":0}}"#,
                "`rank_pattern` gives `mlp.experts.down_proj` rank 0; a rank is at least 1",
            ),
        ] {
            let faults = read(text).unwrap_err();
            assert_eq!(faults[0].to_string(), format!("`a/adapter_config.json` is malformed: {reason}"));
        }
    }

    #[test]
    fn patterns_and_rslora_set_rank_and_scale() {
        let mut config = AdapterConfig::new(None, 8, 16.0, Vec::new());
        config.rank_pattern = Patterns(vec![("q_proj".to_owned(), 4)]);
        config.alpha_pattern = Patterns(vec![(r"layers\.1\..*".to_owned(), 64.0)]);
        let scaling = config.scaling().unwrap();
        assert_eq!((scaling.rank("layers.0.q_proj"), scaling.scale("layers.0.q_proj")), (4, 4.0));
        assert_eq!((scaling.rank("layers.1.k_proj"), scaling.scale("layers.1.k_proj")), (8, 8.0));
        config.use_rslora = true;
        let scaling = config.scaling().unwrap();
        assert_eq!(scaling.scale("layers.0.q_proj"), 8.0);
        assert_eq!(scaling.scale("layers.0.k_proj"), (16.0 / 8f64.sqrt()) as f32);
    }
}
