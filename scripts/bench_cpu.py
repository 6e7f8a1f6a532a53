#!/usr/bin/env python3
"""Whole training steps on a CPU, qwen-tune beside torch + PEFT, on the same weights, adapter, tokens and optimiser.

    python scripts/make_tokens.py MODEL_DIR DATA.parquet tokens.parquet --rows 80 --length 256
    python scripts/bench_cpu.py MODEL_DIR --tokens tokens.parquet --batch 4 --steps 10 --rounds 3 [--out results.json]

Every row of the token file must have the same length; step k takes rows k*batch.. in file order. The starting adapter is
made by PEFT once (rank 16, all linears; or --adapter DIR) and both sides load it. A round runs, one after the other: qwen-tune for
WARM steps, qwen-tune for WARM + STEPS steps, torch for WARM steps, torch for WARM + STEPS steps, each a process of its own;
the order of the two sides alternates from round to round. What is reported:

    step s          median wall seconds of a step, by each side's own clock, the first WARM left out
    CPU s / step    user + system time of the long process less that of the short one, over STEPS: whatever start-up,
                    loading and saving cost is in both
    control         torch's own process clock around a step (should agree with the line above)
    peak MB         largest resident set of the long process; mapped weight files count
    losses          of all steps, side by side

Both sides get --threads threads (default 2) and OMP_WAIT_POLICY=passive, so that spinning does not count as work. Torch's eager
step is plain SDPA with the loss of transformers; --torch-compile compiles each layer, --torch-chunk N computes the loss over N
positions at a time without keeping their logits.
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

WARM = 2
RATE = 2e-4
ROOT = pathlib.Path(__file__).resolve().parents[1]


# ---------------------------------------------------------------- torch, in a process of its own


def chunked_loss(hidden, head, targets, chunk):
    """Mean cross entropy with the logits of one chunk alive at a time; the backward computes them again."""
    import torch
    from torch.nn.functional import cross_entropy
    from torch.utils.checkpoint import checkpoint

    def part(h, t):
        return cross_entropy((h @ head.T).float(), t, reduction="sum")

    hidden, targets = hidden[:, :-1].flatten(0, 1), targets[:, 1:].flatten()
    parts = [
        checkpoint(part, hidden[i : i + chunk], targets[i : i + chunk], use_reentrant=False)
        for i in range(0, len(targets), chunk)
    ]
    return torch.stack(parts).sum() / len(targets)


def torch_side(job):
    import torch
    import transformers
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(job["threads"])
    transformers.utils.logging.disable_progress_bar()
    base = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32, attn_implementation="sdpa")
    model = PeftModel.from_pretrained(base, job["adapter"], is_trainable=True).train()
    if job["checkpoint"]:
        base.gradient_checkpointing_enable({"use_reentrant": False})
        base.enable_input_require_grads()
    if job["compile"]:
        for layer in base.model.layers:
            layer.compile()
    params = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(params, lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    rows = torch.tensor(pq.read_table(job["tokens"]).column("input_ids").to_pylist())
    batch, micro = job["batch"], job["micro_batch"]
    losses, wall, cpu = [], [], []
    for step in range(job["steps"]):
        at_wall, at_cpu = time.perf_counter(), time.process_time()
        taken = rows[step * batch : (step + 1) * batch]
        total = 0.0
        for part in taken.split(micro):
            if job["chunk"]:
                hidden = base.model(input_ids=part, use_cache=False).last_hidden_state
                loss = chunked_loss(hidden, base.lm_head.weight, part, job["chunk"])
            else:
                loss = model(input_ids=part, labels=part, use_cache=False).loss
            loss = loss * (len(part) / batch)  # rows are equally long, so this is the mean over the step's targets
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(total)
        wall.append(time.perf_counter() - at_wall)
        cpu.append(time.process_time() - at_cpu)
    pathlib.Path(job["result"]).write_text(json.dumps({"losses": losses, "wall": wall, "cpu": cpu}))


def write_adapter(model, out, rank):
    """In a process of its own, so that the measuring one stays small."""
    code = (
        "import sys, torch; from peft import LoraConfig, get_peft_model; from transformers import AutoModelForCausalLM as M;"
        "torch.manual_seed(0); m = get_peft_model(M.from_pretrained(sys.argv[1], dtype=torch.float32),"
        f"LoraConfig(r={rank}, lora_alpha={2 * rank}, lora_dropout=0.0, target_modules='all-linear', task_type='CAUSAL_LM'));"
        "m.save_pretrained(sys.argv[2])"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(model), str(out)], check=True, stderr=subprocess.DEVNULL)


# ---------------------------------------------------------------- both sides, measured from outside


# Runs argv[1:] and prints what it used. A process is born with its parent's peak resident set, so the parent has to be small.
LAUNCHER = """
import json, os, sys
child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)])
_, status, used = os.wait4(child, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss * 1024]))
"""


def measured(command, env, log):
    """Wall and CPU seconds and the peak resident bytes of a process; what it says goes to `log`."""
    command = [str(c) for c in command]
    begun = time.perf_counter()
    with open(log, "wb") as sink:
        out = subprocess.run([sys.executable, "-I", "-S", "-c", LAUNCHER, *command], env=env, stdout=subprocess.PIPE, stderr=sink, check=True)
    wall = time.perf_counter() - begun
    code, cpu, peak = json.loads(out.stdout)
    if code:
        text = pathlib.Path(log).read_text(errors="replace")[-3000:]
        raise SystemExit(f"`{' '.join(command)}` ended with {code}:\n{text}")
    return {"wall": wall, "cpu": cpu, "peak": peak}


def ours(args, adapter, steps, place):
    run = place / "run"
    recipe = place / "recipe.toml"
    q = json.dumps  # a JSON string is a TOML string
    recipe.write_text(
        f"""\
