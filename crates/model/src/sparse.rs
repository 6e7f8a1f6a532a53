//! A mixture of experts: a router sends each token through some of many small feed-forward parts.
//!
//! T tokens, E experts, k of them active, R = T·k rows sorted by expert, D hidden channels, I channels inside an expert.

use std::sync::Arc;

use burn::tensor::{DType, Int, Tensor, TensorData};
use qwen_tune_kernels::{self as kernels, Groups, Input, Routes};
use qwen_tune_qwen::spec::SparseSpec;

use crate::build::{BuildError, Builder};
use crate::linear::{Linear, Lora};
use crate::mlp::Mlp;
use crate::parameters::{Matrix, Pass};

/// `Σ_j p_j · expert_j(x)` over the k most probable experts, and `σ(gate x) · shared(x)` where there is a shared one.
#[derive(Debug, Clone)]
pub struct Sparse {
    router: Linear,
    gate_up_proj: Experts,
    down_proj: Experts,
    shared: Option<Shared>,
    spec: SparseSpec,
}

/// One linear layer of every expert, with its adapters: `[experts, out, in]`.
#[derive(Debug, Clone)]
pub struct Experts {
    pub(crate) name: String,
    pub(crate) weight: Matrix<3>,
    pub(crate) adapter: Option<Lora<3>>,
}

impl Experts {
    fn is_trained(&self) -> bool {
        self.adapter.is_some() || self.weight.is_trained()
    }

    fn forward(&self, x_RI: impl Into<Input<2>>, groups: &Arc<Groups>, pass: &Pass<'_>) -> Tensor<2> {
        let adapter = Lora::of(self.adapter.as_ref(), pass);
        let x_RI = x_RI.into();
        pass.weigh([&*self.name], x_RI.tensor());
        kernels::grouped_linear(x_RI, pass.matrix(&self.weight), groups, adapter.as_ref())
    }
}

/// What the router of one layer decided for some tokens.
#[derive(Debug, Clone)]
pub struct Routing {
    /// How it spread them.
    pub spread: Spread,
    /// Probabilities `[T, E]`, on the tape of the pass.
    pub probabilities: Tensor<2>,
}

/// How some tokens were spread over the experts of one layer.
#[derive(Debug, Clone)]
pub struct Spread {
    /// Rows that each expert works on, `[E]`.
    pub rows: Vec<usize>,
    /// Probability of each expert, summed over the tokens, `[E]`.
    pub mass: Vec<f64>,
    /// Tokens.
    pub tokens: usize,
    /// Experts that each token goes through.
    pub active: usize,
}

impl Spread {
    /// Of all tokens that came in these parts; `None` without any.
    #[must_use]
    pub fn of(parts: &[Routing]) -> Option<Self> {
        let (first, others) = parts.split_first()?;
        let mut sum = first.spread.clone();
        for Routing { spread, .. } in others {
            sum.rows.iter_mut().zip(&spread.rows).for_each(|(sum, rows)| *sum += rows);
            sum.mass.iter_mut().zip(&spread.mass).for_each(|(sum, mass)| *sum += mass);
            sum.tokens += spread.tokens;
        }
        Some(sum)
    }
}

#[derive(Debug, Clone)]
struct Shared {
    expert: Mlp,
    gate: Linear,
}

/// Which rows go where: the host's part of routing, because the shapes of products depend on it.
struct Dispatch {
    /// Experts of each token, `[T, k]`, most probable first.
    chosen_TK: Tensor<2, Int>,
    routes: Arc<Routes>,
    groups: Arc<Groups>,
    /// Probability of each expert, summed over the tokens.
    mass_E: Vec<f64>,
}

impl Sparse {
    /// Loads the part below the cursor.
    ///
    /// # Errors
    /// As [`Builder::linear`].
    pub fn new(at: &Builder<'_>, hidden: usize, spec: &SparseSpec) -> Result<Self, BuildError> {
        let SparseSpec { experts, inner, shared, .. } = *spec;
        let here = at.at("experts");
        Ok(Self {
            router: at.linear("gate", hidden, experts, false)?,
            gate_up_proj: here.experts("gate_up_proj", experts, hidden, 2 * inner)?,
            down_proj: here.experts("down_proj", experts, inner, hidden)?,
            shared: match shared {
                None => None,
                Some(inner) => Some(Shared {
                    expert: Mlp::new(&at.at("shared_expert"), hidden, inner, false)?,
                    gate: at.linear("shared_expert_gate", hidden, 1, false)?,
                }),
            },
            spec: spec.clone(),
        })
    }

