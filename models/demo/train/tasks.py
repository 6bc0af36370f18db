"""The synthetic tasks: every question the model is trained on or measured with.

Each task draws (question, answer) pairs for one of four splits:
  train, val, test  - computed tasks are split by operands or words, facts by
                      item-and-phrasing combination (a fact itself is never held out);
  unseen            - test material in phrasings that training never shows.
A split is decided by a checksum of the material, never by the random generator,
so no seed can move a held-out question into training.
"""

import random
import zlib

from facts import ANIMALS, CAPITALS, COLOURS, MONTHS, WEEKDAYS, number_en, number_zh
from phrasings import (
    ADD, ADD_WORDS, CAPITAL_OF, COMPARE, COPY, DIGITS_TO_EN, DIGITS_TO_ZH,
    EN_TO_DIGITS, EN_TO_ZH, GREETINGS, POLITE_AFTER, POLITE_BEFORE, REVERSE, SORT, SUBTRACT,
    SUBTRACT_WORDS, SYSTEM, WHO, WHO_ANSWER, WHO_BEFORE, ZH_TO_DIGITS, ZH_TO_EN,
)

TEST_PERMILLE = 100
VAL_PERMILLE = 40


def checksum(*parts):
    """A number that mixes all bits: crc32 alone is too regular in its low digits."""
    x = zlib.crc32("|".join(map(str, parts)).encode())
    x = (x ^ (x >> 16)) * 0x45D9F3B & 0xFFFFFFFF
    x = (x ^ (x >> 16)) * 0x45D9F3B & 0xFFFFFFFF
    return x ^ (x >> 16)


def split_of(*parts):
    n = checksum(*parts) % 1000
    if n < TEST_PERMILLE:
        return "test"
    return "val" if n < TEST_PERMILLE + VAL_PERMILLE else "train"


def material(split):
    """Unseen phrasings are asked about test material, so nothing about them was trained."""
    return "test" if split == "unseen" else split


def is_latin(c):
    return c.isascii() and (c.isalnum() or c in "'\"-+")


def spaced(text, rng):
    """Chinese text with Latin words in it, with or without a space at the border."""
    if rng.random() < 0.7:
        return text
    out = text[0]
    for before, after in zip(text, text[1:]):
        cjk = "\u4e00" <= before <= "\u9fff" or "\u4e00" <= after <= "\u9fff"
        if cjk and (is_latin(before) or is_latin(after)):
            out += " "
        out += after
    return out


def phrase(template, rng, lang, plain=False, **slots):
    """Fills a template and varies what people vary: case, final mark, politeness.

    Only the template's own first letter changes case, because a lower-case name
    falls apart into letters.
    """
    if not plain and rng.random() < 0.35:
        roll = rng.random()
        if roll < 0.3 and template[0].isupper():
            template = template[0].lower() + template[1:]
        elif roll < 0.6 and template[-1] in ".?？。":
            template = template[:-1]
        else:
            slot_first = template[0] == "{"
            if rng.random() < 0.7:
                before = rng.choice(POLITE_BEFORE[lang])
                if lang == "en" and not slot_first and rng.random() < 0.5:
                    template = template[0].lower() + template[1:]
                template = before + template
            elif template[-1] in ".?？。":
                template = template + rng.choice(POLITE_AFTER[lang])
    text = template.format(**slots)
    if lang == "zh":
        if rng.random() < 0.15:
            text = text.replace("？", "?")
        text = spaced(text, rng)
    return text


def pick(phrasings, lang, split, rng):
    """phrasings[lang] is (trained, unseen)."""
    seen, unseen = phrasings[lang]
    return rng.choice(unseen if split == "unseen" else seen)


def language(rng):
    return "en" if rng.random() < 0.5 else "zh"


# ---- computed tasks -------------------------------------------------------


def pair_split(a, b):
    """One split for the unordered pair in all tasks: 37+45 must not leak through 45+37."""
    return split_of("pair", min(a, b), max(a, b))


def draw_until(split, draw, where):
    while True:
        x = draw()
        if where(x) == material(split):
            return x


def two_numbers(rng):
    top = 20 if rng.random() < 0.25 else 99
    return rng.randint(0, top), rng.randint(0, top)


def add_digits(rng, split):
    a, b = draw_until(split, lambda: two_numbers(rng), lambda p: pair_split(*p))
    lang = language(rng)
    return phrase(pick(ADD, lang, split, rng), rng, lang, a=a, b=b), str(a + b)


def subtract_digits(rng, split):
    a, b = draw_until(split, lambda: two_numbers(rng), lambda p: pair_split(*p))
    a, b = max(a, b), min(a, b)
    lang = language(rng)
    return phrase(pick(SUBTRACT, lang, split, rng), rng, lang, a=a, b=b), str(a - b)


NUMBER = {"en": number_en, "zh": number_zh}


def add_words(rng, split):
    def draw():
        total = rng.randint(0, 99)
        a = rng.randint(0, total)
        return a, total - a

    a, b = draw_until(split, draw, lambda p: pair_split(*p))
    lang = language(rng)
    word = NUMBER[lang]
    return phrase(pick(ADD_WORDS, lang, split, rng), rng, lang, a=word(a), b=word(b)), word(a + b)


