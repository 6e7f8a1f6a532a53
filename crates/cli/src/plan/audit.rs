//! What an audit of the data means for a run: refusals with a way out, warnings, notes.

use qwen_tune_data::{Audit, AuditCode, AuditLimits, Dataset, Finding, SourceAudit, TokensConfig, Unreadable, Verdict};

use super::{data_fault, data_faults};
use crate::diagnostic::{Diagnostic, Diagnostics, Place, Span};
use crate::recipe::{Purpose, RecipeDoc};
use crate::terminal::count;

/// What rows are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// To be trained on.
    Train,
    /// To be measured on: only having nothing to measure is in the way.
    Eval,
}

/// Looks at the first rows of every source; a check at as many as one waits for.
///
/// # Errors
/// If a file cannot be read; what is found is no error yet.
pub(super) fn first_rows(
    data: &Dataset,
    part: Part,
    tokens: &TokensConfig,
    doc: &RecipeDoc,
    purpose: Purpose,
) -> Result<(Audit, Diagnostics), Diagnostics> {
    let limits = if purpose == Purpose::Check { AuditLimits::CHECK } else { AuditLimits::START };
    let audit = data.audit(limits).map_err(|error| data_faults(&[error], doc, part.key()))?;
    let told = audit_report(&audit, part, tokens, doc);
    Ok((audit, told))
}

/// Everything an audit found, source by source.
pub fn audit_report(audit: &Audit, part: Part, tokens: &TokensConfig, doc: &RecipeDoc) -> Diagnostics {
    let mut told = Diagnostics::new();
    for (index, source) in audit.sources.iter().enumerate() {
        let span = part.span(index, doc);
        told.extend(source.unreadable.iter().map(|unreadable| refused(unreadable, source).at(span.clone())));
        for (finding, verdict) in source.verdicts(&tokens.allow) {
            let verdict = match verdict {
                Verdict::Refuse if part == Part::Eval && finding.code != AuditCode::NoLoss => Verdict::Warn,
                verdict => verdict,
            };
            told.push(report(finding, verdict, source, tokens).at(span.clone()));
        }
    }
    told
}

impl Part {
    fn key(self) -> &'static str {
        match self {
            Part::Train => "data",
            Part::Eval => "eval.data",
        }
    }

    /// Where the recipe names a source.
    fn span(self, index: usize, doc: &RecipeDoc) -> Option<Span> {
        let key = self.key();
        doc.span_of(&format!("{key}[{index}].path"))
            .or_else(|| doc.span_of(&format!("{key}[{index}]")))
            .or_else(|| doc.span_of(key))
    }
}

/// Rows that are no rows of their format.
fn refused(unreadable: &Unreadable, source: &SourceAudit) -> Diagnostic {
    let mut diagnostic = data_fault(&unreadable.first);
    if unreadable.rows > 1 {
        diagnostic.message.push_str(&share(unreadable.rows, source.rows));
    }
    if diagnostic.excerpt.is_none() {
        diagnostic.excerpt.clone_from(&unreadable.excerpt);
    }
    diagnostic
}

fn report(finding: &Finding, verdict: Verdict, source: &SourceAudit, tokens: &TokensConfig) -> Diagnostic {
    let code = finding.code.name();
    let message = format!("{}{}", finding.message, share(finding.rows, source.rows));
    let place = Place {
        file: finding.first.file.clone(),
        row: Some(finding.first.row),
        line: finding.first.line,
        column: None,
    };
    let told = match verdict {
        Verdict::Refuse => Diagnostic::mistake(code, message),
        Verdict::Warn => Diagnostic::warning(code, message),
        Verdict::Allowed => {
            return Diagnostic::note(code, message).label("allowed by `tokens.allow`").place(place);
        }
    };
    let told = told.place(place).excerpt(&finding.first.excerpt);
    let told = remedies(finding.code, source).into_iter().fold(told, Diagnostic::hint);
    told.hint(format!("or, if it is meant so: `--set 'tokens.allow=[{}]'`", allowing(finding.code, tokens)))
}

/// "(3 of the first 256 rows)".
fn share(rows: u64, of: u64) -> String {
    match of {
        1 => String::new(),
        _ if rows == of => format!(" (all of the first {} rows)", count(of)),
        _ => format!(" ({} of the first {} rows)", count(rows), count(of)),
    }
}

/// The list of codes with one more.
fn allowing(code: AuditCode, tokens: &TokensConfig) -> String {
    let codes: Vec<String> =
        tokens.allow.iter().chain(std::iter::once(&code)).map(|code| format!("\"{}\"", code.name())).collect();
    codes.join(", ")
}

/// What to do about it.
fn remedies(code: AuditCode, source: &SourceAudit) -> Vec<String> {
    let fixed = |text: &str| vec![text.to_owned()];
    match code {
        AuditCode::NoLoss => fixed(
            "the rows need turns of the role `assistant`, completions, or labels that are not -100; `--set tokens.loss_on=all` trains on every token of a conversation",
        ),
        AuditCode::LittleLoss => fixed(
            "see with `qwen-tune data` what is trained; `tokens.loss_on`, `tokens.max_length` and the format of the rows decide",
        ),
        AuditCode::RoleUnmatched => fixed(
            "put `{% generation %}` and `{% endgeneration %}` around the answer in the chat template, or give another in `tokens.template`",
        ),
        AuditCode::RoleDropped => fixed(
            "give a chat template that writes this role in `tokens.template`, or take the messages out of the rows",
        ),
        AuditCode::StopUntrained => fixed(
            "the stop token has to carry loss: move it inside `{% generation %}` in the chat template, or set its label to its id",
        ),
        AuditCode::DoubleBos => {
            fixed("take the token out of the rows, or out of the chat template: one of them writes it already")
        }
        AuditCode::DoubleEos => fixed("take the token out of the rows: what frames them ends every turn already"),
        AuditCode::ThinkUnclosed | AuditCode::ThinkUnopened => fixed(
            "close every block in the rows, or move the reasoning to `reasoning_content`, which the chat template frames",
        ),
        AuditCode::AllOverlong => vec![
            format!("`--set tokens.max_length={}` takes nine of ten rows whole", source.row_lengths.quantile(0.9)),
            "or cut long rows into pieces: `--set tokens.overlong=split`".to_owned(),
        ],
        AuditCode::AnswersCut => vec![
            format!("`--set tokens.max_length={}` takes each of these rows whole", source.longest),
            "or leave long rows out: `--set tokens.overlong=drop`".to_owned(),
        ],
        AuditCode::EmptyAnswers => fixed("give the answers a text, or leave the rows out"),
        AuditCode::ReasoningLost => fixed(
            "where the template keeps it in the last turn, train only that: `--set tokens.loss_on=last`; some keep it in every turn with `--set tokens.template_vars.preserve_thinking=true`, others only inside the text of the answer",
        ),
        AuditCode::SameRows => fixed("see with `qwen-tune data` whether this is the file that was meant"),
        _ => Vec::new(),
    }
}
