//! Q4_K: 256 quants of 4 bits in sub-blocks of 32 with scale and minimum. Layout: as in `k`, then 128 bytes of pairs.

use super::fit::Search;
use super::k;
use super::multiversion::multiversioned;

const SEARCH: Search = Search { limit: 15.0, first: -1.0, step: 0.1, steps: 20 };

multiversioned! {
    pub(super) fn encode(values: &[f32], bytes: &mut [u8]) {
        let blocks = values.as_chunks::<{ k::BLOCK }>().0.chunks(k::BLOCKS);
        for (x, out) in blocks.zip(bytes.as_chunks_mut::<144>().0.chunks_mut(k::BLOCKS)) {
            k::parts(x, SEARCH, |block, parts| {
                let (head, pairs) = out[block].split_first_chunk_mut().expect("invariant: 144 bytes are more than 16");
                *head = parts.head();
                k::pack_nibbles(&parts.quants, pairs.as_mut_array().expect("invariant: 128 bytes are left"));
            });
        }
    }

    pub(super) fn decode(bytes: &[u8], values: &mut [f32]) {
        for (x, block) in values.as_chunks_mut::<{ k::BLOCK }>().0.iter_mut().zip(bytes.as_chunks::<144>().0) {
            let (head, pairs) = block.split_first_chunk().expect("invariant: 144 bytes are more than 16");
            let (step, drop) = k::steps(head);
            k::look_up_nibbles::<SET>(pairs, x, |j, q| step[j] * f32::from(q) - drop[j]);
        }
    }
}
