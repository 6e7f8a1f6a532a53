//! Finds text in the data that spells a special token.
//!
//! A tokenizer turns `<|im_end|>` inside a user's message into the control token, whoever wrote it. Such text is
//! found before the template is applied, where what the data says can still be told from what the template says.

use super::marks;

/// Tags that answers spell on purpose, though some exports of tokenizers call them special.
const STRUCTURAL: [&str; 6] =
    ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"];

/// The texts of a tokenizer's special tokens.
#[derive(Debug, Clone, Default)]
pub(crate) struct SpecialTexts {
    /// Longest first, so that a token which begins another does not hide it.
    texts: Vec<String>,
    /// Which bytes any of them starts with.
    first: Vec<bool>,
}

/// What was found in a text.
pub(crate) enum Found {
    /// A special token's text, and the byte it begins at.
    Token { token: String, at: usize },
    /// A character that marks are made of.
    Mark(char),
}

impl SpecialTexts {
    pub(crate) fn new(texts: impl Iterator<Item = String>) -> Self {
        let mut texts: Vec<String> = texts.filter(|t| !t.is_empty() && !STRUCTURAL.contains(&t.as_str())).collect();
        texts.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        let mut first = vec![false; 256];
        for text in &texts {
            first[usize::from(text.as_bytes()[0])] = true;
        }
        Self { texts, first }
    }

    /// Byte offset and text of the first special token at or after `from`.
    fn next(&self, text: &str, from: usize) -> Option<(usize, &str)> {
        let bytes = text.as_bytes();
        (from..bytes.len()).filter(|&at| self.first[usize::from(bytes[at])]).find_map(|at| {
            let token = self.texts.iter().find(|t| bytes[at..].starts_with(t.as_bytes()))?;
            Some((at, token.as_str()))
        })
    }

    /// The first thing in a text that should not be there.
    pub(crate) fn find(&self, text: &str) -> Option<Found> {
        let token = self.next(text, 0).map(|(at, token)| Found::Token { token: token.to_owned(), at });
        token.or_else(|| find_mark(text))
    }

    /// Splits every special token's text by a mark after its first character.
    pub(crate) fn escape(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut done = 0;
        while let Some((at, token)) = self.next(text, done) {
            let head = token.chars().next().map_or(1, char::len_utf8);
            out.push_str(&text[done..at + head]);
            out.push(marks::SPLIT);
            done = at + head;
        }
        out.push_str(&text[done..]);
        out
    }
}

/// A character that marks are made of.
pub(crate) fn find_mark(text: &str) -> Option<Found> {
    text.chars().find(|c| (marks::OPEN..=marks::SPLIT).contains(c)).map(Found::Mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_token_is_found_and_split() {
        let special = SpecialTexts::new(["<|im|>", "<|im|>x", "<think>"].iter().map(|s| (*s).to_owned()));
        assert!(matches!(special.find("a<<|im|>x"), Some(Found::Token { token, at: 2 }) if token == "<|im|>x"));
        assert!(special.find("<think> <|im| >").is_none());
        assert!(matches!(special.find("a\u{fdd1}"), Some(Found::Mark('\u{fdd1}'))));
        assert_eq!(special.escape("ä<|im|>b<|im|>x"), "ä<\u{fdd2}|im|>b<\u{fdd2}|im|>x");
        assert_eq!(special.escape("plain"), "plain");
    }
}
