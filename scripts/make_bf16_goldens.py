#!/usr/bin/env python3
"""Makes tests/goldens/bf16.json: how far transformers and PEFT in bf16 are from themselves in f32, on the goldens' models.

    pip install -r scripts/requirements.txt
    python scripts/make_bf16_goldens.py [CASE ...]

The base is loaded in bf16, as `dtype="bfloat16"` does; PEFT keeps the adapter in f32; the loss is taken from the logits in f32.
How far two roundings lie from what they round is a matter of luck, above all where a router may choose another expert, so a
case has several batches: batch S is the golden's, S * SHIFT added to every token and label modulo the vocabulary.

    loss        [BATCHES]  |bf16 - f32| of the mean loss
    gradient    [BATCHES]  ‖bf16 - f32‖ / ‖f32‖ over the gradients of all adapters together
    routes      tokens of sparse layers, of all batches together, whose chosen experts are not the same; of `routed` a batch
    curve       [CURVES]   root of the mean square of bf16 - f32 over the losses of ten steps as in make_goldens.py, each curve on
                           one batch from the starting adapter on
    full_curve  [CURVES]   some cases: the same for full fine-tuning without an adapter, the trained weights kept in f32 and
                           rounded to bf16 at the beginning of each step

Another torch build or CPU rounds otherwise, to distances of the same size.
"""
import itertools
import json
import sys

import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from torch.func import functional_call

from make_goldens import OUT, cases, hybrid_cases, load, mean_loss, moe_cases, ten_steps, text_config

BATCHES, CURVES, SHIFT = 12, 4, 7


def adapted(path, dtype):
    model = PeftModel.from_pretrained(load(path, dtype), path / "adapter", is_trainable=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained and all(p.dtype == torch.float32 for p in trained), "PEFT keeps adapters in f32"
    return model, trained


def shifted(golden, by, vocab):
    ids, labels = golden["input_ids"], golden["labels"]
    return (ids + by) % vocab, torch.where(labels < 0, labels, (labels + by) % vocab)


def step(model, trained, ids, labels):
    """Loss, gradients as one vector, chosen experts of each sparse layer."""
    chosen, hooks = [], []
    for router in (m for m in model.modules() if type(m).__name__.endswith("TopKRouter")):
        hooks.append(router.register_forward_hook(lambda m, i, o: chosen.append(o[2].sort(-1).values)))
    loss = mean_loss(model(input_ids=ids, use_cache=False).logits.float(), labels)
    for hook in hooks:
        hook.remove()
    gradients = torch.autograd.grad(loss, trained)
    return loss.item(), torch.cat([g.float().flatten() for g in gradients]).double(), chosen


def curve(path, dtype, ids, labels):
    model, trained = adapted(path, dtype)
    losses, _ = ten_steps(lambda: model(input_ids=ids, use_cache=False).logits.float(), trained, labels)
    return losses


def full_curve(path, dtype, ids, labels):
    model = load(path, dtype)
    weights = {name: p.detach().float().requires_grad_() for name, p in load(path).named_parameters()}
    rounded = lambda: {name: w.to(dtype) for name, w in weights.items()}
    forward = lambda: functional_call(model, rounded(), (), dict(input_ids=ids, use_cache=False)).logits.float()
    losses, _ = ten_steps(forward, list(weights.values()), labels)
    return losses


def distances(path, case):
    golden = load_file(path / "golden.safetensors")
    batches = [shifted(golden, s * SHIFT, text_config(case)["vocab_size"]) for s in range(BATCHES)]
    out = {"loss": [], "gradient": [], "routes": 0, "routed": 0, "curve": []}
    plain, rounded = adapted(path, torch.float32), adapted(path, torch.bfloat16)
    for s, (ids, labels) in enumerate(batches):
        loss, gradient, chosen = step(*plain, ids, labels)
        loss_16, gradient_16, chosen_16 = step(*rounded, ids, labels)
        assert s > 0 or abs(loss - golden["loss"].item()) < 1e-5, "the golden was made by another torch"
        out["loss"].append(abs(loss_16 - loss))
        out["gradient"].append(((gradient_16 - gradient).norm() / gradient.norm()).item())
        out["routes"] += sum((a != b).any(-1).sum().item() for a, b in zip(chosen, chosen_16))
        out["routed"] = sum(a.numel() // a.shape[-1] for a in chosen)
    for kind, run in [("curve", curve)] + [("full_curve", full_curve)] * bool(case.get("full")):
        both = [(run(path, torch.float32, *batch), run(path, torch.bfloat16, *batch)) for batch in batches[:CURVES]]
        out[kind] = [(b - a).square().mean().sqrt().item() for a, b in both]
    return {k: [float(f"{x:.3g}") for x in v] if isinstance(v, list) else v for k, v in out.items()}


def main():
    wanted = sys.argv[1:]
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    file = OUT / "bf16.json"
    out = json.loads(file.read_text()) if wanted else {}
    for name, case in itertools.chain(cases(), moe_cases(), hybrid_cases()):
        if not wanted or name in wanted:
            out[name] = distances(OUT / name, case)
            print(name, json.dumps(out[name]), flush=True)
    lines = [f"  {json.dumps(name)}: {json.dumps(case)}" for name, case in out.items()]
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
