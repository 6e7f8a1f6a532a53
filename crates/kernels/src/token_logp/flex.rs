//! The chunked head on the CPU: one buffer of logits, turned into their gradient in place.

use std::marker::PhantomData;

use burn::Tensor;
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::{HeadLoss, even_chunk, most_chunk_tokens, online, trained_rows};
use crate::Weight;
use crate::cpu::element::{Element, by_element, narrowed};
use crate::cpu::operand::{Held, Operand, contiguous, from_vec, record, slice};
use crate::cpu::product::{Matrix, Number, Threads, product};
use crate::cpu::vector;

/// `None` when an operand is not an f32 or bf16 tensor on burn-flex, or the head a matrix with a reversed axis.
pub(super) fn token_logp(h: &Tensor<2>, head: &Weight<2>, targets: &[i32]) -> Option<Tensor<1>> {
    let (head, trained) = Held::of(head)?;
    Matrix::of_held(&head)?;
    let parents = [Operand::of_float(h)?, trained];
    Some(by_element!(h.dtype(), E => forward::<E>(parents, head, targets)))
}

fn forward<E: Element + Number>(parents: [Operand; 2], head: Held<2>, targets: &[i32]) -> Tensor<1> {
    let pass = Pass::<E>::new(parents[0].contiguous(), head, targets);
    let (logp, lse) = online::log_probabilities(&pass);
    record(Step::<E>(PhantomData), parents, from_vec(logp, [targets.len()]), || Saved { pass, lse })
}

/// As [`token_logp`]; `wants_head` says whether the head's gradient is formed.
pub(super) fn head_loss(
    h: &Tensor<2>,
    head: &Weight<2>,
    targets: &[i32],
    weights: &[f32],
    wants_head: bool,
) -> Option<HeadLoss> {
    let (head, _) = Held::of(head)?;
    Matrix::of_held(&head)?;
    let h = Operand::of_float(h)?;
    Some(by_element!(h.dtype(), E => {
        let pass = Pass::<E>::new(h.contiguous(), head, targets);
        let (logp, dh, dhead) = if wants_head {
            loss(&pass, weights)
        } else {
            let (logp, dh) = online::loss(&pass, weights);
            (logp, dh, None)
        };
        let tokens = [logp.len()];
        HeadLoss {
            logp: Tensor::from_primitive::<Flex>(from_vec(logp, tokens)),
            dh: Tensor::from_primitive::<Flex>(dh),
            dhead: dhead.map(Tensor::from_primitive::<Flex>),
        }
    }))
}

/// With the head's gradient, for which a chunk's logits are all there.
fn loss<E: Element + Number>(pass: &Pass<E>, weights: &[f32]) -> (Vec<f32>, FlexTensor, Option<FlexTensor>) {
    let vocabulary = pass.vocabulary();
    let tokens = pass.h.layout().shape()[0];
    let mut logp = vec![0.0; tokens];
    let mut sums = GradientSums::new(pass, true, true);
    pass.for_chunks(|chunk| {
        let rows = chunk.rows.par_iter().zip(chunk.targets).zip(chunk.logits.par_chunks_exact_mut(vocabulary));
        let of_rows: Vec<f32> = rows
            .map(|((&row, &target), logits)| {
                let (max, score) = (vector::max(logits), logits[target]);
                let sum = vector::exp_and_sum(logits, max);
                vector::scale(logits, weights[row] / sum);
                logits[target] -= weights[row];
                score - max - sum.ln()
            })
            .collect();
        for (&row, value) in chunk.rows.iter().zip(of_rows) {
            logp[row] = value;
        }
        sums.add(pass, &chunk);
    });
    let (dh, dhead) = sums.into_tensors(pass);
    (logp, dh.expect("invariant: asked for"), dhead)
}

/// The tokens with a target, and the two matrices.
#[derive(Clone, Debug)]
pub(super) struct Pass<E> {
    pub(super) h: FlexTensor,
    head: Held<2>,
    pub(super) rows: Vec<usize>,
    pub(super) targets: Vec<usize>,
    element: PhantomData<E>,
}

/// Some tokens with a target.
struct Chunk<'a, E> {
    rows: &'a [usize],
    targets: &'a [usize],
    /// Their rows of `h`, `[C, D]`.
    h: &'a [E],
    /// `[C, V]`.
    logits: &'a mut [f32],
    /// Index of the first among all tokens with a target.
    first: usize,
}

impl<E: Element + Number> Pass<E> {
    fn new(h: FlexTensor, head: Held<2>, targets: &[i32]) -> Self {
        let (rows, targets) = trained_rows(targets);
        Self { h, head, rows, targets, element: PhantomData }
    }

    pub(super) fn vocabulary(&self) -> usize {
        self.head.dims()[0]
    }

    pub(super) fn size(&self) -> usize {
        self.head.dims()[1]
    }

