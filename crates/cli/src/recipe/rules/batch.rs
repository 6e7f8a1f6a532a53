//! What a step takes: rows or tokens, never both, never nothing; and how many threads there may be.

use qwen_tune_qwen::Auto;
use qwen_tune_train::FfnChunk;
use qwen_tune_train::threads::MOST_THREADS;

use super::Context;
use crate::diagnostic::{Diagnostic, Diagnostics};

pub(super) fn check(context: &Context<'_>, said: &mut Diagnostics) {
    let run = &context.recipe.run;
    if run.global_batch.is_some() && run.global_tokens.is_some() {
        said.push(
            Diagnostic::mistake("two-batch-sizes", "a step takes rows or tokens, not both")
                .at(context.doc.key_span_of("run.global_tokens"))
                .label("a budget of tokens")
                .also(context.doc.key_span_of("run.global_batch"), "a number of rows")
                .hint("keep `global_batch` for results that packing cannot change, `global_tokens` for throughput"),
        );
    }
    for (key, size) in [("run.global_batch", run.global_batch), ("run.global_tokens", run.global_tokens)] {
        if size == Some(0) {
            said.push(context.out_of_range(key, 0, "a whole number from 1"));
        }
    }
    if run.micro_batch == Auto::Value(0) {
        said.push(context.out_of_range("run.micro_batch", 0, "a whole number from 1, or `\"auto\"`"));
    }
    if run.ffn_chunk == FfnChunk::Tokens(0) {
        said.push(context.out_of_range("run.ffn_chunk", 0, "a whole number from 1, `\"none\"` or `\"auto\"`"));
    }
    if let Some(threads) = run.threads.value().filter(|&threads| threads > MOST_THREADS) {
        let expected = format!("a whole number up to {MOST_THREADS}, or `\"auto\"`");
        said.push(context.out_of_range("run.threads", threads, &expected));
    }
}
