//! How much runs in one forward, as far as memory depends on it.

/// Tokens that a recurrence takes together; it keeps its state between these.
const CHUNK: usize = 64;

/// A sequence's queries are shared among at most so many tasks in the backward of attention, of at least so many queries; each
/// brings own sums for the keys that it sees.
const STRIPS: usize = 4;
const STRIP_ROWS: usize = 256;

/// Tokens that run in one forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Extent {
    /// Their number.
    pub tokens: u64,
    /// Borders between chunks of their sequences, at which recurrences keep their states: none in a short sequence.
    pub borders: u64,
    /// Keys that strips of queries see, each counted once a strip.
    pub seen_keys: u64,
}

impl Extent {
    /// Sequences of these lengths.
    pub fn of(lengths: impl IntoIterator<Item = usize>) -> Self {
        lengths.into_iter().fold(Self::default(), |sum, length| Self {
            tokens: sum.tokens + length as u64,
            borders: sum.borders + length.saturating_sub(1).div_euclid(CHUNK) as u64,
            seen_keys: sum.seen_keys + seen_keys(length),
        })
    }
}

fn seen_keys(length: usize) -> u64 {
    let rows = length.div_ceil(STRIPS).next_multiple_of(64).max(STRIP_ROWS);
    (1..=length.div_ceil(rows)).map(|strip| (strip * rows).min(length) as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recurrences_have_borders_inside_a_sequence_only() {
        let all = Extent::of([1, 64, 65, 128, 129, 200]);
        assert_eq!((all.tokens, all.borders), (587, 1 + 1 + 2 + 3));
    }

    #[test]
    fn strips_of_a_long_sequence_see_its_keys_more_than_once() {
        assert_eq!(Extent::of([256, 100]).seen_keys, 356);
        assert_eq!(Extent::of([300]).seen_keys, 256 + 300);
        assert_eq!(Extent::of([4096]).seen_keys, 1024 + 2048 + 3072 + 4096);
    }
}
