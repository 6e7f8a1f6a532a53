//! The order of rows, steps, and resuming.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use qwen_tune_data::{
    AuditLimits, BatchPlan, Cursor, DataError, Dataset, Origin, Overlong, Packing, SourceConfig, Step, StepSize,
    Stream, TokensConfig,
};
use serde_json::json;

use crate::fixture::{shared, strings, write, write_parquet};

const PLAN: BatchPlan = BatchPlan {
    step: StepSize::Rows(4),
    micro_batch: 2,
    seed: 1,
    shuffle: true,
    packing: Packing::BestFit,
    max_length: 64,
};

/// A file of `rows` documents of different lengths, in row groups of `group`.
fn texts(dir: &Path, name: &str, rows: usize, group: usize) -> SourceConfig {
    let path = dir.join(name);
    let text = |i: usize| format!("{name} {i} {}", "x".repeat(i * 7 % 23));
    if name.ends_with("parquet") {
        write_parquet(&path, vec![("text", strings((0..rows).map(text)))], group);
    } else {
        let lines: String = (0..rows).map(|i| format!("{{\"text\": \"{}\"}}\n", text(i))).collect();
        write(dir, name, &lines);
    }
    SourceConfig::new(path.to_str().unwrap())
}

fn config() -> TokensConfig {
    TokensConfig { max_length: 64, ..TokensConfig::default() }
}

fn dataset(sources: &[SourceConfig]) -> Arc<Dataset> {
    Arc::new(Dataset::open(sources, shared(config()), &[]).unwrap())
}

fn steps(dataset: &Arc<Dataset>, plan: BatchPlan, from: Cursor, n: usize) -> Vec<Step> {
    Stream::start(dataset.clone(), plan, from).unwrap().take(n).map(Result::unwrap).collect()
}

fn origins(steps: &[Step]) -> Vec<Origin> {
    steps.iter().flat_map(|s| &s.micro_batches).flat_map(|b| &b.sequences).map(|s| s.origin).collect()
}

fn counts(origins: &[Origin]) -> BTreeMap<Origin, usize> {
    let mut counts = BTreeMap::new();
    for origin in origins {
        *counts.entry(*origin).or_default() += 1;
    }
    counts
}

#[test]
fn an_epoch_gives_every_row_once_and_the_next_in_another_order() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(&[texts(dir.path(), "a.parquet", 40, 7)]);
    let one = PLAN;
    let all = steps(&data, one, Cursor::default(), 20);
    let (first, second) = (origins(&all[..10]), origins(&all[10..]));
    assert_eq!(counts(&first).len(), 40);
    assert_eq!(counts(&second).len(), 40);
    assert_ne!(first, second);
    assert!(first.windows(2).any(|w| w[0].row > w[1].row), "shuffled");
    assert_eq!((all[9].epoch, all[9].cursor.epoch, all[14].epoch), (1.0, 1, 1.5));
    let again = steps(&data, one, Cursor::default(), 20);
    assert_eq!(all, again);
    assert_ne!(first, origins(&steps(&data, BatchPlan { seed: 2, ..one }, Cursor::default(), 10)));
}

#[test]
fn the_order_of_a_seed_never_changes() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(&[texts(dir.path(), "a.parquet", 6, 2), texts(dir.path(), "b.jsonl", 3, 0)]);
    let plan = BatchPlan { step: StepSize::Rows(1), seed: 42, ..PLAN };
    let order: Vec<(usize, u64)> =
        origins(&steps(&data, plan, Cursor::default(), 12)).iter().map(|o| (o.source, o.row)).collect();
    let pinned = [(1, 2), (0, 0), (0, 5), (0, 1), (1, 0), (1, 1), (0, 3), (0, 4), (0, 2), (0, 2), (0, 0), (0, 1)];
    assert_eq!(order, pinned, "runs saved by earlier versions would resume with other rows");
}

#[test]
fn a_step_that_crosses_an_epoch_is_filled_from_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(&[texts(dir.path(), "a.jsonl", 6, 0)]);
    let all = steps(&data, PLAN, Cursor::default(), 3);
    assert!(all.iter().all(|s| s.rows == 4));
    assert_eq!(counts(&origins(&all)).into_values().collect::<Vec<_>>(), [2; 6]);
}

