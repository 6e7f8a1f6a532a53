#!/usr/bin/env python3
"""Makes tests/goldens/: what transformers and PEFT compute for tiny random models, for our forward, backward and optimiser to match.

    pip install -r scripts/requirements.txt
    python scripts/make_goldens.py [CASE ...]

One directory a case, each read back by transformers from the very files that are committed:

    config.json, model.safetensors (or shards)   the base; weights, norms and biases random, logits of standard deviation about 1
    adapter/                                     as PEFT saves it; lora_B is not zero
    golden.safetensors                           f32 on the CPU, eager attention

golden.safetensors, with B = 2 rows of T = 21 tokens; adapter names are PEFT's without `base_model.model.`:

    input_ids, labels [B,T] i64   labels are -100 where no loss is taken; they are shifted inside the loss
    embed, block.I, final         [B,T,H] embedding, output of decoder layer I, last norm; the adapter is active
    router.I                      [B·T,E] scores of the experts of layer I, where it is sparse
    logits, base_logits           [B,T,V] with and without the adapter
    loss                          mean over all trained targets of the batch
    grad.NAME                     gradient of that loss
    aux_loss, auxgrad.NAME        mixtures of experts: the load-balancing loss over all layers and tokens, and the gradient of
                                  loss + 0.1 aux_loss
    losses, grad_norms [10]       before each of ten steps of torch.optim.AdamW (see OPTIMISER); norms before clipping at 1
    after.NAME                    the adapter after the ten steps
    merged.NAME, merged_logits    two linears, adapted experts and routers, and the logits after PEFT's merge_and_unload of the
                                  starting adapter
    per_expert_logits             some cases: the logits with adapter_per_expert/, pairs for each linear layer of each expert as
                                  older libraries write them, once PEFT has converted them
    sep.ids.J, sep.logits.J       three short sequences, each run alone, adapter active: what a packed run has to reproduce
    fullgrad.NAME, full_losses, full_grad_norms   some cases: the same for every base parameter, without an adapter

Seeds are fixed; another torch build or CPU may differ in the last bits.
"""
import argparse
import itertools
import json
import math
import os
import pathlib
import shutil

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

OUT = pathlib.Path(__file__).resolve().parents[1] / "tests" / "goldens"
ROWS, TOKENS, STEPS = 2, 21, 10
OPTIMISER = dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
CLIP = 1.0
AUX_FACTOR = 0.1
SEPARATE = (5, 9, 13)
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]

# What the older hub files carry and newer ones do not; the rope keys are given per case.
OLD = dict(attention_dropout=0.0, hidden_act="silu", initializer_range=0.02, torch_dtype="float32", use_cache=True)


def old(architecture, model_type, **fields):
    """A config.json in the older style: `rope_theta` and `rope_scaling` at the top level."""
    return dict(OLD, architectures=[architecture], model_type=model_type, **fields)


def new(config_class, **fields):
    """A config.json as transformers writes it today."""
    config = config_class(attn_implementation="eager", **fields)
    config.architectures = [config_class.__name__.replace("Config", "ForCausalLM")]
    config.dtype = "float32"
    out = json.loads(config.to_json_string(use_diff=True))
    assert "rope_parameters" in out, out
    return out


