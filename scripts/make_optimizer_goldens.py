#!/usr/bin/env python3
"""Makes crates/kernels/src/adamw_compact/golden.json: ten steps of torchao's AdamW with 8-bit moments, and the numbers its codes
stand for beside those of bitsandbytes.

    pip install -r scripts/requirements.txt
    python scripts/make_optimizer_goldens.py

    signed, unsigned      create_dynamic_map of bitsandbytes; torchao's must be the same bits
    cases                 one object a tensor:
      elements, bf16      numbers, and whether values are bf16 that are rounded stochastically
      retries             [step, index, attempt] of gradients that were drawn again, see below
      first_codes, ...    hexadecimal codes and a list of scales after steps 1 and 10
      values              after step 10: a list, of bf16 their bits in hexadecimal

Values and gradients are no part of the file: both sides draw them from splitmix64 (`uniform` and `gradient`). So that the
comparison can be exact, every gradient after which a moment would lie within 2e-6 of the middle between two codes, or a value
within 16 of 65536 of where the random bits decide, is drawn again: other orders of rounding then change no code.

torchao leaves tensors in f32 that are shorter than 4096 or no multiple of 256. Where ours has a short last block, its part of
the tensor is run as a tensor of its own whose block is as long as it; the rule works element by element otherwise.
"""
import json
import os
import pathlib

os.environ["TORCHDYNAMO_DISABLE"] = "1"

import numpy as np
import torch
from bitsandbytes.functional import create_dynamic_map as bitsandbytes_map
from torchao.optim import AdamW8bit
from torchao.optim.adam import single_param_adam
from torchao.optim.quant_utils import create_dynamic_map
from torchao.optim.subclass_8bit import OptimState8bit

OUT = pathlib.Path(__file__).resolve().parents[1] / "crates" / "kernels" / "src" / "adamw_compact" / "golden.json"
CASES = [
    # name, elements, bf16
    ("as torchao has it", 4096, False),
    ("a short last block", 768 + 77, False),
    ("bf16, rounded stochastically", 4096, True),
]
STEPS, LR, BETAS, EPS, DECAY, BLOCK = 10, 1e-3, (0.9, 0.999), 1e-8, 0.1, 256
U64 = np.uint64


def floats(tensors):
    """Shortest decimals that are these f32."""
    return [float(str(np.float32(x))) for tensor in tensors for x in tensor]


def mix(state):
    z = state + U64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> U64(27))) * U64(0x94D049BB133111EB)
    return z ^ (z >> U64(31))


def uniform(key, index):
    """Of 24 bits, in -1..1."""
    bits = mix(mix(U64(key)) + index.astype(U64))
    return ((bits >> U64(40)).astype(np.float64) / 2.0**23 - 1.0).astype(np.float32)


def gradient(case, step, index, attempt):
    """Over twelve powers of two, so that codes of many decades occur."""
    key = mix(mix(mix(U64(case)) + U64(step)) + attempt.astype(U64))
    bits = mix(key + index.astype(U64))
    unit = ((bits >> U64(40)).astype(np.float64) / 2.0**23 - 1.0)
    return (unit * 2.0 ** -((bits & U64(0xFFFF)) % U64(12)).astype(np.float64)).astype(np.float32)


def random_bits(key, elements):
    """As `random_bits` of the kernel: four elements share a number."""
    groups = np.arange(1, (elements + 3) // 4 + 1, dtype=np.uint64)
    z = U64(key) + groups * U64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> U64(27))) * U64(0x94D049BB133111EB)
    z = z ^ (z >> U64(31))
    lanes = np.stack([(z >> U64(16 * lane)) & U64(0xFFFF) for lane in range(4)], axis=1).reshape(-1)
    return torch.from_numpy(lanes[:elements].astype(np.int32))


def near_middle(moment, block, numbers):
    """Elements whose code another rounding could change."""
    parts = []
    for start in range(0, len(moment), block):
        part = moment[start : start + block]
        x = part / max(np.abs(part).max(), 1e-12)
        middles = (numbers[1:] + numbers[:-1]) / 2
        at = np.clip(np.searchsorted(middles, x), 1, len(middles) - 1)
        distance = np.minimum(np.abs(x - middles[at - 1]), np.abs(x - middles[at]))
        parts.append(distance <= 2e-6 * np.maximum(np.abs(x), 1e-7))
    return np.concatenate(parts)


