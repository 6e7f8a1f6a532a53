//! `text`: documents for continued pre-training.

use super::{Cells, ReadError, Reads, needs, text_shape};
use crate::row::Row;

pub(super) const READS: [Reads; 1] = [needs("text", "text", text_shape)];

pub(super) fn read(cells: &Cells) -> Result<Row, ReadError> {
    cells.required_text("text").map(Row::Text)
}
