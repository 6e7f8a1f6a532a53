//! The rows of one source, added up, and what they say together.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::Discriminant;

use super::excerpt::{excerpt, one_line};
use super::look::{Look, Stop};
use super::turns::Missing;
use super::{AuditCode, Finding, SourceAudit, Spot, Unreadable};
use crate::dataset::Dataset;
use crate::error::{DataError, RowError};
use crate::tokens::Overlong;

/// Trained tokens below this share of all are a mistake, and rows above it a habit of the data.
const SHARE: f64 = 0.01;
/// Rows from which on it is no accident that all are the same.
const SAME: u64 = 8;
/// Digests that are kept to find duplicates: 2^21 take about 50 MB.
const DIGESTS: usize = 1 << 21;

/// What rows of one code have in common.
struct Seen {
    rows: u64,
    first: Spot,
}

pub(super) struct Tally<'a> {
    dataset: &'a Dataset,
    audit: SourceAudit,
    seen: BTreeMap<AuditCode, Seen>,
    first: Option<Spot>,
    /// The first row that is cut, where it is cut.
    cut: Option<Spot>,
    digests: BTreeSet<u64>,
    /// Rows by how their answer ends, with the first of each; of rows given as tokens, too.
    trained_stops: u64,
    masked_stops: u64,
    masked: Option<Spot>,
    absent_stops: u64,
    absent: Option<Spot>,
    given: bool,
    conversations: u64,
    answering: u64,
    answers: u64,
    empty_answers: u64,
    roles: BTreeMap<String, (Missing, u64, Option<Spot>)>,
    /// Rows that carry loss before `max_length` is applied.
    with_loss: u64,
    unreadable: Vec<(Discriminant<RowError>, Unreadable)>,
}

impl<'a> Tally<'a> {
    pub(super) fn new(dataset: &'a Dataset) -> Self {
        Self {
            dataset,
            audit: SourceAudit::default(),
            seen: BTreeMap::new(),
            first: None,
            cut: None,
            digests: BTreeSet::new(),
            trained_stops: 0,
            masked_stops: 0,
            masked: None,
            absent_stops: 0,
            absent: None,
            given: false,
            conversations: 0,
            answering: 0,
            answers: 0,
            empty_answers: 0,
            roles: BTreeMap::new(),
            with_loss: 0,
            unreadable: Vec::new(),
        }
    }

