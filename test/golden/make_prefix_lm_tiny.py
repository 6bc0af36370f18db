"""Writes fixtures/chatglm-6b-tiny, glm-130b-tiny and glm-10b-tiny: random models of the three networks that
read their context in both directions (prefix language models), and what they must compute.

An independent implementation in NumPy, float64, written from the formulas of the models, not from the
engine. Needed only to make the fixtures anew:

    python3 -m venv /tmp/np-venv && /tmp/np-venv/bin/pip install numpy
    /tmp/np-venv/bin/python test/golden/make_prefix_lm_tiny.py

A case of expected.json: `prompt`; `contextLength`, the tokens that every row sees, which is the index of
sop (0: plain causal attention); `maskPosition`, the position that sop and all after it take (null: theirs
go on counting); `promptLogprobs[i]` of prompt[i + 1], null up to and with sop; `tokens` and `stepLogprobs`
as in the other fixtures.
"""

import itertools
import json
import math
from pathlib import Path

import numpy as np

from make_chatglm3_tiny import write_safetensors

FIXTURES = Path(__file__).parent / "fixtures"
HIDDEN, LAYERS, HEADS, HEAD_DIM = 64, 3, 4, 16
TOKENS, POSITIONS, EPS, STEPS = 120, 128, 1e-5, 9
# Ids from here on are special; greedy tokens stay below.
SPECIAL = 106

SHAPE = {
    "num_layers": LAYERS,
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "layernorm_epsilon": EPS,
    "max_sequence_length": POSITIONS,
    "vocab_size": TOKENS,
    "torch_dtype": "float32",
}
# `seed`: where the search for a model with clear choices begins (the committed ones are the first from there);
# `qkv` and `branch` scale the random weights so that attention is sharp and the branches weigh as much as the
# residual, which `alpha` multiplies.
FAMILIES = {
    "chatglm-6b": {
        "seed": 20245283,
        "ids": {"mask": 110, "gmask": 111, "sop": 114, "eop": 115},
        "alpha": math.sqrt(56),  # of the published 28 layers, however many there are
        "qkv": 2.0,
        "branch": 10.0,
        "inner": 128,
        "root": "transformer.",
        "config": {
            "_name_or_path": "THUDM/chatglm-6b",
            "architectures": ["ChatGLMModel"],
            "model_type": "chatglm",
            "auto_map": {
                "AutoConfig": "configuration_chatglm.ChatGLMConfig",
                "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
                "AutoModelForSeq2SeqLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
            },
            "bos_token_id": 114,
            "eos_token_id": 115,
            "mask_token_id": 110,
            "gmask_token_id": 111,
            "pad_token_id": 3,
            "position_encoding_2d": True,
            "use_cache": True,
        },
    },
    "glm-130b": {
        "seed": 20225418,
        "ids": {"mask": 110, "gmask": 111, "sop": 114, "eop": 115},
        "alpha": math.sqrt(2 * LAYERS),
        "qkv": 1.5,
        "branch": 2.0,
        "inner": 96,
        "root": "transformer.",
        "config": {"architectures": ["GLM130B"], "model_type": "glm-130b", "head_dim": HEAD_DIM},
    },
    "glm-10b": {
        "seed": 20223562,
        "ids": {"mask": 110, "gmask": 113, "sop": 107, "eop": 108},
        "qkv": 2.0,
        "branch": 2.5,
        "inner": 128,
        "root": "",
        "config": {
            "architectures": ["GLM10B"],
            "model_type": "glm-10b",
            "head_dim": HEAD_DIM,
            "max_position_embeddings": POSITIONS,
        },
    },
}


