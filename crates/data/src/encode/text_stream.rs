//! Text of tokens as they are generated.

use super::Encoder;
use crate::error::RowError;

/// Decodes tokens one by one. A character whose bytes are spread over several tokens comes out when it is whole.
pub struct TextStream<'a> {
    encoder: &'a Encoder,
    skip_special: bool,
    /// The last tokens: some decoders print a token differently at the start of a text, so each is decoded behind
    /// those before it.
    ids: Vec<u32>,
    /// How many of `ids` have come out.
    shown: usize,
}

impl<'a> TextStream<'a> {
    pub(super) fn new(encoder: &'a Encoder, skip_special: bool) -> Self {
        Self { encoder, skip_special, ids: Vec::new(), shown: 0 }
    }

    /// The text that this token completes; empty while a character is unfinished.
    pub fn push(&mut self, id: u32) -> Result<String, RowError> {
        self.ids.push(id);
        let before = self.encoder.decode(&self.ids[..self.shown], self.skip_special)?;
        let now = self.encoder.decode(&self.ids, self.skip_special)?;
        // Four bytes make the longest character; what is still broken after that stays broken.
        let waiting = now.ends_with('\u{fffd}') && self.ids.len() - self.shown < 4;
        if waiting || now.len() <= before.len() {
            return Ok(String::new());
        }
        let text = now.get(before.len()..).unwrap_or_default().to_owned();
        self.ids.drain(..self.shown);
        self.shown = self.ids.len();
        Ok(text)
    }

    /// What remains at the end, with U+FFFD for bytes that never became a character.
    pub fn finish(self) -> Result<String, RowError> {
        let before = self.encoder.decode(&self.ids[..self.shown], self.skip_special)?;
        let now = self.encoder.decode(&self.ids, self.skip_special)?;
        Ok(now.get(before.len()..).unwrap_or_default().to_owned())
    }
}