def subtract_words(rng, split):
    def draw():
        a = rng.randint(0, 99)
        return a, rng.randint(0, a)

    a, b = draw_until(split, draw, lambda p: pair_split(*p))
    lang = language(rng)
    word = NUMBER[lang]
    return (
        phrase(pick(SUBTRACT_WORDS, lang, split, rng), rng, lang, a=word(a), b=word(b)),
        word(a - b),
    )


def compare(rng, split):
    def draw():
        while True:
            a, b = two_numbers(rng)
            if a != b:
                return a, b

    a, b = draw_until(split, draw, lambda p: pair_split(*p))
    lang = language(rng)
    return phrase(pick(COMPARE, lang, split, rng), rng, lang, a=a, b=b), str(max(a, b))


def sort(rng, split):
    def draw():
        top = 20 if rng.random() < 0.2 else 99
        return rng.sample(range(top + 1), 3)

    numbers = draw_until(split, draw, lambda x: split_of("sort", *sorted(x)))
    lang = language(rng)
    if lang == "en":
        joint, out = rng.choices([", ", ",", " "], [70, 15, 15])[0], ", "
    else:
        joint, out = rng.choices(["、", "，", ", "], [50, 20, 30])[0], "、"
    text = joint.join(map(str, numbers))
    answer = out.join(map(str, sorted(numbers)))
    return phrase(pick(SORT, lang, split, rng), rng, lang, l=text), answer


REAL_WORDS = (
    "red blue green black white brown pink gold cat dog bird fish horse cow pig duck tiger lion "
    "bear snake frog wolf whale panda sheep mouse one two three four five six seven eight nine ten "
    "what word write spell hello thanks lemon apple house water river stone table chair music paper "
    "bread sugar light night green happy sunny train plane world heart money sleep smile dream glass "
    "tree book door moon star rain snow milk tea rice salt hand foot head nose ear arm leg sun sky "
    "sea day car bus map pen cup hat box key bed egg ice oil bag run jump walk swim read sing play "
    "work stop open close good nice kind cold warm hot big small long short old new fast slow relay"
).split()


def made_up_word(rng, low, high):
    """A word people might type: syllables, sometimes plain random letters or a doubled letter."""
    size = rng.choices(range(low, high + 1), [1] * (high - low) + [1.5])[0]
    if rng.random() < 0.3:
        word = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(size))
    else:
        vowel = rng.random() < 0.3
        word = ""
        while len(word) < size:
            word += rng.choice("aeiou" if vowel else "bcdfghjklmnprstvwyz")
            if rng.random() < 0.85:
                vowel = not vowel
    if rng.random() < 0.2:
        i = rng.randrange(size - 1)
        word = word[: i + 1] + word[i] + word[i + 2 :]
    return word


def word_for(rng, split, low, high):
    def draw():
        if rng.random() < 0.25:
            word = rng.choice(REAL_WORDS)
            if low <= len(word) <= high:
                return word
        return made_up_word(rng, low, high)

    return draw_until(split, draw, lambda w: split_of("word", w))


def reverse(rng, split):
    word = word_for(rng, split, 3, 4)
    lang = language(rng)
    return phrase(pick(REVERSE, lang, split, rng), rng, lang, w=word), word[::-1]


def copy(rng, split):
    count = 1 if rng.random() < 0.4 else 2
    text = " ".join(word_for(rng, split, 3, 5) for _ in range(count))
    lang = language(rng)
    return phrase(pick(COPY, lang, split, rng), rng, lang, w=text), text


# ---- facts -----------------------------------------------------------------


class Facts:
    """Item-and-phrasing combinations of one direction: per item two test phrasings and one val phrasing.

    The number is fixed because a fact with few phrasings could otherwise fall
    out of training altogether; every table has at least eleven.
    """

    def __init__(self, name, items, phrasings, quotes=False):
        self.name = name
        self.quotes = quotes
        self.combinations = {"train": [], "val": [], "test": [], "unseen": []}
        for question, answer in items:
            count = len(phrasings[0])
            order = sorted(range(count), key=lambda i: checksum(name, question, i))
            held = {order[0]: "test", order[1]: "test", order[2]: "val"}
            for i, template in enumerate(phrasings[0]):
                self.combinations[held.get(i, "train")].append((question, template, answer))
            for template in phrasings[1]:
                self.combinations["unseen"].append((question, template, answer))

    def render(self, combination, rng, split, plain=False):
        question, template, answer = combination
        lang = "en" if template.isascii() else "zh"
        if self.quotes and not plain and rng.random() < 0.1:
            marks = '"{}"' if lang == "en" else "“{}”"
            question = marks.format(question)
        return phrase(template, rng, lang, plain=plain, x=question), answer

    def draw(self, rng, split):
        return self.render(rng.choice(self.combinations[split]), rng, split)


