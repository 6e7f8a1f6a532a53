//! Dropout on the device: the mask of [`Dropout::factor`], element by element, in 32-bit halves where a device has no 64-bit
//! numbers.

use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::tensor::{elem, elementwise, empty};
use crate::Dropout;
use crate::dropout::{GOLDEN, MIX};

/// `x ⊙ mask`. Bytes: `x` in, the result out; about 30 whole-number operations an element.
pub(crate) fn dropped(x: &CubeTensor, dropout: Dropout) -> CubeTensor {
    let (y, units) = (empty(x, x.meta.shape().clone(), x.dtype), x.meta.num_elements());
    if units == 0 {
        return y;
    }
    let (count, dim) = elementwise(x, units);
    // SAFETY: the kernel ends beyond `units` elements.
    #[expect(unsafe_code, reason = "a launch without checks of every index")]
    unsafe {
        drop_elements::launch_unchecked(
            &x.client,
            count,
            dim,
            x.clone().into_buffer_arg(),
            y.clone().into_buffer_arg(),
            units,
            (dropout.key >> 32) as u32,
            dropout.key as u32,
            dropout.threshold(),
            dropout.scale(),
            [GOLDEN, MIX[0], MIX[1]],
            elem(x.dtype),
        );
    }
    y
}

/// A 64-bit number.
#[derive(CubeType, Clone, Copy)]
struct Wide {
    high: u32,
    low: u32,
}

#[cube]
fn plus(a: Wide, b: Wide) -> Wide {
    let low = a.low + b.low;
    Wide { high: a.high + b.high + select(low < a.low, 1u32, 0u32), low }
}

/// `a·b`, without what is beyond 64 bits.
#[cube]
fn times(a: Wide, #[comptime] b: u64) -> Wide {
    let high = comptime!((b >> 32) as u32);
    let low = comptime!(b as u32);
    Wide { high: a.low.mul_hi(low.runtime()) + a.high * low + a.low * high, low: a.low * low }
}

/// `a ^ (a >> bits)`, of fewer than 32 bits.
#[cube]
fn folded(a: Wide, #[comptime] bits: u32) -> Wide {
    let high = a.high >> bits;
    let low = (a.low >> bits) | (a.high << comptime!(32 - bits));
    Wide { high: a.high ^ high, low: a.low ^ low }
}

#[cube(launch_unchecked)]
fn drop_elements<E: Float>(
    x: &[E],
    y: &mut [E],
    units: usize,
    key_high: u32,
    key_low: u32,
    threshold: u32,
    scale: f32,
    #[comptime] constants: [u64; 3],
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= units {
        terminate!();
    }
    let index = Wide { high: 0u32.runtime(), low: ABSOLUTE_POS as u32 + 1u32 };
    let key = Wide { high: key_high, low: key_low };
    let sum = plus(key, times(index, comptime!(constants[0])));
    let once = times(folded(sum, 30u32), comptime!(constants[1]));
    let twice = times(folded(once, 27u32), comptime!(constants[2]));
    let kept = select(twice.high >> 8u32 < threshold, 0.0f32, scale);
    y[ABSOLUTE_POS] = E::cast_from(f32::cast_from(x[ABSOLUTE_POS]) * kept);
}
