//! Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101) and the norm of all gradients, over all
//! trained tensors at once.

#[cfg(feature = "gpu")]
mod cube;
#[cfg(feature = "cpu")]
pub(crate) mod flex;
mod norm;
pub(crate) mod reference;

use burn::Tensor;

pub use self::norm::{Norm, NormCopy, clip};
use crate::{CompactTrained, adamw_compact};

/// The numbers of one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Which update this is, from 1.
    pub step: u64,
    /// Step size.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// What gradients are multiplied by first: below 1 where they are clipped.
    pub clip: f64,
}

impl AdamW {
    /// `lr / (1 - b1^t)`, the step along the first moment.
    fn step_size(&self) -> f64 {
        self.learning_rate / (1.0 - self.beta1.powi(self.step as i32))
    }

    /// `√(1 - b2^t)`, by which the root of the second moment is too small.
    fn root_correction(&self) -> f64 {
        (1.0 - self.beta2.powi(self.step as i32)).sqrt()
    }

    /// `1 - lr wd`, what stays of a value.
    fn kept(&self, weight_decay: f64) -> f64 {
        1.0 - self.learning_rate * weight_decay
    }
}

/// One trained tensor and what its update depends on; all flat, f32, of the same length.
#[derive(Debug)]
pub struct Trained<'a> {
    /// Values.
    pub value: &'a mut Tensor<1>,
    /// Gradient of the loss by the values.
    pub gradient: &'a Tensor<1>,
    /// Exponential mean of gradients.
    pub first: &'a mut Tensor<1>,
    /// Exponential mean of squared gradients.
    pub second: &'a mut Tensor<1>,
    /// Decoupled weight decay of these values.
    pub weight_decay: f64,
}

/// One update of every tensor, as torch computes it. With `g` the gradient times [`AdamW::clip`]:
/// `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g²`, `p = p (1 - lr wd) - lr / (1 - b1^t) m / (√v / √(1 - b2^t) + eps)`.
///
/// On a CPU values and moments change where they lie, unless another tensor shares their memory; it keeps what it had.
pub fn adamw(trained: &mut [Trained<'_>], rule: &AdamW) {
    for Trained { value, gradient, first, second, .. } in trained.iter() {
        let sizes = [value.dims(), first.dims(), second.dims()];
        assert_eq!(sizes, [gradient.dims(); 3], "adamw: value and moments must have the gradient's length");
    }
    #[cfg(feature = "cpu")]
    if flex::adamw(trained, rule) {
        return;
    }
    #[cfg(feature = "gpu")]
    if cube::adamw(trained, rule, cube::Clip::Rule) {
        return;
    }
    reference::adamw(trained, rule);
}

/// One update of every tensor with gradients clipped to the global norm `most` (0 never clips), which is `norm`; `compact`
/// are those of [`adamw_compact`]. Where the norm or one of its witnesses is no finite number, nothing changes.
///
/// A norm that is still on its device is looked at there: of f32 tensors the update is queued and nothing waits. Tensors
/// that need the reference form, as compact ones on a GPU do, wait for it.
pub fn adamw_clipped(
    trained: &mut [Trained<'_>],
    compact: &mut [CompactTrained<'_>],
    rule: &AdamW,
    norm: &Norm,
    most: f64,
) {
    #[cfg(feature = "gpu")]
    if let (Some(total), []) = (norm.there(), &*compact)
        && cube::adamw(trained, rule, cube::Clip::To(total, most))
    {
        return;
    }
    if let Some(clip) = norm.clip(most) {
        let rule = AdamW { clip, ..*rule };
        adamw(trained, &rule);
        adamw_compact(compact, &rule);
    }
}

/// `√Σ g²` over the elements of all tensors, from partial sums in f32. Waits for it.
#[must_use]
pub fn global_norm(gradients: &[&Tensor<1>]) -> f64 {
    Norm::of(gradients, &[]).value()
}

#[cfg(all(test, feature = "cpu"))]
mod tests;