[model]
base = {q(str(args.model))}
dtype = "f32"
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
        "checkpoint": args.recompute == "all", "result": str(place / "result.json"),
    }
    env = dict(os.environ, OMP_WAIT_POLICY="passive", OMP_NUM_THREADS=str(args.threads))
    out = measured([sys.executable, "-W", "ignore", __file__, "--torch-job", json.dumps(job)], env, place / "log")
    inner = json.loads((place / "result.json").read_text())
    return out | {"losses": inner["losses"], "steps": inner["wall"], "control": inner["cpu"]}


def bench(args):
    lengths = {len(r) for r in pq.read_table(args.tokens).column("input_ids").to_pylist()}
    rows = pq.read_metadata(args.tokens).num_rows
    need = args.batch * (WARM + args.steps)
    if len(lengths) != 1 or rows < need:
        raise SystemExit(f"{args.tokens}: rows of one length are needed, {need} of them; found {rows} of lengths {sorted(lengths)[:5]}")
    args.length = lengths.pop()
    tokens = args.length * args.batch
    sides = {"qwen-tune": ours, "torch": torchs}
    found = {name: [] for name in sides}
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        scratch = pathlib.Path(scratch)
        adapter = args.adapter
        if adapter is None:
            adapter = scratch / "adapter"
            write_adapter(args.model, adapter, args.rank)
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
                    "losses": long["losses"],
                }
                found[name].append(one)
                print(
                    f"round {r + 1} {name}: step {one['step']:.3f} s, CPU {one['cpu']:.3f} s a step, peak {one['peak'] / 1e6:.0f} MB",
                    file=sys.stderr,
                )
    report(args, found, tokens)


def report(args, found, tokens):
    mid = lambda name, key: statistics.median(o[key] for o in found[name])
    print(f"{args.model.name}: {args.batch} rows of {args.length} tokens a step, {args.threads} threads, {args.rounds} rounds of {args.steps} steps")
    print("| side | step s | CPU s / step | tokens / CPU s | peak MB | whole run s | control CPU s |\n|---|---|---|---|---|---|---|")
    for name in found:
        control = found[name][0]["control"]
        print(
            f"| {name} | {mid(name, 'step'):.3f} | {mid(name, 'cpu'):.3f} | {tokens / mid(name, 'cpu'):.1f} | {mid(name, 'peak') / 1e6:.0f} "
            f"| {mid(name, 'whole_wall'):.1f} | {'' if control is None else format(mid(name, 'control'), '.3f')} |"
        )
    a, b = mid("qwen-tune", "cpu"), mid("torch", "cpu")
    print(f"torch takes {b / a:.2f} times the CPU time and {mid('torch', 'step') / mid('qwen-tune', 'step'):.2f} times the wall time of a step")
    left, right = found["qwen-tune"][0]["losses"], found["torch"][0]["losses"]
    print("losses: step, qwen-tune, torch, difference")
    for i, (x, y) in enumerate(zip(left, right)):
        print(f"  {i + 1:3} {x:.6f} {y:.6f} {x - y:+.1e}")
    print(f"largest difference of losses {max(abs(x - y) for x, y in zip(left, right)):.2e}")
    if args.out:
        args.out.write_text(json.dumps({"tokens_per_step": tokens, "threads": args.threads, "rounds": found}, indent=1) + "\n")


def main():
    if sys.argv[1:2] == ["--torch-job"]:
        return torch_side(json.loads(sys.argv[2]))
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model", type=pathlib.Path, metavar="MODEL_DIR")
    ap.add_argument("--tokens", type=pathlib.Path, required=True)
    ap.add_argument("--adapter", type=pathlib.Path, help="PEFT adapter both sides start from; made when absent")
    ap.add_argument("--rank", type=int, default=16)
    ap.add_argument("--batch", type=int, default=4)
    ap.add_argument("--micro-batch", type=int, help="default: the whole batch")
    ap.add_argument("--steps", type=int, default=10)
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--recompute", default="none", choices=["none", "all", "auto"], help="all: torch checkpoints every layer too")
    ap.add_argument("--device", default="cpu")
    ap.add_argument("--torch-compile", action="store_true")
    ap.add_argument("--torch-chunk", type=int, default=0)
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
