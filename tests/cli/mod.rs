//! The command line as its users see it: whole outputs, exit codes, and the generated schema.

mod audit;
mod data;
mod mistakes;
mod outputs;
mod schema;
mod usage;

use std::path::Path;
use std::process::Command;

/// What `check` says of packing: other processors round otherwise.
pub(crate) const ROUNDING: [(&str, &str); 2] = [
    (r"(largest difference) [\d.e-]+ nats", "$1 ROUNDING nats"),
    (r#"("largest_difference"):[\d.e-]+"#, "$1:ROUNDING"),
];

/// Exit code, stdout and stderr of a command, as one text for a snapshot.
pub(crate) fn output_of(directory: &Path, arguments: &[&str]) -> String {
    let output = command(directory, arguments).output().unwrap();
    let place = directory.display().to_string();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&place, "DIR");
    format!(
        "$ qwen-tune {}\nexit code {}\n--- stdout\n{}--- stderr\n{}",
        arguments.join(" ").replace(&place, "DIR"),
        output.status.code().map_or("none".to_owned(), |code| code.to_string()),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// The command in a directory, without what the caller's terminal and locale would change.
pub(crate) fn command(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qwen-tune"));
    command
        .current_dir(directory)
        .args(arguments)
        .env_remove("CLICOLOR_FORCE")
        .env("NO_COLOR", "1")
        .env("COLUMNS", "100");
    command
}
