#!/usr/bin/env python3
"""Writes a synthetic checkpoint that is larger than memory, and an adapter for it, to see what streaming takes:

    python scripts/make_large.py dense OUT       layers of Qwen3-14B in bf16; shards of 4 GB
    python scripts/make_large.py experts OUT     layers of Qwen3-235B-A22B in bf16, the experts of a layer in two tensors, one of
                                                 them 3.2 GB

    qwen-tune export --model OUT/base --adapter OUT/adapter --to merged --out MERGED

As many layers as make `--gigabytes`. The base is all zeros in sparse files, which take next to no disk; what is merged into it takes
all of it. `--check MERGED` holds a sample of that against the product of the adapter's factors.
"""
import argparse
import json
import pathlib
import struct

import numpy as np

RANK, ALPHA, SHARD = 16, 32, 4e9
WIDTHS = {"F32": 4, "BF16": 2}
DENSE = dict(
    architectures=["Qwen3ForCausalLM"], model_type="qwen3", hidden_size=5120, intermediate_size=17408, num_attention_heads=40,
    num_key_value_heads=8, max_window_layers=40,
)
EXPERTS = dict(
    architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", hidden_size=4096, intermediate_size=12288, num_attention_heads=64,
    num_key_value_heads=4, max_window_layers=94, decoder_sparse_step=1, mlp_only_layers=[], moe_intermediate_size=1536,
    norm_topk_prob=True, num_experts=128, num_experts_per_tok=8, router_aux_loss_coef=0.001,
)
SHARED = dict(
    attention_bias=False, attention_dropout=0.0, head_dim=128, hidden_act="silu", max_position_embeddings=40960, rms_norm_eps=1e-6,
    rope_theta=1000000, rope_scaling=None, sliding_window=None, tie_word_embeddings=False, use_sliding_window=False, vocab_size=151936,
)
ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]


