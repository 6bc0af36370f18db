"""Makes the fixtures glm45-tiny (as GLM-4.5: normed queries and keys, scaled routing) and glm45-air-tiny
(as GLM-4.5-Air, with expert groups): random models of the layout Glm4MoeForCausalLM and what the transformers
package itself computes with them: log-softmax over a prompt, nine greedy tokens, and the experts chosen for
every token. Needs PyTorch, transformers and safetensors; the tests need the files only.

    python test/golden/make_glm45_tiny.py

expected.json is that of glm4-tiny and one more key: experts[case][MoE layer][token], the chosen ids, best
first, of every token that was fed (the prompt and all greedy tokens but the last).
"""

import itertools
import json
import pathlib

import torch
from safetensors.torch import save_file
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
TOKENS, STEPS = 120, 9
# A choice or a token nearer to its rival than this would be a matter of rounding.
CLEAR = 1e-3

SHAPE = {
    "vocab_size": TOKENS,
    "hidden_size": 32,
    "head_dim": 16,
    "num_attention_heads": 4,  # 4 * 16 is not the hidden size, as in the published models
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "num_nextn_predict_layers": 1,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "attention_bias": True,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "eos_token_id": [2],
    "pad_token_id": 0,
}
# As config.json of the published models has it; transformers 5 keeps the two in rope_parameters.
ROPE = {"rope_theta": 1000000, "partial_rotary_factor": 0.5}
VARIANTS = {
    "glm45-tiny": {"use_qk_norm": True, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.5},
    "glm45-air-tiny": {"use_qk_norm": False, "n_group": 2, "topk_group": 1, "routed_scaling_factor": 1.0},
}


def draw(name, shape, generator):
    """Random values for one tensor, so scaled that every part of the network matters."""
    values = torch.randn(shape, generator=generator)
    if name.endswith("norm.weight"):
        return 1 + 0.2 * values
    if name.endswith("e_score_correction_bias"):
        return 0.15 * values
    if len(shape) == 1:
        return 0.3 * values
    if "embed_tokens" in name:
        return values
    return values / shape[-1] ** 0.5 * (3 if "lm_head" in name or "q_proj" in name or "mlp.gate." in name else 1)


def published(state):
    """The tensors under the names of published files: experts one by one, not as transformers fuses them."""
    out = {}
    for name, tensor in state.items():
        stem, _, last = name.rpartition(".experts.")
        if last == "gate_up_proj":
            for e, both in enumerate(tensor):
                out[f"{stem}.experts.{e}.gate_proj.weight"], out[f"{stem}.experts.{e}.up_proj.weight"] = both.chunk(2)
        elif last == "down_proj":
            out.update({f"{stem}.experts.{e}.down_proj.weight": down for e, down in enumerate(tensor)})
        else:
            out[name] = tensor
    return out


def mtp_layer(tensors, generator):
    """The layer for speculative decoding after the last one. It must not change what the model computes."""
    hidden, last = SHAPE["hidden_size"], SHAPE["num_hidden_layers"] - 1
    here = f"model.layers.{last + 1}."
    shapes = {
        name.replace(f"model.layers.{last}.", here): tensor.shape
        for name, tensor in tensors.items()
        if name.startswith(f"model.layers.{last}.")
    }
    shapes[here + "enorm.weight"] = shapes[here + "hnorm.weight"] = shapes[here + "shared_head.norm.weight"] = (hidden,)
    shapes[here + "eh_proj.weight"] = (hidden, 2 * hidden)
    shapes[here + "embed_tokens.weight"] = shapes[here + "shared_head.head.weight"] = (TOKENS, hidden)
    return {name: draw(name, shape, generator) for name, shape in shapes.items()}


@torch.no_grad()
def run(model, ids):
    """Log-softmax of every position, and the experts of every MoE layer and token, best first."""
    experts, clear = [], True

    def watch(router, inputs, output):
        nonlocal clear
        logits, _, chosen = output
        scores = logits.sigmoid() + router.e_score_correction_bias
        # What loses to the chosen ones: experts of the same groups; and of groups the next best.
        groups = scores.view(len(scores), router.num_group, -1)
        best = groups.topk(2).values.sum(-1).sort(descending=True).values
        if router.num_group > router.topk_group:
            clear &= bool((best[:, router.topk_group - 1] - best[:, router.topk_group]).min() > CLEAR)
        size = groups.shape[-1]
        kept = torch.zeros(scores.shape[0], router.num_group, dtype=bool).scatter_(1, chosen // size, True)
        rest = scores.masked_fill(~kept.repeat_interleave(size, 1), float("-inf")).scatter(1, chosen, float("-inf"))
        mine = scores.gather(1, chosen).sort(descending=True)
        clear &= bool((mine.values[:, -1] - rest.max(-1).values).min() > CLEAR)
        # Below zero, implementations that put 0 for experts out of the chosen groups would differ.
        clear &= bool(mine.values.min() > 0)
        experts.append(chosen.gather(1, mine.indices).tolist())

    hooks = [layer.mlp.gate.register_forward_hook(watch) for layer in model.model.layers if hasattr(layer.mlp, "gate")]
    rows = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)
    for hook in hooks:
        hook.remove()
    return rows, experts, clear


def greedy(model, prompt):
    """The case and its experts, or None if rounding could change them."""
    ids, steps = list(prompt), []
    for _ in range(STEPS):
        row = run(model, ids)[0][-1]
        best = row.sort(descending=True).values
        if best[0] - best[1] < CLEAR:
            return None
        steps.append(row)
        ids.append(int(row.argmax()))
    rows, experts, clear = run(model, ids[:-1])
    case = {
        "prompt": list(prompt),
        "tokens": ids[len(prompt) :],
        "promptLogprobs": [float(rows[i][prompt[i + 1]]) for i in range(len(prompt) - 1)],
        "stepLogprobs": [[round(float(x), 9) for x in row] for row in steps],
    }
    return (case, experts) if clear else None


def make(folder, variant):
    config = Glm4MoeConfig(
        **SHAPE, **variant, rope_parameters={"rope_type": "default", **ROPE}, attn_implementation="eager"
    )
    prompts = [[64, 17, 3, 99, 5, 41, 12], torch.randint(3, TOKENS, (37,), generator=torch.manual_seed(7)).tolist()]
    for seed in itertools.count(20250728):
        generator = torch.Generator().manual_seed(seed)
        model = Glm4MoeForCausalLM(config).eval()
        for name, tensor in model.state_dict().items():
            tensor.copy_(draw(name, tensor.shape, generator))
        done = []
        for prompt in prompts:
            done.append(greedy(model, prompt))
            if done[-1] is None:
                break
        else:
            break
    out = FIXTURES / folder
    out.mkdir(parents=True, exist_ok=True)
    written = {
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        **SHAPE,
        **variant,
        **ROPE,
        "rope_scaling": None,
        "torch_dtype": "float32",
        "use_cache": True,
    }
    (out / "config.json").write_text(json.dumps(written, indent=2) + "\n")
    tensors = published(model.state_dict())
    tensors |= mtp_layer(tensors, generator)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, out / "model.safetensors")
    # transformers must find the same model behind the published names.
    again = Glm4MoeForCausalLM.from_pretrained(out, attn_implementation="eager").eval()
    assert torch.allclose(run(again, prompts[1])[0], run(model, prompts[1])[0], atol=1e-6)
    expected = {"tokenCount": TOKENS, "cases": [case for case, _ in done], "experts": [experts for _, experts in done]}
    (out / "expected.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")
    print(folder, "seed", seed)


if __name__ == "__main__":
    for folder, variant in VARIANTS.items():
        make(folder, variant)
