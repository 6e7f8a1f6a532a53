#!/usr/bin/env python3
"""Times transformers' mixture of experts in torch on this CPU, at the shape of `experts` of our bench: 512 tokens, four experts each,
512 channels, 256 inside an expert; the experts frozen.

    python scripts/bench_experts.py [--threads 2] [--experts 8 16 32 64 128] [--rounds 5]
    cargo bench --workspace --profile dev --bench operations -- experts

Prints the fastest and the median round in milliseconds, wall and CPU: forward without a tape, and forward with backward to the
input, of the loop over experts and of the grouped product. On a shared machine run the two in turn.
"""
import argparse
import os
import statistics
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

TOKENS, ACTIVE, WIDTH, INNER = 512, 4, 512, 256


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    x, upstream = torch.rand(TOKENS, WIDTH) * 2 - 1, torch.rand(TOKENS, WIDTH) * 2 - 1
    weights = torch.rand(TOKENS, ACTIVE)
    for count in args.experts:
        chosen = (torch.arange(TOKENS)[:, None] + torch.arange(ACTIVE) * count // ACTIVE) % count
        for kind in "eager", "grouped_mm":
            config = Qwen3MoeConfig(num_experts=count, num_experts_per_tok=ACTIVE, hidden_size=WIDTH, moe_intermediate_size=INNER)
            config._experts_implementation = kind
            experts = Qwen3MoeExperts(config).requires_grad_(False)
            for p in experts.parameters():
                p.uniform_(-1, 1)

            def forward():
                with torch.no_grad():
                    experts(x, chosen, weights)

            def backward():
                leaf = x.clone().requires_grad_()
                (experts(leaf, chosen, weights) * upstream).sum().backward()

            for name, run in ("forward", forward), ("backward", backward):
                run()
                wall, cpu = [], []
                for _ in range(args.rounds):
                    starts = time.perf_counter(), time.process_time()
                    run()
                    wall.append((time.perf_counter() - starts[0]) * 1e3)
                    cpu.append((time.process_time() - starts[1]) * 1e3)
                print(f"{count} experts, {kind}, {name}: wall {min(wall):.1f} fastest, {statistics.median(wall):.1f} median; "
                      f"CPU {min(cpu):.1f} fastest, {statistics.median(cpu):.1f} median")


if __name__ == "__main__":
    main()
