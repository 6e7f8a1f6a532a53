#![no_main]
//! Rows of a jsonl file, from opening it to their tokens.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| qwen_tune_fuzz::read_data(&qwen_tune_fuzz::write("rows.jsonl", data)));
