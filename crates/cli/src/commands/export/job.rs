//! One export: written, read back, described, and only then given its name.

use std::fs;
use std::path::{Path, PathBuf};

use qwen_tune_data::{Encoder, TokensConfig};
use qwen_tune_qwen::export::{self, Change, ExportError, ExportKind as Kind};
use qwen_tune_qwen::gguf::{self, About, GgufError, Quant, WriteOptions};
use qwen_tune_qwen::{KeyLayout, ModelDir};
use qwen_tune_weights::atomic::{AtomicDir, write_file};
use qwen_tune_weights::gguf::GgufFile;
use qwen_tune_weights::lock::Lock;
use qwen_tune_weights::peft::Adapter;
use qwen_tune_weights::{Checkpoint, Dtype, WeightError};

use super::super::{base, failed};
use super::license;
use super::proof::{Proof, Storage};
use super::witness::Witness;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::publish::{Card, Losses, modelfile};
use crate::recipe::Recipe;
use crate::terminal::Printer;

/// Hubs take files up to 50 GB.
const SHARD_BYTES: u64 = 48 << 30;
const CARD_FILE: &str = "README.md";
const MODEL_FILE: &str = "Modelfile";
const GENERATION_FILE: &str = "generation_config.json";

/// What to make, and where.
pub(super) struct Job {
    pub(super) kind: Kind,
    pub(super) quants: Vec<Quant>,
    pub(super) verify: bool,
    /// Files are named by it.
    pub(super) name: String,
    /// Whether an export that is there is replaced.
    pub(super) replaces: bool,
    pub(super) out: PathBuf,
}

/// What training made of which base.
pub(in crate::commands) struct Trained<'a> {
    pub(in crate::commands) adapter: Option<&'a Adapter>,
    /// Whose module paths an exported adapter has.
    pub(in crate::commands) layout: KeyLayout,
    pub(in crate::commands) full: Option<&'a Checkpoint>,
    pub(in crate::commands) base: Option<&'a Lock>,
    pub(in crate::commands) recipe: &'a Recipe,
    /// Directory of the run.
    pub(in crate::commands) run: Option<&'a Path>,
}

impl Trained<'_> {
    fn change(&self) -> Option<Change<'_>> {
        let full = self.full.map(|full| Change::Full(full));
        self.adapter.map(Change::Adapter).or(full)
    }
}

/// Makes it. Nothing stands at its place until all of it is written and found right.
pub(super) fn carry_out(
    job: &Job,
    model: &ModelDir,
    trained: &Trained<'_>,
    witness: Option<&Witness>,
    printer: &Printer,
) -> Result<(), Diagnostics> {
    let staging = if job.replaces { AtomicDir::replacing(&job.out) } else { AtomicDir::new(&job.out) };
    let staging = staging.map_err(|e| failed("export", &e))?;
    let mut proof = witness.map(Proof::new);
    let made = match job.kind {
        Kind::Merged => merged(job, model, trained, staging.path(), witness.zip(proof.as_mut()))?,
        Kind::Gguf => gguf(job, model, trained, staging.path(), witness.zip(proof.as_mut()))?,
        Kind::Adapter => adapter(job, model, trained, staging.path())?,
        Kind::AdapterGguf => adapter_gguf(job, model, trained, staging.path())?,
    };
    if let Some(proof) = &proof {
        proof.write(staging.path())?;
        printer.note(&format!("verified {} against the trained model", job.kind));
        printer.note(proof.table().render(2).trim_end());
    }
    let stated = proof.as_ref().map(Proof::markdown).or_else(|| made.stated.filter(|_| job.verify));
    let card = card(job, model, trained, stated, made.usage);
    put(&staging.path().join(CARD_FILE), card.text().as_bytes())?;
    printer.diagnostics(&made.warnings);
    staging.commit().map_err(|e| failed("export", &e))?;
    Ok(())
}

/// What is known of an export that was written.
#[derive(Default)]
struct Made {
    warnings: Diagnostics,
    /// Shell lines that run it.
    usage: Vec<String>,
    /// What was verified of files that cannot be run.
    stated: Option<String>,
}

fn merged(
    job: &Job,
    model: &ModelDir,
    trained: &Trained<'_>,
    directory: &Path,
    proof: Option<(&Witness, &mut Proof)>,
) -> Result<Made, Diagnostics> {
    let change = trained.change().expect("invariant: there is something to merge");
    let merged = export::merge_into(model, change, directory).map_err(told)?;
    if let Some(base) = trained.base {
        base::write_merged(directory, base.clone())?;
    }
    let mut made = Made::default();
    made.warnings.extend(template_warning(trained));
    if let Some((witness, proof)) = proof {
        let storage = Storage::of_checkpoint(model);
        let bytes = size(merged.written.files.iter())?;
        made.warnings.extend(proof.examine(witness, model, directory, storage, bytes)?);
        // The directory has a working name while it is examined.
        if let Some(found) = proof.files.last_mut() {
            found.file = job.name.clone();
        }
    }
    made.usage = vec![format!("qwen-tune chat --model {}", job.name), format!("vllm serve {}", job.name)];
    Ok(made)
}

