//! The PTX version a driver loads, which only the LLVM compiler would have to choose.

use std::fmt;

/// A PTX version: never any, since nothing here writes PTX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PtxVersion {}

impl PtxVersion {
    /// `None` for every driver.
    pub fn for_driver(_: i32) -> Option<Self> {
        None
    }
}

impl fmt::Display for PtxVersion {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}
