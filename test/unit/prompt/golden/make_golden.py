"""Writes the golden ids of this folder: strings with what SentencePiece, inside the authors' own
pre- and post-processing, makes of them. Needs the packages sentencepiece and protobuf, and the published files:
make_golden.py FOLDER, with FOLDER/chatglm-6b/ice_text.model and the like.

Versions before 0.2.2 round differently and choose otherwise between pieces of equal probability.

A golden file is {"texts": [[text, ids, decoded]], "decodings": [[ids, text]]}; `decoded` is left out where
it is the text itself. trained.json holds small models of every kind, trained here, in base64 and each
with such texts: [{"name": ..., "model": ..., "texts": ...}]. glm-130b.json holds one as well, whose ids are
those of GLM-130B's code, which extends it in memory: {"model": ..., "texts": ..., "continued": [[text, ids]]},
the last without the space that SentencePiece writes in front.
"""

import base64
import io
import json
import pathlib
import random
import sys
import tempfile

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

BLANKS = 80


def icetk_marks(text):
    """ChatGLM-6B and GLM-130B: whitespace that the normaliser would lose becomes pieces."""
    text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
    for count in range(BLANKS, 1, -1):
        text = text.replace(" " * count, f"<|blank_{count}|>")
    return text


def icetk_unmark(text):
    text = text.replace("<n>", "\n").replace("<|tab|>", "\t")
    for count in range(2, BLANKS + 1):
        text = text.replace(f"<|blank_{count}|>", " " * count)
    return text


def newline_mark(text):
    return text.replace("\n", "<n>")


def newline_unmark(text):
    return text.replace("<n>", "\n")


def same(text):
    return text


TOKENIZERS = {
    "chatglm-6b": ("ice_text.model", icetk_marks, icetk_unmark),
    "glm-10b-chinese": ("cog-pretrain.model", newline_mark, newline_unmark),
    "chatglm3-6b": ("tokenizer.model", same, same),
}

CHINESE = (
    "今天天气怎么样？|你好，世界！|人工智能正在改变我们的生活。|清华大学与智谱AI联合训练了这个模型；它有六十二亿参数。|"
    "《红楼梦》是中国古典小说的巅峰之作。|请把下面的句子翻译成英文：|他说：“我明天去北京。”|１２３４５６７８９０|ＡＢＣｄｅｆ！？|"
    "价格为￥１，２３４．５６元（含税）|繁體中文測試：臺灣、龍、龜|问：你是谁？\n答：我是一个语言模型。|一、二、三……——～·「」『』【】〔〕|"
    "㈠㈡㈢①②③⑩㊀㊣℃㎏㎡№℡|半角ｶﾀｶﾅとひらがな、カタカナ|深度学习（Deep Learning）是机器学习的分支|𠮷野家|〇零壹贰叁"
).split("|")
ENGLISH = (
    "Hello, world!|The quick brown fox jumps over the lazy dog.|It's 3.14159, isn't it?|don't can't won't I'm you're they've|"
    "GLM-130B: An Open Bilingual Pre-trained Model|e.g. i.e. etc. vs. Mr. Smith|1,234,567.89 USD on 2023-12-25T08:00:00Z|"
    "https://example.com/path?query=1&b=two#part|user.name+tag@example.co.uk|C:\\Users\\name\\file.txt|ALL CAPS and lower|"
    "antidisestablishmentarianism pneumonoultramicroscopic|aaaaaaaaaaaaaaaaaaaaaaaaaa|=====-----*****_____|0x1F 1e-10 0b1010"
).split("|")
CODE = [
    "def f(x):\n    if x > 0:\n        return x * 2\n    return None\n",
    "for (int i = 0; i < n; ++i) {\n\ta[i] += b[i];\n}\n",
    "\t\tif (a && b || !c) { return; }\r\n",
    "SELECT * FROM t WHERE a = 'b' AND c <> 3;",
    '{"key": [1, 2.5, null, true], "text": "值"}\n',
    "#include <stdio.h>\nint main(void) {\n  printf(\"%d\\n\", 42);\n}\n",
    "| a | b |\n|---|---|\n| 1 | 2 |\n",
    "<html><body class=\"x\">&nbsp;</body></html>",
    "$$\\sum_{i=1}^{n} x_i^2$$",
]
EMOJI = "😀|👨‍👩‍👧‍👦|🇨🇳🇫🇷|👍🏽|❤️|🏳️‍🌈|🧑🏿‍🚀|✨🔥|☺|1️⃣|🀄|🫠|👩‍❤️‍💋‍👨".split("|")
SPACES = [" ", "  ", "   ", "    ", "        ", " " * 17, " " * 79, " " * 80, " " * 81, " " * 82, " " * 161, " " * 243,
          "\t", "\t\t", "\n", "\n\n", "\r\n", "\r", "\v", "\f", "\u0085", "\u00a0", "\u1680", "\u2002", "\u2009", "\u200b",
          "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\u3000\u3000", "\ufeff", "\u2060", "\u180e"]
