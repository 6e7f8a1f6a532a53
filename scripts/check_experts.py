#!/usr/bin/env python3
"""Checks adapters on routed experts and routers of every mixture family in PEFT and transformers.

    cargo build
    python scripts/check_experts.py [target/debug/qwen-tune]

For each family a random four-layer model is written by transformers with the tokenizer of datasets/tiny-qwen3, trained for some steps
by qwen-tune with `lora.experts`, `lora.router` and the load-balancing loss, and exported. Then scripts/check_clients.py holds what
PEFT computes with the adapter, and transformers with the merged model, against what qwen-tune says it computes.
"""
import argparse
import pathlib
import shutil
import subprocess
import sys
import tempfile

import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOKENIZER = ROOT / "datasets" / "tiny-qwen3"
SMALL = dict(
    hidden_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96, num_experts=12, num_experts_per_tok=3,
    moe_intermediate_size=32, max_position_embeddings=2048, tie_word_embeddings=False,
)
DELTA = dict(linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=16, head_dim=16)
FAMILIES = {
    "qwen2_moe": (transformers.Qwen2MoeConfig, dict(shared_expert_intermediate_size=48, mlp_only_layers=[2])),
    "qwen3_moe": (transformers.Qwen3MoeConfig, dict(head_dim=16, norm_topk_prob=True, decoder_sparse_step=2)),
    "qwen3_next": (transformers.Qwen3NextConfig, DELTA | dict(shared_expert_intermediate_size=48, mlp_only_layers=[1])),
    "qwen3_5_moe_text": (transformers.Qwen3_5MoeTextConfig, DELTA | dict(shared_expert_intermediate_size=48)),
}
RECIPE = """
[model]
base = "{base}"
[lora]
rank = 4
alpha = 16
experts = true
router = true
dropout = 0.1
[[data]]
path = "{data}"
[tokens]
max_length = 256
[objective]
router_aux_loss_coef = 0.01
[optimizer]
learning_rate = 5e-3
[run]
dir = "{run}"
steps = 12
global_batch = 8
[[export]]
to = "merged"
"""


def run(*command):
    print("+", *map(str, command), flush=True)
    subprocess.run([str(part) for part in command], check=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("binary", nargs="?", type=pathlib.Path, default=ROOT / "target" / "debug" / "qwen-tune")
    ap.add_argument("--only", choices=FAMILIES, nargs="*", default=list(FAMILIES))
    args = ap.parse_args()
    vocab = transformers.AutoConfig.from_pretrained(TOKENIZER).vocab_size
    for family in args.only:
        kind, fields = FAMILIES[family]
        with tempfile.TemporaryDirectory() as home:
            home = pathlib.Path(home)
            torch.manual_seed(5)
            config = kind(vocab_size=vocab, **SMALL | fields)
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            for name, p in model.named_parameters():
                if p.dim() > 1 and "conv1d" not in name:
                    p.data.normal_(0, 1 / p.shape[-1] ** 0.5)
            base = home / "base"
            model.save_pretrained(base)
            for file in TOKENIZER.glob("tokenizer*"):
                shutil.copy(file, base)
            recipe = home / "recipe.toml"
            recipe.write_text(RECIPE.format(base=base, data=ROOT / "datasets" / "shakespeare_chat.parquet", run=home / "run"))
            run(args.binary, "train", recipe)
            tokens = home / "tokens.parquet"
            run(sys.executable, ROOT / "scripts" / "make_tokens.py", base, ROOT / "datasets" / "shakespeare_chat_eval.parquet", tokens, "--rows", 4)
            adapter, merged = home / "run" / "adapter", home / "run" / "export" / "merged"
            run(args.binary, "eval", "--model", base, "--adapter", adapter, "--data", tokens, "--logprobs", home / "adapter.parquet")
            run(args.binary, "eval", "--model", merged, "--data", tokens, "--logprobs", home / "merged.parquet")
            run(
                sys.executable, ROOT / "scripts" / "check_clients.py", base, "--adapter", adapter, "--merged", merged, "--data", tokens,
                "--logprobs", f"adapter={home / 'adapter.parquet'}", f"merged={home / 'merged.parquet'}",
            )


if __name__ == "__main__":
    main()
