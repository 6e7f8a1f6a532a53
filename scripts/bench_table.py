#!/usr/bin/env python3
"""Joins what scripts/bench_cpu.sh found, line by line, to results.json and results.md beside the machine it was found on.

    python scripts/bench_table.py OUTDIR --binary BINARY
"""
import argparse
import datetime
import importlib.metadata
import json
import pathlib
import subprocess

WANTED = ["Model name", "CPU family", "Model", "Stepping", "CPU(s)", "Thread(s) per core", "L1d cache", "L2 cache", "L3 cache", "Hypervisor vendor"]
FLAGS = ["avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16"]
ORDER = ["tiny", "qwen3_5-tiny", "moe-small", "135m", "0.6b"]


def said(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def flat(fields):
    """Newer versions of lscpu nest what belongs together."""
    for one in fields:
        yield one["field"].strip().rstrip(":"), one["data"]
        yield from flat(one.get("children", []))


def machine():
    facts = dict(flat(json.loads(said("lscpu", "-J") or '{"lscpu": []}')["lscpu"]))
    flags = (facts.get("Flags") or "").split()
    memory = int(pathlib.Path("/proc/meminfo").read_text().split()[1]) * 1024
    return {key: facts[key] for key in WANTED if key in facts} | {"memory": memory, "flags": [f for f in FLAGS if f in flags]}


def place(line):
    name, _, dtype = line["line"].rpartition("-")
    return dtype != "f32", ORDER.index(name) if name in ORDER else len(ORDER)


def table(lines):
    yield "| line | torch | rows x length | speed, wall | speed, CPU | memory | step s | CPU s / step | tokens / s | GFLOP / CPU s | peak MB | loss gap | load |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    for one in lines:
        sides = [one["sides"].get(name) for name in ("qwen-tune", "torch")]

        def pair(key, form, scale=1.0):
            return " / ".join("-" if side is None else format(side[key] * scale, form) for side in sides)

        both = "speed_wall" in one
        # Small steps need more digits.
        digits = ".3f" if max(s["step"] for s in sides if s) < 10 else ".1f"
        cells = [
            one["line"], one["dtype"], f"{one['batch']} x {one['length']}", f"{one['speed_wall']:.2f}x" if both else "",
            f"{one['speed_cpu']:.2f}x" if both else "", f"{one['memory']:.0%}" if both else "", pair("step", digits), pair("cpu", digits),
            pair("tokens_per_second", ".0f"), pair("gflop_per_cpu_second", ".1f"), pair("peak", ".0f", 1e-6),
            f"{one['loss_difference']:.1e}" if both else "", f"{max(s['load'] for s in sides if s):.1f}",
        ]
        yield "| " + " | ".join(cells) + " |"


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out", type=pathlib.Path)
    ap.add_argument("--binary", required=True)
    args = ap.parse_args()
    lines = [{"line": file.stem} | json.loads(file.read_text()) for file in (args.out / "lines").glob("*.json")]
    lines.sort(key=place)
    where = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "commit": said("git", "describe", "--always", "--dirty"),
        "version": (said(args.binary, "--version") or "no qwen-tune").splitlines()[0],
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")},
    }
    (args.out / "results.json").write_text(json.dumps(where | {"lines": lines}, indent=1) + "\n")
    cpu = where["machine"]
    threads = sorted({one["threads"] for one in lines})
    text = [
        f"{cpu.get('CPU(s)')} cores of {cpu.get('Model name')} (family {cpu.get('CPU family')}, model {cpu.get('Model')}; "
        f"{', '.join(cpu['flags'])}), {cpu['memory'] / 1e9:.0f} GB; {where['date']}. {where['version']} at {where['commit']}; "
        + ", ".join(f"{name} {version}" for name, version in where["versions"].items())
        + f"; threads: {', '.join(map(str, threads))}.",
        "",
        "Pairs are qwen-tune / torch. Speed: torch's time over ours; memory: our peak over torch's.",
        "",
        *table(lines),
    ]
    (args.out / "results.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