class Part:
    """A tensor, or the short last block of one."""

    def __init__(self, values, start, block, bf16):
        self.start, self.block = start, block
        self.value = torch.from_numpy(values.copy()).to(torch.bfloat16 if bf16 else torch.float32)
        self.first = OptimState8bit.zeros((len(values),), True, block)
        self.second = OptimState8bit.zeros((len(values),), False, block)

    def __len__(self):
        return len(self.value)

    def moments(self, g):
        g = g.astype(np.float64)
        first = self.first.dequantize().double().numpy() * BETAS[0] + (1 - BETAS[0]) * g
        second = self.second.dequantize().double().numpy() * BETAS[1] + (1 - BETAS[1]) * g * g
        return first, second

    def doubtful(self, g, step, bits):
        first, second = self.moments(g)
        bad = near_middle(first, self.block, SIGNED) | near_middle(second, self.block, UNSIGNED)
        if self.value.dtype == torch.bfloat16:
            p = self.value.double().numpy() * (1 - LR * DECAY)
            root = np.sqrt(second) / np.sqrt(1 - BETAS[1] ** step) + EPS
            p = p - LR * (first / (1 - BETAS[0] ** step)) / root
            fraction = p.astype(np.float32).view(np.uint32) & 0xFFFF
            bad |= np.abs(fraction.astype(np.int64) - bits[: len(self)].numpy()) <= 16
        return bad

    def step(self, g, step, bits):
        original = torch.randint
        torch.randint = lambda *a, **k: bits[: len(self)]
        bf16 = self.value.dtype == torch.bfloat16
        single_param_adam(
            self.value, torch.from_numpy(g), torch.tensor(float(step)), self.first, self.second, None, torch.tensor(LR),
            *BETAS, DECAY, EPS, True, bf16,
        )
        torch.randint = original


def run(case, name, elements, bf16):
    index = np.arange(elements)
    values = uniform(case, index)
    whole = elements // BLOCK * BLOCK
    parts = [Part(values[:whole], 0, BLOCK, bf16)]
    if whole < elements:
        parts.append(Part(values[whole:], whole, elements - whole, bf16))
    out = {"name": name, "elements": elements, "bf16": bf16, "retries": []}
    made = []
    for step in range(1, STEPS + 1):
        attempt = np.zeros(elements, dtype=np.int64)
        bits = random_bits(1000 * case + step, elements)
        while True:
            g = gradient(case, step, index, attempt)
            bad = np.concatenate([p.doubtful(g[p.start : p.start + len(p)], step, bits[p.start :]) for p in parts])
            if not bad.any():
                break
            attempt[bad] += 1
        out["retries"] += [[step, int(i), int(attempt[i])] for i in np.nonzero(attempt)[0]]
        made.append(g)
        for part in parts:
            part.step(g[part.start : part.start + len(part)], step, bits[part.start :])
        if step in (1, STEPS):
            for which in ("first", "second"):
                states = [getattr(part, which) for part in parts]
                out[f"{which}_codes_{step}"] = "".join(bytes(s.codes.numpy()).hex() for s in states)
                out[f"{which}_scales_{step}"] = floats(s.scale for s in states)
    if bf16:
        out["values"] = parts[0].value.view(torch.int16).numpy().astype(">u2").tobytes().hex()
    else:
        out["values"] = floats(part.value for part in parts)
        if len(parts) == 1:
            # The optimizer as users have it is this very function.
            leaf = torch.from_numpy(values.copy()).requires_grad_()
            optimizer = AdamW8bit([leaf], lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY)
            for g in made:
                leaf.grad = torch.from_numpy(g)
                optimizer.step()
            assert torch.equal(leaf.detach(), parts[0].value), "AdamW8bit goes another way"
    return out


SIGNED = np.array(create_dynamic_map(True))
UNSIGNED = np.array(create_dynamic_map(False))

if __name__ == "__main__":
    maps = {}
    for name, signed in (("signed", True), ("unsigned", False)):
        ours, theirs = torch.tensor(create_dynamic_map(signed)), bitsandbytes_map(signed)
        assert torch.equal(ours, theirs.float()), "the two libraries have other maps"
        maps[name] = floats([ours])
    np.seterr(over="ignore")
    cases = [run(case, *description) for case, description in enumerate(CASES)]
    OUT.write_text(json.dumps({**maps, "cases": cases}) + "\n")
    for case in cases:
        print(case["name"], len(case["retries"]), "gradients drawn again")
