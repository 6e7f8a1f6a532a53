//! Entry point: parse, run, exit code.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    keep_freed_memory();
    leave_out_contained_panics();
    let cli = qwen_tune::args::Cli::parse();
    ExitCode::from(qwen_tune::commands::run(&cli))
}

/// A damaged file can make another crate's reader panic. That becomes an error with a place; a stack trace above it would
/// only hide it.
fn leave_out_contained_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !qwen_tune_data::panics_are_contained() {
            report(panic);
        }
    }));
}

/// Lets glibc keep the pages of freed tensors, which the next operation takes again: by default it maps and unmaps large
/// buffers one by one, and gives the heap's end back whenever enough of it is free, as it is after every step. The page
/// faults cost more than the elementwise work. Lower thresholds were measured: mapping what is above 32 or 4 MiB takes a
/// quarter to a half more time in the kernel and saves nothing at 135M parameters; above 128 KiB it saves a twentieth of a
/// model of a million.
#[cfg(target_env = "gnu")]
fn keep_freed_memory() {
    // SAFETY: called before any other thread exists; both settings only choose where later allocations come from.
    #[expect(unsafe_code, reason = "a setting of the C library")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 30);
        // Never, as mallopt(3) has it.
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
    }
}

#[cfg(not(target_env = "gnu"))]
fn keep_freed_memory() {}
