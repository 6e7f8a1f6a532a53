//! What may be typed: verbs, and `--set` for everything a recipe can say. The doc comments are the help.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::recipe::Setting;

/// Fine-tuning and LoRA for the Qwen family: checkpoint and data in, adapter and merged model out.
#[derive(Debug, Parser)]
#[command(name = "qwen-tune", version, max_term_width = 100, arg_required_else_help = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed while running, 2 recipe or usage wrong, 130 interrupted after a checkpoint."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train, evaluate and export as a recipe says.
    Train(TrainArgs),
    /// Find every mistake in recipe, data and checkpoint at once; no device is needed.
    Check(RecipeArgs),
    /// Show what each setting resolves to and why, the memory it takes and the time.
    Plan(PlanArgs),
    /// Show rows as the model sees them: which tokens there are and which carry loss.
    Data(DataArgs),
    /// Measure the loss of a model, with or without an adapter.
    Eval(EvalArgs),
    /// Answer one prompt or conversation.
    Generate(GenerateArgs),
    /// Talk to a model.
    Chat(ChatArgs),
    /// Make a merged model or an adapter of a finished run.
    Export(ExportArgs),
    /// Describe a checkpoint, a GGUF file, an adapter or a run directory.
    Inspect(InspectArgs),
    /// Write a recipe to start from.
    Init(InitArgs),
    /// Say which devices there are, what is missing, and whether each computes what the CPU does.
    Devices(DevicesArgs),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Recipe keys given on the command line.
#[derive(Debug, Default, Args)]
pub struct Settings {
    /// Set a recipe key by its dotted path, such as `run.steps=20` or `data[0].path=rows.parquet`; can be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl Settings {
    /// The settings, in the order typed.
    pub fn to_vec(&self) -> Vec<Setting> {
        self.set.iter().map(Setting::from_set).collect()
    }
}

/// A recipe with settings over it.
#[derive(Debug, Args)]
pub struct RecipeArgs {
    /// The recipe file; may be left out when `--set` says enough.
    #[arg(required_unless_present = "set")]
    pub recipe: Option<PathBuf>,
    /// Keys over the recipe's.
    #[command(flatten)]
    pub settings: Settings,
    /// Print JSON on stdout.
    #[arg(long)]
    pub json: bool,
}

/// `plan`
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// The recipe file; may be left out when `--set` says enough.
    #[arg(required_unless_present_any = ["set", "table"])]
    pub recipe: Option<PathBuf>,
    /// Keys over the recipe's.
    #[command(flatten)]
    pub settings: Settings,
    /// Show instead how long rows may be for published models, by the memory of a card.
    #[arg(long, conflicts_with_all = ["recipe", "set"])]
    pub table: bool,
    /// Print JSON on stdout.
    #[arg(long)]
    pub json: bool,
}

/// `train`
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The recipe file; may be left out when `--set` says enough.
    #[arg(required_unless_present = "set")]
    pub recipe: Option<PathBuf>,
    /// Keys over the recipe's.
    #[command(flatten)]
    pub settings: Settings,
    /// Go on from the last checkpoint of the run directory; without one, start from the beginning.
    #[arg(long)]
    pub resume: bool,
    /// Print one JSON object per event on stdout.
    #[arg(long)]
    pub json: bool,
}

/// `data`
#[derive(Debug, Args)]
pub struct DataArgs {
    /// The recipe file; may be left out when `--set` says enough.
    #[arg(required_unless_present = "set")]
    pub recipe: Option<PathBuf>,
    /// Keys over the recipe's.
    #[command(flatten)]
    pub settings: Settings,
    /// How many rows, in file order.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub rows: usize,
    /// Pass over this many rows first.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub from: u64,
    /// Show rows of one `[[data]]` entry only, counted from 0.
    #[arg(long, value_name = "INDEX")]
    pub source: Option<usize>,
    /// Show the first rows as training lays them out instead: shuffled and packed, with where each segment came from.
    #[arg(long, conflicts_with_all = ["from", "source"])]
    pub packed: bool,
    /// Show lengths, shares of trained tokens, truncated, dropped and duplicate rows, and what the audit finds in all
    /// rows instead.
    #[arg(long, conflicts_with_all = ["rows", "from", "source", "packed"])]
    pub stats: bool,
    /// Print one JSON object per row on stdout.
    #[arg(long)]
    pub json: bool,
}

/// A model without a recipe.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// Directory of the base model.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Directory of a PEFT adapter for it.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
}

impl ModelArgs {
    /// The flags and `--set` as settings of a recipe.
    pub fn settings(&self, settings: &Settings) -> Vec<Setting> {
        let mut all = settings.to_vec();
        all.push(Setting::from_flag("--model", "model.base", self.model.to_string_lossy()));
        all
    }
}

/// `eval`
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// The recipe whose model and held-out data are used.
    #[arg(required_unless_present = "model", conflicts_with = "model")]
    pub recipe: Option<PathBuf>,
    /// Directory of the base model.
    #[arg(long, value_name = "DIR", requires = "data")]
    pub model: Option<PathBuf>,
    /// Directory of a PEFT adapter.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Data file or glob to evaluate on.
    #[arg(long, value_name = "FILE")]
    pub data: Option<String>,
    /// Write the log-probability of every token to this parquet file.
    #[arg(long, value_name = "PARQUET")]
    pub logprobs: Option<PathBuf>,
    /// Keys over the recipe's.
    #[command(flatten)]
    pub settings: Settings,
    /// Print JSON on stdout.
    #[arg(long)]
    pub json: bool,
}

