//! Tokens as text in which each of them can be told from its neighbours.
//!
//! What is trained stands between `⟦` and `⟧`, so that it reads without colour and through pipes. On a terminal tokens
//! alternate between two shades, of green where they are trained, and control tokens and tags stand out.

use owo_colors::Style;
use qwen_tune_data::Encoder;

use crate::diagnostic::Diagnostics;
use crate::terminal::Printer;

use super::super::failed;

/// The text of tokens; ends with a newline.
pub(super) fn painted(
    encoder: &Encoder,
    ids: &[u32],
    trained: &[bool],
    printer: &Printer,
) -> Result<String, Diagnostics> {
    let mut out = String::new();
    let (mut at, mut open) = (0, false);
    for (index, piece) in encoder.pieces_of(ids).map_err(|e| failed("tokenizer", &e))?.iter().enumerate() {
        // Tokens that share a character are shown as one; what is trained of them is what ends it.
        let last = at + piece.tokens - 1;
        if trained[last] != open {
            open = !open;
            out.push(if open { '⟦' } else { '⟧' });
        }
        let style = style(open, encoder.is_added(ids[last]), index % 2 == 1);
        // A style must not reach over the end of a line.
        let text = visible(&piece.text);
        let lines: Vec<String> = text.split('\n').map(|line| painted_line(line, style, printer)).collect();
        out.push_str(&lines.join("\n"));
        at += piece.tokens;
    }
    if open {
        out.push('⟧');
    }
    if !out.ends_with('\n') {
        out.push('\n');
    }
    Ok(out)
}

fn painted_line(line: &str, style: Style, printer: &Printer) -> String {
    if line.is_empty() { String::new() } else { printer.styled(line, style) }
}

fn style(trained: bool, added: bool, odd: bool) -> Style {
    let style = Style::new();
    match (added, trained, odd) {
        (true, true, _) => style.bright_green().reversed(),
        (true, false, _) => style.magenta(),
        (false, true, false) => style.green(),
        (false, true, true) => style.bright_green().underline(),
        (false, false, false) => style,
        (false, false, true) => style.dimmed(),
    }
}

/// Text whose control characters can be seen and do nothing; line ends stay line ends.
fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push_str("↵\n"),
            // The pictures of the first 32 control characters stand in their order.
            '\0'..='\u{1f}' => out.push(char::from_u32(0x2400 + c as u32).unwrap_or(c)),
            '\u{7f}' => out.push('␡'),
            c if c.is_control() || is_invisible(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// Characters that take no room or turn the direction of a line: text can hide behind them.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_can_move_the_cursor_or_hide() {
        assert_eq!(visible("a\tb\r\n\x1b[31m\u{202e}c\x7f"), "a␉b␍↵\n␛[31m\\u{202e}c␡");
    }
}
