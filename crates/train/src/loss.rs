//! The loss of a step, which the host need not know before the step's update is queued.

use qwen_tune_kernels::HostCopy;

/// Losses of micro-batches, in the order of the data; some of them perhaps still on a device.
#[derive(Debug, Default)]
pub struct Loss {
    parts: Vec<Part>,
}

#[derive(Debug)]
enum Part {
    Known(f64),
    /// `-Σ logp·weight`.
    Weighted {
        logp: Box<HostCopy<1>>,
        weights: Vec<f32>,
    },
}

impl Loss {
    /// This many nats.
    pub(crate) fn known(nats: f64) -> Self {
        Self { parts: vec![Part::Known(nats)] }
    }

    /// `-Σ logp·weight` over the tokens.
    pub(crate) fn weighted(logp: HostCopy<1>, weights: Vec<f32>) -> Self {
        Self { parts: vec![Part::Weighted { logp: Box::new(logp), weights }] }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.parts.extend(other.parts);
    }

    /// Whether a part is known to be no finite number.
    pub(crate) fn is_unsound(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Known(nats) if !nats.is_finite()))
    }

    /// In nats; waits for what is still on a device.
    ///
    /// # Panics
    /// If the device failed before it was computed.
    #[must_use]
    pub fn nats(self) -> f64 {
        self.parts.into_iter().map(Part::nats).sum()
    }
}

impl Part {
    fn nats(self) -> f64 {
        match self {
            Self::Known(nats) => nats,
            Self::Weighted { logp, weights } => {
                let logp = logp.into_data().convert::<f32>().try_to_vec::<f32>();
                let logp = logp.expect("invariant: converted to f32");
                -logp.iter().zip(&weights).map(|(l, w)| f64::from(*l) * f64::from(*w)).sum::<f64>()
            }
        }
    }
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use burn::tensor::Tensor;

    use super::*;

    #[test]
    fn parts_add_up_in_their_order_wherever_they_were() {
        let cpu = crate::device::open("cpu", Default::default()).expect("a CPU is always there").device;
        let logp = Tensor::<1>::from_floats([-2.0, -0.5, f32::NEG_INFINITY], &cpu);
        let mut loss = Loss::known(3.0);
        assert!(!loss.is_unsound());
        loss.add(Loss::weighted(HostCopy::of(logp.clone().narrow(0, 0, 2)), vec![1.0, 0.5]));
        assert_eq!(loss.nats(), 5.25);
        assert_eq!(Loss::weighted(HostCopy::of(logp), vec![1.0; 3]).nats(), f64::INFINITY);
        assert!(Loss::known(f64::NAN).is_unsound());
        assert_eq!(Loss::default().nats(), 0.0);
    }
}
