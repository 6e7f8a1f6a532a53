//! [`Llama`]: llama.cpp, where it is installed, through `scripts/llama/run.py`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// Names the directory that `scripts/llama/install.sh` filled.
const VARIABLE: &str = "LLAMA_CPP";

/// How many of the last lines that llama.cpp says are told.
const LINES: usize = 20;

pub(super) struct Llama {
    directory: PathBuf,
}

impl Llama {
    /// None, and why, where nothing says that there is one.
    pub(super) fn installed() -> Option<Self> {
        let directory = std::env::var_os(VARIABLE).filter(|directory| !directory.is_empty());
        if directory.is_none() {
            // Not by the macro: what that prints is kept from those whose tests pass.
            let said = format!("skipped: {VARIABLE} does not say where `scripts/llama/install.sh` put llama.cpp\n");
            std::io::stderr().write_all(said.as_bytes()).unwrap();
        }
        directory.map(|directory| Self { directory: root().join(directory) })
    }

    /// The answer to each job; all in one process, since loading the library takes longer than most jobs.
    #[track_caller]
    pub(super) fn ask(&self, jobs: &[Value]) -> Vec<Value> {
        let mut process = Command::new("python3")
            .arg(root().join("scripts/llama/run.py"))
            .arg(&self.directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines: String = jobs.iter().map(|job| format!("{job}\n")).collect();
        // One that has ended no longer reads: what it said on its end tells more.
        let _ = process.stdin.take().unwrap().write_all(lines.as_bytes());
        let output = process.wait_with_output().unwrap();
        let answers: Vec<Value> =
            String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let said = String::from_utf8_lossy(&output.stderr);
        let last: Vec<&str> = said.lines().rev().take(LINES).collect();
        let last = last.into_iter().rev().collect::<Vec<_>>().join("\n");
        assert!(output.status.success(), "{}, in {:?}: {last}", output.status, jobs.get(answers.len()));
        assert_eq!(answers.len(), jobs.len());
        answers
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
