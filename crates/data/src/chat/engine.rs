//! The template engine, set up as transformers sets its own up, for templates that nobody vouches for.
//!
//! A template comes with a checkpoint from the internet. It can compute, but it can neither load anything nor run for
//! long: every instruction and every byte it makes costs fuel, and what fuel does not see is bounded by
//! [`super::bounds`].

use std::io::{self, Write};
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value, escape_formatter};
use minijinja_contrib::pycompat;

use super::bounds::{self, MAX_TEXT};
use super::moment::Moment;
use super::python;
use super::source::{self, KEPT, KEPT_IN_NAMESPACE};

/// Some tenths of a second of work, or 32 MB of text made on the way: a thousand turns with tools take a third.
const FUEL: u64 = 500_000;
/// Depth of macros (5 each) and loops (1 each) within one another. Macros that write JSON recurse into tool schemas.
const RECURSION: usize = 400;

const NAME: &str = "chat_template";

/// A template ready to render.
#[derive(Debug)]
pub(super) struct Compiled {
    environment: Environment<'static>,
    source: String,
    generation: bool,
}

impl Compiled {
    /// Compiles a source; the error is for people.
    pub(super) fn new(source: &str, today: Moment) -> Result<Self, String> {
        bounds::check_source(source).map_err(|error| describe(&error))?;
        // As in Jinja, where every line of a template ends in a plain newline.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let compile = move || {
            let rewritten = source::rewrite(&source);
            let mut environment = environment(today)?;
            environment.add_template_owned(NAME, rewritten.text)?;
            Ok(Self { environment, source, generation: rewritten.generation })
        };
        bounds::apart(compile)?.map_err(|error: Error| describe(&error))
    }

    /// The source as it was given, but for its line ends.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// Whether it marks what the assistant writes.
    pub(super) fn has_generation(&self) -> bool {
        self.generation
    }

    /// Renders with these variables; the error is for people.
    pub(super) fn render(self: &Arc<Self>, context: Value) -> Result<String, String> {
        let template = Arc::clone(self);
        let render = move || {
            let mut out = Bounded(Vec::new());
            let template = template.environment.get_template(NAME)?;
            template.render_captured_to(context, &mut out)?;
            Ok(out.0)
        };
        let bytes = bounds::apart(render)?.map_err(|error: Error| describe(&error))?;
        String::from_utf8(bytes).map_err(|error| error.to_string())
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
        ValueKind::Seq | ValueKind::Map => bounds::weigh(value).and_then(|_| escape_formatter(out, state, value)),
        _ => escape_formatter(out, state, value),
    });
    env.remove_global("debug");
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    env.add_function("strftime_now", move |format: String| today.strftime(&format));
    env.add_filter(KEPT, |state: &State, value: &Value| kept(state, value));
    env.add_filter(KEPT_IN_NAMESPACE, |state: &State, value: &Value| {
        let kept = kept(state, value)?;
        if bounds::holds_namespace(&kept) {
            return Err(Error::new(ErrorKind::InvalidOperation, "a namespace cannot be put into a namespace"));
        }
        Ok(kept)
    });
    env.add_filter("tojson", tojson);
    env.add_filter("string", |value: &Value| bounds::weigh(value).map(|_| python::text(value)));
    env.add_filter("trim", trim);
    env.add_filter("indent", indent);
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
    bounds::weigh(value)?;
    let text = python::Json::from_args(ensure_ascii, indent, &args)?.dump(value)?;
    state.consume_fuel(text.len() as u64 / 8)?;
    Ok(text.into())
}

/// A value that is about to be kept in a variable.
fn kept(state: &State, value: &Value) -> Result<Value, Error> {
    state.consume_fuel(bounds::weigh(value)? as u64 / 1024)?;
    Ok(value.clone())
}

/// `trim(chars=none)` of text or what prints as text.
fn trim(state: &State, value: &Value, chars: Option<String>) -> Result<String, Error> {
    state.consume_fuel(bounds::weigh(value)? as u64 / 64)?;
    let text = python::text(value);
    Ok(match chars {
        None => text.trim_matches(python::is_space).to_owned(),
        Some(chars) => text.trim_matches(|c| chars.contains(c)).to_owned(),
    })
}

/// `indent(width=4, first=false, blank=false)`; the width may be the text to indent by.
fn indent(state: &State, text: &str, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let (width, first, blank, args): (Option<Value>, Option<bool>, Option<bool>, Kwargs) =
        from_args(&args.into_values())?;
    let width = width.or(args.get("width")?).unwrap_or_else(|| 4.into());
    let first = first.or(args.get("first")?).unwrap_or(false);
    let blank = blank.or(args.get("blank")?).unwrap_or(false);
    args.assert_all_used()?;
    let by = match width.as_str() {
        Some(by) => by.to_owned(),
        None => " ".repeat(usize::try_from(width)?.min(MAX_TEXT)),
    };
    let lines = text.chars().filter(|c| python::ends_line(*c)).count() + 2;
    state.consume_fuel((lines.saturating_mul(by.len()).saturating_add(text.len()) / 64) as u64)?;
    Ok(python::indent(text, &by, first, blank))
}

/// Python's methods of text that the engine's own compatibility layer lacks, or has with other spaces or without bounds.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let (Some(text), []) = (value.as_str(), args) {
        match name {
            "strip" => return Ok(text.trim_matches(python::is_space).into()),
            "lstrip" => return Ok(text.trim_start_matches(python::is_space).into()),
            "rstrip" => return Ok(text.trim_end_matches(python::is_space).into()),
            _ => {}
        }
    }
    if let Some(text) = value.as_str() {
        bounds::check_method(text, name, args)?;
    }
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
        if self.0.len() + bytes.len() > MAX_TEXT {
            return Err(io::Error::other("the rendered text is longer than 64 MiB"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
