#!/usr/bin/env python3
"""Checks the GGUF files that qwen-tune writes and reads, family by family, with llama.cpp and transformers.

    scripts/llama/install.sh target/llama.cpp
    pip install -r scripts/requirements.txt
    cargo build
    python scripts/check_gguf.py target/llama.cpp [CASE ...]

For each case a random model is made by transformers, a LoRA adapter on it by PEFT, and both are exported. Then

    logits      of llama.cpp on the F32 file of the base, of the merged model, and of the base with the adapter's file, are
                those of transformers; largest absolute difference and mean KL in nats
    types       of every tensor of a file of each kind, and all of its bytes, are those that llama_model_quantize makes of
                the F32 file
    tokens      of llama.cpp for texts of all sorts are those of the tokenizers library, with the file's tokenizer and with
                the one rebuilt from the file
    reading     the F32 file, with an adapter of nothing merged into it, gives back the checkpoint's numbers, and transformers
                computes the same logits from them; a file that holds q, k and v joined, or gate and up projections of
                experts, gives the same

The tests of the program (tests/clients) ask llama.cpp much of this too, against our own computation instead of transformers'.
Exit status 1 when a check fails.
"""
import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
TINY = ROOT / "datasets" / "tiny-qwen3"
QUANTS = dict(F16=1, BF16=32, Q8_0=7, Q4_0=2, Q4_1=3, Q5_0=8, Q5_1=9, Q4_K_S=14, Q4_K_M=15, Q5_K_S=16, Q5_K_M=17, Q6_K=18, IQ4_NL=25, MXFP4_MOE=38)
TOLERANCE = 2e-4
VOCAB = 2056
TEXTS = [
    "Hello, world! It's 12345 o'clock.", "  two  blanks\n\n\nand lines \r\n end ", "naïve façade — “quotes” … 北京市 2024年 こんにちは 🙂🙃",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", "def f(x):\n\treturn x**2  # comment\n", "", " ", "'s't'LL I'VE",
]


