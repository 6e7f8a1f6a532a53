//! What the system says about memory.

use std::sync::atomic::{AtomicU64, Ordering};

/// The most that was held before [`peak_of`] last began.
static BEFORE: AtomicU64 = AtomicU64::new(0);

/// Bytes that this process held at most, where the system says so.
#[must_use]
pub fn peak() -> Option<u64> {
    memory("VmHWM:").map(|now| now.max(BEFORE.load(Ordering::Relaxed)))
}

/// Bytes held at most while `f` ran, where the system says so; [`peak`] still knows of what was before.
pub fn peak_of(f: impl FnOnce()) -> Option<u64> {
    let before = memory("VmHWM:")?;
    // The kernel's own way: 5 sets the high-water mark to what is held now.
    let reset = std::fs::write("/proc/self/clear_refs", "5").is_ok();
    BEFORE.fetch_max(before, Ordering::Relaxed);
    f();
    // Where it could not be set, what was before counts too: too much is safe, too little is not.
    memory("VmHWM:").filter(|_| reset).or_else(peak)
}

/// A field of this process's status, such as `VmRSS:` (held now) or `VmHWM:` (held at most), in bytes; Linux only.
#[must_use]
pub fn memory(field: &str) -> Option<u64> {
    kilobytes("/proc/self/status", field)
}

/// A field of the machine's memory, such as `MemAvailable:` or `MemTotal:`, in bytes; Linux only.
#[must_use]
pub fn machine_memory(field: &str) -> Option<u64> {
    kilobytes("/proc/meminfo", field)
}

fn kilobytes(file: &str, field: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb * 1024)
}
