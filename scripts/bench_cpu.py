#!/usr/bin/env python3
"""Whole training steps on a CPU, qwen-tune beside torch + PEFT, on the same weights, adapter, tokens and optimiser.

    python scripts/make_tokens.py MODEL_DIR DATA.parquet tokens.parquet --rows 80 --length 256
    python scripts/bench_cpu.py MODEL_DIR --tokens tokens.parquet --batch 4 --steps 10 --rounds 3 [--dtype bf16] [--out results.json]

scripts/bench_cpu.sh runs it on a list of models. Every row of the token file must have the same length; step k takes rows k*batch..
in file order. The starting adapter is made by PEFT once (rank 16; or --adapter DIR) and both sides load it: all linear layers but the
head; the routed experts of a mixture, which are tensors and not layers, with --experts; routers never. A round runs, one after the
other: qwen-tune for WARM steps, qwen-tune for WARM + STEPS steps, torch (scripts/bench_cpu_torch.py) for WARM steps, torch for WARM +
STEPS steps, each a process of its own; the order of the two sides alternates from round to round. What is reported:

    step s          median wall seconds of a step, by each side's own clock, the first WARM left out
    CPU s / step    user + system time of the long process less that of the short one, over STEPS: whatever start-up,
                    loading and saving cost is in both
    control         torch's own process clock around a step (should agree with the line above)
    GFLOP / CPU s   operations that the model asks for (scripts/model_flops.py) over the line above
    peak MB         largest resident set of the long process; mapped weight files count
    losses          of all steps, side by side

Both sides get --threads threads (default 2) and OMP_WAIT_POLICY=passive, so that spinning does not count as work. Torch's eager
step is plain SDPA with the loss of transformers; --torch-compile compiles each layer, --torch-chunk N computes the loss over N
positions at a time without keeping their logits. A mixture runs its experts as transformers chooses to (`grouped_mm` at present)
unless --torch-experts says otherwise; with --experts leave it at that, for PEFT makes the whole adapted tensor whenever it is read, and
the loop of `eager` reads it for every expert.

--dtype bf16 asks both sides for bf16. What torch then does is --torch-bf16:

    autocast        base in bf16, adapters in f32, under torch.autocast
    plain           base in bf16, adapters in f32, no autocast: the adapters' products are in f32
    autocast-f32    base in f32, adapters in f32, under torch.autocast: weights are cast anew every step
    pure            base and adapters in bf16, and with them the optimiser's state and updates

The default is the fastest of those that keep adapters in f32, and what the trainer of transformers does; `pure` took 8 or 9%
less CPU time of the dense models tried here, and not less of a hybrid or a mixture.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import pyarrow.parquet as pq
from model_flops import flops_per_token

WARM = 2
RATE = 2e-4
ROOT = pathlib.Path(__file__).resolve().parents[1]
THEIRS = pathlib.Path(__file__).with_name("bench_cpu_torch.py")

# Runs argv[1:] and prints what it used. A process is born with its parent's peak resident set, so the parent has to be small.
LAUNCHER = """
import json, os, sys
child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)])
_, status, used = os.wait4(child, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss * 1024]))
"""


def measured(command, env, log):
    """Wall and CPU seconds and the peak resident bytes of a process, and the machine's load before; what it says goes to `log`."""
    command = [str(c) for c in command]
    load = os.getloadavg()[0]
    begun = time.perf_counter()
    with open(log, "wb") as sink:
        out = subprocess.run([sys.executable, "-I", "-S", "-c", LAUNCHER, *command], env=env, stdout=subprocess.PIPE, stderr=sink, check=True)
    wall = time.perf_counter() - begun
    code, cpu, peak = json.loads(out.stdout)
    if code:
        text = pathlib.Path(log).read_text(errors="replace")[-3000:]
        raise SystemExit(f"`{' '.join(command)}` ended with {code}:\n{text}")
    return {"wall": wall, "cpu": cpu, "peak": peak, "load": load}


