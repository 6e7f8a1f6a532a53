//! Chat templates: where a model's is found, and how conversations are given to it.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use minijinja::Value;
use serde_json::{Map, Value as Json};

use super::engine::Compiled;
use super::moment::Moment;
use super::source;
use crate::error::{DataError, RowError};
use crate::row::Message;

/// ChatML without anything else, for models that bring no template.
const BUILT_IN: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

const BUILT_IN_ORIGIN: &str = "built-in ChatML";

/// A compiled chat template, and the variant for conversations with tools where there is one.
#[derive(Debug)]
pub struct ChatTemplate {
    main: Arc<Compiled>,
    tool_use: Option<Arc<Compiled>>,
    origin: String,
}

/// A rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// Byte ranges that the template's `{% generation %}` tags enclose.
    pub generation: Vec<Range<usize>>,
}

/// Names of a message's reasoning; the first that is there counts.
pub(crate) const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

impl ChatTemplate {
    /// The template of a model directory: `chat_template.jinja`, else `chat_template` of `tokenizer_config.json` (one
    /// template or a list of named ones), else plain ChatML. `given`, a path or the template itself, goes before all.
    pub(crate) fn of_model(
        directory: &Path,
        tokenizer_config: &Json,
        given: Option<&str>,
        today: Moment,
    ) -> Result<Self, DataError> {
        if let Some(given) = given {
            let (source, origin) = read_given(given)?;
            return Self::compile(&source, None, origin, today);
        }
        let file = directory.join("chat_template.jinja");
        if file.is_file() {
            let tools = directory.join("additional_chat_templates").join("tool_use.jinja");
            let tools = if tools.is_file() { Some(read(&tools)?) } else { None };
            return Self::compile(&read(&file)?, tools.as_deref(), format!("`{}`", file.display()), today);
        }
        let origin = || format!("`{}`", directory.join("tokenizer_config.json").display());
        match tokenizer_config.get("chat_template") {
            None | Some(Json::Null) => Self::compile(BUILT_IN, None, BUILT_IN_ORIGIN.into(), today),
            Some(Json::String(source)) => Self::compile(source, None, origin(), today),
            Some(Json::Array(named)) => {
                let find = |name: &str| {
                    let entry = named.iter().find(|t| t.get("name").and_then(Json::as_str) == Some(name))?;
                    entry.get("template").and_then(Json::as_str)
                };
                match (find("default").or(find("tool_use")), find("tool_use")) {
                    (Some(main), tools) => Self::compile(main, tools, origin(), today),
                    (None, _) => Err(DataError::Template {
                        origin: origin(),
                        message: "the list of templates has neither `default` nor `tool_use`".into(),
                    }),
                }
            }
            Some(_) => Err(DataError::Template {
                origin: origin(),
                message: "`chat_template` is neither text nor a list of templates".into(),
            }),
        }
    }

    /// Compiles a template; `origin` names it in messages.
    pub(crate) fn compile(
        main: &str,
        tool_use: Option<&str>,
        origin: String,
        today: Moment,
    ) -> Result<Self, DataError> {
        let compile = |source: &str| {
            Compiled::new(source, today)
                .map(Arc::new)
                .map_err(|message| DataError::Template { origin: origin.clone(), message })
        };
        Ok(Self { main: compile(main)?, tool_use: tool_use.map(compile).transpose()?, origin })
    }

    /// Where it came from.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    pub(crate) fn is_built_in(&self) -> bool {
        self.origin == BUILT_IN_ORIGIN
    }

    /// Whether the template's text names a role.
    pub(crate) fn names(&self, role: &str) -> bool {
        !role.is_empty() && [&self.main].into_iter().chain(&self.tool_use).any(|t| t.source().contains(role))
    }

    /// The template's text.
    #[must_use]
    pub fn source(&self) -> &str {
        self.main.source()
    }

    /// Whether the template marks what the assistant writes.
    #[must_use]
    pub fn has_generation(&self, tools: bool) -> bool {
        self.variant(tools).has_generation()
    }

    fn variant(&self, tools: bool) -> &Arc<Compiled> {
        self.tool_use.as_ref().filter(|_| tools).unwrap_or(&self.main)
    }

    /// Renders a conversation. `vars` may override the special tokens but not what is given here.
    pub fn render(
        &self,
        messages: &[Message],
        tools: Option<&Json>,
        add_generation_prompt: bool,
        vars: &Map<String, Json>,
    ) -> Result<Rendered, RowError> {
        let variant = self.variant(tools.is_some());
        let messages: Vec<Value> = messages.iter().map(|m| turn(m.fields())).collect();
        let mut context: Vec<(&str, Value)> = vars.iter().map(|(k, v)| (k.as_str(), value(v))).collect();
        context.push(("messages", messages.into()));
        context.push(("tools", tools.map_or(Value::from(()), value)));
        context.push(("documents", Value::from(())));
        context.push(("add_generation_prompt", add_generation_prompt.into()));
        let failed = |message: String| RowError::Template { message };
        let text = variant.render(Value::from_pairs(context)).map_err(failed)?;
        if !variant.has_generation() {
            return Ok(Rendered { text, generation: Vec::new() });
        }
        let (text, generation) =
            source::cut(&text).ok_or_else(|| failed("its `generation` tags are nested or not paired".into()))?;
        Ok(Rendered { text, generation })
    }
}

/// A JSON value as the template engine's, keeping the order of keys.
fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(b) => (*b).into(),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => n.into(),
            (None, Some(n)) => n.into(),
            _ => n.as_f64().unwrap_or(f64::NAN).into(),
        },
        Json::String(text) => text.as_str().into(),
        Json::Array(items) => items.iter().map(value).collect::<Vec<_>>().into(),
        Json::Object(fields) => object(fields),
    }
}

/// A message. Reasoning is passed under each name that templates read it by, as transformers does.
fn turn(fields: &Map<String, Json>) -> Value {
    let reasoning = REASONING.iter().find_map(|name| fields.get(*name).filter(|v| !v.is_null()));
    let Some(reasoning) = reasoning else { return object(fields) };
    let mut all = fields.clone();
    all.entry("thinking").or_insert_with(|| reasoning.clone());
    all.insert("reasoning_content".into(), reasoning.clone());
    object(&all)
}

fn object(fields: &Map<String, Json>) -> Value {
    Value::from_pairs(fields.iter().map(|(k, v)| (k.as_str(), value(v))))
}

fn read(path: &Path) -> Result<String, DataError> {
    std::fs::read_to_string(path).map_err(|e| DataError::io(path, e))
}

/// A template from the recipe: text with a Jinja tag is the template itself, anything else is a path.
fn read_given(given: &str) -> Result<(String, String), DataError> {
    if given.contains("{%") || given.contains("{{") {
        return Ok((given.to_owned(), "of the recipe".into()));
    }
    let path = PathBuf::from(given);
    Ok((read(&path)?, format!("`{}`", path.display())))
}
