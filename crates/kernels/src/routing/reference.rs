//! The way to the experts and back in plain tensor operations.

use burn::Tensor;
use burn::tensor::{Device, Int, TensorData};

use super::Routes;

fn index(indices: impl Iterator<Item = usize>, device: &Device) -> Tensor<1, Int> {
    let indices: Vec<i32> = indices.map(|index| index as i32).collect();
    let count = indices.len();
    Tensor::from_data(TensorData::new(indices, [count]), device)
}

/// [`crate::spread`] in plain tensor operations.
pub fn spread(x: Tensor<2>, routes: &Routes) -> Tensor<2> {
    let device = x.device().without_autodiff();
    x.select(0, index(routes.choice_of_row.iter().map(|choice| choice / routes.active), &device))
}

/// [`crate::combine`] in plain tensor operations.
pub fn combine(rows: Tensor<2>, weights: Tensor<2>, routes: &Routes) -> Tensor<2> {
    let (device, dtype, width) = (rows.device().without_autodiff(), rows.dtype(), rows.dims()[1]);
    let [tokens, active] = weights.dims();
    let choices = rows.select(0, index(routes.row_of_choice.iter().copied(), &device));
    let choices: Tensor<3> = choices.reshape([tokens, active, width]);
    (choices * weights.cast(dtype).unsqueeze_dim::<3>(2)).sum_dim(1).reshape([tokens, width])
}