def cases():
    yield "qwen2_bias_tied", dict(
        config=old(
            "Qwen2ForCausalLM", "qwen2", vocab_size=48, hidden_size=32, intermediate_size=40, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-6, rope_theta=1000000.0, max_position_embeddings=32768,
            sliding_window=32768, use_sliding_window=False, max_window_layers=2, tie_word_embeddings=True,
            bos_token_id=60, eos_token_id=61,
        ),
        lora=dict(r=3, lora_alpha=6, target_modules=ATTENTION + MLP),
        full=True,
    )
    yield "qwen2_yarn", dict(
        config=old(
            "Qwen2ForCausalLM", "qwen2", vocab_size=48, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, rms_norm_eps=1e-5, rope_theta=10000.0, max_position_embeddings=16384,
            rope_scaling={"factor": 4.0, "original_max_position_embeddings": 4096, "type": "yarn"},
            sliding_window=None, use_sliding_window=False, max_window_layers=2, tie_word_embeddings=False,
        ),
        lora=dict(r=2, lora_alpha=4, target_modules="all-linear"),
    )
    yield "qwen2_window", dict(
        config=old(
            "Qwen2ForCausalLM", "qwen2", vocab_size=48, hidden_size=24, intermediate_size=40, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-6, rope_theta=10000.0, max_position_embeddings=512,
            sliding_window=6, use_sliding_window=True, max_window_layers=1, tie_word_embeddings=True,
        ),
        lora=dict(r=2, lora_alpha=4, target_modules=ATTENTION),
    )
    yield "qwen3_gqa", dict(
        config=old(
            "Qwen3ForCausalLM", "qwen3", vocab_size=48, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8, attention_bias=False, rms_norm_eps=1e-6, rope_theta=1000000,
            rope_scaling=None, max_position_embeddings=40960, sliding_window=None, use_sliding_window=False, max_window_layers=2,
            tie_word_embeddings=False, bos_token_id=60, eos_token_id=[61, 60],
        ),
        lora=dict(r=3, lora_alpha=6, target_modules="all-linear"),
        full=True,
    )
    yield "qwen3_mha_bias_rslora", dict(
        config=new(
            transformers.Qwen3Config, vocab_size=48, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=4, head_dim=8, attention_bias=True, tie_word_embeddings=True,
            max_position_embeddings=512, rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        ),
        lora=dict(r=4, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "v_proj", "down_proj"]),
    )
    yield "llama3_rope", dict(
        config=old(
            "LlamaForCausalLM", "llama", vocab_size=48, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, attention_bias=False, mlp_bias=False, rms_norm_eps=1e-5, rope_theta=1000.0,
            # The band between the two wavelengths is put where 21 positions can tell it from either side.
            rope_scaling={
                "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
                "rope_type": "llama3",
            },
            max_position_embeddings=512, pretraining_tp=1, tie_word_embeddings=False,
        ),
        lora=dict(r=3, lora_alpha=6, target_modules=ATTENTION),
    )
    yield "llama_bias_linear_rope", dict(
        config=new(
            transformers.LlamaConfig, vocab_size=48, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
            max_position_embeddings=256, rope_parameters={"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0},
        ),
        lora=dict(r=2, lora_alpha=4, target_modules=ATTENTION + MLP),
    )
    yield "mistral_window", dict(
        config=new(
            transformers.MistralConfig, vocab_size=48, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=5, tie_word_embeddings=False,
            max_position_embeddings=256, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        lora=dict(r=2, lora_alpha=4, target_modules=MLP),
    )
    yield "mistral_plain", dict(
        config=old(
            "MistralForCausalLM", "mistral", vocab_size=64, hidden_size=36, intermediate_size=56, num_hidden_layers=2,
            num_attention_heads=6, num_key_value_heads=2, rms_norm_eps=1e-5, rope_theta=1000000.0, max_position_embeddings=32768,
            sliding_window=None, tie_word_embeddings=False,
        ) | {"torch_dtype": "bfloat16"},
        lora=dict(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj", "gate_proj", "down_proj"]),
        stored=torch.bfloat16,
    )
    yield "qwen2_shards", dict(
        config=new(
            transformers.Qwen2Config, vocab_size=48, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False, max_position_embeddings=256,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        lora=dict(r=2, lora_alpha=4, target_modules=ATTENTION + MLP, layers_to_transform=[1]),
        shard_size="20KB",
    )


# What PEFT adapts by `target_parameters`: the fused tensors of experts, the router, and linear layers whose names would
# mean routed experts among `target_modules`.
GATE_UP, DOWN, ROUTER = "mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"
SHARED = [f"mlp.shared_expert.{leaf}.weight" for leaf in MLP] + ["mlp.shared_expert_gate.weight"]

MIXER = ATTENTION + ["in_proj_qkvz", "in_proj_ba", "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"]


def experts(**fields):
    return dict(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=12) | fields


def moe_cases():
    """Mixtures of experts over softmax attention."""
    small = dict(vocab_size=48, hidden_size=24, num_hidden_layers=2, max_position_embeddings=256)
    yield "qwen2_moe_shared_dense_layer", dict(
        config=old(
            "Qwen2MoeForCausalLM", "qwen2_moe", **small | dict(num_hidden_layers=3), intermediate_size=40, num_attention_heads=4,
            num_key_value_heads=2, rms_norm_eps=1e-6, rope_theta=10000.0, qkv_bias=True, decoder_sparse_step=1, mlp_only_layers=[1],
            norm_topk_prob=False, router_aux_loss_coef=0.001, shared_expert_intermediate_size=20, tie_word_embeddings=False,
            sliding_window=6, use_sliding_window=True, max_window_layers=2, **experts(),
        ),
        # Shared expert and dense layer go by the same names.
        lora=dict(r=2, lora_alpha=4, target_modules=ATTENTION + MLP, target_parameters=[GATE_UP, DOWN, ROUTER]),
        full=True,
    )
    yield "qwen2_moe_fused_renormalised", dict(
        config=old(
            "Qwen2MoeForCausalLM", "qwen2_moe", **small, intermediate_size=40, num_attention_heads=2, num_key_value_heads=2,
            rms_norm_eps=1e-5, rope_theta=1000000.0, qkv_bias=False, decoder_sparse_step=1, mlp_only_layers=[], norm_topk_prob=True,
            router_aux_loss_coef=0.001, shared_expert_intermediate_size=16, tie_word_embeddings=True, **experts(num_experts_per_tok=3),
        ),
        lora=dict(r=3, lora_alpha=6, target_modules=ATTENTION, target_parameters=[DOWN]),
        layout="fused",
    )
    yield "qwen3_moe_sparse_step", dict(
        config=old(
            "Qwen3MoeForCausalLM", "qwen3_moe", **small | dict(num_hidden_layers=3), intermediate_size=40, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-6, rope_theta=10000.0, attention_bias=False, decoder_sparse_step=2,
            mlp_only_layers=[], norm_topk_prob=True, router_aux_loss_coef=0.001, tie_word_embeddings=False, **experts(),
        ),
        # Names of linear layers that are no more: PEFT makes an adapter of twice the rank of gate and up.
        lora=dict(r=2, lora_alpha=4, target_modules=ATTENTION + MLP),
        full=True,
        per_expert=True,
    )
    yield "qwen3_moe_per_expert_fused", dict(
        config=old(
            "Qwen3MoeForCausalLM", "qwen3_moe", **small, intermediate_size=40, num_attention_heads=4, num_key_value_heads=1, head_dim=6,
            rms_norm_eps=1e-6, rope_theta=10000.0, attention_bias=True, decoder_sparse_step=1, mlp_only_layers=[], norm_topk_prob=False,
            router_aux_loss_coef=0.001, tie_word_embeddings=True, **experts(num_experts=4, num_experts_per_tok=1),
        ),
        lora=dict(r=2, lora_alpha=4, target_modules=ATTENTION, target_parameters=[GATE_UP, ROUTER]),
        layout="per-expert fused",
    )


def hybrid_cases():
    """Gated delta-rule layers beside gated attention."""
    delta = dict(linear_conv_kernel_dim=4, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=6, linear_value_head_dim=8)
    small = dict(
        vocab_size=48, hidden_size=24, num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=256,
        rms_norm_eps=1e-6,
    )
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    yield "qwen3_next_interval", dict(
        config=old(
            "Qwen3NextForCausalLM", "qwen3_next", **small | delta, num_hidden_layers=3, intermediate_size=40, full_attention_interval=3,
            rope_theta=10000.0, partial_rotary_factor=0.25, decoder_sparse_step=1, mlp_only_layers=[1], norm_topk_prob=True,
            router_aux_loss_coef=0.001, shared_expert_intermediate_size=16, tie_word_embeddings=False, **experts(),
        ),
        lora=dict(r=2, lora_alpha=4, target_modules=MIXER, target_parameters=[GATE_UP, DOWN, ROUTER] + SHARED),
        full=True,
    )
    yield "qwen3_next_layer_types", dict(
        config=old(
            "Qwen3NextForCausalLM", "qwen3_next", **small | delta | dict(linear_num_value_heads=2, linear_value_head_dim=6), num_hidden_layers=2,
            intermediate_size=40, layer_types=["full_attention", "linear_attention"], rope_theta=1000.0, partial_rotary_factor=0.5,
            decoder_sparse_step=1, mlp_only_layers=[], norm_topk_prob=False, router_aux_loss_coef=0.001, shared_expert_intermediate_size=12,
            tie_word_embeddings=True, **experts(num_experts=4),
        ),
        lora=dict(r=3, lora_alpha=3, target_modules=MIXER + MLP),
        layout="fused",
        per_expert=True,
    )
    yield "qwen3_5_multimodal", dict(
        config=nested(
            "Qwen3_5ForConditionalGeneration", "qwen3_5",
            dict(model_type="qwen3_5_text", **small | delta, num_hidden_layers=3, intermediate_size=40,
                 layer_types=["linear_attention", "linear_attention", "full_attention"], rope_parameters=rope, tie_word_embeddings=False),
        ),
        lora=dict(r=2, lora_alpha=4, target_modules=MIXER + MLP),
        full=True,
    )
    yield "qwen3_5_text_equal_heads", dict(
        config=old(
            "Qwen3_5ForCausalLM", "qwen3_5_text", **small | delta | dict(linear_num_key_heads=3, linear_num_value_heads=3, linear_value_head_dim=6),
            num_hidden_layers=2, intermediate_size=40, full_attention_interval=2, rope_parameters=rope | {"partial_rotary_factor": 0.25},
            tie_word_embeddings=True,
        ),
        lora=dict(r=2, lora_alpha=4, target_modules=MIXER + MLP),
    )
    yield "qwen3_5_moe_multimodal", dict(
        config=nested(
            "Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe",
            dict(model_type="qwen3_5_moe_text", **small | delta, num_hidden_layers=2, full_attention_interval=2, rope_parameters=rope,
                 shared_expert_intermediate_size=12, router_aux_loss_coef=0.001, tie_word_embeddings=False, **experts()),
        ),
        lora=dict(r=2, lora_alpha=4, target_modules=MIXER + MLP, target_parameters=[GATE_UP, DOWN]),
        layout="fused",
        full=True,
    )
    yield "qwen3_5_moe_text", dict(
        config=old(
            "Qwen3_5MoeForCausalLM", "qwen3_5_moe_text", **small | delta | dict(linear_num_value_heads=2), num_hidden_layers=2,
            layer_types=["linear_attention", "full_attention"], rope_parameters=rope, shared_expert_intermediate_size=16,
            router_aux_loss_coef=0.001, tie_word_embeddings=True, **experts(num_experts=4, num_experts_per_tok=3),
        ),
        lora=dict(r=2, lora_alpha=4, use_rslora=True, target_modules=MIXER, target_parameters=[GATE_UP, DOWN, ROUTER] + SHARED),
    )
    # The other configuration of each name that Qwen3.5 goes by.
    yield "qwen3_5_multimodal_interval", dict(
        config=nested(
            "Qwen3_5ForConditionalGeneration", "qwen3_5",
            dict(model_type="qwen3_5_text", **small | delta | dict(linear_num_value_heads=2), num_hidden_layers=2, intermediate_size=32,
                 full_attention_interval=2, rope_parameters=rope | {"partial_rotary_factor": 0.25}, tie_word_embeddings=True),
        ),
        lora=dict(r=3, lora_alpha=3, target_modules=MIXER),
    )
    yield "qwen3_5_text_layer_types", dict(
        config=old(
            "Qwen3_5ForCausalLM", "qwen3_5_text", **small | delta, num_hidden_layers=2, intermediate_size=40,
            layer_types=["full_attention", "linear_attention"], rope_parameters=rope, tie_word_embeddings=False,
        ),
        lora=dict(r=2, lora_alpha=4, target_modules=MIXER + MLP),
    )
    yield "qwen3_5_moe_multimodal_per_expert", dict(
        config=nested(
            "Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe",
            dict(model_type="qwen3_5_moe_text", **small | delta | dict(linear_num_value_heads=2, linear_value_head_dim=6), num_hidden_layers=2,
                 layer_types=["full_attention", "linear_attention"], rope_parameters=rope | {"partial_rotary_factor": 0.25},
                 shared_expert_intermediate_size=16, router_aux_loss_coef=0.001, tie_word_embeddings=True, **experts(num_experts=4)),
        ),
        lora=dict(r=2, lora_alpha=4, target_modules=ATTENTION, target_parameters=[GATE_UP, DOWN, ROUTER]),
    )
    yield "qwen3_5_moe_text_interval", dict(
        config=old(
            "Qwen3_5MoeForCausalLM", "qwen3_5_moe_text", **small | delta, num_hidden_layers=2, full_attention_interval=2, rope_parameters=rope,
            shared_expert_intermediate_size=12, router_aux_loss_coef=0.001, tie_word_embeddings=False, **experts(),
        ),
        lora=dict(r=3, lora_alpha=6, target_modules=MIXER + MLP, target_parameters=[DOWN]),
        layout="fused",
    )


def nested(architecture, model_type, text):
    """The configuration of a model with a vision tower around a text model. The tower is a passenger: its tensors are noise."""
    return dict(
        architectures=[architecture], model_type=model_type, text_config=text, tie_word_embeddings=text["tie_word_embeddings"],
        image_token_id=45, video_token_id=46, vision_start_token_id=44, vision_end_token_id=43, torch_dtype="float32",
    )


def text_config(case):
    return case["config"].get("text_config", case["config"])


def randomise(model):
    """Weights for which every part of the forward pass shows in the logits."""
    width = model.config.hidden_size
    zero_centred = any(kind in model.config.model_type for kind in ("qwen3_next", "qwen3_5"))
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            p.data.normal_(0, 0.3)
        elif name.endswith("A_log"):
            p.data.uniform_(-2, 1)
        elif "conv1d" in name:
            p.data.normal_(0, 0.6)
        elif "norm" in name:
            p.data.normal_(0 if zero_centred and "linear_attn" not in name else 1, 0.25)
        elif "embed_tokens" in name or "lm_head" in name:
            p.data.normal_(0, 1 / math.sqrt(width))
        else:
            p.data.normal_(0, 1.2 / math.sqrt(p.shape[-1]))


def write_base(path, case):
    (path / "config.json").write_text(json.dumps(case["config"], indent=2, sort_keys=True) + "\n")
    config = AutoConfig.from_pretrained(path)
    model = AutoModelForCausalLM.from_config(getattr(config, "text_config", config), dtype=torch.float32)
    randomise(model)
    if "shard_size" in case:
        model.save_pretrained(path, max_shard_size=case["shard_size"])
        (path / "generation_config.json").unlink(missing_ok=True)
        return
    state = {k: v.to(case.get("stored", torch.float32)).contiguous() for k, v in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    state = in_layout(state, case.get("layout", "per expert"))
    if "text_config" in case["config"]:
        state = {k.replace("model.", "model.language_model.", 1): v for k, v in state.items()}
        state["model.visual.patch_embed.proj.weight"] = torch.randn(4, 3)
        state["mtp.fc.weight"] = torch.randn(8, 16)
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})


def in_layout(state, layout):
    """Experts as published checkpoints hold them: three matrices an expert, two an expert, or two for all."""
    out = {}
    for name, value in state.items():
        if ".experts." not in name or layout == "fused":
            out[name] = value
            continue
        path, leaf = name.rsplit(".", 1)
        for e, matrix in enumerate(value):
            if leaf == "gate_up_proj" and layout == "per expert":
                gate, up = matrix.chunk(2)
                out[f"{path}.{e}.gate_proj.weight"], out[f"{path}.{e}.up_proj.weight"] = gate.contiguous(), up.contiguous()
            else:
                out[f"{path}.{e}.{leaf}.weight"] = matrix.contiguous()
    return out


def load(path, dtype=torch.float32):
    """The causal model; of one with a vision tower its text part. Whatever layout the experts have, we put them in."""
    config = AutoConfig.from_pretrained(path)
    config = getattr(config, "text_config", config)
    config._attn_implementation = "eager"
    if dtype != torch.float32:
        config._experts_implementation = "eager"  # grouped products want rows of whole 16 bytes, which are wider than ours
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    state = {}
    for file in sorted(path.glob("model*.safetensors")):
        state |= load_file(file)
    state = {k.replace("model.language_model.", "model."): v.float() for k, v in state.items() if not k.startswith(("model.visual", "mtp"))}
    for name, p in model.state_dict().items():
        if name in state:
            p.copy_(state[name])
        elif ".experts." in name:
            path_, leaf = name.rsplit(".", 1)
            for e in range(len(p)):
                whole = f"{path_}.{e}.{leaf}.weight"
                parts = [whole] if whole in state else [f"{path_}.{e}.gate_proj.weight", f"{path_}.{e}.up_proj.weight"]
                p[e].copy_(torch.cat([state[part] for part in parts]))
        else:
            assert name == "lm_head.weight" and model.config.tie_word_embeddings, name
    model.tie_weights()
    return model.eval()


def write_adapter(path, case):
    model = get_peft_model(load(path), LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, bias="none", **case["lora"]))
    for name, p in model.named_parameters():
        if "lora_A" in name:
            p.data.normal_(0, 1 / math.sqrt(p.shape[1]))
        elif "lora_B" in name:
            p.data.normal_(0, 0.15)
    model.save_pretrained(path / "adapter")
    # PEFT writes where the base lay, and a set in any order.
    config = json.loads((path / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = None
    for key in ("target_modules", "target_parameters"):
        if isinstance(config[key], list):
            config[key].sort()
    (path / "adapter" / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (path / "adapter" / "README.md").unlink(missing_ok=True)


def write_per_expert(path, case):
    """The adapter's experts as an older library has them: `experts.E.gate_proj` and so on, each a pair of its own."""
    rank, torch_gen = case["lora"]["r"], torch.Generator().manual_seed(11)
    saved = load_file(path / "adapter" / "adapter_model.safetensors")
    config = text_config(case)
    hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
    sizes = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    tensors = {k: v for k, v in saved.items() if ".experts." not in k}
    for holder in sorted({k.split(".experts.")[0] + ".experts" for k in saved if ".experts." in k}):
        for expert, (leaf, (rows, columns)) in itertools.product(range(config["num_experts"]), sizes.items()):
            a, b = torch.randn(rank, columns, generator=torch_gen), torch.randn(rows, rank, generator=torch_gen)
            tensors[f"{holder}.{expert}.{leaf}.lora_A.weight"] = a / math.sqrt(columns)
            tensors[f"{holder}.{expert}.{leaf}.lora_B.weight"] = b * 0.15
    out = path / "adapter_per_expert"
    out.mkdir()
    save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = json.loads((path / "adapter" / "adapter_config.json").read_text())
    settings |= dict(target_modules=sorted(set(case["lora"]["target_modules"])), target_parameters=None, rank_pattern={}, alpha_pattern={})
    (out / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def mean_loss(logits, labels):
    return torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=-100)


def ten_steps(forward, params, labels):
    optimiser = torch.optim.AdamW(params, foreach=False, **OPTIMISER)
    losses, norms = [], []
    for _ in range(STEPS):
        optimiser.zero_grad()
        loss = mean_loss(forward(), labels)
        loss.backward()
        losses.append(loss.detach())
        norms.append(torch.nn.utils.clip_grad_norm_(params, CLIP))
        optimiser.step()
    return torch.stack(losses), torch.stack(norms)


def golden(path, case):
    gen = torch.Generator().manual_seed(7)
    vocab = text_config(case)["vocab_size"]
    ids = torch.randint(0, vocab, (ROWS, TOKENS), generator=gen)
    labels = ids.clone()
    labels[0, :6] = -100
    labels[1, torch.rand(TOKENS, generator=gen) < 0.25] = -100
    out = {"input_ids": ids, "labels": labels}

    model = PeftModel.from_pretrained(load(path), path / "adapter", is_trainable=True)
    base = model.get_base_model()
    seen = {}
    hooks = [base.model.embed_tokens.register_forward_hook(lambda m, i, o: seen.__setitem__("embed", o))]
    for n, layer in enumerate(base.model.layers):
        take = lambda m, i, o, n=n: seen.__setitem__(f"block.{n}", o[0] if isinstance(o, tuple) else o)
        hooks.append(layer.register_forward_hook(take))
        for router in (m for m in layer.mlp.modules() if type(m).__name__.endswith("TopKRouter")):
            hooks.append(router.register_forward_hook(lambda m, i, o, n=n: seen.__setitem__(f"router.{n}", o[0])))
    hooks.append(base.model.norm.register_forward_hook(lambda m, i, o: seen.__setitem__("final", o)))
    result = model(input_ids=ids, labels=labels, use_cache=False)
    for h in hooks:
        h.remove()
    out |= {k: v.detach() for k, v in seen.items()}
    loss = mean_loss(result.logits, labels)
    assert torch.allclose(loss, result.loss, atol=1e-6)
    out["logits"], out["loss"] = result.logits.detach(), loss.detach().reshape(1)
    loss.backward()
    adapter = {
        n.removeprefix("base_model.model.").replace(".default.", "."): p for n, p in model.named_parameters() if p.requires_grad
    }
    saved = load_file(path / "adapter" / "adapter_model.safetensors")
    assert set(saved) == {"base_model.model." + k for k in adapter}, "every adapter tensor is trained"
    out |= {f"grad.{k}": p.grad.clone() for k, p in adapter.items()}
    if any(k.startswith("router.") for k in out):
        result = model(input_ids=ids, use_cache=False, output_router_logits=True)
        total = mean_loss(result.logits, labels) + AUX_FACTOR * result.aux_loss
        out["aux_loss"] = result.aux_loss.detach().reshape(1)
        out |= {f"auxgrad.{k}": g for k, g in zip(adapter, torch.autograd.grad(total, list(adapter.values())))}
    with torch.no_grad():
        with model.disable_adapter():
            out["base_logits"] = model(input_ids=ids, use_cache=False).logits
        for j, n in enumerate(SEPARATE):
            row = torch.randint(0, vocab, (1, n), generator=gen)
            out[f"sep.ids.{j}"] = row[0]
            out[f"sep.logits.{j}"] = model(input_ids=row, use_cache=False).logits[0]
    forward = lambda: model(input_ids=ids, use_cache=False).logits
    out["losses"], out["grad_norms"] = ten_steps(forward, list(adapter.values()), labels)
    out |= {f"after.{k}": p.detach() for k, p in adapter.items()}

    merged = PeftModel.from_pretrained(load(path), path / "adapter").merge_and_unload()
    state = merged.state_dict()
    last = text_config(case)["num_hidden_layers"] - 1
    before = load(path).state_dict()
    changed = sorted(n for n in state if (state[n] != before[n]).any())
    choice = [f"model.layers.0.self_attn.q_proj.weight", f"model.layers.{last}.mlp.down_proj.weight"]
    choice = choice if all(n in state for n in choice) else [changed[0], changed[-1]]
    for name in choice + [n for n in changed if ".experts." in n or ".mlp.gate." in n]:
        out["merged." + name] = state[name]
    with torch.no_grad():
        out["merged_logits"] = merged(input_ids=ids, use_cache=False).logits

    if case.get("full"):
        plain = load(path)
        params = dict(plain.named_parameters())
        mean_loss(plain(input_ids=ids, use_cache=False).logits, labels).backward()
        out |= {f"fullgrad.{k}": p.grad.clone() for k, p in params.items()}
        forward = lambda: plain(input_ids=ids, use_cache=False).logits
        out["full_losses"], out["full_grad_norms"] = ten_steps(forward, list(params.values()), labels)
    if case.get("per_expert"):
        write_per_expert(path, case)
        older = PeftModel.from_pretrained(load(path), path / "adapter_per_expert")
        with torch.no_grad():
            out["per_expert_logits"] = older(input_ids=ids, use_cache=False).logits
        assert (out["per_expert_logits"] - out["base_logits"]).std() > 0.1 and (out["per_expert_logits"] - out["logits"]).std() > 0.1
    save_file({k: v.contiguous().clone() for k, v in out.items()}, path / "golden.safetensors")
    return out


def summary(name, path, out):
    grads = [v.norm().item() for k, v in out.items() if k.startswith("grad.")]
    size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    full = out.get("full_losses")
    return (
        f"| {name} | {size / 1024:.0f} | {out['logits'].std():.2f} | {(out['logits'] - out['base_logits']).std():.2f} "
        f"| {(out['logits'] - out['merged_logits']).abs().max():.0e} | {out['losses'][0]:.4f} | {out['losses'][-1]:.4f} "
        f"| {out['grad_norms'][0]:.3f} | {len(grads)} | {min(grads):.1e} | {max(grads):.1e} "
        f"| {'' if full is None else f'{full[0]:.4f} to {full[-1]:.4f}'} |"
    )


HEADER = """\
| case | KiB | std of logits | std of adapted - base | max of adapted - merged | loss | after ten steps | gradient norm | adapter tensors | least gradient | largest | full fine-tuning |
|---|---|---|---|---|---|---|---|---|---|---|---|"""


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("case", nargs="*", help="only these")
    wanted = ap.parse_args().case
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    lines = []
    for seed, (name, case) in enumerate(itertools.chain(cases(), moe_cases(), hybrid_cases())):
        if wanted and name not in wanted:
            continue
        torch.manual_seed(100 + seed)
        path = OUT / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        write_base(path, case)
        write_adapter(path, case)
        lines.append(summary(name, path, golden(path, case)))
    print("\n".join([HEADER] + lines))
    if not wanted:
        text = [f"Made by `scripts/make_goldens.py` (which says what each tensor is) with torch {torch.__version__.split('+')[0]},"]
        import peft

        text.append(f"transformers {transformers.__version__} and PEFT {peft.__version__}.")
        text.append("`bf16.json`: how far those are in bf16 from themselves in f32, by `scripts/make_bf16_goldens.py`.\n")
        (OUT / "README.md").write_text("# Golden files\n\n" + "\n".join(text) + "\n" + "\n".join([HEADER] + lines) + "\n")


if __name__ == "__main__":
    main()
