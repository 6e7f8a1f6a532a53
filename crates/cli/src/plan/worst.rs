//! How large the batches of a run get, from the lengths of its first rows: what memory has to be planned for.

use std::sync::Arc;

use qwen_tune_data::pack::{groups, rows};
use qwen_tune_data::{BatchPlan, Cursor, DataError, Dataset, Packing, StepSize, Stream};
use qwen_tune_model::mix;
use qwen_tune_qwen::memory::Extent;
use qwen_tune_train::{EVAL_GROUP, Largest};

/// Steps drawn at most; later ones hardly get larger.
const DRAWN_STEPS: u64 = 512;
/// Rows and tokens of the first steps that are looked at as they will come.
const SEEN_ROWS: usize = 512;
const SEEN_TOKENS: usize = 1 << 18;

/// How rows become micro-batches.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) step: StepSize,
    pub(super) steps: u64,
    pub(super) packing: Packing,
    pub(super) max_length: usize,
}

/// Lengths of sequences that stand for all of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Lengths {
    /// Of the first rows of every source.
    pub(super) first: Vec<usize>,
    /// Of each of the run's first steps, as training will take them.
    pub(super) steps: Vec<Vec<usize>>,
    /// Share of the tokens without a target, in that of the first micro-batches where it is least.
    pub(super) without_target: f64,
}

impl Lengths {
    pub(super) fn of_first(first: Vec<usize>) -> Self {
        Self { first, ..Self::default() }
    }

    /// Adds the first steps of a run: all of a short one.
    pub(super) fn with_steps(mut self, data: &Dataset, batches: BatchPlan, steps: u64) -> Result<Self, DataError> {
        let (mut rows, mut tokens) = (0, 0);
        let mut without_target = 1.0f64;
        for step in Stream::start(Arc::new(data.clone()), batches, Cursor::default())?.take(steps as usize) {
            let step = step?;
            let sequences = step.micro_batches.iter().flat_map(|batch| &batch.sequences);
            for batch in &step.micro_batches {
                let trained = batch.trained as f64 / batch.ids.len().max(1) as f64;
                without_target = without_target.min(1.0 - trained);
            }
            self.steps.push(sequences.map(|sequence| sequence.len).collect());
            (rows, tokens) = (rows + step.rows, tokens + step.tokens);
            if rows >= SEEN_ROWS || tokens >= SEEN_TOKENS {
                break;
            }
        }
        self.without_target = if self.steps.is_empty() { 0.0 } else { without_target };
        Ok(self)
    }

    /// As if no sequence were longer than this.
    pub(super) fn cut(&self, max_length: usize) -> Self {
        let cut = |lengths: &Vec<usize>| lengths.iter().map(|&n| n.min(max_length)).collect();
        Self { first: cut(&self.first), steps: self.steps.iter().map(cut).collect(), ..*self }
    }

    /// `E[n²] / E[n]`: the mean length of a sequence as its tokens see it.
    pub(super) fn context(&self) -> f64 {
        let sum = |power: i32| self.first.iter().map(|&n| (n as f64).powi(power)).sum::<f64>();
        if self.first.is_empty() { 1.0 } else { sum(2) / sum(1).max(1.0) }
    }

    /// Tokens of an average sequence.
    pub(super) fn mean(&self) -> f64 {
        (self.first.iter().sum::<usize>() as f64 / self.first.len().max(1) as f64).max(1.0)
    }

    /// The sequences of the largest micro-batch: of all steps where they are known, else of the known ones and of as many
    /// as the run has, drawn from the lengths.
    pub(super) fn worst(&self, layout: Layout, micro_batch: usize) -> Vec<usize> {
        if self.first.is_empty() {
            return vec![layout.max_length; micro_batch];
        }
        larger(self.all_steps(layout).map(|lengths| largest(&lengths, layout, micro_batch)))
    }

    /// Whether any step has more than one micro-batch.
    pub(super) fn accumulates(&self, layout: Layout, micro_batch: usize) -> bool {
        self.first.is_empty()
            || self.all_steps(layout).any(|lengths| micro_batches(&lengths, layout, micro_batch).len() > 1)
    }

    fn all_steps(&self, layout: Layout) -> impl Iterator<Item = Vec<usize>> {
        let known = self.steps.len() as u64;
        let drawn = (known..layout.steps.clamp(1, DRAWN_STEPS)).map(move |step| self.drawn(layout.step, step));
        self.steps.iter().cloned().chain(drawn)
    }

    /// Those of the largest batch when `group` sequences are laid out together.
    pub(super) fn worst_of_groups(&self, group: usize, layout: Layout, micro_batch: usize) -> Vec<usize> {
        larger(self.first.chunks(group.max(1)).map(|lengths| largest(lengths, layout, micro_batch)))
    }

