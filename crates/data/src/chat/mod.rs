//! Conversations to text, and which parts of that text the assistant wrote.

mod bounds;
mod engine;
mod mask;
mod moment;
mod python;
mod source;
mod special;
mod template;

pub use template::{ChatTemplate, Rendered};

pub(crate) use template::REASONING;

pub(crate) use mask::{Mask, chatml, empty_think, from_chars};
pub(crate) use moment::Moment;
pub(crate) use special::{Found, SpecialTexts, find_mark};

/// Marks put into rendered text and cut out again: noncharacters, which no text may contain (Unicode 23.7).
pub(crate) mod marks {
    /// Opens a `{% generation %}` span.
    pub(crate) const OPEN: char = '\u{fdd0}';
    /// Closes it.
    pub(crate) const CLOSE: char = '\u{fdd1}';
    /// Splits text that would otherwise be read as a special token.
    pub(crate) const SPLIT: char = '\u{fdd2}';
}
