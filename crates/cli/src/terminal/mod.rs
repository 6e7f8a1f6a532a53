//! Speaking to people: data to stdout, talk to stderr, progress on a terminal and in a log.

mod numbers;
mod printer;
mod progress;
mod table;

pub use self::numbers::{bytes, count, duration, percent, rate, short_count};
pub use self::printer::Printer;
pub use self::progress::{JsonLines, Progress};
pub use self::table::Table;
