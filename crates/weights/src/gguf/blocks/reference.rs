//! The encoders as their definitions read: one number after another, on any machine the same.

use super::TensorType;
use super::rounding::{half, inverse, nearest, truncated, widened};

/// Encodes whole blocks.
pub(super) fn encode(ty: TensorType, x: &[f32]) -> Vec<u8> {
    let block = match ty {
        TensorType::Q8_0 => q8_0,
        TensorType::Q4_0 => |x: &[f32]| around(x, 8.0, 15),
        TensorType::Q5_0 => |x: &[f32]| around(x, 16.0, 31),
        TensorType::Q4_1 => |x: &[f32]| above(x, 15.0, 15),
        TensorType::Q5_1 => |x: &[f32]| above(x, 31.0, i8::MAX),
        TensorType::Q4_K => |x: &[f32]| with_minimum(x, 15, -1.0, 20),
        TensorType::Q5_K => |x: &[f32]| with_minimum(x, 31, -0.5, 15),
        TensorType::Q6_K => q6_k,
        TensorType::IQ4_NL => iq4_nl,
        TensorType::MXFP4 => mxfp4,
        _ => unreachable!("{ty}"),
    };
    x.chunks(ty.block()).flat_map(block).collect()
}

fn q8_0(x: &[f32]) -> Vec<u8> {
    let d = x.iter().fold(0.0_f32, |most, x| if x.abs() > most { x.abs() } else { most }) / 127.0;
    let mut bytes = half(d).to_vec();
    bytes.extend(x.iter().map(|x| truncated((x * inverse(d)).round()) as u8));
    bytes
}

fn farthest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |most: f32, &x| if x.abs() > most.abs() { x } else { most })
}

/// Nibbles `j` and `j + 16` of a block, and the fifth bits of all.
fn pairs(q: &[u8]) -> (Vec<u8>, [u8; 4]) {
    let fifth = q.iter().enumerate().fold(0, |bits, (j, q)| bits | u32::from(q >> 4 & 1) << j);
    ((0..16).map(|j| q[j] & 15 | q[j + 16] << 4).collect(), fifth.to_le_bytes())
}

fn around(x: &[f32], middle: f32, limit: i8) -> Vec<u8> {
    let d = farthest(x) / -middle;
    let q: Vec<u8> = x.iter().map(|x| (truncated(x * inverse(d) + (middle + 0.5)) as i8).min(limit) as u8).collect();
    let mut bytes = half(d).to_vec();
    if limit == 15 {
        // Quants beyond four bits, of blocks whose scale has no inverse, spill into their neighbours.
        bytes.extend((0..16).map(|j| q[j] | q[j + 16] << 4));
    } else {
        let (pairs, fifth) = pairs(&q);
        bytes.extend(fifth);
        bytes.extend(pairs);
    }
    bytes
}

fn above(x: &[f32], steps: f32, limit: i8) -> Vec<u8> {
    let (mut low, mut high) = (f32::MAX, -f32::MAX);
    for &x in x {
        low = if x < low { x } else { low };
        high = if x > high { x } else { high };
    }
    let d = (high - low) / steps;
    let q: Vec<u8> = x.iter().map(|x| (truncated((x - low) * inverse(d) + 0.5) as i8).min(limit) as u8).collect();
    let mut bytes = [half(d), half(low)].concat();
    if limit == 15 {
        bytes.extend((0..16).map(|j| q[j] | q[j + 16] << 4));
    } else {
        let (pairs, fifth) = pairs(&q);
        bytes.extend(fifth);
        bytes.extend(pairs);
    }
    bytes
}

