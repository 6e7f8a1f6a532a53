//! The run directory: what is in it, and when it may be written to.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use qwen_tune_data::AuditLimits;
use qwen_tune_weights::WeightError;
use qwen_tune_weights::atomic::{sweep, write_file};
use qwen_tune_weights::lock::Lock;

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::plan::Plan;
use crate::recipe::{RecipeDoc, to_resolved_toml};

/// The file that a run locks while it goes on.
const CLAIM: &str = ".lock";

/// Whether the directory holds a run: one that made a step. What a run leaves that failed before its first step may be
/// overwritten.
pub(super) fn holds_run(dir: &Path) -> bool {
    let stepped =
        || std::fs::read_to_string(dir.join("metrics.jsonl")).is_ok_and(|text| text.contains(r#""event":"step""#));
    dir.join("checkpoints").exists() || dir.join("adapter").exists() || stepped()
}

/// Refuses a directory that holds a run; one that would be overwritten is never touched.
pub(super) fn refuse_occupied(dir: &Path, doc: &RecipeDoc) -> Result<(), Diagnostics> {
    if holds_run(dir) {
        let message = format!("`{}` holds a run already", dir.display());
        return Err(Diagnostic::mistake("run-exists", message)
            .at(doc.span_of("run.dir"))
            .hint("go on with it: add `--resume`")
            .hint("or begin a new one: `--set run.dir=runs/another-name`")
            .into());
    }
    if dir.is_file() {
        let message = format!("`{}` is a file", dir.display());
        return Err(Diagnostic::mistake("run-dir", message).at(doc.span_of("run.dir")).into());
    }
    Ok(())
}

/// Makes the directory this process's own until the handle is dropped or the process ends, however it ends: two runs in one
/// directory would overwrite each other's files. Then removes what killed runs left half-written.
pub(super) fn claim(dir: &Path, doc: &RecipeDoc) -> Result<File, Diagnostics> {
    std::fs::create_dir_all(dir).map_err(|e| fault(dir, e))?;
    let path = dir.join(CLAIM);
    let handle = File::options().create(true).append(true).open(&path).map_err(|e| fault(&path, e))?;
    // A file system without locks leaves it to the user, as before there were any.
    if matches!(handle.try_lock(), Err(TryLockError::WouldBlock)) {
        let message = format!("another process is training in `{}`", dir.display());
        return Err(Diagnostic::mistake("run-in-use", message)
            .at(doc.span_of("run.dir"))
            .hint("wait for it, or stop it")
            .hint("or begin another run: `--set run.dir=runs/another-name`")
            .into());
    }
    for part in ["", "checkpoints", "export", "bad-batches"] {
        sweep(&dir.join(part)).map_err(|e| Diagnostics::from(Diagnostic::failure_from("run-dir", &e)))?;
    }
    Ok(handle)
}

/// Writes what is known before the first step.
pub(super) fn begin(plan: &Plan, doc: &RecipeDoc, lock: Option<&Lock>) -> Result<(), Diagnostics> {
    let dir = &plan.directory;
    let resolved = to_resolved_toml(&plan.recipe, &plan.choices)
        .map_err(|e| Diagnostics::from(Diagnostic::failure_from("run-dir", &e)))?;
    let choices: Vec<serde_json::Value> = plan
        .choices
        .iter()
        .map(|c| serde_json::json!({ "key": c.key, "value": c.value, "reason": c.reason }))
        .collect();
    // Names alone: where files lie on this machine is nobody's business who reads a model card.
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let sources: Vec<serde_json::Value> = plan
        .data
        .sources()
        .map(|source| {
            let files: Vec<String> = source.files.iter().map(|path| name(path)).collect();
            serde_json::json!({ "files": files, "rows": source.rows })
        })
        .collect();
    let summary = serde_json::json!({
        "model": plan.model.spec,
        "device": plan.device.name,
        "total_steps": plan.total_steps,
        "micro_batch": plan.micro_batch,
        "recompute": plan.recompute,
        "ffn_chunk": plan.ffn_chunk,
        "offload": plan.offload,
        "rows": plan.data.rows(),
        "sources": sources,
        "lock": lock,
        "choices": choices,
    });
    let summary = serde_json::to_string_pretty(&summary)
        .map_err(|e| Diagnostics::from(Diagnostic::failure_from("run-dir", &e)))?;
    let audit = serde_json::json!({ "limits": AuditLimits::START, "data": plan.audit, "eval": plan.eval_audit });
    let audit =
        serde_json::to_string_pretty(&audit).map_err(|e| Diagnostics::from(Diagnostic::failure_from("run-dir", &e)))?;
    let written = doc.text().map_or(resolved.as_str(), |text| text);
    for (name, text) in
        [("recipe.toml", written), ("plan.json", &summary), ("audit.json", &audit), ("recipe.resolved.toml", &resolved)]
    {
        put(&dir.join(name), text)?;
    }
    Ok(())
}

fn put(path: &Path, text: &str) -> Result<(), Diagnostics> {
    write_file(path, |file| std::io::Write::write_all(file, text.as_bytes()).map_err(WeightError::io("write", path)))
        .map_err(|e| Diagnostics::from(Diagnostic::failure_from("run-dir", &e)))
}

fn fault(path: &Path, error: std::io::Error) -> Diagnostics {
    let error = WeightError::io("create", PathBuf::from(path))(error);
    Diagnostic::failure_from("run-dir", &error).into()
}
