"""Loads the native ops into torch, once, and registers a fake implementation for each.

csrc/cpu registers schemas and CPU kernels in the namespace `minillm`. A fake implementation returns the
shape and dtype of the result without computing it. torch needs it for tracing, and `opcheck` compares it
with the kernel.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.library import register_fake

from minillm.ops.model_fakes import register_model_fakes
from minillm.toolchain.cache import cache_folder, release, remove
from minillm.toolchain.compiler import BuildFailed
from minillm.toolchain.cpu import cpu_library

_lock = threading.Lock()
_state: list[str] = []  # empty until the library is loaded, then [its name]
_failure: list[BuildFailed] = []  # the first failure to load, raised again by later calls


def load_native() -> None:
    """Load the kernels, compiling them on first use. Later calls return at once.

    Raises:
        BuildFailed: they cannot be compiled or loaded here.
    """
    with _lock:
        if _state:
            return
        if _failure:
            raise _failure[0]
        try:
            _load()
        except BuildFailed as error:
            _failure.append(error)
            raise


def loaded_library() -> str:
    """The name of the loaded library: digests of its sources, flags, torch and compiler."""
    return _state[0]


def _load() -> None:
    path = cpu_library().find()
    if path is None or not _open(path):  # a file that cannot be loaded is compiled again
        if path is not None and path.parent == cache_folder():
            remove(path)
        path = _compile()
    _register_fakes()
    wanted = os.environ.get("MINILLM_CPU_PATH", "")
    if wanted not in ("", *available_isas()):
        raise BuildFailed(f"MINILLM_CPU_PATH={wanted}: this processor runs {', '.join(available_isas())}")
    use_isa(wanted)
    _state.append(path.stem)


def _compile() -> Path:
    path = cpu_library().build()
    try:
        if not _open(path):
            raise BuildFailed(f"{path.name} was compiled but cannot be loaded: is this torch complete?")
    finally:
        release(path)
    return path


def _open(path: Path) -> bool:
    try:
        torch.ops.load_library(str(path))
    except OSError:
        return False
    return True


def available_isas() -> list[str]:
    """The instruction sets of the loaded library that this processor has, best first."""
    names: str = torch.ops.minillm.available_isas()
    return names.split()


def use_isa(name: str) -> str:
    """Switch to the named instruction set ("": the best one); returns the name of the previous one."""
    before: str = torch.ops.minillm.use_isa(name)
    return before


def path_in_use() -> str | None:
    """The instruction set in use; None: the library is not loaded."""
    return current_isa() if _state else None


def current_isa() -> str:
    """The instruction set in use."""
    name = use_isa("")
    use_isa(name)
    return name


def packed_shape(out: int, size: int, dtype: torch.dtype) -> list[int]:
    """Shape of a packed [out, size] matrix (layout: csrc/cpu/kernels.h)."""
    blocks = -(-out // 16)
    return [blocks, -(-size // 2), 16, 2] if dtype == torch.bfloat16 else [blocks, size, 16]


def _register_fakes() -> None:
    for name, fake in _FAKES.items():
        register_fake(f"minillm::{name}")(fake)
    register_model_fakes("minillm")


def _rows(ids: Tensor, packed: Tensor, vocab_size: int, hidden_size: int, dtype: torch.dtype) -> Tensor:
    return packed.new_empty([ids.shape[0], hidden_size], dtype=dtype)


def _like(x: Tensor, *others: object) -> Tensor:
    return torch.empty_like(x)


def _routing(logits: Tensor, per_token: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    chosen = logits.new_empty([logits.shape[0], per_token], dtype=torch.int64)
    return chosen, torch.empty_like(chosen, dtype=torch.float32)


def _two_like(x: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


def _logprobs(logits: Tensor, tokens: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    of_token = logits.new_empty([logits.shape[0]], dtype=torch.float32)
    best = logits.new_empty([logits.shape[0], top], dtype=torch.float32)
    return of_token, best, tokens.new_empty(best.shape)


def _verified(draft: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    return draft.new_empty([draft.shape[0], draft.shape[1] + 1]), draft.new_empty([draft.shape[0]])


_FAKES: dict[str, Callable[..., Any]] = {
    "pack": lambda weight: weight.new_empty(packed_shape(weight.shape[0], weight.shape[1], weight.dtype)),
    "pack_": lambda weight: None,
    "begin_codes_": lambda packed, *others: None,
    "put_codes_": lambda packed, first, codes, scales, minima: None,
    "embedding": _rows,
    "linear": lambda x, packed, bias, out_features: x.new_empty([x.shape[0], out_features]),
    "rms_norm": _like,
    "layer_norm": _like,
    "add_rms_norm": _two_like,
    "act_and_mul": lambda gate_up, activation: gate_up.new_empty([gate_up.shape[0], gate_up.shape[1] // 2]),
    "act": _like,
    "softcap": _like,
    "route": _routing,
    "experts": _like,
    "rope_and_cache": lambda q, *others: q.new_empty(q.shape),
    "paged_attention": lambda q, *others: q.new_empty(q.shape),
    "variant_attention": lambda q, *others: q.new_empty(q.shape),
    "copy_blocks": lambda caches, source, destination: None,
    "finite_rows": lambda logits: logits.new_empty([logits.shape[0]], dtype=torch.bool),
    "sample": lambda logits, keys, *others: keys.new_empty([logits.shape[0]]),
    "token_logprobs": _logprobs,
    "verify_coupled": _two_like,
    "verify_draft": _verified,
}