/// Scale, distance of the minimum below zero, and quants.
fn fit_min(x: &[f32], limit: i32, first: f32, steps: i32) -> (f32, f32, Vec<i32>) {
    let mean = (x.iter().fold(0.0_f32, |sum, x| sum + x * x) / 32.0).sqrt();
    let w: Vec<f32> = x.iter().map(|x| mean + x.abs()).collect();
    let (mut min, mut max) = (x[0], x[0]);
    let (mut sum_w, mut sum_x) = (w[0], w[0] * x[0]);
    for i in 1..x.len() {
        min = if x[i] < min { x[i] } else { min };
        max = if x[i] > max { x[i] } else { max };
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    if min > 0.0 {
        min = 0.0;
    }
    if max == min {
        return (0.0, -min, vec![0; x.len()]);
    }
    let levels = |inverse: f32, min: f32| -> Vec<i32> {
        x.iter().map(|x| nearest(inverse * (x - min)).clamp(0, limit)).collect()
    };
    let error = |l: &[i32], scale: f32, min: f32| {
        (0..x.len()).fold(0.0_f32, |sum, i| {
            let difference = scale * l[i] as f32 + min - x[i];
            sum + w[i] * (difference * difference)
        })
    };
    let inverse = limit as f32 / (max - min);
    let mut scale = 1.0 / inverse;
    let mut l = levels(inverse, min);
    let mut best = error(&l, scale, min);
    for k in 0..=steps {
        let tried = levels((first + 0.1 * k as f32 + limit as f32) / (max - min), min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0_f32, 0.0_f32, 0.0_f32);
        for i in 0..x.len() {
            let level = tried[i] as f32;
            sum_l += w[i] * level;
            sum_l2 += w[i] * level * level;
            sum_xl += w[i] * level * x[i];
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant > 0.0 {
            let mut new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut new_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            if new_min > 0.0 {
                new_min = 0.0;
                new_scale = sum_xl / sum_l2;
            }
            let found = error(&tried, new_scale, new_min);
            if found < best {
                (best, scale, min, l) = (found, new_scale, new_min, tried);
            }
        }
    }
    (scale, -min, l)
}

fn with_minimum(x: &[f32], limit: i32, first: f32, steps: i32) -> Vec<u8> {
    let fits: Vec<_> = x.chunks(32).map(|x| fit_min(x, limit, first, steps)).collect();
    let most = |of: &dyn Fn(usize) -> f32| (0..8).fold(0.0_f32, |most, j| if of(j) > most { of(j) } else { most });
    let (most_scale, most_min) = (most(&|j| fits[j].0), most(&|j| fits[j].1));
    let factor = |most: f32| if most > 0.0 { 63.0 / most } else { 0.0 };
    let six = |factor: f32, x: f32| (nearest(factor * x) as u8).min(63);
    let (d, dmin) = (half(most_scale / 63.0), half(most_min / 63.0));
    let mut scales = [0_u8; 12];
    let mut l = Vec::new();
    for (j, (scale, min, quants)) in fits.into_iter().enumerate() {
        let (ls, lm) = (six(factor(most_scale), scale), six(factor(most_min), min));
        if j < 4 {
            scales[j] = ls;
            scales[j + 4] = lm;
        } else {
            scales[j + 4] = ls & 15 | (lm & 15) << 4;
            scales[j - 4] |= ls >> 4 << 6;
            scales[j] |= lm >> 4 << 6;
        }
        let step = widened(d) * f32::from(ls);
        if step == 0.0 {
            l.extend(quants);
        } else {
            let drop = widened(dmin) * f32::from(lm);
            l.extend(x[32 * j..][..32].iter().map(|x| nearest((x + drop) / step).clamp(0, limit)));
        }
    }
    let mut bytes = [d, dmin].concat();
    bytes.extend(scales);
    if limit == 31 {
        bytes.extend((0..32).map(|i| (0..8).fold(0_u8, |bits, j| bits | ((l[32 * j + i] >> 4) as u8) << j)));
    }
    for l in l.chunks(64) {
        bytes.extend((0..32).map(|i| l[i] as u8 & 15 | (l[i + 32] as u8) << 4));
    }
    bytes
}

/// Scale, and quants from 0 to 63; all 0 where nothing but zeros is seen.
fn fit_sym(x: &[f32]) -> (f32, Vec<i32>) {
    let max = farthest(x);
    if max.abs() < 1e-15 {
        return (0.0, vec![0; x.len()]);
    }
    let mut kept: Option<(f32, f32, Vec<i32>)> = None;
    for k in std::iter::once(0).chain(-9..0).chain(1..=9) {
        let factor = -(32.0 + 0.1 * k as f32) / max;
        let v: Vec<i32> = x.iter().map(|x| nearest(factor * x).clamp(-32, 31)).collect();
        let (mut a, mut b) = (0.0_f32, 0.0_f32);
        for (x, &v) in x.iter().zip(&v) {
            let (w, v) = (x * x, v as f32);
            a += w * x * v;
            b += w * v * v;
        }
        kept = match kept {
            None => {
                let scale = if b != 0.0 { a / b } else { 0.0 };
                Some((scale, scale * a, v))
            }
            Some((_, best, _)) if b > 0.0 && a * a > best * b => Some((a / b, a / b * a, v)),
            kept => kept,
        };
    }
    let (scale, _, v) = kept.expect("the first is kept");
    (scale, v.iter().map(|v| v + 32).collect())
}

fn q6_k(x: &[f32]) -> Vec<u8> {
    let fits: Vec<_> = x.chunks(16).map(fit_sym).collect();
    let max = farthest(&fits.iter().map(|fit| fit.0).collect::<Vec<_>>());
    if max.abs() < 1e-15 {
        return vec![0; 210];
    }
    let factor = -128.0 / max;
    let d = half(1.0 / factor);
    let mut scales = Vec::new();
    let mut l = Vec::new();
    for (x, (scale, quants)) in x.chunks(16).zip(fits) {
        let scale = nearest(factor * scale).min(127) as i8;
        scales.push(scale as u8);
        let step = widened(d) * f32::from(scale);
        if step == 0.0 {
            l.extend(quants);
        } else {
            l.extend(x.iter().map(|x| nearest(x / step).clamp(-32, 31) + 32));
        }
    }
    let (mut low, mut high) = (Vec::new(), Vec::new());
    for l in l.chunks(128) {
        low.extend((0..64).map(|i| l[i] as u8 & 15 | (l[i + 64] as u8) << 4));
        high.extend((0..32).map(|i| (0..4).fold(0, |bits, j| bits | ((l[i + 32 * j] >> 4) as u8) << (2 * j))));
    }
    [low, high, scales, d.to_vec()].concat()
}

const UNEVEN: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The nearest of uneven levels, by halving.
fn uneven(x: f32) -> usize {
    let level = |q: usize| f32::from(UNEVEN[q]);
    if x <= level(0) {
        return 0;
    }
    if x >= level(15) {
        return 15;
    }
    let (mut below, mut above) = (0, 15);
    while above - below > 1 {
        let middle = (below + above) / 2;
        if x < level(middle) {
            above = middle;
        } else {
            below = middle;
        }
    }
    if x - level(above - 1) < level(above) - x { above - 1 } else { above }
}

fn iq4_nl(x: &[f32]) -> Vec<u8> {
    let max = farthest(x);
    let mut d = 0.0;
    if max.abs() >= 1e-15 {
        let fit = |factor: f32| {
            x.iter().fold((0.0_f32, 0.0_f32), |(a, b), &x| {
                let (w, level) = (x * x, f32::from(UNEVEN[uneven(factor * x)]));
                (a + w * level * x, b + w * level * level)
            })
        };
        let (a, b) = fit(1.0 / (-max / -127.0));
        d = a / b;
        let mut best = d * a;
        for k in -7..=7 {
            let (a, b) = fit((k as f32 - 127.0) / max);
            if b > 0.0 && a * a > best * b {
                d = a / b;
                best = d * a;
            }
        }
    }
    let q: Vec<u8> = x.iter().map(|x| uneven(inverse(d) * x) as u8).collect();
    [half(d).to_vec(), pairs(&q).0].concat()
}

fn mxfp4(x: &[f32]) -> Vec<u8> {
    const LEVELS: [f32; 8] = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0];
    let max = farthest(x).abs();
    let power = if max > 0.0 { truncated((f64::from(max).log2() as f32).floor() + 125.0) as u8 } else { 0 };
    // Half of 2 to the power, which is subnormal for the two lowest.
    let d = 2.0_f64.powi(i32::from(power) - 128) as f32;
    let nearest = |x: f32| {
        let distance = |q: u8| (LEVELS[usize::from(q & 7)] * if q > 7 { -d } else { d } - x).abs();
        (1..16).fold(0, |best, q| if distance(q) < distance(best) { q } else { best })
    };
    let q: Vec<u8> = x.iter().map(|&x| nearest(x)).collect();
    [vec![power], pairs(&q).0].concat()
}
