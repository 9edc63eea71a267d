"""The form of the weights in a chat, if --quantization is not given.

Rounding to 4 bits costs a small model much (docs/quantization.md), so it is never done unasked to a model
that has 16 bits, whatever its size. A model that was published in 4 bits gets them back: it answers faster,
and loses next to nothing. `minillm quantize --calibrate` makes 4 bits of other models, and prints their loss.
"""

from __future__ import annotations

from pathlib import Path

from minillm.config import Backend, Device
from minillm.config.quantization import Quantization
from minillm.model.store.folder import cached_model
from minillm.model.store.published import PUBLISHED


def default_quantization(model: str | None, backend: Backend, device: Device) -> Quantization | None:
    """The scheme that a pulled model was published in, where kernels for it are faster: on a CPU."""
    if model is None or model not in PUBLISHED or Path(model).exists() or cached_model(model) is None:
        return None  # a folder of that name wins over the cache (`find_model`)
    published = PUBLISHED[model].quantization
    return published if published and _has_kernels(backend, device) else None


def _has_kernels(backend: Backend, device: Device) -> bool:
    from minillm.model.loader import make_ops, pick_device  # slow to import

    on_cpu = backend in ("auto", "native") and pick_device(device).type == "cpu"
    return on_cpu and make_ops(backend, device).packs
