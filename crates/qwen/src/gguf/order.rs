//! [`Order`]: which rows or columns of a tensor another one takes, one after another.

use std::ops::Range;

/// A sequence of indices into an axis, as runs of consecutive ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Order {
    runs: Vec<Run>,
    len: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    /// Where it begins in the sequence.
    at: usize,
    /// Its first index.
    from: usize,
    len: usize,
}

impl Order {
    /// `0..len`, as it is.
    pub(super) fn all(len: usize) -> Self {
        std::iter::once(0..len).collect()
    }

    /// Number of indices.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether the sequence is `0..len`.
    pub(super) fn is_plain(&self) -> bool {
        matches!(self.runs[..], [] | [Run { from: 0, .. }])
    }

    /// The runs of a part of the sequence: where each begins, counted from the part's beginning, and its indices.
    pub(super) fn within(&self, part: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
        let first = self.runs.partition_point(|run| run.at + run.len <= part.start);
        let end = part.end;
        self.runs[first..].iter().take_while(move |run| run.at < end).map(move |run| {
            let (start, stop) = (run.at.max(part.start), (run.at + run.len).min(part.end));
            (start - part.start, run.from + start - run.at..run.from + stop - run.at)
        })
    }

    /// The indices.
    pub(super) fn indices(&self) -> impl Iterator<Item = usize> {
        self.runs.iter().flat_map(|run| run.from..run.from + run.len)
    }

    /// Groups of `sizes` repeated `groups` times, all of one kind after another: for the kinds in `taken`, their runs.
    pub(super) fn ungrouped(groups: usize, sizes: &[usize], taken: Range<usize>) -> Self {
        let group: usize = sizes.iter().sum();
        taken
            .flat_map(|kind| {
                let before: usize = sizes[..kind].iter().sum();
                (0..groups).map(move |index| index * group + before..index * group + before + sizes[kind])
            })
            .collect()
    }

    /// `before` indices as they are, then heads of `width`: those of `groups` groups of `each` consecutive ones, dealt
    /// out so that the first of every group comes first.
    pub(super) fn dealt(before: usize, groups: usize, each: usize, width: usize) -> Self {
        let heads = (0..each).flat_map(|member| (0..groups).map(move |group| group * each + member));
        let runs = heads.map(|head| before + head * width..before + (head + 1) * width);
        std::iter::once(0..before).chain(runs).collect()
    }

    /// The two halves of each of `heads` heads of `width`, interleaved: pairs that rotate together become neighbours.
    pub(super) fn paired(heads: usize, width: usize) -> Self {
        let half = width / 2;
        (0..heads)
            .flat_map(|head| (0..half).flat_map(move |pair| [0, half].map(|side| head * width + side + pair)))
            .map(|index| index..index + 1)
            .collect()
    }
}

impl FromIterator<Range<usize>> for Order {
    fn from_iter<I: IntoIterator<Item = Range<usize>>>(ranges: I) -> Self {
        let mut order = Self { runs: Vec::new(), len: 0 };
        for range in ranges.into_iter().filter(|range| !range.is_empty()) {
            match order.runs.last_mut() {
                Some(last) if last.from + last.len == range.start => last.len += range.len(),
                _ => order.runs.push(Run { at: order.len, from: range.start, len: range.len() }),
            }
            order.len += range.len();
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(order: &Order) -> Vec<usize> {
        order.indices().collect()
    }

    #[test]
    fn groups_are_taken_apart_by_kind() {
        // Two groups of q q k v v v.
        let sizes = [2, 1, 3];
        assert_eq!(list(&Order::ungrouped(2, &sizes, 0..2)), [0, 1, 6, 7, 2, 8]);
        assert_eq!(list(&Order::ungrouped(2, &sizes, 2..3)), [3, 4, 5, 9, 10, 11]);
    }

    #[test]
    fn heads_are_dealt_out_over_their_groups() {
        // Two key heads with three value heads each, of two channels, behind one other channel.
        assert_eq!(list(&Order::dealt(1, 2, 3, 2)), [0, 1, 2, 7, 8, 3, 4, 9, 10, 5, 6, 11, 12]);
        assert!(Order::dealt(4, 3, 1, 2).is_plain());
    }

    #[test]
    fn pairs_that_rotate_become_neighbours() {
        assert_eq!(list(&Order::paired(2, 4)), [0, 2, 1, 3, 4, 6, 5, 7]);
    }

    #[test]
    fn parts_of_a_sequence_are_its_runs_cut() {
        let order = Order::dealt(1, 2, 2, 3);
        let whole = list(&order);
        for start in 0..whole.len() {
            for end in start..=whole.len() {
                let mut part = Vec::new();
                for (at, run) in order.within(start..end) {
                    assert_eq!(at, part.len());
                    part.extend(run);
                }
                assert_eq!(part, whole[start..end]);
            }
        }
    }
}
