//! Dropout whose mask is a function of a key and the element's index, never of the order of calls.
//!
//! A stateful generator would make a recomputed forward, another thread count or a resumed run drop other elements.

use burn::tensor::{Device, Tensor, TensorData};

/// Inverted dropout: an element is zeroed with probability `p`, the others are multiplied by `1/(1-p)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability of dropping an element, in `0..1`.
    pub p: f32,
    /// Names the mask: the same key and shape give the same mask, everywhere.
    pub key: u64,
}

/// Odd constant of the splitmix64 sequence (Steele, Lea and Flood, 2014).
pub(crate) const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The other two.
pub(crate) const MIX: [u64; 2] = [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb];

impl Dropout {
    /// Factor of the element at `index` in C order: 0 or `1/(1-p)`.
    #[inline(always)]
    pub(crate) fn factor(&self, index: u64) -> f32 {
        let mut z = self.key.wrapping_add(index.wrapping_add(1).wrapping_mul(GOLDEN));
        z = (z ^ (z >> 30)).wrapping_mul(MIX[0]);
        z = (z ^ (z >> 27)).wrapping_mul(MIX[1]);
        let uniform = (z >> 40) as u32;
        if uniform < self.threshold() { 0.0 } else { self.scale() }
    }

    /// The same mask from the element at `first` on, whose index is then 0: what a part of the rows sees of it.
    #[must_use]
    pub fn from_element(self, first: u64) -> Self {
        Self { key: self.key.wrapping_add(first.wrapping_mul(GOLDEN)), ..self }
    }

    /// Writes the factors of the elements from `first` on.
    pub(crate) fn fill(&self, first: u64, factors: &mut [f32]) {
        for (offset, factor) in factors.iter_mut().enumerate() {
            *factor = self.factor(first + offset as u64);
        }
    }

    /// The mask as a tensor.
    pub(crate) fn mask(&self, [rows, columns]: [usize; 2], device: &Device) -> Tensor<2> {
        let mut factors = vec![0.0; rows * columns];
        self.fill(0, &mut factors);
        Tensor::from_data(TensorData::new(factors, [rows, columns]), device)
    }

    /// Below this, a 24-bit uniform number means "dropped".
    #[inline(always)]
    pub(crate) fn threshold(&self) -> u32 {
        (f64::from(self.p) * f64::from(1u32 << 24)).round() as u32
    }

    #[inline(always)]
    pub(crate) fn scale(&self) -> f32 {
        (1.0 / (1.0 - f64::from(self.p))) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_the_asked_share_and_keeps_the_mean() {
        let dropout = Dropout { p: 0.3, key: 7 };
        let factors: Vec<f32> = (0..100_000).map(|index| dropout.factor(index)).collect();
        let dropped = factors.iter().filter(|&&factor| factor == 0.0).count();
        let mean: f32 = factors.iter().sum::<f32>() / factors.len() as f32;
        assert!((29_000..31_000).contains(&dropped), "dropped {dropped} of 100000");
        assert!((mean - 1.0).abs() < 0.02, "mean {mean}");
    }

    #[test]
    fn a_mask_depends_on_key_and_index_only() {
        let dropout = Dropout { p: 0.5, key: 11 };
        let mut whole = vec![0.0; 64];
        dropout.fill(0, &mut whole);
        let mut tail = vec![0.0; 24];
        dropout.fill(40, &mut tail);
        assert_eq!(whole[40..], tail);
        dropout.from_element(40).fill(0, &mut tail);
        assert_eq!(whole[40..], tail);
        let mut other = vec![0.0; 64];
        Dropout { p: 0.5, key: 12 }.fill(0, &mut other);
        assert_ne!(whole, other);
    }

    #[test]
    fn zero_probability_keeps_everything() {
        let dropout = Dropout { p: 0.0, key: 3 };
        assert!((0..1000).all(|index| dropout.factor(index) == 1.0));
    }
}
