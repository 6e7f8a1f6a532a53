//! What the system says about memory.

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
