//! Which layers see all of the past and which only a window of it.

use serde_json::Value;

use super::{FieldFault, Fields};

const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";
/// The width of transformers when the field is absent.
const WIDTH: usize = 4096;

/// No windows; `layer_types` may say so.
pub(super) fn none(fields: &Fields<'_>) -> Vec<Option<usize>> {
    let layers = fields.size("num_hidden_layers");
    agree(fields, vec![None; layers])
}

/// The window of qwen2 and qwen3: in force only with `use_sliding_window`, on layers from `max_window_layers` up,
/// unless `layer_types` lists them.
pub(super) fn upper_layers(fields: &Fields<'_>) -> Vec<Option<usize>> {
    let layers = fields.size("num_hidden_layers");
    let window = if fields.flag("use_sliding_window", false) { width(fields) } else { None };
    if let Some(types) = layer_types(fields, layers) {
        if window.is_none()
            && let Some(layer) = types.iter().position(|&sliding| sliding)
        {
            fields.fault(FieldFault::NoWindow { layer });
        }
        return types.into_iter().map(|sliding| if sliding { window } else { None }).collect();
    }
    let first = fields.count_or("max_window_layers", 28);
    (0..layers).map(|layer| if layer >= first { window } else { None }).collect()
}

/// The window of mistral: on every layer unless `sliding_window` is null.
pub(super) fn every_layer(fields: &Fields<'_>) -> Vec<Option<usize>> {
    let layers = fields.size("num_hidden_layers");
    agree(fields, vec![width(fields); layers])
}

/// The window of qwen2_moe: with `use_sliding_window`, on every other layer from the first, below `max_window_layers`.
pub(super) fn odd_lower_layers(fields: &Fields<'_>) -> Vec<Option<usize>> {
    let layers = fields.size("num_hidden_layers");
    let window = if fields.flag("use_sliding_window", false) { width(fields) } else { None };
    if let Some(types) = layer_types(fields, layers) {
        return types.into_iter().map(|sliding| if sliding { window } else { None }).collect();
    }
    let end = fields.count_or("max_window_layers", 28);
    (0..layers).map(|layer| if layer % 2 == 0 && layer < end { window } else { None }).collect()
}

/// The window of qwen3_moe: on every layer with `use_sliding_window`.
pub(super) fn every_layer_if_asked(fields: &Fields<'_>) -> Vec<Option<usize>> {
    let window = if fields.flag("use_sliding_window", false) { width(fields) } else { None };
    agree(fields, vec![window; fields.size("num_hidden_layers")])
}

/// The width: absent means the default, null means none.
fn width(fields: &Fields<'_>) -> Option<usize> {
    if fields.has("sliding_window") { fields.optional_size("sliding_window") } else { Some(WIDTH) }
}

/// For families whose code in transformers does not look at `layer_types`: a list that says something else is refused.
fn agree(fields: &Fields<'_>, windows: Vec<Option<usize>>) -> Vec<Option<usize>> {
    if let Some(types) = layer_types(fields, windows.len()) {
        let differ = types.iter().zip(&windows).any(|(&sliding, window)| sliding != window.is_some());
        if differ && let Some(value) = fields.get("layer_types") {
            fields.unsupported(
                "layer_types",
                value,
                format!("models of type `{}` follow `sliding_window` alone in all layers", fields.model_type()),
            );
        }
    }
    windows
}

/// For each layer whether it slides, where `layer_types` is given.
fn layer_types(fields: &Fields<'_>, layers: usize) -> Option<Vec<bool>> {
    let value = fields.get("layer_types")?;
    let Some(names) = value.as_array() else {
        fields.invalid("layer_types", value, "a list of names");
        return None;
    };
    if names.len() != layers {
        // Without a number of layers, that is the fault to report.
        if fields.was_read("num_hidden_layers") {
            fields.fault(FieldFault::WrongCount { field: "layer_types", found: names.len(), expected: layers });
        }
        return None;
    }
    let sliding = names.iter().enumerate().map(|(index, name)| match name {
        Value::String(name) if name == FULL => false,
        Value::String(name) if name == SLIDING => true,
        other => {
            let expected = format!("`{FULL}` and `{SLIDING}` are");
            fields.unsupported(&format!("layer_types[{index}]"), other, expected);
            false
        }
    });
    Some(sliding.collect())
}
