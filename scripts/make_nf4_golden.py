#!/usr/bin/env python3
"""Writes crates/kernels/src/blocks/nf4/golden.json: what bitsandbytes itself makes of a tensor in NF4.

    pip install torch numpy bitsandbytes
    python scripts/make_nf4_golden.py

The tensor's numbers follow from the formula below, which the test repeats: 300 whole blocks, so that the scales fill more
than one range, a block of zeros among them, and a last block of 17 numbers. Of what comes out, packed codes, codes of the
scales, their ranges and the mean are kept as they are; of the decoded numbers a hash of their bits (FNV-1a, 64 bits).

The codes of scales are those of bitsandbytes' CPU build, which finds the nearest value of its map by a table of rounded
arguments; `near` lists where that is a neighbour of the nearest one, which the rule of the CUDA build gives.
"""
import json
import pathlib

import bitsandbytes
import numpy as np
import torch
from bitsandbytes import functional

BLOCKS, REST = 300, 17
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

golden = {
    "bitsandbytes": bitsandbytes.__version__,
    "codes": packed.numpy().tobytes().hex(),
    "scales": scales.tobytes().hex(),
    "near": near,
    "ranges": [float(x) for x in ranges],
    "mean": float(state.offset),
    "decoded": fnv(decoded.astype("<f4").tobytes()),
    "first": [float(x) for x in decoded[:4]],
    "map": fnv(table.astype("<f4").tobytes()),
}
TARGET.parent.mkdir(exist_ok=True)
TARGET.write_text(json.dumps(golden, indent=1) + "\n")
print(f"{TARGET}: {len(values)} numbers, {len(near)} scales beside the nearest")
