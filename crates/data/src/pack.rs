//! Lays out a step's samples: into rows of `max_length` tokens, and the rows into micro-batches.
//!
//! The input order and the lengths decide the layout and nothing else does, so it is the same on every machine.

use crate::batch::Batch;
use crate::row::Sample;
use crate::tokens::Packing;

/// Rows of sample indices: each row holds at most `max_length` tokens, each sample stands in exactly one row.
///
/// `best_fit` is best-fit decreasing: longest sample first, into the fullest row that still takes it. Rows are ordered
/// by their first sample, and samples within a row too.
#[must_use]
pub fn rows(lengths: &[usize], packing: Packing, max_length: usize) -> Vec<Vec<usize>> {
    match packing {
        Packing::None => (0..lengths.len()).map(|i| vec![i]).collect(),
        Packing::Auto | Packing::BestFit => best_fit(lengths, max_length),
    }
}

fn best_fit(lengths: &[usize], max_length: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(lengths[i]), i));
    let mut rows: Vec<Vec<usize>> = Vec::new();
    // (room left, row): the first entry at or above a length is the fullest row that takes it.
    let mut room = std::collections::BTreeSet::new();
    for sample in order {
        let length = lengths[sample];
        let fit = room.range((length, 0)..).next().copied();
        let (left, row) = match fit {
            Some(entry) => {
                room.remove(&entry);
                entry
            }
            None => {
                rows.push(Vec::new());
                (max_length.max(length), rows.len() - 1)
            }
        };
        rows[row].push(sample);
        room.insert((left - length, row));
    }
    for row in &mut rows {
        row.sort_unstable();
    }
    rows.sort_unstable();
    rows
}

/// Distributes rows of the given token counts over as few groups of at most `limit` rows as possible, with groups of
/// similar size: largest row first, to the smallest group that has room. Row indices stay in order within a group.
#[must_use]
pub fn groups(tokens: &[usize], limit: usize) -> Vec<Vec<usize>> {
    let limit = limit.max(1);
    let mut groups: Vec<(usize, Vec<usize>)> = vec![(0, Vec::new()); tokens.len().div_ceil(limit)];
    let mut order: Vec<usize> = (0..tokens.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(tokens[i]), i));
    for row in order {
        let group = groups
            .iter_mut()
            .filter(|(_, rows)| rows.len() < limit)
            .min_by_key(|(sum, _)| *sum)
            .expect("invariant: groups hold limit rows each, together at least all of them");
        group.0 += tokens[row];
        group.1.push(row);
    }
    let mut groups: Vec<Vec<usize>> = groups.into_iter().map(|(_, rows)| rows).collect();
    for rows in &mut groups {
        rows.sort_unstable();
    }
    groups.sort_unstable();
    groups
}

/// Samples to micro-batches of at most `micro_batch` laid-out rows.
#[must_use]
pub fn lay_out(samples: &[Sample], packing: Packing, max_length: usize, micro_batch: usize) -> Vec<Batch> {
    let lengths: Vec<usize> = samples.iter().map(|s| s.ids.len()).collect();
    let rows = rows(&lengths, packing, max_length);
    let tokens: Vec<usize> = rows.iter().map(|row| row.iter().map(|&i| lengths[i]).sum()).collect();
    groups(&tokens, micro_batch)
        .into_iter()
        .map(|group| {
            let laid: Vec<Vec<&Sample>> =
                group.iter().map(|&row| rows[row].iter().map(|&i| &samples[i]).collect()).collect();
            Batch::from_rows(&laid)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::batch::IGNORE;
    use crate::row::Origin;

    fn samples(lengths: &[usize]) -> Vec<Sample> {
        lengths
            .iter()
            .enumerate()
            .map(|(i, &len)| Sample {
                ids: (0..len).map(|t| (i * 1000 + t) as u32).collect(),
                trained: (0..len).map(|t| t > 0 && (t + i) % 3 != 0).collect(),
                origin: Origin { source: 0, file: 0, row: i as u64 },
            })
            .collect()
    }

    #[test]
    fn best_fit_fills_the_fullest_row_that_takes_a_sample() {
        assert_eq!(rows(&[6, 5, 4, 3, 2], Packing::BestFit, 10), [vec![0, 2], vec![1, 3, 4]]);
        assert_eq!(rows(&[6, 5], Packing::None, 10), [vec![0], vec![1]]);
    }

    /// Lengths like those of real documents, a step of a thousand of them.
    #[test]
    fn rows_are_full_to_97_in_a_hundred() {
        let mut state = 1_u64;
        let mut unit = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1_u64 << 53) as f64
        };
        let lengths: Vec<usize> = (0..1024).map(|_| ((-(1.0 - unit()).ln() * 400.0) as usize).clamp(2, 2048)).collect();
        let rows = rows(&lengths, Packing::BestFit, 2048);
        let fill = lengths.iter().sum::<usize>() as f64 / (rows.len() * 2048) as f64;
        assert!(fill > 0.97, "{fill}");
    }

    #[test]
    fn micro_batches_are_few_and_similar() {
        assert_eq!(groups(&[9, 8, 2, 1], 2), [vec![0, 3], vec![1, 2]]);
        assert_eq!(groups(&[5, 5, 5], 2).len(), 2);
        assert!(groups(&[], 4).is_empty());
    }

    proptest! {
        #[test]
        fn nothing_is_lost_duplicated_or_crossed(
            lengths in prop::collection::vec(1usize..40, 0..60), limit in 1usize..5, best in any::<bool>(),
        ) {
            let samples = samples(&lengths);
            let packing = if best { Packing::BestFit } else { Packing::None };
            let batches = lay_out(&samples, packing, 40, limit);
            let mut seen = Vec::new();
            for batch in &batches {
                prop_assert!(batch.rows <= limit && batch.rows > 0);
                prop_assert_eq!(batch.targets.iter().filter(|t| **t != IGNORE).count(), batch.trained);
                let mut end = 0;
                let mut used = vec![0usize; batch.rows];
                for s in &batch.sequences {
                    prop_assert_eq!(s.start, end);
                    end += s.len;
                    used[s.row] += s.len;
                    let sample = &samples[s.origin.row as usize];
                    seen.push(s.origin.row);
                    prop_assert_eq!(&batch.ids[s.start..end], &sample.ids[..]);
                    for t in 0..s.len {
                        let target = batch.targets[s.start + t];
                        let trained = t + 1 < s.len && sample.trained[t + 1];
                        prop_assert_eq!(target, if trained { sample.ids[t + 1] as i32 } else { IGNORE });
                        prop_assert_eq!(batch.positions[s.start + t], t as u32);
                    }
                }
                prop_assert_eq!(end, batch.ids.len());
                prop_assert!(used.iter().all(|u| *u <= 40));
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len() as u64).collect::<Vec<_>>());
            prop_assert_eq!(batches.len(), rows(&lengths, packing, 40).len().div_ceil(limit));
        }
    }
}
