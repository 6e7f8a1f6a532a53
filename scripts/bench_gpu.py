#!/usr/bin/env python3
"""Training steps on a GPU, qwen-tune beside torch + PEFT, on the same random weights, adapter and tokens: a stage of scripts/gpu.sh.

    python scripts/bench_gpu.py OUTDIR --binary qwen-tune --shapes qwen3-0.6b,qwen3-8b [OPTION..]

For each shape, one after the other so that each has the card to itself: scripts/bench_gpu_torch.py makes model, adapter and tokens
and trains with torch, plain and strong; then qwen-tune trains the same. What is reported of each side:

    tokens/s      rows x length over the median step, --warm steps left out
    first step    from the start of the step to its end; `cold` with no kernel compiled for the shape (unless an earlier one had it),
                  `warm` in a second process (--again names shapes that get one)
    peak GB       in use on the card at most, context included, beyond what was in use before
    loss          largest relative difference to torch plain over the first ten steps

OUTDIR/train.jsonl has a line for each shape as soon as it is done; the table is printed at the end, and by `--table` alone from what is
there. On a CPU (--device cpu) memory is the largest resident set, and only `tiny` shapes make sense.
"""
import argparse
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time

from model_flops import flops_per_token

THEIRS = pathlib.Path(__file__).with_name("bench_gpu_torch.py")
QUERY = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]


