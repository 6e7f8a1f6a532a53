//! Rows to batches, on one thread unless said: what the template, the tokenizer and the packing each take. `items` are
//! tokens.
//!
//! `TOKENIZER` names the directory of another tokenizer and template, `ROWS` another file of conversations; without them
//! it is the small ones of `datasets`, whose vocabulary says little about a real one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use divan::Bencher;
use divan::counter::ItemsCount;
use qwen_tune_data::pack::{lay_out, rows};
use qwen_tune_data::{
    BatchPlan, Cursor, Dataset, Encoder, Origin, Packing, Row, Sample, SourceConfig, StepSize, Stream, TokensConfig,
};
use rayon::prelude::*;
use serde_json::Map;
use tokenizers::Tokenizer;

/// Rows that an iteration works on.
const ROWS: usize = 500;
/// Documents that a step packs.
const DOCUMENTS: usize = 1024;
const MAX_LENGTH: usize = 2048;

fn main() {
    divan::main();
}

fn datasets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets")
}

fn given(variable: &str, otherwise: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| datasets().join(otherwise), PathBuf::from)
}

fn tokenizer() -> PathBuf {
    given("TOKENIZER", "tiny-qwen3")
}

fn dataset() -> Dataset {
    let encoder = Encoder::from_dir(&tokenizer(), &TokensConfig::default(), 1 << 20).expect("a tokenizer");
    let path = given("ROWS", "shakespeare_chat.parquet");
    let source = SourceConfig::new(path.to_string_lossy().into_owned());
    Dataset::open(&[source], Arc::new(encoder), &[]).expect("rows")
}

fn first_rows(dataset: &Dataset) -> Vec<(Origin, Row)> {
    let mut samples = dataset.samples();
    std::iter::from_fn(|| samples.next_row()).take(ROWS).collect::<Result<_, _>>().expect("rows that can be read")
}

fn tokens(dataset: &Dataset, rows: &[(Origin, Row)]) -> usize {
    rows.iter().map(|(_, row)| dataset.encoder().tokenise(row).expect("a row that encodes").ids.len()).sum()
}

/// The texts that the template makes of rows.
fn texts(dataset: &Dataset, rows: &[(Origin, Row)]) -> Vec<String> {
    rows.iter().map(|(_, row)| dataset.encoder().tokenise(row).expect("a row that encodes").text).collect()
}

/// What the `tokenizers` crate takes for the same text, with the places of tokens.
#[divan::bench]
fn tokenizer_alone(bencher: Bencher) {
    let dataset = dataset();
    let rows = first_rows(&dataset);
    let texts = texts(&dataset, &rows);
    let tokenizer = Tokenizer::from_file(tokenizer().join("tokenizer.json")).expect("a tokenizer");
    bencher.counter(ItemsCount::new(tokens(&dataset, &rows))).bench_local(|| {
        texts.iter().map(|text| tokenizer.encode(text.as_str(), false).expect("text").len()).sum::<usize>()
    });
}

#[divan::bench]
fn template_alone(bencher: Bencher) {
    let dataset = dataset();
    let rows = first_rows(&dataset);
    bencher.counter(ItemsCount::new(tokens(&dataset, &rows))).bench_local(|| {
        let render = |row: &Row| match row {
            Row::Chat(c) => dataset.encoder().render_chat(&c.messages, c.tools.as_ref(), false, &Map::new()),
            _ => Ok(String::new()),
        };
        rows.iter().map(|(_, row)| render(row).expect("a conversation").len()).sum::<usize>()
    });
}

/// Template, tokenizer, mask.
#[divan::bench]
fn encode(bencher: Bencher) {
    let dataset = dataset();
    let rows = first_rows(&dataset);
    bencher.counter(ItemsCount::new(tokens(&dataset, &rows))).bench_local(|| {
        let encode = |(origin, row): &(Origin, Row)| dataset.encoder().encode(row, *origin).expect("a row");
        rows.iter().map(|row| encode(row).tokens).sum::<usize>()
    });
}

/// The same on every core at once.
#[divan::bench]
fn encode_on_all_cores(bencher: Bencher) {
    let dataset = dataset();
    let rows = first_rows(&dataset);
    bencher.counter(ItemsCount::new(tokens(&dataset, &rows))).bench_local(|| {
        let encode = |(origin, row): &(Origin, Row)| dataset.encoder().encode(row, *origin).expect("a row");
        rows.par_iter().map(|row| encode(row).tokens).sum::<usize>()
    });
}

/// From the file to steps, on all threads that data have.
#[divan::bench]
fn stream(bencher: Bencher) {
    let plan = BatchPlan {
        step: StepSize::Rows(ROWS),
        micro_batch: 8,
        seed: 1,
        shuffle: true,
        packing: Packing::BestFit,
        max_length: MAX_LENGTH,
    };
    let mut steps = Stream::start(Arc::new(dataset()), plan, Cursor::default()).expect("a stream");
    let mut next = || steps.next().expect("steps without end").expect("rows that encode").tokens;
    let tokens = (0..8).map(|_| next()).sum::<usize>() / 8;
    bencher.counter(ItemsCount::new(tokens)).bench_local(next);
}

/// Lengths as documents have them: many short, some long.
fn documents() -> Vec<Sample> {
    let mut state = 1_u64;
    let mut unit = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1_u64 << 53) as f64
    };
    let mut document = |row: usize| {
        let length = ((-(1.0 - unit()).ln() * 400.0) as usize).clamp(2, MAX_LENGTH);
        let ids = (0..length as u32).collect();
        let origin = Origin { source: 0, file: 0, row: row as u64 };
        Sample { ids, trained: (0..length).map(|t| t > length / 2).collect(), origin }
    };
    (0..DOCUMENTS).map(&mut document).collect()
}

/// Which document stands where.
#[divan::bench]
fn pack_lengths(bencher: Bencher) {
    let lengths: Vec<usize> = documents().iter().map(|sample| sample.ids.len()).collect();
    let counter = ItemsCount::new(lengths.iter().sum::<usize>());
    bencher.counter(counter).bench_local(|| rows(&lengths, Packing::BestFit, MAX_LENGTH));
}

/// The same, and the batches.
#[divan::bench]
fn pack(bencher: Bencher) {
    let samples = documents();
    let counter = ItemsCount::new(samples.iter().map(|sample| sample.ids.len()).sum::<usize>());
    bencher.counter(counter).bench_local(|| lay_out(&samples, Packing::BestFit, MAX_LENGTH, 8));
}
