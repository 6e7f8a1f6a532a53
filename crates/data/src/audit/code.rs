//! What an audit can find, by name.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What an audit can find in a source and `tokens.allow` can accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum AuditCode {
    /// No token carries loss.
    NoLoss,
    /// Less than one token in a hundred carries loss.
    LittleLoss,
    /// Conversations hold answers, and none of their tokens carries loss.
    RoleUnmatched,
    /// The chat template leaves out the text of messages of a role.
    RoleDropped,
    /// The token that ends an answer is never trained, so the model does not learn to stop.
    StopUntrained,
    /// Two tokens that begin a sequence follow one another.
    DoubleBos,
    /// Two tokens that end a turn or a sequence follow one another.
    DoubleEos,
    /// A turn opens a thinking block and never closes it.
    ThinkUnclosed,
    /// A turn closes a thinking block that it never opened.
    ThinkUnopened,
    /// Every row is longer than `tokens.max_length`.
    AllOverlong,
    /// Cutting rows at `tokens.max_length` cuts off everything that carries loss.
    AnswersCut,
    /// Answers are empty.
    EmptyAnswers,
    /// The chat template leaves out the reasoning of turns that are trained, which teaches the model not to think.
    ReasoningLost,
    /// Every row is the same.
    SameRows,
}

impl AuditCode {
    /// The name in recipes and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NoLoss => "no-loss",
            Self::LittleLoss => "little-loss",
            Self::RoleUnmatched => "role-unmatched",
            Self::RoleDropped => "role-dropped",
            Self::StopUntrained => "stop-untrained",
            Self::DoubleBos => "double-bos",
            Self::DoubleEos => "double-eos",
            Self::ThinkUnclosed => "think-unclosed",
            Self::ThinkUnopened => "think-unopened",
            Self::AllOverlong => "all-overlong",
            Self::AnswersCut => "answers-cut",
            Self::EmptyAnswers => "empty-answers",
            Self::ReasoningLost => "reasoning-lost",
            Self::SameRows => "same-rows",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_recipes_take() {
        use AuditCode::*;
        for code in [
            NoLoss,
            LittleLoss,
            RoleUnmatched,
            RoleDropped,
            StopUntrained,
            DoubleBos,
            DoubleEos,
            ThinkUnclosed,
            ThinkUnopened,
            AllOverlong,
            AnswersCut,
            EmptyAnswers,
            ReasoningLost,
            SameRows,
        ] {
            assert_eq!(serde_json::to_value(code).ok(), Some(code.name().into()));
        }
    }
}