RARE = ["e\u0301", "A\u030a", "a\u0323\u0302", "\u1100\u1161\u11a8", "한국어", "각", "हिन्दी", "ไทย", "العربية", "עברית", "Ελληνικά",
        "Русский", "ﬁﬂﬀ", "½⅓¼", "x²y₃", "ⅠⅣⅻ", "ℵℏℝ", "𝒳𝔸𝟘", "𠀀𪜶", "\u0000", "\u0001", "\u001f", "\u007f", "\u00ad", "\u200d",
        "\u202e", "\ufffd", "\ufffe", "\U0010ffff", "\u2581", "\u2581\u2581", "ß", "ſ", "İı", "Ω", "Å", "が", "ｶﾞ", "㍿", "㌔", "ﷺ",
        "e\u0301\u0302\u0303\u0304", "\u0301", "～", "＂＃＄％＆＇（）", "́́", "①", "…", "–—‘’“”", "«»", "…。，、；："]
SPECIAL = ["<n>", "<|tab|>", "<|blank_2|>", "<|blank_80|>", "<|blank_81|>", "<|blank_1|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>",
           "<eop>", "</s>", "<s>", "<pad>", "<unk>", "<0x41>", "<0x0A>", "<|user|>", "<|endoftext|>", "<|startofpiece|>", "sop",
           "＜ｎ＞", "<unused_0>", "<ENC>", "[[训练时间]]", "< n >", "<n", "n>"]


def rare_character(draw):
    code = draw.randrange(draw.choice([0x80, 0x250, 0x3000, 0xA000, 0x10000, 0x110000]))
    return "\ufffd" if 0xD800 <= code < 0xE000 else chr(code)


def strings():
    """A few thousand of every kind that a tokenizer meets; Python cannot encode lone surrogates."""
    draw = random.Random(20231225)
    texts = ["", *CHINESE, *ENGLISH, *CODE, *EMOJI, *SPACES, *RARE, *SPECIAL]
    texts += [f"a{space}b" for space in SPACES] + [f"你{space}好" for space in SPACES] + [f"{space}x{space}" for space in SPACES]
    texts += [f"{text}你" for text in SPECIAL] + [f"a {text} b" for text in RARE + SPECIAL]
    texts += [" " * count + "x" for count in range(1, 100, 7)]
    texts += ["好" * 1500, "The quick brown fox. " * 100, "a" * 2000, "😀" * 300, " " * 1000, "\n" * 500, "你好，world 123！" * 80]
    pools = [CHINESE, ENGLISH, CODE, EMOJI, SPACES, RARE, SPECIAL]
    while len(texts) < 3000:
        text = ""
        for _ in range(draw.randrange(1, 7)):
            kind = draw.randrange(11)
            if kind < 7:
                piece = draw.choice(pools[kind])
                if len(piece) > 8 and draw.random() < 0.7:
                    begin = draw.randrange(len(piece))
                    piece = piece[begin : begin + draw.randrange(1, 9)]
                text += piece
            elif kind == 7:
                text += "".join(chr(0x4E00 + draw.randrange(0x5200)) for _ in range(draw.randrange(1, 5)))
            elif kind == 8:
                text += "".join(chr(32 + draw.randrange(95)) for _ in range(draw.randrange(1, 10)))
            elif kind == 9:
                text += "".join(rare_character(draw) for _ in range(draw.randrange(1, 3)))
            else:
                text += "".join(draw.choice("的一是了我不人在他有这上个们来到时大地为子中你说生国年着就那和要") for _ in range(draw.randrange(1, 12)))
        texts.append(text)
    return list(dict.fromkeys(texts))


