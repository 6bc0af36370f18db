"""Writes the questions the model is measured with, before any result is known.

    python heldout.py --to ..

heldout.jsonl: per task up to 500 held-out questions, unseen phrasings, and later
turns. questions.jsonl: 40 of the held-out questions, drawn with a seed, for the
demo batch. One JSON object per line: task, split, messages, answer.

Copying and reversing are measured on made-up words. Many common words are a
single token, and a model that never saw such a token copied or spelled cannot
know its letters, so a held-out common word asks for a fact it was never given.
"""

import argparse
import json
import os
import random

import tasks

SEED = 7
# Drawn anew when the word tasks were narrowed to made-up words.
WORD_SEED = 8
HELD_OUT = 500
UNSEEN = 50
LATER = 30
DEMO = 40


def as_line(task, split, turns):
    """turns: (question, answer) pairs; the last answer is the expected one."""
    messages = []
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return {"task": task, "split": split, "messages": messages[:-1], "answer": turns[-1][1]}


def made_up(task, answer):
    """Whether the question is inside its task: see the head of this file."""
    if task not in ("copy", "reverse"):
        return True
    words = [answer[::-1]] if task == "reverse" else answer.split()
    # Random letters can spell an insult; one such beginning turned up, and nobody should have to read it.
    return not any(w in tasks.REAL_WORDS or w.startswith("nig") for w in words)


def seed_of(task):
    return WORD_SEED if task in ("copy", "reverse") else SEED


def draw(task, split, limit):
    # Less than two thirds of the words are common ones, so three times the limit is enough.
    spare = 3 if task in ("copy", "reverse") else 1
    pairs = tasks.questions(task, seed_of(task), split, spare * limit)
    return [p for p in pairs if made_up(task, p[1])][:limit]


def later_turns(task, rng):
    """A held-out question after one to five trained turns of any task."""
    earlier = rng.choices(tasks.TASKS, k=rng.randint(1, 5))
    turns = [tasks.question(t, rng, "train") for t in earlier]
    while True:
        last = tasks.question(task, rng, "test")
        if made_up(task, last[1]):
            return [*turns, last]


def build():
    lines = []
    for task in tasks.TASKS:
        for pair in draw(task, "test", HELD_OUT):
            lines.append(as_line(task, "heldout", [pair]))
        for pair in draw(task, "unseen", UNSEEN):
            lines.append(as_line(task, "unseen-phrasing", [pair]))
        rng = random.Random(f"{seed_of(task)}/{task}/later")
        for _ in range(LATER):
            lines.append(as_line(task, "later-turn", later_turns(task, rng)))
    return lines


def demo_questions(lines):
    """One English and one Chinese question per task, the rest at random."""
    rng = random.Random(SEED)
    single = [x for x in lines if x["split"] == "heldout"]
    chosen = []
    for task in tasks.TASKS:
        for english in (True, False):
            pool = [x for x in single if x["task"] == task
                    and x["messages"][0]["content"].isascii() == english]
            chosen.append(rng.choice(pool))
    while len(chosen) < DEMO:
        line = rng.choice(single)
        if line not in chosen:
            chosen.append(line)
    rng.shuffle(chosen)
    return chosen


def write_lines(path, lines):
    with open(path, "w", encoding="utf-8") as f:
        for line in lines:
            f.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--to", required=True)
    args = p.parse_args()
    lines = build()
    write_lines(os.path.join(args.to, "heldout.jsonl"), lines)
    write_lines(os.path.join(args.to, "questions.jsonl"), demo_questions(lines))


if __name__ == "__main__":
    main()
