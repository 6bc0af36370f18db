"""Writes fixtures/{chatglm-6b,chatglm3}-tiny-ptuning and ...-ptuning-projection: prefix encoders of P-Tuning v2
as its training saves them, to be laid over fixtures/chatglm-6b-tiny and fixtures/chatglm3-tiny, and what the
two models then compute. NumPy, float64, as in make_prefix_lm_tiny.py and make_chatglm3_tiny.py; PyTorch only
writes the file. Needed only to make the fixtures anew, after those two:

    python3 -m venv /tmp/torch-venv && /tmp/torch-venv/bin/pip install torch numpy
    /tmp/torch-venv/bin/python test/golden/make_ptuning_tiny.py

expected.json is in the form of the base fixture, its prompts too. The prefix is no part of the prompt: token
positions still start at 0.
"""

import json
from collections import OrderedDict
from itertools import count
from pathlib import Path

import numpy as np
import torch

import make_chatglm3_tiny as chatglm3
import make_prefix_lm_tiny as prefix_lm
from make_chatglm3_tiny_torch import read_safetensors

FIXTURES = Path(__file__).parent / "fixtures"
# Per family: layers, heads of keys and values, their width, and how wide the embedding before a projection is:
# ChatGLM-6B embeds in the hidden size, ChatGLM2 and 3 in the size of the encoder's output.
FAMILIES = {
    "chatglm-6b-tiny": (prefix_lm.LAYERS, prefix_lm.HEADS, prefix_lm.HEAD_DIM, prefix_lm.HIDDEN, prefix_lm.HIDDEN),
    "chatglm3-tiny": (
        chatglm3.LAYERS,
        chatglm3.GROUPS,
        chatglm3.HEAD_DIM,
        chatglm3.HIDDEN,
        2 * chatglm3.LAYERS * chatglm3.GROUPS * chatglm3.HEAD_DIM,
    ),
}


def random_encoder(family, length, projection, rng):
    layers, heads, width, hidden, embedded = FAMILIES[family]
    out = 2 * layers * heads * width

    def normal(scale, *shape):
        return (scale * rng.normal(size=shape)).astype(np.float32)

    if not projection:
        return {"embedding.weight": normal(1.0, length, out)}
    return {
        "embedding.weight": normal(1.0, length, embedded),
        "trans.0.weight": normal(1 / np.sqrt(embedded), hidden, embedded),
        "trans.0.bias": normal(0.3, hidden),
        "trans.2.weight": normal(1.5 / np.sqrt(hidden), out, hidden),
        "trans.2.bias": normal(0.3, out),
    }


def keys_and_values(family, encoder):
    """Per layer two of [length, heads, width]: slot 2i of the encoder's output is its keys, 2i + 1 its values."""
    layers, heads, width, _, _ = FAMILIES[family]
    w = {name: tensor.astype(np.float64) for name, tensor in encoder.items()}
    x = w["embedding.weight"]
    if "trans.0.weight" in w:
        x = np.tanh(x @ w["trans.0.weight"].T + w["trans.0.bias"]) @ w["trans.2.weight"].T + w["trans.2.bias"]
    x = x.reshape(len(x), 2 * layers, heads, width)
    return [(x[:, 2 * i], x[:, 2 * i + 1]) for i in range(layers)]


def run(family, tensors, prefix, case):
    """The case as this prefix makes it, or None if rounding could change its tokens."""
    if family == "chatglm-6b-tiny":
        asked = {key: case[key] for key in ("prompt", "contextLength", "maskPosition")}
        return prefix_lm.greedy("chatglm-6b", tensors, asked, lambda: list(prefix), len(prefix[0][0]))
    try:
        return chatglm3.greedy(tensors, case["prompt"], prefix_lm.STEPS, {**chatglm3.CHATGLM3, "prefix": prefix})
    except AssertionError:  # a near tie
        return None


def make(family, folder, length, projection, seed):
    base = FIXTURES / family
    tensors = {name: tensor.numpy() for name, tensor in read_safetensors(base / "model.safetensors").items()}
    expected = json.loads((base / "expected.json").read_text())
    for seed in count(seed):
        encoder = random_encoder(family, length, projection, np.random.default_rng(seed))
        cases = []
        for case in expected["cases"]:
            cases.append(run(family, tensors, keys_and_values(family, encoder), case))
            if cases[-1] is None:
                break
        else:
            break
    out = FIXTURES / folder
    out.mkdir(parents=True, exist_ok=True)
    config = json.loads((base / "config.json").read_text())
    config |= {"pre_seq_len": length, "prefix_projection": projection}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    state = OrderedDict(
        (f"transformer.prefix_encoder.{name}", torch.from_numpy(tensor)) for name, tensor in encoder.items()
    )
    torch.save(state, out / "pytorch_model.bin")
    expected["cases"] = cases
    (out / "expected.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")
    print(folder, "seed", seed)


if __name__ == "__main__":
    # Last the seed where the search for clear choices begins: the committed ones are the first from there.
    make("chatglm-6b-tiny", "chatglm-6b-tiny-ptuning", 5, False, 20233962)
    make("chatglm-6b-tiny", "chatglm-6b-tiny-ptuning-projection", 20, True, 20230747)
    make("chatglm3-tiny", "chatglm3-tiny-ptuning", 5, False, 20230331)
    make("chatglm3-tiny", "chatglm3-tiny-ptuning-projection", 20, True, 20230331)
