//! The recipe's `[tokens]`: how rows become tokens, and which tokens carry loss.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::audit::AuditCode;

/// How rows become tokens, which of them carry loss, and how they are laid out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TokensConfig {
    /// Longest sequence in tokens; what is longer meets `overlong`.
    #[schemars(range(min = 2))]
    pub max_length: usize,
    /// What happens to a row longer than `max_length`.
    pub overlong: Overlong,
    /// How several documents share a laid-out row. Sequences never see each other, whatever is chosen.
    pub packing: Packing,
    /// Which tokens of conversations and completions carry loss. Rows of `text` and `tokens` are not affected.
    pub loss_on: LossOn,
    /// A Jinja chat template, as the path of a file or inline; in place of the model's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Variables for the chat template, such as `enable_thinking = false` or `reasoning_effort = "medium"`.
    #[schemars(with = "BTreeMap<String, Value>")]
    pub template_vars: serde_json::Map<String, Value>,
    /// The date that templates see as today (`YYYY-MM-DD`, midnight). Absent: today in UTC, which makes tokens of
    /// templates that print the date differ from day to day.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template_date: Option<String>,
    /// Leave an empty `<think></think>` block at the start of an answer out of the loss, so that answers without
    /// reasoning do not teach a thinking model to stop thinking. Absent: yes, except where the template says itself
    /// what is trained with `{% generation %}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_empty_think: Option<bool>,
    /// What happens to text in the data that spells a special token, such as `<|im_end|>` inside a message.
    pub special_tokens: SpecialTokens,
    /// Findings of the audit that are meant to be so: they no longer stop the run and are told as notes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<AuditCode>,
}

impl Default for TokensConfig {
    fn default() -> Self {
        Self {
            max_length: 2048,
            overlong: Overlong::default(),
            packing: Packing::default(),
            loss_on: LossOn::default(),
            template: None,
            template_vars: serde_json::Map::new(),
            template_date: None,
            mask_empty_think: None,
            special_tokens: SpecialTokens::default(),
            allow: Vec::new(),
        }
    }
}

/// What happens to a row longer than `max_length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overlong {
    /// Keep the first `max_length` tokens. The answer's end, and with it the stop token, is lost for that row.
    #[default]
    Truncate,
    /// Leave the row out; the next one takes its place.
    Drop,
    /// Cut into consecutive pieces of `max_length`, each a sequence of its own.
    Split,
    /// Stop with an error.
    Error,
}

/// How documents are laid out into rows of `max_length` tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// `best_fit`: layouts are free of side effects here, so there is no reason to waste room.
    #[default]
    Auto,
    /// One document a row.
    None,
    /// Best-fit decreasing over the documents of one step.
    BestFit,
}

/// Which tokens of conversations and completions carry loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LossOn {
    /// All answers: every assistant turn up to and including its stop token; the completion of prompt/completion rows.
    #[default]
    Assistant,
    /// Only the last assistant turn; safe with templates that drop reasoning from earlier turns.
    Last,
    /// Every token but the first.
    All,
}

/// What happens to text in the data that spells a special token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SpecialTokens {
    /// `error` inside conversations, where it is an injection or a conversation rendered twice; `allow` in `text`
    /// and in prompt/completion strings, which no template renders and which may hold control tokens on purpose.
    #[default]
    Auto,
    /// Stop with an error that names the row.
    Error,
    /// Encode it as ordinary text, so that it cannot act as a control token.
    Escape,
    /// Encode it as the special token, as Hugging Face tokenizers do.
    Allow,
}
