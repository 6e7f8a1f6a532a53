//! Log-probabilities, and loss and gradient under a frozen head, with the logits of one block of its rows at a time.
//!
//! The gradient of a token is a softmax over the vocabulary times the head, which is attention with the head's rows as keys
//! and values: as there, maximum and sum are carried along the blocks (Milakov and Gimelshein, 2018) and the weighted sum is
//! rescaled when the maximum grows (Dao et al., 2022, FlashAttention). No logit outlives its block, and a block of the head is
//! read a second time while it is in the cache.

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::flex::Pass;
use crate::cpu::element::Element;
use crate::cpu::product::{Left, Matrix, Number, Precision, Term, Threads, new_sum_of_products, product};
use crate::cpu::vector;

/// Rows of the head in a block: with a hidden size of 1,024 in bf16, 8 MB.
const BLOCK: usize = 4096;
/// Tokens that go along the blocks together, at most.
const TOKENS: usize = 512;

/// What a token knows of the blocks so far.
#[derive(Clone, Copy)]
struct Seen {
    max: f32,
    /// `Σ exp(logit - max)`.
    sum: f32,
    /// The target's logit.
    score: f32,
}

/// Log-probabilities of the targets, and the gradient of `-Σ weights·logp` with respect to `h`.
pub(super) fn loss<E: Element + Number>(pass: &Pass<E>, weights: &[f32]) -> (Vec<f32>, FlexTensor) {
    let (size, h) = (pass.size(), E::slice(&pass.h));
    let tokens = pass.h.layout().shape()[0];
    let (mut logp, mut dh) = (vec![0.0; tokens], vec![E::default(); h.len()]);
    for (rows, targets) in pass.rows.chunks(TOKENS).zip(pass.targets.chunks(TOKENS)) {
        let mut sums = vec![0.0; rows.len() * size];
        let seen = along_blocks(pass, rows, targets, Some(&mut sums));
        let mut wide = Vec::new();
        let of_rows = seen.iter().zip(sums.chunks_exact_mut(size.max(1)));
        for ((&row, &target), (seen, sum)) in rows.iter().zip(targets).zip(of_rows) {
            let score = seen.score - seen.max - seen.sum.ln();
            logp[row] = score;
            // The target's part is no sum of the others': where it is nearly certain, its factor is a small difference.
            vector::scale(sum, weights[row] / seen.sum);
            pass.head_VD().accumulate_row(target, weights[row] * score.exp_m1(), sum);
            E::write(&mut dh[row * size..][..size], &mut wide, |dh| dh.copy_from_slice(sum));
        }
    }
    (logp, E::tensor(dh, [tokens, size]))
}

/// Log-probabilities of the targets, and of each token with one the log-sum-exp of its logits.
pub(super) fn log_probabilities<E: Element + Number>(pass: &Pass<E>) -> (Vec<f32>, Vec<f32>) {
    let mut logp = vec![0.0; pass.h.layout().shape()[0]];
    let mut lse = Vec::with_capacity(pass.rows.len());
    for (rows, targets) in pass.rows.chunks(TOKENS).zip(pass.targets.chunks(TOKENS)) {
        for (&row, seen) in rows.iter().zip(along_blocks(pass, rows, targets, None)) {
            logp[row] = seen.score - seen.max - seen.sum.ln();
            lse.push(seen.max + seen.sum.ln());
        }
    }
    (logp, lse)
}

/// For each of some rows of `h` what it has seen of all blocks; in `sums`, where they are wanted, `Σ exp(logit - max)·row` over
/// all rows of the head but its target's, `[C, D]`.
fn along_blocks<E: Element + Number>(
    pass: &Pass<E>,
    rows: &[usize],
    targets: &[usize],
    mut sums: Option<&mut [f32]>,
) -> Vec<Seen> {
    let (head_VD, size, tokens, h) = (pass.head_VD(), pass.size(), targets.len(), E::slice(&pass.h));
    let gathered: Vec<E> = rows.iter().flat_map(|&row| &h[row * size..][..size]).copied().collect();
    let h_CD = Matrix::first_of(E::elements(&gathered), tokens, size);
    let left = Left::pack(h_CD, 1.0, Precision::of(&[h_CD, head_VD]), Threads::Pool);
    let mut seen = vec![Seen { max: f32::NEG_INFINITY, sum: 0.0, score: 0.0 }; tokens];
    for first in (0..pass.vocabulary()).step_by(BLOCK) {
        let here = BLOCK.min(pass.vocabulary() - first);
        let rows_BD = head_VD.rows_from(first, here);
        let term = Term { left: &left, right: rows_BD.transposed() };
        let mut logits: Vec<f32> = new_sum_of_products(&[term], None, 1.0, Threads::Pool);
        let one = |logits: &mut [f32], seen: &mut Seen, target: usize, sum: Option<&mut [f32]>| {
            let max = vector::max(logits).max(seen.max);
            let shrunk = (seen.max - max).exp();
            let own = target.checked_sub(first).filter(|own| *own < here);
            if let Some(own) = own {
                seen.score = logits[own];
            }
            seen.max = max;
            let Some(sum) = sum else {
                seen.sum = seen.sum * shrunk + vector::sum_of_exp(logits, max);
                return;
            };
            if shrunk != 1.0 {
                vector::scale(sum, shrunk);
            }
            seen.sum = seen.sum * shrunk + vector::exp_and_sum(logits, max);
            if let Some(own) = own {
                logits[own] = 0.0;
            }
        };
        let of_tokens = logits.par_chunks_exact_mut(here).zip(&mut seen).zip(targets);
        let Some(sums) = sums.as_deref_mut() else {
            of_tokens.for_each(|((logits, seen), &target)| one(logits, seen, target, None));
            continue;
        };
        let of_tokens = of_tokens.zip(sums.par_chunks_exact_mut(size));
        of_tokens.for_each(|(((logits, seen), &target), sum)| one(logits, seen, target, Some(sum)));
        product(sums, Matrix::dense(&logits, tokens, here), rows_BD, 1.0, true, Threads::Pool);
    }
    seen
}
