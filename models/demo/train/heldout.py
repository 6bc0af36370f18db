"""Writes the questions the model is measured with, before any result is known.

    python heldout.py --to ..

heldout.jsonl: per task up to 500 held-out questions, unseen phrasings, and later
turns. questions.jsonl: 40 of the held-out questions, drawn with a seed, for the
demo batch. One JSON object per line: task, split, messages, answer.
"""

import argparse
import json
import os
import random

import tasks

SEED = 7
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


def later_turns(task, rng):
    """A held-out question after one to five trained turns of any task."""
    earlier = rng.choices(tasks.TASKS, k=rng.randint(1, 5))
    turns = [tasks.question(t, rng, "train") for t in earlier]
    return turns + [tasks.question(task, rng, "test")]


def build():
    lines = []
    for task in tasks.TASKS:
        for pair in tasks.questions(task, SEED, "test", HELD_OUT):
            lines.append(as_line(task, "heldout", [pair]))
        for pair in tasks.questions(task, SEED, "unseen", UNSEEN):
            lines.append(as_line(task, "unseen-phrasing", [pair]))
        rng = random.Random(f"{SEED}/{task}/later")
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
