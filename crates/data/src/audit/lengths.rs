//! Lengths of rows, counted in bounded memory.

use std::collections::BTreeMap;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

/// Above this, lengths are counted in steps of [`STEP`].
const EXACT: usize = 1 << 16;
const STEP: usize = 1 << 10;
/// Bars of a histogram, at most.
const BARS: usize = 12;

/// How many rows there are of each length, in tokens before `max_length`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lengths {
    counts: BTreeMap<usize, u64>,
    rows: u64,
    longest: usize,
}

/// Rows of a range of lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Bar {
    /// Shortest length, included.
    pub from: usize,
    /// Longest length, included.
    pub to: usize,
    /// Rows.
    pub rows: u64,
}

impl Lengths {
    pub(super) fn add(&mut self, tokens: usize) {
        let bucket = if tokens < EXACT { tokens } else { tokens - tokens % STEP };
        *self.counts.entry(bucket).or_insert(0) += 1;
        self.rows += 1;
        self.longest = self.longest.max(tokens);
    }

    /// The length that a share of the rows does not exceed; 0 without rows.
    #[must_use]
    pub fn quantile(&self, share: f64) -> usize {
        let wanted = ((self.rows as f64 * share).ceil() as u64).clamp(1, self.rows.max(1));
        let mut seen = 0;
        let reached = self.counts.iter().find(|(_, rows)| {
            seen += **rows;
            seen >= wanted
        });
        reached.map_or(0, |(length, _)| *length)
    }

    /// Bars of equal, round width up to the 99th percentile, and one for what is beyond.
    #[must_use]
    pub fn bars(&self) -> Vec<Bar> {
        let usual = self.quantile(0.99);
        // Token counts are thought of in powers of two.
        let width = (usual / (BARS - 2) + 1).next_power_of_two();
        let first = self.counts.keys().next().map_or(0, |shortest| shortest / width);
        let last = usual / width;
        let rows_in = |from: usize, to: usize| self.counts.range(from..=to).map(|(_, rows)| rows).sum();
        let mut bars: Vec<Bar> = (first..=last)
            .map(|bar| (bar * width, (bar + 1) * width - 1))
            .map(|(from, to)| Bar { from, to, rows: rows_in(from, to) })
            .collect();
        let beyond = (last + 1) * width;
        if self.longest >= beyond {
            bars.push(Bar { from: beyond, to: self.longest, rows: rows_in(beyond, usize::MAX) });
        }
        bars
    }
}

impl Serialize for Lengths {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Lengths", 4)?;
        fields.serialize_field("p50", &self.quantile(0.5))?;
        fields.serialize_field("p90", &self.quantile(0.9))?;
        fields.serialize_field("p99", &self.quantile(0.99))?;
        fields.serialize_field("histogram", &self.bars())?;
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_lengths_that_occur() {
        let mut lengths = Lengths::default();
        assert_eq!((lengths.quantile(0.5), lengths.bars().len()), (0, 1));
        (1..=100).for_each(|tokens| lengths.add(tokens));
        assert_eq!([0.0, 0.5, 0.9, 0.99, 1.0].map(|share| lengths.quantile(share)), [1, 50, 90, 99, 100]);
    }

    #[test]
    fn bars_hold_every_row_once_however_long_the_tail_is() {
        let mut lengths = Lengths::default();
        (0..1000).for_each(|row| lengths.add(row % 300));
        lengths.add(5_000_001);
        let bars = lengths.bars();
        assert_eq!(bars.iter().map(|bar| bar.rows).sum::<u64>(), 1001);
        assert_eq!(bars.last().map(|bar| (bar.to, bar.rows)), Some((5_000_001, 1)));
        assert!(bars.len() <= BARS && bars.windows(2).all(|pair| pair[0].to + 1 == pair[1].from), "{bars:?}");
    }
}
