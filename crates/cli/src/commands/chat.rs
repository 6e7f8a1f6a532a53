//! `chat`: a conversation on the terminal, or line by line from a pipe.

use std::io::BufRead;

use qwen_tune_data::Message;

use super::generate::{answer, prompt_ids};
use super::loaded::load;
use super::{DONE, Ended, failed, written};
use crate::args::ChatArgs;
use crate::recipe::{Parsed, Purpose, Recipe};
use crate::terminal::Printer;

pub(super) fn run(args: &ChatArgs, printer: &Printer) -> Ended {
    let settings = args.model.settings(&args.settings);
    let Parsed { recipe, doc, warnings } = Recipe::load(None, &settings, Purpose::Use)?;
    printer.diagnostics(&warnings);
    let loaded = load(&recipe, &doc, args.model.adapter.as_deref())?;
    printer.note("a line is a message; an empty line or the end of input ends the conversation");
    let mut messages: Vec<Message> = Vec::new();
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| failed("input", &e))?;
        if line.trim().is_empty() {
            break;
        }
        messages.push(Message::new("user", &line));
        let prompt = prompt_ids(&loaded, &messages, None)?;
        let (text, _) = answer(&loaded, &recipe, &prompt, |piece| written(printer.data(piece)))?;
        written(printer.line(""))?;
        messages.push(Message::new("assistant", &text));
    }
    Ok(DONE)
}