    /// Whether anything in it is trained.
    #[must_use]
    pub fn is_trained(&self) -> bool {
        self.router.is_trained()
            || self.gate_up_proj.is_trained()
            || self.down_proj.is_trained()
            || self.shared.as_ref().is_some_and(|shared| shared.expert.is_trained() || shared.gate.is_trained())
    }

    /// Whether adapters of experts drop inputs.
    pub(crate) fn drops_in_experts(&self) -> bool {
        let drops = |experts: &Experts| experts.adapter.as_ref().is_some_and(|lora| lora.dropout > 0.0);
        drops(&self.gate_up_proj) || drops(&self.down_proj)
    }

    /// Scores of all experts before the softmax, `[T, E]`.
    #[must_use]
    pub fn router_logits(&self, x_TD: impl Into<Input<2>>, pass: &Pass<'_>) -> Tensor<2> {
        self.router.forward(x_TD, pass)
    }

    /// `[T, D]` to the same.
    #[must_use]
    pub fn forward(&self, x_TD: impl Into<Input<2>>, pass: &Pass<'_>) -> Tensor<2> {
        let x_TD = x_TD.into();
        let [tokens, _] = x_TD.tensor().dims();
        let active = self.spec.active;
        let p_TE = kernels::softmax(self.router_logits(x_TD.clone(), pass).cast(DType::F32));
        let dispatch = self.dispatch(&p_TE);
        pass.observe(|| Routing {
            spread: Spread { rows: dispatch.groups.counts(), mass: dispatch.mass_E.clone(), tokens, active },
            probabilities: p_TE.clone(),
        });
        let p_TK = p_TE.gather(1, dispatch.chosen_TK);
        let p_TK = if self.spec.renormalise { p_TK.clone() / p_TK.sum_dim(1) } else { p_TK };

        // Rows of experts are the largest tensors of a layer: each is gone before the next but one is made.
        let both_R2I =
            self.gate_up_proj.forward(kernels::spread(x_TD.tensor().clone(), &dispatch.routes), &dispatch.groups, pass);
        let y_RD = self.down_proj.forward(Input::swiglu_joined(both_R2I), &dispatch.groups, pass);
        let y_TD = kernels::combine(y_RD, p_TK, &dispatch.routes);
        match &self.shared {
            None => y_TD,
            Some(shared) => {
                let gate_T1 = shared.gate.forward(x_TD.clone(), pass);
                kernels::add(y_TD, kernels::sigmoid_gate(shared.expert.forward(x_TD, pass), gate_T1))
            }
        }
    }

    fn dispatch(&self, p_TE: &Tensor<2>) -> Dispatch {
        let SparseSpec { experts, active, .. } = self.spec;
        let device = p_TE.device().without_autodiff();
        let host = p_TE.clone().into_data().convert::<f32>();
        let probabilities: Vec<f32> = host.try_to_vec().expect("invariant: converted to f32");
        let chosen: Vec<usize> = probabilities.chunks_exact(experts).flat_map(|row| largest(row, active)).collect();
        let mut counts = vec![0; experts];
        chosen.iter().for_each(|&expert| counts[expert] += 1);
        let groups = Groups::of_counts(&counts);
        let mut mass_E = vec![0.0; experts];
        for row in probabilities.chunks_exact(experts) {
            mass_E.iter_mut().zip(row).for_each(|(sum, p)| *sum += f64::from(*p));
        }
        // A stable sort by counting: rows of an expert keep the order of their tokens.
        let mut next: Vec<usize> =
            counts.iter().scan(0, |sum, count| Some(std::mem::replace(sum, *sum + count))).collect();
        let row_of_choice = chosen.iter().map(|&expert| {
            next[expert] += 1;
            next[expert] - 1
        });
        let routes = Routes::new(row_of_choice.collect(), active);
        let shape = [routes.tokens(), active];
        let chosen: Vec<i32> = chosen.into_iter().map(|expert| expert as i32).collect();
        let chosen_TK = Tensor::from_data(TensorData::new(chosen, shape), &device);
        Dispatch { chosen_TK, routes, groups, mass_E }
    }
}

/// Indices of the `count` largest values, largest first; of equal ones the first.
fn largest(values: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    let before = |a: &usize, b: &usize| values[*b].total_cmp(&values[*a]).then(a.cmp(b));
    if count < order.len() {
        order.select_nth_unstable_by(count, before);
        order.truncate(count);
    }
    order.sort_unstable_by(before);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_probable_come_first() {
        assert_eq!(largest(&[0.1, 0.5, 0.2, 0.2], 3), [1, 2, 3]);
        assert_eq!(largest(&[0.1, 0.5], 2), [1, 0]);
        assert_eq!(largest(&[0.3, 0.3, 0.3], 1), [0]);
    }
}
