//! The verbs: each takes its arguments and a printer, and ends with an exit code or with everything that is wrong.

mod base;
mod chat;
mod check;
mod data;
mod devices;
mod eval;
mod export;
mod failure;
mod generate;
mod init;
mod inspect;
mod loaded;
mod logprobs;
mod plan;
mod rehearsal;
mod resume;
mod run_dir;
mod train;
mod verify;

use crate::args::{Cli, Command};
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::terminal::Printer;

/// The end of a command: an exit code.
pub type Ended = Result<u8, Diagnostics>;

/// Everything went well.
const DONE: u8 = 0;
/// A signal ended the run after its checkpoint: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

/// Runs the command and reports what is wrong; returns the exit code.
pub fn run(cli: &Cli) -> u8 {
    let printer = Printer::new(cli.command.wants_json());
    let ended = match &cli.command {
        Command::Train(args) => train::run(args, &printer),
        Command::Check(args) => check::run(args, &printer),
        Command::Plan(args) => plan::run(args, &printer),
        Command::Data(args) => data::run(args, &printer),
        Command::Eval(args) => eval::run(args, &printer),
        Command::Generate(args) => generate::run(args, &printer),
        Command::Chat(args) => chat::run(args, &printer),
        Command::Export(args) => export::run(args, &printer),
        Command::Inspect(args) => inspect::run(args, &printer),
        Command::Init(args) => init::run(args, &printer),
        Command::Devices(args) => devices::run(args, &printer),
        Command::Completions { shell } => init::completions(*shell, &printer),
    };
    ended.unwrap_or_else(|diagnostics| {
        printer.diagnostics(&diagnostics);
        diagnostics.exit_code()
    })
}

impl Command {
    fn wants_json(&self) -> bool {
        match self {
            Self::Train(args) => args.json,
            Self::Check(args) => args.json,
            Self::Plan(args) => args.json,
            Self::Data(args) => args.json,
            Self::Eval(args) => args.json,
            Self::Generate(args) => args.json,
            Self::Export(args) => args.json,
            Self::Inspect(args) => args.json,
            Self::Devices(args) => args.json,
            Self::Chat(_) | Self::Init(_) | Self::Completions { .. } => false,
        }
    }
}

/// What could not be done while running, from an error.
fn failed(code: &'static str, error: &(dyn std::error::Error + 'static)) -> Diagnostics {
    Diagnostic::failure_from(code, error).into()
}

/// Output that could not be written. A reader that went away wanted no more, which is no failure.
fn written(result: std::io::Result<()>) -> Result<(), Diagnostics> {
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(failed("output", &error)),
        _ => Ok(()),
    }
}
