//! Entry point: parse, run, exit code.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    keep_freed_memory();
    let cli = qwen_tune::args::Cli::parse();
    ExitCode::from(qwen_tune::commands::run(&cli))
}

/// Lets glibc keep the pages of freed tensors, which the next operation takes again: by default it maps and unmaps large
/// buffers one by one, and the page faults cost more than the elementwise work.
#[cfg(target_env = "gnu")]
fn keep_freed_memory() {
    // SAFETY: called before any other thread exists; both settings only choose where later allocations come from.
    #[expect(unsafe_code, reason = "a setting of the C library")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 256 << 20);
    }
}

#[cfg(not(target_env = "gnu"))]
fn keep_freed_memory() {}
