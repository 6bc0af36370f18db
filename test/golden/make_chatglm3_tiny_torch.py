"""Writes fixtures/chatglm3-tiny-torch: the weights of fixtures/chatglm3-tiny as torch.save writes them.

Two shards with an index, cut and named as transformers does it for the published .bin checkpoints. Needed
only to make the fixture anew (the committed one is of torch 2.15.0):

    python3 -m venv /tmp/torch-venv && /tmp/torch-venv/bin/pip install torch numpy
    /tmp/torch-venv/bin/python test/golden/make_chatglm3_tiny_torch.py [DIRECTORY]
"""

import json
import shutil
import struct
import sys
from collections import OrderedDict
from pathlib import Path

import torch

FIXTURES = Path(__file__).parent / "fixtures"
SOURCE = FIXTURES / "chatglm3-tiny"
SHARDS = 2


def read_safetensors(path):
    """Tensors by name, in the order of their bytes."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = OrderedDict()
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype = {"F32": torch.float32, "F16": torch.float16}[entry["dtype"]]
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        values = torch.frombuffer(bytearray(data[begin:end]), dtype=dtype)
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def main():
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else FIXTURES / "chatglm3-tiny-torch"
    out.mkdir(parents=True, exist_ok=True)
    tensors = read_safetensors(SOURCE / "model.safetensors")
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    shards = [OrderedDict() for _ in range(SHARDS)]
    seen = 0
    for name, tensor in tensors.items():
        shards[min(SHARDS - 1, seen * SHARDS // total)][name] = tensor
        seen += tensor.numel() * tensor.element_size()
    weight_map = {}
    for i, shard in enumerate(shards):
        file = f"pytorch_model-{i + 1:05d}-of-{SHARDS:05d}.bin"
        # As Module.state_dict() leaves it: an attribute that is no weight.
        shard._metadata = OrderedDict([("", {"version": 1})])
        torch.save(shard, out / file)
        weight_map.update({name: file for name in shard})
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (out / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2) + "\n")
    shutil.copy(SOURCE / "config.json", out)


if __name__ == "__main__":
    main()
