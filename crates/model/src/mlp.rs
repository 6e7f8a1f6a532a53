//! The dense feed-forward part: SwiGLU (Shazeer 2020, arXiv 2002.05202).

use burn::tensor::Tensor;
use qwen_tune_kernels::Input;

use crate::build::{BuildError, Builder};
use crate::linear::Linear;
use crate::parameters::Pass;

/// `down(silu(gate(x)) ⊙ up(x))`.
#[derive(Debug, Clone)]
pub struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl Mlp {
    /// Loads the part below the cursor.
    ///
    /// # Errors
    /// As [`Builder::linear`].
    pub fn new(at: &Builder<'_>, hidden: usize, inner: usize, bias: bool) -> Result<Self, BuildError> {
        Ok(Self {
            gate_proj: at.linear("gate_proj", hidden, inner, bias)?,
            up_proj: at.linear("up_proj", hidden, inner, bias)?,
            down_proj: at.linear("down_proj", inner, hidden, bias)?,
        })
    }

    /// Whether anything in it is trained.
    #[must_use]
    pub fn is_trained(&self) -> bool {
        [&self.gate_proj, &self.up_proj, &self.down_proj].into_iter().any(Linear::is_trained)
    }

    /// `[tokens, hidden]` to the same.
    #[must_use]
    pub fn forward(&self, x: impl Into<Input<2>>, pass: &Pass<'_>) -> Tensor<2> {
        let [gate, up] = Linear::forward_all([&self.gate_proj, &self.up_proj], x, pass);
        self.down_proj.forward(Input::swiglu(gate, up), pass)
    }
}
