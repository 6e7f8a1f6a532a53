//! `input_ids` and, if there, `labels`: token ids that somebody else prepared, used as they are.

use serde_json::Value;

use super::messages::wrong;
use super::{Cells, ReadError, Reads, integers, may, needs};
use crate::error::RowError;
use crate::row::Row;

const EXPECTED: &str = "a list of whole numbers";

pub(super) const READS: [Reads; 2] = [needs("input_ids", EXPECTED, integers), may("labels", EXPECTED, integers)];

pub(super) fn read(cells: &Cells) -> Result<Row, ReadError> {
    let ids = numbers(&cells.required("input_ids", EXPECTED)?).map_err(|error| ("input_ids", error))?;
    let ids = ids
        .into_iter()
        .enumerate()
        .map(|(position, id)| {
            // Beyond 32 bits no vocabulary reaches; the exact limit is the encoder's to know.
            u32::try_from(id).map_err(|_| ("input_ids", RowError::TokenId { position, id, limit: 1 << 31 }))
        })
        .collect::<Result<Vec<u32>, _>>()?;
    let labels = match cells.optional("labels")? {
        Value::Null => None,
        value => Some(numbers(&value).map_err(|error| ("labels", error))?),
    };
    if let Some(labels) = labels.as_ref().filter(|labels| labels.len() != ids.len()) {
        return Err(("labels", RowError::LabelCount { labels: labels.len(), ids: ids.len() }));
    }
    Ok(Row::Tokens { ids, labels })
}

fn numbers(value: &Value) -> Result<Vec<i64>, RowError> {
    let items = value.as_array().ok_or_else(|| wrong("the cell".into(), value, EXPECTED))?;
    items
        .iter()
        .enumerate()
        .map(|(i, item)| item.as_i64().ok_or_else(|| wrong(format!("entry {i}"), item, "a whole number")))
        .collect()
}
