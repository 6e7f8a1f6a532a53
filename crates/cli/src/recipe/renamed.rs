//! Keys of other fine-tuning tools, and what they are called here: people bring their vocabulary with them.

/// Names of peers' settings and the recipe key that does the same.
const KEYS: &[(&[&str], &str)] = &[
    (&["base_model", "model_name_or_path", "model_name", "model_id", "pretrained_model_name_or_path"], "model.base"),
    (&["torch_dtype", "bf16", "compute_dtype", "precision"], "model.dtype"),
    (&["load_in_4bit", "load_in_8bit", "quantization_bit", "quant", "quant_bits", "quantization"], "model.quantize"),
    (&["r", "lora_r", "lora_rank"], "lora.rank"),
    (&["lora_alpha"], "lora.alpha"),
    (&["lora_dropout"], "lora.dropout"),
    (&["lora_target", "lora_target_modules", "target_modules", "lora_target_linear", "targets"], "lora.target"),
    (&["use_rslora"], "lora.rslora"),
    (&["use_dora"], "lora.dora"),
    (&["lora_modules_to_save", "additional_target"], "lora.modules_to_save"),
    (&["layers_to_transform", "num_layers"], "lora.layers"),
    (&["lora_plus_ratio", "loraplus_lr_ratio"], "lora.plus_ratio"),
    (&["init_lora_weights"], "lora.init"),
    (&["dataset_name", "dataset_path", "data_path", "train_file"], "data[0].path"),
    (&["format_type", "formatting"], "data[0].format"),
    (
        &[
            "sequence_len",
            "cutoff_len",
            "max_seq_length",
            "max_seq_len",
            "max_len",
            "seq_len",
            "context_length",
            "block_size",
        ],
        "tokens.max_length",
    ),
    (&["sample_packing", "neat_packing", "packed"], "tokens.packing"),
    (&["chat_template", "chat_template_path"], "tokens.template"),
    (
        &[
            "train_on_inputs",
            "train_on_prompt",
            "mask_prompt",
            "completion_only_loss",
            "assistant_only_loss",
            "roles_to_train",
            "mask_history",
        ],
        "tokens.loss_on",
    ),
    (&["method", "stage", "loss_type"], "objective.kind"),
    (&["lr"], "optimizer.learning_rate"),
    (&["optim"], "optimizer.kind"),
    (&["wd"], "optimizer.weight_decay"),
    (&["adam_beta1", "betas"], "optimizer.beta1"),
    (&["adam_beta2"], "optimizer.beta2"),
    (&["adam_epsilon", "epsilon"], "optimizer.eps"),
    (&["clip_grad_norm", "grad_clip", "gradient_clipping", "max_gradient_norm"], "optimizer.max_grad_norm"),
    (&["lr_scheduler", "lr_scheduler_type", "scheduler", "lr_schedule"], "schedule.kind"),
    (&["warmup_ratio", "warmup_steps", "num_warmup_steps"], "schedule.warmup"),
    (&["min_lr_ratio", "min_lr_rate", "cosine_min_lr_ratio"], "schedule.min_ratio"),
    (&["output_dir", "out_dir", "save_dir", "adapter_path"], "run.dir"),
    (&["num_epochs", "num_train_epochs", "max_epochs"], "run.epochs"),
    (&["max_steps", "num_steps", "train_steps", "iters", "iterations"], "run.steps"),
    (&["max_tokens", "num_tokens"], "run.tokens"),
    (&["batch_size", "train_batch_size", "total_batch_size"], "run.global_batch"),
    (&["micro_batch_size", "per_device_train_batch_size"], "run.micro_batch"),
    (
        &["gradient_checkpointing", "grad_checkpoint", "enable_activation_checkpointing", "activation_checkpointing"],
        "run.recompute",
    ),
    (&["tiled_mlp", "tiled_mlp_num_shards", "unsloth_tiled_mlp", "use_tiled_mlp"], "run.ffn_chunk"),
    (&["random_seed", "data_seed", "shuffle_seed"], "run.seed"),
    (&["save_steps", "save_every", "checkpoint_every"], "checkpoint.every"),
    (&["save_total_limit", "keep_last"], "checkpoint.keep"),
    (&["eval_steps", "eval_every", "steps_per_eval"], "eval.every"),
    (&["val_set_size", "val_size", "val_split", "split_dataset_ratio", "test_size"], "eval.fraction"),
    (&["early_stopping_patience", "early_stop_patience", "patience"], "eval.early_stop"),
    (&["formats"], "export[0].to"),
    (&["gguf", "quantization_method"], "export[0].quant"),
    (&["max_new_tokens", "num_predict", "max_completion_tokens"], "generate.max_tokens"),
    (&["temp"], "generate.temperature"),
];

