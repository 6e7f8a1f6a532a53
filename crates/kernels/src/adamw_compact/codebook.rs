//! The dynamic map: 256 numbers from -1 (or 0) to 1 whose distance shrinks towards zero with their size.
//!
//! In decade `d` of seven, `10^(d-6)` is the largest number and `2^d` means of equal parts of `0.1..1` times it are there
//! (twice as many where there is no sign); beside these 0 and 1. So codes near 1 have 7 bits of fraction and those near
//! `10^-6` none: the relative error is small for the large numbers of a block, and small ones still differ from zero.

use std::sync::OnceLock;

/// Which numbers the codes of a moment stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DynamicMap {
    /// Of both signs: the first moment.
    Signed,
    /// From zero: the second moment, with twice as many codes.
    Unsigned,
}

impl DynamicMap {
    /// Its numbers, and how the nearest is found.
    pub(crate) fn codebook(self) -> &'static Codebook {
        static BOTH: [OnceLock<Codebook>; 2] = [OnceLock::new(), OnceLock::new()];
        BOTH[usize::from(self == Self::Unsigned)].get_or_init(|| Codebook::new(self))
    }

    /// The 256 numbers, rising: `create_dynamic_map` of bitsandbytes and torchao, computed in f64 and rounded once.
    #[must_use]
    pub fn numbers(self) -> [f32; 256] {
        let mut numbers = vec![0.0, 1.0];
        for decade in 0..7 {
            let count = if self == Self::Signed { 1 << decade } else { 2 << decade };
            for part in 0..count {
                let mean = 0.1 + 0.9 * (f64::from(part) + 0.5) / f64::from(count);
                let number = 10f64.powi(decade - 6) * mean;
                numbers.push(number as f32);
                if self == Self::Signed {
                    numbers.push(-number as f32);
                }
            }
        }
        numbers.sort_by(f32::total_cmp);
        numbers.try_into().expect("invariant: 254 of decades, 0 and 1")
    }
}

/// Exponents below 1 that have buckets: the least number that is nearer to a code than to zero is above `2^-23`.
#[cfg(feature = "cpu")]
const EXPONENTS: u32 = 23;
/// Buckets share sign, exponent and the upper seven bits of the fraction.
#[cfg(feature = "cpu")]
const BUCKET_BITS: u32 = 16;
/// Bucket of `2^-23`.
#[cfg(feature = "cpu")]
const LOWEST: u32 = (127 - EXPONENTS) << 7;
/// Buckets of one sign; the first takes all that is smaller, the last all from 1 on.
#[cfg(feature = "cpu")]
const BUCKETS: usize = (EXPONENTS << 7) as usize + 1;

/// The numbers of a [`DynamicMap`], and how the nearest is found.
#[derive(Debug)]
pub(crate) struct Codebook {
    /// Rising.
    pub(crate) numbers: [f32; 256],
    /// Midpoints between neighbours: a number has as many of these at or below it as its code says. NaN at the end, which no
    /// number reaches.
    pub(crate) midpoints: [f32; 256],
    /// Code of the least number in each bucket, negative ones behind the others. No bucket holds two midpoints.
    #[cfg(feature = "cpu")]
    least: [Vec<u8>; 2],
}

impl Codebook {
    fn new(map: DynamicMap) -> Self {
        let numbers = map.numbers();
        let midpoints: [f32; 256] = std::array::from_fn(|code| match numbers.get(code + 1) {
            Some(above) => ((f64::from(numbers[code]) + f64::from(*above)) / 2.0) as f32,
            None => f32::NAN,
        });
        Self {
            #[cfg(feature = "cpu")]
            least: least(&midpoints),
            numbers,
            midpoints,
        }
    }

    /// Code of zero.
    pub(crate) fn zero(&self) -> u8 {
        self.midpoints.partition_point(|&midpoint| midpoint <= 0.0) as u8
    }

    /// Code of the number nearest to `x`, of two the upper one. `x` is in `-1..=1`; anything else gets some code.
    #[cfg(feature = "cpu")]
    #[inline(always)]
    pub(crate) fn nearest(&self, x: f32) -> u8 {
        let bits = x.to_bits();
        let bucket = ((bits & 0x7fff_ffff) >> BUCKET_BITS).saturating_sub(LOWEST) as usize;
        let least = self.least[(bits >> 31) as usize][bucket.min(BUCKETS - 1)];
        least + u8::from(x >= self.midpoints[usize::from(least)])
    }
}

/// See [`Codebook::least`].
#[cfg(feature = "cpu")]
fn least(midpoints: &[f32; 256]) -> [Vec<u8>; 2] {
    let code = |x: f32| midpoints.partition_point(|&midpoint| midpoint <= x) as u8;
    let edge = |bucket: u32| f32::from_bits((LOWEST + bucket) << BUCKET_BITS);
    let positive = (0..BUCKETS as u32).map(|bucket| code(if bucket == 0 { 0.0 } else { edge(bucket) }));
    let negative = (0..BUCKETS as u32).map(|bucket| code(-edge(bucket + 1).next_down()));
    [positive.collect(), negative.collect()]
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use super::*;

    /// Every edge of a bucket, every midpoint and every number with its neighbours, and many between.
    fn probes(book: &Codebook) -> Vec<f32> {
        let edges = (0..=0xffff_u32).map(|top| f32::from_bits(top << BUCKET_BITS));
        let places = edges.chain(book.midpoints).chain(book.numbers);
        let near = places.flat_map(|x| [x.next_down(), x, x.next_up()]);
        let between = (-40_000..=40_000).map(|step| step as f32 / 40_000.0);
        near.chain(between).filter(|x| (-1.0..=1.0).contains(x)).collect()
    }

    /// The nearest number by looking at all of them.
    fn plainly_nearest(book: &Codebook, x: f32) -> u8 {
        let distance = |number: f32| (f64::from(number) - f64::from(x)).abs();
        let mut best = 0;
        for code in 1..256 {
            if distance(book.numbers[code]) <= distance(book.numbers[best]) {
                best = code;
            }
        }
        best as u8
    }

    #[test]
    fn finds_the_nearest_number() {
        for map in [DynamicMap::Signed, DynamicMap::Unsigned] {
            let book = map.codebook();
            for x in probes(book) {
                let (found, expected) = (book.nearest(x), plainly_nearest(book, x));
                // A midpoint rounded to f32 may lie on the other side of the number it is compared with.
                let is_midpoint = book.midpoints.iter().any(|m| (m - x).abs() <= 2.0 * (m.next_up() - m).abs());
                assert!(
                    found == expected || is_midpoint && found.abs_diff(expected) == 1,
                    "{map:?}: {x:e} as {found}, not {expected}"
                );
            }
        }
    }

    #[test]
    fn every_number_is_its_own_nearest() {
        for map in [DynamicMap::Signed, DynamicMap::Unsigned] {
            let book = map.codebook();
            for (code, number) in book.numbers.iter().enumerate() {
                assert_eq!(usize::from(book.nearest(*number)), code);
            }
            assert_eq!(book.numbers[usize::from(book.zero())], 0.0);
            assert_eq!(book.nearest(-0.0), book.zero());
            assert_eq!((book.numbers[255], book.nearest(f32::INFINITY)), (1.0, 255));
        }
    }

    #[test]
    fn what_is_no_number_gets_some_code() {
        for map in [DynamicMap::Signed, DynamicMap::Unsigned] {
            for x in [f32::NAN, -f32::NAN, f32::NEG_INFINITY, f32::MAX, f32::MIN] {
                let _ = map.codebook().nearest(x);
            }
        }
    }
}
