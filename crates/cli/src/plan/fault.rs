//! Faults of libraries as diagnostics with their place.

use qwen_tune_data::{DataError, RowError};
use qwen_tune_qwen::ModelError;

use crate::diagnostic::{Diagnostic, Diagnostics, Place};
use crate::recipe::RecipeDoc;

/// A fault of data, with file, row and column where it has them.
pub fn data_fault(error: &DataError) -> Diagnostic {
    let DataError::Row { path, row, line, column, error: inner } = error else {
        return Diagnostic::mistake_from("data", error);
    };
    let place = Place { file: path.clone(), row: Some(*row), line: *line, column: column.clone() };
    row_fault(inner).place(place)
}

/// What is wrong inside a row.
fn row_fault(error: &RowError) -> Diagnostic {
    let from = |code| Diagnostic::mistake_from(code, error);
    match error {
        RowError::SpecialToken { token, what, around } => {
            Diagnostic::mistake("special-token", format!("{what} spells the special token `{token}`"))
                .excerpt(around)
                .hint("to read it as plain text: `--set tokens.special_tokens=escape`")
                .hint("or, if it is meant as the token: `--set tokens.special_tokens=allow`")
        }
        RowError::UnknownRole { .. } => from("unknown-role")
            .hint("rename the role in the rows, or give a chat template that knows it: `--set tokens.template=PATH`"),
        RowError::NoMaskRule => Diagnostic::mistake(
            "no-mask-rule",
            "nothing tells the assistant's tokens from the others: the chat template is not ChatML and has no `{% generation %}` tag",
        )
        .hint("put the tag around answers in a template of your own: `--set tokens.template=PATH`")
        .hint("or train on everything: `--set tokens.loss_on=all`"),
        RowError::NoTemplate => from("no-template"),
        RowError::PromptChanged { .. } => from("prompt-changed"),
        RowError::Template { .. } => from("template-failed")
            .hint("see which row it cannot render, or give another template: `--set tokens.template=PATH`"),
        RowError::Overlong { tokens, .. } => from("overlong")
            .hint(format!("`--set tokens.max_length={tokens}` takes it whole"))
            .hint("or say what becomes of long rows: `--set tokens.overlong=truncate`"),
        _ => from("data"),
    }
}

/// Faults of data, pointing at the recipe's section.
pub fn data_faults(errors: &[DataError], doc: &RecipeDoc, key: &str) -> Diagnostics {
    errors
        .iter()
        .map(|error| {
            let diagnostic = data_fault(error);
            match &diagnostic.place {
                Some(_) => diagnostic,
                None => diagnostic.at(data_span(error, doc, key)),
            }
        })
        .collect()
}

/// The line that sets what is wrong or names the file, where one does.
fn data_span(error: &DataError, doc: &RecipeDoc, key: &str) -> Option<crate::diagnostic::Span> {
    if let DataError::Setting { key: wrong, found, .. } = error
        && let Some((_, name)) = wrong.rsplit_once('.')
    {
        let mut written = (0..).map(|i| format!("{key}[{i}]")).take_while(|entry| doc.contains(entry));
        let says = |span: &crate::diagnostic::Span| span.source.text.get(span.range.clone()) == Some(found.as_str());
        if let Some(span) = written.find_map(|entry| doc.span_of(&format!("{entry}.{name}")).filter(says)) {
            return Some(span);
        }
    }
    let text = error.to_string();
    let named = (0..).map_while(|i| doc.span_of(&format!("{key}[{i}].path"))).find(|span| {
        let written = span.source.text.get(span.range.clone()).unwrap_or_default().trim_matches(['"', '\'']);
        !written.is_empty() && text.contains(written)
    });
    named.or_else(|| doc.span_of(&format!("{key}[0].path"))).or_else(|| doc.span_of(key))
}

/// Faults of the model's directory.
pub fn model_faults(errors: &[ModelError], doc: &RecipeDoc) -> Diagnostics {
    errors.iter().map(|e| Diagnostic::mistake_from("model", e).at(doc.span_of("model.base"))).collect()
}
