#!/usr/bin/env python3
"""The torch side of scripts/gpu.sh: what the machine's own libraries reach, and LoRA training with torch + transformers + PEFT.

    python scripts/bench_gpu_torch.py ceilings OUT.json [--device cpu]        a large copy and bf16 products, by torch (cuBLAS)
    python scripts/bench_gpu_torch.py shape NAME DIR OUT.json [OPTION..]      writes a random model of that shape, its adapter and
                                                                              its tokens into DIR, and trains it: plain, strong

Both sides of the comparison start from what `shape` wrote: DIR/model.safetensors, DIR/adapter, DIR/tokens.parquet. The base is bf16 on
a GPU (f32 on a CPU), adapters f32 under bf16 autocast, which is what the trainer of transformers does with `bf16=True`. A timed step is
copy in, forward, loss, backward, clip, AdamW, zero; each is timed by device events, with one wait at the end of all. `plain` is that with
SDPA and the loss of transformers; `strong` adds torch.compile of every layer, the loss fused with the head (Liger where it can be imported,
else in chunks) and the fused AdamW that plain has too on a GPU. Memory is what the allocator held at most and, on a GPU, what
the card says is in use before anything is freed, context included, beyond what was before: that number can be held against any other program's.
"""
import argparse
import gc
import importlib.util
import json
import os
import pathlib
import shutil
import statistics
import struct
import subprocess
import sys
import time

START = time.perf_counter()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

import torch

TOKENIZER = pathlib.Path(__file__).resolve().parents[1] / "datasets" / "tiny-qwen3"
SEED = 20261128
QWEN3, QWEN3_5 = 151936, 248320


def dense(hidden, layers, heads, kv_heads, inner, tied, vocab=QWEN3, head_dim=128):
    return {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "head_dim": head_dim, "intermediate_size": inner, "vocab_size": vocab, "tie_word_embeddings": tied,
        "max_position_embeddings": 32768,
    }


def hybrid(hidden, layers, heads, kv_heads, inner, tied, key_heads, value_heads, vocab=QWEN3_5, head_dim=256, linear_dim=128):
    return dense(hidden, layers, heads, kv_heads, inner, tied, vocab, head_dim) | {
        "linear_num_key_heads": key_heads, "linear_num_value_heads": value_heads, "linear_key_head_dim": linear_dim,
        "linear_value_head_dim": linear_dim, "linear_conv_kernel_dim": 4,
        "layer_types": ["linear_attention" if (i + 1) % 4 else "full_attention" for i in range(layers)],
    }


def sparse(base, experts, active, inner):
    return base | {"num_experts": experts, "num_experts_per_tok": active, "moe_intermediate_size": inner, "norm_topk_prob": True}


# Class of the configuration, its fields, and rows of a micro-batch on a card of 80 GB.
SHAPES = {
    "tiny": ("Qwen3Config", dense(128, 4, 4, 2, 384, True, 2048, 32), 2),
    "tiny-3.5": ("Qwen3_5TextConfig", hybrid(128, 4, 4, 2, 384, True, 2, 4, 2048, 32, 32), 2),
    "tiny-moe": ("Qwen3MoeConfig", sparse(dense(128, 4, 4, 2, 384, True, 2048, 32), 8, 2, 64), 2),
    "qwen3-0.6b": ("Qwen3Config", dense(1024, 28, 16, 8, 3072, True), 8),
    "qwen3-1.7b": ("Qwen3Config", dense(2048, 28, 16, 8, 6144, True), 8),
    "qwen3-4b": ("Qwen3Config", dense(2560, 36, 32, 8, 9728, True), 4),
    "qwen3-8b": ("Qwen3Config", dense(4096, 36, 32, 8, 12288, False), 4),
    "qwen3.5-4b": ("Qwen3_5TextConfig", hybrid(2560, 32, 16, 4, 9216, True, 16, 32), 4),
    "qwen3.5-9b": ("Qwen3_5TextConfig", hybrid(4096, 32, 16, 4, 12288, False, 16, 32), 4),
    "qwen3-30b-a3b": ("Qwen3MoeConfig", sparse(dense(2048, 48, 32, 4, 6144, False), 128, 8, 768), 4),
}
DTYPES = {torch.bfloat16: "BF16", torch.float32: "F32"}


def have(module):
    return importlib.util.find_spec(module) is not None


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def timed(device, run, seconds=0.4):
    """Median of five groups, in seconds a run."""
    run()
    wait(device)
    began = time.perf_counter()
    run()
    wait(device)
    times = max(1, min(200, int(seconds / 5 / (time.perf_counter() - began + 1e-9))))
    groups = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(times):
            run()
        wait(device)
        groups.append((time.perf_counter() - began) / times)
    return statistics.median(groups)


