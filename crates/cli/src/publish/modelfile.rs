//! Ollama's Modelfile (<https://docs.ollama.com/modelfile>): which GGUF file, the template in Go's syntax, where answers
//! end, how to sample.
//!
//! A chat template cannot be translated from Jinja to Go in general. Whether it frames a conversation as ChatML is tried
//! out: then ChatML is what the Modelfile says, with the opening that the template gives an answer. Otherwise the
//! template is left to Ollama, which knows the common ones by what the GGUF file holds.

use qwen_tune_data::{Encoder, Message};
use serde_json::{Map, Value};

/// A Modelfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Modelfile {
    /// Its text.
    pub text: String,
    /// Whether it holds a template of its own.
    pub has_template: bool,
}

/// Sampling settings of `generation_config.json` that Ollama has too.
const PARAMETERS: [(&str, &str); 5] = [
    ("temperature", "temperature"),
    ("top_p", "top_p"),
    ("top_k", "top_k"),
    ("min_p", "min_p"),
    ("repetition_penalty", "repeat_penalty"),
];

/// The Modelfile of `file`, which lies beside it.
#[must_use]
pub fn modelfile(file: &str, encoder: &Encoder, stop_ids: &[u32], generation_config: Option<&Value>) -> Modelfile {
    let mut text = format!("FROM ./{file}\n");
    let framing = chatml(encoder);
    if let Some(framing) = &framing {
        text.push_str(&format!("\nTEMPLATE \"\"\"{}\"\"\"\n", framing.template()));
        if let Some(system) = &framing.system {
            text.push_str(&format!("SYSTEM \"\"\"{system}\"\"\"\n"));
        }
    }
    text.push('\n');
    for stop in stop_ids.iter().filter_map(|&id| encoder.token(id)) {
        text.push_str(&format!("PARAMETER stop \"{stop}\"\n"));
    }
    for (theirs, ours) in PARAMETERS {
        let value = generation_config.and_then(|config| config.get(theirs)).filter(|value| value.is_number());
        if let Some(value) = value {
            text.push_str(&format!("PARAMETER {ours} {value}\n"));
        }
    }
    Modelfile { text, has_template: framing.is_some() }
}

/// A template that frames messages as ChatML does.
struct ChatMl {
    /// The system message that it adds where there is none.
    system: Option<String>,
    /// What it puts behind the head of an answer.
    opening: String,
}

impl ChatMl {
    /// The same framing in Go's template language. Ollama hands a system message over among the messages, also that of
    /// `SYSTEM`; with `.System` before them it would stand there twice.
    fn template(&self) -> String {
        let turn = "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}";
        format!("{turn}<|im_start|>assistant\n{}", self.opening)
    }
}

fn chatml(encoder: &Encoder) -> Option<ChatMl> {
    let render = |messages: &[(&str, &str)]| {
        let messages: Vec<Message> = messages.iter().map(|(role, text)| Message::new(role, text)).collect();
        encoder.render_chat(&messages, None, true, &Map::new()).ok()
    };
    let frame = |messages: &[(&str, &str)]| -> String {
        messages.iter().map(|(role, text)| format!("<|im_start|>{role}\n{text}<|im_end|>\n")).collect()
    };
    let head = "<|im_start|>assistant\n";
    let dialogue = [("system", "Answer briefly."), ("user", "Hello?"), ("assistant", "Hello."), ("user", "Why?")];
    let opening = render(&dialogue)?.strip_prefix(&frame(&dialogue))?.strip_prefix(head)?.to_owned();
    let question = [("user", "Hello?")];
    let alone = render(&question)?;
    let before = alone.strip_suffix(&format!("{}{head}{opening}", frame(&question)))?;
    let system = match before {
        "" => None,
        text => Some(text.strip_prefix("<|im_start|>system\n")?.strip_suffix("<|im_end|>\n")?.to_owned()),
    };
    // Quotes and braces would end the text or begin an action.
    let is_plain = |text: &str| !text.contains("\"\"\"") && !text.contains("{{");
    (is_plain(&opening) && system.as_deref().is_none_or(is_plain)).then_some(ChatMl { system, opening })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_frames_each_message_once() {
        let template = ChatMl { system: None, opening: "<think>\n".to_owned() }.template();
        assert_eq!(
            template,
            "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n<think>\n"
        );
    }
}
