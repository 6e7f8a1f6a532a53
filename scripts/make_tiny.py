#!/usr/bin/env python3
"""Makes the models of datasets/, each with its tokenizer and chat template:

    tiny-qwen3       1.2 million parameters, 2,048 tokens
    tiny-qwen3_5     a hybrid in the published form: three gated delta-rule layers to one of attention, below a vision tower,
                     beside a predictor of further tokens; 512 tokens
    tiny-qwen3_moe   sixteen experts, four of them active, three matrices an expert as published; 512 tokens

    python scripts/make_tiny.py [MODEL ...]          everything; model.safetensors is random and to be trained afterwards
    python scripts/make_tiny.py --keep [MODEL ...]   everything but model.safetensors

Needs `tokenizers` and `pyarrow`. The byte-level BPE is trained on the files of datasets/ that make_datasets.py wrote. The same
inputs give the same bytes. The committed model.safetensors are these starts after qwen-tune itself has trained them
(recipes/tiny-pretrain.toml).
"""
import argparse
import functools
import json
import pathlib
import struct

import numpy as np
import pyarrow.parquet as pq
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

DATA = pathlib.Path(__file__).resolve().parents[1] / "datasets"

SEED = 20261122

# Contractions, words with one leading mark, single digits, runs of marks, line ends, blanks: the split of the Qwen tokenizers.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Added tokens that survive decoding, as in Qwen3.
VISIBLE = ["<tool_call>", "</tool_call>", "<think>", "</think>"]

TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- 'Functions you may call, one a line:\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' + (tool | tojson) }}
    {%- endfor %}
    {{- '\\n</tools>\\nA call is written as\\n<tool_call>\\n{"name": NAME, "arguments": OBJECT}\\n</tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- if not loop.first %}
            {{- raise_exception('only the first message may be a system message') }}
        {%- endif %}
    {%- elif message.role == 'user' %}
        {{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if message.reasoning_content %}
            {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}
        {%- endif %}
        {%- if message.content %}
            {{- message.content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- set call = call.function or call %}
            {%- if message.content or not loop.first %}
                {{- '\\n' }}
            {%- endif %}
            {{- '<tool_call>\\n{"name": ' + (call.name | tojson) + ', "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- else %}
        {{- raise_exception('unknown role: ' + message.role) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""


def corpus():
    for row in pq.read_table(DATA / "shakespeare.parquet").to_pylist():
        yield row["text"]
    for row in pq.read_table(DATA / "shakespeare_chat.parquet").to_pylist():
        for message in row["messages"]:
            yield message["role"] + "\n" + message["content"]
    for row in pq.read_table(DATA / "tools_bfcl_train.parquet").to_pylist():
        yield row["tools"]
        for message in row["messages"]:
            yield message["content"]
            for call in message["tool_calls"] or []:
                yield json.dumps({"name": call["function"]["name"], "arguments": call["function"]["arguments"]})


@functools.cache
def tokenizer(vocab):
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - len(SPECIAL) - len(VISIBLE),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tok.train_from_iterator(corpus(), trainer)
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tok.add_tokens([AddedToken(t, special=False, normalized=False) for t in VISIBLE])
    assert tok.get_vocab_size() == vocab, tok.get_vocab_size()
    return tok


def tokenizer_config(tok):
    added = {
        str(tok.token_to_id(t)): {
            "content": t,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": t in SPECIAL,
        }
        for t in SPECIAL + VISIBLE
    }
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 1024,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }


def generation_config(tok):
    return {
        "bos_token_id": tok.token_to_id("<|endoftext|>"),
        "do_sample": True,
        "eos_token_id": [tok.token_to_id("<|im_end|>"), tok.token_to_id("<|endoftext|>")],
        "pad_token_id": tok.token_to_id("<|endoftext|>"),
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.8,
    }


class Qwen3:
    """`tokens` are the tokenizer's, `vocab` the rows of the embedding."""

    tokens, vocab, hidden, layers, heads, kv_heads, head_dim, inner = 2048, 2048, 128, 5, 4, 2, 32, 384
    architecture = "Qwen3ForCausalLM"

    def config(self, tok):
        return {
            "architectures": [self.architecture],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": tok.token_to_id("<|endoftext|>"),
            "eos_token_id": tok.token_to_id("<|im_end|>"),
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": 0.02,
            "intermediate_size": self.inner,
            "max_position_embeddings": 1024,
            "max_window_layers": self.layers,
            "model_type": "qwen3",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 10000,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": self.vocab,
        }

    def shapes(self):
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        for i in range(self.layers):
            yield from self.layer(f"model.layers.{i}.")
        yield "model.norm.weight", (self.hidden,)

    def layer(self, p):
        yield p + "input_layernorm.weight", (self.hidden,)
        yield from self.mlp(p + "mlp.", self.inner)
        yield p + "post_attention_layernorm.weight", (self.hidden,)
        yield from self.attention(p + "self_attn.", self.heads * self.head_dim)

    def mlp(self, p, inner):
        yield p + "down_proj.weight", (self.hidden, inner)
        yield p + "gate_proj.weight", (inner, self.hidden)
        yield p + "up_proj.weight", (inner, self.hidden)

    def attention(self, p, query_rows):
        kv = self.kv_heads * self.head_dim
        yield p + "k_norm.weight", (self.head_dim,)
        yield p + "k_proj.weight", (kv, self.hidden)
        yield p + "o_proj.weight", (self.hidden, self.heads * self.head_dim)
        yield p + "q_norm.weight", (self.head_dim,)
        yield p + "q_proj.weight", (query_rows, self.hidden)
        yield p + "v_proj.weight", (kv, self.hidden)

    def initial(self, name, shape, rng):
        if "norm" in name:
            return np.ones(shape, np.float32)
        return (rng.standard_normal(shape) * 0.02).astype(np.float32)


class Qwen3Moe(Qwen3):
    tokens, vocab, hidden, layers, heads, kv_heads, head_dim, inner = 512, 512, 48, 3, 4, 2, 16, 96
    experts, active, expert_inner = 16, 4, 12
    architecture = "Qwen3MoeForCausalLM"

    def config(self, tok):
        return super().config(tok) | {
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "model_type": "qwen3_moe",
            "moe_intermediate_size": self.expert_inner,
            "norm_topk_prob": True,
            "num_experts": self.experts,
            "num_experts_per_tok": self.active,
            "output_router_logits": False,
            "router_aux_loss_coef": 0.001,
            "tie_word_embeddings": False,
        }

    def shapes(self):
        yield "lm_head.weight", (self.vocab, self.hidden)
        yield from super().shapes()

    def mlp(self, p, inner):
        for e in range(self.experts):
            yield from super().mlp(f"{p}experts.{e}.", self.expert_inner)
        yield p + "gate.weight", (self.experts, self.hidden)


class Qwen35(Qwen3):
    # Four rows for the marks of pictures, which the tokenizer does not know: there are no pictures.
    tokens, vocab, hidden, layers, heads, kv_heads, head_dim, inner = 512, 516, 48, 4, 2, 1, 32, 96
    key_heads, value_heads, key_dim, value_dim, kernel = 2, 4, 16, 16, 4
    # The tower: width, channels inside its feed-forward part, pixels of a patch's edge, frames, patches merged, positions.
    sight, sight_inner, patch, frames, merged, places = 8, 16, 4, 2, 2, 16

    def config(self, tok):
        base = super().config(tok)
        shared = ["attention_bias", "attention_dropout", "eos_token_id", "head_dim", "hidden_act", "hidden_size", "initializer_range"]
        shared += ["intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers", "num_key_value_heads"]
        shared += ["rms_norm_eps", "tie_word_embeddings", "use_cache", "vocab_size"]
        text = {name: base[name] for name in shared} | {
            "attn_output_gate": True,
            "dtype": "bfloat16",
            "full_attention_interval": 4,
            "layer_types": [self.kind(i) for i in range(self.layers)],
            "linear_conv_kernel_dim": self.kernel,
            "linear_key_head_dim": self.key_dim,
            "linear_num_key_heads": self.key_heads,
            "linear_num_value_heads": self.value_heads,
            "linear_value_head_dim": self.value_dim,
            "mamba_ssm_dtype": "float32",
            "model_type": "qwen3_5_text",
            "mtp_num_hidden_layers": 1,
            "mtp_use_dedicated_embeddings": False,
            "rope_parameters": {
                "mrope_interleaved": True,
                "mrope_section": [2, 1, 1],
                "partial_rotary_factor": 0.25,
                "rope_theta": 10000,
                "rope_type": "default",
            },
        }
        vision = {
            "deepstack_visual_indexes": [],
            "depth": 1,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": self.sight,
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": self.sight_inner,
            "model_type": "qwen3_5",
            "num_heads": 2,
            "num_position_embeddings": self.places,
            "out_hidden_size": self.hidden,
            "patch_size": self.patch,
            "spatial_merge_size": self.merged,
            "temporal_patch_size": self.frames,
        }
        return {
            "architectures": ["Qwen3_5ForConditionalGeneration"],
            "image_token_id": self.tokens,
            "model_type": "qwen3_5",
            "text_config": text,
            "tie_word_embeddings": True,
            "video_token_id": self.tokens + 1,
            "vision_config": vision,
            "vision_end_token_id": self.tokens + 2,
            "vision_start_token_id": self.tokens + 3,
        }

    def kind(self, layer):
        return "full_attention" if layer % 4 == 3 else "linear_attention"

    def shapes(self):
        yield "model.language_model.embed_tokens.weight", (self.vocab, self.hidden)
        for i in range(self.layers):
            p = f"model.language_model.layers.{i}."
            if self.kind(i) == "full_attention":
                yield from self.layer(p)
                continue
            yield p + "input_layernorm.weight", (self.hidden,)
            yield from self.delta(p + "linear_attn.")
            yield from self.mlp(p + "mlp.", self.inner)
            yield p + "post_attention_layernorm.weight", (self.hidden,)
        yield "model.language_model.norm.weight", (self.hidden,)
        yield from self.tower("model.visual.")
        yield "mtp.fc.weight", (self.hidden, 2 * self.hidden)
        yield from self.layer("mtp.layers.0.")
        for name in "norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden":
            yield f"mtp.{name}.weight", (self.hidden,)

    def attention(self, p, query_rows):
        # Each head's query is followed by its gate.
        yield from super().attention(p, 2 * query_rows)

    def delta(self, p):
        keys, values = self.key_heads * self.key_dim, self.value_heads * self.value_dim
        yield p + "A_log", (self.value_heads,)
        yield p + "conv1d.weight", (2 * keys + values, 1, self.kernel)
        yield p + "dt_bias", (self.value_heads,)
        yield p + "in_proj_a.weight", (self.value_heads, self.hidden)
        yield p + "in_proj_b.weight", (self.value_heads, self.hidden)
        yield p + "in_proj_qkv.weight", (2 * keys + values, self.hidden)
        yield p + "in_proj_z.weight", (values, self.hidden)
        yield p + "norm.weight", (self.value_dim,)
        yield p + "out_proj.weight", (self.hidden, values)

    def tower(self, p):
        def linear(name, out, into):
            yield f"{name}.bias", (out,)
            yield f"{name}.weight", (out, into)

        def norm(name):
            yield f"{name}.bias", (self.sight,)
            yield f"{name}.weight", (self.sight,)

        block, wide = p + "blocks.0.", self.sight * self.merged**2
        yield from linear(block + "attn.proj", self.sight, self.sight)
        yield from linear(block + "attn.qkv", 3 * self.sight, self.sight)
        yield from linear(block + "mlp.linear_fc1", self.sight_inner, self.sight)
        yield from linear(block + "mlp.linear_fc2", self.sight, self.sight_inner)
        yield from norm(block + "norm1")
        yield from norm(block + "norm2")
        yield from linear(p + "merger.linear_fc1", wide, wide)
        yield from linear(p + "merger.linear_fc2", self.hidden, wide)
        yield from norm(p + "merger.norm")
        yield p + "patch_embed.proj.bias", (self.sight,)
        yield p + "patch_embed.proj.weight", (self.sight, 3, self.frames, self.patch, self.patch)
        yield p + "pos_embed.weight", (self.places, self.sight)

    def initial(self, name, shape, rng):
        if name.endswith("A_log"):
            return np.log(rng.uniform(1, 16, shape)).astype(np.float32)
        if name.endswith("conv1d.weight"):
            return rng.uniform(-0.5, 0.5, shape).astype(np.float32)
        if name.endswith("dt_bias"):
            return np.ones(shape, np.float32)
        if name.endswith(".bias"):
            return np.zeros(shape, np.float32)
        # Weights of norms are offsets from one, but for the gated norm's and the tower's.
        if "norm" in name and "visual" not in name and not name.endswith("linear_attn.norm.weight"):
            return np.zeros(shape, np.float32)
        return super().initial(name, shape, rng)


MODELS = {"tiny-qwen3": Qwen3(), "tiny-qwen3_5": Qwen35(), "tiny-qwen3_moe": Qwen3Moe()}


def bf16(values):
    """The nearest bf16 of each f32, ties to even."""
    bits = values.astype("<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def write_weights(model, path):
    rng = np.random.Generator(np.random.PCG64(SEED))
    header, body, at, total = {"__metadata__": {"format": "pt"}}, [], 0, 0
    for name, shape in model.shapes():
        values = model.initial(name, shape, rng)
        data = bf16(values)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + len(data)]}
        body.append(data)
        at += len(data)
        total += values.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(body))
    print(f"{path.parent.name}: {total:,} parameters, {path.stat().st_size:,} bytes")


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model", nargs="*", help="only these")
    ap.add_argument("--keep", action="store_true", help="leave model.safetensors as it is")
    args = ap.parse_args()
    if unknown := set(args.model) - set(MODELS):
        ap.error(f"no such model: {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")
    for name in args.model or MODELS:
        model, out = MODELS[name], DATA / name
        out.mkdir(parents=True, exist_ok=True)
        tok = tokenizer(model.tokens)
        tok.save(str(out / "tokenizer.json"))
        write_json(out / "tokenizer_config.json", tokenizer_config(tok))
        write_json(out / "config.json", model.config(tok))
        write_json(out / "generation_config.json", generation_config(tok))
        if not args.keep:
            write_weights(model, out / "model.safetensors")


if __name__ == "__main__":
    main()
