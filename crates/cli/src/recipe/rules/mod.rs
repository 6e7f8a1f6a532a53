//! Rules of meaning: what is well-formed and still cannot be, or probably is not what was meant.
//!
//! One file a rule. A rule sees the values and the document; it says nothing about a key that the walk has already
//! complained about, because that key then has its default.

mod batch;
mod checkpoint;
mod data;
mod device;
mod eval;
mod export;
mod generate;
mod lora;
mod lora_init;
mod lora_or_full;
mod not_there_yet;
mod optimizer;
mod paths;
mod quantize;
mod run_length;
mod schedule;
mod tokens;

pub(super) use self::lora_init::SHAPE as ADAPTER_SHAPE;
use super::{Purpose, Recipe, RecipeDoc};
use crate::diagnostic::{Diagnostic, Diagnostics, Place};

/// What a rule looks at.
pub(super) struct Context<'a> {
    pub(super) recipe: &'a Recipe,
    pub(super) doc: &'a RecipeDoc,
    pub(super) purpose: Purpose,
}

type Rule = fn(&Context<'_>, &mut Diagnostics);

const RULES: &[Rule] = &[
    paths::check,
    lora_or_full::check,
    lora::check,
    lora_init::check,
    not_there_yet::check,
    quantize::check,
    data::check,
    tokens::check,
    optimizer::check,
    schedule::check,
    run_length::check,
    batch::check,
    device::check,
    checkpoint::check,
    eval::check,
    export::check,
    generate::check,
];

/// Everything the rules have to say.
pub(super) fn check(context: &Context<'_>) -> Diagnostics {
    let mut said = Diagnostics::new();
    for rule in RULES {
        rule(context, &mut said);
    }
    said
}

impl Context<'_> {
    /// A mistake at the value of a key.
    fn mistake(&self, code: &'static str, key: &str, message: impl Into<String>) -> Diagnostic {
        Diagnostic::mistake(code, message).at(self.doc.span_of(key))
    }

    /// A number outside what makes sense.
    fn out_of_range(&self, key: &str, found: impl std::fmt::Display, expected: &str) -> Diagnostic {
        self.mistake("out-of-range", key, format!("`{key}` cannot be `{found}`"))
            .found(format!("`{found}`"))
            .expected(expected)
    }

    /// The recipe file, for what is missing from it altogether.
    fn whole_recipe(&self) -> Option<Place> {
        self.doc.path.clone().map(|file| Place { file, ..Place::default() })
    }

    /// A warning at the value of a key.
    fn warning(&self, code: &'static str, key: &str, message: impl Into<String>) -> Diagnostic {
        Diagnostic::warning(code, message).at(self.doc.span_of(key))
    }
}