#[test]
fn without_shuffling_rows_come_in_the_order_of_files() {
    let dir = tempfile::tempdir().unwrap();
    let sources = [texts(dir.path(), "a.parquet", 5, 2), texts(dir.path(), "b.jsonl", 3, 0)];
    let plan = BatchPlan { step: StepSize::Rows(1), shuffle: false, ..PLAN };
    let order: Vec<(usize, u64)> =
        origins(&steps(&dataset(&sources), plan, Cursor::default(), 9)).iter().map(|o| (o.source, o.row)).collect();
    assert_eq!(order, [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1), (1, 2), (0, 0)]);
}

#[test]
fn weights_say_how_often_rows_come() {
    let dir = tempfile::tempdir().unwrap();
    let sources = [
        SourceConfig { weight: 2.0, ..texts(dir.path(), "a.parquet", 8, 3) },
        SourceConfig { weight: 0.5, ..texts(dir.path(), "b.jsonl", 8, 0) },
        texts(dir.path(), "c.jsonl", 4, 0),
    ];
    let data = dataset(&sources);
    assert_eq!((data.rows(), data.epoch_rows()), (20, 24));
    let all = steps(&data, PLAN, Cursor::default(), 12);
    let mut first = [0; 3];
    origins(&all[..6]).iter().for_each(|o| first[o.source] += 1);
    assert_eq!(first, [16, 4, 4]);
    // Over two epochs, half of the rows an epoch are all rows once.
    let twice = counts(&origins(&all));
    assert!(twice.iter().all(|(o, n)| *n == [4, 1, 2][o.source]), "{twice:?}");
    let mixed: Vec<usize> = origins(&all[..6]).iter().map(|o| o.source).collect();
    assert!(mixed[..12].contains(&1) && mixed[..12].contains(&2) && mixed[..12].contains(&0), "{mixed:?}");
}

#[test]
fn token_steps_fill_a_budget_and_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(&[texts(dir.path(), "a.parquet", 50, 16)]);
    let plan = BatchPlan { step: StepSize::Tokens(100), ..PLAN };
    let all = steps(&data, plan, Cursor::default(), 30);
    for (i, step) in all.iter().enumerate() {
        assert!(step.tokens <= 100 && step.rows > 0, "step {i} has {}", step.tokens);
        assert_eq!(step.tokens, step.micro_batches.iter().map(|b| b.ids.len()).sum::<usize>());
        assert_eq!(step.trained, step.micro_batches.iter().map(|b| b.trained).sum::<usize>());
        assert!(step.micro_batches.iter().all(|b| b.rows <= 2));
    }
    let one_by_one = BatchPlan { step: StepSize::Rows(1), ..PLAN };
    let rows: usize = all.iter().map(|s| s.rows).sum();
    let order = origins(&steps(&data, one_by_one, Cursor::default(), rows));
    assert_eq!(counts(&order), counts(&origins(&all)));
    let tiny = BatchPlan { step: StepSize::Tokens(1), ..PLAN };
    assert!(steps(&data, tiny, Cursor::default(), 5).iter().all(|s| s.rows == 1));
}

#[test]
fn packing_lays_out_the_same_rows() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(&[texts(dir.path(), "a.parquet", 40, 7)]);
    let plan = BatchPlan { step: StepSize::Rows(16), ..PLAN };
    let packed = steps(&data, plan, Cursor::default(), 3);
    let padded = steps(&data, BatchPlan { packing: Packing::None, ..plan }, Cursor::default(), 3);
    for (a, b) in packed.iter().zip(&padded) {
        assert_eq!(counts(&origins(std::slice::from_ref(a))), counts(&origins(std::slice::from_ref(b))));
        assert_eq!((a.tokens, a.trained, &a.cursor), (b.tokens, b.trained, &b.cursor));
        assert!(a.micro_batches.len() < b.micro_batches.len());
    }
}

