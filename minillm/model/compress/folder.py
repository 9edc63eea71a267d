"""`minillm quantize`: a model folder in, a smaller one in compressed-tensors format out.

    model.safetensors          model.safetensors
      embeddings, norms,  ---->  the same bytes
      routers, head
      layer 0's matrices  ---->  quantised, written, and used by the layers after them
      layer 1's ...       ---->
    config.json           ---->  + quantization_config
    tokenizer ...         ---->  the same files

The header of the new file is written first: a scheme decides all shapes. Then each layer's matrices are
written as soon as they are quantised, so what waits in memory is one layer's codes. The folder appears when
it is complete. The model itself is in memory in float32: its quality is measured before and after.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from typing import Any

import torch

from minillm.config import EngineConfig
from minillm.config.files import TOKENIZER_LIMIT, exists, read_file, read_object, shown_path
from minillm.errors import UnsupportedModel
from minillm.model.checkpoint import StoredTensor
from minillm.model.compress.grid import Rounded
from minillm.model.compress.layers import (
    Module,
    WatchedOps,
    linear_but_plain,
    modules_of,
    quantize_layers,
    require_numbers,
    without,
)
from minillm.model.compress.packing import entries, quantization_config, require_whole_groups, tensors
from minillm.model.compress.quality import Quality, measure
from minillm.model.compress.schemes import Scheme
from minillm.model.compress.text import LENGTH, Texts, Windows
from minillm.model.families import load_model_config
from minillm.model.loader import LoadedModel, load_model, pick_dtype
from minillm.model.new_checkpoint import Entry, append, header
from minillm.model.new_folder import new_folder, require_absent, require_space
from minillm.model.store.folder import SOURCE
from minillm.model.weights import checkpoint_tensors

Progress = Callable[[int, int], None]
_KEPT = (".json", ".jinja", ".txt", ".model")  # files of tokenizers and chat templates
_REPLACED = ("config.json", "model.safetensors.index.json", SOURCE)  # SOURCE is about the folder it lies in


@dataclass(frozen=True)
class Made:
    """What was written, and what it costs. Sizes in bytes; `calibrated_on`: None for rounding to nearest."""

    scheme: Scheme
    num_matrices: int
    num_bytes: int
    original_bytes: int
    calibrated_on: Windows | None
    measured_on: Windows
    before: Quality
    after: Quality


@torch.no_grad()
def quantize(
    folder: Path,
    out: Path,
    scheme: Scheme,
    texts: Texts,
    ignored: Sequence[str] = (),
    allowed_keys: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> Made:
    """Write the model in `folder` into the new folder `out`, its layers' matrices quantised.

    Args:
        texts: what to calibrate on and to measure with.
        ignored: names of modules, or the ends of names ("down_proj"), that stay as they are.
        progress: called with (layers quantised, layers in all).

    Raises:
        UsageError: `out` exists; a group that does not divide; unknown names; a text that is too short.
        UnsupportedModel: the model is quantised already, or stores its matrices in another way.
        WeightsError: weights or inputs are NaN or infinite.
        StorageError: `out` cannot be written.
        MinillmError: as `load_model`.
    """
    require_absent(out)
    settings = _plain_settings(folder)
    model = _load(folder, allowed_keys)
    grid = scheme.grid(pick_dtype("auto", model.config))
    every = modules_of(model.decoder)
    layers = without(every, ignored)
    modules = {module.name: module for layer in layers for module in layer}
    require_whole_groups({module.name: module.shape for module in modules.values()}, grid)
    require_numbers(modules.values())
    stored = checkpoint_tensors(model.config, folder)
    kept = {name: tensor for name, tensor in stored.items() if name.removesuffix(".weight") not in modules}
    settings["quantization_config"] = quantization_config(
        grid, linear_but_plain(model.decoder, every, modules)
    )
    calibration, evaluation = texts.windows(model)
    before = measure(model.decoder, evaluation)
    listed = [Entry(name, tensor.dtype, tensor.shape) for name, tensor in kept.items()]
    listed += [entry for module in modules.values() for entry in entries(module.name, module.shape, grid)]
    num_bytes = sum(entry.nbytes for entry in listed)
    with new_folder(out) as target:
        require_space(target, num_bytes)
        (target / "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        _copy_files(folder, target)
        with open(target / "model.safetensors", "wb") as file:
            file.write(header(listed))
            _copy_tensors(file, kept)
            for i, made in enumerate(quantize_layers(model.decoder, layers, grid, calibration)):
                _write_layer(file, layers[i], made)
                if progress:
                    progress(i + 1, len(layers))
        after = measure(model.decoder, evaluation)
    original = sum(tensor.nbytes for tensor in stored.values())
    return Made(scheme, len(modules), num_bytes, original, calibration, evaluation, before, after)


def _plain_settings(folder: Path) -> dict[str, Any]:
    """The content of config.json.

    Raises:
        UnsupportedModel: it says that the weights are quantised.
    """
    path = folder / "config.json"
    settings = read_object(path, UnsupportedModel) if exists(path) else {}
    if settings.get("quantization_config") is not None:
        raise UnsupportedModel(
            f"the model in {shown_path(folder)} is quantised already", "take the model that it was made of"
        )
    return settings


def _load(folder: Path, allowed_keys: tuple[str, ...]) -> LoadedModel:
    """The model in float32, over ops that show the matrices their inputs."""
    config = load_model_config(folder, allowed_keys)
    if config.multimodal:
        raise UnsupportedModel(
            f"the model in {shown_path(folder)} has a part for images", "take a checkpoint of its text model"
        )
    engine = EngineConfig(
        dtype="float32",
        device="cpu",
        backend="reference",
        max_model_len=min(LENGTH, config.max_position_embeddings),
        allow_config_keys=allowed_keys,
    )
    return load_model(folder, engine, ops=WatchedOps())


def _copy_files(folder: Path, target: Path) -> None:
    """The tokenizer, the chat template, and everything else that is neither config nor weights."""
    for path in sorted(folder.iterdir()):
        if path.suffix in _KEPT and path.name not in _REPLACED and path.is_file():
            (target / path.name).write_bytes(read_file(path, TOKENIZER_LIMIT))


def _copy_tensors(file: BufferedWriter, kept: Mapping[str, StoredTensor]) -> None:
    for tensor in kept.values():
        for piece in tensor.pieces():
            file.write(piece)


def _write_layer(file: BufferedWriter, modules: Sequence[Module], made: Mapping[str, Rounded]) -> None:
    for module in modules:
        for tensor in tensors(made[module.name]):
            append(file, tensor)
