//! [`Adapter`]: an adapter directory in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    path::Path,
};

use super::{AdapterConfig, AdapterError, config::Scaling, experts, key, key::Key};
use crate::{
    Checkpoint, Dtype, Metadata, SafetensorsWriter, TensorInfo, TensorSink, TensorSource, WeightError,
    atomic::{self, AtomicDir},
    encoding,
};

/// The settings, in an adapter directory.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The tensors, in an adapter directory.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
const PICKLE_FILE: &str = "adapter_model.bin";

/// A LoRA adapter: `W + scale · B · A` for each pair, and whole tensors that replace those of the base.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// The settings.
    pub config: AdapterConfig,
    /// The adapted modules, in the order of the file.
    pub pairs: Vec<LoraPair>,
    /// Whole tensors (`modules_to_save`), by their name in the model.
    pub others: Vec<FullTensor>,
}

/// The two factors of one module, or of each of the experts whose matrices it holds.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraPair {
    /// Path of the module in the model, such as `model.layers.0.self_attn.q_proj`; of routed experts that of the tensor
    /// with all their matrices, such as `model.layers.0.mlp.experts.down_proj`.
    pub module: String,
    /// A `[experts, rank, in_features]`, row after row.
    pub a: Vec<f32>,
    /// B `[experts, out_features, rank]`, row after row.
    pub b: Vec<f32>,
    /// The rank.
    pub rank: usize,
    /// Columns of A.
    pub in_features: usize,
    /// Rows of B.
    pub out_features: usize,
    /// How many matrices the module holds: 1 of a linear layer.
    pub experts: usize,
    /// Factor on `B · A`.
    pub scale: f32,
}

/// A tensor of the model stored whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FullTensor {
    /// Its name in the model, type and shape.
    pub info: TensorInfo,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl LoraPair {
    /// The two tensors of the pair under `path`.
    fn infos(&self, path: &str, dtype: Dtype) -> [TensorInfo; 2] {
        let ranks = self.experts * self.rank;
        [
            TensorInfo::new(key::a(path), dtype, [ranks, self.in_features]),
            TensorInfo::new(key::b(path), dtype, [self.out_features, ranks]),
        ]
    }
}

impl Adapter {
    /// Reads an adapter directory. All faults are reported together.
    pub fn read(directory: &Path) -> Result<Self, Vec<AdapterError>> {
        let config_path = directory.join(CONFIG_FILE);
        let weights_path = directory.join(WEIGHTS_FILE);
        if !config_path.exists() || !weights_path.exists() {
            return Err(vec![not_an_adapter(directory)]);
        }
        let text =
            fs::read(&config_path).map_err(|source| vec![WeightError::io("read", &config_path)(source).into()])?;
        let config = AdapterConfig::from_json(&config_path, &text)?;
        let source = Checkpoint::open(&weights_path).map_err(|error| vec![error.into()])?;
        let scaling = config.scaling().map_err(|error| vec![error])?;
        let (pairs, others) = collect(&weights_path, &source, &config, &scaling)?;
        Ok(Self { config, pairs: experts::join(pairs)?, others })
    }

    /// Writes a new adapter directory, which appears when it is whole. `dtype` is that of A and B; PEFT's own is
    /// [`Dtype::F32`].
    pub fn write(&self, directory: &Path, dtype: Dtype) -> Result<(), AdapterError> {
        let atomic = AtomicDir::new(directory)?;
        self.write_into(atomic.path(), dtype)?;
        atomic.commit()?;
        Ok(())
    }

