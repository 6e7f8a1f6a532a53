//! What a template may cost: time, stack, and the size of what it makes.
//!
//! The engine counts fuel for instructions and for the bytes that they make. It does not see that a value is larger than
//! what it was made of (a list that holds another twice prints twice as long), nor that a namespace can be put into itself
//! and then has no end, nor what a few of Python's methods make. Those are weighed here, before they are made.

use std::cell::Cell;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel, sync_channel};
use std::time::Duration;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

use crate::contain::contain;

/// A template's source; the largest of any vendor has 20 KB. Bounds the depth of its syntax, as stack must hold it.
const MAX_SOURCE: usize = 128 << 10;
/// Room for that, and for the deepest recursion. Only what is touched becomes memory.
const STACK: usize = 512 << 20;
/// Fuel is gone within a second; this is for what fuel does not see.
const PATIENCE: Duration = Duration::from_secs(10);
/// Levels of lists and mappings within one another; JSON from files has at most 128.
const MAX_DEPTH: usize = 200;
/// Bytes of text, and of values were they printed.
pub(super) const MAX_TEXT: usize = 64 << 20;
/// What a number, a key or an empty list weighs: more than it prints as, since going through values takes time too.
const NODE: usize = 256;
/// Parts that a text may be split into, which cost more than their bytes.
const MAX_PARTS: usize = 1 << 20;

/// Runs on a thread with a deep stack, for as long as is reasonable. A template that is still running then is left to
/// itself, as a thread cannot be stopped; the error it leads to ends the program.
///
/// Every caller's thread keeps one such thread for its next template: to start one takes as long as a short conversation
/// takes to render.
pub(super) fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    let kept = WORKER.with(|worker| worker.take());
    let worker = kept.map_or_else(start, Ok).map_err(|error| format!("no thread to run it on: {error}"))?;
    let (send, receive) = sync_channel(1);
    // Nobody waits any more for what comes too late.
    let job: Job = Box::new(move || drop(send.send(contain(work))));
    let gone = || "the thread it ran on is gone".to_owned();
    worker.send(job).map_err(|_| gone())?;
    match receive.recv_timeout(PATIENCE) {
        Ok(result) => {
            WORKER.with(|kept| kept.set(Some(worker)));
            result.map_err(|panic| format!("the template engine failed: {panic}"))
        }
        Err(RecvTimeoutError::Timeout) => Err(format!("it runs for longer than {} seconds", PATIENCE.as_secs())),
        Err(RecvTimeoutError::Disconnected) => Err(gone()),
    }
}

type Job = Box<dyn FnOnce() + Send>;

thread_local! {
    /// The way to this thread's own; it ends when this is dropped.
    static WORKER: Cell<Option<Sender<Job>>> = const { Cell::new(None) };
}

fn start() -> std::io::Result<Sender<Job>> {
    let (send, jobs) = channel::<Job>();
    let run = move || jobs.into_iter().for_each(|job| job());
    std::thread::Builder::new().name("template".into()).stack_size(STACK).spawn(run)?;
    Ok(send)
}

/// Refuses a source that is no template of anybody's.
pub(super) fn check_source(source: &str) -> Result<(), Error> {
    if source.len() > MAX_SOURCE {
        return Err(refusal(format!("it is {} bytes long, at most {MAX_SOURCE} are allowed", source.len())));
    }
    Ok(())
}

/// About how many bytes the value is when it is printed; an error where that is without bounds.
pub(super) fn weigh(value: &Value) -> Result<usize, Error> {
    let mut weight = 0;
    add(value, 0, &mut weight)?;
    Ok(weight)
}

fn add(value: &Value, depth: usize, weight: &mut usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(refusal(format!("a value is nested deeper than {MAX_DEPTH} levels")));
    }
    *weight += NODE + value.as_str().map_or(0, str::len);
    if *weight > MAX_TEXT {
        return Err(too_long());
    }
    match value.kind() {
        ValueKind::Seq => value.try_iter()?.try_for_each(|item| add(&item, depth + 1, weight)),
        ValueKind::Map => value.try_iter()?.try_for_each(|key| {
            add(&key, depth + 1, weight)?;
            add(&value.get_item(&key)?, depth + 1, weight)
        }),
        _ => Ok(()),
    }
}

/// Whether a namespace is in the value: the one kind of value that can change after it was made.
pub(super) fn holds_namespace(value: &Value) -> bool {
    match value.kind() {
        ValueKind::Seq => value.try_iter().is_ok_and(|mut items| items.any(|item| holds_namespace(&item))),
        ValueKind::Map => {
            value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
                || value
                    .try_iter()
                    .is_ok_and(|mut keys| keys.any(|k| value.get_item(&k).is_ok_and(|v| holds_namespace(&v))))
        }
        _ => false,
    }
}

/// Refuses a method of text whose result would be without bounds, before it is called.
pub(super) fn check_method(text: &str, name: &str, args: &[Value]) -> Result<(), Error> {
    let arg = |n: usize| args.get(n).and_then(Value::as_str);
    let made = match name {
        "replace" => {
            let found = arg(0).map_or(0, |old| text.matches(old).count());
            found.saturating_mul(arg(1).map_or(0, str::len)).saturating_add(text.len())
        }
        "join" => {
            let items = args.first();
            let count = items.and_then(Value::len).or(arg(0).map(|t| t.chars().count())).unwrap_or(0);
            let weight = items.map(weigh).transpose()?.unwrap_or(0);
            count.saturating_mul(text.len()).saturating_add(weight)
        }
        "format" => {
            // Every field may hold all of the arguments, padded to a width of up to four digits.
            let wide = text.as_bytes().windows(5).any(|digits| digits.iter().all(u8::is_ascii_digit));
            let weights = args.iter().map(weigh).sum::<Result<usize, _>>()?;
            let field = if wide { usize::MAX } else { weights + 9_999 };
            text.matches('{').count().saturating_mul(field).saturating_add(text.len())
        }
        "split" | "splitlines" => {
            let parts = match arg(0) {
                Some(separator) => text.matches(separator).count(),
                None => text.matches(char::is_whitespace).count(),
            };
            if parts > MAX_PARTS { usize::MAX } else { text.len() }
        }
        _ => 0,
    };
    if made > MAX_TEXT { Err(too_long()) } else { Ok(()) }
}

fn too_long() -> Error {
    refusal(format!("it makes text of more than {} MiB", MAX_TEXT >> 20))
}

fn refusal(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}
