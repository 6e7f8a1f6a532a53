//! What the CPU forms of all operations stand on: slices of burn-flex tensors, views of columns, products, vectorised rows, own
//! backward steps in Burn's autodiff.

pub(crate) mod columns;
pub(crate) mod element;
pub(crate) mod kept;
pub(crate) mod operand;
pub(crate) mod product;
pub(crate) mod rows;
pub(crate) mod vector;