fn gguf(
    job: &Job,
    model: &ModelDir,
    trained: &Trained<'_>,
    directory: &Path,
    mut proof: Option<(&Witness, &mut Proof)>,
) -> Result<Made, Diagnostics> {
    let options = WriteOptions {
        name: job.name.clone(),
        quants: job.quants.clone(),
        about: about(job, model, trained),
        shard_bytes: SHARD_BYTES,
    };
    let report = gguf::write(model, trained.change(), directory, &options).map_err(told_gguf)?;
    let mut made = Made::default();
    made.warnings.extend(report.warnings.into_iter().map(|message| Diagnostic::warning("gguf", message)));
    made.warnings.extend(template_warning(trained));
    for written in &report.models {
        let first = written.files.first().expect("invariant: a model has a file");
        if let Some((witness, proof)) = proof.as_mut() {
            let bytes = size(written.files.iter())?;
            made.warnings.extend(proof.examine(witness, model, first, Storage::of_quant(written.quant), bytes)?);
        }
    }
    let first = report.models.first().and_then(|written| written.files.first()).and_then(|path| path.file_name());
    let first = first.unwrap_or_default().to_string_lossy();
    let encoder = Encoder::from_dir(model.side_directory(), &TokensConfig::default(), model.spec.vocab_size)
        .map_err(|e| failed("export", &e))?;
    let mut stops = encoder.stop_ids();
    stops.extend(model.eos_ids());
    stops.sort_unstable();
    stops.dedup();
    let ollama = modelfile(&first, &encoder, &stops, model.generation_config.as_ref());
    put(&directory.join(MODEL_FILE), ollama.text.as_bytes())?;
    if let Some(path) = model.file(GENERATION_FILE) {
        fs::copy(&path, directory.join(GENERATION_FILE))
            .map_err(WeightError::io("copy", &path))
            .map_err(|e| failed("export", &e))?;
    }
    made.usage = vec![
        format!("llama-cli -m {first} -p \"Hello\""),
        format!("ollama create {} -f {MODEL_FILE} && ollama run {}", job.name, job.name),
    ];
    Ok(made)
}

fn adapter(job: &Job, model: &ModelDir, trained: &Trained<'_>, directory: &Path) -> Result<Made, Diagnostics> {
    let adapter = export::fit_adapter(model, trained.layout, the_adapter(trained, job.kind)?).map_err(told)?;
    adapter.write_into(directory, Dtype::F32).map_err(|e| failed("export", &e))?;
    let stated = match Adapter::read(directory) {
        Ok(again) if again.pairs == adapter.pairs => {
            "Read back from disk: every number is that of the trained adapter.\n"
        }
        Ok(_) => return Err(Diagnostic::failure("export-differs", "the adapter reads back with other numbers").into()),
        Err(errors) => return Err(errors.iter().map(|e| Diagnostic::failure_from("verify", e)).collect()),
    };
    let usage = vec![format!("qwen-tune chat --model BASE --adapter {}", job.name)];
    Ok(Made { stated: Some(stated.to_owned()), usage, ..Made::default() })
}

fn adapter_gguf(job: &Job, model: &ModelDir, trained: &Trained<'_>, directory: &Path) -> Result<Made, Diagnostics> {
    let file = format!("{}-adapter-F32.gguf", job.name);
    let path = directory.join(&file);
    let adapter = the_adapter(trained, job.kind)?;
    gguf::write_adapter(model, adapter, &path, &about(job, model, trained)).map_err(told_gguf)?;
    let again = GgufFile::open(&path).map_err(|e| failed("verify", &e))?;
    let stated = format!(
        "Read back from disk: {} tensors for {} adapted modules.\n",
        again.tensors().len(),
        adapter.pairs.len()
    );
    Ok(Made {
        stated: Some(stated),
        usage: vec![format!("llama-cli -m BASE.gguf --lora {file} -p \"Hello\"")],
        ..Made::default()
    })
}

