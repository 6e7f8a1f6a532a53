#![no_main]
//! `config.json` to a specification and its list of tensors, which stays a list of tensors that a machine can hold.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(config) = serde_json::from_slice::<serde_json::Value>(data) else { return };
    let _ = qwen_tune_qwen::family::warnings(&config);
    if let Ok(spec) = qwen_tune_qwen::family::resolve(&config) {
        let tensors = qwen_tune_qwen::inventory(&spec);
        assert!(tensors.len() < 1 << 17);
        assert!(tensors.iter().all(|tensor| tensor.elements() > 0));
        assert!(spec.rope.inv_freq.iter().all(|frequency| frequency.is_finite()));
    }
});
