//! Panics of other people's readers, which damaged files bring about, as errors.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local!(static CONTAINED: Cell<bool> = const { Cell::new(false) });

/// Runs `work`; a panic in it is an error, with what the panic said.
pub(crate) fn contain<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let outer = CONTAINED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    CONTAINED.set(outer);
    result.map_err(|panic| message(panic.as_ref()).unwrap_or("its contents contradict themselves").to_owned())
}

fn message(panic: &(dyn Any + Send)) -> Option<&str> {
    panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied())
}

/// Whether a panic of this thread is going to be reported as an error, so that a panic hook need not say anything.
#[must_use]
pub fn panics_are_contained() -> bool {
    CONTAINED.get()
}
