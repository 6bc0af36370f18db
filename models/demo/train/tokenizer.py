"""The demo model's tokenizer: a ChatGLM3-style SentencePiece BPE model, and a fast encoder for training.

Pieces, in id order: <unk>, <s>, </s>, 256 bytes, merges, single characters.
Merges grow English words from the left and only from a word's start (U+2581, or
a hyphen for "thirty-seven"): "▁W", "▁Wh", ... Letters inside a word never merge,
so a made-up word stays spelled out, which is what makes reversing and copying
learnable. Digits and Chinese characters are single pieces.
The special tokens are numbered after the pieces and are not in the file.
"""

import collections
import random
import re

WORD_PIECES = 1050
SPECIALS = (
    "[MASK]", "[gMASK]", "[sMASK]", "sop", "eop",
    "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
)
SPACE = "\u2581"
CHUNK = re.compile(r"▁[A-Za-z]+|-[A-Za-z]+|.", re.S)
FIRST_BYTE = 3


class Tokenizer:
    def __init__(self, pieces):
        """pieces: every piece string in id order, as the SentencePiece file lists them."""
        self.pieces = pieces
        self.ids = {p: i for i, p in enumerate(pieces)}
        self.special = {s: len(pieces) + i for i, s in enumerate(SPECIALS)}
        self.vocab = len(pieces) + len(SPECIALS)
        # Linear kernels like multiples of 32; ids from self.vocab on do not exist.
        self.padded_vocab = -(-self.vocab // 32) * 32
        self.user = self.special["<|user|>"]
        self.assistant = self.special["<|assistant|>"]
        self._chunks = {}

    def _chunk(self, chunk):
        known = self._chunks.get(chunk)
        if known is None:
            size = len(chunk)
            while size > 1 and chunk[:size] not in self.ids:
                size -= 1
            known = []
            for part in [chunk[:size], *chunk[size:]]:
                if part in self.ids:
                    known.append(self.ids[part])
                else:
                    known += [FIRST_BYTE + b for b in part.encode()]
            if len(self._chunks) < 200_000:
                self._chunks[chunk] = known
        return known

    def encode(self, text):
        """Same ids as the SentencePiece file: a dummy prefix before every call, nothing for ''."""
        if not text:
            return []
        out = []
        for chunk in CHUNK.findall(SPACE + text.replace(" ", SPACE)):
            out += self._chunk(chunk)
        return out

    def message(self, role, content):
        """Role id, encode(metadata + newline) with empty metadata, encode(content)."""
        return [self.special[f"<|{role}|>"], *self.encode("\n"), *self.encode(content)]

    def prefix(self):
        return [self.special["[gMASK]"], self.special["sop"]]

    def prompt(self, messages):
        ids = self.prefix()
        for m in messages:
            ids += self.message(m["role"], m["content"])
        return ids + [self.assistant]

    def answer(self, content):
        """What the model says after <|assistant|>, with the <|user|> that ends it."""
        return [*self.encode("\n"), *self.encode(content), self.user]


def piece_list(texts):
    """The pieces for these texts: all their characters, printable ASCII, the commonest word starts."""
    counts = collections.Counter()
    characters = {chr(c) for c in range(33, 127)} | {SPACE}
    for text in texts:
        line = SPACE + text.replace(" ", SPACE)
        characters.update(c for c in line if c != "\n")
        for chunk in CHUNK.findall(line):
            for end in range(2, len(chunk) + 1):
                counts[chunk[:end]] += 1
    # A prefix is at least as frequent as what it grows into; shorter first on a
    # tie, so the list is closed under prefixes and every merge has its left part.
    ranked = sorted(counts, key=lambda p: (-counts[p], len(p), p))[:WORD_PIECES]
    return (
        ["<unk>", "<s>", "</s>"]
        + [f"<0x{b:02X}>" for b in range(256)]
        + ranked
        + sorted(characters)
    )


def training_texts():
    """Texts that show every phrasing, fact and answer, held-out ones too.

    A character that only a held-out phrasing has would otherwise be unknown.
    Made-up words stay out: they must remain spelled.
    """
    import tasks

    rng = random.Random("vocabulary")
    texts = list(tasks.SYSTEM) + [w for w in tasks.REAL_WORDS]
    for task in tasks.TASKS:
        for split in ("train", "unseen"):
            for _ in range(3000):
                question, answer = tasks.question(task, rng, split)
                if task in ("reverse", "copy"):
                    question, answer = question.replace(answer, ""), ""
                    if task == "reverse":
                        question = re.sub(r"[a-z]{3,5}(?=[^a-z]*$)", "", question)
                texts += [question, answer]
        for facts in tasks.FACTS.get(task, ()):
            for combinations in facts.combinations.values():
                for c in combinations:
                    texts += facts.render(c, rng, "train", plain=True)
    return texts


def build():
    return Tokenizer(piece_list(training_texts()))


# ---- SentencePiece file, written by hand: a few protobuf messages -----------


def _varint(n):
    n &= (1 << 64) - 1
    out = bytearray()
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def _field(number, value):
    import struct

    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def sentencepiece_model(pieces):
    """The bytes of tokenizer.model (ModelProto). Field numbers are those of sentencepiece_model.proto."""
    NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
    out = b""
    for i, piece in enumerate(pieces):
        if i == 0:
            kind = UNKNOWN
        elif i < FIRST_BYTE:
            kind = CONTROL
        elif i < FIRST_BYTE + 256:
            kind = BYTE
        else:
            kind = NORMAL
        # The best merge has the highest score: minus the rank.
        score = 0.0 if kind != NORMAL else -float(i - FIRST_BYTE - 256)
        out += _field(1, _field(1, piece) + _field(2, score) + _field(3, kind))
    trainer = (
        _field(3, 2)  # model_type BPE
        + _field(4, len(pieces))  # vocab_size
        + _field(25, 1)  # split_digits
        + _field(26, 1)  # allow_whitespace_only_pieces
        + _field(35, 1)  # byte_fallback
        + _field(40, 0) + _field(41, 1) + _field(42, 2) + _field(43, -1)  # unk, bos, eos, pad ids
    )
    normalizer = (
        _field(1, "identity")
        + _field(2, b"")  # no character map
        + _field(3, 1)  # add_dummy_prefix
        + _field(4, 0)  # remove_extra_whitespaces
        + _field(5, 1)  # escape_whitespaces
    )
    return out + _field(2, trainer) + _field(3, normalizer)
