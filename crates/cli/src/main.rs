//! Entry point: parse, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use qwen_tune::buffers::Buffers;

#[global_allocator]
static BUFFERS: Buffers = Buffers::new();

fn main() -> ExitCode {
    qwen_tune::begin_again::with_cuda_libraries();
    leave_out_contained_panics();
    let cli = qwen_tune::args::Cli::parse();
    ExitCode::from(qwen_tune::commands::run(&cli))
}

/// A damaged file can make another crate's reader panic, and a device without room its next read. That becomes an error with
/// a place, or is met; a stack trace above it would only hide it.
fn leave_out_contained_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !qwen_tune_data::panics_are_contained() && !qwen_tune_train::out_of_memory::is_met(panic.payload()) {
            report(panic);
        }
    }));
}
