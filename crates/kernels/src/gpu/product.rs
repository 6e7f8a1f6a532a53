//! Products of matrices of one type, and their results in f32.

use burn::Tensor;
use burn::tensor::DType;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};

use super::Cube;
use super::tensor::primitive;

/// `a·b` rounded to f32 only: what scores, logits and gradients of f32 weights are.
pub(crate) fn wide_product<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    // The framework would read the second as if it had the first one's type.
    assert_eq!(a.dtype(), b.dtype(), "invariant: both sides of a product have one type");
    let product = matmul(primitive(a), primitive(b), None, MatmulStrategy::default(), DType::F32);
    Tensor::from_primitive::<Cube>(product.expect("invariant: the product of two matrices of one type"))
}

/// `a·b` in their type.
pub(crate) fn product<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    assert_eq!(a.dtype(), b.dtype(), "invariant: both sides of a product have one type");
    a.matmul(b)
}