def random_tensors(name, family, rng):
    """Weights with the names of the published checkpoints; all values fit float16, as published."""

    def normal(scale, *shape):
        return (scale * rng.normal(size=shape)).astype(np.float16).astype(np.float32)

    def linear(to, rows, columns, scale):
        tensors[to + ".weight"] = normal(scale / math.sqrt(columns), rows, columns)
        tensors[to + ".bias"] = normal(0.3, rows)

    def norm(to):
        tensors[to + ".weight"] = np.float32(1) + normal(0.2, HIDDEN)
        tensors[to + ".weight"] = tensors[to + ".weight"].astype(np.float16).astype(np.float32)
        tensors[to + ".bias"] = normal(0.3, HIDDEN)

    tensors = {}
    inner, branch = family["inner"], family["branch"]
    # The head is the embedding; its input is normed, so this spreads the logits by 3.
    embedding = tensors[family["root"] + "word_embeddings.weight"] = normal(3 / math.sqrt(HIDDEN), TOKENS, HIDDEN)
    if name == "glm-10b":
        tensors["transformer.position_embeddings.weight"] = normal(0.3, POSITIONS + 1, HIDDEN)
        tensors["transformer.block_position_embeddings.weight"] = normal(0.3, POSITIONS + 1, HIDDEN)
    for i in range(LAYERS):
        layer = f"transformer.layers.{i}."
        norm(layer + "input_layernorm")
        linear(layer + "attention.query_key_value", 3 * HEADS * HEAD_DIM, HIDDEN, family["qkv"])
        linear(layer + "attention.dense", HIDDEN, HEADS * HEAD_DIM, branch)
        norm(layer + "post_attention_layernorm")
        linear(layer + "mlp.dense_h_to_4h", (2 if name == "glm-130b" else 1) * inner, HIDDEN, 1.5)
        linear(layer + "mlp.dense_4h_to_h", HIDDEN, inner, branch)
        if name != "glm-10b":
            # Present in the published files and of no use: readers must pass over it.
            width = HEAD_DIM if name == "glm-130b" else HEAD_DIM // 2
            frequencies = 10000.0 ** (-np.arange(0, width, 2) / width)
            tensors[layer + "attention.rotary_emb.inv_freq"] = frequencies.astype(np.float16)
    norm("transformer.final_layernorm")
    if name == "chatglm-6b":
        tensors["lm_head.weight"] = embedding.copy()
    return tensors


def layer_norm(x, weight, bias):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + EPS) * weight + bias


def gelu_tanh(x):
    return 0.5 * x * (1.0 + np.tanh(0.7978845608028654 * x * (1.0 + 0.044715 * x * x)))


def gelu_erf(x):
    return 0.5 * x * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))


def rotate(x, positions):
    """x: [rows, heads, width]; dimension j turns with j + width / 2."""
    width = x.shape[-1]
    angle = positions[:, None, None] * 10000.0 ** (-np.arange(0, width, 2) / width)
    a, b = x[..., : width // 2], x[..., width // 2 :]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=-1)


def turned(name, x, positions, blocks):
    if name == "chatglm-6b":
        half = HEAD_DIM // 2
        return np.concatenate([rotate(x[..., :half], positions), rotate(x[..., half:], blocks)], axis=-1)
    return rotate(x, positions) if name == "glm-130b" else x


def attention(q, k, v, visible):
    context = np.zeros_like(q)
    for head in range(HEADS):
        scores = q[:, head] @ k[:, head].T / math.sqrt(HEAD_DIM)
        scores[~visible] = -np.inf
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        context[:, head] = weights / weights.sum(axis=1, keepdims=True) @ v[:, head]
    return context.reshape(len(q), -1)


def forward(name, tensors, ids, context, mask, cache, start=0, prefix=0):
    """Log-softmax for ids, which stand at start, start + 1, ... of their sequence; [len(ids), TOKENS].

    `cache` holds keys and values of each layer before `start` and grows; its first `prefix` rows are those of
    P-Tuning, which have no place in the sequence and are visible to all.
    """
    family = FAMILIES[name]
    w = {key: tensor.astype(np.float64) for key, tensor in tensors.items()}
    rows = np.arange(start, start + len(ids))
    inside = rows < context
    positions = np.where(inside | (mask is None), rows, mask or 0)
    blocks = np.where(inside, 0, rows - context + 1)
    keys = np.arange(start + len(ids))
    visible = (keys < context) | (keys <= rows[:, None])
    visible = np.concatenate([np.ones((len(ids), prefix), bool), visible], axis=1)

    def linear(x, key):
        return x @ w[key + ".weight"].T + w[key + ".bias"]

    def norm(x, key):
        return layer_norm(x, w[key + ".weight"], w[key + ".bias"])

    embedding = w[family["root"] + "word_embeddings.weight"]
    h = embedding[ids]
    if name == "glm-10b":
        h = h + w["transformer.position_embeddings.weight"][positions]
        h = h + w["transformer.block_position_embeddings.weight"][blocks]
    for i in range(LAYERS):
        layer = f"transformer.layers.{i}."
        x = norm(h, layer + "input_layernorm")
        qkv = linear(x, layer + "attention.query_key_value")
        if name == "glm-10b":
            q, k, v = (part.reshape(len(ids), HEADS, HEAD_DIM) for part in np.split(qkv, 3, axis=1))
        else:
            q, k, v = np.split(qkv.reshape(len(ids), HEADS, 3 * HEAD_DIM), 3, axis=2)
        q, k = (turned(name, part, positions, blocks) for part in (q, k))
        cache[i] = tuple(np.concatenate(pair) for pair in zip(cache[i], (k, v)))
        attended = linear(attention(q, *cache[i], visible), layer + "attention.dense")
        # DeepNorm goes on from the normed tensor, GLM-10B from the one before the norm.
        h = h + attended if name == "glm-10b" else family["alpha"] * x + attended
        x = norm(h, layer + "post_attention_layernorm")
        z = linear(x, layer + "mlp.dense_h_to_4h")
        if name == "glm-130b":
            value, gate = np.split(z, 2, axis=1)
            z = value * gelu_erf(gate)
        else:
            z = gelu_tanh(z)
        z = linear(z, layer + "mlp.dense_4h_to_h")
        h = h + z if name == "glm-10b" else family["alpha"] * x + z
    logits = norm(h, "transformer.final_layernorm") @ embedding.T
    top = logits.max(axis=1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))


