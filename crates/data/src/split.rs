//! Which rows are held out for evaluation.
//!
//! A row's part is decided by a hash of its place, not by a drawn list, so it needs no memory, does not change when the
//! order does, and rows appended to the last file leave the others where they were.

use crate::hash::hash;

/// A part of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Split {
    /// All rows.
    All,
    /// Rows whose hash is at most the threshold.
    Held { seed: u64, threshold: u64 },
    /// The others.
    Kept { seed: u64, threshold: u64 },
}

impl Split {
    pub(crate) fn includes(self, source: usize, row: u64) -> bool {
        match self {
            Self::All => true,
            Self::Held { seed, threshold } => hash(&[seed, source as u64, row]) <= threshold,
            Self::Kept { seed, threshold } => hash(&[seed, source as u64, row]) > threshold,
        }
    }

    /// The kept and the held-out part; the threshold is moved where a part of a small data set would have no row.
    pub(crate) fn pair(fraction: f64, seed: u64, counts: impl Iterator<Item = u64>) -> Option<(Self, Self)> {
        let asked = (fraction * 2f64.powi(64)) as u64;
        let (mut least, mut greatest) = (u64::MAX, 0);
        // The greatest hash below `greatest`: holding out up to it keeps exactly one row.
        let mut second = None;
        for (source, rows) in counts.enumerate() {
            for row in 0..rows {
                let h = hash(&[seed, source as u64, row]);
                least = least.min(h);
                if h > greatest {
                    second = (greatest > 0).then_some(greatest);
                    greatest = h;
                } else if second.is_none_or(|s| h > s) && h < greatest {
                    second = Some(h);
                }
            }
        }
        let threshold = asked.max(least).min(second?);
        Some((Self::Kept { seed, threshold }, Self::Held { seed, threshold }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn held(fraction: f64, rows: u64) -> Vec<u64> {
        let (kept, held) = Split::pair(fraction, 7, [rows].into_iter()).unwrap();
        (0..rows).for_each(|row| assert_ne!(kept.includes(0, row), held.includes(0, row)));
        (0..rows).filter(|row| held.includes(0, *row)).collect()
    }

    #[test]
    fn about_the_fraction_is_held_out_and_never_all_or_none() {
        assert!((80..120).contains(&held(0.1, 1000).len()));
        assert_eq!(held(0.001, 10).len(), 1);
        assert_eq!(held(0.9999, 10).len(), 9);
        assert_eq!(held(0.5, 2).len(), 1);
        assert!(Split::pair(0.5, 7, [1].into_iter()).is_none());
    }

    #[test]
    fn appended_rows_leave_the_others_where_they_were() {
        let before = held(0.1, 1000);
        let after = held(0.1, 2000);
        assert_eq!(before, after.iter().copied().filter(|r| *r < 1000).collect::<Vec<_>>());
    }
}
