//! `metrics.jsonl`: one object a line for every step, bad step, step that ran out of memory and evaluation, flushed at once, so that a reader sees each step as it
//! ends and a killed run loses none.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use crate::event::{Event, Sink};

/// Writes `metrics.jsonl`.
pub struct Jsonl {
    file: File,
    path: PathBuf,
}

impl Jsonl {
    /// Begins an empty file.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::create(path).map_err(|e| at("create", path, &e))?, path: path.to_owned() })
    }

    /// Goes on after `step`: lines of later steps, written by a run that died before its next checkpoint, are cut off.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn resume(path: &Path, step: u64) -> io::Result<Self> {
        let mut kept = 0;
        if let Ok(file) = File::open(path) {
            let mut reader = BufReader::new(file);
            let mut line = Vec::new();
            // As bytes: what a power cut leaves need not be text.
            while reader.read_until(b'\n', &mut line)? > 0 {
                let at = serde_json::from_slice::<serde_json::Value>(&line).ok().and_then(|v| v["step"].as_u64());
                if !line.ends_with(b"\n") || at.is_none_or(|at| at > step) {
                    break;
                }
                kept += line.len() as u64;
                line.clear();
            }
        }
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        file.set_len(kept)?;
        Ok(Self { file, path: path.to_owned() })
    }
}

/// An error that names its file: the sink is one of several.
fn at(action: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {action} `{}`: {error}", path.display()))
}

impl Sink for Jsonl {
    fn event(&mut self, event: &Event) -> io::Result<()> {
        if matches!(event, Event::Step(_) | Event::Eval(_) | Event::BadStep(_) | Event::OutOfMemory { .. }) {
            let mut line = serde_json::to_string(event)?;
            line.push('\n');
            let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.flush());
            written.map_err(|e| at("write", &self.path, &e))?;
        }
        if matches!(event, Event::Saved { .. }) {
            // The checkpoint is on the device; so are the lines that a run going on from it keeps.
            self.file.sync_data().map_err(|e| at("sync", &self.path, &e))?;
        }
        Ok(())
    }
}
