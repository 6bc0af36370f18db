"""Makes the fixtures glm-tiny and glm4-tiny: random models of the transformers layouts GlmForCausalLM
(GLM-4-9B) and Glm4ForCausalLM (GLM-4-0414), and what the transformers package itself computes with them:
log-softmax over a prompt and nine greedy tokens. Needs PyTorch, transformers and safetensors; the tests
need the files only.

    python test/golden/make_glm4_tiny.py
"""

import json
import pathlib

import torch
from safetensors.torch import save_file
from transformers import Glm4Config, Glm4ForCausalLM, GlmConfig, GlmForCausalLM

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
TOKENS = 120
SHAPE = {
    "vocab_size": TOKENS,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "eos_token_id": [2],
    "pad_token_id": 0,
}
# As config.json of the published models has it; transformers 5 keeps the two in rope_parameters.
ROPE = {"rope_theta": 10000.0, "partial_rotary_factor": 0.5}


def randomise(model):
    generator = torch.Generator().manual_seed(20250414)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight"):
            values = 1 + 0.2 * values
        elif parameter.dim() == 1:
            values = 0.3 * values
        elif "embed_tokens" not in name:
            values = values / parameter.shape[1] ** 0.5
            if "lm_head" in name:
                values = 3 * values
        parameter.data.copy_(values)


@torch.no_grad()
def logprobs(model, ids):
    return torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)


def greedy(model, prompt, steps):
    ids, rows = list(prompt), []
    for _ in range(steps):
        row = logprobs(model, ids)[-1]
        best = torch.sort(row, descending=True).values
        # A near tie would make the expected token a matter of rounding.
        assert best[0] - best[1] > 1e-3
        rows.append(row)
        ids.append(int(torch.argmax(row)))
    first = logprobs(model, prompt)
    return {
        "prompt": list(prompt),
        "tokens": ids[len(prompt) :],
        "promptLogprobs": [float(first[i][prompt[i + 1]]) for i in range(len(prompt) - 1)],
        "stepLogprobs": [[round(float(x), 9) for x in row] for row in rows],
    }


def make(folder, architecture, config, model):
    out = FIXTURES / folder
    out.mkdir(parents=True, exist_ok=True)
    randomise(model)
    model.eval()
    written = {
        "model_type": config.model_type,
        "architectures": [architecture],
        **SHAPE,
        "attention_bias": config.attention_bias,
        **ROPE,
        "torch_dtype": "float32",
    }
    (out / "config.json").write_text(json.dumps(written, indent=2) + "\n")
    save_file({name: p.detach().contiguous() for name, p in model.named_parameters()}, out / "model.safetensors")
    generator = torch.Generator().manual_seed(7)
    prompts = [[64, 17, 3, 99, 5, 41, 12], torch.randint(3, TOKENS, (37,), generator=generator).tolist()]
    expected = {"tokenCount": TOKENS, "cases": [greedy(model, prompt, 9) for prompt in prompts]}
    (out / "expected.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")


def main():
    rope = {"rope_type": "default", **ROPE}
    glm = GlmConfig(**SHAPE, attention_bias=True, rope_parameters=rope, attn_implementation="eager")
    make("glm-tiny", "GlmForCausalLM", glm, GlmForCausalLM(glm))
    # The 32B model has no biases.
    glm4 = Glm4Config(**SHAPE, attention_bias=False, rope_parameters=rope, attn_implementation="eager")
    make("glm4-tiny", "Glm4ForCausalLM", glm4, Glm4ForCausalLM(glm4))


if __name__ == "__main__":
    main()