def golden(path, mark, unmark):
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    rows = []
    for text in strings():
        ids = model.encode(mark(text))
        decoded = unmark(model.decode(ids))
        rows.append([text, ids] if decoded == text else [text, ids, decoded])
    draw = random.Random(7)
    decodings = []
    for _ in range(200):
        limit = draw.choice([300, model.vocab_size()])
        low = draw.choice([0, max(0, model.vocab_size() - 300)]) if limit > 300 else 0
        ids = [draw.randrange(low, limit) for _ in range(draw.randrange(1, 9))]
        decodings.append([ids, unmark(model.decode(ids))])
    return {"texts": rows, "decodings": decodings}


ICETK_CONTROL = ["[MASK]", "[gMASK]", "[sMASK]", "<eod>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>"]
ICETK_IMAGES = 20000


def glm_130b():
    """What icetk does in GLM-130B's flavour, on a small model that is trained here."""
    writer = io.BytesIO()
    corpus = [line for text in CHINESE + ENGLISH + CODE for line in text.split("\n") if line] * 3
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_writer=writer, model_type="unigram", vocab_size=300, hard_vocab_limit=False,
        minloglevel=2, pad_id=3, user_defined_symbols=["<n>"], normalization_rule_name="identity",
    )
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(writer.getvalue())
    marks = ["<|tab|>"] + [f"<|blank_{count}|>" for count in range(2, BLANKS + 1)]
    kinds = [(ICETK_CONTROL, 3), (marks, 4), ([f"<0x{byte:02X}>" for byte in range(256)], 6)]
    for texts, kind in kinds:
        for text in texts:
            proto.pieces.add(piece=text, score=0.0, type=kind)
    proto.trainer_spec.byte_fallback = True
    model = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    rows, continued = [], []
    for text in ["", *CHINESE, *ENGLISH, *CODE, *EMOJI, *SPACES, *RARE, *SPECIAL, *(f"a{space}b" for space in SPACES)]:
        ids = model.encode(icetk_marks(text))
        decoded = icetk_unmark(model.decode(ids))
        shifted = [ICETK_IMAGES + token for token in ids]
        rows.append([text, shifted] if decoded == text else [text, shifted, decoded])
        continued.append([text, [ICETK_IMAGES + token for token in model.encode("<n>" + icetk_marks(text))][2:]])
    return {"model": base64.b64encode(writer.getvalue()).decode(), "texts": rows, "continued": continued}


# What the small models replace: texts of one character and of more, by nothing, spaces and longer texts.
RULES = {
    "Ａ": "A", "，": ",", "！": "!", "\t": " ", "\u3000": " ", "\u00a0": " ", "\u200b": "", "\u0001": "", "ﬁ": "fi", "①": "1",
    "e\u0301": "é", "e\u0301\u0302": "ế", "\u1100\u1161": "가", "㍿": "株式会社", "x y": " z  w ", "𝒳": "X", "abc": "cba", "abcd": "d",
}

SYMBOLS = ["<n>", "<sep>", "<s e p>", "好好", "ab", "abx", "▁▁"]

