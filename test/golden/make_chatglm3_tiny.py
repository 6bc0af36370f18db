"""Writes fixtures/chatglm3-tiny: a random ChatGLM3 of 4 layers and what it must compute, also when its
weights are read as those of the other families of the same network (families.json).

An independent implementation in NumPy, float64, written from the formulas of the model (pre-norm,
interleaved RoPE on half of each head, grouped keys and values, gate first), not from the engine.
Needed only to make the fixture anew:

    python3 -m venv /tmp/np-venv && /tmp/np-venv/bin/pip install numpy
    /tmp/np-venv/bin/python test/golden/make_chatglm3_tiny.py
"""

import json
import struct
from pathlib import Path

import numpy as np

OUT = Path(__file__).parent / "fixtures" / "chatglm3-tiny"

HIDDEN, LAYERS, HEADS, GROUPS, HEAD_DIM, FFN = 64, 4, 4, 2, 16, 96
VOCAB, TOKENS = 131, 120  # rows 120..130 only fill up the matrices
EPS = 1e-5

CONFIG = {
    "model_type": "chatglm",
    "architectures": ["ChatGLMModel"],
    "num_layers": LAYERS,
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "multi_query_attention": True,
    "multi_query_group_num": GROUPS,
    "kv_channels": HEAD_DIM,
    "ffn_hidden_size": FFN,
    "padded_vocab_size": VOCAB,
    "vocab_size": VOCAB,
    "seq_length": 256,
    "layernorm_epsilon": EPS,
    "rmsnorm": True,
    "add_qkv_bias": True,
    "add_bias_linear": False,
    "post_layer_norm": True,
    "apply_residual_connection_post_layernorm": False,
    "original_rope": True,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "eos_token_id": 2,
    "pad_token_id": 0,
}

# What config.json says of the other families, and what the authors' code makes of it.
FAMILIES = [
    {
        "config": {"_name_or_path": "THUDM/chatglm2-6b-32k", "rope_ratio": 16},
        "math": {"base": 10000.0, "divisor": 16.0, "eps": EPS},
    },
    {
        "config": {"_name_or_path": "THUDM/chatglm3-6b-32k", "rope_ratio": 50},
        "math": {"base": 500000.0, "divisor": 1.0, "eps": EPS},
    },
    {
        "config": {
            "_name_or_path": "THUDM/glm-4-9b-chat",
            "rope_ratio": 500,
            "layernorm_epsilon": 1.5625e-07,
            "eos_token_id": [106, 113, 115],
        },
        "math": {"base": 5000000.0, "divisor": 1.0, "eps": 1.5625e-07},
    },
]
CHATGLM3 = {"base": 10000.0, "divisor": 1.0, "eps": EPS}


