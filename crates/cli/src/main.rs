//! Entry point: parse, run, exit code.

use std::process::ExitCode;

use clap::Parser;

/// Keeps freed tensors' pages, which the next operation takes again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = qwen_tune::args::Cli::parse();
    ExitCode::from(qwen_tune::commands::run(&cli))
}
