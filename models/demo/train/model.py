"""The ChatGLM3 forward pass as a plain function of its weights.

The weights live in a dict whose keys are the tensor names of the checkpoint, so
training, evaluation and export need no translation between names. A function
of (weights, ids) also lets training hand in fake-quantized copies of the
linears without touching the model.
"""

import torch
import torch.nn.functional as F

HIDDEN = 128
LAYERS = 8
HEADS = 4
GROUPS = 2
HEAD_DIM = 32
FFN = 512
EPSILON = 1e-5
ROPE_BASE = 10000.0
# ChatGLM rotates the first half of every head; the second half carries no position.
ROTATED = HEAD_DIM // 2

EMBEDDING = "transformer.embedding.word_embeddings.weight"
FINAL_NORM = "transformer.encoder.final_layernorm.weight"
HEAD = "transformer.output_layer.weight"
LINEARS = (
    "self_attention.query_key_value.weight",
    "self_attention.dense.weight",
    "mlp.dense_h_to_4h.weight",
    "mlp.dense_4h_to_h.weight",
)


def layer_name(layer, part):
    return f"transformer.encoder.layers.{layer}.{part}"


def shapes(vocab):
    """Every tensor of the checkpoint with its shape, in file order."""
    qkv = (HEADS + 2 * GROUPS) * HEAD_DIM
    out = {EMBEDDING: (vocab, HIDDEN)}
    for i in range(LAYERS):
        out[layer_name(i, "input_layernorm.weight")] = (HIDDEN,)
        out[layer_name(i, "self_attention.query_key_value.weight")] = (qkv, HIDDEN)
        out[layer_name(i, "self_attention.query_key_value.bias")] = (qkv,)
        out[layer_name(i, "self_attention.dense.weight")] = (HIDDEN, HEADS * HEAD_DIM)
        out[layer_name(i, "post_attention_layernorm.weight")] = (HIDDEN,)
        out[layer_name(i, "mlp.dense_h_to_4h.weight")] = (2 * FFN, HIDDEN)
        out[layer_name(i, "mlp.dense_4h_to_h.weight")] = (HIDDEN, FFN)
    out[FINAL_NORM] = (HIDDEN,)
    out[HEAD] = (vocab, HIDDEN)
    return out


def initial_weights(vocab, seed):
    """Normal(0, 0.02) embeddings, 1/sqrt(fan in) linears, small output projections."""
    gen = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes(vocab).items():
        if name.endswith("layernorm.weight"):
            w = torch.ones(shape)
        elif name.endswith("bias"):
            w = torch.zeros(shape)
        else:
            std = 0.02 if name in (EMBEDDING, HEAD) else shape[1] ** -0.5
            if name == EMBEDDING:
                std = 0.1
            if name.endswith(("dense.weight", "dense_4h_to_h.weight")):
                # Residual branches start small so that eight of them add up to order 1.
                std *= (2 * LAYERS) ** -0.5
            w = torch.randn(shape, generator=gen) * std
        weights[name] = w
    return weights


def rope_table(length):
    """cos and sin of shape [length, 1, ROTATED / 2], in fp32."""
    theta = ROPE_BASE ** (-torch.arange(0, ROTATED, 2).float() / ROTATED)
    angle = torch.arange(length).float()[:, None, None] * theta
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    """RoPE on interleaved pairs (0,1), (2,3), ... of the first ROTATED dims. x: [B, T, heads, d]."""
    pairs = x[..., :ROTATED].unflatten(-1, (ROTATED // 2, 2))
    a, b = pairs[..., 0], pairs[..., 1]
    turned = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    return torch.cat((turned, x[..., ROTATED:]), -1)


def swiglu(x):
    """The activated half comes first."""
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


def rms_norm(x, weight):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPSILON) * weight


def hidden_states(weights, ids, cos, sin, mask, index):
    """Final normed hidden states [len(index), HIDDEN] at flat places `index`.

    cos, sin: [B, T, 1, ROTATED / 2], gathered at each token's position.
    mask: bool [B, 1, T, T], True where a query sees a key; None means causal.
    """
    batch, length = ids.shape
    h = F.embedding(ids, weights[EMBEDDING])
    for i in range(LAYERS):
        get = lambda part: weights[layer_name(i, part)]
        x = rms_norm(h, get("input_layernorm.weight"))
        qkv = F.linear(
            x,
            get("self_attention.query_key_value.weight"),
            get("self_attention.query_key_value.bias"),
        ).view(batch, length, HEADS + 2 * GROUPS, HEAD_DIM)
        qk = rotate(qkv[:, :, : HEADS + GROUPS], cos, sin)
        q = qk[:, :, :HEADS].transpose(1, 2)
        # Query head h reads key/value head h // (HEADS / GROUPS).
        share = HEADS // GROUPS
        k = qk[:, :, HEADS:].repeat_interleave(share, 2).transpose(1, 2)
        v = qkv[:, :, HEADS + GROUPS :].repeat_interleave(share, 2).transpose(1, 2)
        att = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        att = att.transpose(1, 2).reshape(batch, length, HEADS * HEAD_DIM)
        if i == LAYERS - 1:
            # After the last attention only the wanted places matter.
            att, h = att.flatten(0, 1)[index], h.flatten(0, 1)[index]
        h = h + F.linear(att, get("self_attention.dense.weight"))
        x = rms_norm(h, get("post_attention_layernorm.weight"))
        x = swiglu(F.linear(x, get("mlp.dense_h_to_4h.weight")))
        h = h + F.linear(x, get("mlp.dense_4h_to_h.weight"))
    return rms_norm(h, weights[FINAL_NORM])


def compile_parts():
    """Fuses the elementwise parts, which are bound by memory; the linears stay library calls."""
    global swiglu, rms_norm, rotate
    swiglu = torch.compile(swiglu, dynamic=True)
    rms_norm = torch.compile(rms_norm, dynamic=True)
    rotate = torch.compile(rotate, dynamic=True)


def quantize_int4(w):
    """Symmetric INT4 in groups of 32 along the input, FP16 scale, rounded to nearest even.

    Returns the dequantized fp32 weights.
    """
    groups = w.float().reshape(w.shape[0], -1, 32)
    scale = (groups.abs().amax(-1, keepdim=True) / 7).half().float()
    q = torch.where(scale > 0, groups / scale.clamp_min(1e-12), torch.zeros_like(groups))
    return (q.round().clamp(-7, 7) * scale).reshape(w.shape)


def is_linear(name):
    """The four linears of each layer: what INT4 touches. Embedding and head stay FP16."""
    return name.endswith(LINEARS)


def with_int4(weights):
    return {n: quantize_int4(w) if is_linear(n) else w for n, w in weights.items()}


def fake_quantized(weights):
    """INT4 in the forward pass, identity in the backward pass (straight-through)."""
    return {
        n: w + (quantize_int4(w.detach()) - w.detach()) if is_linear(n) else w
        for n, w in weights.items()
    }
