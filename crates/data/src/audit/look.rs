//! One row: what it became, and what is odd about it.

use super::AuditCode;
use super::turns::Turns;
use crate::dataset::{Candidate, Dataset};
use crate::encode::{Encoder, Tokenised};
use crate::error::DataError;
use crate::hash::hash;
use crate::row::{Origin, Row};
use crate::tokens::LossOn;

/// What is the same for every row of an audit.
pub(super) struct Facts {
    /// Tokens that end an answer. Of a template, the one that it writes; elsewhere, any that could.
    turn_end: Option<u32>,
    stops: Vec<u32>,
    think: [Option<u32>; 2],
}

impl Facts {
    pub(super) fn of(encoder: &Encoder) -> Self {
        let turn_end = encoder.turn_end_id();
        let mut stops = encoder.stop_ids();
        stops.extend(turn_end);
        Self { turn_end, stops, think: ["<think>", "</think>"].map(|tag| encoder.token_id(tag)) }
    }

    fn ends_answer(&self, id: u32, rendered: bool) -> bool {
        match self.turn_end {
            Some(end) if rendered => id == end,
            _ => self.stops.contains(&id),
        }
    }
}

/// A row after everything that can be found in it alone has been found.
pub(super) struct Look {
    pub(super) origin: Origin,
    pub(super) line: Option<u64>,
    pub(super) tokenised: Tokenised,
    /// After `max_length`.
    pub(super) samples: u64,
    pub(super) tokens: u64,
    pub(super) trained: u64,
    pub(super) truncated: bool,
    /// Of the samples that have loss.
    pub(super) lengths: Vec<usize>,
    /// Trained tokens before `max_length`.
    pub(super) trained_whole: u64,
    /// Codes, each with the token where it shows.
    pub(super) oddities: Vec<(AuditCode, usize)>,
    pub(super) stop: Stop,
    pub(super) turns: Option<Turns>,
    /// Whether the row is given as tokens.
    pub(super) given: bool,
    pub(super) digest: u64,
}

/// What becomes of the token that ends an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// Nothing that could end.
    NotExpected,
    /// It is trained.
    Trained,
    /// It stands behind the last trained token and is masked.
    Masked(usize),
    /// It does not follow the last trained token.
    Absent(usize),
}

impl Look {
    /// Encodes a row and looks at it.
    pub(super) fn at(
        dataset: &Dataset,
        facts: &Facts,
        candidate: &Candidate,
        row: &Row,
        probe: bool,
    ) -> Result<Self, DataError> {
        let encoder = dataset.encoder().as_ref();
        let whole = encoder.tokenise(row).map_err(|error| dataset.row_error(candidate, error))?;
        let cut = encoder.cut(&whole, candidate.origin).map_err(|error| dataset.row_error(candidate, error))?;
        let turns = Turns::of(encoder, row, &whole.text, probe);
        let mut oddities = Vec::new();
        doubled(encoder, facts, row, &whole, &mut oddities);
        thinking(encoder, facts, row, &whole, &mut oddities);
        let trained = cut.samples.iter().map(|sample| sample.num_trained() as u64).sum();
        let trained_whole = whole.trained.iter().filter(|trained| **trained).count() as u64;
        let first_trained = whole.trained.iter().position(|trained| *trained);
        if let Some(first) = first_trained.filter(|_| trained == 0 && cut.truncated) {
            oddities.push((AuditCode::AnswersCut, first));
        }
        if let Some(turns) = &turns {
            if turns.answers > 0 && trained_whole == 0 {
                oddities.push((AuditCode::RoleUnmatched, 0));
            }
            if turns.empty > 0 {
                oddities.push((AuditCode::EmptyAnswers, first_trained.unwrap_or(0)));
            }
            if turns.unreasoned > 0 && trained_whole > 0 {
                oddities.push((AuditCode::ReasoningLost, first_trained.unwrap_or(0)));
            }
        }
        Ok(Self {
            origin: candidate.origin,
            line: candidate.line(),
            samples: cut.samples.len() as u64,
            tokens: cut.samples.iter().map(|sample| sample.ids.len() as u64).sum(),
            trained,
            truncated: cut.truncated,
            lengths: cut.samples.iter().filter(|s| s.num_trained() > 0).map(|s| s.ids.len()).collect(),
            trained_whole,
            oddities,
            stop: stop(facts, encoder, row, &whole),
            turns,
            given: matches!(row, Row::Tokens { .. }),
            digest: digest(&whole),
            tokenised: whole,
        })
    }
}

