#!/usr/bin/env python3
"""Checks that PEFT and transformers compute, from what qwen-tune wrote, what qwen-tune says it computes.

    qwen-tune eval --model BASE --adapter RUN/adapter --data tokens.parquet --logprobs ours.parquet
    qwen-tune export RUN --to merged --out MERGED
    qwen-tune eval --model MERGED --data tokens.parquet --logprobs merged.parquet
    python scripts/check_clients.py BASE --adapter RUN/adapter --merged MERGED --data tokens.parquet \\
        --logprobs adapter=ours.parquet merged=merged.parquet

MODEL_DIR is the base. --data is the `tokens` file (scripts/make_tokens.py writes one). A log-probability file is named by the
model it was made with: base=, adapter= or merged=; without a name it belongs to the adapter if there is one, else the merged
model, else the base. Everything runs in f32 on the CPU. Exit status 1 when a difference exceeds --tolerance (1e-3 nats).
"""
import argparse
import json
import os
import pathlib
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import pyarrow.parquet as pq
import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM


def load(directory):
    model, info = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    wrong = {k: v for k, v in info.items() if v and k != "error_msgs"}
    if wrong:
        raise SystemExit(f"{directory}: transformers did not find every tensor in its place: {wrong}")
    return model.eval()


def load_adapted(base, adapter):
    """The base with the adapter; an adapter key that binds to nothing is an error, where PEFT only warns."""
    model = PeftModel.from_pretrained(load(base), adapter)
    from safetensors import safe_open

    with safe_open(adapter / "adapter_model.safetensors", "pt") as f:
        written = {k: f.get_tensor(k) for k in f.keys()}
    there = {
        k.replace(".modules_to_save.default.", ".").replace(".default.", "."): v
        for k, v in model.named_parameters()
        if "lora_" in k or ".modules_to_save.default." in k
    }
    if set(there) != set(written):
        raise SystemExit(f"{adapter}: keys differ from PEFT's: {sorted(set(there) ^ set(written))[:6]}")
    for k, v in written.items():
        if not torch.equal(there[k], v.to(there[k].dtype)):
            raise SystemExit(f"{adapter}: PEFT holds other values for {k}")
    return model.eval()


def stored_dtypes(directory):
    """Element types of a checkpoint's tensors, as its headers name them."""
    found = set()
    for file in directory.glob("*.safetensors"):
        with open(file, "rb") as f:
            header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
        found |= {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
    return found


@torch.no_grad()
def logprobs(model, rows):
    """Per row, entry p-1 is the log-probability of token p given those before it."""
    out = []
    for ids in rows:
        ids = torch.tensor([ids])
        logp = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        out.append(logp.gather(1, ids[0, 1:, None])[:, 0])
    return out


def compare(file, rows, theirs):
    """Largest and mean absolute difference between `file` and `theirs`."""
    table = pq.read_table(file)
    missing = {"row", "position", "token_id", "logprob", "trained"} - set(table.column_names)
    if missing:
        raise SystemExit(f"{file}: no column {sorted(missing)}")
    worst, total, count, seen = (0.0, None), 0.0, 0, set()
    for r in table.to_pylist():
        row, at = r["row"], r["position"]
        if r["token_id"] != rows[row][at]:
            raise SystemExit(f"{file}: row {row}, position {at} is token {r['token_id']}, the data has {rows[row][at]}")
        if at == 0:
            if r["logprob"] is not None:
                raise SystemExit(f"{file}: row {row} has a log-probability at position 0")
            continue
        gap = abs(r["logprob"] - theirs[row][at - 1].item())
        seen.add((row, at))
        total, count = total + gap, count + 1
        if gap > worst[0] or gap != gap:
            worst = (float("inf") if gap != gap else gap, (row, at))
    wanted = {(i, p) for i, ids in enumerate(rows) for p in range(1, len(ids))}
    if seen != wanted:
        raise SystemExit(f"{file}: {len(wanted - seen)} positions of the data are not in it, {len(seen - wanted)} are too many")
    return worst, total / max(count, 1), count


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model", type=pathlib.Path, metavar="MODEL_DIR")
    ap.add_argument("--adapter", type=pathlib.Path)
    ap.add_argument("--merged", type=pathlib.Path)
    ap.add_argument("--data", type=pathlib.Path, required=True)
    ap.add_argument("--logprobs", nargs="*", default=[], metavar="[base|adapter|merged=]FILE")
    ap.add_argument("--tolerance", type=float, default=1e-3)
    args = ap.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    rows = [r["input_ids"] for r in pq.read_table(args.data, columns=["input_ids"]).to_pylist()]
    default = "adapter" if args.adapter else "merged" if args.merged else "base"
    files = []
    for text in args.logprobs:
        kind, eq, file = text.partition("=")
        files.append((kind, file) if eq and kind in ("base", "adapter", "merged") else (default, text))
    loaders = {"base": lambda: load(args.model)}
    if args.adapter:
        loaders["adapter"] = lambda: load_adapted(args.model, args.adapter)
    if args.merged:
        loaders["merged"] = lambda: load(args.merged)

    theirs, failed = {}, False
    for kind, build in loaders.items():
        theirs[kind] = logprobs(build(), rows)
        mean = -torch.cat(theirs[kind]).mean().item()
        print(f"{kind}: {sum(map(len, theirs[kind]))} tokens in {len(rows)} rows, mean loss {mean:.6f}")
    for kind, file in files:
        if kind not in theirs:
            ap.error(f"`{file}` belongs to the {kind} model, which is not given")
        (gap, where), mean, count = compare(file, rows, theirs[kind])
        bad = not gap <= args.tolerance
        failed |= bad
        print(f"{'FAIL' if bad else 'ok'}: {kind}: {file}: {count} tokens, max difference {gap:.3e} at row, position {where}, mean {mean:.3e}")

    def between(a, b):
        return (torch.cat(theirs[a]) - torch.cat(theirs[b])).abs().max().item()

    if {"adapter", "merged"} <= set(theirs):
        # Merged weights are rounded to the base's own format: in bf16 that is the difference seen here.
        stored = stored_dtypes(args.merged)
        limit = args.tolerance if stored == {"F32"} else 3e-2
        gap = between("adapter", "merged")
        bad = not gap <= limit
        failed |= bad
        print(f"{'FAIL' if bad else 'ok'}: adapter and merged ({', '.join(sorted(stored))}) differ by at most {gap:.3e}")
    for kind in ("adapter", "merged"):
        if kind in theirs:
            print(f"{kind} and base differ by at most {between(kind, 'base'):.3e} (not zero if the adapter was trained)")
    sys.exit(failed)


if __name__ == "__main__":
    main()
