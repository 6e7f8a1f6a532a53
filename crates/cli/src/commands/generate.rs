//! `generate`: the answer to one prompt or conversation.

use qwen_tune_data::Message;
use qwen_tune_model::{Generation, Pass, generate};
use serde_json::{Map, json};

use super::loaded::{LoadedModel, load};
use super::{DONE, Ended, failed, written};
use crate::args::GenerateArgs;
use crate::diagnostic::{Diagnostic, Diagnostics, Place};
use crate::recipe::{Parsed, Purpose, Recipe};
use crate::terminal::Printer;

pub(super) fn run(args: &GenerateArgs, printer: &Printer) -> Ended {
    let settings = args.model.settings(&args.settings);
    let Parsed { recipe, doc, warnings } = Recipe::load(None, &settings, Purpose::Use)?;
    printer.diagnostics(&warnings);
    let messages = messages(args)?;
    let loaded = load(&recipe, &doc, args.model.adapter.as_deref())?;
    let prompt = prompt_ids(&loaded, &messages, args.prompt.as_deref())?;
    let (text, made) =
        answer(
            &loaded,
            &recipe,
            &prompt,
            |piece| {
                if printer.is_json() { Ok(()) } else { written(printer.data(piece)) }
            },
        )?;
    if printer.is_json() {
        let value = json!({
            "text": text,
            "token_ids": made.ids,
            "prompt_tokens": prompt.len(),
            "stop_reason": made.reason,
        });
        written(printer.json(&value))?;
    } else {
        written(printer.line(""))?;
    }
    Ok(DONE)
}

/// Tokens of the conversation with the template's generation prompt; a plain prompt where there is no template.
pub(super) fn prompt_ids(
    loaded: &LoadedModel,
    messages: &[Message],
    plain: Option<&str>,
) -> Result<Vec<u32>, Diagnostics> {
    let text = match (loaded.encoder.template(), plain) {
        (None, Some(plain)) => plain.to_owned(),
        _ => loaded.encoder.render_chat(messages, None, true, &Map::new()).map_err(|e| failed("template", &e))?,
    };
    let ids = loaded.encoder.encode_text(&text).map_err(|e| failed("tokenizer", &e))?;
    let limit = loaded.decoder.spec.max_positions;
    if ids.is_empty() {
        return Err(Diagnostic::mistake("empty-prompt", "the prompt has no tokens").into());
    }
    if ids.len() >= limit {
        let message = format!("the prompt has {} tokens, the model has room for {limit}", ids.len());
        return Err(Diagnostic::mistake("long-prompt", message).into());
    }
    Ok(ids)
}

/// Generates and hands out text as it becomes whole.
pub(super) fn answer(
    loaded: &LoadedModel,
    recipe: &Recipe,
    prompt: &[u32],
    mut each: impl FnMut(&str) -> Result<(), Diagnostics>,
) -> Result<(String, Generation), Diagnostics> {
    let pass = Pass::plain(&loaded.parameters);
    let mut stream = loaded.encoder.text_stream(true);
    let mut text = String::new();
    let mut fault = None;
    let made = generate(&loaded.decoder, &pass, prompt, &loaded.stop_ids(), &recipe.generate, |id| {
        let told = stream.push(id).map_err(|e| failed("tokenizer", &e)).and_then(|piece| {
            text.push_str(&piece);
            each(&piece)
        });
        fault = told.err();
        fault.is_none()
    });
    if let Some(fault) = fault {
        return Err(fault);
    }
    let rest = stream.finish().map_err(|e| failed("tokenizer", &e))?;
    text.push_str(&rest);
    each(&rest)?;
    Ok((text, made))
}

fn messages(args: &GenerateArgs) -> Result<Vec<Message>, Diagnostics> {
    let Some(path) = &args.messages else {
        return Ok(vec![Message::new("user", args.prompt.as_deref().unwrap_or_default())]);
    };
    let fault = |message: String| {
        let place = Place { file: path.clone(), ..Place::default() };
        Diagnostics::from(
            Diagnostic::mistake("messages", message)
                .expected("a JSON list of objects with `role` and `content`")
                .place(place),
        )
    };
    let text = std::fs::read_to_string(path).map_err(|e| fault(format!("cannot read `{}`: {e}", path.display())))?;
    let value: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| fault(format!("`{}` is not JSON: {e}", path.display())))?;
    let list = value.get("messages").cloned().unwrap_or(value);
    let messages = qwen_tune_data::read_messages(list).map_err(|e| fault(format!("`{}`: {e}", path.display())))?;
    if messages.is_empty() {
        return Err(fault(format!("`{}` holds no messages", path.display())));
    }
    Ok(messages)
}
