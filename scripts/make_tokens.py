#!/usr/bin/env python3
"""Turns text or messages into a `tokens` parquet file: rows of `input_ids`, for comparisons on exactly equal tokens.

    python scripts/make_tokens.py MODEL_DIR DATA.parquet OUT.parquet [--rows 16] [--length 256]

With --length all documents are joined, each followed by the end-of-text token, and cut into rows of that many tokens; without,
a document is a row. DATA has a column `text`, or `messages`, which the model's chat template renders.
"""
import argparse
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer


def documents(model, table):
    rows = table.to_pylist()
    if "text" in table.column_names:
        return (r["text"] for r in rows)
    from transformers import PreTrainedTokenizerFast

    # Not AutoTokenizer: for some model types it puts a split of its own in place of the one in tokenizer.json.
    chat = PreTrainedTokenizerFast.from_pretrained(model)
    return (
        chat.apply_chat_template([{k: v for k, v in m.items() if v is not None} for m in r["messages"]], tokenize=False)
        for r in rows
    )


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model", type=pathlib.Path)
    ap.add_argument("data", type=pathlib.Path)
    ap.add_argument("out", type=pathlib.Path)
    ap.add_argument("--rows", type=int, default=16)
    ap.add_argument("--length", type=int)
    args = ap.parse_args()
    tok = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    end = tok.token_to_id("<|endoftext|>")
    rows, stream = [], []
    for text in documents(args.model, pq.read_table(args.data)):
        ids = tok.encode(text, add_special_tokens=False).ids
        if args.length is None:
            rows.append(ids)
        else:
            stream += ids + ([end] if end is not None else [])
            while len(stream) >= args.length:
                rows.append(stream[: args.length])
                del stream[: args.length]
        if len(rows) >= args.rows:
            break
    if len(rows) < args.rows:
        raise SystemExit(f"{args.data}: only {len(rows)} rows of the {args.rows} wanted")
    table = pa.table({"input_ids": pa.array(rows[: args.rows], pa.list_(pa.int32()))})
    pq.write_table(table, args.out, compression="zstd", row_group_size=64)
    print(f"{args.out}: {table.num_rows} rows, {sum(map(len, rows[: args.rows]))} tokens")


if __name__ == "__main__":
    main()