class Card:
    """The most memory in use on the card while it is watched."""

    def __init__(self, watched):
        self.peak, self.before, self.process = 0, 0, None
        if watched and shutil.which("nvidia-smi"):
            self.before = self.now()
            self.process = subprocess.Popen([*QUERY, "-lms", "50"], stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL)
            threading.Thread(target=self.listen, daemon=True).start()

    @staticmethod
    def now():
        return int(subprocess.run(QUERY, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()[0]) << 20

    def listen(self):
        for line in self.process.stdout:
            if line.strip().isdigit():
                self.peak = max(self.peak, int(line) << 20)

    def close(self):
        if self.process is None:
            return None
        self.process.terminate()
        self.process.wait()
        return max(0, self.peak - self.before)


RUNNING = set()  # process groups


def stop(*_):
    """A limit above this one's: what it started holds the card, and would outlive it."""
    for group in RUNNING:
        os.killpg(group, signal.SIGKILL)
    sys.exit(143)


def limited(command, log, limit, env=None):
    """Runs a command of its own process group; its exit code (None where the limit ended it), wall seconds and largest resident set."""
    began = time.perf_counter()
    with open(log, "wb") as sink:
        child = subprocess.Popen([str(part) for part in command], stdout=sink, stderr=subprocess.STDOUT, start_new_session=True, env=env)
        RUNNING.add(child.pid)
        timer = threading.Timer(limit, lambda: os.killpg(child.pid, signal.SIGKILL))
        timer.daemon = True
        timer.start()
        _, status, usage = os.wait4(child.pid, 0)
        late = not timer.is_alive()
        timer.cancel()
        RUNNING.discard(child.pid)
        child.returncode = os.waitstatus_to_exitcode(status)
    return None if late else child.returncode, time.perf_counter() - began, usage.ru_maxrss * 1024


def tail(log):
    return pathlib.Path(log).read_text(errors="replace").strip()[-600:]


def recipe(args, directory, shape, run, steps):
    q = json.dumps
    return f"""\
[model]
base = {q(str(directory))}
lock = false
[lora]
init = {q(str(directory / "adapter"))}
[[data]]
path = {q(str(directory / "tokens.parquet"))}
format = "tokens"
[tokens]
max_length = {args.length}
packing = "none"
[optimizer]
learning_rate = {args.rate}
[schedule]
kind = "constant"
warmup = 0.0
[run]
dir = {q(str(run))}
steps = {steps}
global_batch = {shape["batch"]}
micro_batch = {shape["batch"]}
device = {q(args.device)}
recompute = {q(args.recompute)}
shuffle = false
"""


def ours(args, directory, shape, scratch, steps, limit):
    run, file, log = scratch / "run", scratch / "recipe.toml", scratch / "ours.log"
    shutil.rmtree(run, ignore_errors=True)
    file.write_text(recipe(args, directory, shape, run, steps))
    card = Card(args.device != "cpu")
    begun = time.time()
    code, wall, resident = limited([args.binary, "train", file], log, limit)
    peak = card.close()
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    events = [json.loads(line) for line in lines if line.endswith("}")]
    done = [event for event in events if event["event"] == "step"]
    side = {"side": "qwen-tune", "wall_s": wall, "exit": code, "peak": {"card": peak, "resident": resident}}
    if done:
        seconds = [event["seconds"] for event in done]
        timed = sorted(seconds[args.warm :]) or seconds
        median = statistics.median(timed)
        side |= {
            "step_s": median, "spread": (timed[-1] - timed[0]) / median, "first_step_s": seconds[0],
            "tokens_per_s": shape["batch"] * args.length / median, "losses": [event["loss"] for event in done],
            "grad_norms": [event["grad_norm"] for event in done],
        }
        # What came before the first step: loading, for the most part.
        side["before_first_step_s"] = wall - sum(seconds) if code == 0 else None
    if code != 0:
        side["error"] = ("time is up: " if code is None else f"exit code {code}: ") + tail(log)
    side["begun"] = begun
    return side


def difference(ours, theirs):
    pairs = list(zip(ours.get("losses", []), theirs.get("losses", [])))[:10]
    return max((abs(a - b) / abs(b) for a, b in pairs), default=None)


def bench(args, name):
    scratch = args.scratch / name
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    out, log = scratch / "torch.json", scratch / "torch.log"
    command = [
        sys.executable, "-W", "ignore", THEIRS, "shape", name, scratch, out, "--device", "cpu" if args.device == "cpu" else "cuda",
        "--length", args.length, "--warm", args.warm, "--steps", args.steps, "--rate", args.rate, "--recompute", args.recompute,
        f"--sides={args.sides}",
    ]
    command += ["--batch", args.batch] if args.batch else []
    try:
        code, wall, resident = limited(command, log, args.limit_torch)
        if not out.exists():
            return {"shape": name, "sides": [], "error": ("time is up: " if code is None else "") + tail(log)}
        shape = json.loads(out.read_text())
        shape["torch_wall_s"] = wall
        if code != 0:
            shape["error"] = ("torch ran out of time" if code is None else f"torch ended with {code}: {tail(log)}")
            shape["notes"].append(shape["error"])
        for side in shape["sides"]:
            side.setdefault("peak", {})["resident"] = resident
        shape["flops_per_token"] = flops_per_token(scratch, scratch / "adapter", args.length)
        side = ours(args, scratch, shape, scratch, args.warm + args.steps, args.limit_ours)
        plain = next((one for one in shape["sides"] if one["side"] == "torch plain"), {})
        side["loss_difference"] = difference(side, plain)
        if name in args.again.split(",") and "error" not in side:
            second = ours(args, scratch, shape, scratch, 2, args.limit_ours)
            side |= {"warm_first_step_s": second.get("first_step_s"), "warm_before_first_step_s": second.get("before_first_step_s")}
        shape["sides"].append(side)
        return shape
    finally:
        # The weights: tens of gigabytes.
        shutil.rmtree(scratch, ignore_errors=True)


def table(shapes, peak_tflops):
    yield "| shape | side | tokens/s | of peak | step s | spread | first step s | peak GB | loss off | note |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for shape in shapes:
        if not shape["sides"]:
            yield f"| {shape['shape']} | | | | | | | | | {shape.get('error', '')[-160:]} |".replace("\n", " ")
        base = {one["side"]: one for one in shape["sides"]}
        for side in shape["sides"]:
            number = lambda key, form, of=side: "" if of.get(key) is None else format(of[key], form)
            rate = side.get("tokens_per_s")
            share = f"{rate * shape['flops_per_token'] / 1e12 / peak_tflops:.0%}" if rate and peak_tflops else ""
            peak = side.get("peak", {})
            memory = peak.get("card") or peak.get("resident")
            notes = [side["error"][-160:]] if "error" in side else []
            if side["side"] == "qwen-tune" and rate:
                notes += [f"{rate / one['tokens_per_s']:.2f}x {name}" for name, one in base.items() if name != "qwen-tune" and "tokens_per_s" in one]
                if side.get("warm_first_step_s") is not None:
                    notes.append(f"warm first step {side['warm_first_step_s']:.1f} s after {side.get('warm_before_first_step_s') or 0:.1f} s")
            cells = [
                shape["shape"], side["side"], number("tokens_per_s", ",.0f"), share, number("step_s", ".3f"), number("spread", ".0%"),
                number("first_step_s", ".1f"), f"{memory / 1e9:.1f}" if memory else "", number("loss_difference", ".1e"), "; ".join(notes),
            ]
            yield ("| " + " | ".join(cells) + " |").replace("\n", " ")
        for note in shape.get("notes", []):
            yield f"| {shape['shape']} | | | | | | | | | {note[:200]} |".replace("\n", " ")


def kernels(out):
    """Every operation beside what the machine's own libraries reach at the same size, or at their best."""
    ceilings = json.loads((out / "ceilings.json").read_text()) if (out / "ceilings.json").exists() else {}
    products = ceilings.get("products", {})
    yield f"{ceilings.get('device', 'no ceilings')}: copy {ceilings.get('copy_gbps', 0):,.0f} GB/s, bf16 product {ceilings.get('product_tflops', 0):.3g} TFLOP/s"
    yield ""
    yield "| operation | dtype | ms | TFLOP/s | GB/s | of the ceiling | the same by torch | spread | first s |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for line in (out / "kernels.jsonl").read_text().splitlines():
        one = json.loads(line)
        if "error" in one:
            yield f"| {one['error']} | | | | | | | | |"
            continue
        flops, bytes_ = one.get("tflops"), one.get("gbps")
        ceiling = ceilings.get("product_tflops") if flops else ceilings.get("copy_gbps")
        share = f"{(flops or bytes_) / ceiling:.0%}" if ceiling else ""
        same = products.get(one["op"].removeprefix("product "))
        cells = [
            one["op"], one["dtype"], f"{one['seconds'] * 1e3:.3f}", f"{flops:.3g}" if flops else "", f"{bytes_:,.0f}" if bytes_ else "", share,
            f"{flops / same:.0%} of {same:.3g}" if same and flops else "", f"{one['spread']:.0%}", f"{one['first_seconds']:.1f}",
        ]
        yield "| " + " | ".join(cells) + " |"
    yield ""


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out", type=pathlib.Path)
    ap.add_argument("--binary")
    ap.add_argument("--shapes", default="")
    ap.add_argument("--again", default="", help="shapes whose first step is measured a second time")
    ap.add_argument("--device", default="cuda:0")
    ap.add_argument("--sides", default="plain,strong", help="of torch")
    ap.add_argument("--length", type=int, default=2048)
    ap.add_argument("--batch", type=int)
    ap.add_argument("--warm", type=int, default=3)
    ap.add_argument("--steps", type=int, default=10)
    ap.add_argument("--rate", type=float, default=2e-4)
    ap.add_argument("--recompute", choices=["none", "all"], default="none")
    ap.add_argument("--scratch", type=pathlib.Path, help="where models are made; memory where there is much (default: /dev/shm on a GPU machine)")
    ap.add_argument("--limit-torch", type=float, default=120, help="seconds for a shape's making and torch")
    ap.add_argument("--limit-ours", type=float, default=90)
    ap.add_argument("--until", type=float, default=float("inf"), help="no shape begins after this time (seconds since 1970)")
    ap.add_argument("--peak-tflops", type=float, help="what `of peak` is of (default: the product in OUTDIR/ceilings.json)")
    ap.add_argument("--table", action="store_true", help="only print what is there")
    ap.add_argument("--kernels", action="store_true", help="only print the kernels in OUTDIR/kernels.jsonl beside OUTDIR/ceilings.json")
    args = ap.parse_args()
    signal.signal(signal.SIGTERM, stop)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.kernels:
        for line in kernels(args.out):
            print(line)
        return
    results = args.out / "train.jsonl"
    args.scratch = args.scratch or (pathlib.Path("/dev/shm/qwen-tune-bench") if args.device != "cpu" else args.out / "scratch")
    failed = []
    if not args.table:
        results.write_text("")
        for name in filter(None, args.shapes.split(",")):
            if time.time() >= args.until:
                found = {"shape": name, "sides": [], "error": "not begun: time is up"}
            else:
                found = bench(args, name)
            if "error" in found or any("error" in side for side in found["sides"]):
                failed.append(name)
            with open(results, "a") as file:
                file.write(json.dumps(found) + "\n")
    peak = args.peak_tflops
    ceilings = args.out / "ceilings.json"
    if peak is None and ceilings.exists():
        peak = json.loads(ceilings.read_text()).get("product_tflops")
    for line in table([json.loads(line) for line in results.read_text().splitlines()], peak):
        print(line)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
