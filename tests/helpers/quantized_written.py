"""Folders that `minillm quantize` writes, one for each grid, from weights that are the same everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import tiny
import torch
from quantized_cases import Case, mixed
from safetensors.torch import load_file

from minillm.model.compress.folder import quantize
from minillm.model.compress.schemes import GROUPS, Scheme
from minillm.model.compress.text import Texts

CONFIG = tiny.config(hidden_size=128, intermediate_size=256, num_hidden_layers=1, max_position_embeddings=16)
_SCHEMES = [
    *(Scheme("w4a16", group, asymmetric) for group in GROUPS for asymmetric in (False, True)),
    *(Scheme("w8a16", group) for group in GROUPS),
    Scheme("fp8"),
]
# Scales have the dtype of the model: every grid in bfloat16, three in the others.
WRITTEN: dict[str, tuple[Scheme, str]] = {
    f"written-{scheme}-{dtype}".replace(" ", "-").replace(",", ""): (scheme, dtype)
    for dtype in ("bfloat16", "float16", "float32")
    for scheme in (
        _SCHEMES if dtype == "bfloat16" else [Scheme("w4a16", "64", True), Scheme("w8a16"), Scheme("fp8")]
    )
}


def write(base: Path, name: str) -> Path:
    """The folder of one entry of `WRITTEN`, rounded to nearest."""
    scheme, dtype = WRITTEN[name]
    model, out = base / f"{name}-model", base / name
    tensors = {
        key: ((mixed(number, *tensor.shape).double() / 2**31 - 0.5) / 4).to(getattr(torch, dtype))
        for number, (key, tensor) in enumerate(sorted(tiny.weights(CONFIG).items()))
    }
    tiny.make_folder(model, CONFIG | {"torch_dtype": dtype}, tensors=tensors)
    quantize(model, out, scheme, Texts())
    return out


def matrices(folder: Path) -> list[Case]:
    """The quantised matrices of a folder, by the names of their modules."""
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    made = []
    for module in sorted(name.removesuffix(".weight_scale") for name in tensors if name.endswith("_scale")):
        parts = {name.removeprefix(module): t for name, t in tensors.items() if name.startswith(f"{module}.")}
        rows = parts[".weight_shape"] if ".weight_shape" in parts else torch.tensor(parts[".weight"].shape)
        made.append(Case(module, config, (int(rows[0]), int(rows[1])), parts))
    return made