class Checks:
    def __init__(self, program, llama, work):
        self.program, self.llama, self.work, self.failed = program, llama, work, 0

    def say(self, good, text):
        self.failed += not good
        print(("  ok    " if good else "  WRONG ") + text, flush=True)

    def ask(self, **job):
        """llama.cpp's answer."""
        command = [sys.executable, str(ROOT / "scripts" / "llama" / "run.py"), str(self.llama)]
        done = subprocess.run(command, input=json.dumps(job, default=str) + "\n", capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        return json.loads(done.stdout)

    def export(self, model, to, out, *arguments):
        command = [self.program, "export", "--model", model, "--to", to, "--out", out, *arguments]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{command}: {done.stderr}")
        return out

    def logits(self, what, expected, path, tokens, *adapters):
        out = self.work / "logits.f32"
        shape = self.ask(model=path, ids=tokens, adapters=adapters, logits=out)["shape"]
        compare(self, what, expected, np.fromfile(out, "<f4").reshape(shape))


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def compare(checks, what, expected, found):
    found = found[:, : expected.shape[1]]
    one, other = log_softmax(expected.astype(np.float64)), log_softmax(found.astype(np.float64))
    worst, kl = np.abs(expected - found).max(), (np.exp(one) * (one - other)).sum(-1).mean()
    checks.say(worst < TOLERANCE, f"{what}: logits differ by at most {worst:.1e}, KL {kl:.1e}")


def cases():
    import transformers as t

    small = dict(
        vocab_size=VOCAB, hidden_size=256, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, num_hidden_layers=4,
        rms_norm_eps=1e-6,
    )
    dense = dict(intermediate_size=512)
    experts = dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=256, intermediate_size=512, mlp_only_layers=[], decoder_sparse_step=1)
    shared = dict(shared_expert_intermediate_size=256)
    delta = dict(linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=64, linear_value_head_dim=64, linear_conv_kernel_dim=4)
    types = ["linear_attention", "linear_attention", "full_attention", "linear_attention"]
    plain = dict(rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    partial = dict(rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5})
    yarn = dict(rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128})
    own = dict(rope_parameters=yarn["rope_parameters"] | {"attention_factor": 1.3})
    wave = dict(rope_parameters={
        "rope_type": "llama3", "rope_theta": 1000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    })
    linear = dict(rope_parameters={"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0})
    yield "qwen2_tied", t.Qwen2Config(**small | dense | plain, tie_word_embeddings=True), dict(r=4)
    yield "qwen2_yarn", t.Qwen2Config(**small | dense | yarn, tie_word_embeddings=False), dict(r=4, use_rslora=True)
    yield "qwen2_yarn_factor", t.Qwen2Config(**small | dense | own | dict(num_hidden_layers=9), tie_word_embeddings=False), dict(r=4)
    yield "qwen2_moe_tied", t.Qwen2MoeConfig(**small | experts | shared | plain, norm_topk_prob=False, tie_word_embeddings=True), dict(r=4)
    yield "qwen3", t.Qwen3Config(**small | dense | plain, head_dim=32, tie_word_embeddings=False), dict(
        r=4, rank_pattern={"q_proj": 8}, alpha_pattern={"layers.1.*": 3})
    yield "qwen3_tied", t.Qwen3Config(**small | dense | plain | dict(num_hidden_layers=17), head_dim=32, tie_word_embeddings=True), dict(r=4)
    yield "qwen3_moe", t.Qwen3MoeConfig(**small | experts | plain, head_dim=32, norm_topk_prob=True, tie_word_embeddings=False), dict(r=4)
    yield "qwen3_next", t.Qwen3NextConfig(
        **small | experts | shared | delta | partial, layer_types=types, head_dim=64, norm_topk_prob=True, tie_word_embeddings=False), dict(r=4)
    yield "qwen3_5", t.Qwen3_5TextConfig(**small | dense | delta | partial, layer_types=types, head_dim=64, tie_word_embeddings=False), dict(r=4)
    yield "qwen3_5_tied", t.Qwen3_5TextConfig(
        **small | dense | delta | partial | dict(linear_num_value_heads=2), layer_types=types, head_dim=64, tie_word_embeddings=True), dict(r=4)
    yield "qwen3_5_moe", t.Qwen3_5MoeTextConfig(
        **small | experts | shared | delta | partial, layer_types=types, head_dim=64, tie_word_embeddings=False), dict(r=4)
    yield "llama3_rope", t.LlamaConfig(**small | dense | wave, tie_word_embeddings=True), dict(r=4)
    yield "llama_biases", t.LlamaConfig(**small | dense | linear, attention_bias=True, mlp_bias=True, tie_word_embeddings=False), dict(r=4)
    yield "mistral", t.MistralConfig(**small | dense | plain, sliding_window=None, tie_word_embeddings=False), dict(r=4)


LINEARS = (
    "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj in_proj_qkvz in_proj_ba in_proj_qkv in_proj_z in_proj_b in_proj_a out_proj".split()
)


def make(work, config, lora):
    """Base and adapter with the logits of both, as transformers and PEFT write and compute them."""
    import torch
    from make_goldens import randomise
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(7)
    torch.set_num_threads(2)
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    randomise(model)
    base, adapter = work / "base", work / "adapter"
    model.save_pretrained(base)
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]:
        shutil.copy(TINY / name, base / name)
    tokens = np.random.default_rng(3).integers(0, VOCAB, 96).tolist()
    run = lambda model: model(torch.tensor([tokens])).logits[0].detach().numpy()
    plain = run(model)
    modules = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"] if hasattr(config, "num_experts") else None
    settings = dict(lora_alpha=8) | lora | dict(target_modules=sorted(modules & set(LINEARS)), target_parameters=experts)
    peft = get_peft_model(model, LoraConfig(**settings, task_type="CAUSAL_LM"))
    for name, p in peft.named_parameters():
        if "lora_" in name:
            p.data.normal_(0, 0.4 / p.shape[-1] ** 0.5)
    peft.save_pretrained(adapter)
    return base, adapter, tokens, plain, run(peft.eval())


def check_types(checks, out):
    """Our files against what llama.cpp makes of the F32 one."""
    import gguf

    for name, file_type in QUANTS.items():
        theirs = checks.work / f"theirs-{name}.gguf"
        checks.ask(model=out / "m-F32.gguf", quantize=theirs, file_type=file_type)
        read = lambda path: {tensor.name: (tensor.tensor_type.name, tensor.data) for tensor in gguf.GGUFReader(path).tensors}
        ours, theirs_read = read(out / f"m-{name}.gguf"), read(theirs)
        kinds = [key for key in theirs_read if ours[key][0] != theirs_read[key][0]]
        differ = [key for key in theirs_read if key not in kinds and not np.array_equal(ours[key][1], theirs_read[key][1])]
        counts = {}
        for kind, _ in ours.values():
            counts[kind] = counts.get(kind, 0) + 1
        good = set(ours) == set(theirs_read) and not kinds and not differ
        detail = "" if good else f"; types {[(k, ours[k][0], theirs_read[k][0]) for k in kinds][:4]}, bytes {differ[:4]}"
        checks.say(good, f"{name}: {len(ours)} tensors of the types and bytes of llama.cpp ({counts}){detail}")
        theirs.unlink()


def check_tokens(checks, path, base, back):
    from tokenizers import Tokenizer

    answer = checks.ask(model=path, texts=TEXTS)
    found, ends = answer["ids"], answer["ends"]
    expected = [Tokenizer.from_file(str(base / "tokenizer.json")).encode(text).ids for text in TEXTS]
    rebuilt = [Tokenizer.from_file(str(back / "tokenizer.json")).encode(text).ids for text in TEXTS]
    wrong = [text for text, one, other in zip(TEXTS, found, expected) if one != other]
    checks.say(not wrong, f"tokens of {len(TEXTS)} texts ({sum(map(len, expected))} tokens), ends {ends} {wrong}")
    checks.say(rebuilt == expected, "tokens of the rebuilt tokenizer")


def check_reading(checks, path, base, back, tokens, plain):
    import torch
    from safetensors.numpy import load_file
    from transformers import AutoModelForCausalLM

    before = {name: value for file in base.glob("*.safetensors") for name, value in load_file(file).items()}
    after = load_file(back / "model.safetensors")
    worst = max(np.abs(before[name] - value).max() for name, value in after.items() if name in before and name != "lm_head.weight" or name in before)
    checks.say(worst < 1e-6, f"{len(after)} tensors read back, {len(set(after) & set(before))} of them stored alike, differ by at most {worst:.1e}")
    model = AutoModelForCausalLM.from_pretrained(back, dtype=torch.float32, attn_implementation="eager").eval()
    compare(checks, "transformers on the model read back", plain, model(torch.tensor([tokens])).logits[0].detach().numpy())


def join(checks, path, target):
    """The file with q, k, v and gate, up joined, as newer converters can write it."""
    import gguf

    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kind = field.types[0]
            writer.add_key_value(field.name, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    joined = 0
    for name in list(tensors):
        for parts, whole, axis in [
            (["attn_q.weight", "attn_k.weight", "attn_v.weight"], "attn_qkv.weight", 0), (["attn_q.bias", "attn_k.bias", "attn_v.bias"], "attn_qkv.bias", 0),
            (["ffn_gate_exps.weight", "ffn_up_exps.weight"], "ffn_gate_up_exps.weight", 1),
        ]:
            stem = name.removesuffix(parts[0])
            if name.endswith("." + parts[0]) and stem + whole not in tensors:
                tensors[stem + whole] = np.concatenate([tensors.pop(stem + part) for part in parts], axis)
                joined += 1
    for name, data in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return joined


def nothing(adapter, target):
    """An adapter that changes nothing, with which a file alone can be merged into a checkpoint."""
    from safetensors.numpy import load_file, save_file

    target.mkdir()
    shutil.copy(adapter / "adapter_config.json", target)
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name: value * 0 if "lora_B" in name else value for name, value in tensors.items()}, target / "adapter_model.safetensors")
    return target