    pub(super) fn head_VD(&self) -> Matrix<'_> {
        Matrix::of_held(&self.head).expect("invariant: checked before the pass was made").beside::<E>()
    }

    /// Calls `f` with the logits of one chunk after another.
    fn for_chunks(&self, mut f: impl FnMut(Chunk<'_, E>)) {
        let (size, vocabulary, h) = (self.size(), self.vocabulary(), E::slice(&self.h));
        let most = even_chunk(self.rows.len(), most_chunk_tokens(vocabulary, None));
        let mut logits = vec![0.0; self.rows.len().min(most) * vocabulary];
        let mut gathered: Vec<E> = Vec::new();
        for (index, (rows, targets)) in self.rows.chunks(most).zip(self.targets.chunks(most)).enumerate() {
            gathered.clear();
            for &row in rows {
                gathered.extend_from_slice(&h[row * size..][..size]);
            }
            let logits = &mut logits[..rows.len() * vocabulary];
            let h_CD = Matrix::first_of(E::elements(&gathered), rows.len(), size);
            product(logits, h_CD, self.head_VD().transposed(), 1.0, false, Threads::Pool);
            f(Chunk { rows, targets, h: &gathered, logits, first: index * most });
        }
    }
}

/// Gradients of `h` and of the head, as far as wanted, summed over chunks.
struct GradientSums<E> {
    dh: Option<Vec<E>>,
    dhead: Option<Vec<f32>>,
    rows: Vec<f32>,
}

impl<E: Element + Number> GradientSums<E> {
    fn new(pass: &Pass<E>, wants_h: bool, wants_head: bool) -> Self {
        let dh = wants_h.then(|| vec![E::default(); E::slice(&pass.h).len()]);
        Self { dh, dhead: wants_head.then(|| vec![0.0; pass.vocabulary() * pass.size()]), rows: Vec::new() }
    }

    /// Adds a chunk whose logits have become their gradients.
    fn add(&mut self, pass: &Pass<E>, chunk: &Chunk<'_, E>) {
        let (tokens, size) = (chunk.rows.len(), pass.size());
        let dlogits_CV = Matrix::dense(chunk.logits, tokens, pass.vocabulary());
        if let Some(dh) = &mut self.dh {
            self.rows.resize(tokens * size, 0.0);
            product(&mut self.rows, dlogits_CV, pass.head_VD(), 1.0, false, Threads::Pool);
            let mut wide = Vec::new();
            for (&row, values) in chunk.rows.iter().zip(self.rows.chunks_exact(size)) {
                E::write(&mut dh[row * size..][..size], &mut wide, |row| row.copy_from_slice(values));
            }
        }
        if let Some(dhead) = &mut self.dhead {
            let h_CD = Matrix::first_of(E::elements(chunk.h), tokens, size);
            product(dhead, dlogits_CV.transposed(), h_CD, 1.0, true, Threads::Pool);
        }
    }

    fn into_tensors(self, pass: &Pass<E>) -> (Option<FlexTensor>, Option<FlexTensor>) {
        let dh = self.dh.map(|dh| E::tensor(dh, pass.h.layout().shape().clone()));
        let dhead = self.dhead.map(|dhead| narrowed(dhead, [pass.vocabulary(), pass.size()], pass.head.dtype()));
        (dh, dhead)
    }
}

#[derive(Debug)]
struct Step<E>(PhantomData<E>);

#[derive(Clone, Debug)]
struct Saved<E> {
    pass: Pass<E>,
    /// Log-sum-exp of each token with a target.
    lse: Vec<f32>,
}

impl<E: Element + Number> Backward<Flex, 2> for Step<E> {
    type State = Saved<E>;

    /// `dlogits = g·(onehot - softmax)`, from logits formed again; under a frozen head the loss `-Σ w·logp` has the gradient for `w = -g`.
    fn backward(self, ops: Ops<Saved<E>, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = contiguous(grads.consume::<Flex>(&ops.node));
        let (upstream, Saved { pass, lse }) = (slice(&upstream), &ops.state);
        let vocabulary = pass.vocabulary();
        let [h_node, head_node] = ops.parents;
        if let (Some(node), None) = (&h_node, &head_node) {
            let weights: Vec<f32> = upstream.iter().map(|upstream| -upstream).collect();
            return grads.register::<Flex>(node.id, online::loss(pass, &weights).1);
        }
        let mut sums = GradientSums::new(pass, h_node.is_some(), head_node.is_some());
        pass.for_chunks(|chunk| {
            let rows = chunk.rows.par_iter().zip(chunk.targets).zip(&lse[chunk.first..]);
            rows.zip(chunk.logits.par_chunks_exact_mut(vocabulary)).for_each(|(((&row, &target), &lse), logits)| {
                vector::scaled_exp(logits, lse, -upstream[row]);
                logits[target] += upstream[row];
            });
            sums.add(pass, &chunk);
        });
        let (dh, dhead) = sums.into_tensors(pass);
        for (node, gradient) in [(h_node, dh), (head_node, dhead)] {
            if let (Some(node), Some(gradient)) = (node, gradient) {
                grads.register::<Flex>(node.id, gradient);
            }
        }
    }
}
