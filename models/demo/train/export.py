"""Writes the Hugging Face folder of the demo model from a checkpoint.

    python export.py --checkpoint DIR/checkpoint.pt --to ..

model.safetensors in FP16, tokenizer.model, config.json, tokenizer_config.json,
generation_config.json. Without --checkpoint only the tokenizer and the settings.
"""

import argparse
import json
import os
import struct

import torch

import batches
import model
import tokenizer


def config(tok):
    """The keys of ChatGLM's own configuration class."""
    return {
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "attention_dropout": 0.0,
        "attention_softmax_in_fp32": True,
        "bias_dropout_fusion": True,
        "ffn_hidden_size": model.FFN,
        "fp32_residual_connection": False,
        "hidden_dropout": 0.0,
        "hidden_size": model.HIDDEN,
        "kv_channels": model.HEAD_DIM,
        "layernorm_epsilon": model.EPSILON,
        "multi_query_attention": True,
        "multi_query_group_num": model.GROUPS,
        "num_attention_heads": model.HEADS,
        "num_layers": model.LAYERS,
        "original_rope": True,
        "padded_vocab_size": tok.padded_vocab,
        "post_layer_norm": True,
        "rmsnorm": True,
        "seq_length": batches.LONG,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "use_cache": True,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def tokenizer_config():
    one = "<|{{ message['role'] }}|> \n {{ message['content'] }}"
    return {
        "name_or_path": "glm-relay-demo",
        "remove_space": False,
        "do_lower_case": False,
        "tokenizer_class": "ChatGLMTokenizer",
        "chat_template": "{% for message in messages %}{% if loop.first %}[gMASK]sop" + one
        + "{% else %}" + one + "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
    }


def generation_config(tok):
    """Greedy: the answers are facts and sums, so sampling could only make them wrong."""
    return {
        "do_sample": False,
        "eos_token_id": [2, tok.user, tok.special["<|observation|>"]],
        "pad_token_id": 0,
    }


def write_safetensors(path, tensors):
    """8-byte header length, a JSON header padded with spaces, then the data."""
    header, place = {"__metadata__": {"format": "pt"}}, 0
    for name, t in tensors.items():
        size = t.numel() * 2
        header[name] = {"dtype": "F16", "shape": list(t.shape), "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path + ".new", "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for t in tensors.values():
            f.write(t.detach().half().contiguous().numpy().tobytes())
    os.replace(path + ".new", path)


def read_safetensors(path):
    """FP16 tensors of a file written above, as fp32."""
    data = open(path, "rb").read()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    out = {}
    for name, h in header.items():
        a, b = (8 + size + o for o in h["data_offsets"])
        half = torch.frombuffer(bytearray(data[a:b]), dtype=torch.float16)
        out[name] = half.reshape(h["shape"]).float()
    return out


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f, ensure_ascii=False, indent=2)
        f.write("\n")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--checkpoint")
    p.add_argument("--to", required=True)
    args = p.parse_args()
    tok = tokenizer.build()
    os.makedirs(args.to, exist_ok=True)
    with open(os.path.join(args.to, "tokenizer.model"), "wb") as f:
        f.write(tokenizer.sentencepiece_model(tok.pieces))
    write_json(os.path.join(args.to, "config.json"), config(tok))
    write_json(os.path.join(args.to, "tokenizer_config.json"), tokenizer_config())
    write_json(os.path.join(args.to, "generation_config.json"), generation_config(tok))
    if args.checkpoint:
        state = torch.load(args.checkpoint, weights_only=True)
        write_safetensors(os.path.join(args.to, "model.safetensors"), state["weights"])
        print(f"exported step {state['step']}")


if __name__ == "__main__":
    main()
