#!/usr/bin/env python3
"""Checks the GGUF files that qwen-tune writes and reads, family by family, with llama.cpp and transformers.

    npm install --ignore-scripts --no-audit --no-fund @node-llama-cpp/linux-x64@3.22.1     # llama.cpp v0.5.0, prebuilt
    pip install -r scripts/requirements.txt gguf
    cargo build --release -p qwen-tune-qwen --example gguf
    python scripts/check_gguf.py node_modules/@node-llama-cpp/linux-x64/bins/linux-x64 [CASE ...]

For each case a random model is made by transformers, a LoRA adapter on it by PEFT, and both are exported. Then

    logits      of llama.cpp on the F32 file of the base, of the merged model, and of the base with the adapter's file, are
                those of transformers; largest absolute difference and mean KL in nats
    types       of every tensor of a file of each kind, and all of its bytes, are those that llama_model_quantize makes of
                the F32 file
    tokens      of llama.cpp for texts of all sorts are those of the tokenizers library, with the file's tokenizer and with
                the one rebuilt from the file
    reading     the F32 file gives back the checkpoint's numbers, and transformers computes the same logits from them; a
                file that holds q, k and v joined, or gate and up projections of experts, gives the same

llama.cpp runs in a process of its own, since it ends by an abort on what it does not like. Exit status 1 when a check fails.
"""
import argparse
import ctypes
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOOL = ROOT / "target" / "release" / "examples" / "gguf"
TINY = ROOT / "datasets" / "tiny-qwen3"
QUANTS = dict(F16=1, BF16=32, Q8_0=7, Q4_0=2, Q4_1=3, Q5_0=8, Q5_1=9, Q4_K_S=14, Q4_K_M=15, Q5_K_S=16, Q5_K_M=17, Q6_K=18)
TOLERANCE = 2e-4
VOCAB = 2056
TEXTS = [
    "Hello, world! It's 12345 o'clock.", "  two  blanks\n\n\nand lines \r\n end ", "naïve façade — “quotes” … 北京市 2024年 こんにちは 🙂🙃",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", "def f(x):\n\treturn x**2  # comment\n", "", " ", "'s't'LL I'VE",
]


def structure(name, **fields):
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


P, I32, U32, F32, BOOL, SIZE = ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint32, ctypes.c_float, ctypes.c_bool, ctypes.c_size_t
ModelParams = structure(
    "ModelParams", devices=P, overrides=P, n_gpu_layers=I32, split_mode=I32, load_mode=I32, lazy_mode=I32, main_gpu=I32, tensor_split=P,
    progress=P, progress_data=P, kv_overrides=P, vocab_only=BOOL, check_tensors=BOOL, use_extra_bufts=BOOL, no_host=BOOL, no_alloc=BOOL,
    load_mtp=BOOL,
)
ContextParams = structure(
    "ContextParams", n_ctx=U32, n_batch=U32, n_ubatch=U32, n_seq_max=U32, n_rs_seq=U32, n_outputs_max=U32, n_outputs_max_per_seq=U32,
    n_threads=I32, n_threads_batch=I32, ctx_type=I32, rope_scaling_type=I32, pooling_type=I32, attention_type=I32, flash_attn_type=I32,
    rope_freq_base=F32, rope_freq_scale=F32, yarn_ext_factor=F32, yarn_attn_factor=F32, yarn_beta_fast=F32, yarn_beta_slow=F32,
    yarn_orig_ctx=U32, defrag_thold=F32, cb_eval=P, cb_eval_data=P, type_k=I32, type_v=I32, abort=P, abort_data=P, embeddings=BOOL,
    offload_kqv=BOOL, no_perf=BOOL, op_offload=BOOL, swa_full=BOOL, kv_unified=BOOL, samplers=P, n_samplers=SIZE, ctx_other=P,
)
QuantizeParams = structure(
    "QuantizeParams", nthread=I32, ftype=I32, output_type=I32, embedding_type=I32, allow_requantize=BOOL, quantize_output=BOOL,
    only_copy=BOOL, pure=BOOL, keep_split=BOOL, dry_run=BOOL, imatrix=P, kv_overrides=P, tensor_overrides=P, prune_layers=P, max_buf_size=SIZE,
)
Batch = structure("Batch", n_tokens=I32, token=P, embd=P, pos=P, n_seq_id=P, seq_id=P, logits=P)