def ours(args, adapter, steps, place):
    run = place / "run"
    recipe = place / "recipe.toml"
    q = json.dumps  # a JSON string is a TOML string
    recipe.write_text(
        f"""\
[model]
base = {q(str(args.model))}
dtype = {q(args.dtype)}
[lora]
init = {q(str(adapter))}
[[data]]
path = {q(str(args.tokens))}
format = "tokens"
[tokens]
max_length = {args.length}
packing = "none"
[optimizer]
kind = "adamw"
learning_rate = {RATE}
weight_decay = 0.0
beta1 = 0.9
beta2 = 0.999
eps = 1e-8
max_grad_norm = 1.0
[schedule]
kind = "constant"
warmup = 0.0
[run]
dir = {q(str(run))}
steps = {steps}
global_batch = {args.batch}
micro_batch = {args.micro_batch}
device = {q(args.device)}
recompute = {q(args.recompute)}
shuffle = false
"""
    )
    env = dict(os.environ, OMP_WAIT_POLICY="passive", RAYON_NUM_THREADS=str(args.threads), OMP_NUM_THREADS=str(args.threads))
    out = measured([args.binary, "train", str(recipe)], env, place / "log")
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    events = [e for e in events if e["event"] == "step"]
    if len(events) != steps:
        raise SystemExit(f"{run}/metrics.jsonl has {len(events)} steps, not {steps}")
    return out | {"losses": [e["loss"] for e in events], "steps": [e["seconds"] for e in events]}


def torchs(args, adapter, steps, place):
    job = {
        "model": str(args.model), "adapter": str(adapter), "tokens": str(args.tokens), "steps": steps, "batch": args.batch,
        "micro_batch": args.micro_batch, "threads": args.threads, "compile": args.torch_compile, "chunk": args.torch_chunk,
        "checkpoint": args.recompute == "all", "bf16": args.torch_bf16 if args.dtype == "bf16" else None, "experts": args.torch_experts,
        "rate": RATE, "result": str(place / "result.json"),
    }
    env = dict(os.environ, OMP_WAIT_POLICY="passive", OMP_NUM_THREADS=str(args.threads))
    out = measured([sys.executable, "-W", "ignore", THEIRS, "steps", json.dumps(job)], env, place / "log")
    inner = json.loads((place / "result.json").read_text())
    return out | {"losses": inner["losses"], "steps": inner["wall"], "control": inner["cpu"]}


SIDES = {"qwen-tune": ours, "torch": torchs}


def bench(args):
    lengths = {len(r) for r in pq.read_table(args.tokens).column("input_ids").to_pylist()}
    rows = pq.read_metadata(args.tokens).num_rows
    need = args.batch * (WARM + args.steps)
    if len(lengths) != 1 or rows < need:
        raise SystemExit(f"{args.tokens}: rows of one length are needed, {need} of them; found {rows} of lengths {sorted(lengths)[:5]}")
    args.length = lengths.pop()
    tokens = args.length * args.batch
    sides = {name: side for name, side in SIDES.items() if args.only in (None, name)}
    found = {name: [] for name in sides}
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        scratch = pathlib.Path(scratch)
        adapter = args.adapter
        if adapter is None:
            adapter = scratch / "adapter"
            job = {"model": str(args.model), "out": str(adapter), "rank": args.rank, "experts": args.experts}
            measured([sys.executable, "-W", "ignore", THEIRS, "adapter", json.dumps(job)], os.environ, scratch / "log")
        flops = flops_per_token(args.model, adapter, args.length)
        for r in range(args.rounds):
            for name in list(sides)[:: 1 if r % 2 == 0 else -1]:
                pair = []
                for steps in (WARM, WARM + args.steps):
                    place = scratch / f"{name}-{r}-{steps}"
                    place.mkdir()
                    pair.append(sides[name](args, adapter, steps, place))
                short, long = pair
                one = {
                    "step": statistics.median(long["steps"][WARM:]),
                    "cpu": (long["cpu"] - short["cpu"]) / args.steps,
                    "control": statistics.median(long["control"][WARM:]) if "control" in long else None,
                    "peak": long["peak"],
                    "whole_wall": long["wall"],
                    "load": max(short["load"], long["load"]),
                    "losses": long["losses"],
                }
                found[name].append(one)
                print(
                    f"round {r + 1} {name}: step {one['step']:.3f} s, CPU {one['cpu']:.3f} s a step, peak {one['peak'] / 1e6:.0f} MB",
                    file=sys.stderr,
                )
    report(args, found, tokens, flops)