def translation(name, pairs):
    return [
        Facts(name + "/en-zh", pairs, EN_TO_ZH, quotes=True),
        Facts(name + "/zh-en", [(z, e) for e, z in pairs], ZH_TO_EN, quotes=True),
    ]


def who_sentences(lang):
    return [(b, c) for b in WHO_BEFORE[lang] for c in WHO[lang][0]]


class Who:
    """Only phrasings to hold out here: whole sentences, 10 % of each language."""

    name = "who"

    def __init__(self):
        self.combinations = {"train": [], "val": [], "test": [], "unseen": []}
        for lang in ("en", "zh"):
            for before, core in who_sentences(lang):
                self.combinations[split_of("who", before, core)].append((lang, before, core))
            for core in WHO[lang][1]:
                self.combinations["unseen"].append((lang, "", core))

    def render(self, combination, rng, split, plain=False):
        lang, before, core = combination
        if not plain:
            if rng.random() < 0.2:
                core = core[:-1]
            if rng.random() < 0.3 and core[0] != "I":
                core = core[0].lower() + core[1:]
            if lang == "zh" and rng.random() < 0.2:
                core = core.replace("？", "?")
        return before + core, WHO_ANSWER[lang]

    def draw(self, rng, split):
        return self.render(rng.choice(self.combinations[split]), rng, split)


class Greetings:
    """A greeting, what follows it, and its mark; 10 % of these sentences are held out."""

    name = "greetings"

    def __init__(self):
        self.combinations = {"train": [], "val": [], "test": [], "unseen": []}
        for lang, groups in GREETINGS.items():
            for answer, cores, tails, unseen in groups:
                for core in cores:
                    for tail in tails:
                        where = split_of("greetings", core, tail)
                        self.combinations[where].append((lang, core + tail, answer))
                for sentence in unseen:
                    self.combinations["unseen"].append((lang, sentence, answer))

    def render(self, combination, rng, split, plain=False):
        lang, text, answer = combination
        if not plain:
            if rng.random() < 0.3:
                text = text[0].lower() + text[1:]
            if lang == "zh" and rng.random() < 0.2:
                text = text.replace("！", "!")
        return text, answer

    def draw(self, rng, split):
        return self.render(rng.choice(self.combinations[split]), rng, split)


NUMBERS = range(100)
FACTS = {
    "number_words": [
        Facts("number/digits-en", [(str(n), number_en(n)) for n in NUMBERS], DIGITS_TO_EN),
        Facts("number/en-digits", [(number_en(n), str(n)) for n in NUMBERS], EN_TO_DIGITS),
        Facts("number/digits-zh", [(str(n), number_zh(n)) for n in NUMBERS], DIGITS_TO_ZH),
        Facts("number/zh-digits", [(number_zh(n), str(n)) for n in NUMBERS], ZH_TO_DIGITS),
        *translation("number", [(number_en(n), number_zh(n)) for n in NUMBERS]),
    ],
    "colours": translation("colours", COLOURS),
    "weekdays": translation("weekdays", WEEKDAYS),
    "months": translation("months", MONTHS),
    "animals": translation("animals", ANIMALS),
    "capitals": [
        Facts("capitals/en", [(c[0], c[1]) for c in CAPITALS], CAPITAL_OF["en"]),
        Facts("capitals/zh", [(c[2], c[3]) for c in CAPITALS], CAPITAL_OF["zh"]),
    ],
    "greetings": [Greetings()],
    "who": [Who()],
}
COMPUTED = {
    "add_digits": add_digits,
    "subtract_digits": subtract_digits,
    "add_words": add_words,
    "subtract_words": subtract_words,
    "compare": compare,
    "sort": sort,
    "reverse": reverse,
    "copy": copy,
}
TASKS = list(COMPUTED) + list(FACTS)


def question(task, rng, split):
    """One (question, answer) of a task."""
    if task in COMPUTED:
        return COMPUTED[task](rng, split)
    return rng.choice(FACTS[task]).draw(rng, split)


def questions(task, seed, split, limit):
    """Up to `limit` different questions of one task and split.

    For facts every combination comes once in its plain form, then in varied forms
    up to three in all, so a short task has few questions rather than padded ones.
    """
    rng = random.Random(f"{seed}/{task}/{split}")
    found = {}
    if task in COMPUTED:
        for _ in range(limit * 40):
            if len(found) == limit:
                break
            found.setdefault(*question(task, rng, split))
    else:
        for forms in (True, False, False):
            for facts in FACTS[task]:
                for combination in facts.combinations[split]:
                    found.setdefault(*facts.render(combination, rng, split, plain=forms))
    pairs = list(found.items())
    rng.shuffle(pairs)
    return pairs[:limit]


def conversation(rng, split, weights, turns, system=None):
    """A list of `turns` (task, question, answer), earlier turns always from the training split."""
    names = list(weights)
    drawn = rng.choices(names, [weights[n] for n in names], k=turns)
    out = [(t, *question(t, rng, "train")) for t in drawn[:-1]]
    return out + [(drawn[-1], *question(drawn[-1], rng, split))]


def system_text(rng):
    return rng.choice(SYSTEM)
