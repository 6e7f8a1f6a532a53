//! [`Fields`]: a reader of configuration fields that notes every fault instead of stopping at the first.

use std::cell::RefCell;

use serde_json::{Map, Value};

use super::{ConfigError, FieldFault};
use crate::DecoderSpec;

/// No width, count or vocabulary is larger; keeps products of three in 64 bits.
const LARGEST: u64 = 1 << 20;
/// What a size reads as when it cannot be read; the fault that was noted keeps it from ever being used.
const PLACEHOLDER: usize = 1;

/// The fields of one configuration, and what was wrong with those asked for so far.
#[derive(Debug)]
pub struct Fields<'a> {
    model_type: &'a str,
    object: &'a Map<String, Value>,
    faults: RefCell<Vec<FieldFault>>,
    /// Sizes that gave a placeholder, from which nothing should be concluded.
    unread: RefCell<Vec<&'static str>>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(model_type: &'a str, object: &'a Map<String, Value>) -> Self {
        Self { model_type, object, faults: RefCell::default(), unread: RefCell::default() }
    }

    /// `spec` if nothing was wrong, else all that was.
    pub(super) fn finish(self, spec: DecoderSpec) -> Result<DecoderSpec, ConfigError> {
        let faults = self.faults.into_inner();
        if faults.is_empty() {
            return Ok(spec);
        }
        Err(ConfigError::Fields { model_type: self.model_type.to_owned(), faults })
    }

    pub(super) fn model_type(&self) -> &str {
        self.model_type
    }

    /// Notes a fault, once.
    pub(super) fn fault(&self, fault: FieldFault) {
        let mut faults = self.faults.borrow_mut();
        if !faults.contains(&fault) {
            faults.push(fault);
        }
    }

    /// Notes that one size should be a multiple of another, unless either could not be read.
    pub(super) fn expect_multiple(&self, (field, value): (&'static str, usize), (by, divisor): (&'static str, usize)) {
        if !value.is_multiple_of(divisor) && self.was_read(field) && self.was_read(by) {
            self.fault(FieldFault::NotDivisible { field, value, by, divisor });
        }
    }

    /// Whether the size that was asked for is one and not a placeholder.
    pub(super) fn was_read(&self, field: &'static str) -> bool {
        !self.unread.borrow().contains(&field)
    }

    pub(super) fn invalid(&self, field: &str, found: &Value, expected: &str) {
        self.fault(FieldFault::Invalid {
            field: field.to_owned(),
            found: found.to_string(),
            expected: expected.to_owned(),
        });
    }

    pub(super) fn unsupported(&self, field: &str, found: &Value, reason: impl Into<String>) {
        self.fault(FieldFault::Unsupported {
            field: field.to_owned(),
            found: found.to_string(),
            reason: reason.into(),
        });
    }

    /// Whether the field is written, be it as null.
    pub(super) fn has(&self, field: &str) -> bool {
        self.object.contains_key(field)
    }

    /// The value of a field that is written and not null.
    pub(super) fn get(&self, field: &str) -> Option<&'a Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    /// A structural count or width.
    pub(super) fn size(&self, field: &'static str) -> usize {
        if self.get(field).is_none() {
            self.fault(FieldFault::Missing { field });
            self.unread.borrow_mut().push(field);
            return PLACEHOLDER;
        }
        self.size_or(field, PLACEHOLDER)
    }

    pub(super) fn size_or(&self, field: &'static str, default: usize) -> usize {
        self.optional_size(field).unwrap_or(default)
    }

    pub(super) fn optional_size(&self, field: &'static str) -> Option<usize> {
        let value = self.get(field)?;
        match whole(value) {
            Some(size) if (1..=limit(field)).contains(&size) => Some(size as usize),
            _ => {
                self.invalid(field, value, &format!("a whole number from 1 to {}", limit(field)));
                self.unread.borrow_mut().push(field);
                Some(PLACEHOLDER)
            }
        }
    }

    /// A count that may be zero.
    pub(super) fn count_or(&self, field: &'static str, default: usize) -> usize {
        match self.get(field) {
            None => default,
            Some(value) => whole(value).map_or_else(
                || {
                    self.invalid(field, value, "a whole number");
                    default
                },
                |count| count as usize,
            ),
        }
    }

    /// A structural number above zero.
    pub(super) fn positive(&self, field: &'static str) -> f64 {
        match self.get(field) {
            None => {
                self.fault(FieldFault::Missing { field });
                1.0
            }
            Some(value) => value.as_f64().filter(|&number| number > 0.0 && number.is_finite()).unwrap_or_else(|| {
                self.invalid(field, value, "a number above zero");
                1.0
            }),
        }
    }

    pub(super) fn flag(&self, field: &'static str, default: bool) -> bool {
        match self.get(field) {
            None => default,
            Some(Value::Bool(on)) => *on,
            Some(other) => {
                self.invalid(field, other, "true or false");
                default
            }
        }
    }

    /// Refuses any other text than this one; absent is fine.
    pub(super) fn expect_text(&self, field: &'static str, only: &str) {
        if let Some(value) = self.get(field)
            && value != only
        {
            self.unsupported(field, value, format!("only \"{only}\" is"));
        }
    }
}

/// A whole number, also when it is written as `4096.0`.
fn whole(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        let number = value.as_f64()?;
        (number.fract() == 0.0 && (0.0..9e15).contains(&number)).then_some(number as u64)
    })
}

fn limit(field: &str) -> u64 {
    match field {
        "num_hidden_layers" => 1 << 12,
        "num_attention_heads" | "num_key_value_heads" => 1 << 14,
        "max_position_embeddings" | "sliding_window" | "vocab_size" => 1 << 32,
        _ => LARGEST,
    }
}
