//! Rotary frequencies from a configuration, step by step in f32 as `modeling_rope_utils.py` of transformers computes
//! them: a frequency that differs in its last bit turns far positions by a visible angle.

use std::f64::consts::PI;

use serde_json::{Map, Value};

use super::Fields;
use crate::{RopeOrigin, RopeScaling, RopeSpec};

/// Base of the frequencies when no field gives one.
const THETA: f64 = 10_000.0;

/// Which channels of a head turn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Rotated {
    /// All; transformers' plain rotation ignores `partial_rotary_factor` in these families, and its scalings break on it.
    All,
    /// The first ones: the share that `partial_rotary_factor` says, and this where it is absent.
    Share(f64),
}

/// Reads `rope_parameters` (new), or `rope_scaling` and `rope_theta` (old), and computes the frequencies.
pub(super) fn resolve(fields: &Fields<'_>, head_dim: usize, rotated: Rotated, max_positions: usize) -> RopeSpec {
    let parameters = Parameters::read(fields, max_positions);
    let rotary_dim = match rotated {
        Rotated::All => {
            parameters.refuse_partial();
            head_dim
        }
        Rotated::Share(default) => (head_dim as f64 * parameters.partial(default)) as usize,
    };
    if !rotary_dim.is_multiple_of(2) || rotary_dim == 0 {
        fields.unsupported("head_dim", &Value::from(head_dim), "rotating pairs of channels needs an even number");
    }
    let plain = Plain::new(parameters.theta, rotary_dim);
    let mut attention_factor = 1.0;
    let (inv_freq, scaling) = match parameters.kind {
        // Dynamic scaling begins beyond the model's own length, which training does not go beyond.
        "default" | "dynamic" => (plain.inv_freq(), None),
        "linear" => (linear(&plain, &parameters), Some(RopeScaling::Linear { factor: parameters.factor() })),
        "llama3" => (llama3(&plain, &parameters), Some(RopeScaling::Llama3 { factor: parameters.factor() })),
        "yarn" => {
            let (inv_freq, factor) = yarn(&plain, &parameters);
            attention_factor = factor;
            (inv_freq, Some(parameters.yarn()))
        }
        _ => unreachable!("invariant: only known kinds are read"),
    };
    let origin = RopeOrigin { theta: parameters.theta, scaling };
    RopeSpec { inv_freq, rotary_dim, attention_factor, scaling: parameters.kind.to_owned(), origin }
}

/// The unscaled frequencies: `theta^(2i/r)` and its reciprocal.
struct Plain {
    theta: f64,
    dim: usize,
}

impl Plain {
    fn new(theta: f64, dim: usize) -> Self {
        Self { theta, dim }
    }

    fn pos_freqs(&self) -> impl Iterator<Item = f32> + use<> {
        let (theta, dim) = (self.theta as f32, self.dim as f32);
        (0..self.dim / 2).map(move |pair| theta.powf((2 * pair) as f32 / dim))
    }

    fn inv_freq(&self) -> Vec<f32> {
        self.pos_freqs().map(f32::recip).collect()
    }
}

fn linear(plain: &Plain, parameters: &Parameters<'_>) -> Vec<f32> {
    let factor = parameters.factor() as f32;
    plain.inv_freq().into_iter().map(|frequency| frequency / factor).collect()
}

/// Llama 3.1: long waves are stretched by `factor`, short ones kept, those between interpolated.
fn llama3(plain: &Plain, parameters: &Parameters<'_>) -> Vec<f32> {
    let factor = parameters.factor() as f32;
    let low = parameters.positive("low_freq_factor");
    let high = parameters.positive("high_freq_factor");
    if high <= low {
        parameters.invalid("high_freq_factor", "a number above `low_freq_factor`");
    }
    let original = parameters.original as f64;
    let (low_wave, high_wave) = ((original / low) as f32, (original / high) as f32);
    let stretch = |frequency: f32| {
        let wave = frequency.recip() * (2.0 * PI) as f32;
        if wave > low_wave {
            frequency / factor
        } else if wave < high_wave {
            frequency
        } else {
            let smooth = (wave.recip() * original as f32 - low as f32) / (high - low) as f32;
            (1.0 - smooth) * frequency / factor + smooth * frequency
        }
    };
    plain.inv_freq().into_iter().map(stretch).collect()
}