impl EvalArgs {
    /// The flags and `--set` as settings of a recipe.
    pub fn settings(&self) -> Vec<Setting> {
        let mut all = self.settings.to_vec();
        all.extend(
            self.model.as_ref().map(|model| Setting::from_flag("--model", "model.base", model.to_string_lossy())),
        );
        all.extend(self.data.as_ref().map(|data| Setting::from_flag("--data", "eval.data", data)));
        all
    }
}

/// `generate`
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("input").required(true).args(["prompt", "messages"])))]
pub struct GenerateArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// A user message, answered through the model's chat template.
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// A JSON file with a list of messages (`role`, `content`).
    #[arg(long, value_name = "FILE")]
    pub messages: Option<PathBuf>,
    /// Keys such as `generate.temperature=0.7`.
    #[command(flatten)]
    pub settings: Settings,
    /// Print JSON on stdout.
    #[arg(long)]
    pub json: bool,
}

/// `chat`
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Keys such as `generate.temperature=0.7`.
    #[command(flatten)]
    pub settings: Settings,
}

/// What an export makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportKind {
    /// A model directory like the base's, the adapter folded in.
    Merged,
    /// GGUF files for llama.cpp and Ollama.
    Gguf,
    /// A PEFT adapter directory.
    Adapter,
    /// An adapter as a GGUF file.
    AdapterGguf,
}

/// `export`
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The run directory.
    #[arg(required_unless_present = "model", conflicts_with = "model")]
    pub run: Option<PathBuf>,
    /// Directory of the base model.
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Directory of a PEFT adapter.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// What to make.
    #[arg(long, value_name = "KIND")]
    pub to: ExportKind,
    /// Quantisations of GGUF files, such as `q8_0,q4_k_m`.
    #[arg(long, value_name = "TYPES", value_delimiter = ',')]
    pub quant: Vec<String>,
    /// Do not read it back and compare it with the trained model; its card says so.
    #[arg(long)]
    pub no_verify: bool,
    /// Where to put it.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Keys such as `model.base=DIR` or `model.lock=false`.
    #[command(flatten)]
    pub settings: Settings,
    /// Print JSON on stdout.
    #[arg(long)]
    pub json: bool,
}

/// `inspect`
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A model directory, a GGUF or safetensors file, an adapter or a run directory.
    pub path: PathBuf,
    /// Take the digests of the files again and compare: an adapter's base, a merged model's own files, a run's base and
    /// checkpoints.
    #[arg(long)]
    pub verify: bool,
    /// Directory of the base model, where it is not where the adapter or the run says.
    #[arg(long, value_name = "DIR", requires = "verify")]
    pub model: Option<PathBuf>,
    /// Print JSON on stdout.
    #[arg(long)]
    pub json: bool,
}

/// `init`
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The file to write; one that exists is not overwritten.
    #[arg(default_value = "recipe.toml")]
    pub path: PathBuf,
    /// Keys to fill in, such as `model.base=Qwen3-0.6B`.
    #[command(flatten)]
    pub settings: Settings,
}

/// `devices`
#[derive(Debug, Args)]
pub struct DevicesArgs {
    /// Print JSON on stdout.
    #[arg(long)]
    pub json: bool,
    /// Test this device in this process, a line of JSON for each check: a device that takes its process down is tested in
    /// one of its own.
    #[arg(long, value_name = "DEVICE", hide = true)]
    pub self_test: Option<String>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("qwen-tune").chain(line.split_whitespace()))
    }

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_form_of_the_contract_is_taken() {
        for line in [
            "train r.toml",
            "train r.toml --set run.steps=20 --set run.device=cpu --resume --json",
            "train --set model.base=m --set data.0.path=x.parquet",
            "check r.toml --json",
            "plan r.toml --set run.steps=1",
            "data r.toml --stats",
            "data r.toml --json --rows 5",
            "data r.toml --source 1 --from 20",
            "data r.toml --packed --rows 2",
            "eval r.toml --json",
            "eval --model m --adapter a --data f.parquet --logprobs out.parquet --json",
            "generate --model m --adapter a --prompt hello",
            "generate --model m --messages f.json --set generate.max_tokens=5",
            "chat --model m --adapter a",
            "export run --to merged --out d",
            "export --model m --adapter a --to gguf --quant q8_0,q4_k_m --out d",
            "export --model m --to adapter-gguf --out d",
            "inspect m",
            "inspect a --verify --model m",
            "export run --to merged --out d --set model.lock=false",
            "init",
            "devices",
            "completions bash",
        ] {
            assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
        }
    }

    #[test]
    fn contradictions_are_usage_mistakes() {
        for line in [
            "train",
            "eval",
            "eval r.toml --model m",
            "eval --model m",
            "generate --model m",
            "generate --model m --prompt x --messages f",
            "export --to merged --out d",
            "export run --to onnx --out d",
            "train r.toml --steps 3",
            "data r.toml --packed --stats",
            "data r.toml --packed --from 3",
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
