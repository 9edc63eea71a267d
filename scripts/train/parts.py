"""A model's weights as bf16 safetensors in parts, so that every file stays small, and what a run measured."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from train.model import LanguageModel, Shape

PART_BYTES = 14 << 20
RESULTS_FILE = "results.json"


def save_parts(model: LanguageModel, folder: Path, name: str, version: str) -> None:
    """Write `name`-1.safetensors and so on; each holds the version and the number of parts."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = _split({key: value.bfloat16().cpu().contiguous() for key, value in model.state_dict().items()})
    for i, part in enumerate(parts, 1):
        path = folder / f"{name}-{i}.safetensors"
        beside = path.with_suffix(".tmp")  # a run killed here leaves the old file whole
        save_file(part, beside, metadata={"version": version, "parts": str(len(parts))})
        os.replace(beside, path)


def load_parts(folder: Path, name: str, shape: Shape) -> LanguageModel:
    """The model that `save_parts` wrote. ValueError if a part is missing or from another save."""
    weights: dict[str, Tensor] = {}
    kinds = []
    for path in sorted(folder.glob(f"{name}-*.safetensors")):
        with safe_open(path, "pt") as part:
            kinds.append(part.metadata())
            weights.update((key, part.get_tensor(key)) for key in part.keys())  # noqa: SIM118
    if not kinds or any(kind != kinds[0] for kind in kinds) or int(kinds[0]["parts"]) != len(kinds):
        raise ValueError(f"{folder} does not hold all parts of one {name}: copy them again, or train again")
    model = LanguageModel(shape)
    model.load_state_dict(weights)
    return model


def write_results(results: dict[str, Any], folder: Path) -> None:
    """Write what a run measured so far."""
    beside = folder / f"{RESULTS_FILE}.tmp"
    beside.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, folder / RESULTS_FILE)


def read_results(folder: Path) -> dict[str, Any]:
    """What `write_results` wrote."""
    results: dict[str, Any] = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
    return results


def _split(weights: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, value in weights.items():
        if size + value.nbytes > PART_BYTES and parts[-1]:
            parts.append({})
            size = 0
        parts[-1][key] = value
        size += value.nbytes
    return parts