fn the_adapter<'a>(trained: &Trained<'a>, kind: Kind) -> Result<&'a Adapter, Diagnostics> {
    trained.adapter.ok_or_else(|| {
        let message = "full fine-tuning has no adapter to export";
        let instead = if kind == Kind::AdapterGguf { "gguf" } else { "merged" };
        Diagnostic::mistake("no-adapter", message).hint(format!("use `to = \"{instead}\"`")).into()
    })
}

/// Exported files hold the base's own template.
fn template_warning(trained: &Trained<'_>) -> Option<Diagnostic> {
    trained.recipe.tokens.template.as_ref().map(|template| {
        let message =
            format!("rows were rendered with `tokens.template = {template:?}`, the files hold the base's own template");
        Diagnostic::warning("other-template", message)
            .hint("put the template into the base's `chat_template.jinja` before exporting")
    })
}

fn about(job: &Job, model: &ModelDir, trained: &Trained<'_>) -> About {
    About {
        name: job.name.clone(),
        base: Some(base_name(model)),
        base_lock: trained.base.cloned(),
        license: license(model),
        tags: vec!["qwen-tune".to_owned(), "text-generation".to_owned()],
        ..About::default()
    }
}

fn card(job: &Job, model: &ModelDir, trained: &Trained<'_>, proof: Option<String>, usage: Vec<String>) -> Card {
    let method = match (trained.adapter, trained.full) {
        (Some(adapter), _) => Some(format!("LoRA, rank {}", adapter.config.r)),
        (None, Some(_)) => Some("full fine-tuning".to_owned()),
        (None, None) => None,
    };
    let text = trained.run.and_then(|run| fs::read_to_string(run.join("recipe.toml")).ok());
    Card {
        name: job.name.clone(),
        base: base_name(model),
        // Bases are directories so far.
        is_on_hub: false,
        lock: trained.base.cloned(),
        license: license(model),
        is_gguf: matches!(job.kind, Kind::Gguf | Kind::AdapterGguf),
        method,
        data: trained.run.map(sources).unwrap_or_default(),
        recipe: text,
        losses: trained.run.and_then(losses),
        proof,
        usage,
    }
}

/// What people know the base by: where it lies on this machine means nothing to others.
fn base_name(model: &ModelDir) -> String {
    let whole = model.path.canonicalize().unwrap_or_else(|_| model.path.clone());
    whole.file_name().map_or_else(|| "a base".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Sources and rows, as the run wrote them down.
fn sources(run: &Path) -> Vec<(String, u64)> {
    let read = || -> Option<Vec<(String, u64)>> {
        let text = fs::read(run.join("plan.json")).ok()?;
        let plan: serde_json::Value = serde_json::from_slice(&text).ok()?;
        let source = |source: &serde_json::Value| {
            let files: Vec<&str> = source.get("files")?.as_array()?.iter().filter_map(|file| file.as_str()).collect();
            Some((files.join(", "), source.get("rows")?.as_u64()?))
        };
        Some(plan.get("sources")?.as_array()?.iter().filter_map(source).collect())
    };
    read().unwrap_or_default()
}

/// The losses of a run, from its metrics.
fn losses(run: &Path) -> Option<Losses> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).ok()?;
    let mut found = Losses::default();
    let (mut first, mut last) = (None, None);
    for line in text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()) {
        let number = |key: &str| line.get(key).and_then(serde_json::Value::as_f64);
        match line.get("event").and_then(serde_json::Value::as_str) {
            Some("step") => {
                found.steps = line.get("step").and_then(serde_json::Value::as_u64).unwrap_or(found.steps);
                found.tokens += line.get("tokens").and_then(serde_json::Value::as_u64).unwrap_or(0);
                found.last = number("loss");
            }
            Some("eval") => {
                first = first.or(number("loss"));
                last = number("loss");
            }
            _ => {}
        }
    }
    found.held_out = first.zip(last);
    (found.steps > 0).then_some(found)
}

fn size<'a>(files: impl Iterator<Item = &'a PathBuf>) -> Result<u64, Diagnostics> {
    files
        .map(|path| fs::metadata(path).map(|data| data.len()).map_err(WeightError::io("read", path)))
        .sum::<Result<u64, WeightError>>()
        .map_err(|e| failed("verify", &e))
}

fn put(path: &Path, text: &[u8]) -> Result<(), Diagnostics> {
    write_file(path, |file| std::io::Write::write_all(file, text).map_err(WeightError::io("write", path)))
        .map_err(|e| failed("export", &e))
}

fn told(errors: Vec<ExportError>) -> Diagnostics {
    errors.into_iter().map(|e| Diagnostic::failure_from("export", &e)).collect()
}

fn told_gguf(errors: Vec<GgufError>) -> Diagnostics {
    errors.into_iter().map(|e| Diagnostic::failure_from("export", &e)).collect()
}
