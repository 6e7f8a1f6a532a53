//! What the rows of each source become, looked at before anything is trained on them.
//!
//! A run on wrong labels looks like any other: the loss falls. So every run begins by looking at the first rows of
//! each source as the model will see them, and does not start when they cannot teach what they are meant to.

mod code;
mod excerpt;
mod findings;
mod lengths;
mod look;
mod tally;
mod turns;

use std::path::PathBuf;

use rayon::prelude::*;
use serde::{Serialize, Serializer};

pub use self::code::AuditCode;
use self::excerpt::beginning;
pub(crate) use self::excerpt::one_line;
pub use self::lengths::{Bar, Lengths};
use self::look::{Facts, Look, weight};
use self::tally::Tally;
use crate::dataset::{Candidate, Dataset};
use crate::error::DataError;
use crate::evaluate::Samples;
use crate::row::Row;

/// Rows looked at together: enough to keep all threads busy.
const CHUNK: usize = 16;
/// Rows of each source whose messages are all looked for one by one.
const PROBED: u64 = 8;

/// How much of each source is looked at. Counted and not timed, so that the same data is judged alike everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct AuditLimits {
    /// Rows of each source.
    pub rows: u64,
    /// Bytes of text in all, shared evenly by the sources. A source's first row is looked at whatever its size, of a
    /// document only the part that there is room for.
    pub bytes: u64,
}

impl AuditLimits {
    /// What a start can afford: below a second on two cores.
    pub const START: Self = Self { rows: 256, bytes: 1 << 20 };
    /// What somebody who asks for mistakes waits for: every row of most data sets, half a minute of a huge one.
    pub const CHECK: Self = Self { rows: u64::MAX, bytes: 64 << 20 };
    /// Everything.
    pub const ALL: Self = Self { rows: u64::MAX, bytes: u64::MAX };
}

/// Counts and findings over the first rows of a data set.
#[derive(Debug, Default, Serialize)]
pub struct Audit {
    /// One entry a source.
    pub sources: Vec<SourceAudit>,
}

/// Counts and findings over the first rows of a source.
#[derive(Debug, Default, Serialize)]
pub struct SourceAudit {
    /// Its first file.
    pub file: PathBuf,
    /// Rows looked at.
    pub rows: u64,
    /// Sequences made from them.
    pub samples: u64,
    /// Tokens of those sequences.
    pub tokens: u64,
    /// Tokens that carry loss.
    pub trained: u64,
    /// Rows that lost their end to `max_length`.
    pub truncated: u64,
    /// Rows longer than `max_length`, whatever becomes of them.
    pub overlong: u64,
    /// Their tokens beyond it.
    pub cut_tokens: u64,
    /// Rows with nothing to train on: too long, or all masked.
    pub dropped: u64,
    /// Rows whose tokens were all seen before in the source.
    pub duplicates: u64,
    /// Whether there were too many rows to find every duplicate.
    pub duplicates_missed: bool,
    /// Tokens of the longest row, before `max_length`.
    pub longest: usize,
    /// Lengths of the rows before `max_length`.
    #[serde(rename = "lengths")]
    pub row_lengths: Lengths,
    /// Tokens of each sequence that has any with loss.
    #[serde(skip)]
    pub lengths: Vec<usize>,
    /// What is odd, what stops a run first.
    pub findings: Vec<Finding>,
    /// Rows that are no rows of their format, by what is wrong with them.
    pub unreadable: Vec<Unreadable>,
}

/// Something odd in a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub code: AuditCode,
    /// Whether it makes a run on the source meaningless.
    pub refuses: bool,
    /// Rows that show it.
    pub rows: u64,
    /// One sentence.
    pub message: String,
    /// The first of these rows.
    pub first: Spot,
}

/// A row to look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Spot {
    /// The file.
    pub file: PathBuf,
    /// Row of the file, from 0.
    pub row: u64,
    /// Line of the file, from 1, where it has lines.
    pub line: Option<u64>,
    /// The row as the model sees it where the finding shows: on one line, trained stretches between `⟦` and `⟧`.
    pub excerpt: String,
    /// The token where it shows.
    #[serde(skip)]
    token: Option<u32>,
}

/// Rows that are wrong in the same way.
#[derive(Debug, Serialize)]
pub struct Unreadable {
    /// How many.
    pub rows: u64,
    /// What is wrong with the first.
    #[serde(serialize_with = "told")]
    pub first: DataError,
    /// How that row begins, where it could be read so far.
    pub excerpt: Option<String>,
}

fn told<S: Serializer>(error: &DataError, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(error)
}

/// What a finding means for a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The run must not start.
    Refuse,
    /// The user should know.
    Warn,
    /// The user knows, and said so in `tokens.allow`.
    Allowed,
}