/// YaRN (<https://arxiv.org/abs/2309.00071>): channels that turn rarely are stretched by `factor`, those that turn
/// often kept, with a ramp between; cos and sin are multiplied by the attention factor.
fn yarn(plain: &Plain, parameters: &Parameters<'_>) -> (Vec<f32>, f32) {
    let factor = parameters.yarn_factor();
    let attention_factor = parameters.optional("attention_factor").unwrap_or_else(|| {
        let mscale = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
        match (parameters.optional("mscale"), parameters.optional("mscale_all_dim")) {
            (Some(one), Some(all)) if one != 0.0 && all != 0.0 => mscale(one) / mscale(all),
            _ => mscale(1.0),
        }
    });
    let (fast, slow) = (parameters.beta("beta_fast", 32.0), parameters.beta("beta_slow", 1.0));

    let dim = plain.dim as f64;
    // The channel that turns this often over the original length.
    let channel = |turns: f64| dim * (parameters.original as f64 / (turns * 2.0 * PI)).ln() / (2.0 * plain.theta.ln());
    let (mut low, mut high) = (channel(fast), channel(slow));
    if parameters.truncate() {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(dim - 1.0));
    if low == high {
        high += 0.001;
    }
    let inv_freq = plain.pos_freqs().enumerate().map(|(pair, pos_freq)| {
        let ramp = ((pair as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
        let kept = 1.0 - ramp;
        let stretched = (factor as f32 * pos_freq).recip();
        stretched * (1.0 - kept) + pos_freq.recip() * kept
    });
    (inv_freq.collect(), attention_factor as f32)
}

/// The fields that matter, whichever form they were written in.
struct Parameters<'a> {
    fields: &'a Fields<'a>,
    /// The name of the object they came from, for messages.
    place: &'static str,
    object: Option<&'a Map<String, Value>>,
    kind: &'static str,
    theta: f64,
    /// Length the model was first trained at.
    original: usize,
    max_positions: usize,
}

impl<'a> Parameters<'a> {
    fn read(fields: &'a Fields<'a>, max_positions: usize) -> Self {
        // An empty object counts as absent, as in Python.
        let object = |field| match fields.get(field) {
            None => None,
            Some(Value::Object(object)) => Some(object).filter(|object| !object.is_empty()),
            Some(other) => {
                fields.invalid(field, other, "an object");
                None
            }
        };
        let (place, object) = match object("rope_scaling") {
            Some(old) => ("rope_scaling", Some(old)),
            None => ("rope_parameters", object("rope_parameters")),
        };
        let mut parameters =
            Self { fields, place, object, kind: "default", theta: THETA, original: max_positions, max_positions };
        parameters.refuse_nested();
        parameters.kind = parameters.read_kind();
        parameters.theta = parameters.read_theta();
        parameters.original = parameters.read_original();
        parameters
    }

    fn get(&self, field: &str) -> Option<&'a Value> {
        self.object?.get(field).filter(|value| !value.is_null())
    }

    fn name(&self, field: &str) -> String {
        format!("{}.{field}", self.place)
    }

    fn invalid(&self, field: &str, expected: &str) {
        self.fields.invalid(&self.name(field), self.get(field).unwrap_or(&Value::Null), expected);
    }

    fn refuse_nested(&self) {
        if let Some((kind, value)) = self.object.into_iter().flatten().find(|(_, value)| value.is_object()) {
            self.fields.unsupported(&self.name(kind), value, "one rotary embedding for all layers is");
        }
    }

    /// Where `partial_rotary_factor` is written, and what.
    fn partial_factor(&self) -> Option<(String, &'a Value)> {
        let field = "partial_rotary_factor";
        let inside = self.get(field).map(|value| (self.name(field), value));
        inside.or_else(|| Some((field.to_owned(), self.fields.get(field)?)))
    }

    fn refuse_partial(&self) {
        if let Some((name, value)) = self.partial_factor()
            && value.as_f64() != Some(1.0)
        {
            self.fields.unsupported(&name, value, "heads of this family rotate whole");
        }
    }

    fn partial(&self, default: f64) -> f64 {
        let Some((name, value)) = self.partial_factor() else { return default };
        value.as_f64().filter(|share| *share > 0.0 && *share <= 1.0).unwrap_or_else(|| {
            self.fields.invalid(&name, value, "a share above 0 and at most 1");
            default
        })
    }

    fn read_kind(&self) -> &'static str {
        const KINDS: [&str; 5] = ["default", "linear", "dynamic", "yarn", "llama3"];
        let (field, value) = match (self.get("rope_type"), self.get("type")) {
            (Some(value), _) => ("rope_type", value),
            (None, Some(value)) => ("type", value),
            (None, None) => return "default",
        };
        // Text-only files of vision models say `mrope`, which for text is the plain rotation.
        let text = value.as_str().map(|text| if text == "mrope" { "default" } else { text });
        if let Some(kind) = KINDS.into_iter().find(|kind| Some(*kind) == text) {
            return kind;
        }
        self.fields.unsupported(&self.name(field), value, format!("supported: `{}`", KINDS.join("`, `")));
        "default"
    }

    fn read_theta(&self) -> f64 {
        let field = "rope_theta";
        let (name, value) = match (self.get(field), self.fields.get(field)) {
            (Some(value), _) => (self.name(field), value),
            (None, Some(value)) => (field.to_owned(), value),
            (None, None) => return THETA,
        };
        value.as_f64().filter(|&theta| theta > 1.0 && theta.is_finite()).unwrap_or_else(|| {
            self.fields.invalid(&name, value, "a number above 1");
            THETA
        })
    }

    fn read_original(&self) -> usize {
        let field = "original_max_position_embeddings";
        // At the top level it wins over the one beside the other parameters.
        if self.fields.get(field).is_some() {
            return self.fields.size_or(field, self.max_positions);
        }
        match self.get(field) {
            None => self.max_positions,
            Some(value) => match value.as_f64() {
                Some(length) if length >= 1.0 && length.fract() == 0.0 && length < 1e15 => length as usize,
                _ => {
                    self.invalid(field, "a whole number of positions");
                    self.max_positions
                }
            },
        }
    }

    /// A number that has to be there.
    fn positive(&self, field: &str) -> f64 {
        match self.get(field).and_then(Value::as_f64) {
            Some(number) if number > 0.0 && number.is_finite() => number,
            _ => {
                self.invalid(field, "a number above zero");
                1.0
            }
        }
    }

    fn optional(&self, field: &str) -> Option<f64> {
        let value = self.get(field)?;
        let number = value.as_f64().filter(|number| *number >= 0.0 && number.is_finite());
        if number.is_none() {
            self.invalid(field, "a number");
        }
        number
    }

    fn factor(&self) -> f64 {
        self.positive("factor")
    }

    /// YaRN's factor may be null: then the lengths say it.
    fn yarn_factor(&self) -> f64 {
        let is_null = self.object.and_then(|object| object.get("factor")).is_some_and(Value::is_null);
        if is_null { self.max_positions as f64 / self.original as f64 } else { self.factor() }
    }

    fn beta(&self, field: &str, default: f64) -> f64 {
        self.optional(field).filter(|&beta| beta != 0.0).unwrap_or(default)
    }

    fn yarn(&self) -> RopeScaling {
        RopeScaling::Yarn {
            factor: self.yarn_factor(),
            original: self.original,
            beta_fast: self.beta("beta_fast", 32.0),
            beta_slow: self.beta("beta_slow", 1.0),
            truncate: self.truncate(),
        }
    }

    fn truncate(&self) -> bool {
        match self.object.and_then(|object| object.get("truncate")) {
            None => true,
            Some(Value::Bool(on)) => *on,
            Some(Value::Null) => false,
            Some(_) => {
                self.invalid("truncate", "true or false");
                true
            }
        }
    }
}
