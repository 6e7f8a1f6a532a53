//! Generation of one sequence with a cache of keys and values: greedy or sampled.

use qwen_tune_kernels as kernels;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::build::mix;
use crate::context::{Cache, Context};
use crate::decoder::Decoder;
use crate::parameters::Pass;

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Sampling {
    /// Most tokens made.
    pub max_tokens: usize,
    /// 0 takes the most likely token always.
    pub temperature: f64,
    /// Only the k most likely tokens; 0 is no limit.
    pub top_k: usize,
    /// Only the most likely tokens whose probabilities reach this sum.
    pub top_p: f64,
    /// Seed of the draw.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { max_tokens: 256, temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 }
    }
}

/// What ended a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// A stop token was chosen.
    Stop,
    /// `max_tokens` or the model's last position was reached.
    Length,
    /// The caller asked to stop.
    Cancelled,
}

/// The outcome of [`generate`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// New tokens, without the stop token.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub reason: StopReason,
}

/// Continues `prompt` until a token of `stop`; `each` hears every new token and may return `false` to end it.
///
/// An empty prompt gives nothing.
pub fn generate(
    decoder: &Decoder,
    pass: &Pass<'_>,
    prompt: &[u32],
    stop: &[u32],
    sampling: &Sampling,
    mut each: impl FnMut(u32) -> bool,
) -> Generation {
    let mut made = Vec::new();
    let mut cache = Cache::default();
    let mut input = prompt.to_vec();
    let room = decoder.spec.max_positions.saturating_sub(prompt.len());
    while !input.is_empty() && made.len() < sampling.max_tokens.min(room) {
        let tokens = input.len();
        let (logits, past) = kernels::on_pool(|| {
            let context = Context::continuing(&decoder.spec.rope, cache, tokens, decoder.device());
            let hidden = decoder.hidden(&input, &context, pass);
            let logits = decoder.logits(hidden.narrow(0, tokens - 1, 1), pass).into_data().convert::<f32>();
            let logits: Vec<f32> = logits.try_to_vec().expect("invariant: converted to f32");
            (logits, context.cache.expect("invariant: a continuing context holds its cache"))
        });
        cache = past;
        cache.advance(tokens);
        let id = choose(&logits, sampling, made.len() as u64);
        if stop.contains(&id) {
            return Generation { ids: made, reason: StopReason::Stop };
        }
        made.push(id);
        if !each(id) {
            return Generation { ids: made, reason: StopReason::Cancelled };
        }
        input = vec![id];
    }
    Generation { ids: made, reason: StopReason::Length }
}

/// The token for these scores: the first of the highest, or a draw that depends on the seed and the index alone.
fn choose(logits: &[f32], sampling: &Sampling, index: u64) -> u32 {
    let descending = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
    let mut order: Vec<usize> = (0..logits.len()).collect();
    if sampling.temperature <= 0.0 {
        return order.into_iter().min_by(descending).expect("invariant: a vocabulary is not empty") as u32;
    }
    order.sort_unstable_by(descending);
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k);
    }
    let top = f64::from(logits[order[0]]);
    let weights: Vec<f64> =
        order.iter().map(|&i| ((f64::from(logits[i]) - top) / sampling.temperature).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let mut kept = 0.0;
    let count = weights.iter().take_while(|w| {
        let before = kept;
        kept += **w / sum;
        before < sampling.top_p
    });
    let count = count.count().max(1);
    let total: f64 = weights[..count].iter().sum();
    let unit = (mix(mix(sampling.seed) ^ index) >> 11) as f64 / (1u64 << 53) as f64;
    let mut left = unit * total;
    for (slot, weight) in weights[..count].iter().enumerate() {
        left -= weight;
        if left < 0.0 {
            return order[slot] as u32;
        }
    }
    order[count - 1] as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_takes_the_first_of_equal_tokens() {
        assert_eq!(choose(&[0.0, 2.0, 2.0], &Sampling::default(), 0), 1);
    }

    #[test]
    fn nucleus_keeps_at_least_one_and_never_leaves_the_set() {
        let logits = [3.0, 1.0, 0.0, -1.0];
        let narrow = Sampling { temperature: 1.0, top_p: 0.0, ..Sampling::default() };
        assert!((0..50).all(|i| choose(&logits, &narrow, i) == 0));
        let two = Sampling { temperature: 1.0, top_k: 2, ..Sampling::default() };
        let seen: std::collections::BTreeSet<u32> = (0..200).map(|i| choose(&logits, &two, i)).collect();
        assert_eq!(seen, [0, 1].into());
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let sampling = Sampling { temperature: 1.0, seed: 3, ..Sampling::default() };
        let logits = [0.0, (3.0f32).ln()];
        let ones = (0..4000).filter(|&i| choose(&logits, &sampling, i) == 1).count();
        assert!((2900..3100).contains(&ones), "{ones}");
    }
}
