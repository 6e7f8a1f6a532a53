#!/usr/bin/env python3
"""Writes crates/kernels/src/blocks/nf4/golden.json: what bitsandbytes itself makes of a tensor in NF4.

    pip install torch numpy bitsandbytes
    python scripts/make_nf4_golden.py

The tensor's numbers follow from the formula below, which the test repeats: 300 whole blocks, so that the scales fill more
than one range, a block of zeros among them, and a last block of 17 numbers. Of what comes out, packed codes, codes of the
scales, their ranges and the mean are kept as they are; of the decoded numbers a hash of their bits (FNV-1a, 64 bits).

The codes of scales are those of bitsandbytes' CPU build, which finds the nearest value of its map by a table of rounded
arguments; `near` lists where that is a neighbour of the nearest one, which the rule of the CUDA build gives.

`weighted` is what no library makes: of the same numbers as rows of 1747, which of some shares of its largest magnitude is
each block's scale of least weighted loss, found in f64 by comparing every number with every value. Blocks whose two least
losses are within a thousandth of each other are null.
"""
import json
import pathlib

import bitsandbytes
import numpy as np
import torch
from bitsandbytes import functional

BLOCKS, REST, WIDTH = 300, 17, 1747
SHARES = [1.0, 1.08, 1.04, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76]
TARGET = pathlib.Path(__file__).parents[1] / "crates/kernels/src/blocks/nf4/golden.json"


def tensor() -> np.ndarray:
    state, mask = 1, (1 << 64) - 1
    values = np.zeros(64 * BLOCKS + REST, np.float32)
    for i in range(len(values)):
        total = 0
        for _ in range(4):
            state = (state * 6364136223846793005 + 1442695040888963407) & mask
            total += state >> 40
        # Four evenly spread numbers about zero, wider from block to block.
        values[i] = np.float32((total / 2**24 - 2.0) * 0.02 * (1 + i // 64 % 7))
    values[64 * 5 : 64 * 6] = 0.0
    return values


def importance() -> np.ndarray:
    """Mean squares of input channels: of 1 to 13, but for every 97th, which is what language models have."""
    i = np.arange(WIDTH)
    return np.where(i % 97 == 5, 500.0, 1.0 + i * i % 13)


def weighted(values: np.ndarray, shares: list[float]) -> tuple[list, float]:
    """The chosen share of each block by its place in the list, and the loss of all blocks under those."""
    weights = np.resize(importance(), len(values))
    table = functional.get_4bit_type("nf4", device="cpu").numpy().astype(np.float64)
    chosen, total = [], 0.0
    for first in range(0, len(values), 64):
        block, weight = values[first : first + 64].astype(np.float64), weights[first : first + 64]
        scales = np.abs(block).max() * np.array(shares)
        errors = np.abs(block[:, None, None] - table[None, :, None] * scales[None, None, :]).min(1)
        losses = (weight[:, None] * errors**2).sum(0)
        least, next_least = np.sort(losses)[:2]
        chosen.append(int(losses.argmin()) if next_least > least * 1.001 or least == 0 else None)
        total += least
    return chosen, total


def fnv(data: bytes) -> str:
    h = 0xCBF29CE484222325
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 & (1 << 64) - 1
    return f"{h:016x}"


values = tensor()
packed, state = functional.quantize_4bit(torch.from_numpy(values), blocksize=64, compress_statistics=True, quant_type="nf4")
decoded = functional.dequantize_4bit(packed, state).numpy().reshape(-1)
_, plain = functional.quantize_4bit(torch.from_numpy(values), blocksize=64, compress_statistics=False, quant_type="nf4")

table = state.state2.code.numpy()
scales, ranges = state.absmax.numpy(), state.state2.absmax.numpy()
off = (plain.absmax - state.offset).numpy()
share = off * (np.float32(1) / ranges).repeat(256)[: len(off)]
nearest = np.abs(share[:, None] - table[None, :]).argmin(1)
near = [[int(i), int(nearest[i])] for i in np.nonzero(nearest != scales)[0]]
assert all(abs(code - int(scales[i])) == 1 for i, code in near)

shares, loss = weighted(values, SHARES)
golden = {
    "bitsandbytes": bitsandbytes.__version__,
    "codes": packed.numpy().tobytes().hex(),
    "scales": scales.tobytes().hex(),
    "near": near,
    "ranges": [float(x) for x in ranges],
    "mean": float(state.offset),
    "decoded": fnv(decoded.astype("<f4").tobytes()),
    "first": [float(x) for x in decoded[:4]],
    "weighted": {"shares": SHARES, "chosen": shares, "loss": loss},
    "map": fnv(table.astype("<f4").tobytes()),
}
TARGET.parent.mkdir(exist_ok=True)
TARGET.write_text(json.dumps(golden, indent=1) + "\n")
print(f"{TARGET}: {len(values)} numbers, {len(near)} scales beside the nearest")
