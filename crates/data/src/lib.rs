//! Rows in files to training batches: sources, formats, chat templates, masks, tokens, packing.
//!
//! A row travels down this list and never back up:
//!
//! 1. [`source`]: files of a [`SourceConfig`] as numbered blocks of rows (parquet row groups, record batches, stretches of lines);
//! 2. [`format`]: the columns of one row become a [`Row`];
//! 3. [`encode`]: the row is rendered through the model's chat template ([`chat`]), tokenised and marked: which tokens
//!    carry loss ([`Sample`]);
//! 4. [`order`]: which row comes when, a pure function of the seed and a [`Cursor`], so that resuming replays nothing;
//! 5. [`pack`] and [`batch`]: a step's samples are laid out into [`Batch`]es;
//! 6. [`stream`]: all of it ahead of the device, on a thread of its own.
//!
//! Nothing here knows about tensors or devices.

pub mod audit;
pub mod batch;
pub mod chat;
mod contain;
mod dataset;
pub mod encode;
mod error;
mod evaluate;
pub mod format;
mod hash;
pub mod order;
pub mod pack;
mod prefetch;
mod row;
pub mod source;
mod split;
pub mod stream;
mod tokens;

pub use audit::{Audit, AuditCode, AuditLimits, Finding, SourceAudit, Unreadable, Verdict};
pub use batch::{Batch, IGNORE, Sequence, Step};
pub use contain::panics_are_contained;
pub use dataset::{Dataset, SourceInfo};
pub use encode::{Encoded, Encoder, Piece, TextStream, Tokenised};
pub use error::{DataError, RowError};
pub use evaluate::{Batches, Samples};
pub use format::{Format, read_messages};
pub use order::Cursor;
pub use row::{Conversation, Message, Origin, Row, Sample};
pub use source::{Paths, SourceConfig, SourceFormat};
pub use stream::{BatchPlan, StepSize, Stream};
pub use tokens::{LossOn, Overlong, Packing, SpecialTokens, TokensConfig};
