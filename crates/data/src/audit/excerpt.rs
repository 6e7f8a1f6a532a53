//! A few tokens of a row on one line, trained stretches between `⟦` and `⟧`.

use crate::encode::{Encoder, Tokenised};
use crate::row::Row;

/// Characters on either side of the place.
const SIDE: usize = 90;

/// The tokens around one of them, as the model sees them.
pub(super) fn excerpt(encoder: &Encoder, row: &Tokenised, focus: usize) -> String {
    let width = |at: usize| encoder.token(row.ids[at]).map_or(1, |token| token.chars().count());
    let focus = focus.min(row.ids.len().saturating_sub(1));
    let (mut start, mut end) = (focus, focus);
    let mut room = SIDE;
    while start > 0 && room > 0 {
        start -= 1;
        room = room.saturating_sub(width(start));
    }
    // What stands at the start or the end of a row leaves its room to the other side.
    let mut room = SIDE + room;
    while end < row.ids.len() && room > 0 {
        room = room.saturating_sub(width(end));
        end += 1;
    }
    let mut out = String::from(if start > 0 { "..." } else { "" });
    let mut at = start;
    while at < end {
        let stop = (at..end).find(|&i| row.trained[i] != row.trained[at]).unwrap_or(end);
        // A row whose tokens cannot be decoded has been refused for that.
        let text = one_line(encoder.decode(&row.ids[at..stop], false).unwrap_or_default().trim_matches('\u{fffd}'));
        out.push_str(&if row.trained[at] { format!("⟦{text}⟧") } else { text });
        at = stop;
    }
    out + if end < row.ids.len() { "..." } else { "" }
}

/// How a row begins that cannot be shown as the model sees it.
pub(super) fn beginning(row: &Row) -> Option<String> {
    let text = match row {
        Row::Chat(conversation) | Row::ChatCompletion { prompt: conversation, .. } => {
            let turns: Vec<_> = conversation.messages.iter().map(|message| message.fields().clone()).collect();
            serde_json::to_string(&turns).ok()?
        }
        Row::Completion { prompt, .. } => one_line(prompt),
        Row::Text(text) => one_line(text.get(..text.floor_char_boundary(4 * SIDE))?),
        Row::Tokens { ids, .. } => format!("{:?}", ids.get(..ids.len().min(SIDE / 4))?),
    };
    Some(match text.char_indices().nth(2 * SIDE) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    })
}

/// Text on one line: what moves a cursor or cannot be seen is escaped.
pub(crate) fn one_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' => out.extend(c.escape_default()),
            c if c.is_control() => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}