impl SourceAudit {
    /// Trained tokens as a share of all.
    #[must_use]
    pub fn trained_share(&self) -> f64 {
        if self.tokens == 0 { 0.0 } else { self.trained as f64 / self.tokens as f64 }
    }

    /// The findings and what they mean where some are allowed. A finding that another one explains is left out.
    pub fn verdicts<'a>(&'a self, allow: &'a [AuditCode]) -> impl Iterator<Item = (&'a Finding, Verdict)> {
        let verdict = |finding: &Finding| match finding {
            finding if allow.contains(&finding.code) => Verdict::Allowed,
            Finding { refuses: true, .. } => Verdict::Refuse,
            _ => Verdict::Warn,
        };
        let causes = [AuditCode::RoleUnmatched, AuditCode::AllOverlong];
        let explained = self.findings.iter().any(|f| causes.contains(&f.code) && verdict(f) == Verdict::Refuse);
        self.findings
            .iter()
            .filter(move |f| !(explained && matches!(f.code, AuditCode::NoLoss | AuditCode::AnswersCut)))
            .map(move |f| (f, verdict(f)))
    }
}

impl Audit {
    pub(crate) fn of(dataset: &Dataset, limits: AuditLimits) -> Result<Self, DataError> {
        let facts = Facts::of(dataset.encoder());
        let share = limits.bytes / (dataset.indices().len() as u64).max(1);
        let mut sources = Vec::new();
        let mut samples = Samples::new(dataset);
        for (source, info) in dataset.sources().enumerate() {
            samples.skip_to_source(source);
            let mut tally = Tally::new(dataset);
            let mut room = share;
            loop {
                let wanted = limits.rows.saturating_sub(tally.rows()).min(CHUNK as u64) as usize;
                let mut rows = read(dataset, &mut samples, source, wanted, share)?;
                let affordable = affordable(&rows, &mut room, tally.rows() == 0);
                let done = rows.is_empty() || affordable < rows.len();
                rows.truncate(affordable);
                look(dataset, &facts, &mut tally, rows)?;
                if done {
                    break;
                }
            }
            let file = info.files.first().cloned().unwrap_or_default();
            sources.push(SourceAudit { file, ..tally.finish() });
        }
        Ok(Self { sources })
    }
}

type Read = (Candidate, Result<Row, DataError>);

/// A document without what is beyond so many bytes; one that is longer is too long for any sequence either way.
fn shortened(mut row: Row, bytes: u64) -> Row {
    if let Row::Text(text) = &mut row {
        let end = text.floor_char_boundary(usize::try_from(bytes).unwrap_or(usize::MAX));
        text.truncate(end);
    }
    row
}

/// The next rows of a source.
fn read(
    dataset: &Dataset,
    samples: &mut Samples<'_>,
    source: usize,
    wanted: usize,
    longest: u64,
) -> Result<Vec<Read>, DataError> {
    let mut candidates = Vec::with_capacity(wanted);
    while candidates.len() < wanted {
        match samples.advance().transpose()? {
            Some(candidate) if candidate.origin.source == source => candidates.push(candidate),
            _ => break,
        }
    }
    let row = |candidate: Candidate| {
        let row = dataset.row(&candidate).map(|row| shortened(row, longest));
        (candidate, row)
    };
    Ok(candidates.into_par_iter().map(row).collect())
}

/// How many of the rows there is room for, which they then take up.
fn affordable(rows: &[Read], room: &mut u64, first: bool) -> usize {
    let fitting = rows.iter().enumerate().take_while(|(index, (_, row))| {
        let bytes = row.as_ref().map_or(0, weight);
        let fits = bytes <= *room || (first && *index == 0);
        *room = room.saturating_sub(bytes);
        fits
    });
    fitting.count()
}

fn look(dataset: &Dataset, facts: &Facts, tally: &mut Tally<'_>, rows: Vec<Read>) -> Result<(), DataError> {
    let before = tally.rows();
    let looks: Vec<Result<Look, Box<Unreadable>>> = rows
        .into_par_iter()
        .enumerate()
        .map(|(index, (candidate, row))| {
            let probe = before + (index as u64) < PROBED;
            let wrong = |first, excerpt| Box::new(Unreadable { rows: 1, first, excerpt });
            let row = row.map_err(|error| wrong(error, None))?;
            Look::at(dataset, facts, &candidate, &row, probe).map_err(|error| wrong(error, beginning(&row)))
        })
        .collect();
    for look in looks {
        match look {
            Ok(look) => tally.add(&look),
            Err(unreadable) => tally.wrong(*unreadable)?,
        }
    }
    Ok(())
}