def check(program, llama, name, config, lora):
    from safetensors.numpy import load_file

    print(name, flush=True)
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        checks = Checks(program, llama, work)
        base, adapter, tokens, plain, adapted = make(work, config, lora)
        out, merged, back = work / "m", work / "merged", work / "back"
        checks.export(base, "gguf", out, "--quant", ",".join(["F32", *QUANTS]), "--no-verify")
        checks.export(base, "gguf", merged, "--quant", "F32", "--adapter", adapter)
        checks.export(base, "adapter-gguf", work / "a", "--adapter", adapter)
        checks.logits("base", plain, out / "m-F32.gguf", tokens)
        checks.logits("merged", adapted, merged / "merged-F32.gguf", tokens)
        checks.logits("adapter", adapted, out / "m-F32.gguf", tokens, work / "a" / "a-adapter-F32.gguf")
        check_types(checks, out)
        same = ["--adapter", nothing(adapter, work / "nothing"), "--no-verify"]
        checks.export(out / "m-F32.gguf", "merged", back, *same)
        check_tokens(checks, out / "m-F32.gguf", base, back)
        check_reading(checks, out / "m-F32.gguf", base, back, tokens, plain)
        if joined := join(checks, out / "m-F32.gguf", work / "joined.gguf"):
            again = checks.export(work / "joined.gguf", "merged", work / "again", *same)
            one, other = load_file(back / "model.safetensors"), load_file(again / "model.safetensors")
            checks.say(set(one) == set(other) and all(np.array_equal(one[k], other[k]) for k in one), f"{joined} joined tensors read back")
        return checks.failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llama", type=pathlib.Path, help="where scripts/llama/install.sh put llama.cpp")
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--program", type=pathlib.Path, default=ROOT / "target" / "debug" / "qwen-tune")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    known = {name: (config, lora) for name, config, lora in cases()}
    failed = sum(check(arguments.program, arguments.llama, name, *known[name]) for name in arguments.cases or known)
    print(f"{failed} checks failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