/// Bytes of text in a row, roughly: what encoding it costs.
pub(super) fn weight(row: &Row) -> u64 {
    let message =
        |m: &crate::row::Message| m.fields().iter().map(|(key, value)| key.len() + size(value)).sum::<usize>();
    let conversation =
        |c: &crate::row::Conversation| c.messages.iter().map(message).sum::<usize>() + c.tools.as_ref().map_or(0, size);
    let bytes = match row {
        Row::Chat(chat) => conversation(chat),
        Row::ChatCompletion { prompt, completion } => {
            conversation(prompt) + completion.iter().map(message).sum::<usize>()
        }
        Row::Completion { prompt, completion } => prompt.len() + completion.len(),
        Row::Text(text) => text.len(),
        // Nothing is left to do for them but to count.
        Row::Tokens { ids, .. } => ids.len() / 8,
    };
    bytes as u64
}

fn size(value: &serde_json::Value) -> usize {
    use serde_json::Value;
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Object(fields) => fields.iter().map(|(key, value)| key.len() + size(value)).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 4,
    }
}

fn digest(row: &Tokenised) -> u64 {
    let words = row.ids.iter().zip(&row.trained).map(|(id, trained)| u64::from(*id) << 1 | u64::from(*trained));
    words.fold(row.ids.len() as u64, |state, word| hash(&[state, word]))
}

/// Begin or end twice in a row. Masked tokens of rows given as tokens may be padding, which is harmless.
fn doubled(encoder: &Encoder, facts: &Facts, row: &Row, whole: &Tokenised, found: &mut Vec<(AuditCode, usize)>) {
    let given = matches!(row, Row::Tokens { .. });
    let twice = |wanted: &dyn Fn(u32) -> bool| {
        let pairs = whole.ids.windows(2).zip(&whole.trained[1.min(whole.trained.len())..]);
        pairs.enumerate().find(|(_, (pair, trained))| pair[0] == pair[1] && wanted(pair[0]) && (!given || **trained))
    };
    let begin = encoder.begin_id().filter(|id| !facts.stops.contains(id));
    if let Some((at, _)) = twice(&|id| Some(id) == begin) {
        found.push((AuditCode::DoubleBos, at + 1));
    }
    if let Some((at, _)) = twice(&|id| facts.stops.contains(&id)) {
        found.push((AuditCode::DoubleEos, at + 1));
    }
}

/// Thinking blocks of answers that are open at one end. A turn is what lies between two tokens that end turns.
fn thinking(encoder: &Encoder, facts: &Facts, row: &Row, whole: &Tokenised, found: &mut Vec<(AuditCode, usize)>) {
    // Documents may speak about the tags.
    if matches!(row, Row::Text(_)) || encoder.config().loss_on == LossOn::All {
        return;
    }
    let tagged = || whole.ids.iter().any(|id| facts.think.contains(&Some(*id)));
    if !whole.text.contains("think>") && !tagged() {
        return;
    }
    let mut start = 0;
    while start < whole.ids.len() {
        let end = (start..whole.ids.len()).find(|&at| facts.stops.contains(&whole.ids[at])).unwrap_or(whole.ids.len());
        let trained = (start..end).find(|&at| whole.trained[at]);
        if let Some(trained) = trained
            && let Ok(text) = encoder.decode(&whole.ids[start..end], false)
        {
            let mut open = 0u32;
            for tag in tags(&text) {
                match (tag, open) {
                    (true, _) => open += 1,
                    (false, 0) => {
                        found.push((AuditCode::ThinkUnopened, trained));
                        break;
                    }
                    (false, _) => open -= 1,
                }
            }
            if open > 0 {
                found.push((AuditCode::ThinkUnclosed, trained));
            }
        }
        start = end + 1;
    }
    found.sort_by_key(|(code, at)| (*code, *at));
    found.dedup_by_key(|(code, _)| *code);
}

/// The tags of a text in their order: true opens.
fn tags(text: &str) -> impl Iterator<Item = bool> + '_ {
    text.match_indices("think>").filter_map(|(at, _)| match &text[..at] {
        before if before.ends_with("</") => Some(false),
        before if before.ends_with('<') => Some(true),
        _ => None,
    })
}

fn stop(facts: &Facts, encoder: &Encoder, row: &Row, whole: &Tokenised) -> Stop {
    let rendered = match row {
        Row::Chat(_) | Row::ChatCompletion { .. } => true,
        Row::Completion { .. } | Row::Tokens { labels: Some(_), .. } => false,
        // Documents, and tokens that are all trained, say themselves where they end.
        Row::Text(_) | Row::Tokens { labels: None, .. } => return Stop::NotExpected,
    };
    let Some(last) = whole.trained.iter().rposition(|trained| *trained) else { return Stop::NotExpected };
    let ends = |at: &usize| facts.ends_answer(whole.ids[*at], rendered);
    if (0..=last).any(|at| whole.trained[at] && ends(&at)) {
        return Stop::Trained;
    }
    // The template may write a space or a newline before it.
    let behind = (last + 1..whole.ids.len().min(last + 4)).find(|at| encoder.is_added(whole.ids[*at]));
    match behind.filter(ends) {
        Some(at) => Stop::Masked(at),
        None => Stop::Absent(last),
    }
}
