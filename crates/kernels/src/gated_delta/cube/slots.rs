//! From tokens one after another to chunks of 64, and back.

use burn::Tensor;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::CHUNK;
use super::kernels::{chunked, unchunked};
use crate::Segments;
use crate::gpu::places::words;
use crate::gpu::tensor::empty;

/// The chunks of all sequences: all first ones, then all second ones, the longest sequences first, so that a sequence keeps its
/// place as long as it lasts.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    /// Chunks of each step, as the slots they begin at and end before.
    pub(super) steps: Vec<std::ops::Range<usize>>,
    /// Token of each place of each slot; no token's number where there is none. `[P·64]`.
    tokens: CubeTensor,
    /// Place of each token, `[T]`.
    places: CubeTensor,
    /// Slot of the chunk behind each one; no slot's number behind the last. `[P]`.
    pub(super) next: CubeTensor,
}

/// Where each chunk lies, on the host.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    steps: Vec<std::ops::Range<usize>>,
    tokens: Vec<u32>,
    places: Vec<u32>,
    next: Vec<u32>,
}

fn plan(segments: &Segments) -> Plan {
    let mut sequences: Vec<(usize, usize)> = segments.iter().collect();
    sequences.sort_by_key(|&(start, len)| (std::cmp::Reverse(len.div_ceil(CHUNK)), start));
    let count = segments.tokens();
    let (mut steps, mut tokens, mut places, mut next) = (Vec::new(), Vec::new(), vec![0; count], Vec::new());
    let alive = |step: usize| sequences.iter().take_while(|(_, len)| len.div_ceil(CHUNK) > step).count();
    for step in 0.. {
        let (first, here, after) = (next.len(), alive(step), alive(step + 1));
        if here == 0 {
            break;
        }
        steps.push(first..first + here);
        for (at, &(start, len)) in sequences[..here].iter().enumerate() {
            next.push(if at < after { (first + here + at) as u32 } else { u32::MAX });
            for token in step * CHUNK..(step + 1) * CHUNK {
                if token < len {
                    places[start + token] = tokens.len() as u32;
                }
                tokens.push(if token < len { (start + token) as u32 } else { u32::MAX });
            }
        }
    }
    Plan { steps, tokens, places, next }
}

impl Slots {
    pub(super) fn new(segments: &Segments, device: &CubeTensor) -> Self {
        let Plan { steps, tokens, places, next } = plan(segments);
        let [tokens, places, next] = [tokens, places, next].map(|numbers| words(&numbers, device));
        Self { steps, tokens, places, next }
    }

    pub(super) fn len(&self) -> usize {
        self.next.meta.shape()[0]
    }

    /// Slots of a step whose sequence goes on.
    pub(super) fn going_on(&self, step: usize) -> usize {
        self.steps.get(step + 1).map_or(0, ExactSizeIterator::len)
    }

    /// `[T, heads', d]` (or `[T, heads]`) as `[P, heads, 64, d]` (or `[P, heads, 64]`) in f32, each of `heads'` repeated for
    /// the `heads/heads'` value heads it serves; 0 where there is no token.
    pub(super) fn gather(&self, x: &CubeTensor, heads: usize) -> CubeTensor {
        let own_heads = x.meta.shape()[1];
        let mut shape = vec![self.len(), heads, CHUNK];
        let size = x.meta.shape().get(2).copied();
        shape.extend(size);
        let out = empty(x, shape, DType::F32);
        chunked(x, &self.tokens, &out, [heads, heads / own_heads, size.unwrap_or(1)]);
        out
    }

    /// `[P, heads, 64, d]` as `[T, heads', d]` in `dtype`: the sum over the value heads that each of `heads'` serves.
    pub(super) fn gather_back(&self, chunks: &Tensor<4>, own_heads: usize, dtype: DType) -> CubeTensor {
        let ([_, heads, _, size], chunks) = (chunks.dims(), super::buffer(chunks.clone()));
        let out = empty(&chunks, [self.places.meta.shape()[0], own_heads, size], dtype);
        unchunked(&chunks, &self.places, &out, [heads, heads / own_heads, size]);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_keeps_its_place_while_it_lasts() {
        let segments = Segments::packed(&[3, 0, 130, 64]);
        let plan = plan(&segments);
        assert_eq!(plan.steps, [0..3, 3..4, 4..5]);
        assert_eq!(plan.next, [3, u32::MAX, u32::MAX, 4, u32::MAX]);
        for (token, &place) in plan.places.iter().enumerate() {
            assert_eq!(plan.tokens[place as usize], token as u32);
        }
        assert_eq!(plan.tokens.iter().filter(|&&token| token != u32::MAX).count(), segments.tokens());
        assert_eq!(plan.tokens[0], 3, "the longest sequence comes first");
    }
}
