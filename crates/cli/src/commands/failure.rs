//! A run that failed, told with what is left of it and how to go on.

use std::io;

use qwen_tune_train::{CheckpointError, Failed, Fault, TrainError};
use qwen_tune_weights::WeightError;
use qwen_tune_weights::peft::AdapterError;

use crate::diagnostic::{Diagnostic, Diagnostics, Place};
use crate::plan::{Plan, data_fault};
use crate::terminal::count;

/// What there is to say about a failed run.
pub(super) fn told(failed: &Failed, plan: &Plan) -> Diagnostics {
    let diagnostic = match &*failed.cause {
        TrainError::BadStep { bad, skipped_in_a_row } => {
            let what = match bad.reason {
                Fault::LossNotFinite => format!("the loss is {}", bad.loss),
                Fault::GradientNotFinite => format!("the norm of the gradients is {}", bad.grad_norm),
                Fault::LossSpike => format!("the loss of {:.4} is far above that of the steps before", bad.loss),
                Fault::GradientSpike => {
                    format!("the gradient norm of {:.4} is far above that of the steps before", bad.grad_norm)
                }
            };
            let after = match skipped_in_a_row {
                0 => String::new(),
                skipped => format!(", after {skipped} skipped in a row"),
            };
            let message = format!("step {}: {what}{after}; the step was not applied", count(bad.step));
            let place = bad.worst.clone().map(|(file, row)| Place { file, row: Some(row), line: None, column: None });
            let diagnostic = Diagnostic::failure("bad-step", message)
                .place(place)
                .hint(format!("look at the rows of the step, each with its loss: {}", bad.file.display()));
            if *skipped_in_a_row == 0 {
                diagnostic.hint("pass over such steps: `--resume --set run.on_bad_step=skip`").hint(
                    "if the rows are sound: a smaller `optimizer.learning_rate` or a longer `schedule.warmup` in a new run, or \
                     `model.dtype = \"f32\"`",
                )
            } else {
                diagnostic.hint(
                    "so many in a row are not the rows' doing: a smaller `optimizer.learning_rate` in a new run, or \
                     `model.dtype = \"f32\"`",
                )
            }
        }
        TrainError::OutOfMemory { .. } => Diagnostic::failure_from("out-of-memory", &*failed.cause).hint(
            "shorter rows take less: a smaller `tokens.max_length` in a new run, or end other programs on the device",
        ),
        TrainError::Data(error) => {
            let fault = data_fault(error);
            Diagnostic::failure_from("data", error).place(fault.place)
        }
        cause => {
            let code = match cause {
                TrainError::Checkpoint(_) => "checkpoint",
                TrainError::Sink(_) => "progress",
                _ => "train",
            };
            let diagnostic = Diagnostic::failure_from(code, cause);
            match io_kind(cause).and_then(remedy) {
                Some(remedy) => diagnostic.hint(remedy),
                None => diagnostic,
            }
        }
    };
    let directory = plan.directory.display();
    let left = match failed.saved {
        Some(step) if step == failed.step => {
            format!("step {} is saved in `{directory}`; go on with `--resume`", count(step))
        }
        Some(step) => format!(
            "the newest checkpoint in `{directory}` is that of step {} of {} made; go on from there with `--resume`",
            count(step),
            count(failed.step)
        ),
        None => format!("no checkpoint is in `{directory}` yet: `--resume` begins the run anew"),
    };
    diagnostic.hint(left).into()
}

/// What the operating system said, where it was that.
fn io_kind(cause: &TrainError) -> Option<io::ErrorKind> {
    match cause {
        TrainError::Sink(source)
        | TrainError::Checkpoint(
            CheckpointError::Weights(WeightError::Io { source, .. })
            | CheckpointError::Adapter(AdapterError::Weights(WeightError::Io { source, .. })),
        ) => Some(source.kind()),
        _ => None,
    }
}

fn remedy(kind: io::ErrorKind) -> Option<&'static str> {
    match kind {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Some("make room on that disk; a smaller `checkpoint.keep` takes less")
        }
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            Some("make the directory writable, or copy the run elsewhere and name it: `--set run.dir=DIR --resume`")
        }
        io::ErrorKind::NotFound => Some("the run's directory is gone: bring it back, then `--resume`"),
        _ => None,
    }
}
