//! Chat templates: Jinja set up as transformers sets it up, for templates that nobody vouches for.
//!
//! A template comes with a checkpoint from the internet. It can compute, but it can neither load anything nor run for
//! long: every instruction and every byte it makes costs fuel. What fuel does not bound is native stack, which a value
//! of lists within lists takes when it is printed or dropped; so rendering happens on a thread whose stack has room
//! for the deepest value that the fuel can build.

use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value, escape_formatter};
use minijinja_contrib::pycompat;
use serde_json::{Map, Value as Json};

use super::generation;
use super::python::{self, Moment};
use crate::error::{DataError, RowError};
use crate::row::Message;

/// Some tenths of a second of work, or 32 MB of text made on the way: a thousand turns with tools take a third.
const FUEL: u64 = 500_000;
/// A level of nesting costs at least 1.5 of fuel to build and was seen to take up to 670 bytes of stack to print. Only
/// what is touched becomes memory.
const STACK: usize = 256 << 20;
/// Calls of macros and loops within one another; each takes native stack.
const RECURSION: usize = 60;
/// Bytes of rendered text.
const MAX_OUTPUT: usize = 64 << 20;

/// ChatML without anything else, for models that bring no template.
const BUILT_IN: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

const BUILT_IN_ORIGIN: &str = "built-in ChatML";

/// A compiled chat template, and the variant for conversations with tools where there is one.
#[derive(Debug)]
pub struct ChatTemplate {
    main: Compiled,
    tool_use: Option<Compiled>,
    origin: String,
}

#[derive(Debug)]
struct Compiled {
    environment: Environment<'static>,
    source: String,
    generation: bool,
}

/// A rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// Byte ranges that the template's `{% generation %}` tags enclose.
    pub generation: Vec<Range<usize>>,
}

const NAME: &str = "chat_template";

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
                .map_err(|error| DataError::Template { origin: origin.clone(), message: describe(&error) })
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
        !role.is_empty() && [&self.main].into_iter().chain(&self.tool_use).any(|t| t.source.contains(role))
    }

    /// The template's text.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.main.source
    }

    /// Whether the template marks what the assistant writes.
    #[must_use]
    pub fn has_generation(&self, tools: bool) -> bool {
        self.variant(tools).generation
    }

    fn variant(&self, tools: bool) -> &Compiled {
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
        std::thread::scope(|scope| {
            let render = || self.render_here(messages, tools, add_generation_prompt, vars);
            let failed = |message: String| RowError::Template { message };
            std::thread::Builder::new()
                .name("template".into())
                .stack_size(STACK)
                .spawn_scoped(scope, render)
                .map_err(|error| failed(format!("no thread to run it on: {error}")))?
                .join()
                .unwrap_or_else(|_| Err(failed("the template engine panicked".into())))
        })
    }

    fn render_here(
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
        let mut out = Bounded(Vec::new());
        variant
            .environment
            .get_template(NAME)
            .and_then(|t| t.render_captured_to(Value::from_pairs(context), &mut out).map(drop))
            .map_err(|error| failed(describe(&error)))?;
        let text = String::from_utf8(out.0).map_err(|error| failed(error.to_string()))?;
        if !variant.generation {
            return Ok(Rendered { text, generation: Vec::new() });
        }
        let (text, generation) =
            generation::cut(&text).ok_or_else(|| failed("its `generation` tags are nested or not paired".into()))?;
        Ok(Rendered { text, generation })
    }
}

impl Compiled {
    fn new(source: &str, today: Moment) -> Result<Self, Error> {
        // As in Jinja, where every line of a template ends in a plain newline.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let rewritten = generation::rewrite(&source);
        let generation = rewritten.is_some();
        let mut environment = environment(today)?;
        environment.add_template_owned(NAME, rewritten.unwrap_or_else(|| source.clone()))?;
        Ok(Self { environment, source, generation })
    }
}

fn environment(today: Moment) -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_fuel(Some(FUEL));
    env.set_recursion_limit(RECURSION);
    env.set_debug(false);
    env.set_unknown_method_callback(method);
    env.set_formatter(|out, state, value| match value.kind() {
        ValueKind::Number if !value.is_integer() => escape_formatter(out, state, &python::text(value).into()),
        _ => escape_formatter(out, state, value),
    });
    env.remove_global("debug");
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    env.add_function("strftime_now", move |format: String| today.strftime(&format));
    env.add_filter("tojson", tojson);
    env.add_filter("string", |value: &Value| python::text(value));
    // In Python, text and mappings have a length and can be indexed and iterated.
    env.add_test("sequence", |value: &Value| {
        use ValueKind::{Map, Seq, String, Undefined};
        matches!(value.kind(), Map | Seq | String | Undefined)
    });
    env.add_test("iterable", |value: &Value| {
        use ValueKind::{Iterable, Map, Seq, String, Undefined};
        matches!(value.kind(), Map | Seq | String | Undefined | Iterable)
    });
    Ok(env)
}

#[expect(clippy::needless_pass_by_value, reason = "the engine hands over arguments by value")]
fn tojson(
    state: &State,
    value: &Value,
    ensure_ascii: Option<bool>,
    indent: Option<Value>,
    args: Kwargs,
) -> Result<Value, Error> {
    let text = python::Json::from_args(ensure_ascii, indent, &args)?.dump(value)?;
    state.consume_fuel(text.len() as u64 / 8)?;
    Ok(text.into())
}

/// Python's methods of text that the engine's own compatibility layer lacks.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let (Some(text), [arg]) = (value.as_str(), args)
        && let Some(arg) = arg.as_str()
    {
        match name {
            "removeprefix" => return Ok(text.strip_prefix(arg).unwrap_or(text).into()),
            "removesuffix" => return Ok(text.strip_suffix(arg).unwrap_or(text).into()),
            "partition" if !arg.is_empty() => return Ok(three(text.split_once(arg), arg, [text, "", ""])),
            "rpartition" if !arg.is_empty() => return Ok(three(text.rsplit_once(arg), arg, ["", "", text])),
            _ => {}
        }
    }
    pycompat::unknown_method_callback(state, value, name, args)
}

/// What `partition` returns: the parts around `arg`, or the text as a `whole`.
fn three(found: Option<(&str, &str)>, arg: &str, whole: [&str; 3]) -> Value {
    let parts = found.map_or(whole, |(before, after)| [before, arg, after]);
    parts.map(str::to_owned).to_vec().into()
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

/// "message (line 3)".
fn describe(error: &Error) -> String {
    let mut text = match error.detail() {
        Some(detail) if error.kind() == ErrorKind::InvalidOperation => detail.to_owned(),
        Some(detail) => format!("{}: {detail}", error.kind()),
        None if error.kind() == ErrorKind::OutOfFuel => "it runs too long".into(),
        None => error.kind().to_string(),
    };
    if let Some(line) = error.line() {
        text.push_str(&format!(" (line {line})"));
    }
    text
}

/// Text up to a limit.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT {
            return Err(io::Error::other("the rendered text is longer than 64 MiB"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