#[test]
fn rows_without_anything_to_train_on_are_replaced_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let lines: String = (0..12)
        .map(|i| if i % 3 == 0 { "{\"text\": \"\"}\n".to_owned() } else { format!("{{\"text\": \"row {i}\"}}\n") })
        .collect();
    let path = write(dir.path(), "a.jsonl", &lines);
    let data = dataset(&[SourceConfig::new(path.to_str().unwrap())]);
    let all = steps(&data, BatchPlan { step: StepSize::Rows(8), ..PLAN }, Cursor::default(), 3);
    assert!(all.iter().all(|s| s.rows == 8 && s.samples == 8));
    assert_eq!(all.iter().map(|s| s.rows + s.dropped).sum::<usize>() as f64 / 12.0, all[2].epoch);
    let path = write(dir.path(), "b.jsonl", "{\"text\": \"\"}\n{\"text\": \"\"}\n");
    let barren = dataset(&[SourceConfig::new(path.to_str().unwrap())]);
    let mut stream = Stream::start(barren, PLAN, Cursor::default()).unwrap();
    assert!(matches!(stream.next(), Some(Err(DataError::NothingTrained { rows: 2 }))));
    assert!(stream.next().is_none());
}

#[test]
fn an_error_in_a_row_ends_the_stream_at_its_step() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "a.jsonl", &("{\"text\": \"ok\"}\n".repeat(30) + "{\"text\": 3}\n"));
    let data = dataset(&[SourceConfig::new(path.to_str().unwrap())]);
    let plan = BatchPlan { shuffle: false, ..PLAN };
    let mut stream = Stream::start(data, plan, Cursor::default()).unwrap();
    assert_eq!(stream.by_ref().take(7).filter(Result::is_ok).count(), 7);
    let error = stream.next().unwrap().unwrap_err().to_string();
    assert!(error.contains("row 30 (line 31), column `text`"), "{error}");
    assert!(stream.next().is_none());
}

#[test]
fn a_cursor_of_other_data_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let a = dataset(&[texts(dir.path(), "a.jsonl", 6, 0)]);
    let b = dataset(&[texts(dir.path(), "b.jsonl", 7, 0)]);
    let cursor = steps(&a, PLAN, Cursor::default(), 1).remove(0).cursor;
    let error = Stream::start(b, PLAN, cursor).err().unwrap().to_string();
    assert!(error.contains("sources of [6] rows an epoch, the data now gives [7]"), "{error}");
}

#[test]
fn held_out_rows_are_never_trained_on() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(&[texts(dir.path(), "a.parquet", 60, 16), texts(dir.path(), "b.jsonl", 40, 0)]);
    let (train, held) = data.split(0.2, 5).unwrap();
    assert_eq!(train.rows() + held.rows(), 100);
    assert!((10..32).contains(&held.rows()));
    let held_rows: Vec<Origin> = held.samples().map(|s| s.unwrap().0).collect();
    assert!(held_rows.windows(2).all(|w| w[0] < w[1]), "in order");
    let train = Arc::new(train);
    let plan = BatchPlan { step: StepSize::Rows(1), ..PLAN };
    let seen = counts(&origins(&steps(&train, plan, Cursor::default(), train.rows() as usize)));
    assert_eq!(seen.len() as u64, train.rows());
    assert!(held_rows.iter().all(|o| !seen.contains_key(o)));
    assert_ne!(train.fingerprint().unwrap(), data.fingerprint().unwrap());
}

#[test]
fn evaluation_sees_every_row_once_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(&[texts(dir.path(), "a.parquet", 20, 6), texts(dir.path(), "b.jsonl", 5, 0)]);
    let origins: Vec<Origin> = data.samples().map(|s| s.unwrap().0).collect();
    assert_eq!(origins.len(), 25);
    assert!(origins.windows(2).all(|w| w[0] < w[1]));
    let batches: Vec<_> = data.batches(8, 2, Packing::None).map(Result::unwrap).collect();
    assert!(batches.iter().all(|b| b.rows <= 2));
    let sequences: usize = batches.iter().map(|b| b.sequences.len()).sum();
    assert_eq!(sequences, 25);
}