/// Settings that have no counterpart, and what to do instead.
const GONE: &[(&[&str], &str)] = &[
    (
        &["gradient_accumulation_steps", "grad_accumulation_steps", "accumulation", "accumulate"],
        "there is no accumulation setting: `run.global_batch` rows make a step, in micro-batches that fit",
    ),
    (
        &["resume_from_checkpoint", "resume", "auto_resume_from_checkpoints"],
        "to go on with a run, give `--resume` to `train`",
    ),
    (&["scale", "lora_scale"], "the scale is `lora.alpha / lora.rank`; set `lora.alpha`"),
    (
        &["flash_attention", "flash_attn", "attn_implementation", "use_liger_kernel"],
        "nothing to switch on: fused operations are used where they exist",
    ),
    (
        &["use_peft", "adapter", "finetuning_type", "tuner_type", "fine_tune_type"],
        "a section `[lora]` trains an adapter, a section `[full]` the model itself",
    ),
];

/// Keys and words whose names are fixed and that no section has yet.
const PLANNED: &[(&str, &str)] = &[
    ("eval", "regression"),
    ("model", "attention"),
    ("model", "lock"),
    ("objective", "beta"),
    ("data.format", "preference"),
    ("data.format", "unpaired"),
];

/// Whether a section will have this key, or a key take this word, one day.
pub(super) fn is_planned(path: &str, name: &str) -> bool {
    let plain: String = path.split('[').map(|part| part.split_once(']').map_or(part, |(_, rest)| rest)).collect();
    PLANNED.contains(&(plain.as_str(), name))
}

/// Sections by other names.
const SECTIONS: &[(&[&str], &str)] = &[
    (&["train", "training", "trainer", "training_args"], "[run]"),
    (&["dataset", "datasets", "data_opts"], "[[data]]"),
    (&["peft", "adapter", "lora_parameters"], "[lora]"),
    (&["tokenizer", "tokenize", "token"], "[tokens]"),
    (&["loss", "method"], "[objective]"),
    (&["optim"], "[optimizer]"),
    (&["scheduler", "lr_scheduler", "lr_schedule"], "[schedule]"),
    (&["save", "saving"], "[checkpoint]"),
    (&["evaluation", "validation", "val"], "[eval]"),
    (&["exports", "output", "gguf"], "[[export]]"),
    (&["log", "logging", "metrics"], "[report]"),
    (&["sampling", "generation", "generation_config"], "[generate]"),
];

/// What to write instead of a key that another tool has, if this is one.
pub(super) fn advice(key: &str, path: &str) -> Option<String> {
    if let Some((_, why)) = GONE.iter().find(|(names, _)| names.contains(&key)) {
        return Some((*why).to_owned());
    }
    if path.is_empty()
        && let Some((_, section)) = SECTIONS.iter().find(|(names, _)| names.contains(&key))
    {
        return Some(format!("the section is called `{section}`"));
    }
    let (_, ours) = KEYS.iter().find(|(names, _)| names.contains(&key))?;
    Some(format!("here it is called `{ours}`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::schema::Schema;

    #[test]
    fn every_name_leads_to_a_key_of_the_recipe() {
        let schema = Schema::of_recipe();
        let sections = schema.sections();
        for (_, ours) in KEYS {
            let (section, key) = ours.split_once('.').expect("a key in a section");
            let table = sections.get(section.trim_end_matches("[0]")).and_then(|known| schema.table_of(known));
            assert!(table.is_some_and(|table| table.get(key).is_some()), "{ours}");
        }
    }

    #[test]
    fn every_section_is_one() {
        let schema = Schema::of_recipe();
        for (_, section) in SECTIONS {
            assert!(schema.sections().get(section.trim_matches(['[', ']'])).is_some(), "{section}");
        }
    }

    #[test]
    fn no_foreign_name_is_one_of_ours() {
        let schema = Schema::of_recipe();
        let sections = schema.sections();
        for name in KEYS.iter().chain(GONE).flat_map(|(names, _)| *names) {
            for section in sections.keys() {
                let table = sections.get(section).and_then(|known| schema.table_of(known));
                let clash = table.is_some_and(|table| table.get(name).is_some())
                    && KEYS.iter().any(|(names, ours)| names.contains(name) && ours.ends_with(&format!(".{name}")));
                assert!(!clash, "{name} in {section}");
            }
        }
    }
}
