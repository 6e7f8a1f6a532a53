//! SIGKILL at any moment: the run that goes on is the run that was never stopped.
//!
//! `KILL_ROUNDS` sets the number of rounds (10), `KILL_SEED` what they are drawn from; with `KILL_REPORT` every kill is
//! written to that file.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use super::scene::{Scene, assert_same, quietly, wait_until};

/// SplitMix64, as much as a test needs.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 32) % n
    }
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().map_or(otherwise, |text| text.parse().unwrap())
}

/// Names directly in a directory.
fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

fn has_partial(directory: &Path, of: &str) -> bool {
    names(directory).iter().any(|name| name.starts_with(&format!(".{of}")) && name.contains(".partial-"))
}

/// Where in its life a run is, by what lies in its directory.
fn moment(run: &Path) -> String {
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    if has_partial(&run.join("checkpoints"), "step-") {
        "writing or removing a checkpoint".to_owned()
    } else if has_partial(&run.join("export"), "") {
        "writing an export".to_owned()
    } else if has_partial(run, "adapter") || run.join("adapter").exists() {
        "between adapter and end".to_owned()
    } else if metrics.is_empty() {
        (if run.join("plan.json").exists() { "loading" } else { "planning" }).to_owned()
    } else {
        format!("after {} lines of metrics", metrics.lines().count())
    }
}

#[test]
fn a_killed_run_that_goes_on_equals_the_uninterrupted_one() {
    let rounds = number("KILL_ROUNDS", 10);
    let mut dice = Dice(number("KILL_SEED", u64::from(std::process::id())));
    let seed = dice.0;
    let mut report: BTreeMap<String, u64> = BTreeMap::new();
    let whole = [Scene::lora as fn() -> Scene, Scene::full, Scene::experts, Scene::compact, Scene::whole].map(|make| {
        let scene = make();
        let started = Instant::now();
        scene.succeed(scene.train(false, &[]));
        (make, started.elapsed(), scene.files())
    });
    for round in 0..rounds {
        let (make, duration, expected) = &whole[(round % 5) as usize];
        let scene = make();
        let run = scene.run();
        let mut kills = Vec::new();
        for _ in 0..=dice.below(3) {
            let mut child = quietly(scene.train(true, &[]));
            let started = Instant::now();
            // Small windows are waited for, the rest of the time is hit by chance.
            let wish = dice.below(5);
            let delay = Duration::from_micros(dice.below(duration.as_micros() as u64));
            let alive = wait_until(&mut child, || match wish {
                0 => has_partial(&run.join("checkpoints"), "step-"),
                1 => has_partial(&run.join("export"), "") || has_partial(&run, "adapter"),
                _ => started.elapsed() >= delay,
            });
            if wish < 2 {
                std::thread::sleep(Duration::from_micros(dice.below(4000)));
            }
            if !alive {
                break;
            }
            let _ = child.kill();
            if !child.wait().unwrap().success() {
                kills.push(moment(&run));
            }
        }
        scene.succeed(scene.train(true, &[]));
        assert_same(expected, &scene.files(), &format!("seed {seed}, round {round}, killed {kills:?}"));
        kills.into_iter().for_each(|kill| *report.entry(kill).or_default() += 1);
    }
    if let Ok(path) = std::env::var("KILL_REPORT") {
        let mut file = std::fs::File::create(path).unwrap();
        writeln!(file, "seed {seed}, {rounds} rounds, {} kills", report.values().sum::<u64>()).unwrap();
        report.iter().for_each(|(moment, count)| writeln!(file, "{count:4} {moment}").unwrap());
    }
}