def layer(config, index):
    hidden, dim = config["hidden_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    p = f"model.layers.{index}."
    yield p + "input_layernorm.weight", (hidden,)
    if "num_experts" in config:
        experts, inner = config["num_experts"], config["moe_intermediate_size"]
        yield p + "mlp.experts.down_proj", (experts, hidden, inner)
        yield p + "mlp.experts.gate_up_proj", (experts, 2 * inner, hidden)
        yield p + "mlp.gate.weight", (experts, hidden)
    else:
        inner = config["intermediate_size"]
        yield p + "mlp.down_proj.weight", (hidden, inner)
        yield p + "mlp.gate_proj.weight", (inner, hidden)
        yield p + "mlp.up_proj.weight", (inner, hidden)
    yield p + "post_attention_layernorm.weight", (hidden,)
    yield p + "self_attn.k_norm.weight", (dim,)
    yield p + "self_attn.k_proj.weight", (kv, hidden)
    yield p + "self_attn.o_proj.weight", (hidden, q)
    yield p + "self_attn.q_norm.weight", (dim,)
    yield p + "self_attn.q_proj.weight", (q, hidden)
    yield p + "self_attn.v_proj.weight", (kv, hidden)


def size(shape, dtype):
    return int(np.prod(shape, dtype=np.int64)) * WIDTHS[dtype]


def tensors(config, dtype, gigabytes):
    """Names and shapes, and how many layers they are."""
    matrix = (config["vocab_size"], config["hidden_size"])
    ends = [("model.embed_tokens.weight", matrix), ("lm_head.weight", matrix), ("model.norm.weight", matrix[1:])]
    left = gigabytes * 1e9 - sum(size(shape, dtype) for _, shape in ends)
    each = sum(size(shape, dtype) for _, shape in layer(config, 0))
    layers = max(1, int(-(-left // each)))
    return ends + [one for index in range(layers) for one in layer(config, index)], layers


def header(entries, dtype):
    """The header of a file of these tensors, and the bytes of data behind it."""
    at, out = 0, {"__metadata__": {"format": "pt"}}
    for name, shape in entries:
        out[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size(shape, dtype)]}
        at += size(shape, dtype)
    text = json.dumps(out, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, at


def write_base(out, config, dtype, gigabytes):
    entries, layers = tensors(config, dtype, gigabytes)
    shards, filled = [[]], 0
    for entry in entries:
        if shards[-1] and filled + size(entry[1], dtype) > SHARD:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += size(entry[1], dtype)
    out.mkdir(parents=True)
    places, total = {}, 0
    for index, shard in enumerate(shards):
        file = f"model-{index + 1:05}-of-{len(shards):05}.safetensors"
        head, data = header(shard, dtype)
        with open(out / file, "wb") as f:
            f.write(head)
            f.truncate(len(head) + data)
        places |= {name: file for name, _ in shard}
        total += data
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    (out / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}, indent=2) + "\n")
    largest = max(size(shape, dtype) for _, shape in entries)
    print(f"{out}: {total / 1e9:.1f} GB in {len(shards)} files, {layers} layers; largest tensor {largest / 1e9:.1f} GB")
    return entries


def factors(name, shape):
    """A and B of a module, the same ones every time."""
    rng = np.random.Generator(np.random.PCG64(sum(name.encode())))
    a = rng.standard_normal((RANK, shape[1]), dtype=np.float32) / np.float32(shape[1] ** 0.5)
    return a, rng.standard_normal((shape[0], RANK), dtype=np.float32) * np.float32(0.1)


def adapted(entries, modules):
    for name, shape in entries:
        path = name.removesuffix(".weight")
        if path.rsplit(".", 1)[-1] in modules and len(shape) == 2:
            yield path, shape


def write_adapter(out, entries, modules):
    out.mkdir(parents=True)
    plan = []
    for path, shape in adapted(entries, modules):
        plan.append((f"base_model.model.{path}.lora_A.weight", (RANK, shape[1])))
        plan.append((f"base_model.model.{path}.lora_B.weight", (shape[0], RANK)))
    with open(out / "adapter_model.safetensors", "wb") as f:
        f.write(header(plan, "F32")[0])
        for path, shape in adapted(entries, modules):
            for factor in factors(path, shape):
                f.write(factor.tobytes())
        print(f"{out}: {f.tell() / 1e6:.0f} MB")
    config = dict(base_model_name_or_path=None, bias="none", lora_alpha=ALPHA, lora_dropout=0.0, peft_type="LORA", r=RANK)
    config |= dict(target_modules=modules, task_type="CAUSAL_LM")
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def sample(file, entry, start, row):
    """A row of a tensor's last axis."""
    columns, width = entry["shape"][-1], WIDTHS[entry["dtype"]]
    file.seek(start + entry["data_offsets"][0] + row * columns * width)
    raw = file.read(columns * width)
    return np.frombuffer(raw, "<f4") if width == 4 else (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")


def check(merged, modules):
    """The first and last row of every merged tensor, and of every sixteenth other one, against what they have to be."""
    places = json.loads((merged / "model.safetensors.index.json").read_text())["weight_map"]
    seen = 0
    for name in sorted(set(places.values())):
        with open(merged / name, "rb") as file:
            start = 8 + struct.unpack("<Q", file.read(8))[0]
            entries = {k: v for k, v in json.loads(file.read(start - 8)).items() if k != "__metadata__"}
            assert (merged / name).stat().st_size == start + max(entry["data_offsets"][1] for entry in entries.values()), name
            products = dict(adapted([(k, v["shape"]) for k, v in entries.items()], modules))
            for number, (tensor, entry) in enumerate(entries.items()):
                module, shape = tensor.removesuffix(".weight"), entry["shape"]
                if module not in products and number % 16:
                    continue
                a, b = factors(module, shape) if module in products else (None, None)
                for row in 0, int(np.prod(shape)) // shape[-1] - 1:
                    exact = np.zeros(shape[-1]) if a is None else ALPHA / RANK * (b[row].astype(np.float64) @ a)
                    # Half of the last place of the stored type, and a little for the sum in f32.
                    allowed = np.abs(exact) * 2.0 ** (-23 if entry["dtype"] == "F32" else -8) + 1e-6
                    assert (np.abs(sample(file, entry, start, row) - exact) <= allowed).all(), (tensor, row)
                    seen += 1
    print(f"{merged}: {seen} rows are as they have to be")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("kind", choices=["dense", "experts"])
    ap.add_argument("out", type=pathlib.Path)
    ap.add_argument("--gigabytes", type=float, default=20.0)
    ap.add_argument("--dtype", choices=WIDTHS, default="BF16")
    ap.add_argument("--check", type=pathlib.Path, metavar="MERGED", help="write nothing; look at this merged model")
    args = ap.parse_args()
    modules = ATTENTION if args.kind == "experts" else ATTENTION + MLP
    if args.check:
        check(args.check, modules)
        return
    config = SHARED | (EXPERTS if args.kind == "experts" else DENSE)
    config["torch_dtype"] = {"F32": "float32", "BF16": "bfloat16"}[args.dtype]
    entries = write_base(args.out / "base", config, args.dtype, args.gigabytes)
    write_adapter(args.out / "adapter", entries, modules)


if __name__ == "__main__":
    main()
