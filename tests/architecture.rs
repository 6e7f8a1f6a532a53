//! Rules about the source itself: which crate may use which, who may know backends, who may print.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Our crates that each of our crates may depend on.
fn allowed() -> BTreeMap<&'static str, &'static [&'static str]> {
    BTreeMap::from([
        ("qwen-tune-weights", &[][..]),
        ("qwen-tune-data", &[]),
        ("qwen-tune-kernels", &[]),
        ("qwen-tune-qwen", &["qwen-tune-weights"]),
        ("qwen-tune-model", &["qwen-tune-weights", "qwen-tune-qwen", "qwen-tune-kernels"]),
        (
            "qwen-tune-train",
            &["qwen-tune-weights", "qwen-tune-qwen", "qwen-tune-kernels", "qwen-tune-model", "qwen-tune-data"],
        ),
    ])
}

#[test]
fn crate_arrows_point_downwards_only() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let allowed = allowed();
    let mut seen = 0;
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let Some(may) = allowed.get(name) else { continue };
        seen += 1;
        for dependency in package["dependencies"].as_array().unwrap() {
            let dependency = dependency["name"].as_str().unwrap();
            assert!(
                !dependency.starts_with("qwen-tune") || may.contains(&dependency),
                "`{name}` must not use `{dependency}`"
            );
        }
    }
    assert_eq!(seen, allowed.len());
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn each_source(mut check: impl FnMut(&str, &str)) {
    let mut files = Vec::new();
    sources(&root().join("crates"), &mut files);
    assert!(files.len() > 50);
    for file in files {
        let name = file.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/");
        if !name.contains("cubecl-llvm") {
            check(&name, &std::fs::read_to_string(&file).unwrap());
        }
    }
}

#[test]
fn only_one_file_above_the_kernels_knows_backends() {
    each_source(|name, text| {
        let knows = text.contains("feature = \"cuda\"") || text.contains("Device::flex()");
        let may = name.ends_with("train/src/device.rs") || name.starts_with("crates/kernels/");
        assert!(!knows || may, "`{name}` chooses a backend");
    });
}

#[test]
fn only_the_terminal_prints() {
    each_source(|name, text| {
        // Tests say on which device they ran.
        let is_test = name.ends_with("/kernels/src/oracle.rs");
        let may = name.contains("/terminal/") || name.contains("/benches/") || name.contains("/examples/") || is_test;
        let prints = text.lines().any(|line| {
            let line = line.trim_start();
            !line.starts_with("//")
                && (line.contains("println!(") || line.contains("print!("))
                && !line.contains("writeln!")
        });
        assert!(may || !prints, "`{name}` prints");
    });
}

#[test]
fn no_module_is_named_for_leftovers() {
    each_source(|name, _| {
        for bad in ["utils", "util", "common", "core", "helpers", "misc"] {
            let module = format!("/{bad}.rs");
            assert!(!name.ends_with(&module) && !name.contains(&format!("/{bad}/")), "`{name}`");
        }
    });
}
