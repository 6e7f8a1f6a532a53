#![no_main]
//! `adapter_config.json`: what is read writes itself again, and says a rank and a scale for every module.

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use qwen_tune_weights::peft::AdapterConfig;

fuzz_target!(|data: &[u8]| {
    let path = Path::new("adapter_config.json");
    let Ok(config) = AdapterConfig::from_json(path, data) else { return };
    let again = AdapterConfig::from_json(path, config.to_json().as_bytes()).expect("what was written is read");
    assert_eq!(again.to_json(), config.to_json());
    if let Ok(scaling) = config.scaling() {
        let _ = (scaling.rank("model.layers.0.self_attn.q_proj"), scaling.scale("model.layers.0.self_attn.q_proj"));
    }
});