KINDS = {
    "unigram": {"model_type": "unigram"},
    "unigram, bytes": {"model_type": "unigram", "byte_fallback": True, "vocab_size": 520},
    "unigram, symbols": {"model_type": "unigram", "user_defined_symbols": SYMBOLS},
    "unigram, spaces kept": {"model_type": "unigram", "remove_extra_whitespaces": False, "user_defined_symbols": SYMBOLS},
    "unigram, bare": {"model_type": "unigram", "add_dummy_prefix": False, "normalization_rule_name": "identity"},
    "bpe": {"model_type": "bpe"},
    "bpe, bytes and symbols": {"model_type": "bpe", "byte_fallback": True, "vocab_size": 520, "user_defined_symbols": SYMBOLS},
    "bpe, spaces kept": {"model_type": "bpe", "remove_extra_whitespaces": False, "add_dummy_prefix": False},
}


def trained():
    corpus = [line for text in CHINESE + ENGLISH + CODE for line in text.split("\n") if line] * 3
    mixed = [*RULES, *SYMBOLS, " ", "  ", "你好", "hello", "a", "b", "x", "火", "😀", "▁", "世界", "the ", "\n", "e", "好", "\u0301"]
    draw = random.Random(11)
    texts = ["", " ", "   ", "▁", "\u200b", "\u200b ", " \u200b a", "a \u200b b", "a \u3000 b", "好好好", "abxab", "abcdab", "x  y x y",
             "<sep", "<s e p>", "a  ▁▁ b", " <n> ", "e\u0301\u0302e\u0301e", "😀", "火火 火", *CHINESE, *ENGLISH, *CODE]
    texts += ["".join(draw.choice(mixed) for _ in range(draw.randrange(1, 14))) for _ in range(220)]
    models = []
    with tempfile.TemporaryDirectory() as folder:
        rules = pathlib.Path(folder) / "rules.tsv"
        code_points = lambda text: " ".join(f"{ord(character):X}" for character in text)
        rules.write_text("".join(f"{code_points(text)}\t{code_points(by)}\n" for text, by in RULES.items()))
        for name, options in KINDS.items():
            writer = io.BytesIO()
            options = {"vocab_size": 260, "hard_vocab_limit": False, "minloglevel": 2, "character_coverage": 0.98, **options}
            if "normalization_rule_name" not in options:
                options["normalization_rule_tsv"] = str(rules)
            sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(corpus), model_writer=writer, **options)
            model = sentencepiece.SentencePieceProcessor(model_proto=writer.getvalue())
            rows = []
            for text in dict.fromkeys(texts):
                ids = model.encode(text)
                decoded = model.decode(ids)
                rows.append([text, ids] if decoded == text else [text, ids, decoded])
            models.append({"name": name, "model": base64.b64encode(writer.getvalue()).decode(), "texts": rows})
    return models


def main():
    folder = pathlib.Path(sys.argv[1])
    for name, (file, mark, unmark) in TOKENIZERS.items():
        result = golden(folder / name / file, mark, unmark)
        lines = {key: [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows] for key, rows in result.items()}
        body = ",\n".join(f'"{key}":[\n' + ",\n".join(rows) + "\n]" for key, rows in lines.items())
        target = pathlib.Path(__file__).parent / f"{name}.json"
        target.write_text("{" + body + "}\n", encoding="utf-8")
        print(name, len(lines["texts"]), "texts", target.stat().st_size, "bytes")
    target = pathlib.Path(__file__).parent / "trained.json"
    models = [json.dumps(model, ensure_ascii=False, separators=(",", ":")) for model in trained()]
    target.write_text("[\n" + ",\n".join(models) + "\n]\n", encoding="utf-8")
    print(len(models), "trained models", target.stat().st_size, "bytes")
    target = pathlib.Path(__file__).parent / "glm-130b.json"
    target.write_text(json.dumps(glm_130b(), ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


main()
