#!/usr/bin/env python3
"""Times transformers' gated delta rule in torch on this CPU, at the shape of `long_forward` and `long_backward` of our bench.

    python scripts/bench_delta.py [--threads 2] [--tokens 1024] [--rounds 5]
    cargo bench --workspace --profile dev --bench operations -- delta_rule::long

Prints the fastest and the median round in milliseconds, wall and CPU, of the chunked form: forward without a tape, and forward
with backward. On a shared machine run the two in turn.
"""
import argparse
import os
import statistics
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from transformers.models.qwen3_5.modeling_qwen3_5 import torch_chunk_gated_delta_rule

KEY_HEADS, VALUE_HEADS, SIZE = 16, 32, 128


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    def draw(*shape):
        return torch.rand(1, args.tokens, *shape) * 2 - 1

    inputs = [draw(KEY_HEADS, SIZE), draw(KEY_HEADS, SIZE), draw(VALUE_HEADS, SIZE), draw(VALUE_HEADS) / 2 - 0.5,
              draw(VALUE_HEADS) / 2 + 0.5]
    upstream = draw(VALUE_HEADS, SIZE)

    def rule(q, k, v, g, beta):
        return torch_chunk_gated_delta_rule(q, k, v, g=g, beta=beta, use_qk_l2norm_in_kernel=True)[0]

    def forward():
        with torch.no_grad():
            rule(*inputs)

    def backward():
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        (rule(*leaves) * upstream).sum().backward()

    for name, run in ("forward", forward), ("backward", backward):
        run()
        wall, cpu = [], []
        for _ in range(args.rounds):
            starts = time.perf_counter(), time.process_time()
            run()
            wall.append((time.perf_counter() - starts[0]) * 1e3)
            cpu.append((time.process_time() - starts[1]) * 1e3)
        print(f"{name}: wall {min(wall):.0f} fastest, {statistics.median(wall):.0f} median; "
              f"CPU {min(cpu):.0f} fastest, {statistics.median(cpu):.0f} median")


if __name__ == "__main__":
    main()
