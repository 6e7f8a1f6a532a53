#!/usr/bin/env python3
"""Compares llama.cpp's tokens of a GGUF file with those of the tokenizer it was made from, on real text.

    scripts/llama/install.sh LLAMA_DIR
    qwen-tune export --model MODEL_DIR --to gguf --quant f16 --out OUT
    python scripts/check_gguf_tokens.py LLAMA_DIR MODEL_DIR OUT/OUT-F16.gguf DATA.parquet [...]

DATA has a column `text`, or `messages`, whose contents are taken one by one. Text is composed (NFC) first: Qwen's tokenizer does that
itself, llama.cpp never does. Exit status 1 when a text has other tokens.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import unicodedata

import pyarrow.parquet as pq
from tokenizers import Tokenizer

RUN = pathlib.Path(__file__).resolve().parent / "llama" / "run.py"
PIECE = 1500
HARD = [
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01 \u3053\u3093\u306b\u3061\u306f \ud55c\uad6d\uc5b4 \u041f\u0440\u0438\u0432\u0435\u0442 \u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd \u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22",
    "  \n\n\t  x \r\n y\u00a0z\u3000w 1234567 \u00bd \u00b2 \U0001f469\u200d\U0001f52c don't I'LL we've",
    "<|im_start|>user\nhi<|im_end|>\n<think>\nhm\n</think>\n<tool_call>{}</tool_call><|endoftext|>",
]


def texts(path):
    for row in pq.read_table(path).to_pylist():
        for text in [row["text"]] if "text" in row else [m["content"] for m in row["messages"] if m.get("content")]:
            yield from (text[at : at + PIECE] for at in range(0, len(text), PIECE))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("llama", type=pathlib.Path)
    ap.add_argument("model", type=pathlib.Path)
    ap.add_argument("gguf", type=pathlib.Path)
    ap.add_argument("data", type=pathlib.Path, nargs="+")
    ap.add_argument("--texts", type=int, default=2000, help="most texts of each file")
    args = ap.parse_args()
    every = HARD + [text for path in args.data for text in list(texts(path))[: args.texts]]
    every = [unicodedata.normalize("NFC", text) for text in every]
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    job = json.dumps({"model": str(args.gguf), "texts": every})
    answer = subprocess.run([sys.executable, RUN, args.llama], input=job + "\n", capture_output=True, text=True)
    if answer.returncode:
        sys.exit(answer.stderr)
    theirs = json.loads(answer.stdout.splitlines()[0])["ids"]
    tokens, different = 0, 0
    for text, found in zip(every, theirs, strict=True):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        tokens += len(ids)
        if ids != found:
            different += 1
            at = next((i for i, (a, b) in enumerate(zip(ids, found)) if a != b), min(len(ids), len(found)))
            print(f"differs at token {at}: {ids[at:at + 4]} and {found[at:at + 4]}, near {tokenizer.decode(ids[max(0, at - 3):at + 4])!r}")
    print(f"{args.gguf.name}: {len(every)} texts, {tokens} tokens, {different} texts with other tokens")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
