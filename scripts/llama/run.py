#!/usr/bin/env python3
"""Asks llama.cpp about GGUF files. Needs nothing but Python and what scripts/llama/install.sh put into DIR.

    python3 scripts/llama/run.py DIR < jobs.jsonl > answers.jsonl

A job is one line of JSON, and so is its answer, in the same order; paths are relative to the working directory.

    {"model": "m.gguf", "ids": [1, 2, 3], "logits": "out.f32"}
        Logits of every position, F32, [ids, vocabulary] row by row, into a file; the answer is {"shape": [3, 2048]}. With
        "adapters": ["a.gguf", ...] those are applied, each with a factor of 1. Keys and values are kept in F32.
    {"model": "m.gguf", "texts": ["Hello", ...]}
        The answer is {"ids": [[...], ...], "ends": [...]}: the ids of each text, special tokens read as such, and the ids
        that end a text.
    {"model": "m.gguf", "quantize": "out.gguf", "file_type": 15}
        Another file of the model, as llama_model_quantize makes it; the answer is {}. A file_type of 0 is F32.

llama.cpp ends by an abort on some faults: start this in a process of its own. A job without an answer is the one that failed,
what llama.cpp said of it is on standard error, and the exit status is not 0.
"""
import argparse
import array
import ctypes
import json
import pathlib
import sys

VERSION = "v0.5.0"
CONTEXT = 256
# Several would wait for each other in busy loops, which takes ten times as long where others want the cores.
THREADS = 1
P, I8, I32, U32, F32 = ctypes.c_void_p, ctypes.c_int8, ctypes.c_int32, ctypes.c_uint32, ctypes.c_float
BOOL, SIZE, CHARS = ctypes.c_bool, ctypes.c_size_t, ctypes.c_char_p
F32_TYPE, NO_FLASH_ATTENTION = 0, 0


def structure(name, **fields):
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


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

# Results and arguments of what is called.
FUNCTIONS = dict(
    llama_backend_init=(None,),
    llama_model_default_params=(ModelParams,),
    llama_context_default_params=(ContextParams,),
    llama_model_quantize_default_params=(QuantizeParams,),
    llama_model_load_from_file=(P, CHARS, ModelParams),
    llama_model_free=(None, P),
    llama_model_get_vocab=(P, P),
    llama_vocab_n_tokens=(I32, P),
    llama_vocab_is_eog=(BOOL, P, I32),
    llama_tokenize=(I32, P, CHARS, I32, ctypes.POINTER(I32), I32, BOOL, BOOL),
    llama_init_from_model=(P, P, ContextParams),
    llama_free=(None, P),
    llama_adapter_lora_init=(P, P, CHARS),
    llama_set_adapters_lora=(I32, P, ctypes.POINTER(P), SIZE, ctypes.POINTER(F32)),
    llama_batch_init=(Batch, I32, I32, I32),
    llama_batch_free=(None, Batch),
    llama_decode=(I32, P, Batch),
    llama_get_logits=(ctypes.POINTER(F32), P),
    llama_model_quantize=(U32, CHARS, CHARS, ctypes.POINTER(QuantizeParams)),
)


def expect(value, what):
    if not value:
        raise SystemExit(f"llama.cpp does not {what}")
    return value


class Llama:
    """The library."""

    def __init__(self, directory):
        found = sorted(directory.rglob(f"libllama.{VERSION}.so"))
        if not found:
            raise SystemExit(f"{directory} holds no llama.cpp {VERSION}; scripts/llama/install.sh puts it there")
        place = found[0].parent
        ggml = [ctypes.CDLL(str(place / name), mode=ctypes.RTLD_GLOBAL) for name in ["libggml-base.so", f"libggml.{VERSION}.so"]][1]
        ggml.ggml_backend_load_all_from_path.argtypes = [CHARS]
        ggml.ggml_backend_load_all_from_path(str(place).encode())
        library = ctypes.CDLL(str(found[0]))
        for name, (result, *arguments) in FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name.removeprefix("llama_"), function)
        self.backend_init()

    def load(self, path, vocab_only=False):
        params = self.model_default_params()
        params.vocab_only, params.n_gpu_layers, params.use_extra_bufts = vocab_only, 0, False
        return expect(self.model_load_from_file(path.encode(), params), f"load {path}")

    def logits(self, job):
        ids, model = job["ids"], self.load(job["model"])
        params = self.context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_threads, params.n_threads_batch = CONTEXT, CONTEXT, CONTEXT, THREADS, THREADS
        params.type_k = params.type_v = F32_TYPE
        params.flash_attn_type = NO_FLASH_ATTENTION
        context = expect(self.init_from_model(model, params), f"run {job['model']}")
        adapters = job.get("adapters") or []
        if adapters:
            loaded = [expect(self.adapter_lora_init(model, path.encode()), f"load {path}") for path in adapters]
            count = len(loaded)
            applied = self.set_adapters_lora(context, (P * count)(*loaded), count, (F32 * count)(*[1.0] * count))
            expect(applied == 0, f"apply {adapters}")
        batch = self.batch_init(len(ids), 0, 1)
        view = lambda field, kind: ctypes.cast(getattr(batch, field), ctypes.POINTER(kind))
        for i, token in enumerate(ids):
            view("token", I32)[i], view("pos", I32)[i], view("n_seq_id", I32)[i], view("logits", I8)[i] = token, i, 1, 1
            ctypes.cast(view("seq_id", P)[i], ctypes.POINTER(I32))[0] = 0
        batch.n_tokens = len(ids)
        expect(self.decode(context, batch) == 0, f"compute {len(ids)} tokens with {job['model']}")
        width = self.vocab_n_tokens(self.model_get_vocab(model))
        values = array.array("f", ctypes.string_at(self.get_logits(context), len(ids) * width * 4))
        if sys.byteorder != "little":
            values.byteswap()
        pathlib.Path(job["logits"]).write_bytes(values.tobytes())
        self.batch_free(batch)
        self.free(context)
        self.model_free(model)
        return {"shape": [len(ids), width]}

    def tokens(self, job):
        model = self.load(job["model"], vocab_only=True)
        vocab, ids = self.model_get_vocab(model), []
        for text in job["texts"]:
            text = text.encode()
            room = (I32 * (len(text) + 8))()
            count = self.tokenize(vocab, text, len(text), room, len(room), True, True)
            expect(count >= 0, f"tokenise {text}")
            ids.append(room[:count])
        ends = [token for token in range(self.vocab_n_tokens(vocab)) if self.vocab_is_eog(vocab, token)]
        self.model_free(model)
        return {"ids": ids, "ends": ends}

    def quantise(self, job):
        params = self.model_quantize_default_params()
        params.ftype, params.nthread, params.allow_requantize = job["file_type"], THREADS, True
        done = self.model_quantize(job["model"].encode(), job["quantize"].encode(), ctypes.byref(params))
        expect(done == 0, f"quantise {job['model']}")
        return {}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=pathlib.Path, metavar="DIR")
    llama = Llama(parser.parse_args().directory.resolve())
    kinds = {"logits": llama.logits, "texts": llama.tokens, "quantize": llama.quantise}
    for line in sys.stdin:
        job = json.loads(line)
        answer = next((do for key, do in kinds.items() if key in job), None)
        if answer is None:
            raise SystemExit(f"a job has one of {', '.join(kinds)}: {line.strip()}")
        print(json.dumps(answer(job)), flush=True)


if __name__ == "__main__":
    main()
