//! The command line of qwen-tune: recipe, plan, commands, terminal.
//!
//! [`args`] says what may be typed, [`recipe`] reads what the user wrote, [`plan`] decides what will happen, [`commands`]
//! does it, [`begin_again`] gives it its libraries, [`buffers`] holds its memory, [`terminal`] and [`diagnostic`] say so.

pub mod args;
pub mod begin_again;
pub mod buffers;
pub mod commands;
pub mod diagnostic;
pub mod plan;
pub mod publish;
pub mod recipe;
pub mod terminal;