    /// Writes the two files of an adapter into a directory that exists.
    pub fn write_into(&self, directory: &Path, dtype: Dtype) -> Result<(), AdapterError> {
        self.check()?;
        let modules: BTreeSet<&str> = self.pairs.iter().map(|pair| pair.module.as_str()).collect();
        let infos = |pair: &LoraPair| pair.infos(&experts::stored_path(&pair.module, &modules), dtype);
        let mut plan: Vec<TensorInfo> = self.pairs.iter().flat_map(infos).collect();
        plan.extend(
            self.others.iter().map(|other| TensorInfo { name: key::full(&other.info.name), ..other.info.clone() }),
        );
        let metadata = Metadata::from([("format".to_owned(), "pt".to_owned())]);
        let mut sink = SafetensorsWriter::create(&directory.join(WEIGHTS_FILE), metadata)?;
        sink.declare(&plan)?;
        for pair in &self.pairs {
            let [a, b] = infos(pair);
            sink.write(&a.name, &encoding::encode(&a, &pair.a)?)?;
            if pair.experts == 1 {
                sink.write(&b.name, &encoding::encode(&b, &pair.b)?)?;
            } else {
                sink.write(&b.name, &encoding::encode(&b, &experts::rank_major(pair))?)?;
            }
        }
        for other in &self.others {
            sink.write(&key::full(&other.info.name), &other.bytes)?;
        }
        sink.close()?;
        let path = directory.join(CONFIG_FILE);
        atomic::write_file(&path, |file| {
            file.write_all(self.config.to_json().as_bytes())
                .map_err(|source| WeightError::io("write", &path)(source).into())
        })
    }

    /// Writes rank and scale of pairs of which the configuration says something else into its patterns.
    ///
    /// # Errors
    /// If a pattern that is there cannot be understood.
    pub fn state_ranks(&mut self) -> Result<(), AdapterError> {
        let scaling = self.config.scaling()?;
        let (mut ranks, mut alphas) = (Vec::new(), Vec::new());
        for pair in &self.pairs {
            let name = regex::escape(&pair.module);
            let is_right = scaling.rank(&pair.module) == pair.rank;
            if !is_right {
                ranks.push((name.clone(), pair.rank));
            }
            if !is_right || !is_near(pair.scale, scaling.scale(&pair.module)) {
                let rank = pair.rank as f64;
                let alpha = f64::from(pair.scale) * if self.config.use_rslora { rank.sqrt() } else { rank };
                alphas.push((name, alpha));
            }
        }
        // The first pattern that matches wins.
        self.config.rank_pattern.0.splice(..0, ranks);
        self.config.alpha_pattern.0.splice(..0, alphas);
        Ok(())
    }

    /// Holds the pairs against the configuration that readers will compute rank and scale from.
    fn check(&self) -> Result<(), AdapterError> {
        let scaling = self.config.scaling()?;
        for pair in &self.pairs {
            let rank = scaling.rank(&pair.module);
            if pair.rank != rank {
                return Err(AdapterError::WrongRank {
                    module: pair.module.clone(),
                    config: rank,
                    a: pair.rank,
                    b: pair.rank,
                });
            }
            let scale = scaling.scale(&pair.module);
            if !is_near(pair.scale, scale) {
                return Err(AdapterError::WrongScale { module: pair.module.clone(), config: scale, found: pair.scale });
            }
        }
        Ok(())
    }
}

fn is_near(found: f32, scale: f32) -> bool {
    (found - scale).abs() <= 1e-6 * scale.abs()
}

fn not_an_adapter(directory: &Path) -> AdapterError {
    let missing = if directory.join(CONFIG_FILE).exists() { WEIGHTS_FILE } else { CONFIG_FILE };
    let hint = directory.join(PICKLE_FILE).exists().then(|| {
        format!(
            "; `{PICKLE_FILE}` is a PyTorch pickle, which is not read: load the adapter with PEFT and save it again"
        )
    });
    AdapterError::NotAnAdapter { path: directory.to_owned(), missing, hint }
}

/// The tensors of one module as they are found.
#[derive(Default)]
struct Halves {
    a: Option<TensorInfo>,
    b: Option<TensorInfo>,
}

type Collected = (Vec<LoraPair>, Vec<FullTensor>);

