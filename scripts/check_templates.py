#!/usr/bin/env python3
"""Checks that qwen-tune renders, tokenises and masks conversations as transformers' `apply_chat_template` does.

    cargo build --workspace
    pip install --no-deps trl==1.16.0          # brings the vendors' templates
    python scripts/check_templates.py datasets/tools_bfcl_train.parquet datasets/shakespeare_chat.parquet \\
        --tokenizer QWEN3_DIR --tokenizer 'qwen3_[568]*=QWEN3_5_DIR'

FILE is parquet or jsonl with `messages` and, if there are any, `tools`. Each row is rendered as it is and in variants: with a
system message, with reasoning under each of its names and inside the text, with arguments of tool calls as objects and as JSON
text, with arguments of every type, with blanks around the text, cut short, split into prompt and completion, and in orders
that some templates refuse. Every variable that a template reads and that is known here takes each of its values.

Compared are the text, byte for byte; the token ids; the trained tokens, with `return_assistant_tokens_mask` where the template
has `{% generation %}`, else with ChatML's frame as read off the text; and who refuses what. Prints a table and exits 1 on any
difference. Templates are read from TRL, or from the files and directories given with --templates.
"""
import argparse
import copy
import fnmatch
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pyarrow.parquet as pq
import transformers
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerFast

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Variables of templates, and values that tell their branches apart; the last effort is one that Qwen3.8 refuses.
VARIABLES = {
    "enable_thinking": [True, False],
    "preserve_thinking": [True, False],
    "reasoning_effort": ["low", "medium", "xhigh", "absurd"],
    "add_vision_id": [True],
    "date_string": ["26 Jul 2024"],
    "tools_in_user_message": [False],
    "thinking": [True],
    "clear_thinking": [True, False],
    "truncate_history_thinking": [True, False],
    "low_effort": [True],
    "medium_effort": [True],
}
# Always given where it is read: without it a template prints today's date, and both sides read their clocks.
PINNED = {"date_string": "26 Jul 2024"}
SYSTEM = "You are a careful assistant.\n\nAnswer in one sentence."
ODD = {"flag": True, "none": None, "ratio": 1.50, "tiny": 1e-7, "big": 2**62, "text": "a\nb <é&'\"\\ 𝄞", "list": [1, {"k": []}, "x"]}
GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
TURN = re.compile(r"<\|im_start\|>([^\n]*)\n((?:(?!<\|im_start\|>).)*?(?:<\|im_end\|>|\Z))", re.S)
EMPTY_THINK = re.compile(r"<think>\n\n</think>(\n\n)?")


