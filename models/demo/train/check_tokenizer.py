"""Compares the training encoder with the sentencepiece package, line by line.

    python check_tokenizer.py ../tokenizer.model

Needs `pip install sentencepiece`; nothing else in this folder does.
"""

import random
import sys

import sentencepiece

import tasks
import tokenizer as tok


def main(path):
    reader = sentencepiece.SentencePieceProcessor(model_file=path)
    ours = tok.build()
    assert reader.get_piece_size() == len(ours.pieces), "piece count differs"
    assert all(reader.id_to_piece(i) == p for i, p in enumerate(ours.pieces)), "a piece differs"
    rng = random.Random(5)
    lines = ["", "\n", " ", "a", "  two  spaces ", "twenty-one - 3", "---", "naïve 鼎 😀", "\t\n x",
             "What's  up-and-down?", "-seven", "▁x", "A-B-C", "x\n\ny", "thirty-seven-eight"]
    for i in range(60_000):
        task = tasks.TASKS[i % len(tasks.TASKS)]
        split = ("train", "val", "test", "unseen")[i % 4]
        lines += tasks.question(task, rng, split)
    alphabet = "abcdefgXYZ0189 -'.,?!▁红蓝你好鼎\n"
    lines += ["".join(rng.choice(alphabet) for _ in range(rng.randint(1, 30))) for _ in range(20_000)]
    unknown = 0
    for line in lines:
        want, got = reader.encode(line), ours.encode(line)
        assert want == got, (line, want, got)
        unknown += any(i < 259 and i != 13 for i in got)
    for line in lines[15:]:
        if not line.startswith((" ", "▁")) and "▁" not in line and line:
            assert reader.decode(ours.encode(line)) == line, line
    print(f"{len(lines)} lines agree; {unknown} of them needed byte pieces; {len(ours.pieces)} pieces, "
          f"vocabulary {ours.vocab}, padded {ours.padded_vocab}")


main(sys.argv[1])