def report(args, found, tokens, flops):
    mid = lambda name, key: statistics.median(o[key] for o in found[name])
    kind = f"{args.dtype} ({args.torch_bf16})" if args.dtype == "bf16" else args.dtype
    print(
        f"{args.model.name}, {kind}: {args.batch} rows of {args.length} tokens a step, {args.threads} threads, {args.rounds} rounds of "
        f"{args.steps} steps"
    )
    print("| side | step s | CPU s / step | tokens / s | tokens / CPU s | GFLOP / CPU s | peak MB | whole run s | control CPU s | load |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    sides = {}
    for name in found:
        control = found[name][0]["control"]
        one = {key: mid(name, key) for key in ("step", "cpu", "peak", "whole_wall")}
        one["control"] = None if control is None else mid(name, "control")
        one["load"] = max(o["load"] for o in found[name])
        one["tokens_per_second"], one["tokens_per_cpu_second"] = tokens / one["step"], tokens / one["cpu"]
        one["gflop_per_cpu_second"] = flops * tokens / one["cpu"] / 1e9
        sides[name] = one
        print(
            f"| {name} | {one['step']:.3f} | {one['cpu']:.3f} | {one['tokens_per_second']:.0f} | {one['tokens_per_cpu_second']:.1f} "
            f"| {one['gflop_per_cpu_second']:.1f} | {one['peak'] / 1e6:.0f} | {one['whole_wall']:.1f} "
            f"| {'' if control is None else format(one['control'], '.3f')} | {one['load']:.1f} |"
        )
    summary = {"sides": sides}
    if len(sides) == 2:
        us, them = sides["qwen-tune"], sides["torch"]
        summary |= {"speed_cpu": them["cpu"] / us["cpu"], "speed_wall": them["step"] / us["step"], "memory": us["peak"] / them["peak"]}
        print(
            f"torch takes {summary['speed_cpu']:.2f} times the CPU time and {summary['speed_wall']:.2f} times the wall time of a step; "
            f"qwen-tune has {summary['memory']:.0%} of its peak memory"
        )
        left, right = found["qwen-tune"][0]["losses"], found["torch"][0]["losses"]
        print("losses: step, qwen-tune, torch, difference")
        for i, (x, y) in enumerate(zip(left, right)):
            print(f"  {i + 1:3} {x:.6f} {y:.6f} {x - y:+.1e}")
        summary["loss_difference"] = max(abs(x - y) for x, y in zip(left, right))
        print(f"largest difference of losses {summary['loss_difference']:.2e}")
    if args.out:
        setting = {
            "model": args.model.name, "dtype": kind, "batch": args.batch, "length": args.length, "threads": args.threads, "steps": args.steps,
            "tokens_per_step": tokens, "flops_per_token": flops, "torch_compile": args.torch_compile, "torch_chunk": args.torch_chunk,
            "recompute": args.recompute,
        }
        args.out.write_text(json.dumps(setting | summary | {"rounds": found}, indent=1) + "\n")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model", type=pathlib.Path, metavar="MODEL_DIR")
    ap.add_argument("--tokens", type=pathlib.Path, required=True)
    ap.add_argument("--adapter", type=pathlib.Path, help="PEFT adapter both sides start from; made when absent")
    ap.add_argument("--rank", type=int, default=16)
    ap.add_argument("--experts", action="store_true", help="adapt the routed experts too")
    ap.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    ap.add_argument("--batch", type=int, default=4)
    ap.add_argument("--micro-batch", type=int, help="default: the whole batch")
    ap.add_argument("--steps", type=int, default=10)
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--recompute", default="none", choices=["none", "all", "auto"], help="all: torch checkpoints every layer too")
    ap.add_argument("--device", default="cpu")
    ap.add_argument("--torch-compile", action="store_true")
    ap.add_argument("--torch-chunk", type=int, default=0)
    ap.add_argument("--torch-bf16", choices=["autocast", "plain", "autocast-f32", "pure"], default="autocast")
    ap.add_argument("--torch-experts", choices=["eager", "grouped_mm", "batched_mm"])
    ap.add_argument("--only", choices=list(SIDES), help="one side alone")
    ap.add_argument("--binary", type=pathlib.Path, default=ROOT / "target" / "release" / "qwen-tune")
    ap.add_argument("--scratch", type=pathlib.Path, help="where temporary directories go")
    ap.add_argument("--out", type=pathlib.Path, help="all figures as JSON")
    args = ap.parse_args()
    for key in ("model", "tokens", "adapter", "binary"):
        if getattr(args, key) is not None:
            setattr(args, key, getattr(args, key).resolve())
    args.micro_batch = args.micro_batch or args.batch
    bench(args)


if __name__ == "__main__":
    main()
