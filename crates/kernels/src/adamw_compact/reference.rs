//! The update in plain tensor operations.

use burn::Tensor;
use burn::tensor::{DType, Int, TensorData};

use super::codebook::Codebook;
use super::{BLOCK, Codes, CompactTrained, DynamicMap, LEAST_SCALE, Moment, random_bits};
use crate::AdamW;
use crate::adamw::Trained;
use crate::adamw::reference::{adamw, taken};

/// [`crate::adamw_compact`] in plain tensor operations; random bits come from the host.
pub fn adamw_compact(trained: &mut [CompactTrained<'_>], rule: &AdamW) {
    // Burn cuts nothing out of an empty tensor.
    for trained in trained.iter_mut().filter(|trained| trained.gradient.dims() != [0]) {
        let CompactTrained { value, gradient, first, second, weight_decay, key } = trained;
        let dtype = value.dtype();
        let mut wide = taken(value).cast(DType::F32);
        let (mut m, mut v) = (widened(first, DynamicMap::Signed), widened(second, DynamicMap::Unsigned));
        let weight_decay = *weight_decay;
        adamw(&mut [Trained { value: &mut wide, gradient, first: &mut m, second: &mut v, weight_decay }], rule);
        **value = if dtype == DType::BF16 { rounded(wide, *key) } else { wide };
        put(first, m, DynamicMap::Signed);
        put(second, v, DynamicMap::Unsigned);
    }
}

fn widened(moment: &mut Moment, map: DynamicMap) -> Tensor<1> {
    match moment {
        Moment::Wide(tensor) => taken(tensor),
        Moment::Codes(codes) => decoded(codes, map),
    }
}

fn put(moment: &mut Moment, values: Tensor<1>, map: DynamicMap) {
    match moment {
        Moment::Wide(tensor) => *tensor = values,
        Moment::Codes(codes) => *codes = encoded(&values, map),
    }
}

/// The numbers of a map on the device of `like`.
fn on_device(numbers: &[f32], like: &Tensor<1>) -> Tensor<1> {
    Tensor::from_data(TensorData::new(numbers.to_vec(), [numbers.len()]), &like.device())
}

/// The numbers that codes stand for.
pub(super) fn decoded(Codes { codes, scales }: &Codes, map: DynamicMap) -> Tensor<1> {
    let ([elements], [blocks]) = (codes.dims(), scales.dims());
    let numbers = on_device(&map.codebook().numbers, scales).select(0, codes.clone().cast(DType::I32));
    let scales: Tensor<1> = scales.clone().reshape([blocks, 1]).repeat_dim(1, BLOCK).reshape([blocks * BLOCK]);
    numbers * scales.narrow(0, 0, elements)
}

/// The nearest codes, by halving the midpoints eight times.
pub(super) fn encoded(values: &Tensor<1>, map: DynamicMap) -> Codes {
    let Codebook { midpoints, .. } = map.codebook();
    let ([elements], device) = (values.dims(), values.device());
    let blocks = elements.div_ceil(BLOCK);
    let padding = Tensor::zeros([blocks * BLOCK - elements], (&device, DType::F32));
    let values: Tensor<2> = Tensor::cat(vec![values.clone(), padding], 0).reshape([blocks, BLOCK]);
    let scales = values.clone().abs().max_dim(1).clamp_min(LEAST_SCALE);
    let scaled: Tensor<1> = (values / scales.clone()).reshape([blocks * BLOCK]);
    let midpoints = on_device(midpoints, &scaled);
    let mut codes = Tensor::<1, Int>::zeros([blocks * BLOCK], (&device, DType::I32));
    for bit in (0..8).rev() {
        let step = 1 << bit;
        let above = scaled.clone().greater_equal(midpoints.clone().select(0, codes.clone().add_scalar(step - 1)));
        codes = codes + above.int().cast(DType::I32).mul_scalar(step);
    }
    Codes { codes: codes.narrow(0, 0, elements).cast(DType::U8), scales: scales.reshape([blocks]) }
}

/// Rounds to one of the two nearest bf16. Numbers below the least normal one go to zero.
///
/// With `t` the one towards zero and `n` the one behind it: to `n` if 16 random bits are below `2^16 (x - t) / (n - t)`. No
/// operation here rounds but the casts.
pub(super) fn rounded(x: Tensor<1>, key: u64) -> Tensor<1> {
    let ([elements], device) = (x.dims(), x.device());
    let groups = 0..elements.div_ceil(4) as u64;
    let mut bits: Vec<f32> = groups.flat_map(|group| random_bits(key, group)).map(|bits| bits as f32).collect();
    bits.truncate(elements);
    let bits = Tensor::<1>::from_data(TensorData::new(bits, [elements]), &device);

    let narrow = |x: Tensor<1>| x.cast(DType::BF16).cast(DType::F32);
    let size = x.clone().abs();
    let nearest = narrow(size.clone());
    let below = narrow(nearest.clone().mul_scalar(1.0 - 1.0 / 256.0));
    let towards_zero = nearest.clone().mask_where(nearest.greater(size.clone()), below);
    // Between half a distance and a whole one and a half: never a tie.
    let behind = narrow(towards_zero.clone().mul_scalar(1.0 + 1.5 / 256.0));
    let distance = behind.clone() - towards_zero.clone();
    let part = ((size - towards_zero.clone()) / distance.clone()).mask_fill(distance.equal_elem(0.0), 0.0);
    let goes_on = bits.lower(part.mul_scalar(65536.0));
    let rounded = towards_zero.mask_where(goes_on, behind);
    (rounded * x.sign()).cast(DType::BF16)
}