    /// A row whose contents are wrong: counted with those that are wrong in the same way.
    pub(super) fn wrong(&mut self, row: Unreadable) -> Result<(), DataError> {
        let DataError::Row { error, .. } = &row.first else { return Err(row.first) };
        let kind = std::mem::discriminant(error.as_ref());
        self.audit.rows += 1;
        match self.unreadable.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, unreadable)) => unreadable.rows += row.rows,
            None => self.unreadable.push((kind, row)),
        }
        Ok(())
    }

    pub(super) fn add(&mut self, look: &Look) {
        let audit = &mut self.audit;
        let whole = look.tokenised.ids.len();
        audit.rows += 1;
        audit.samples += look.samples;
        audit.tokens += look.tokens;
        audit.trained += look.trained;
        audit.truncated += u64::from(look.truncated);
        audit.dropped += u64::from(look.trained == 0);
        audit.lengths.add(whole);
        audit.longest = audit.longest.max(whole);
        let max = self.dataset.encoder().config().max_length;
        audit.overlong += u64::from(whole > max);
        audit.cut_tokens += whole.saturating_sub(max) as u64;
        if self.digests.contains(&look.digest) {
            audit.duplicates += 1;
        } else if self.digests.len() < DIGESTS {
            self.digests.insert(look.digest);
        } else {
            audit.duplicates_missed = true;
        }
        self.with_loss += u64::from(look.trained_whole > 0);
        self.given |= look.given;
        self.first.get_or_insert_with(|| spot(self.dataset, look, 0));
        if whole > max {
            self.cut.get_or_insert_with(|| spot(self.dataset, look, max));
        }
        for &(code, at) in &look.oddities {
            let first = || Seen { rows: 0, first: spot(self.dataset, look, at) };
            self.seen.entry(code).or_insert_with(first).rows += 1;
        }
        match look.stop {
            Stop::NotExpected => {}
            Stop::Trained => self.trained_stops += 1,
            Stop::Masked(at) => {
                self.masked_stops += 1;
                self.masked.get_or_insert_with(|| spot(self.dataset, look, at));
            }
            Stop::Absent(at) => {
                self.absent_stops += 1;
                self.absent.get_or_insert_with(|| spot(self.dataset, look, at));
            }
        }
        let Some(turns) = &look.turns else { return };
        self.conversations += 1;
        self.answering += u64::from(turns.answers > 0);
        self.answers += turns.answers;
        self.empty_answers += turns.empty;
        for (role, missing) in &turns.roles {
            let (sum, rows, first) = self.roles.entry(role.clone()).or_default();
            sum.messages += missing.messages;
            sum.missing += missing.missing;
            if missing.missing > 0 {
                *rows += 1;
                if first.is_none() {
                    sum.text.clone_from(&missing.text);
                    *first = Some(spot(self.dataset, look, 0));
                }
            }
        }
    }

    pub(super) fn rows(&self) -> u64 {
        self.audit.rows
    }

    /// Everything that was found, the worst first.
    pub(super) fn finish(mut self) -> SourceAudit {
        let mut findings = Vec::new();
        self.loss(&mut findings);
        self.length(&mut findings);
        self.stops(&mut findings);
        self.roles_dropped(&mut findings);
        let looked = self.audit.rows;
        let habit = |rows: u64| rows as f64 >= looked as f64 * SHARE;
        for (code, seen) in std::mem::take(&mut self.seen) {
            let rows = seen.rows;
            let (refuses, message) = match code {
                AuditCode::RoleUnmatched => (
                    rows == self.answering,
                    "the conversation has answers, and the chat template marks none of their tokens as trained".to_owned(),
                ),
                AuditCode::DoubleBos => (habit(rows), format!("the token {} begins the sequence twice", self.token(&seen))),
                AuditCode::DoubleEos => (habit(rows), format!("the end token {} stands twice in a row", self.token(&seen))),
                AuditCode::ThinkUnclosed => (habit(rows), "an answer opens `<think>` and never closes it".to_owned()),
                AuditCode::ThinkUnopened => (habit(rows), "an answer closes `</think>` without having opened it".to_owned()),
                AuditCode::AnswersCut if habit(rows) => {
                    (false, "everything that carries loss lies behind `tokens.max_length`".to_owned())
                }
                AuditCode::EmptyAnswers => (
                    self.empty_answers == self.answers,
                    format!("{} of {} answers are empty", self.empty_answers, self.answers),
                ),
                AuditCode::ReasoningLost => (
                    false,
                    "the chat template leaves out the reasoning of a turn that is trained, which teaches the model to answer without it".to_owned(),
                ),
                _ => continue,
            };
            findings.push(Finding { code, refuses, rows, message, first: seen.first });
        }
        findings.sort_by_key(|finding| (!finding.refuses, finding.code));
        self.audit.findings = findings;
        self.audit.unreadable = self.unreadable.into_iter().map(|(_, unreadable)| unreadable).collect();
        self.audit
    }

    fn push(&self, findings: &mut Vec<Finding>, code: AuditCode, refuses: bool, rows: u64, message: String) {
        if let Some(first) = &self.first {
            findings.push(Finding { code, refuses, rows, message, first: first.clone() });
        }
    }

    fn loss(&self, findings: &mut Vec<Finding>) {
        let audit = &self.audit;
        if audit.trained == 0 {
            let why = if self.with_loss > 0 {
                "what would carry it lies behind `tokens.max_length`"
            } else if self.given {
                "every label is -100"
            } else if self.conversations > 0 && self.answering == 0 {
                "no conversation has a turn of the assistant"
            } else if self.answering > 0 {
                "the chat template marks none of the assistant's tokens"
            } else {
                "the rows are empty"
            };
            self.push(findings, AuditCode::NoLoss, true, audit.rows, format!("no token carries loss: {why}"));
        } else if audit.trained_share() < SHARE {
            let share = 100.0 * audit.trained_share();
            let message = format!("{} of {} tokens carry loss, {share:.2}%", audit.trained, audit.tokens);
            self.push(findings, AuditCode::LittleLoss, true, audit.rows, message);
        }
        if audit.rows >= SAME && audit.duplicates == audit.rows - 1 {
            self.push(findings, AuditCode::SameRows, false, audit.rows, "every row is the same".to_owned());
        }
    }

    fn length(&self, findings: &mut Vec<Finding>) {
        let config = self.dataset.encoder().config();
        let cuts = matches!(config.overlong, Overlong::Truncate | Overlong::Drop);
        if let Some(first) = self.cut.clone().filter(|_| cuts && self.audit.overlong == self.audit.rows) {
            let shortest = self.audit.lengths.quantile(0.0);
            let message = format!(
                "every row is longer than `tokens.max_length` = {}; the shortest has {shortest} tokens",
                config.max_length
            );
            let (code, rows) = (AuditCode::AllOverlong, self.audit.overlong);
            findings.push(Finding { code, refuses: true, rows, message, first });
        }
    }

    fn stops(&self, findings: &mut Vec<Finding>) {
        let rows = self.masked_stops + self.absent_stops;
        if self.trained_stops > 0 || rows == 0 {
            return;
        }
        let encoder = self.dataset.encoder();
        let code = AuditCode::StopUntrained;
        if self.masked_stops * 2 >= rows
            && let Some(first) = self.masked.clone()
        {
            let id = first.token;
            let token = id.and_then(|id| encoder.token(id)).unwrap_or_default();
            let pad = if id.is_some() && id == encoder.pad_id() {
                "; it is the padding token too, and masking padding masks it"
            } else {
                ""
            };
            let message =
                format!("the stop token `{token}` ends every answer and is masked, so it is never trained{pad}");
            findings.push(Finding { code, refuses: true, rows, message, first });
        } else if let Some(first) = self.absent.clone() {
            let message = "no stop token follows what is trained, so the model does not learn to stop".to_owned();
            // Rows given as tokens may be parts of what ends elsewhere.
            findings.push(Finding { code, refuses: !self.given, rows, message, first });
        }
    }

    fn roles_dropped(&self, findings: &mut Vec<Finding>) {
        const SHOWN: usize = 60;
        for (role, (sum, rows, first)) in &self.roles {
            let Some(first) = first.clone() else { continue };
            let text = one_line(&sum.text);
            let text = match text.char_indices().nth(SHOWN) {
                Some((end, _)) => format!("{}...", &text[..end]),
                None => text,
            };
            let all = sum.missing == sum.messages;
            let how_many =
                if all { "the messages".to_owned() } else { format!("{} of {} messages", sum.missing, sum.messages) };
            let message = format!(
                "the chat template leaves out {how_many} of the role `{role}`: \"{text}\" is nowhere in the row"
            );
            findings.push(Finding { code: AuditCode::RoleDropped, refuses: all, rows: *rows, message, first });
        }
    }

    fn token(&self, seen: &Seen) -> String {
        let token = seen.first.token.and_then(|id| self.dataset.encoder().token(id));
        format!("`{}`", token.unwrap_or_default())
    }
}

/// A row to show, and a token of it.
fn spot(dataset: &Dataset, look: &Look, at: usize) -> Spot {
    Spot {
        file: dataset.file(look.origin).to_owned(),
        row: look.origin.row,
        line: look.line,
        excerpt: excerpt(dataset.encoder(), &look.tokenised, at),
        token: look.tokenised.ids.get(at).copied(),
    }
}
