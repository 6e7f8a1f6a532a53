//! The names PEFT gives to an adapter's tensors.

/// What PEFT puts before the path of a module of the model itself.
const WRAPPER: &str = "base_model.model.";

/// A tensor name taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Key {
    /// `lora_A` of this module.
    A(String),
    /// `lora_B` of this module.
    B(String),
    /// A whole tensor of the model, by its own name.
    Full(String),
    /// Something that is not supported, and why.
    Unsupported(&'static str),
}

/// Takes apart `base_model.model.<module>.lora_A.weight`, the older `….lora_A.default.weight`, and whole tensors.
pub(super) fn parse(name: &str) -> Key {
    let Some(rest) = name.strip_prefix(WRAPPER) else {
        return Key::Unsupported("PEFT's names begin with `base_model.model.`");
    };
    for (suffix, make) in [
        (".lora_A.weight", Key::A as fn(String) -> Key),
        (".lora_A.default.weight", Key::A),
        (".lora_B.weight", Key::B),
        (".lora_B.default.weight", Key::B),
    ] {
        if let Some(module) = rest.strip_suffix(suffix) {
            return make(module.to_owned());
        }
    }
    for (part, reason) in [
        (".lora_embedding_", "adapters on embeddings are not there yet"),
        (".lora_magnitude_vector", "DoRA is not there yet"),
        (".lora_", "it is neither `lora_A.weight` nor `lora_B.weight`"),
        (".base_layer.", "it is the frozen weight below an adapter"),
    ] {
        if rest.contains(part) {
            return Key::Unsupported(reason);
        }
    }
    Key::Full(rest.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", "."))
}

/// The name of `lora_A` of a module.
pub(super) fn a(module: &str) -> String {
    format!("{WRAPPER}{module}.lora_A.weight")
}

/// The name of `lora_B` of a module.
pub(super) fn b(module: &str) -> String {
    format!("{WRAPPER}{module}.lora_B.weight")
}

/// The name of a whole tensor.
pub(super) fn full(tensor: &str) -> String {
    format!("{WRAPPER}{tensor}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ages_of_names_are_read() {
        let module = "model.layers.0.self_attn.q_proj".to_owned();
        assert_eq!(parse(&a(&module)), Key::A(module.clone()));
        assert_eq!(parse(&b(&module)), Key::B(module.clone()));
        assert_eq!(parse("base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"), Key::B(module));
        let head = Key::Full("lm_head.weight".to_owned());
        assert_eq!(parse("base_model.model.lm_head.weight"), head);
        assert_eq!(parse("base_model.model.lm_head.modules_to_save.default.weight"), head);
        assert_eq!(parse("base_model.model.lm_head.modules_to_save.weight"), head);
    }

    #[test]
    fn what_is_not_lora_is_refused() {
        for name in [
            "model.layers.0.self_attn.q_proj.lora_A.weight",
            "base_model.model.model.embed_tokens.lora_embedding_A",
            "base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector",
            "base_model.model.model.layers.0.mlp.up_proj.lora_B.bias",
            "base_model.model.model.embed_tokens.base_layer.weight",
        ] {
            assert!(matches!(parse(name), Key::Unsupported(_)), "{name}");
        }
    }
}
