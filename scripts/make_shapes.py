#!/usr/bin/env python3
"""Writes random models of chosen shapes, to measure speed and memory on:

    python scripts/make_shapes.py SHAPE OUT [--dtype bf16]      a model
    python scripts/make_shapes.py --tokens ROWSxLENGTH MODEL OUT.parquet    random rows of its vocabulary
    python scripts/make_shapes.py --cast MODEL OUT [--dtype bf16]           another model, its numbers rounded

    smollm2-135m      SmolLM2-135M as qwen2: 576 wide, 30 layers, 49,152 tokens
    qwen3-0.6b        Qwen3-0.6B: 1,024 wide, 28 layers, 151,936 tokens
    qwen3_5-tiny      six gated delta-rule layers and two of attention, 256 wide, heads of 128 as in Qwen3.5
    qwen3_moe-small   Qwen3-30B-A3B at a quarter of its widths: 512 wide, 128 experts of 192, eight of them active, four layers

Matrices are normal with a standard deviation of 0.02, weights of norms one. The same shape gives the same numbers, and its bf16 form
those of the f32 form, rounded. The tokenizer is that of datasets/tiny-qwen3, whatever the vocabulary.
"""
import argparse
import json
import pathlib
import shutil
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from make_tiny import DATA, Qwen3, Qwen3Moe, Qwen35, bf16
from tokenizers import Tokenizer

SEED = 20261128
TOKENIZER = DATA / "tiny-qwen3"
WIDTHS = {"f32": 4, "bf16": 2}


class Smollm2(Qwen3):
    vocab, hidden, layers, heads, kv_heads, head_dim, inner = 49152, 576, 30, 9, 3, 64, 1536
    architecture = "Qwen2ForCausalLM"

    def config(self, tok):
        return super().config(tok) | {"model_type": "qwen2", "rope_theta": 100000}

    def attention(self, p, query_rows):
        for name, shape in super().attention(p, query_rows):
            if "norm" in name:
                continue
            yield name, shape
            if "o_proj" not in name:
                yield name.replace("weight", "bias"), shape[:1]

    def initial(self, name, shape, rng):
        return np.zeros(shape, np.float32) if name.endswith("bias") else super().initial(name, shape, rng)


class Qwen3Small(Qwen3):
    vocab, hidden, layers, heads, kv_heads, head_dim, inner = 151936, 1024, 28, 16, 8, 128, 3072


class Qwen3MoeSmall(Qwen3Moe):
    vocab, hidden, layers, heads, kv_heads, head_dim, inner = 2048, 512, 4, 8, 1, 128, 1536
    experts, active, expert_inner = 128, 8, 192


class Qwen35Text(Qwen35):
    """Without the tower and the predictor of further tokens, under the names of the text class."""

    vocab, hidden, layers, heads, kv_heads, head_dim, inner = 2048, 256, 8, 4, 2, 128, 768
    key_heads, value_heads, key_dim, value_dim = 2, 4, 128, 128

    def config(self, tok):
        text = super().config(tok)["text_config"]
        text["rope_parameters"] |= {"mrope_section": [6, 5, 5]}  # half of the quarter of a head that turns
        return text | {"architectures": ["Qwen3_5ForCausalLM"]}

    def shapes(self):
        for name, shape in super().shapes():
            if name.startswith("model.language_model."):
                yield name.replace("language_model.", ""), shape


SHAPES = {"smollm2-135m": Smollm2(), "qwen3-0.6b": Qwen3Small(), "qwen3_5-tiny": Qwen35Text(), "qwen3_moe-small": Qwen3MoeSmall()}


def write(out, entries, dtype):
    """`model.safetensors` of (name, shape, a function that gives the values), one tensor in memory at a time."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, _ in entries:
        size = int(np.prod(shape)) * WIDTHS[dtype]
        header[name] = {"dtype": dtype.upper(), "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(out / "model.safetensors", "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for _, _, values in entries:
            f.write(bf16(values()) if dtype == "bf16" else values().astype("<f4").tobytes())
    print(f"{out}: {at / 1e6:.0f} MB")


def write_config(out, config, dtype):
    kind = {"f32": "float32", "bf16": "bfloat16"}[dtype]
    config |= {key: kind for key in ("dtype", "torch_dtype") if key in config}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def make(shape, out, dtype):
    model = SHAPES[shape]
    out.mkdir(parents=True)
    for file in TOKENIZER.glob("*tok*.json"):
        shutil.copy(file, out)
    write_config(out, model.config(Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))), dtype)
    rng = np.random.Generator(np.random.PCG64(SEED))
    write(out, [(name, size, lambda n=name, s=size: model.initial(n, s, rng)) for name, size in model.shapes()], dtype)


def cast(model, out, dtype):
    """A model of one file, f32 or bf16, with everything else beside it."""
    out.mkdir(parents=True)
    for file in model.iterdir():
        if file.suffix == ".json" and file.name != "config.json":
            shutil.copy(file, out)
    write_config(out, json.loads((model / "config.json").read_text()), dtype)
    data = np.memmap(model / "model.safetensors", np.uint8, "r")
    start = 8 + int(data[:8].view("<u8")[0])
    entries = []
    for name, entry in json.loads(data[8:start].tobytes()).items():
        if name != "__metadata__":
            begin, end = (start + at for at in entry["data_offsets"])

            def values(raw=data[begin:end], kind=entry["dtype"]):
                if kind == "F32":
                    return np.frombuffer(raw.tobytes(), "<f4")
                assert kind == "BF16", kind
                return (np.frombuffer(raw.tobytes(), "<u2").astype("<u4") << 16).view("<f4")

            entries.append((name, entry["shape"], values))
    write(out, entries, dtype)


def tokens(size, model, out):
    """Ordinary tokens only: half a tool call or thought is a mistake in data that no run starts with."""
    rows, length = map(int, size.split("x"))
    config = json.loads((model / "config.json").read_text())
    vocab = (config.get("text_config") or config)["vocab_size"]
    added = [one["id"] for one in json.loads((model / "tokenizer.json").read_text())["added_tokens"]]
    ordinary = np.setdiff1d(np.arange(vocab), added)
    ids = np.random.Generator(np.random.PCG64(SEED)).choice(ordinary, (rows, length))
    pq.write_table(pa.table({"input_ids": pa.array(ids.tolist(), pa.list_(pa.int32()))}), out, compression="zstd", row_group_size=64)
    print(f"{out}: {rows} rows of {length} tokens of {len(ordinary)}")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("source", metavar="SHAPE|MODEL")
    ap.add_argument("out", type=pathlib.Path)
    ap.add_argument("--dtype", choices=WIDTHS, default="f32")
    ap.add_argument("--cast", action="store_true")
    ap.add_argument("--tokens", metavar="ROWSxLENGTH")
    args = ap.parse_args()
    if args.tokens:
        tokens(args.tokens, pathlib.Path(args.source), args.out)
    elif args.cast:
        cast(pathlib.Path(args.source), args.out, args.dtype)
    elif args.source in SHAPES:
        make(args.source, args.out, args.dtype)
    else:
        ap.error(f"no shape `{args.source}`; there are {', '.join(SHAPES)}")


if __name__ == "__main__":
    main()
