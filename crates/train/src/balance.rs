//! How evenly a step's tokens were spread over the experts, and the loss that asks for more of it.

use qwen_tune_model::Spread;
use serde::Serialize;

/// Choices of experts, layer by layer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Balance {
    layers: Vec<Load>,
    auxiliary: f64,
}

/// Of one layer.
#[derive(Debug, Clone, Default, PartialEq)]
struct Load {
    /// Rows that each expert worked on.
    rows: Vec<u64>,
    /// Expert choices of all tokens.
    choices: u64,
}

/// Figures of a step over all layers with experts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExpertFigures {
    /// The load-balancing loss before its coefficient; experts that are chosen equally often give the number of experts
    /// a token goes through.
    pub aux_loss: f64,
    /// Rows of the busiest expert over the mean of its layer's experts, less one; the largest of all layers.
    pub max_violation: f64,
    /// Share of experts that no token of the step went through.
    pub idle: f64,
    /// Choices of tokens that no expert worked on: always 0, there is no capacity that could be full.
    pub dropped_tokens: u64,
}

/// The load-balancing loss of a forward, `E Σ_e f_e P_e` (Fedus, Zoph and Shazeer 2021, arXiv 2101.03961, pooled over all
/// layers and tokens as transformers does): `f_e` choices of expert e and `P_e` its mean probability, over tokens and layers.
pub(crate) struct Auxiliary {
    /// Its value.
    pub(crate) value: f64,
    /// Its derivative by a token's probability of each expert.
    pub(crate) slope: Vec<f32>,
}

impl Auxiliary {
    /// Of the layers of a forward; `None` where none has experts.
    pub(crate) fn of(layers: &[Spread]) -> Option<Self> {
        let experts = layers.first()?.rows.len();
        let places: f64 = layers.iter().map(|layer| layer.tokens as f64).sum();
        let share = |of: &dyn Fn(&Spread) -> f64| layers.iter().map(of).sum::<f64>() / places;
        let chosen: Vec<f64> = (0..experts).map(|e| share(&|layer| layer.rows[e] as f64)).collect();
        let value = (0..experts).map(|e| chosen[e] * share(&|layer| layer.mass[e])).sum::<f64>() * experts as f64;
        let slope = chosen.iter().map(|chosen| (experts as f64 * chosen / places) as f32).collect();
        Some(Self { value, slope })
    }
}

impl Balance {
    /// Of one forward; `share` is the part of the step's tokens that went through it.
    pub(crate) fn of(layers: &[Spread], share: f64) -> Self {
        let load = |layer: &Spread| Load {
            rows: layer.rows.iter().map(|&rows| rows as u64).collect(),
            choices: (layer.tokens * layer.active) as u64,
        };
        Self {
            layers: layers.iter().map(load).collect(),
            auxiliary: share * Auxiliary::of(layers).map_or(0.0, |auxiliary| auxiliary.value),
        }
    }

    /// Adds another forward of the same step.
    pub fn add(&mut self, other: &Self) {
        if self.layers.is_empty() {
            self.layers.clone_from(&other.layers);
        } else {
            for (sum, layer) in self.layers.iter_mut().zip(&other.layers) {
                sum.rows.iter_mut().zip(&layer.rows).for_each(|(sum, rows)| *sum += rows);
                sum.choices += layer.choices;
            }
        }
        self.auxiliary += other.auxiliary;
    }

    /// The step's figures; `None` where no layer has experts.
    #[must_use]
    pub fn figures(&self) -> Option<ExpertFigures> {
        let experts: usize = self.layers.iter().map(|layer| layer.rows.len()).sum();
        let idle = self.layers.iter().flat_map(|layer| &layer.rows).filter(|&&rows| rows == 0).count();
        let violation = |layer: &Load| {
            let (most, all) = (layer.rows.iter().max().copied().unwrap_or(0), layer.rows.iter().sum::<u64>().max(1));
            most as f64 * layer.rows.len() as f64 / all as f64 - 1.0
        };
        let worked = |layer: &Load| layer.rows.iter().sum::<u64>();
        (experts > 0).then(|| ExpertFigures {
            aux_loss: self.auxiliary,
            max_violation: self.layers.iter().map(violation).fold(0.0, f64::max),
            idle: idle as f64 / experts as f64,
            dropped_tokens: self.layers.iter().map(|layer| layer.choices - worked(layer)).sum(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(rows: &[usize], mass: &[f64], active: usize) -> Spread {
        let tokens = rows.iter().sum::<usize>() / active;
        Spread { rows: rows.to_vec(), mass: mass.to_vec(), tokens, active }
    }

    #[test]
    fn equal_choices_give_the_number_of_active_experts() {
        let even = spread(&[4, 4, 4, 4], &[2.0, 2.0, 2.0, 2.0], 2);
        let figures = Balance::of(&[even.clone(), even], 1.0).figures().expect("there are experts");
        assert_eq!(figures, ExpertFigures { aux_loss: 2.0, max_violation: 0.0, idle: 0.0, dropped_tokens: 0 });
        assert_eq!(Balance::of(&[], 1.0).figures(), None);
    }

    #[test]
    fn one_busy_expert_shows() {
        let uneven = spread(&[6, 2, 0, 0], &[5.0, 2.0, 0.5, 0.5], 1);
        let mut sum = Balance::of(std::slice::from_ref(&uneven), 0.5);
        sum.add(&Balance::of(std::slice::from_ref(&uneven), 0.5));
        let figures = sum.figures().expect("there are experts");
        assert_eq!((figures.max_violation, figures.idle, figures.dropped_tokens), (2.0, 0.5, 0));
        // 4 · (6/8 · 5/8 + 2/8 · 2/8)
        assert!((figures.aux_loss - 2.125).abs() < 1e-12);
    }

    #[test]
    fn the_slope_is_that_of_the_pooled_value() {
        let (one, mut two) = (spread(&[3, 1], &[2.5, 1.5], 1), spread(&[1, 3], &[1.0, 3.0], 1));
        let slope = Auxiliary::of(&[one.clone(), two.clone()]).expect("there are experts");
        two.mass[1] += 0.25;
        let moved = Auxiliary::of(&[one, two]).expect("there are experts");
        assert!((moved.value - slope.value - 0.25 * f64::from(slope.slope[1])).abs() < 1e-7);
    }
}
