//! The rotation in plain tensor operations.

use burn::Tensor;

/// [`crate::rope`] in plain tensor operations.
pub fn rope(x: Tensor<3>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<3> {
    let ([_, _, size], [_, half], dtype) = (x.dims(), cos.dims(), x.dtype());
    if half == 0 {
        return x;
    }
    let cos = cos.cast(dtype).unsqueeze_dim::<3>(1);
    let sin = sin.cast(dtype).unsqueeze_dim::<3>(1);
    let first = x.clone().narrow(2, 0, half);
    let second = x.clone().narrow(2, half, half);
    let mut parts = vec![first.clone() * cos.clone() - second.clone() * sin.clone(), second * cos + first * sin];
    if 2 * half < size {
        parts.push(x.narrow(2, 2 * half, size - 2 * half));
    }
    Tensor::cat(parts, 2)
}
