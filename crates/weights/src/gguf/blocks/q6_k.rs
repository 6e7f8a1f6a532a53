//! Q6_K: 256 quants of 6 bits around 32 in groups of 16, each group with a signed scale of 8 bits under one F16.
//!
//! Layout: 128 bytes of low nibbles, 64 bytes of upper pairs of bits, 16 scales, d as F16.

use super::fit::{Lane, chosen};
use super::multiversion::multiversioned;
use super::rounding::{self, SHIFTER};

const BLOCK: usize = 256;
/// Groups of a block, one a lane.
const GROUPS: usize = super::fit::WIDTH;
/// Numbers of a group.
const GROUP: usize = 16;
/// Quants reach from `-HALF` to `HALF - 1`.
const HALF: f32 = 32.0;
/// Below it nothing but zeros is seen.
const NOTHING: f32 = 1e-15;

multiversioned! {
    pub(super) fn encode(values: &[f32], bytes: &mut [u8]) {
        for (x, block) in values.as_chunks::<BLOCK>().0.iter().zip(bytes.as_chunks_mut::<210>().0) {
            encode_block(x, block);
        }
    }

    pub(super) fn decode(bytes: &[u8], values: &mut [f32]) {
        for (x, block) in values.as_chunks_mut::<BLOCK>().0.iter_mut().zip(bytes.as_chunks::<210>().0) {
            decode_block(block, x);
        }
    }
}

#[inline(always)]
fn encode_block(x: &[f32; BLOCK], block: &mut [u8; 210]) {
    let (scales, inverses) = fit(x);
    let mut max = 0.0_f32;
    for &scale in &scales {
        max = if scale.abs() > max.abs() { scale } else { max };
    }
    if max.abs() < NOTHING {
        *block = [0; 210];
        return;
    }
    let inverse = -128.0 / max;
    let [low @ .., d0, d1] = block;
    [*d0, *d1] = rounding::half(1.0 / inverse);
    let d = rounding::widened([*d0, *d1]);
    let (quants_bytes, scale_bytes) =
        low.split_last_chunk_mut::<GROUPS>().expect("invariant: 208 bytes are more than 16");
    let mut quants = [0; BLOCK];
    for (group, (x, quants)) in x.as_chunks::<GROUP>().0.iter().zip(quants.as_chunks_mut::<GROUP>().0).enumerate() {
        let scale = rounding::nearest(inverse * scales[group]).min(127) as i8;
        scale_bytes[group] = scale as u8;
        let step = d * f32::from(scale);
        if step != 0.0 {
            for (q, x) in quants.iter_mut().zip(x) {
                *q = (rounding::nearest(x / step).clamp(-32, 31) + 32) as u8;
            }
        } else if inverses[group] != 0.0 {
            // Where nothing is left of the scale, the search's own quants stay.
            for (q, x) in quants.iter_mut().zip(x) {
                *q = (rounding::nearest(inverses[group] * x).clamp(-32, 31) + 32) as u8;
            }
        }
    }
    pack(&quants, quants_bytes.as_mut_array().expect("invariant: 192 bytes are left"));
}

#[inline(always)]
fn decode_block(block: &[u8; 210], x: &mut [f32; BLOCK]) {
    let [low @ .., d0, d1] = block;
    let d = rounding::widened([*d0, *d1]);
    let (quants, scales) = low.split_last_chunk::<GROUPS>().expect("invariant: 208 bytes are more than 16");
    let (low, high) = quants.split_at(128);
    let mut step = [0.0; GROUPS];
    for (step, &scale) in step.iter_mut().zip(scales) {
        *step = d * f32::from(scale as i8);
    }
    let halves = x.as_chunks_mut::<128>().0.iter_mut().zip(low.as_chunks::<64>().0).zip(high.as_chunks::<32>().0);
    for (half, ((x, low), high)) in halves.enumerate() {
        for (part, x) in x.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
            // Which quarter of the 128 numbers, and which half of that.
            let (quarter, side) = (part / 2, GROUP * (part % 2));
            let low = &low[32 * (quarter % 2) + side..][..GROUP];
            let high = &high[side..][..GROUP];
            let step = step[8 * half + part];
            for ((x, low), high) in x.iter_mut().zip(low).zip(high) {
                let q = low >> (quarter / 2 * 4) & 15 | (high >> (2 * quarter) & 3) << 4;
                *x = step * f32::from(q as i8 - 32);
            }
        }
    }
}

