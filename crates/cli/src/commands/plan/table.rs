//! `plan --table`: the longest rows that published models can be trained on, by card.

use qwen_tune_model::{Quantize, quantised_bytes};
use qwen_tune_qwen::memory::{self, FEWEST_CHUNK_TOKENS, Learned, Offload, OneRow, WeightBytes};
use qwen_tune_qwen::published::{PUBLISHED, Published};
use qwen_tune_qwen::{TensorSpec, inventory};
use qwen_tune_train::head_rows;
use serde_json::{Value, json};

use crate::terminal::Table;

/// Gigabytes (GiB) of usual cards.
const CARDS: [u64; 8] = [6, 8, 12, 16, 24, 48, 80, 141];
/// Rank of the adapters, which are on all linear layers.
const RANK: usize = 16;
/// Rows are not followed further than this.
const MOST_TOKENS: u64 = 1_000_000;
/// Shorter rows are of no use.
const FEWEST_TOKENS: u64 = 256;

/// What the frozen weights of linear layers are held in.
const BASES: [Quantize; 2] = [Quantize::None, Quantize::Nf4];

fn title(quantize: Quantize) -> String {
    match quantize {
        Quantize::None => "LoRA, weights in bf16".to_owned(),
        quantize => format!("QLoRA, weights in {}", quantize.name()),
    }
}

fn bytes(tensor: &TensorSpec, quantize: Quantize) -> u64 {
    quantised_bytes(tensor, quantize).unwrap_or(2 * tensor.elements())
}

/// Contexts of a model with weights held in one way: without anything in host memory, and with what may wait there
/// at little cost.
struct Contexts {
    model: &'static Published,
    parameters: u64,
    cells: Vec<[u64; 2]>,
}

fn contexts(model: &'static Published, base: Quantize) -> Contexts {
    let spec = model.spec();
    let inventory = inventory(&spec);
    let learned = Learned::adapters(&inventory, RANK);
    let weights = WeightBytes::of(&inventory, &learned, |tensor| bytes(tensor, base));
    let longest = |card: u64, offload| {
        let row = OneRow {
            spec: &spec,
            inventory: &inventory,
            learned: &learned,
            weights: &weights,
            activation_bytes: 2,
            head_rows: head_rows(spec.vocab_size, Some(card << 30)) as u64,
            offload,
        };
        row.longest(memory::usable(card << 30), MOST_TOKENS)
    };
    let cells = CARDS.iter().map(|&card| [Offload::None, Offload::Inputs].map(|offload| longest(card, offload)));
    Contexts { model, parameters: memory::parameters(&inventory), cells: cells.collect() }
}

/// As text.
pub(super) fn text() -> String {
    let mut parts = vec![format!(
        "Longest row in tokens, by memory of the card: one row at a time, every block run again in the backward, its feed-forward\n\
         part in chunks of {FEWEST_CHUNK_TOKENS} tokens, adapters of rank {RANK} on all linear layers; behind the slash with\n\
         `run.offload = \"inputs\"`. By formula.\n"
    )];
    for base in BASES {
        let cards: Vec<String> = CARDS.iter().map(|card| format!(">{card} GB")).collect();
        let title = title(base);
        let mut table = Table::new(std::iter::once(title.as_str()).chain(cards.iter().map(String::as_str)));
        for model in PUBLISHED {
            let contexts = contexts(model, base);
            let cells = contexts.cells.iter().map(|&[here, away]| cell(here, away));
            table.row(std::iter::once(model.short_name().to_owned()).chain(cells));
        }
        parts.push(table.render(0));
    }
    parts.join("\n")
}

fn cell(here: u64, away: u64) -> String {
    match (short(here), short(away)) {
        (None, None) => "-".to_owned(),
        (here, away) if here == away => here.unwrap_or_default(),
        (here, away) => format!("{}/{}", here.as_deref().unwrap_or("-"), away.as_deref().unwrap_or("-")),
    }
}

/// Thousands of tokens, rounded down.
fn short(tokens: u64) -> Option<String> {
    Some(match tokens {
        _ if tokens < FEWEST_TOKENS => return None,
        _ if tokens >= MOST_TOKENS => "1M+".to_owned(),
        _ if tokens < 10_000 => format!("{}.{}k", tokens / 1000, tokens / 100 % 10),
        _ => format!("{}k", tokens / 1000),
    })
}

/// The same numbers, one object a model and way.
pub(super) fn as_json() -> Value {
    let rows = BASES.iter().flat_map(|&base| {
        PUBLISHED.iter().map(move |model| {
            let contexts = contexts(model, base);
            let cards = CARDS
                .iter()
                .zip(&contexts.cells)
                .map(|(card, [here, away])| json!({ "card_gib": card, "tokens": here, "tokens_offload_inputs": away }));
            json!({
                "model": contexts.model.name,
                "parameters": contexts.parameters,
                "quantize": base.name(),
                "rank": RANK,
                "cards": cards.collect::<Vec<_>>(),
            })
        })
    });
    Value::Array(rows.collect())
}
