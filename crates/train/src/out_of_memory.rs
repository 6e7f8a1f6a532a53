//! A device whose memory runs out in the middle of a step: the step is made again with less at a time.
//!
//! What ran out is told where a result is read: CubeCL notes a failed allocation, goes on, and Burn's next read of that device
//! panics with it. Until an update is applied nothing of a step is kept, so everything up to there can be tried again.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a device without room says, in CubeCL's words (`IoError` of cubecl-runtime 0.11.3).
const SAID: [&str; 2] = ["out of device memory allocating", "can't allocate buffer of size"];

/// Work under way whose failing allocations are met.
static MET: AtomicUsize = AtomicUsize::new(0);

/// The device had no room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OutOfMemory {
    /// What it said, in a line.
    pub(crate) said: String,
}

/// Runs `work`; an allocation that fails in it is an answer, any other panic goes on.
pub(crate) fn attempt<T>(work: impl FnOnce() -> T) -> Result<T, OutOfMemory> {
    MET.fetch_add(1, Ordering::SeqCst);
    let result = catch_unwind(AssertUnwindSafe(work));
    MET.fetch_sub(1, Ordering::SeqCst);
    result.map_err(|panic| match said(panic.as_ref()) {
        Some(said) => OutOfMemory { said },
        None => resume_unwind(panic),
    })
}

/// Whether a panic is a failed allocation that a run is going to meet, so that a panic hook need not say anything.
#[must_use]
pub fn is_met(panic: &(dyn Any + Send)) -> bool {
    MET.load(Ordering::SeqCst) > 0 && said(panic).is_some()
}

fn said(panic: &(dyn Any + Send)) -> Option<String> {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied())?;
    let start = SAID.iter().find_map(|said| text.find(said))?;
    text[start..].lines().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_allocation_is_an_answer_and_nothing_else_is() {
        let message =
            "Error while reading data: WithContext { reason: \"out of device memory allocating 512 bytes\nat ..\" }";
        let failed = attempt(|| -> u32 { panic!("{message}") });
        assert_eq!(failed, Err(OutOfMemory { said: "out of device memory allocating 512 bytes".to_owned() }));
        assert_eq!(attempt(|| 3), Ok(3));
        let other = catch_unwind(|| attempt(|| -> u32 { panic!("an index is out of bounds") }));
        assert!(other.is_err());
        assert!(!is_met(&"out of device memory allocating 1 bytes"));
    }
}
