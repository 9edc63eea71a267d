"""The config of a model that a command describes and does not load."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minillm.config import ModelConfig


def planned_config(args: argparse.Namespace, folder: Path) -> ModelConfig:
    """The config of a model folder, with the forms that matrices, keys and values would have.

    Headers say how matrices are stored that are quantised already. Without weights this is not known, and
    they count as plain.

    Raises:
        MinillmError: as for a model that is loaded.
    """
    from minillm.model.checkpoint import has_weights
    from minillm.model.families import load_model_config
    from minillm.model.loader import with_kv_dtype
    from minillm.model.quantization.plan import planned
    from minillm.model.weights import with_forms

    config = load_model_config(folder, args.allow_config_key)
    if has_weights(folder):
        config = with_forms(config, folder, args.quantization)
    else:
        config = planned(config, args.quantization)
    return with_kv_dtype(config, args.kv_dtype)