/// Scales by weighted least squares, a number weighing its square, and the factors that gave the quants behind them; 0
/// for both where a group is nothing but zeros.
#[inline(always)]
fn fit(x: &[f32; BLOCK]) -> (Lane, Lane) {
    let mut columns = [[0.0; GROUPS]; GROUP];
    for (group, x) in x.as_chunks::<GROUP>().0.iter().enumerate() {
        for (column, &x) in columns.iter_mut().zip(x) {
            column[group] = x;
        }
    }
    let mut farthest = [0.0_f32; GROUPS];
    let (mut weights, mut weighted) = ([[0.0; GROUPS]; GROUP], [[0.0; GROUPS]; GROUP]);
    for (i, x) in columns.iter().enumerate() {
        for group in 0..GROUPS {
            farthest[group] = if x[group].abs() > farthest[group].abs() { x[group] } else { farthest[group] };
            weights[i][group] = x[group] * x[group];
            weighted[i][group] = weights[i][group] * x[group];
        }
    }
    let (mut scale, mut best, mut inverse) = ([0.0; GROUPS], [0.0; GROUPS], [0.0; GROUPS]);
    for step in [0, -9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9] {
        let mut candidate = [0.0; GROUPS];
        for group in 0..GROUPS {
            candidate[group] = -(HALF + 0.1 * step as f32) / farthest[group];
        }
        let (mut sum_xl, mut sum_l2) = ([0.0; GROUPS], [0.0; GROUPS]);
        for i in 0..GROUP {
            for group in 0..GROUPS {
                // Below 2²²: no number of the group is larger than the farthest. Clamped while shifted.
                let shifted = candidate[group] * columns[i][group] + SHIFTER;
                let shifted = if shifted > SHIFTER - HALF { shifted } else { SHIFTER - HALF };
                let shifted = if shifted < SHIFTER + HALF - 1.0 { shifted } else { SHIFTER + HALF - 1.0 };
                let q = shifted - SHIFTER;
                sum_xl[group] += weighted[i][group] * q;
                sum_l2[group] += weights[i][group] * q * q;
            }
        }
        let (mut better, mut ratio, mut value) = ([true; GROUPS], [0.0; GROUPS], [0.0; GROUPS]);
        for group in 0..GROUPS {
            let fit = sum_xl[group] / sum_l2[group];
            // The first is taken as it is.
            ratio[group] = if (step == 0) & (sum_l2[group] == 0.0) { 0.0 } else { fit };
            value[group] = ratio[group] * sum_xl[group];
            let more = sum_xl[group] * sum_xl[group] > best[group] * sum_l2[group];
            better[group] = (step == 0) | ((sum_l2[group] > 0.0) & more);
        }
        scale = chosen(&better, &ratio, &scale);
        best = chosen(&better, &value, &best);
        inverse = chosen(&better, &candidate, &inverse);
    }
    for group in 0..GROUPS {
        let nothing = farthest[group].abs() < NOTHING;
        scale[group] = if nothing { 0.0 } else { scale[group] };
        inverse[group] = if nothing { 0.0 } else { inverse[group] };
    }
    (scale, inverse)
}

/// Of 128 numbers, `i` and `i + 64` share a byte of low nibbles, `i`, `i + 32`, `i + 64` and `i + 96` one of upper bits.
#[inline(always)]
fn pack(quants: &[u8; BLOCK], bytes: &mut [u8; 192]) {
    let (low, high) = bytes.split_at_mut(128);
    let (low, high) = (low.as_chunks_mut::<64>().0, high.as_chunks_mut::<32>().0);
    for ((q, low), high) in quants.as_chunks::<128>().0.iter().zip(low).zip(high) {
        for (i, low) in low.iter_mut().enumerate() {
            *low = q[i] & 15 | q[i + 64] << 4;
        }
        for (i, high) in high.iter_mut().enumerate() {
            *high = q[i] >> 4 | q[i + 32] >> 4 << 2 | q[i + 64] >> 4 << 4 | q[i + 96] >> 4 << 6;
        }
    }
}
