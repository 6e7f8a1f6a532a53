//! Faults of libraries as diagnostics with their place.

use qwen_tune_data::DataError;
use qwen_tune_qwen::ModelError;

use crate::diagnostic::{Diagnostic, Diagnostics, Place};
use crate::recipe::RecipeDoc;

/// A fault of data, with file, row and column where it has them.
pub fn data_fault(error: &DataError) -> Diagnostic {
    let diagnostic = Diagnostic::mistake_from("data", error);
    match error {
        DataError::Row { path, row, column, .. } => {
            diagnostic.place(Place { file: path.clone(), row: Some(*row), column: column.clone() })
        }
        _ => diagnostic,
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
