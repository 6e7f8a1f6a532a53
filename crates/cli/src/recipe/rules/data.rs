//! `[[data]]` entries that give no rows.

use super::{Context, Purpose};
use crate::diagnostic::{Diagnostic, Diagnostics};

pub(super) fn check(context: &Context<'_>, said: &mut Diagnostics) {
    let sources = &context.recipe.data;
    // An entry that is there and wrong has been spoken of already.
    if sources.is_empty()
        && context.purpose != Purpose::Use
        && (!context.doc.contains("data") || context.doc.is_empty_list("data"))
    {
        said.push(
            Diagnostic::mistake("no-data", "there is no data to train on")
                .place(context.whole_recipe())
                .expected("at least one `[[data]]` section")
                .hint("add `[[data]]` with `path = \"rows.parquet\"`, or give `--set data[0].path=rows.parquet`"),
        );
    }
    for (index, source) in sources.iter().enumerate() {
        let key = |name: &str| format!("data[{index}].{name}");
        let paths = source.path.as_slice();
        if context.doc.contains(&key("path")) && (paths.is_empty() || paths.iter().any(|path| path.trim().is_empty())) {
            said.push(
                context
                    .mistake("empty-path", &key("path"), format!("`{}` names no file", key("path")))
                    .expected("a path or glob, or a list of them"),
            );
        }
        if !(source.weight > 0.0 && source.weight.is_finite()) {
            said.push(context.out_of_range(
                &key("weight"),
                source.weight,
                "a number above 0; to leave rows out, leave out the section",
            ));
        }
        if source.limit == Some(0) {
            said.push(context.out_of_range(&key("limit"), 0, "a number of rows from 1"));
        }
    }
}
