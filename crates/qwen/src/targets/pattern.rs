//! [`Pattern`]: a module name or glob, and what it matches.

use globset::{GlobBuilder, GlobMatcher};

use super::TargetError;

/// A target as the user wrote it, ready to be asked.
pub(super) enum Pattern {
    /// Exact text: a whole path, or the end of one after a dot.
    Name(String),
    /// Wildcards without a dot: the last part of a path.
    Leaf(GlobMatcher),
    /// Wildcards with dots: a whole path.
    Path(GlobMatcher),
}

impl Pattern {
    /// Reads a name or glob. A leading `model.`, which module paths here do not have, may be written.
    pub(super) fn new(text: &str) -> Result<Self, TargetError> {
        let wanted = ["model.language_model.", "model."].iter().find_map(|prefix| text.strip_prefix(prefix));
        let wanted = wanted.unwrap_or(text);
        if !wanted.contains(['*', '?', '[', '{']) {
            return Ok(Self::Name(wanted.to_owned()));
        }
        let glob = GlobBuilder::new(wanted)
            .build()
            .map_err(|error| TargetError::Malformed { pattern: text.to_owned(), reason: error.kind().to_string() })?;
        let matcher = glob.compile_matcher();
        Ok(if wanted.contains('.') { Self::Path(matcher) } else { Self::Leaf(matcher) })
    }

    /// Whether this module path is meant.
    pub(super) fn matches(&self, path: &str) -> bool {
        match self {
            Self::Name(name) => {
                path.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
            Self::Leaf(glob) => glob.is_match(path.rsplit('.').next().unwrap_or(path)),
            Self::Path(glob) => glob.is_match(path),
        }
    }
}
