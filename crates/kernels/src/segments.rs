//! Where each sequence lies on the flat token axis.

use std::sync::Arc;

/// The sequences of a batch, one after another on one token axis; kept on the host, because block shapes depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segments {
    /// First token of each sequence.
    pub starts: Vec<usize>,
    /// Number of tokens of each sequence; may be 0.
    pub lens: Vec<usize>,
}

impl Segments {
    /// Sequences of the given lengths, one directly after another.
    pub fn packed(lens: &[usize]) -> Arc<Self> {
        let starts = lens
            .iter()
            .scan(0, |next, &len| {
                let start = *next;
                *next += len;
                Some(start)
            })
            .collect();
        Arc::new(Self { starts, lens: lens.to_vec() })
    }

    /// Number of tokens covered.
    pub fn tokens(&self) -> usize {
        self.lens.iter().sum()
    }

    /// `(start, len)` of each sequence that has tokens.
    pub fn iter(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.starts.iter().copied().zip(self.lens.iter().copied()).filter(|&(_, len)| len > 0)
    }

    /// Panics unless the sequences cover `0..tokens` in order, without gaps: every row of an attention output must be
    /// written exactly once.
    pub(crate) fn assert_covers(&self, tokens: usize) {
        assert_eq!(self.starts.len(), self.lens.len(), "segments: as many starts as lengths");
        let mut next = 0;
        for (start, len) in self.iter() {
            assert_eq!(start, next, "segments: a sequence must start where the one before it ends");
            next += len;
        }
        assert_eq!(next, tokens, "segments: the sequences must cover the token axis");
    }
}
