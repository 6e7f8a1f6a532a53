//! The rows of one source, added up.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::Discriminant;

use super::excerpt::excerpt;
use super::findings::findings;
use super::look::{Look, Stop};
use super::{AuditCode, SourceAudit, Spot, Unreadable};
use crate::dataset::Dataset;
use crate::error::{DataError, RowError};

/// Digests that are kept to find duplicates: 2^21 take about 50 MB.
const DIGESTS: usize = 1 << 21;

/// Rows that have something in common.
pub(super) struct Seen {
    pub(super) rows: u64,
    pub(super) first: Spot,
}

/// Messages of a role.
#[derive(Default)]
pub(super) struct Role {
    pub(super) messages: u64,
    /// Those that the rendering leaves out, the text of the first of them, and their rows.
    pub(super) missing: u64,
    pub(super) text: String,
    pub(super) seen: Option<Seen>,
}

/// What findings are made of.
#[derive(Default)]
pub(super) struct Counts {
    /// The first row, and the first that is cut where it is cut.
    pub(super) first: Option<Spot>,
    pub(super) cut: Option<Spot>,
    /// Rows by what is odd about each of them.
    pub(super) odd: BTreeMap<AuditCode, Seen>,
    /// Rows by how their answer ends.
    pub(super) trained_stops: u64,
    pub(super) masked_stops: Option<Seen>,
    pub(super) absent_stops: Option<Seen>,
    /// Whether rows are given as tokens.
    pub(super) given: bool,
    /// Rows that are conversations, and those of them with answers.
    pub(super) conversations: u64,
    pub(super) answering: u64,
    pub(super) answers: u64,
    pub(super) empty_answers: u64,
    pub(super) roles: BTreeMap<String, Role>,
    /// Rows that carry loss before `max_length` is applied.
    pub(super) with_loss: u64,
}

pub(super) struct Tally<'a> {
    dataset: &'a Dataset,
    audit: SourceAudit,
    counts: Counts,
    digests: BTreeSet<u64>,
    unreadable: Vec<(Discriminant<RowError>, Unreadable)>,
}

impl<'a> Tally<'a> {
    pub(super) fn new(dataset: &'a Dataset) -> Self {
        Self {
            dataset,
            audit: SourceAudit::default(),
            counts: Counts::default(),
            digests: BTreeSet::new(),
            unreadable: Vec::new(),
        }
    }

    /// Rows so far.
    pub(super) fn rows(&self) -> u64 {
        self.audit.rows
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
        self.count(look);
        let (dataset, counts) = (self.dataset, &mut self.counts);
        let max = dataset.encoder().config().max_length;
        let spot = |at: usize| spot(dataset, look, at);
        counts.with_loss += u64::from(look.trained_whole > 0);
        counts.given |= look.given;
        counts.first.get_or_insert_with(|| spot(0));
        if look.tokenised.ids.len() > max {
            counts.cut.get_or_insert_with(|| spot(max));
        }
        for &(code, at) in &look.oddities {
            counts.odd.entry(code).or_insert_with(|| Seen { rows: 0, first: spot(at) }).rows += 1;
        }
        match look.stop {
            Stop::NotExpected => {}
            Stop::Trained => counts.trained_stops += 1,
            Stop::Masked(at) => see(&mut counts.masked_stops, || spot(at)),
            Stop::Absent(at) => see(&mut counts.absent_stops, || spot(at)),
        }
        let Some(turns) = &look.turns else { return };
        counts.conversations += 1;
        counts.answering += u64::from(turns.answers > 0);
        counts.answers += turns.answers;
        counts.empty_answers += turns.empty;
        for (name, found) in &turns.roles {
            let role = counts.roles.entry(name.clone()).or_default();
            role.messages += found.messages;
            role.missing += found.missing;
            if found.missing > 0 {
                if role.seen.is_none() {
                    role.text.clone_from(&found.text);
                }
                see(&mut role.seen, || spot(0));
            }
        }
    }

    fn count(&mut self, look: &Look) {
        let audit = &mut self.audit;
        let whole = look.tokenised.ids.len();
        let max = self.dataset.encoder().config().max_length;
        audit.rows += 1;
        audit.samples += look.samples;
        audit.tokens += look.tokens;
        audit.trained += look.trained;
        audit.truncated += u64::from(look.truncated);
        audit.dropped += u64::from(look.trained == 0);
        audit.overlong += u64::from(whole > max);
        audit.cut_tokens += whole.saturating_sub(max) as u64;
        audit.longest = audit.longest.max(whole);
        audit.row_lengths.add(whole);
        audit.lengths.extend(&look.lengths);
        if self.digests.contains(&look.digest) {
            audit.duplicates += 1;
        } else if self.digests.len() < DIGESTS {
            self.digests.insert(look.digest);
        } else {
            audit.duplicates_missed = true;
        }
    }

    pub(super) fn finish(self) -> SourceAudit {
        let findings = findings(self.dataset.encoder(), &self.audit, &self.counts);
        let unreadable = self.unreadable.into_iter().map(|(_, unreadable)| unreadable).collect();
        SourceAudit { findings, unreadable, ..self.audit }
    }
}

fn see(seen: &mut Option<Seen>, first: impl FnOnce() -> Spot) {
    seen.get_or_insert_with(|| Seen { rows: 0, first: first() }).rows += 1;
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
