//! `run.memory` is kept to: the same recipe under shrinking budgets, what it holds counted by an allocator.
//!
//! A binary of its own with one test: the count is that of the whole process.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, missing_docs)]
#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout};
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};

use clap::Parser;
use qwen_tune::args::Cli;
use qwen_tune::buffers::Buffers;
use serde_json::Value;

/// The program's own allocator, counting.
struct Counting(Buffers);

static LIVE: AtomicI64 = AtomicI64::new(0);
static PEAK: AtomicI64 = AtomicI64::new(0);

// SAFETY: the program's allocator does all the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let size = layout.size() as i64;
        PEAK.fetch_max(LIVE.fetch_add(size, Ordering::Relaxed) + size, Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { self.0.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting(Buffers::new());

const RECIPE: &str = "recipes/smoke/qwen3-lora.toml";

fn run(words: &[&str]) {
    let cli = Cli::parse_from(std::iter::once("qwen-tune").chain(words.iter().copied()));
    assert_eq!(qwen_tune::commands::run(&cli), 0, "{words:?}");
}

fn resident() -> u64 {
    qwen_tune_train::process::memory("VmRSS:").unwrap()
}

/// Losses of a run and what its plan chose.
fn outcome(run: &Path) -> (Vec<f64>, [u64; 2]) {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let losses = events.filter_map(|event| event["loss"].as_f64()).collect();
    let plan: Value = serde_json::from_slice(&std::fs::read(run.join("plan.json")).unwrap()).unwrap();
    (losses, ["micro_batch", "recompute"].map(|key| plan[key].as_u64().unwrap()))
}

#[test]
fn a_run_holds_no_more_than_its_budget_and_learns_the_same() {
    let home = tempfile::tempdir().unwrap();
    let train = |name: &str, memory: u64| {
        let dir = home.path().join(name);
        let (dir_key, memory_key) = (format!("run.dir={}", dir.display()), format!("run.memory={memory}B"));
        let settings = ["run.global_batch=64", "run.steps=3", "export=[]", &dir_key, &memory_key]
            .map(|set| ["--set", set])
            .concat();
        // What lies in no buffer of ours: code, files that are mapped, other runs' leavings.
        let before = resident() as i64 - LIVE.load(Ordering::SeqCst);
        PEAK.store(LIVE.load(Ordering::SeqCst), Ordering::SeqCst);
        run(&[&["train", RECIPE], &settings[..]].concat());
        (before + PEAK.load(Ordering::SeqCst), outcome(&dir))
    };
    // Code and threads are there from then on.
    train("warm", 1 << 34);
    let (_, (expected, widest)) = train("free", 1 << 34);
    assert_eq!(widest[1], 0, "with room for everything nothing runs again");
    let mut seen = vec![widest];
    for more in [300, 140, 60, 36, 26] {
        let budget = resident() + (more << 20);
        let (held, (losses, way)) = train(&more.to_string(), budget);
        assert!(held as u64 <= budget, "{more} MiB beside the program: held {held} of {budget}, {way:?}");
        assert_eq!(losses.len(), expected.len());
        for (loss, expected) in losses.iter().zip(&expected) {
            assert!((loss / expected - 1.0).abs() < 1e-6, "{more} MiB: {loss} for {expected}, {way:?}");
        }
        seen.push(way);
    }
    assert!(seen.windows(2).all(|two| two[0][0] >= two[1][0] && two[0][1] <= two[1][1]), "{seen:?}");
    let last = seen[seen.len() - 1];
    assert!(last[0] == 1 && last[1] > 0, "the smallest budget asks for everything: {seen:?}");
}