def read_rows(path, limit):
    """Rows spread over the whole file; null fields dropped, as parquet gives every struct the fields of all."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        if "messages" not in table.column_names:
            raise SystemExit(f"{path}: no column `messages`")
        rows = table.to_pylist()
    else:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    step = max(1, len(rows) // limit)
    for row in rows[::step][:limit]:
        tools = row.get("tools")
        yield without_nulls(row["messages"]), json.loads(tools) if isinstance(tools, str) else tools


def without_nulls(value):
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


def calls(messages):
    for message in messages:
        for call in message.get("tool_calls") or []:
            yield call.get("function", call)


def answers(messages):
    return [m for m in messages if m["role"] == "assistant"]


def variants(messages, tools):
    """Pairs of a name and a conversation."""
    def changed(change):
        copied = copy.deepcopy(messages)
        result = change(copied)
        return copied if result is None else result

    def each_answer(change):
        return changed(lambda ms: [change(i, m) for i, m in enumerate(answers(ms))] and None)

    def reason(name):
        return each_answer(lambda i, m: m.update({name: f"Turn {i}: what was asked?\n\n  Then what follows. "}))

    yield "as it is", messages, tools
    if messages[0]["role"] != "system":
        yield "system", [{"role": "system", "content": SYSTEM}, *messages], tools
    yield "without tools", messages, None
    yield "reasoning_content", reason("reasoning_content"), tools
    yield "thinking", reason("thinking"), None
    yield "reasoning", reason("reasoning"), tools
    yield "inline", each_answer(lambda i, m: m.update(content="<think>\nWhy?\n</think>\n\n" + (m.get("content") or ""))), tools
    yield "half a block", each_answer(lambda i, m: m.update(content="Why?\n</think>" + (m.get("content") or ""))), tools
    yield "blanks", changed(lambda ms: [m.update(content=f" \n\t{m.get('content') or ''}  \n\n") for m in ms] and None), tools
    yield "cut short", messages[: max(1, len(messages) // 2)], tools
    yield "two answers", messages + [{"role": "assistant", "content": "And one more."}], tools
    yield "late system", messages + [{"role": "system", "content": SYSTEM}], tools
    yield "no user", [m for m in messages if m["role"] != "user"] or messages, tools
    yield "spelt tokens", messages + [{"role": "user", "content": "<|im_end|><|endoftext|> </think> <tool_call>"}], tools
    yield "parts", changed(lambda ms: [m.update(content=[{"type": "text", "text": t} for t in (m.get("content") or "").partition(" ") if t] or "") for m in ms] and None), tools
    if any(True for _ in calls(messages)):
        yield "objects", changed(lambda ms: [c.update(arguments=parsed(c["arguments"])) for c in calls(ms)] and None), tools
        yield "odd arguments", changed(lambda ms: [c.update(arguments={**parsed(c["arguments"]), **ODD}) for c in calls(ms)] and None), tools
        yield "odd text", changed(lambda ms: [c.update(arguments=json.dumps({**parsed(c["arguments"]), **ODD})) for c in calls(ms)] and None), tools
        yield "bare calls", changed(lambda ms: [m.update(tool_calls=[c.get("function", c) for c in m["tool_calls"]]) for m in ms if m.get("tool_calls")] and None), tools
        yield "no arguments", changed(lambda ms: [c.update(arguments="{}") for c in calls(ms)] and None), tools


def parsed(arguments):
    return json.loads(arguments) if isinstance(arguments, str) else arguments


def as_read(messages):
    """What the manual says of rows: JSON text of arguments is parsed, parts of text are joined, no content is none."""
    messages = copy.deepcopy(messages)
    for call in calls(messages):
        call["arguments"] = parsed(call["arguments"])
    for message in messages:
        if isinstance(message.get("content"), list):
            message["content"] = "".join(part["text"] for part in message["content"])
        message.setdefault("content", "")
    return messages


class Reference:
    """transformers, with one tokenizer."""

    def __init__(self, directory):
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)

    def render(self, template, variables, messages, tools, prompt=False):
        """The text, or the exception as text."""
        try:
            return self.tokenizer.apply_chat_template(
                messages, tools=tools, chat_template=template, tokenize=False, add_generation_prompt=prompt, **variables
            ), None
        except Exception as error:  # whatever a template does wrong
            return None, f"{type(error).__name__}: {error}"

    def row(self, template, variables, case):
        """Text, ids and trained tokens of a case, or why it is refused."""
        _, messages, tools, split = case
        messages = as_read(messages)
        text, refused = self.render(template, variables, messages, tools)
        if refused:
            return None, refused
        head = 0
        if split is not None:
            prompt, refused = self.render(template, variables, messages[:split], tools, True)
            if refused or not text.startswith(prompt):
                return None, refused or "the prompt is not how the whole begins"
            head = len(prompt)
        if GENERATION.search(template):
            encoding = self.tokenizer.apply_chat_template(
                messages, tools=tools, chat_template=template, return_assistant_tokens_mask=True,
                tokenizer_kwargs={"return_offsets_mapping": True}, **variables,
            )  # fmt: skip
            ends = (end for _, end in encoding["offset_mapping"])
            trained = [m == 1 and end > head for m, end in zip(encoding["assistant_masks"], ends)]
        else:
            encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            trained = None
        ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
        if trained is None:
            trained = chatml(text, offsets, head) if "<|im_start|>" in template else [True] * len(ids)
        if trained:
            trained[0] = False
        return {"text": text, "ids": ids, "trained": trained}, None


def chatml(text, offsets, head):
    """Tokens of answers, end token included, that begin behind the header; an empty thinking block is not trained."""
    trained = [False] * len(offsets)
    for turn in TURN.finditer(text):
        start, end = max(turn.start(2), head), turn.end(2)
        if turn.group(1).strip() != "assistant" or start >= end:
            continue
        block = EMPTY_THINK.match(text, start, end)
        for i, (a, b) in enumerate(offsets):
            if start <= a < end and not (block and a < block.end()):
                trained[i] = b > start
    return trained


class Ours:
    """The binary, on a model directory of its own for each tokenizer."""

    def __init__(self, binary, home):
        self.binary, self.home = binary, home

    def rows(self, model, template, variables, cases, loss_on):
        """For each case the row that was printed, or why there is none. A refused row ends a run, so the next begins behind it."""
        out = []
        while len(out) < len(cases):
            rest = cases[len(out) :]
            lines, error = self.run(model, template, variables, rest, loss_on)
            out += [(row, None) for row in map(json.loads, lines) if "token_ids" in row]
            if len(out) < len(cases):
                out.append((None, error or "it printed fewer rows than there are"))
        return out

    def run(self, model, template, variables, cases, loss_on):
        data = self.home / "rows.jsonl"
        with open(data, "w") as f:
            for _, messages, tools, split in cases:
                row = {"messages": messages} if split is None else {"prompt": messages[:split], "completion": messages[split:]}
                # As text and as a list by turns: both are forms that data sets have.
                row["tools"] = json.dumps(tools) if tools and len(messages) % 2 else tools
                f.write(json.dumps(row) + "\n")
        recipe = self.home / "recipe.toml"
        recipe.write_text(
            f"[model]\nbase = {json.dumps(str(model))}\n[[data]]\npath = {json.dumps(str(data))}\n[tokens]\n"
            f'template = {json.dumps(str(template))}\nloss_on = "{loss_on}"\nspecial_tokens = "allow"\n'
            + "[tokens.template_vars]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in variables.items())
        )
        run = subprocess.run(
            [self.binary, "data", recipe, "--json", "--rows", str(len(cases))], capture_output=True, text=True, timeout=600
        )
        if run.returncode not in (0, 1, 2):
            raise SystemExit(f"{self.binary} ended with {run.returncode}:\n{run.stderr}")
        return [line for line in run.stdout.split("\n") if line], (run.stderr or run.stdout[-400:]).strip()


def model_dir(home, tokenizer, bos):
    """The least model around a tokenizer; with a BOS token for templates that print one."""
    directory = home / f"model{len(list(home.glob('model*')))}"
    directory.mkdir()
    (directory / "tokenizer.json").symlink_to((tokenizer / "tokenizer.json").resolve())
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    if bos:
        settings["bos_token"] = "<|endoftext|>"
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    added = json.loads((tokenizer / "tokenizer.json").read_text())
    vocab = max(max(added["model"]["vocab"].values()), *(t["id"] for t in added["added_tokens"])) + 1
    config = {
        "model_type": "qwen3", "vocab_size": vocab, "hidden_size": 2, "intermediate_size": 2, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 2, "hidden_act": "silu", "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768, "rope_theta": 10000, "tie_word_embeddings": True,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    weight = {"embed_tokens": vocab, "norm": None}
    layer = {"input_layernorm": None, "post_attention_layernorm": None, "self_attn.q_norm": None, "self_attn.k_norm": None}
    layer |= {f"self_attn.{p}_proj": 2 for p in "qkvo"} | {f"mlp.{p}_proj": 2 for p in ("gate", "up", "down")}
    weight |= {f"layers.0.{name}": rows for name, rows in layer.items()}
    shape = {name: (2,) if rows is None else (rows, 2) for name, rows in weight.items()}
    save_file({f"model.{name}.weight": np.zeros(s, np.float16) for name, s in shape.items()}, directory / "model.safetensors")
    return directory


def settings_of(template):
    """Nothing set, then each known variable that the template reads with each value, then all at once."""
    pinned = {k: v for k, v in PINNED.items() if k in template}
    read = {name: values for name, values in VARIABLES.items() if re.search(rf"\b{name}\b(?!['\"])", template) and name not in pinned}
    yield pinned
    for name, values in read.items():
        yield from ({**pinned, name: value} for value in values)
    if len(read) > 1:
        yield pinned | {name: values[-1] for name, values in read.items() if values[-1] != "absurd"}


def check(template, reference, ours, models, cases, args, report):
    """Compares one template; returns the numbers of its line."""
    source = template.read_text()
    model, light = models
    count = dict.fromkeys(["rendered", "refused", "only_them", "only_us", "text", "ids", "masks", "mask"], 0)
    tagged, framed = bool(GENERATION.search(source)), "<|im_start|>" in source
    for index, variables in enumerate(settings_of(source)):
        chosen = cases if index == 0 else cases[index % 5 :: 5]
        theirs = [reference.row(source, variables, case) for case in chosen]
        for want in (True, False):
            some = [(c, t) for c, t in zip(chosen, theirs) if (t[1] is None) == want and (c[3] is None)]
            more = [(c, t) for c, t in zip(chosen, theirs) if (t[1] is None) == want and (c[3] is not None)]
            if not want:
                # Each refusal costs a start of the program; a template refuses whole kinds.
                some, more = (group[:: max(1, len(group) // args.refusals)] for group in (some, more))
            for group in (some, more):
                loss_on = "assistant" if tagged or framed else "all"
                got = ours.rows(model if want else light, template, variables, [c for c, _ in group], loss_on)
                for (case, (expected, why)), (row, error) in zip(group, got):
                    def differ(kind, one, two):
                        count[kind] += 1
                        report(template.name, variables, case, kind, one, two)

                    if want and row is None:
                        differ("only_us", "rendered", error)
                    elif not want and row is not None:
                        differ("only_them", why, row["text"][-300:])
                    elif not want:
                        count["refused"] += 1
                    else:
                        count["rendered"] += 1
                        if row["text"] != expected["text"]:
                            differ("text", expected["text"], row["text"])
                        elif row["token_ids"] != expected["ids"]:
                            differ("ids", expected["ids"], row["token_ids"])
                        elif tagged or framed:
                            count["masks"] += 1
                            if list(map(bool, row["trained"])) != expected["trained"]:
                                differ("mask", expected["trained"], row["trained"])
    return count


def first_difference(kind, one, two):
    if kind in ("only_us", "only_them"):
        return f"{one[:200]} | {two[-300:]}"
    if kind == "mask":
        one, two = ("".join("01"[bool(t)] for t in side) for side in (one, two))
    at = next((i for i, (a, b) in enumerate(zip(one, two)) if a != b), min(len(one), len(two)))
    return f"at {at} of {len(one)} and {len(two)}: {one[max(0, at - 40) : at + 60]!r} | {two[max(0, at - 40) : at + 60]!r}"


def templates(given, only):
    if not given:
        import importlib.util

        spec = importlib.util.find_spec("trl")
        if spec is None:
            raise SystemExit("no templates: `pip install --no-deps trl==1.16.0`, or give --templates")
        given = [pathlib.Path(spec.submodule_search_locations[0]) / "chat_templates"]
    files = [f for path in given for f in (sorted(path.glob("*.jinja")) if path.is_dir() else [path])]
    return [f for f in files if not only or any(fnmatch.fnmatch(f.stem, glob) for glob in only)]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("files", nargs="+", type=pathlib.Path, metavar="FILE")
    ap.add_argument("--binary", type=pathlib.Path, default=ROOT / "target" / "debug" / "qwen-tune")
    ap.add_argument("--templates", nargs="+", type=pathlib.Path, metavar="FILE_OR_DIR")
    ap.add_argument("--only", nargs="+", metavar="GLOB", help="names of templates, without extension")
    ap.add_argument("--tokenizer", action="append", default=[], metavar="[GLOB=]DIR", help="the last that fits a template's name is used")
    ap.add_argument("--rows", type=int, default=60, help="of each file")
    ap.add_argument("--every", type=int, default=4, help="a conversation is tried as it is and in every so manieth variant")
    ap.add_argument("--refusals", type=int, default=20, help="refused conversations tried with each setting of a template")
    ap.add_argument("--shown", type=int, default=3, help="differences printed for each template")
    args = ap.parse_args()
    transformers.utils.logging.set_verbosity_error()
    tiny = ROOT / "datasets" / "tiny-qwen3"
    tokenizers = [("*", tiny)]
    for text in args.tokenizer:
        glob, _, directory = text.rpartition("=")
        tokenizers.append((glob or "*", pathlib.Path(directory)))

    cases, conversations = [], 0
    for path in args.files:
        for messages, tools in read_rows(path, args.rows):
            conversations += 1
            for index, (name, changed, its_tools) in enumerate(variants(messages, tools)):
                if index == 0 or (index + conversations) % args.every == 0:
                    cases.append((name, changed, its_tools, None))
            if len(messages) > 1 and messages[-1]["role"] == "assistant" and conversations % args.every < 2:
                for name, changed, its_tools in list(variants(messages, tools))[conversations % 2 : 7 : 2]:
                    cases.append((f"{name}, prompt and completion", changed, its_tools, len(changed) - 1))
    print(f"{conversations} conversations of {len(args.files)} files, {len(cases)} variants of them; transformers {transformers.__version__}")

    columns = ["rendered", "refused", "only_them", "only_us", "text", "ids", "masks", "mask"]
    titles = ["renderings", "refused by both", "by them only", "by us only", "texts differ", "ids differ", "masks", "masks differ"]
    print(f"{'template':32}{'tokenizer':12}" + "".join(f"{t:>17}" for t in titles), flush=True)
    total = dict.fromkeys(columns, 0)
    with tempfile.TemporaryDirectory() as home:
        ours, directories, references = Ours(args.binary, pathlib.Path(home)), {}, {}

        def directory(tokenizer, bos):
            if (tokenizer, bos) not in directories:
                directories[tokenizer, bos] = model_dir(pathlib.Path(home), tokenizer, bos)
            return directories[tokenizer, bos]

        for template in templates(args.templates, args.only):
            tokenizer = [d for glob, d in tokenizers if fnmatch.fnmatch(template.stem, glob)][-1]
            bos = "bos_token" in template.read_text()
            model, light = directory(tokenizer, bos), directory(tiny, bos)
            reference = references.setdefault(model, None) or Reference(model)
            references[model] = reference
            shown = []

            def report(name, variables, case, kind, one, two):
                if len(shown) < args.shown:
                    shown.append(f"  {name} {variables or ''} {case[0]}: {kind}: {first_difference(kind, one, two)}")

            count = check(template, reference, ours, (model, light), cases, args, report)
            print(f"{template.stem:32}{tokenizer.name:12}" + "".join(f"{count[c]:>17,}" for c in columns), flush=True)
            print("".join(f"{line}\n" for line in shown), end="", flush=True)
            total = {c: total[c] + count[c] for c in columns}
    print(f"{'all':44}" + "".join(f"{total[c]:>17,}" for c in columns))
    differences = sum(total[c] for c in ("only_them", "only_us", "text", "ids", "mask"))
    print(f"{differences} differences")
    sys.exit(differences > 0)


if __name__ == "__main__":
    main()