def random_tensors(rng):
    """Weights in the order and with the names of the published checkpoints."""

    def matrix(rows, columns):
        return rng.normal(0.0, 1.0 / np.sqrt(columns), (rows, columns)).astype(np.float32)

    def norm():
        return (1.0 + 0.2 * rng.normal(size=HIDDEN)).astype(np.float32)

    qkv = (HEADS + 2 * GROUPS) * HEAD_DIM
    tensors = {"transformer.embedding.word_embeddings.weight": rng.normal(size=(VOCAB, HIDDEN)).astype(np.float32)}
    for i in range(LAYERS):
        layer = f"transformer.encoder.layers.{i}."
        tensors[layer + "input_layernorm.weight"] = norm()
        tensors[layer + "self_attention.query_key_value.weight"] = 2.0 * matrix(qkv, HIDDEN)
        tensors[layer + "self_attention.query_key_value.bias"] = (0.3 * rng.normal(size=qkv)).astype(np.float32)
        tensors[layer + "self_attention.dense.weight"] = matrix(HIDDEN, HEADS * HEAD_DIM)
        tensors[layer + "post_attention_layernorm.weight"] = norm()
        tensors[layer + "mlp.dense_h_to_4h.weight"] = matrix(2 * FFN, HIDDEN)
        tensors[layer + "mlp.dense_4h_to_h.weight"] = matrix(HIDDEN, FFN)
    tensors["transformer.encoder.final_layernorm.weight"] = norm()
    tensors["transformer.output_layer.weight"] = 2.0 * matrix(VOCAB, HIDDEN)
    # Present in the published files and of no use: readers must pass over it.
    tensors["transformer.rotary_pos_emb.inv_freq"] = (
        10000.0 ** (-np.arange(0, HEAD_DIM // 2, 2) / (HEAD_DIM // 2))
    ).astype(np.float32)
    return tensors


def rms_norm(x, weight, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def rotate(x, positions, base):
    """x: [rows, heads, HEAD_DIM]; the first half of each head turns, in pairs (0, 1), (2, 3), ..."""
    width = HEAD_DIM // 2
    theta = base ** (-np.arange(0, width, 2) / width)
    angle = positions[:, None, None] * theta
    even, odd = x[..., 0:width:2], x[..., 1:width:2]
    out = x.copy()
    out[..., 0:width:2] = even * np.cos(angle) - odd * np.sin(angle)
    out[..., 1:width:2] = odd * np.cos(angle) + even * np.sin(angle)
    return out


def forward(tensors, ids, base, divisor, eps, prefix=None):
    """Log-softmax over the existing ids for every position of one sequence, [len(ids), TOKENS].

    `prefix`: keys and values per layer that P-Tuning puts before the sequence; visible to all, at no position.
    """
    w = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    rows = len(ids)
    positions = np.arange(rows) / divisor
    h = w["transformer.embedding.word_embeddings.weight"][ids]
    for i in range(LAYERS):
        layer = f"transformer.encoder.layers.{i}."
        x = rms_norm(h, w[layer + "input_layernorm.weight"], eps)
        qkv = x @ w[layer + "self_attention.query_key_value.weight"].T
        qkv += w[layer + "self_attention.query_key_value.bias"]
        q, k, v = np.split(qkv, [HEADS * HEAD_DIM, (HEADS + GROUPS) * HEAD_DIM], axis=1)
        q = rotate(q.reshape(rows, HEADS, HEAD_DIM), positions, base)
        k = rotate(k.reshape(rows, GROUPS, HEAD_DIM), positions, base)
        v = v.reshape(rows, GROUPS, HEAD_DIM)
        before = 0
        if prefix:
            before = len(prefix[i][0])
            k, v = np.concatenate([prefix[i][0], k]), np.concatenate([prefix[i][1], v])
        context = np.zeros((rows, HEADS, HEAD_DIM))
        for head in range(HEADS):
            group = head // (HEADS // GROUPS)
            scores = q[:, head] @ k[:, group].T / np.sqrt(HEAD_DIM)
            scores[np.triu_indices(rows, before + 1, before + rows)] = -np.inf
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            context[:, head] = weights / weights.sum(axis=1, keepdims=True) @ v[:, group]
        h = h + context.reshape(rows, -1) @ w[layer + "self_attention.dense.weight"].T
        x = rms_norm(h, w[layer + "post_attention_layernorm.weight"], eps)
        gate, up = np.split(x @ w[layer + "mlp.dense_h_to_4h.weight"].T, 2, axis=1)
        h = h + (gate / (1.0 + np.exp(-gate)) * up) @ w[layer + "mlp.dense_4h_to_h.weight"].T
    x = rms_norm(h, w["transformer.encoder.final_layernorm.weight"], eps)
    logits = (x @ w["transformer.output_layer.weight"].T)[:, :TOKENS]
    top = logits.max(axis=1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))


def write_safetensors(path, tensors):
    header, data, offset = {"__metadata__": {"format": "pt"}}, [], 0
    for name, tensor in sorted(tensors.items()):
        raw = tensor.tobytes()
        header[name] = {
            "dtype": {"float32": "F32", "float16": "F16"}[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(raw)],
        }
        data.append(raw)
        offset += len(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data))


def greedy(tensors, prompt, steps, math):
    """The prompt, `steps` greedy tokens after it, and the log-softmax that led to each of them."""
    ids, rows = list(prompt), []
    for _ in range(steps):
        row = forward(tensors, ids, **math)[-1]
        best = np.sort(row)[::-1]
        # A near tie would make the expected token a matter of rounding.
        assert best[0] - best[1] > 1e-3
        rows.append(row)
        ids.append(int(np.argmax(row)))
    scored = forward(tensors, prompt, **math)
    return {
        "prompt": list(prompt),
        "tokens": ids[len(prompt) :],
        "promptLogprobs": [float(scored[i][prompt[i + 1]]) for i in range(len(prompt) - 1)],
        "stepLogprobs": [[round(float(x), 9) for x in row] for row in rows],
    }


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(20240613)
    tensors = random_tensors(rng)
    prompts = [[64, 17, 3, 99, 5, 41, 12], [int(x) for x in rng.integers(3, TOKENS, 37)]]
    (OUT / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    write_safetensors(OUT / "model.safetensors", tensors)
    expected = {"tokenCount": TOKENS, "cases": [greedy(tensors, prompt, 9, CHATGLM3) for prompt in prompts]}
    (OUT / "expected.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")
    families = [
        {"config": family["config"], "cases": [greedy(tensors, prompts[1], 9, family["math"])]} for family in FAMILIES
    ]
    (OUT / "families.json").write_text(json.dumps(families, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
