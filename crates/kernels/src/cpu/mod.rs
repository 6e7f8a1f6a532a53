//! What the CPU forms of all operations stand on: slices of burn-flex tensors, products, vectorised rows, own
//! backward steps in Burn's autodiff.

pub(crate) mod operand;
pub(crate) mod product;
pub(crate) mod rows;
pub(crate) mod vector;