class Llama:
    """What this script needs of llama.cpp."""

    def __init__(self, directory):
        for name in ["libggml-base.so", "libggml.v0.5.0.so"]:
            ctypes.CDLL(str(directory / name), mode=ctypes.RTLD_GLOBAL)
        ggml = ctypes.CDLL(str(directory / "libggml.v0.5.0.so"))
        ggml.ggml_backend_load_all_from_path(str(directory).encode())
        self.lib = ctypes.CDLL(str(directory / "libllama.v0.5.0.so"))
        result = dict(
            llama_model_default_params=ModelParams, llama_context_default_params=ContextParams, llama_model_quantize_default_params=QuantizeParams,
            llama_model_load_from_file=P, llama_init_from_model=P, llama_get_logits=ctypes.POINTER(F32), llama_model_get_vocab=P,
            llama_adapter_lora_init=P, llama_batch_init=Batch, llama_vocab_is_eog=BOOL,
        )
        for function, kind in result.items():
            getattr(self.lib, function).restype = kind
        self.lib.llama_backend_init()

    def load(self, path, vocab_only=False):
        params = self.lib.llama_model_default_params()
        params.vocab_only, params.n_gpu_layers, params.use_extra_bufts = vocab_only, 0, False
        model = self.lib.llama_model_load_from_file(str(path).encode(), params)
        if not model:
            raise SystemExit(f"llama.cpp does not load {path}")
        return P(model)

    def logits(self, path, tokens, adapter=None):
        model = self.load(path)
        params = self.lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_threads, params.n_threads_batch = 256, 256, 256, 2, 2
        params.type_k = params.type_v = 0
        params.flash_attn_type = 0
        context = P(self.lib.llama_init_from_model(model, params))
        if adapter:
            lora = P(self.lib.llama_adapter_lora_init(model, str(adapter).encode()))
            if not lora:
                raise SystemExit(f"llama.cpp does not load {adapter}")
            assert self.lib.llama_set_adapters_lora(context, (P * 1)(lora), SIZE(1), (F32 * 1)(1.0)) == 0
        batch = self.lib.llama_batch_init(len(tokens), 0, 1)
        view = lambda field, kind: ctypes.cast(getattr(batch, field), ctypes.POINTER(kind))
        for i, token in enumerate(tokens):
            view("token", I32)[i], view("pos", I32)[i], view("n_seq_id", I32)[i], view("logits", ctypes.c_int8)[i] = token, i, 1, 1
            ctypes.cast(view("seq_id", P)[i], ctypes.POINTER(I32))[0] = 0
        batch.n_tokens = len(tokens)
        assert self.lib.llama_decode(context, batch) == 0
        count = self.lib.llama_vocab_n_tokens(P(self.lib.llama_model_get_vocab(model)))
        return np.ctypeslib.as_array(self.lib.llama_get_logits(context), (len(tokens), count)).copy()

    def quantize(self, source, target, file_type):
        params = self.lib.llama_model_quantize_default_params()
        params.ftype, params.nthread = file_type, 2
        assert self.lib.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)) == 0

    def tokens(self, path, texts):
        vocab = P(self.lib.llama_model_get_vocab(self.load(path, vocab_only=True)))
        out = []
        for text in texts:
            room = (I32 * 1024)()
            count = self.lib.llama_tokenize(vocab, text.encode(), len(text.encode()), room, 1024, BOOL(True), BOOL(True))
            out.append(list(room[:count]))
        ends = [token for token in range(self.lib.llama_vocab_n_tokens(vocab)) if self.lib.llama_vocab_is_eog(vocab, token)]
        return out, ends


def worker(directory, job):
    llama = Llama(directory)
    if job["do"] == "logits":
        np.save(job["out"], llama.logits(job["model"], job["tokens"], job.get("adapter")))
    elif job["do"] == "quantize":
        llama.quantize(job["model"], job["out"], job["file_type"])
    else:
        pathlib.Path(job["out"]).write_text(json.dumps(llama.tokens(job["model"], job["texts"])))


class Checks:
    def __init__(self, llama, work):
        self.llama, self.work, self.failed = llama, work, 0

    def say(self, good, text):
        self.failed += not good
        print(("  ok    " if good else "  WRONG ") + text, flush=True)

    def run(self, **job):
        job = {key: str(value) if isinstance(value, pathlib.Path) else value for key, value in job.items()}
        done = subprocess.run([sys.executable, __file__, str(self.llama), "--worker", json.dumps(job)], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])

    def tool(self, *arguments):
        done = subprocess.run([str(TOOL), *map(str, arguments)], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{arguments}: {done.stderr}")
        return done.stderr

    def logits(self, what, expected, path, tokens, adapter=None):
        out = self.work / "logits.npy"
        self.run(do="logits", model=path, tokens=tokens, adapter=adapter, out=out)
        compare(self, what, expected, np.load(out))


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
        checks.run(do="quantize", model=out / "m-F32.gguf", out=theirs, file_type=file_type)
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

    out = checks.work / "tokens.json"
    checks.run(do="tokens", model=path, texts=TEXTS, out=out)
    found, ends = json.loads(out.read_text())
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


def check(llama, name, config, lora):
    from safetensors.numpy import load_file

    print(name, flush=True)
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        checks = Checks(llama, work)
        base, adapter, tokens, plain, adapted = make(work, config, lora)
        out, back = work / "out", work / "back"
        checks.tool("export", base, out, "m", ",".join(["F32", *QUANTS]))
        checks.tool("export", base, out, "merged", "F32", adapter)
        checks.tool("adapter", base, adapter, out / "adapter.gguf")
        checks.logits("base", plain, out / "m-F32.gguf", tokens)
        checks.logits("merged", adapted, out / "merged-F32.gguf", tokens)
        checks.logits("adapter", adapted, out / "m-F32.gguf", tokens, out / "adapter.gguf")
        check_types(checks, out)
        checks.tool("read", out / "m-F32.gguf", back)
        check_tokens(checks, out / "m-F32.gguf", base, back)
        check_reading(checks, out / "m-F32.gguf", base, back, tokens, plain)
        if joined := join(checks, out / "m-F32.gguf", out / "joined.gguf"):
            checks.tool("read", out / "joined.gguf", work / "rejoined")
            one, other = load_file(back / "model.safetensors"), load_file(work / "rejoined" / "model.safetensors")
            checks.say(set(one) == set(other) and all(np.array_equal(one[k], other[k]) for k in one), f"{joined} joined tensors read back")
        return checks.failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llama", type=pathlib.Path)
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return worker(arguments.llama, json.loads(arguments.worker))
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    known = {name: (config, lora) for name, config, lora in cases()}
    failed = sum(check(arguments.llama, name, *known[name]) for name in arguments.cases or known)
    print(f"{failed} checks failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
