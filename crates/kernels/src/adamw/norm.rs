//! The norm of all gradients, known to the host or still on its device: an update that is clipped by it need not wait.

use burn::Tensor;
#[cfg(feature = "gpu")]
use burn::tensor::TensorData;

#[cfg(feature = "gpu")]
use super::cube;
use super::reference;
#[cfg(feature = "gpu")]
use crate::HostCopy;

/// `√Σ g²` over all gradients of a step, and whether what else must be numbers is.
#[derive(Clone, Debug)]
pub struct Norm(Form);

#[derive(Clone, Debug)]
enum Form {
    Here {
        norm: f64,
        /// Whether every witness is a finite number.
        sound: bool,
    },
    #[cfg(feature = "gpu")]
    There(cube::Total),
}

/// A [`Norm`] on its way to the host.
#[derive(Debug)]
pub struct NormCopy(Coming);

#[derive(Debug)]
enum Coming {
    Here(f64),
    #[cfg(feature = "gpu")]
    Copy(HostCopy<1>),
}

impl Norm {
    /// Of these gradients, f32. `witnesses` are other numbers of the step that have to be finite for an update to be
    /// made: log-probabilities, of which the loss is a sum. On a GPU it is queued, and nothing waits for it.
    #[must_use]
    pub fn of(gradients: &[&Tensor<1>], witnesses: &[&Tensor<1>]) -> Self {
        #[cfg(feature = "cpu")]
        if let Some(norm) = super::flex::global_norm(gradients) {
            return Self(Form::Here { norm, sound: witnesses.iter().all(|witness| is_finite(witness)) });
        }
        #[cfg(feature = "gpu")]
        if let Some(total) = cube::total(gradients, witnesses) {
            return Self(Form::There(total));
        }
        let sound = witnesses.iter().all(|witness| is_finite(witness));
        Self(Form::Here { norm: reference::global_norm(gradients), sound })
    }

    /// Whether the host has it: there is nothing to wait for.
    #[must_use]
    pub fn is_here(&self) -> bool {
        matches!(self.0, Form::Here { .. })
    }

    /// Begins to bring it to the host.
    #[must_use]
    pub fn copy(&self) -> NormCopy {
        NormCopy(match &self.0 {
            Form::Here { norm, .. } => Coming::Here(*norm),
            #[cfg(feature = "gpu")]
            Form::There(total) => Coming::Copy(HostCopy::of(total.numbers())),
        })
    }

    /// The norm; waits for the device.
    ///
    /// # Panics
    /// If the device failed before it was computed.
    #[must_use]
    pub fn value(&self) -> f64 {
        self.copy().value()
    }

    /// Takes notice of work that failed on its way here, such as an allocation, without waiting for the work itself.
    ///
    /// # Panics
    /// If what the norm is made of could not be queued, in the device's words.
    pub fn check_queued(&self) {
        #[cfg(feature = "gpu")]
        if let Form::There(total) = &self.0 {
            total.check_queued();
        }
    }

    /// What gradients are multiplied by so that their norm is at most `most`, as torch's `clip_grad_norm_` has it; 0 never
    /// clips. `None` where the norm or a witness is no finite number. Waits for the device.
    #[must_use]
    pub fn clip(&self, most: f64) -> Option<f64> {
        let (norm, sound) = match &self.0 {
            Form::Here { norm, sound } => (*norm, *sound),
            #[cfg(feature = "gpu")]
            Form::There(total) => {
                let [norm, witnesses] = total.read();
                (norm, witnesses.is_finite())
            }
        };
        (norm.is_finite() && sound).then(|| clip(norm, most))
    }

    /// The norm on its device, if that is where it is.
    #[cfg(feature = "gpu")]
    pub(super) fn there(&self) -> Option<&cube::Total> {
        match &self.0 {
            Form::There(total) => Some(total),
            Form::Here { .. } => None,
        }
    }
}

impl NormCopy {
    /// The norm; waits until it is there.
    ///
    /// # Panics
    /// If the device failed before it was computed.
    #[must_use]
    pub fn value(self) -> f64 {
        match self.0 {
            Coming::Here(norm) => norm,
            #[cfg(feature = "gpu")]
            Coming::Copy(copy) => numbers(copy.into_data())[0],
        }
    }
}

/// `most / (norm + 1e-6)` where the norm is above `most`, else 1; as torch's `clip_grad_norm_`, and never where `most` is 0.
#[must_use]
pub fn clip(norm: f64, most: f64) -> f64 {
    if most > 0.0 && norm > most { most / (norm + CLIP_EPS) } else { 1.0 }
}

/// Added to the norm that is divided by.
pub(super) const CLIP_EPS: f64 = 1e-6;

fn is_finite(witness: &Tensor<1>) -> bool {
    let values = witness.clone().inner().into_data().convert::<f32>().try_to_vec::<f32>();
    values.expect("invariant: converted to f32").iter().all(|value| value.is_finite())
}

/// The two numbers of a [`cube::Total`].
#[cfg(feature = "gpu")]
pub(super) fn numbers(data: TensorData) -> [f64; 2] {
    let values = data.try_to_vec::<f32>().expect("invariant: the numbers are f32");
    [0, 1].map(|index| f64::from(values[index]))
}
