//! [`MergedRows`]: the base with what was learnt in it, as numbers, some elements at a time.

use std::collections::HashMap;

use qwen_tune_weights::{TensorSource, WeightError};

use super::ExportError;
use super::merge::{Change, Update, add_rows, fitted};
use crate::{ModelDir, TensorSpec};

/// Hands out the model with the change in it, if all of it fits.
pub(crate) fn merged_rows<T, E: From<ExportError>>(
    model: &ModelDir,
    change: Option<Change<'_>>,
    then: impl FnOnce(&MergedRows<'_>) -> Result<T, Vec<E>>,
) -> Result<T, Vec<E>> {
    let Some(change) = change else {
        return then(&MergedRows { model, updates: &HashMap::new() });
    };
    let result = fitted(model, change, |updates| Ok(then(&MergedRows { model, updates })));
    result.map_err(|faults| faults.into_iter().map(E::from).collect::<Vec<E>>())?
}

/// The merged model as numbers, not rounded to any stored type.
pub(crate) struct MergedRows<'a> {
    model: &'a ModelDir,
    updates: &'a HashMap<String, Update<'a>>,
}

impl MergedRows<'_> {
    /// Some consecutive elements of a tensor of the inventory, whole rows of it, into a buffer of their number.
    ///
    /// # Errors
    /// If a stored tensor cannot be read.
    pub(crate) fn read(&self, tensor: &TensorSpec, first: usize, values: &mut [f32]) -> Result<(), WeightError> {
        for (part, elements, place) in self.model.parts_within(tensor, first..first + values.len()) {
            let values = &mut values[place];
            match self.updates.get(&part.name) {
                Some(Update::Part { source, whole, start }) => {
                    source.read_elements_f32(&whole.name, start + elements.start, values)?;
                }
                update => {
                    self.model.checkpoint.read_elements_f32(&part.name, elements.start, values)?;
                    if let Some(Update::Lora { pair, first }) = update {
                        add_rows(values, first + elements.start / pair.in_features, pair);
                    }
                }
            }
        }
        Ok(())
    }

    /// Has a tensor ready for many reads of its elements, at once on several threads.
    pub(crate) fn prepare(&self, tensor: &TensorSpec) -> Result<(), WeightError> {
        let parts = self.model.parts(tensor);
        parts.iter().try_for_each(|part| self.model.checkpoint.read_elements_f32(&part.name, 0, &mut []))
    }

    /// Gives back the memory that holds a tensor's bytes.
    pub(crate) fn release(&self, tensor: &TensorSpec) {
        for part in self.model.parts(tensor) {
            self.model.checkpoint.release(&part.name);
        }
    }
}
