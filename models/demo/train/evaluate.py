"""Measures the exported model on heldout.jsonl.

    python evaluate.py --model .. [--checkpoint DIR/checkpoint.pt] [--json FILE]

An answer counts when greedy decoding gives exactly its text and then stops. One
pass over question and answer finds the answers whose every token is right; the
others are really decoded, since the same text can come as other tokens (a word
spelled letter by letter). FP16 means the exported weights,
INT4 the same with the linears rounded in groups of 32 (embedding and head stay
FP16). FP32 needs the checkpoint the export was made from.
"""

import argparse
import json
import os

import torch
import torch.nn.functional as F

import batches
import export
import model
import tokenizer

SPLITS = ("heldout", "unseen-phrasing", "later-turn")
# The longest conversation of heldout.jsonl fits; rows are as long as their content.
CHECK_EVERY = 150
TABLE = model.rope_table(batches.LONG)


def read_lines(path):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def turns_of(line):
    content = [m["content"] for m in line["messages"]] + [line["answer"]]
    return [(line["task"], q, a) for q, a in zip(content[::2], content[1::2])]


@torch.no_grad()
def exact(tok, weights, conversations):
    """Per conversation: whether every token of the last answer is the argmax."""
    out = [False] * len(conversations)
    for batch, part in batches.question_batches(tok, conversations):
        cos, sin = (t[batch.positions] for t in TABLE)
        h = model.hidden_states(weights, batch.ids, cos, sin, batch.mask, batch.index)
        for i, ok in zip(part, batch.exact(F.linear(h, weights[model.HEAD]))):
            out[i] = bool(ok)
    return out


@torch.no_grad()
def greedy(tok, weights, messages, limit=64):
    """Plain token-by-token decoding without a cache: slow, and the reference for `exact`."""
    ids = tok.prompt(messages)
    start = len(ids)
    while len(ids) - start < limit:
        row = torch.tensor([ids])
        cos, sin = (t[: len(ids)][None] for t in TABLE)
        h = model.hidden_states(weights, row, cos, sin, None, torch.tensor([len(ids) - 1]))
        ids.append(int(F.linear(h, weights[model.HEAD]).argmax()))
        if ids[-1] in (2, tok.user, tok.special["<|observation|>"]):
            break
    return ids[start:]


def text_of(tok, ids):
    """The content of generated ids, or None if they do not stop: metadata line and stop dropped."""
    if ids[-1] != tok.user:
        return None
    raw = b""
    for i in ids[:-1]:
        if tokenizer.FIRST_BYTE <= i < tokenizer.FIRST_BYTE + 256:
            raw += bytes([i - tokenizer.FIRST_BYTE])
        elif i < len(tok.pieces):
            raw += tok.pieces[i].encode()
    text = raw.decode(errors="replace").replace(tokenizer.SPACE, " ")
    head, _, content = text.partition("\n")
    # Each encode call puts one dummy prefix in front.
    return content[1:] if head == " " and content[:1] == " " else None


def measure(tok, weights, lines):
    """Per line: whether the answer's text is exactly right, and what was said where it is not."""
    right = exact(tok, weights, [turns_of(line) for line in lines])
    said = {}
    for i, line in enumerate(lines):
        if not right[i] or i % CHECK_EVERY == 0:
            text = text_of(tok, greedy(tok, weights, line["messages"]))
            assert not right[i] or text == line["answer"], "one pass and real decoding disagree"
            right[i] = text == line["answer"]
            if not right[i]:
                said[i] = text
    return right, said


def table(results):
    """results: {variant: {(task, split): [right, total]}} as markdown."""
    variants = list(results)
    text = ""
    for split in SPLITS:
        text += f"\n### {split}\n\n| task | n | " + " | ".join(variants) + " |\n"
        text += "|---|---|" + "---|" * len(variants) + "\n"
        tasks = [t for t, s in results[variants[0]] if s == split]
        means = dict.fromkeys(variants, 0.0)
        for task in tasks:
            n = results[variants[0]][task, split][1]
            row = [100 * results[v][task, split][0] / n for v in variants]
            for v, x in zip(variants, row):
                means[v] += x / len(tasks)
            text += f"| {task} | {n} | " + " | ".join(f"{x:.1f}" for x in row) + " |\n"
        text += "| mean | | " + " | ".join(f"{means[v]:.1f}" for v in variants) + " |\n"
    return text


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--model", required=True, help="folder with model.safetensors and heldout.jsonl")
    p.add_argument("--checkpoint")
    p.add_argument("--json")
    p.add_argument("--misses", type=int, default=0, help="print so many wrong answers per task")
    args = p.parse_args()
    tok = tokenizer.build()
    with open(os.path.join(args.model, "tokenizer.model"), "rb") as f:
        assert f.read() == tokenizer.sentencepiece_model(tok.pieces), "the tokenizer has changed"
    lines = read_lines(os.path.join(args.model, "heldout.jsonl"))
    half = export.read_safetensors(os.path.join(args.model, "model.safetensors"))
    variants = {}
    if args.checkpoint:
        variants["FP32"] = torch.load(args.checkpoint, weights_only=True)["weights"]
    variants["FP16"] = half
    variants["INT4"] = model.with_int4(half)
    results = {}
    for name, weights in variants.items():
        right, said = measure(tok, weights, lines)
        sums = results[name] = {}
        for line, ok in zip(lines, right):
            pair = sums.setdefault((line["task"], line["split"]), [0, 0])
            pair[0] += ok
            pair[1] += 1
        if name == "FP16":
            shown = {}
            for i, text in said.items():
                key = lines[i]["task"], lines[i]["split"]
                shown[key] = shown.get(key, 0) + 1
                if shown[key] <= args.misses:
                    print(*key, lines[i]["messages"][-1]["content"], "->", text, "want", lines[i]["answer"])
    print(table(results))
    if args.json:
        flat = {v: {f"{t}/{s}": c for (t, s), c in r.items()} for v, r in results.items()}
        export.write_json(args.json, flat)


if __name__ == "__main__":
    main()