/// Pairs the tensors up and reads them.
fn collect(
    path: &Path,
    source: &Checkpoint,
    config: &AdapterConfig,
    scaling: &Scaling,
) -> Result<Collected, Vec<AdapterError>> {
    let mut faults = Vec::new();
    let mut order = Vec::new();
    let mut modules: BTreeMap<String, Halves> = BTreeMap::new();
    let mut others = Vec::new();
    for info in source.tensors() {
        let (module, is_a) = match key::parse(&info.name) {
            Key::A(module) => (module, true),
            Key::B(module) => (module, false),
            Key::Full(name) => {
                match source.read(&info.name) {
                    Ok(bytes) => {
                        others
                            .push(FullTensor { info: TensorInfo { name, ..info.clone() }, bytes: bytes.into_owned() });
                    }
                    Err(error) => faults.push(error.into()),
                }
                continue;
            }
            Key::Unsupported(reason) => {
                faults.push(AdapterError::UnsupportedTensor {
                    path: path.to_owned(),
                    tensor: info.name.clone(),
                    reason,
                });
                continue;
            }
        };
        if !modules.contains_key(&module) {
            order.push(module.clone());
        }
        let halves = modules.entry(module).or_default();
        let half = if is_a { &mut halves.a } else { &mut halves.b };
        if let Some(first) = half.replace(info.clone()) {
            faults.push(AdapterError::Weights(WeightError::Duplicate {
                tensor: first.name.clone(),
                first: first.name,
                second: info.name.clone(),
            }));
        }
    }
    if modules.is_empty() && faults.is_empty() {
        faults.push(AdapterError::Empty { path: path.to_owned() });
    }
    let mut pairs = Vec::with_capacity(order.len());
    let paths: BTreeSet<String> = order.iter().cloned().collect();
    for path in order {
        let halves = modules.remove(&path).unwrap_or_default();
        let Some(module) = experts::module_of(&path, &paths, config) else {
            let reason =
                "`target_parameters` of `adapter_config.json` does not say which parameter it adapts".to_owned();
            faults.push(AdapterError::Experts { module: path, reason });
            continue;
        };
        match pair(module, halves, source, scaling) {
            Ok(pair) => pairs.push(pair),
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() { Ok((pairs, others)) } else { Err(faults) }
}

fn pair(module: String, halves: Halves, source: &Checkpoint, scaling: &Scaling) -> Result<LoraPair, AdapterError> {
    let (a, b) = match (halves.a, halves.b) {
        (Some(a), Some(b)) => (a, b),
        (Some(_), None) => return Err(unpaired(module, "lora_A", "lora_B")),
        _ => return Err(unpaired(module, "lora_B", "lora_A")),
    };
    let (&[a_rank, in_features], &[out_features, b_rank]) = (matrix(&a, "[r, in]")?, matrix(&b, "[out, r]")?);
    let rank = scaling.rank(&module);
    // Of fused experts the ranks of all lie side by side, and only the model knows how many there are.
    let experts = if experts::is_fused(&module) && a_rank > 0 && a_rank % rank == 0 { a_rank / rank } else { 1 };
    if a_rank != experts * rank || b_rank != a_rank {
        return Err(AdapterError::WrongRank { module, config: rank, a: a_rank, b: b_rank });
    }
    let stored = source.read_f32(&b.name)?;
    Ok(LoraPair {
        a: source.read_f32(&a.name)?,
        b: if experts == 1 { stored } else { experts::expert_major(&stored, experts, out_features, rank) },
        scale: scaling.scale(&module),
        module,
        rank,
        in_features,
        out_features,
        experts,
    })
}

fn unpaired(module: String, present: &'static str, absent: &'static str) -> AdapterError {
    AdapterError::Unpaired { module, present, absent }
}

fn matrix<'a>(info: &'a TensorInfo, expected: &'static str) -> Result<&'a [usize; 2], AdapterError> {
    info.shape.as_slice().try_into().map_err(|_| AdapterError::WrongShape {
        tensor: info.name.clone(),
        found: info.shape.clone(),
        expected,
    })
}
