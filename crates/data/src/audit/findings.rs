//! What the counts of a source mean.

use super::excerpt::one_line;
use super::tally::{Counts, Seen};
use super::{AuditCode, Finding, SourceAudit, Spot};
use crate::encode::Encoder;
use crate::tokens::Overlong;

/// Trained tokens below this share of all are a mistake, and rows above it a habit of the data.
const SHARE: f64 = 0.01;
/// Rows from which on it is no accident that all are the same.
const SAME: u64 = 8;

/// Everything that was found, the worst first.
pub(super) fn findings(encoder: &Encoder, audit: &SourceAudit, counts: &Counts) -> Vec<Finding> {
    let mut found: Vec<Finding> =
        counts.odd.iter().filter_map(|(code, seen)| odd(encoder, *code, seen, audit, counts)).collect();
    found.extend(loss(audit, counts));
    found.extend(same(audit, counts));
    found.extend(length(encoder, audit, counts));
    found.extend(stops(encoder, counts));
    found.extend(dropped(counts));
    found.sort_by_key(|finding| (!finding.refuses, finding.code));
    found
}

fn finding(code: AuditCode, refuses: bool, rows: u64, first: &Spot, message: impl Into<String>) -> Finding {
    Finding { code, refuses, rows, message: message.into(), first: first.clone() }
}

/// What shows in single rows.
fn odd(encoder: &Encoder, code: AuditCode, seen: &Seen, audit: &SourceAudit, counts: &Counts) -> Option<Finding> {
    let habit = seen.rows as f64 >= audit.rows as f64 * SHARE;
    let token = || token(encoder, &seen.first);
    let (refuses, message) = match code {
        AuditCode::RoleUnmatched => (
            seen.rows == counts.answering,
            "the conversation has answers, and the chat template marks none of their tokens as trained".to_owned(),
        ),
        AuditCode::DoubleBos => (habit, format!("the token {} begins the sequence twice", token())),
        AuditCode::DoubleEos => (habit, format!("the end token {} stands twice in a row", token())),
        AuditCode::ThinkUnclosed => (habit, "an answer opens `<think>` and never closes it".to_owned()),
        AuditCode::ThinkUnopened => (habit, "an answer closes `</think>` without having opened it".to_owned()),
        AuditCode::EmptyAnswers => (
            counts.empty_answers == counts.answers,
            format!("{} of {} answers are empty", counts.empty_answers, counts.answers),
        ),
        AuditCode::AnswersCut if habit => {
            (false, "everything that carries loss lies behind `tokens.max_length`".to_owned())
        }
        AuditCode::ReasoningLost => (
            false,
            "the chat template leaves out the reasoning of a turn that is trained, which teaches the model to answer without it".to_owned(),
        ),
        _ => return None,
    };
    Some(finding(code, refuses, seen.rows, &seen.first, message))
}

/// Nothing, or next to nothing, that carries loss.
fn loss(audit: &SourceAudit, counts: &Counts) -> Option<Finding> {
    let first = counts.first.as_ref()?;
    if audit.trained > 0 {
        let share = audit.trained_share();
        let message = format!("{} of {} tokens carry loss, {:.2}%", audit.trained, audit.tokens, 100.0 * share);
        return (share < SHARE).then(|| finding(AuditCode::LittleLoss, true, audit.rows, first, message));
    }
    let why = if counts.with_loss > 0 {
        "what would carry it lies behind `tokens.max_length`"
    } else if counts.given {
        "every label is -100"
    } else if counts.answering > 0 {
        "the chat template marks none of the assistant's tokens"
    } else if counts.conversations > 0 {
        "no conversation has a turn of the assistant"
    } else {
        "the rows are empty"
    };
    Some(finding(AuditCode::NoLoss, true, audit.rows, first, format!("no token carries loss: {why}")))
}

fn same(audit: &SourceAudit, counts: &Counts) -> Option<Finding> {
    let same = audit.rows >= SAME && audit.duplicates == audit.rows - 1;
    let first = counts.first.as_ref().filter(|_| same)?;
    Some(finding(AuditCode::SameRows, false, audit.rows, first, "every row is the same"))
}

/// No row as a whole. Rows that are split lose nothing.
fn length(encoder: &Encoder, audit: &SourceAudit, counts: &Counts) -> Option<Finding> {
    let config = encoder.config();
    let cuts = matches!(config.overlong, Overlong::Truncate | Overlong::Drop);
    let first = counts.cut.as_ref().filter(|_| cuts && audit.overlong == audit.rows)?;
    let (max, shortest) = (config.max_length, audit.row_lengths.quantile(0.0));
    let message = format!("every row is longer than `tokens.max_length` = {max}; the shortest has {shortest} tokens");
    Some(finding(AuditCode::AllOverlong, true, audit.rows, first, message))
}

/// A stop token that is never trained.
fn stops(encoder: &Encoder, counts: &Counts) -> Option<Finding> {
    let rows_of = |seen: &Option<Seen>| seen.as_ref().map_or(0, |seen| seen.rows);
    let (masked, absent) = (rows_of(&counts.masked_stops), rows_of(&counts.absent_stops));
    if counts.trained_stops > 0 {
        return None;
    }
    let (code, rows) = (AuditCode::StopUntrained, masked + absent);
    if masked >= absent
        && let Some(seen) = &counts.masked_stops
    {
        let mut message = format!(
            "the stop token {} ends every answer and is masked, so it is never trained",
            token(encoder, &seen.first)
        );
        if seen.first.token.is_some_and(|id| Some(id) == encoder.pad_id()) {
            message.push_str("; it is the padding token too, and masking padding masks it");
        }
        return Some(finding(code, true, rows, &seen.first, message));
    }
    let first = &counts.absent_stops.as_ref()?.first;
    // Rows given as tokens may be parts of what ends elsewhere.
    let message = "no stop token follows what is trained, so the model does not learn to stop";
    Some(finding(code, !counts.given, rows, first, message))
}

/// Roles whose messages the template leaves out.
fn dropped(counts: &Counts) -> impl Iterator<Item = Finding> + '_ {
    counts.roles.iter().filter_map(|(name, role)| {
        const SHOWN: usize = 60;
        let seen = role.seen.as_ref()?;
        let text = one_line(&role.text);
        let text = match text.char_indices().nth(SHOWN) {
            Some((end, _)) => format!("{}...", &text[..end]),
            None => text,
        };
        let all = role.missing == role.messages;
        let which =
            if all { "the messages".to_owned() } else { format!("{} of {} messages", role.missing, role.messages) };
        let message = format!("the chat template leaves out {which} of the role `{name}`, first \"{text}\"");
        Some(finding(AuditCode::RoleDropped, all, seen.rows, &seen.first, message))
    })
}

fn token(encoder: &Encoder, spot: &Spot) -> String {
    format!("`{}`", spot.token.and_then(|id| encoder.token(id)).unwrap_or_default())
}
