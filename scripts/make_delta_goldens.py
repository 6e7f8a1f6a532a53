#!/usr/bin/env python3
"""Makes crates/kernels/src/gated_delta/golden.json: outputs, final states and gradients of transformers' gated delta rule.

    pip install -r scripts/requirements.txt
    python scripts/make_delta_goldens.py

One object a case. Shapes are the key heads K, value heads V and sizes dk, dv; `lens` are the lengths of the sequences, which
torch runs one by one and we run packed. Arrays are flat, in C order, tokens of all sequences on one axis:

    q, k [T,K,dk]  v [T,V,dv]  g, beta [T,V]      inputs; q and k are normalised inside the rule
    upstream [T,V,dv]                             the gradient of `out` that the gradients below were seeded with
    out [T,V,dv]                                  of torch_chunk_gated_delta_rule
    states [sequences,V,dk,dv]                    after the last token of each sequence
    dq, dk, dv, dg, dbeta                         by torch autograd, through torch_chunk_gated_delta_rule

torch_recurrent_gated_delta_rule must agree with what is written, or nothing is written. f32 throughout, as the rule casts to it;
seeds are fixed, another torch build or CPU may differ in the last bits.
"""
import json
import pathlib

import torch
from transformers.models.qwen3_5.modeling_qwen3_5 import torch_chunk_gated_delta_rule, torch_recurrent_gated_delta_rule

OUT = pathlib.Path(__file__).resolve().parents[1] / "crates" / "kernels" / "src" / "gated_delta" / "golden.json"
CASES = [
    # name, lengths, key heads, value heads, dk, dv, decay
    ("two value heads a key head, across a chunk border", [66], 1, 2, 4, 3, 0.1),
    ("as many key heads as value heads, two sequences", [19, 6], 2, 2, 5, 7, 0.5),
    ("one token", [1], 1, 3, 8, 4, 0.5),
    ("strong decay", [65], 1, 1, 6, 4, 8.0),
]
# Relative to the largest entry; f32 rounding of sums over some tens of terms.
AGREE = 2e-5


def run(rule, inputs, upstream, lens):
    """Output, final states and gradients, the sequences one by one."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    outs, states, start = [], [], 0
    for length in lens:
        part = {name: leaf[None, start:start + length] for name, leaf in leaves.items()}
        out, state = rule(part["q"], part["k"], part["v"], g=part["g"], beta=part["beta"], initial_state=None,
                          output_final_state=True, use_qk_l2norm_in_kernel=True)
        outs.append(out[0])
        states.append(state)
        start += length
    out = torch.cat(outs)
    (out * upstream).sum().backward()
    result = {"out": out.detach(), "states": torch.cat(states).detach()}
    return result | {f"d{name}": leaf.grad for name, leaf in leaves.items()}


def flat(tensor):
    return [float(f"{value:.9g}") for value in tensor.flatten().tolist()]


def main():
    cases = []
    for seed, (name, lens, key_heads, value_heads, key_size, value_size, decay) in enumerate(CASES):
        generator = torch.Generator().manual_seed(seed)
        tokens = sum(lens)

        def normal(*shape):
            return torch.randn(*shape, generator=generator)

        def short(tensor):
            """On a grid of 1/64, which few digits name exactly."""
            return torch.round(tensor * 64) / 64

        inputs = {
            "q": short(normal(tokens, key_heads, key_size)),
            "k": short(normal(tokens, key_heads, key_size)),
            "v": short(normal(tokens, value_heads, value_size)),
            "g": short(-decay * torch.rand(tokens, value_heads, generator=generator)),
            "beta": short(torch.sigmoid(2 * normal(tokens, value_heads))),
        }
        upstream = short(normal(tokens, value_heads, value_size))
        chunked = run(torch_chunk_gated_delta_rule, inputs, upstream, lens)
        for key, expected in run(torch_recurrent_gated_delta_rule, inputs, upstream, lens).items():
            distance = ((chunked[key] - expected).abs().max() / expected.abs().max().clamp_min(1e-6)).item()
            print(f"{name}: {key} {distance:.1e}")
            assert distance < AGREE, (name, key, distance)
        sizes = {"name": name, "lens": lens, "key_heads": key_heads, "value_heads": value_heads,
                 "key_size": key_size, "value_size": value_size}
        arrays = inputs | {"upstream": upstream} | chunked
        cases.append(sizes | {key: flat(tensor) for key, tensor in arrays.items()})
    OUT.write_text("[\n" + ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases) + "\n]\n")
    print(OUT.name, OUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
