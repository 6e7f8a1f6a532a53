//! Q5_K: 256 quants of 5 bits in sub-blocks of 32 with scale and minimum. Layout: as in `k`, then 32 bytes of fifth bits
//! and 128 bytes of pairs. Bit `j` of byte `i` of the fifth bits is that of number `i` of sub-block `j`.

use super::fit::Search;
use super::k;
use super::multiversion::multiversioned;

const SEARCH: Search = Search { limit: 31.0, first: -0.5, step: 0.1, steps: 15 };

multiversioned! {
    pub(super) fn encode(values: &[f32], bytes: &mut [u8]) {
        let blocks = values.as_chunks::<{ k::BLOCK }>().0.chunks(k::BLOCKS);
        for (x, out) in blocks.zip(bytes.as_chunks_mut::<176>().0.chunks_mut(k::BLOCKS)) {
            k::parts(x, SEARCH, |block, parts| {
                let (head, rest) = out[block].split_first_chunk_mut().expect("invariant: 176 bytes are more than 16");
                *head = parts.head();
                let (fifth, pairs) = rest.split_first_chunk_mut::<32>().expect("invariant: 160 bytes are more than 32");
                *fifth = [0; 32];
                for (j, quants) in parts.quants.as_chunks::<32>().0.iter().enumerate() {
                    for (byte, q) in fifth.iter_mut().zip(quants) {
                        *byte |= q >> 4 << j;
                    }
                }
                k::pack_nibbles(&parts.quants, pairs.as_mut_array().expect("invariant: 128 bytes are left"));
            });
        }
    }

    pub(super) fn decode(bytes: &[u8], values: &mut [f32]) {
        for (x, block) in values.as_chunks_mut::<{ k::BLOCK }>().0.iter_mut().zip(bytes.as_chunks::<176>().0) {
            let (head, rest) = block.split_first_chunk().expect("invariant: 176 bytes are more than 16");
            let (fifth, pairs) = rest.split_first_chunk::<32>().expect("invariant: 160 bytes are more than 32");
            let (step, drop) = k::steps(head);
            k::unpack_nibbles(pairs, x, |j, i, q| step[j] * f32::from(q | (fifth[i] >> j & 1) << 4) - drop[j]);
        }
    }
}
