//! Which tokens the assistant wrote.
//!
//! A template's own `{% generation %}` spans come first. Without them the ChatML frame is read off the tokens: the two
//! control tokens cannot be produced by text, and this works for templates that render a conversation's start
//! differently once more turns follow, where comparing renderings of prefixes does not.

use std::ops::Range;

const ASSISTANT: &str = "assistant";
const EMPTY_THINK: [&str; 2] = ["<think>\n\n</think>\n\n", "<think>\n\n</think>"];

/// How the assistant's tokens are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mask {
    /// The template marks them.
    Generation,
    /// Between these two control tokens.
    ChatMl { start: u32, end: u32 },
    /// Not at all.
    None,
}

/// Byte ranges of the assistant's turns in ChatML: from behind the newline after the role, up to and including the end
/// token; the newline behind that is the template's, the model stops before it.
pub(crate) fn chatml(text: &str, ids: &[u32], offsets: &[(usize, usize)], start: u32, end: u32) -> Vec<Range<usize>> {
    let mut spans = Vec::new();
    let mut open: Option<usize> = None;
    for (id, &(_, to)) in ids.iter().zip(offsets) {
        if *id == start {
            let header = &text[to..];
            open = header.find('\n').filter(|&n| header[..n].trim() == ASSISTANT).map(|n| to + n + 1);
        } else if *id == end
            && let Some(from) = open.take()
        {
            spans.push(from..to);
        }
    }
    if let Some(from) = open.filter(|&from| from < text.len()) {
        spans.push(from..text.len());
    }
    spans
}

/// Tokens that touch one of the byte ranges. A token that begins before the range is the caller's to judge:
/// `straddling` says whether it counts.
pub(crate) fn from_chars(spans: &[Range<usize>], offsets: &[(usize, usize)], straddling: bool) -> Vec<bool> {
    let mut trained = vec![false; offsets.len()];
    let mut first = 0;
    for span in spans {
        // Spans and offsets both ascend.
        while first < offsets.len() && offsets[first].1 <= span.start {
            first += 1;
        }
        for (i, &(from, to)) in offsets.iter().enumerate().skip(first) {
            if from >= span.end {
                break;
            }
            trained[i] |= to > span.start && (straddling || from >= span.start);
        }
    }
    trained
}

/// The byte range of an empty thinking block at the start of a span.
pub(crate) fn empty_think(text: &str, span: &Range<usize>) -> Option<Range<usize>> {
    let block = EMPTY_THINK.iter().find(|block| text[span.clone()].starts_with(**block))?;
    Some(span.start..span.start + block.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One token a byte, but `<` starts and `>` ends a turn.
    fn tokens(text: &str) -> (Vec<u32>, Vec<(usize, usize)>) {
        text.bytes().enumerate().map(|(i, b)| (u32::from(b), (i, i + 1))).unzip()
    }

    fn trained(text: &str) -> String {
        let (ids, offsets) = tokens(text);
        let spans = chatml(text, &ids, &offsets, u32::from(b'<'), u32::from(b'>'));
        let trained = from_chars(&spans, &offsets, false);
        text.chars().zip(trained).filter(|(_, t)| *t).map(|(c, _)| c).collect()
    }

    #[test]
    fn answers_are_trained_with_their_end_token_and_without_their_header() {
        assert_eq!(trained("<user\nq>\n<assistant\nab>\n<tool\nt>\n<assistant\nc>\n"), "ab>c>");
        assert_eq!(trained("<assistant\ncut off"), "cut off");
        assert_eq!(trained("<assistantx\nno>"), "");
        assert_eq!(trained("no frame"), "");
    }

    #[test]
    fn tokens_that_touch_a_span_are_its_own() {
        let offsets = [(0, 2), (2, 5), (5, 5), (5, 8), (8, 9)];
        assert_eq!(from_chars(std::slice::from_ref(&(3..6)), &offsets, true), [false, true, true, true, false]);
        assert_eq!(from_chars(std::slice::from_ref(&(3..6)), &offsets, false), [false, false, true, true, false]);
        assert_eq!(from_chars(&[0..1, 8..9], &offsets, true), [true, false, false, false, true]);
    }

    #[test]
    fn only_an_empty_thinking_block_is_empty() {
        assert_eq!(empty_think("x<think>\n\n</think>\n\nhi", &(1..22)), Some(1..20));
        assert_eq!(empty_think("<think>\nwhy\n</think>\n\nhi", &(0..24)), None);
    }
}
