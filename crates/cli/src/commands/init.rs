//! `init`: a recipe to start from; `completions`: words for the shell.

use std::io::Write;

use clap::CommandFactory;
use qwen_tune_weights::WeightError;
use qwen_tune_weights::atomic::PartialFile;

use super::{DONE, Ended, failed, written};
use crate::args::{Cli, InitArgs};
use crate::diagnostic::Diagnostic;
use crate::recipe::{Purpose, Recipe, Setting};
use crate::terminal::Printer;

const TEMPLATE: &str = include_str!("init.toml");

pub(super) fn run(args: &InitArgs, printer: &Printer) -> Ended {
    let mut text = TEMPLATE.to_owned();
    let settings: Vec<Setting> = args.settings.to_vec();
    // Mistakes in the settings are told as they would be by `train`; data and model need not exist yet.
    let example = ["model.base=model", "data[0].path=rows.parquet"].map(|s| Setting::from_set(s.to_owned()));
    Recipe::load(None, &[&example[..], &settings].concat(), Purpose::Train)?;
    for set in &args.settings.set {
        let Some((key, value)) = set.split_once('=') else { continue };
        let key = key.replace("data.0.", "data[0].");
        let Some((section, name)) = key.rsplit_once('.') else { continue };
        text = with_key(&text, section, name, value);
    }
    if args.path.exists() {
        let message = format!("`{}` exists already", args.path.display());
        return Err(Diagnostic::mistake("exists", message).hint("name another file").into());
    }
    let mut file = PartialFile::create(&args.path).map_err(|e| failed("init", &e))?;
    file.file.write_all(text.as_bytes()).map_err(|e| failed("init", &WeightError::io("write", &args.path)(e)))?;
    file.commit().map_err(|e| failed("init", &e))?;
    printer.note(&format!("wrote {}; next: `qwen-tune check {0}`", args.path.display()));
    Ok(DONE)
}

/// Replaces a key of a section, or adds it below the section's header.
fn with_key(text: &str, section: &str, key: &str, value: &str) -> String {
    let header = match section.split_once('[') {
        Some((list, _)) => format!("[[{list}]]"),
        None => format!("[{section}]"),
    };
    let quoted = value.parse::<f64>().is_err() && !matches!(value, "true" | "false") && !value.starts_with(['"', '[']);
    let line = if quoted { format!("{key} = {value:?}") } else { format!("{key} = {value}") };
    let mut out = Vec::new();
    let (mut inside, mut placed) = (false, false);
    for old in text.lines() {
        if old.starts_with('[') {
            if inside && !placed {
                out.push(line.clone());
                placed = true;
            }
            inside = old.starts_with(&header);
        }
        let is_key = inside && old.trim_start_matches('#').trim_start().split(['=', ' ']).next() == Some(key);
        if is_key && !placed {
            out.push(line.clone());
            placed = true;
        } else {
            out.push(old.to_owned());
        }
    }
    if !placed {
        if !inside {
            out.push(format!("\n{header}"));
        }
        out.push(line);
    }
    out.join("\n") + "\n"
}

pub(super) fn completions(shell: clap_complete::Shell, printer: &Printer) -> Ended {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "qwen-tune", &mut script);
    written(printer.data(&String::from_utf8_lossy(&script)))?;
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_replaced_in_their_section_or_added() {
        let text = "[model]\nbase = \"x\"\n\n[run]\n# steps = 100\n";
        assert_eq!(with_key(text, "model", "base", "y"), "[model]\nbase = \"y\"\n\n[run]\n# steps = 100\n");
        assert_eq!(with_key(text, "run", "steps", "5"), "[model]\nbase = \"x\"\n\n[run]\nsteps = 5\n");
        assert!(with_key(text, "tokens", "packing", "none").ends_with("\n[tokens]\npacking = \"none\"\n"));
    }
}
