//! What a batch's kernels are told of its sequences, on the device: uploaded once for a batch, however many layers ask for it.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use burn::tensor::DType;
use burn_cubecl::CubeDevice;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::CubeElement;

use crate::Segments;

/// Lists that are kept: those of the batches in flight.
const KEPT: usize = 32;

/// What a list says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Places {
    /// Of each token the first token of its sequence, `[T]`.
    Starts,
    /// Of each piece of `rows` rows of a sequence, with `group` rows a token: where the sequence begins, its tokens, the
    /// piece's first row. Pieces with most to do come first, so that the last to run are short: those that see most, or
    /// those that are seen by most.
    Pieces { rows: usize, group: usize, seen: bool },
}

type Entry = (Weak<Segments>, CubeDevice, Places, CubeTensor);

static LISTS: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

/// The list in u32, on the device of `like`.
pub(crate) fn places(segments: &Arc<Segments>, what: Places, like: &CubeTensor) -> CubeTensor {
    let mut kept = LISTS.lock().unwrap_or_else(PoisonError::into_inner);
    kept.retain(|(batch, ..)| batch.strong_count() > 0);
    let same = |(batch, device, of, _): &&Entry| {
        batch.as_ptr() == Arc::as_ptr(segments) && *device == like.device && *of == what
    };
    if let Some((.., list)) = kept.iter().find(same) {
        return list.clone();
    }
    let list = words(&what.of(segments), like);
    if kept.len() == KEPT {
        kept.remove(0);
    }
    kept.push((Arc::downgrade(segments), like.device.clone(), what, list.clone()));
    list
}

/// [`Places::Starts`].
pub(crate) fn starts(segments: &Arc<Segments>, like: &CubeTensor) -> CubeTensor {
    places(segments, Places::Starts, like)
}

impl Places {
    fn of(self, segments: &Segments) -> Vec<u32> {
        match self {
            Self::Starts => segments.iter().flat_map(|(start, len)| std::iter::repeat_n(start as u32, len)).collect(),
            Self::Pieces { rows, group, seen } => {
                let of_sequence =
                    |(start, len): (usize, usize)| (0..len * group).step_by(rows).map(move |first| [start, len, first]);
                let mut pieces: Vec<[usize; 3]> = segments.iter().flat_map(of_sequence).collect();
                // Stable: pieces of equal work keep the order of memory.
                pieces
                    .sort_by_key(|&[_, len, first]| std::cmp::Reverse(if seen { len * group - first } else { first }));
                pieces.into_iter().flatten().map(|number| number as u32).collect()
            }
        }
    }
}

/// Numbers of the host on the device of `like`, `[len]` in u32.
pub(crate) fn words(values: &[u32], like: &CubeTensor) -> CubeTensor {
    let handle = like.client.create_from_slice(u32::as_bytes(values));
    CubeTensor::new_contiguous(like.client.clone(), like.device.clone(), [values.len()].into(), handle, DType::U32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_their_sequences_longest_first() {
        let segments = Segments::packed(&[3, 0, 5, 1]);
        let rows_of =
            |list: Vec<u32>| list.chunks_exact(3).map(|piece| [piece[0], piece[1], piece[2]]).collect::<Vec<_>>();
        let queries = Places::Pieces { rows: 4, group: 2, seen: false };
        assert_eq!(rows_of(queries.of(&segments)), [[3, 5, 8], [0, 3, 4], [3, 5, 4], [0, 3, 0], [3, 5, 0], [8, 1, 0]]);
        let keys = Places::Pieces { rows: 2, group: 1, seen: true };
        assert_eq!(rows_of(keys.of(&segments)), [[3, 5, 0], [0, 3, 0], [3, 5, 2], [0, 3, 2], [3, 5, 4], [8, 1, 0]]);
        assert_eq!(Places::Starts.of(&segments), [0, 0, 0, 3, 3, 3, 3, 3, 8]);
    }
}
