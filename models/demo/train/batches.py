"""Conversations packed into rows of a fixed length, with the loss on every answer.

Short rows hold several conversations side by side (a mask keeps them apart);
longer rows hold one long conversation each, so that late positions and long
histories are trained too. Rows are no longer than they need to be: on a CPU
attention over 128 places cost a third of a step, over 64 very little.
"""

import random

import numpy as np
import torch

import tasks

SHORT = 80
MIDDLE = 256
LONG = 1024
# Turns of a conversation in a short row. Single questions are the common case;
# a model trained on them alone fails as soon as one turn precedes the question.
TURNS = ([1, 2, 3], [66, 24, 10])
SYSTEM_SHARE = 0.05
OPEN_ROWS = 12


def encode_turns(tok, turns, system=None):
    """ids of a whole conversation and, per answer, (task, first target, end of targets)."""
    ids = tok.prefix()
    if system:
        ids += tok.message("system", system)
    ids.append(tok.user)
    spans = []
    for task, question, answer in turns:
        # The user id is there already: it ended the previous answer.
        ids += tok.encode("\n") + tok.encode(question) + [tok.assistant]
        start = len(ids)
        ids += tok.answer(answer)
        spans.append((task, start, len(ids)))
    return ids, spans


class Row:
    def __init__(self):
        self.ids, self.positions, self.segments, self.spans = [], [], [], []

    def add(self, ids, spans, segment):
        base = len(self.ids)
        self.ids += ids
        self.positions += range(len(ids))
        self.segments += [segment] * len(ids)
        self.spans += [(t, base + a, base + b) for t, a, b in spans]


class Batch:
    """Tensors of one batch.

    ids, positions: [rows, length]; mask: bool [rows, 1, length, length] or None (causal);
    index: flat places whose next token is an answer token; targets: those tokens;
    starts: where each answer begins in index; tasks: each answer's task.
    """

    def __init__(self, rows, length):
        shape = (len(rows), length)
        ids = np.zeros(shape, np.int64)
        positions = np.zeros(shape, np.int64)
        segments = np.full(shape, -1, np.int64)
        index, targets, self.starts, self.tasks = [], [], [], []
        for r, row in enumerate(rows):
            n = len(row.ids)
            ids[r, :n], positions[r, :n], segments[r, :n] = row.ids, row.positions, row.segments
            for task, a, b in row.spans:
                self.starts.append(len(index))
                self.tasks.append(task)
                index += range(r * length + a - 1, r * length + b - 1)
                targets += row.ids[a:b]
        self.ids, self.positions = torch.from_numpy(ids), torch.from_numpy(positions)
        self.index, self.targets = torch.tensor(index), torch.tensor(targets)
        self.mask = None
        if any(len(set(row.segments)) > 1 for row in rows):
            seg = torch.from_numpy(segments)
            self.mask = (seg[:, :, None] == seg[:, None, :]).tril()[:, None]

    def exact(self, logits):
        """Per answer: whether every token, the stop included, is the argmax. Equals greedy decoding."""
        right = (logits.argmax(-1) == self.targets).numpy()
        return np.logical_and.reduceat(right, self.starts)


def short_batch(tok, rng, weights, rows):
    """`rows` rows filled best-fit from a few open ones; about 90 % of the tokens are real."""
    open_rows = [Row() for _ in range(OPEN_ROWS)]
    done, segment = [], 0
    while len(done) < rows:
        turns = tasks.conversation(rng, "train", weights, rng.choices(*TURNS)[0])
        system = tasks.system_text(rng) if rng.random() < SYSTEM_SHARE else None
        ids, spans = encode_turns(tok, turns, system)
        if len(ids) > SHORT:
            continue
        segment += 1
        room = [r for r in open_rows if len(r.ids) + len(ids) <= SHORT]
        if room:
            row = max(room, key=lambda r: len(r.ids))
        else:
            full = max(open_rows, key=lambda r: len(r.ids))
            open_rows.remove(full)
            done.append(full)
            row = Row()
            open_rows.append(row)
        row.add(ids, spans, segment)
    return Batch(done, SHORT)


def long_batch(tok, rng, weights, rows, length):
    """One conversation per row that fills it up to a random length."""
    out = []
    for _ in range(rows):
        limit = rng.randint(length // 4, length)
        turns = tasks.conversation(rng, "train", weights, length // 16)
        system = tasks.system_text(rng) if rng.random() < SYSTEM_SHARE else None
        while True:
            ids, spans = encode_turns(tok, turns, system)
            if len(ids) <= limit:
                break
            turns.pop()
        row = Row()
        row.add(ids, spans, 0)
        out.append(row)
    return Batch(out, length)


def question_batches(tok, conversations, tokens=8192):
    """Batches of whole conversations, one per row, for measuring; only the last answer counts.

    conversations: lists of (task, question, answer), or (turns, system text).
    Yields (Batch, places in the input list).
    """
    coded = [encode_turns(tok, turns) for turns in conversations]
    order = sorted(range(len(coded)), key=lambda i: len(coded[i][0]))
    while order:
        length = -(-len(coded[order[0]][0]) // 16) * 16
        part = []
        while order and len(part) * length < tokens and len(coded[order[0]][0]) <= length:
            part.append(order.pop(0))
        rows = []
        for i in part:
            row = Row()
            row.add(coded[i][0], coded[i][1][-1:], 0)
            rows.append(row)
        yield Batch(rows, length), part
