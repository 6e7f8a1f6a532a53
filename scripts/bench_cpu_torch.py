#!/usr/bin/env python3
"""The torch + PEFT side of scripts/bench_cpu.py, which starts it in processes of their own: JOB is what it hands over.

    python scripts/bench_cpu_torch.py adapter JOB     writes the adapter that both sides start from
    python scripts/bench_cpu_torch.py steps JOB       trains some steps
"""
import contextlib
import json
import os
import pathlib
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import pyarrow.parquet as pq
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM


def adapter(job):
    """A new adapter of all linear layers but the head, and of the routed experts if asked for."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    # By name: "all-linear" would take the experts and the router of a mixture too.
    layers = sorted({n.rsplit(".", 1)[-1] for n, m in base.named_modules() if isinstance(m, torch.nn.Linear)} - {"lm_head"})
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"] if job["experts"] else None
    config = LoraConfig(
        r=job["rank"], lora_alpha=2 * job["rank"], lora_dropout=0.0, target_modules=layers, target_parameters=parameters,
        task_type="CAUSAL_LM",
    )
    get_peft_model(base, config).save_pretrained(job["out"])


def chunked_loss(hidden, head, targets, chunk):
    """Mean cross entropy with the logits of one chunk alive at a time; the backward computes them again."""

    def part(h, t):
        return cross_entropy((h @ head.T).float(), t, reduction="sum")

    hidden, targets = hidden[:, :-1].flatten(0, 1), targets[:, 1:].flatten()
    parts = [
        checkpoint(part, hidden[i : i + chunk], targets[i : i + chunk], use_reentrant=False)
        for i in range(0, len(targets), chunk)
    ]
    return torch.stack(parts).sum() / len(targets)


def steps(job):
    """Trains, and writes each step's loss, wall and CPU seconds."""
    torch.set_num_threads(job["threads"])
    transformers.utils.logging.disable_progress_bar()
    kind = job["bf16"]  # None: f32
    dtype = torch.float32 if kind in (None, "autocast-f32") else torch.bfloat16
    chosen = {"experts_implementation": job["experts"]} if job["experts"] else {}
    base = AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype, attn_implementation="sdpa", **chosen)
    model = PeftModel.from_pretrained(base, job["adapter"], is_trainable=True, autocast_adapter_dtype=kind != "pure").train()
    cast = torch.autocast("cpu", torch.bfloat16) if kind in ("autocast", "autocast-f32") else contextlib.nullcontext()
    if job["checkpoint"]:
        base.gradient_checkpointing_enable({"use_reentrant": False})
        base.enable_input_require_grads()
    if job["compile"]:
        for layer in base.model.layers:
            layer.compile()
    params = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(params, lr=job["rate"], betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    rows = torch.tensor(pq.read_table(job["tokens"]).column("input_ids").to_pylist())
    batch, micro = job["batch"], job["micro_batch"]
    losses, wall, cpu = [], [], []
    for step in range(job["steps"]):
        at_wall, at_cpu = time.perf_counter(), time.process_time()
        taken = rows[step * batch : (step + 1) * batch]
        total = 0.0
        for part in taken.split(micro):
            with cast:
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


if __name__ == "__main__":
    {"adapter": adapter, "steps": steps}[sys.argv[1]](json.loads(sys.argv[2]))
