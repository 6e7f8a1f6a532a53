//! Text of tokens one by one: as they are generated, or to look at.

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

/// Text and the tokens it came from: one, or several that share a character.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// How many tokens.
    pub tokens: usize,
    /// Their text; bytes that never become a character are U+FFFD.
    pub text: String,
}

impl Encoder {
    /// Tokens as pieces of text that can be shown one by one. Tokens that the tokenizer does not know are shown by
    /// their number.
    pub fn pieces_of(&self, ids: &[u32]) -> Result<Vec<Piece>, RowError> {
        let mut pieces = Vec::with_capacity(ids.len());
        let mut stream = self.text_stream(false);
        let mut waiting = 0;
        for &id in ids {
            if self.token(id).is_none() {
                let rest = std::mem::replace(&mut stream, self.text_stream(false)).finish()?;
                if waiting > 0 {
                    pieces.push(Piece { tokens: waiting, text: rest });
                    waiting = 0;
                }
                pieces.push(Piece { tokens: 1, text: format!("<|{id}|>") });
                continue;
            }
            waiting += 1;
            let text = stream.push(id)?;
            if !text.is_empty() {
                pieces.push(Piece { tokens: waiting, text });
                waiting = 0;
            }
        }
        if waiting > 0 {
            pieces.push(Piece { tokens: waiting, text: stream.finish()? });
        }
        Ok(pieces)
    }
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
