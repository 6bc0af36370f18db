"""Writes fixtures/glm-130b-tiny-shards and glm-10b-tiny-shards: the weights of fixtures/glm-130b-tiny and
glm-10b-tiny as their authors publish them, float16, one torch.save file per tensor-parallel rank. What they
must compute is in expected.json of the source, whose values fit float16. Needed only to make the fixtures
anew, after make_prefix_lm_tiny.py:

    python3 -m venv /tmp/torch-venv && /tmp/torch-venv/bin/pip install torch numpy
    /tmp/torch-venv/bin/python test/golden/make_prefix_lm_tiny_torch.py
"""

import json
from collections import OrderedDict
from pathlib import Path

import torch

from make_chatglm3_tiny_torch import read_safetensors

FIXTURES = Path(__file__).parent / "fixtures"
COLUMNS = ("attention.dense.weight", "mlp.dense_4h_to_h.weight")
ROWS = ("word_embeddings.weight", "attention.query_key_value.weight", "attention.query_key_value.bias")
GATED = ("mlp.dense_h_to_4h.weight", "mlp.dense_h_to_4h.bias")


def part(name, tensor, rank, ranks):
    """What one rank of GLM-130B holds of a tensor."""
    if name.endswith(COLUMNS):
        return tensor.chunk(ranks, dim=1)[rank]
    if name.endswith(ROWS):
        return tensor.chunk(ranks)[rank]
    if name.endswith(GATED):
        # Its share of the values and its share of the gates, so that the rank can multiply them itself.
        shares = tensor.chunk(2 * ranks)
        return torch.cat([shares[rank], shares[ranks + rank]])
    return tensor


def make(source, ranks, iteration):
    tensors = read_safetensors(FIXTURES / source / "model.safetensors")
    out = FIXTURES / f"{source}-shards"
    (out / str(iteration)).mkdir(parents=True, exist_ok=True)
    (out / "latest").write_text(str(iteration))
    # The authors have none; without it nothing would say that a head is 16 wide.
    config = json.loads((FIXTURES / source / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "torch_dtype": "float16"}, indent=2) + "\n")
    for rank in range(ranks):
        module = OrderedDict()
        for name, tensor in tensors.items():
            share = part(name, tensor, rank, ranks)
            module[name] = share.to(torch.float16, memory_format=torch.contiguous_format, copy=True)
            assert torch.equal(module[name].float(), share)
        # As Module.state_dict() leaves it: an attribute that is no weight.
        module._metadata = OrderedDict([("", {"version": 1})])
        plain = {"iteration": iteration, "mp_world_size": ranks, "dp_world_size": 1, "optimizer": None}
        torch.save({"module": module, **plain}, out / str(iteration) / f"mp_rank_{rank:02d}_model_states.pt")


if __name__ == "__main__":
    make("glm-130b-tiny", 2, 49300)
    make("glm-10b-tiny", 1, 250000)