#[test]
fn an_audit_counts_the_first_rows_of_each_source() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "m.jsonl", &"{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}\n".repeat(5));
    let masked = SourceConfig::new(path.to_str().unwrap());
    let encoder = shared(TokensConfig { max_length: 16, overlong: Overlong::Truncate, ..TokensConfig::default() });
    let data = Dataset::open(&[texts(dir.path(), "a.parquet", 20, 6), masked], encoder, &[]).unwrap();
    let audit = data.audit(AuditLimits { rows: 10, bytes: u64::MAX }).unwrap();
    assert_eq!((audit.sources[0].rows, audit.sources[1].rows), (10, 5));
    assert!(audit.sources[0].truncated > 0 && audit.sources[0].trained_share() > 0.9);
    assert_eq!((audit.sources[1].dropped, audit.sources[1].trained), (5, 0));
    let all = data.audit(AuditLimits::ALL).unwrap();
    assert_eq!((all.sources[0].rows, all.sources[1].rows), (20, 5));
}

#[test]
fn an_audit_stops_at_its_bytes_and_looks_at_a_first_row_of_any_size() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("{}\n", json!({"text": "x".repeat(1000)})).repeat(9);
    let sources =
        ["a.jsonl", "b.jsonl"].map(|name| SourceConfig::new(write(dir.path(), name, &long).to_str().unwrap()));
    let data = dataset(&sources);
    let rows = |bytes| {
        data.audit(AuditLimits { rows: 100, bytes }).unwrap().sources.iter().map(|s| s.rows).collect::<Vec<_>>()
    };
    assert_eq!(rows(7000), [3, 3]);
    assert_eq!(rows(10), [1, 1]);
}

#[test]
fn rows_are_passed_over_without_being_read() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(&[texts(dir.path(), "a.parquet", 20, 6), texts(dir.path(), "b.jsonl", 5, 0)]);
    let after = |skip| {
        let mut samples = data.samples();
        samples.skip_rows(skip);
        samples.next().map(|row| row.unwrap().0)
    };
    for skip in 0..25 {
        let (source, row) = if skip < 20 { (0, skip) } else { (1, skip - 20) };
        let origin = after(skip).unwrap();
        assert_eq!((origin.source, origin.row), (source, row), "{skip}");
    }
    assert_eq!(after(25), None);
}

#[test]
fn many_rows_stay_within_windows_and_come_once() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(&[texts(dir.path(), "a.jsonl", 9000, 0)]);
    let plan = BatchPlan { step: StepSize::Rows(500), ..PLAN };
    let all = steps(&data, plan, Cursor::default(), 18);
    assert_eq!(counts(&origins(&all)).len(), 9000);
    // The first window is whole blocks of 1024 lines, at least 4096 rows of them.
    let mut blocks: Vec<u64> = origins(&all[..8]).iter().map(|o| o.row / 1024).collect();
    blocks.sort_unstable();
    blocks.dedup();
    assert!((4..=5).contains(&blocks.len()), "{blocks:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn resuming_continues_as_if_never_stopped(
        rows in 3usize..60, group in 1usize..20, other in 1usize..30, weight in 0.2f64..2.5, seed in any::<u64>(),
        size in 1usize..40, by_tokens in any::<bool>(), shuffle in any::<bool>(), stop in 1usize..6, split in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let sources = [
            SourceConfig { weight, ..texts(dir.path(), "a.parquet", rows, group) },
            texts(dir.path(), "b.jsonl", other, 0),
        ];
        let overlong = if split { Overlong::Split } else { Overlong::Drop };
        let encoder = shared(TokensConfig { max_length: 24, overlong, ..TokensConfig::default() });
        let data = Arc::new(Dataset::open(&sources, encoder, &[]).unwrap());
        let step = if by_tokens { StepSize::Tokens(size * 8) } else { StepSize::Rows(size) };
        let plan = BatchPlan { step, seed, shuffle, max_length: 24, ..PLAN };
        let whole = steps(&data, plan, Cursor::default(), stop + 3);
        let saved = serde_json::to_string(&whole[stop - 1].cursor).unwrap();
        let resumed = steps(&data, plan, serde_json::from_str(&saved).unwrap(), 3);
        prop_assert_eq!(&whole[stop..], &resumed[..]);
        let used: usize = whole[..stop].iter().map(|s| s.rows + s.dropped).sum();
        prop_assert_eq!(&data.seek(seed, shuffle, used as u64), &whole[stop - 1].cursor);
    }
}