def ceilings(args):
    device, large = args.device, 8192 if args.device == "cuda" else 512
    dtype = torch.bfloat16
    found = {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "torch": torch.__version__}
    source = torch.randn((1 << 31 if device == "cuda" else 1 << 26) // 2, device=device, dtype=dtype)
    target = torch.empty_like(source)
    found["copy_gbps"] = 2 * source.nbytes / timed(device, lambda: target.copy_(source)) / 1e9
    del source, target

    def product(rows, inner, columns):
        # Several sets, so that a cache does not answer for the memory.
        sets = [(torch.randn(rows, inner, device=device, dtype=dtype), torch.randn(columns, inner, device=device, dtype=dtype)) for _ in range(3)]
        turn = iter(range(1 << 62))

        def run():
            x, w = sets[next(turn) % 3]
            return x @ w.T

        return 2 * rows * inner * columns / timed(device, run) / 1e12

    found["product_tflops"] = product(large, large, large)
    tokens = args.tokens
    layers = {"q_proj": (4096, 4096), "k_proj": (4096, 1024), "gate_proj": (4096, 12288), "down_proj": (12288, 4096)}
    if device == "cpu":
        layers = {"q_proj": (512, 512)}
    found["products"] = {f"{name} {tokens}x{i}x{o}": product(tokens, i, o) for name, (i, o) in layers.items()}
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


def write_model(model, config, directory, steps, rows, length):
    """Weights in one file, in the names of transformers' own state; tokens that are no special ones."""
    for file in TOKENIZER.glob("*tok*.json"):
        shutil.copy(file, directory)
    config.save_pretrained(directory)
    state = {name: value for name, value in model.state_dict().items() if not (config.tie_word_embeddings and name == "lm_head.weight")}
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, value in state.items():
        header[name] = {"dtype": DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": [at, at + value.nbytes]}
        at += value.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(directory / "model.safetensors", "wb", buffering=0) as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for value in state.values():
            flat = value.detach().contiguous().view(torch.uint8).flatten().cpu().numpy()
            for start in range(0, len(flat), 1 << 30):
                f.write(flat[start : start + (1 << 30)])

    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    added = [one["id"] for one in json.loads((directory / "tokenizer.json").read_text())["added_tokens"]]
    ordinary = np.setdiff1d(np.arange(config.vocab_size), added)
    ids = np.random.Generator(np.random.PCG64(SEED)).choice(ordinary, (steps * rows, length)).astype(np.int32)
    offsets = pa.array(np.arange(0, ids.size + 1, length, dtype=np.int32))
    table = pa.table({"input_ids": pa.ListArray.from_arrays(offsets, pa.array(ids.reshape(-1)))})
    pq.write_table(table, directory / "tokens.parquet", compression="none", row_group_size=64)
    return torch.from_numpy(ids.astype(np.int64))


class FrozenHeadLoss(torch.autograd.Function):
    """Mean cross entropy behind a frozen head; logits and their gradient live one chunk at a time."""

    @staticmethod
    def forward(ctx, hidden, weight, target, chunk):
        gradient, total = torch.empty_like(hidden), torch.zeros((), device=hidden.device)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = (hidden[part] @ weight.T).float()
            norm = logits.logsumexp(-1, keepdim=True)
            index = target[part, None]
            total += (norm - logits.gather(1, index)).sum()
            slope = logits.sub_(norm).exp_().scatter_add_(1, index, -torch.ones_like(index, dtype=logits.dtype))
            gradient[part] = (slope / len(hidden)).to(weight.dtype) @ weight
        ctx.save_for_backward(gradient)
        return total / len(hidden)

    @staticmethod
    def backward(ctx, above):
        return ctx.saved_tensors[0] * above, None, None, None


def used_by_the_card():
    """Bytes in use on the card, as its driver says."""
    asked = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        out = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout
        return int(out.splitlines()[0]) << 20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


BEFORE = 0  # in use on the card before this process took any


def train(args, base, rows, kind):
    """Some steps from the adapter in DIR; what they took."""
    from peft import PeftModel

    device, strong = args.device, kind == "strong"
    cuda = device == "cuda"
    began = time.perf_counter()
    model = PeftModel.from_pretrained(base, args.dir / "adapter", is_trainable=True).train()
    decoder = base.model
    if args.recompute == "all":
        base.gradient_checkpointing_enable({"use_reentrant": False})
        base.enable_input_require_grads()
    if strong:
        for layer in decoder.layers:
            layer.compile()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.rate, weight_decay=0.0, fused=cuda or None)
    fused = None
    if strong and cuda and have("liger_kernel"):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        fused = LigerFusedLinearCrossEntropyLoss()
    cast = torch.autocast(device, torch.bfloat16, enabled=base.dtype == torch.bfloat16)

    def loss_of(ids):
        if not strong:
            return model(input_ids=ids, labels=ids, use_cache=False).loss
        hidden = decoder(input_ids=ids, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
        weight, target = base.lm_head.weight, ids[:, 1:].flatten()
        hidden = hidden.to(weight.dtype)
        return fused(weight, hidden, target) if fused else FrozenHeadLoss.apply(hidden, weight, target, 2048)

    def step(ids):
        with cast:
            loss = loss_of(ids.to(device, non_blocking=True))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    steps = [part.pin_memory() if cuda else part for part in rows.split(args.batch)]
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    setup = time.perf_counter() - began
    losses, seconds, events, first = [], [], [], None
    for index, ids in enumerate(steps[: args.warm + args.steps]):
        at = time.perf_counter()
        if cuda:
            pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            pair[0].record()
        losses.append(step(ids))
        if cuda:
            pair[1].record()
            events.append(pair)
        if index == 0:
            wait(device)
            first = time.perf_counter() - at
        seconds.append(time.perf_counter() - at)
    wait(device)
    if cuda:
        seconds = [a.elapsed_time(b) / 1e3 for a, b in events]
    timed_steps = sorted(seconds[args.warm :])
    median = statistics.median(timed_steps)
    peak = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()} if cuda else {}
    used = used_by_the_card() if cuda else None
    peak |= {"card": used - BEFORE} if used else {}
    result = {
        "side": f"torch {kind}", "step_s": median, "spread": (timed_steps[-1] - timed_steps[0]) / median, "first_step_s": first,
        "setup_s": setup, "tokens_per_s": args.batch * args.length / median, "losses": [float(loss) for loss in losses], "peak": peak,
        "loss_by": "liger" if fused else "chunks" if strong else "transformers", "compiled": strong,
    }
    # The adapter goes, the base stays as it was.
    model.unload()
    if args.recompute == "all":
        base.gradient_checkpointing_disable()
    del model, optimizer, trained
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
    return result


def shape(args):
    global BEFORE
    # Asked before there is a context.
    BEFORE = (used_by_the_card() or 0) if args.device == "cuda" else 0
    import transformers
    from peft import LoraConfig, get_peft_model

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    kind, fields, batch = SHAPES[args.name]
    args.batch = args.batch or batch
    cuda = args.device == "cuda"
    if cuda:
        torch.backends.cuda.matmul.allow_tf32 = True
    args.dir.mkdir(parents=True, exist_ok=True)
    imported = time.perf_counter() - START
    config = getattr(transformers, kind)(**fields, use_cache=False)
    torch.manual_seed(SEED)
    dtype = torch.bfloat16 if cuda else torch.float32
    chosen = {"experts_implementation": args.experts} if args.experts else {}
    with torch.device(args.device):
        base = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa", **chosen)
    base.requires_grad_(False)
    began = time.perf_counter()
    rows = write_model(base, base.config, args.dir, args.warm + args.steps, args.batch, args.length)
    written = time.perf_counter() - began
    layers = sorted({n.rsplit(".", 1)[-1] for n, m in base.named_modules() if isinstance(m, torch.nn.Linear)} - {"lm_head"})
    lora = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, lora_dropout=0.0, target_modules=layers, task_type="CAUSAL_LM")
    peft = get_peft_model(base, lora)
    peft.save_pretrained(args.dir / "adapter")
    base = peft.unload()
    del peft
    found = {
        "shape": args.name, "device": torch.cuda.get_device_name() if cuda else "cpu", "batch": args.batch, "length": args.length,
        "rank": args.rank, "targets": layers, "dtype": str(dtype).replace("torch.", ""), "recompute": args.recompute, "warm": args.warm,
        "import_s": imported, "write_s": written, "bytes": (args.dir / "model.safetensors").stat().st_size,
        "parameters": sum(p.numel() for p in base.parameters()), "sides": [], "notes": [],
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "peft": __import__("peft").__version__},
    }
    if "3_5" in kind and cuda and not have("fla"):
        found["notes"].append("flash-linear-attention is not there: torch, which would run the delta rule without its kernels, was left out")
        args.sides = ""
    if "Moe" in kind:
        found["notes"].append("routed experts are frozen on both sides: PEFT would form each adapted tensor whole at every forward")
    for side in args.sides.split(",") if args.sides else []:
        try:
            found["sides"].append(train(args, base, rows, side))
        except Exception as error:  # one that fails leaves the other
            found["sides"].append({"side": f"torch {side}", "error": f"{type(error).__name__}: {error}"[:500]})
            gc.collect()
            if cuda:
                torch.cuda.empty_cache()
        # What is known so far outlives a time limit.
        args.out.write_text(json.dumps(found) + "\n")
    args.out.write_text(json.dumps(found) + "\n")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = ap.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("ceilings")
    one.add_argument("out", type=pathlib.Path)
    one.add_argument("--tokens", type=int, default=8192)
    two = verbs.add_parser("shape")
    two.add_argument("name", choices=SHAPES)
    two.add_argument("dir", type=pathlib.Path)
    two.add_argument("out", type=pathlib.Path)
    two.add_argument("--batch", type=int, help="rows of a step")
    two.add_argument("--length", type=int, default=2048)
    two.add_argument("--rank", type=int, default=16)
    two.add_argument("--rate", type=float, default=2e-4)
    two.add_argument("--warm", type=int, default=3, help="steps that are not timed")
    two.add_argument("--steps", type=int, default=10)
    two.add_argument("--recompute", choices=["none", "all"], default="none")
    two.add_argument("--sides", default="plain,strong", help="empty writes the model only")
    two.add_argument("--experts", help="how transformers runs experts")
    for verb in (one, two):
        verb.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    args = ap.parse_args()
    {"ceilings": ceilings, "shape": shape}[args.verb](args)


if __name__ == "__main__":
    sys.exit(main())
