//! The self-test of a device, in a process of its own: a driver or compiler that fails may abort, crash or hang, and what
//! it had said by then is still told.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use qwen_tune_model::ComputeDtype;
use qwen_tune_train::device::{identity, open};
use qwen_tune_train::self_test::{self, Check};
use serde::{Deserialize, Serialize};

use super::super::{DONE, Ended, failed, written};
use crate::plan::device_fault;
use crate::terminal::{Printer, Table};

/// A check that has begun is waited for this long: by far the most of it is the compilation of kernels, the first time.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a device said.
#[derive(Debug, Default, Serialize)]
pub(super) struct Tested {
    /// The device as it names itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    checks: Vec<Check>,
    /// How the process ended, unless well.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
}

/// A line of the process under test.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Name(String),
    Check(Check),
}

/// Tests a device in this process, telling every result at once.
pub(super) fn here(name: &str, printer: &Printer) -> Ended {
    let device = open(name, ComputeDtype::Auto).map_err(|e| device_fault(&e))?;
    if let Some(name) = identity(&device) {
        written(printer.json(&Line::Name(name)))?;
    }
    let mut told = Ok(());
    let tested = self_test::run(&device, |check| {
        if told.is_ok() {
            told = written(printer.json(&Line::Check(check)));
        }
    });
    told?;
    tested.map_err(|e| failed("self-test", &*e))?;
    Ok(DONE)
}

/// Tests a device in another process.
pub(super) fn apart(name: &str) -> Tested {
    let spawned = std::env::current_exe().and_then(|program| {
        let mut command = Command::new(program);
        command.args(["devices", "--self-test", name]);
        // Choosing among dozens of kernels for a product would be most of the test; nor is its choice to be remembered.
        command.env("CUBECL_AUTOTUNE_LEVEL", "minimal").env("CUBECL_AUTOTUNE_CACHE", "0");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
    });
    match spawned {
        Ok(child) => listen(child),
        Err(error) => Tested { failure: Some(error.to_string()), ..Tested::default() },
    }
}

fn listen(mut child: Child) -> Tested {
    let (send, lines) = channel();
    let out = child.stdout.take();
    std::thread::spawn(move || {
        for line in out.into_iter().flat_map(|out| BufReader::new(out).lines()).map_while(Result::ok) {
            if send.send(line).is_err() {
                break;
            }
        }
    });
    let err = child.stderr.take();
    let said = std::thread::spawn(move || {
        let mut text = Vec::new();
        err.map(|mut err| err.read_to_end(&mut text));
        String::from_utf8_lossy(&text).into_owned()
    });
    let mut tested = Tested::default();
    let in_time = hear(&lines, &mut tested, PATIENCE);
    if !in_time {
        let _ = child.kill();
    }
    let status = child.wait();
    let said = said.join().unwrap_or_default();
    tested.failure = match status {
        _ if !in_time => Some(format!("nothing for {} seconds", PATIENCE.as_secs())),
        Ok(status) if status.success() => None,
        Ok(status) => {
            let last = said.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
            Some(format!("{status}: {last}"))
        }
        Err(error) => Some(error.to_string()),
    };
    tested
}

/// Takes in lines until there are no more; whether the last came in time.
fn hear(lines: &Receiver<String>, tested: &mut Tested, patience: Duration) -> bool {
    loop {
        let began = Instant::now();
        match lines.recv_timeout(patience) {
            Ok(line) => match serde_json::from_str(&line) {
                Ok(Line::Name(name)) => tested.name = Some(name),
                Ok(Line::Check(check)) => tested.checks.push(check),
                // A driver that prints.
                Err(_) => {}
            },
            Err(_) => return began.elapsed() < patience,
        }
    }
}

/// Everything that was tested.
pub(super) fn table(tested: &[(&str, &Tested)]) -> String {
    let mut table = Table::new(["self-test", "", ">difference", ">allowed", ""]);
    let number = |value: f64| format!("{value:.1e}");
    for (device, Tested { checks, failure, .. }) in tested {
        for Check { check, difference, limit, ok, .. } in checks {
            let verdict = match ok {
                Some(true) => "ok",
                Some(false) => "WRONG",
                None => "not begun: compiling took too long, do it again",
            };
            let difference = match (difference, ok) {
                (Some(difference), _) => number(*difference),
                (None, Some(_)) => "no number".to_owned(),
                (None, None) => String::new(),
            };
            table.row([(*device).to_owned(), check.clone(), difference, number(*limit), verdict.to_owned()]);
        }
        if let Some(failure) = failure {
            table.row([(*device).to_owned(), "FAILED".to_owned(), String::new(), String::new(), failure.clone()]);
        }
    }
    table.render(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn check(check: &str, difference: Option<f64>, ok: Option<bool>) -> Check {
        Check { check: check.to_owned(), difference, limit: 1e-2, ok, seconds: 0.1 }
    }

    #[test]
    fn what_was_said_before_a_silence_is_kept() {
        let (send, lines) = channel();
        send.send(serde_json::to_string(&Line::Name("Some Card".to_owned())).unwrap()).unwrap();
        send.send("a driver that prints".to_owned()).unwrap();
        send.send(serde_json::to_string(&Line::Check(check("product f32", Some(1e-4), Some(true)))).unwrap()).unwrap();
        let mut tested = Tested::default();
        assert!(!hear(&lines, &mut tested, Duration::from_millis(20)));
        drop(send);
        assert!(hear(&lines, &mut tested, Duration::from_secs(60)));
        assert_eq!((tested.name.as_deref(), tested.checks.len()), (Some("Some Card"), 1));
    }

    #[test]
    fn a_verdict_for_every_check() {
        let checks = vec![
            check("product f32", Some(1.25e-4), Some(true)),
            check("product bf16", Some(0.5), Some(false)),
            check("gradients f32", None, Some(false)),
            check("gradients bf16", None, None),
        ];
        let failed = Tested { failure: Some("signal: 11 (SIGSEGV)".to_owned()), ..Tested::default() };
        let passed = Tested { checks, ..Tested::default() };
        insta::assert_snapshot!(table(&[("cuda:0", &passed), ("vulkan", &failed)]), @r"
        self-test                  difference  allowed
        cuda:0     product f32         1.3e-4   1.0e-2  ok
        cuda:0     product bf16        5.0e-1   1.0e-2  WRONG
        cuda:0     gradients f32    no number   1.0e-2  WRONG
        cuda:0     gradients bf16               1.0e-2  not begun: compiling took too long, do it again
        vulkan     FAILED                               signal: 11 (SIGSEGV)
        ");
    }
}