def empty_cache():
    return [(np.zeros((0, HEADS, HEAD_DIM)),) * 2 for _ in range(LAYERS)]


def greedy(name, tensors, case, start_cache=empty_cache, prefix=0):
    """The case with the prompt's logprobs and its greedy tokens, or None if they are of little use."""
    prompt, context, mask = case["prompt"], case["contextLength"], case["maskPosition"]
    cache = start_cache()
    scored = forward(name, tensors, prompt, context, mask, cache, 0, prefix)
    ids, steps, row = list(prompt), [], scored[-1]
    for _ in range(STEPS):
        best = np.sort(row)[::-1]
        # A near tie would make the expected token a matter of rounding.
        if best[0] - best[1] < 1e-3 or np.argmax(row) >= SPECIAL:
            return None
        steps.append(row)
        ids.append(int(np.argmax(row)))
        row = forward(name, tensors, ids[-1:], context, mask, cache, len(ids) - 1, prefix)[0]
    # One token over and over would hide mistakes.
    if len(set(ids[len(prompt) :])) < 5:
        return None
    # The cache must change nothing.
    again = forward(name, tensors, ids, context, mask, start_cache(), 0, prefix)
    assert np.allclose(again[len(prompt) - 1 : -1], steps, rtol=0, atol=1e-10)
    return {
        **case,
        "tokens": ids[len(prompt) :],
        "promptLogprobs": [
            None if i + 1 <= context else float(scored[i][prompt[i + 1]]) for i in range(len(prompt) - 1)
        ],
        "stepLogprobs": [[round(float(x), 9) for x in row] for row in steps],
    }


def prompts(name):
    """Cases to be continued: gMASK at the end (short, long), MASK inside, tokens after sop, plain causal."""
    ids = FAMILIES[name]["ids"]
    rng = np.random.default_rng(7)

    def text(count):
        return [int(x) for x in rng.integers(5, SPECIAL, count)]

    def case(context, after, mask):
        # The mask whose blank is filled; GLM-130B counts on after gMASK.
        position = None if mask == ids["gmask"] and name == "glm-130b" else context.index(mask)
        return {"prompt": [*context, ids["sop"], *after], "contextLength": len(context), "maskPosition": position}

    blank = [*text(5), ids["mask"], *text(6)]
    cases = [
        case([*text(6), ids["gmask"]], [], ids["gmask"]),
        case([*text(38), ids["gmask"]], [], ids["gmask"]),
        case(blank, [], ids["mask"]),
        case(blank, text(5), ids["mask"]),
        case([*text(9), ids["gmask"]], text(4), ids["gmask"]),
    ]
    if name == "glm-130b":
        cases.append({"prompt": [ids["gmask"], ids["sop"], *text(20)], "contextLength": 0, "maskPosition": None})
    return cases


def make(name):
    family = FAMILIES[name]
    for seed in itertools.count(family["seed"]):
        tensors = random_tensors(name, family, np.random.default_rng(seed))
        cases = []
        for case in prompts(name):
            cases.append(greedy(name, tensors, case))
            if cases[-1] is None:
                break
        else:
            break
    out = FIXTURES / f"{name}-tiny"
    out.mkdir(parents=True, exist_ok=True)
    config = {**family["config"], **SHAPE, "inner_hidden_size": family["inner"]}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_safetensors(out / "model.safetensors", tensors)
    expected = {"tokenCount": TOKENS, "ids": family["ids"], "cases": cases}
    (out / "expected.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")
    print(out.name, "seed", seed)


if __name__ == "__main__":
    for name in FAMILIES:
        make(name)
