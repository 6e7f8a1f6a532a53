//! Values of `[tokens]` that contradict themselves or the objective.

use qwen_tune_data::LossOn;
use qwen_tune_train::ObjectiveKind;

use super::Context;
use crate::diagnostic::Diagnostics;

pub(super) fn check(context: &Context<'_>, said: &mut Diagnostics) {
    let tokens = &context.recipe.tokens;
    if tokens.max_length < 2 {
        said.push(context.out_of_range(
            "tokens.max_length",
            tokens.max_length,
            "a number of tokens from 2: one to read, one to learn",
        ));
    }
    let all_anyway = context.recipe.objective.kind == ObjectiveKind::Cpt;
    if all_anyway && context.doc.contains("tokens.loss_on") && tokens.loss_on != LossOn::All {
        said.push(
            context
                .mistake(
                    "cpt-with-mask",
                    "tokens.loss_on",
                    "continued pre-training learns every token, so no part can be left out of the loss",
                )
                .also(context.doc.span_of("objective.kind"), "every token carries loss")
                .hint("leave `loss_on` out, or use `kind = \"sft\"`"),
        );
    }
    if let Some(date) = &tokens.template_date
        && !is_date(date)
    {
        said.push(
            context
                .mistake("bad-date", "tokens.template_date", format!("`{date}` is not a date"))
                .expected("a date such as `2026-07-26`"),
        );
    }
}

fn is_date(text: &str) -> bool {
    let mut parts = text.split('-').map(|part| (part.len(), part.parse::<u32>().ok()));
    let date = (parts.next(), parts.next(), parts.next(), parts.next());
    matches!(date, (Some((4, Some(_))), Some((2, Some(1..=12))), Some((2, Some(1..=31))), None))
}

#[cfg(test)]
mod tests {
    use super::is_date;

    #[test]
    fn dates_are_year_month_day() {
        assert!(is_date("2026-07-26"));
        for wrong in ["", "26-07-2026", "2026-7-26", "2026-13-01", "2026-07-00", "2026-07-26T00", "today"] {
            assert!(!is_date(wrong), "{wrong}");
        }
    }
}