    /// A step's lengths, the same for the same step.
    fn drawn(&self, size: StepSize, step: u64) -> Vec<usize> {
        let mut drawn = Vec::new();
        let mut tokens = 0;
        for row in 0.. {
            let ticket = mix(mix(step).wrapping_add(row)) % self.first.len() as u64;
            let length = self.first[ticket as usize];
            let full = match size {
                StepSize::Rows(rows) => row >= rows as u64,
                StepSize::Tokens(budget) => row > 0 && tokens + length > budget,
            };
            if full {
                break;
            }
            tokens += length.max(1);
            drawn.push(length);
        }
        drawn
    }
}

/// Of a step's sequences those of its largest micro-batch.
fn largest(lengths: &[usize], layout: Layout, micro_batch: usize) -> Vec<usize> {
    larger(micro_batches(lengths, layout, micro_batch).into_iter())
}

/// A step's sequences by micro-batch.
fn micro_batches(lengths: &[usize], layout: Layout, micro_batch: usize) -> Vec<Vec<usize>> {
    let rows = rows(lengths, layout.packing, layout.max_length);
    let laid: Vec<usize> = rows.iter().map(|row| row.iter().map(|&sample| lengths[sample]).sum()).collect();
    let sequences =
        |group: &Vec<usize>| group.iter().flat_map(|&row| &rows[row]).map(|&sample| lengths[sample]).collect();
    groups(&laid, micro_batch).iter().map(sequences).collect()
}

/// The batch that takes most; without any, none.
fn larger(batches: impl Iterator<Item = Vec<usize>>) -> Vec<usize> {
    batches.max_by_key(|sequences| Extent::of(sequences.iter().copied())).unwrap_or_default()
}

/// What a run lays out, and the largest batches that come of it.
#[derive(Debug, Clone)]
pub(super) struct Worst {
    pub(super) layout: Layout,
    pub(super) lengths: Lengths,
    /// Of the first held-out rows, where there are any.
    pub(super) eval: Option<Lengths>,
}

impl Worst {
    /// The largest batches of at most so many laid-out rows, with no sequence longer than `max_length`.
    pub(super) fn largest(&self, micro_batch: usize, max_length: usize) -> Largest {
        let layout = Layout { max_length, ..self.layout };
        let eval = self.eval.as_ref().map(|lengths| lengths.cut(max_length));
        Largest {
            accumulates: self.lengths.cut(max_length).accumulates(layout, micro_batch),
            micro_batch: self.lengths.cut(max_length).worst(layout, micro_batch),
            eval: eval.map_or(Vec::new(), |lengths| lengths.worst_of_groups(EVAL_GROUP, layout, micro_batch)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(sequences: &[usize]) -> usize {
        sequences.iter().sum()
    }

    const LAYOUT: Layout = Layout { step: StepSize::Rows(4), steps: 50, packing: Packing::BestFit, max_length: 100 };

    #[test]
    fn micro_batches_bound_what_is_seen() {
        let lengths = Lengths::of_first(vec![30, 60, 90]);
        assert_eq!(
            tokens(&lengths.worst(Layout { steps: 500, ..LAYOUT }, 8)),
            360,
            "four of the longest come up in time"
        );
        assert_eq!(tokens(&lengths.worst(LAYOUT, 1)), 90);
        assert_eq!(tokens(&lengths.worst(Layout { packing: Packing::None, ..LAYOUT }, 2)), 180);
        assert_eq!(tokens(&lengths.worst(Layout { step: StepSize::Tokens(120), ..LAYOUT }, 8)), 120);
        assert_eq!(tokens(&Lengths::default().worst(LAYOUT, 3)), 300, "without rows the worst is assumed");
        let known = Lengths { steps: vec![vec![30; 4]; 50], ..lengths };
        assert_eq!(tokens(&known.worst(LAYOUT, 8)), 120, "a run whose steps are all known needs no more than they do");
        assert_eq!(tokens(&known.worst(Layout { steps: 500, ..LAYOUT }, 8)), 360);
        assert_eq!(tokens(&known.cut(20).worst(LAYOUT, 8)), 80);
    }

    #[test]
    fn groups_are_laid_out_together() {
        let lengths = Lengths::of_first(vec![50, 50, 50, 10]);
        assert_eq!(tokens(&lengths.worst_of_groups(3, LAYOUT, 8)), 150);
        assert_eq!(tokens(&lengths.worst_of_groups(3, LAYOUT, 1)), 100);
        assert!((lengths.context() - 47.5).abs() < 1e-9);
        assert!((lengths.mean() - 40.0).abs() < 1e-9);
    }
}
