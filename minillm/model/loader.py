"""Loads a model folder: config, weights, tokenizer and default sampling parameters."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

from minillm.config import Backend, Device, EngineConfig, ModelConfig, SamplingParams, require_int, shown
from minillm.config.files import exists
from minillm.config.model import SCALE_BYTES
from minillm.errors import BackendError, TokenizerError, UnsupportedModel, UsageError
from minillm.model.decoder import Decoder
from minillm.model.families import load_model_config
from minillm.model.generation import default_params, end_of_text, load_generation_config, not_honoured
from minillm.model.memory import require_memory, rope_bytes, weight_bytes
from minillm.model.rope import short_length
from minillm.model.rope_config import require_finite_angles
from minillm.model.step_costs import StepCosts
from minillm.model.weights import Progress, load_weights, with_forms
from minillm.ops.contract import DTYPES, Ops
from minillm.ops.cpu import CpuOps
from minillm.ops.cuda import CudaOps
from minillm.ops.device_memory import allocation
from minillm.ops.reference import ReferenceOps
from minillm.text.tokenizer import FILE as TOKENIZER_FILE
from minillm.text.tokenizer import Tokenizer
from minillm.toolchain.compiler import BuildFailed
from minillm.toolchain.library import compile_seconds

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """Everything about a model that an engine needs. `tokenizer` is None for ids-only folders."""

    folder: Path
    config: ModelConfig
    decoder: Decoder
    tokenizer: Tokenizer | None
    dtype: torch.dtype
    device: torch.device
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    default_params: SamplingParams
    weights_digest: str
    tokenizer_digest: str
    load_seconds: float = 0.0  # without the next
    compile_seconds: float = 0.0

    @property
    def num_token_ids(self) -> int:
        """Ids below this may be sampled: what the tokenizer can decode."""
        size = self.config.vocab_size
        return min(self.tokenizer.num_token_ids, size) if self.tokenizer else size

    @cached_property
    def short_length(self) -> int | None:
        """The most tokens of a short sequence of longrope; None if all sequences are alike."""
        return short_length(self.config, self.max_model_len)

    def rope_offset(self, num_tokens: int) -> int:
        """The row of the rope tables that a sequence reads at position 0, if `num_tokens` decide its kind."""
        short = self.short_length
        return short if short is not None and num_tokens > short else 0

    def step_costs(self) -> StepCosts:
        """Estimates of what a step costs."""
        return StepCosts(self.config, self.decoder.step_bytes(), self.dtype.itemsize)

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            TokenizerError: the folder has none, so only token ids can be used.
        """
        if self.tokenizer is None:
            raise TokenizerError(f"{self.folder} has no tokenizer.json", "give token ids instead of text")
        return self.tokenizer

    def token_ids(self, prompt: str | Sequence[int]) -> list[int]:
        """The prompt's token ids: text is encoded, ids are checked and used unchanged.

        Raises:
            UsageError: an empty prompt, a prompt that is neither text nor ids, an id out of range.
        """
        if isinstance(prompt, str):
            if not prompt:
                raise UsageError("the prompt is empty", "give at least one character")
            return self._encoded(prompt)
        if not isinstance(prompt, list | tuple):
            raise UsageError(f"a prompt must be text or a list of token ids, not {type(prompt).__name__}")
        if not prompt:
            raise UsageError("the prompt is empty", "give at least one token id")
        for token_id in prompt:
            require_int("token id", token_id, minimum=0)
            if token_id >= self.config.vocab_size:
                raise UsageError(
                    f"token id {shown(token_id)} is outside the vocabulary of {self.config.vocab_size}"
                )
        return list(prompt)

    def _encoded(self, text: str) -> list[int]:
        ids = self.require_tokenizer().encode(text)
        if not ids:
            raise UsageError("the prompt is empty", "the tokenizer makes no token of this text")
        if max(ids) >= self.config.vocab_size or min(ids) < 0:
            raise TokenizerError(
                f"the tokenizer made an id outside the vocabulary of {self.config.vocab_size}",
                "tokenizer.json and config.json must come from the same model",
            )
        return ids


def load_model(
    folder: Path, engine: EngineConfig, ops: Ops | None = None, progress: Progress | None = None
) -> LoadedModel:
    """Load a folder in Hugging Face layout.

    Args:
        engine: dtype, quantization, kv_dtype, device, backend, max_model_len and allow_config_keys are read.
        ops: the backend to build the decoder over; None means the one that `engine` names.
        progress: called with (bytes read, bytes in all).

    Raises:
        ModelNotFound, UnsupportedModel, WeightsError, TokenizerError, BackendError, OutOfMemory.
    """
    started, compiled = time.perf_counter(), compile_seconds()
    config = with_forms(load_model_config(folder, engine.allow_config_keys), folder, engine.quantization)
    config = with_kv_dtype(config, engine.kv_dtype)
    device = pick_device(engine.device)
    dtype = pick_dtype(engine.dtype, config)
    max_model_len = _max_model_len(engine, config)
    require_memory(config, dtype, device, max_model_len)
    for rope in config.ropes:
        require_finite_angles(rope, config.head_dim, max_model_len)
    generation = load_generation_config(folder)
    eos_token_ids = tuple(end_of_text(generation, config))
    tokenizer = _load_tokenizer(folder, config, eos_token_ids)
    params = _default_params(folder, generation, max_model_len, tokenizer is not None)
    ops = ops or make_ops(engine.backend, engine.device)
    require_kv_dtype(config, ops)
    check_model = getattr(ops, "check_model", None)
    if check_model is not None:
        check_model(config)
    needed = weight_bytes(config, dtype) + rope_bytes(config, max_model_len)
    with allocation(
        "weights and rope tables", needed, "use a smaller dtype or model, or lower max_model_len"
    ):
        decoder = Decoder.build(config, ops, dtype, device, max_model_len)
        digest = load_weights(decoder, folder, progress)  # of the stored bytes, before anything is packed
        decoder.prepare()
    compiled = compile_seconds() - compiled
    return LoadedModel(
        folder=folder,
        config=config,
        decoder=decoder,
        tokenizer=tokenizer,
        dtype=dtype,
        device=device,
        max_model_len=max_model_len,
        eos_token_ids=tokenizer.eos_token_ids if tokenizer else eos_token_ids,
        default_params=params,
        weights_digest=digest,
        tokenizer_digest=tokenizer.digest if tokenizer else "",
        load_seconds=time.perf_counter() - started - compiled,
        compile_seconds=compiled,
    )


def with_kv_dtype(config: ModelConfig, kv_dtype: str | None) -> ModelConfig:
    """`config` with a KV cache in `kv_dtype`; None: as it is.

    Raises:
        UnsupportedModel: a row of head_dim codes and a scale would not be whole words of memory.
    """
    if kv_dtype is None:
        return config
    if config.head_dim % SCALE_BYTES:
        raise UnsupportedModel(
            f"head_dim {config.head_dim} is no multiple of {SCALE_BYTES}: a KV cache in {kv_dtype} needs one",
            "leave kv_dtype out",
        )
    return replace(config, kv_dtype=kv_dtype, sources={**config.sources, "kv_dtype": "option"})


def require_kv_dtype(config: ModelConfig, ops: Ops) -> None:
    """Refuse a KV cache that a backend has no kernels for.

    Raises:
        BackendError: with the names that it has kernels for.
    """
    if config.kv_dtype is not None and config.kv_dtype not in ops.kv_dtypes:
        raise BackendError(
            f"backend {ops.name} has no kernels for a KV cache in {config.kv_dtype}",
            " or ".join([*(f"use {name}" for name in ops.kv_dtypes), "leave kv_dtype out"]),
        )


def make_ops(backend: Backend, device: Device = "auto") -> Ops:
    """The named backend's ops for `device`; "auto": native on a CPU with a compiler, else the reference.

    Raises:
        BackendError: the backend does not exist in this version, or not on this machine.
    """
    if backend == "simt":
        return _simulated(device)
    on_cpu = pick_device(device).type == "cpu"
    # No complete pass of scripts/gpu_check.sh is on record, so a GPU gets the CUDA kernels only by name.
    if backend == "reference" or (backend == "auto" and not on_cpu):
        return ReferenceOps()
    try:
        return CpuOps() if on_cpu else CudaOps()
    except BuildFailed as error:
        if backend == "native":
            raise BackendError(f"the native kernels are not available: {error}", _GET_A_COMPILER) from None
        _warn_once(f"running on PyTorch (reference backend): {error}")
        return ReferenceOps()


def _simulated(device: str) -> Ops:
    # Imported here because only lessons and tests need it, and importing it takes time.
    from minillm.ops.simt import SimtOps

    if device == "cuda":
        raise BackendError("the simulator runs on the CPU", "use device cpu, or backend native for a GPU")
    try:
        return SimtOps()
    except BuildFailed as error:
        raise BackendError(f"the simulator is not available: {error}", _GET_A_COMPILER) from None


_GET_A_COMPILER = 'install g++ or clang++, see `minillm doctor`; backend "reference" runs without'


@cache
def _warn_once(message: str) -> None:
    _log.warning(message)


def pick_device(name: str) -> torch.device:
    """The torch device of "auto", "cpu" or "cuda".

    Raises:
        BackendError: cuda is requested but not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise BackendError("device 'cuda' is not available", "use cpu, or see `minillm doctor`")
    return torch.device(name)


def pick_dtype(name: str, config: ModelConfig) -> torch.dtype:
    """The named dtype; "auto" is the dtype that config.json names, or float32 if it names none."""
    if name == "auto":
        name = config.dtype or "float32"
    if name not in DTYPES:
        raise UnsupportedModel(f"dtype {shown(name)} is not supported", f"supported: {', '.join(DTYPES)}")
    return DTYPES[name]


def _max_model_len(engine: EngineConfig, config: ModelConfig) -> int:
    wanted = engine.max_model_len or config.max_position_embeddings
    if wanted > config.context_limit:
        kinds = ", ".join(dict.fromkeys(rope.kind for rope in config.ropes)) or "none"
        why = f"rope kind {kinds}, max_position_embeddings {config.max_position_embeddings}"
        raise UsageError(
            f"max_model_len={wanted} is beyond the model's {config.context_limit} positions ({why})",
            f"use at most {config.context_limit}",
        )
    return wanted


def _load_tokenizer(folder: Path, config: ModelConfig, eos_token_ids: Sequence[int]) -> Tokenizer | None:
    if not exists(folder / TOKENIZER_FILE):
        return None
    tokenizer = Tokenizer(folder, config.bos_token_id, tuple(eos_token_ids))
    if tokenizer.num_own_ids > config.vocab_size:
        raise TokenizerError(
            f"the tokenizer has {tokenizer.num_own_ids} ids, the model's vocabulary {config.vocab_size}",
            "tokenizer.json and config.json must come from the same model",
        )
    return tokenizer


def _default_params(folder: Path, generation: dict[str, Any], context: int, has_text: bool) -> SamplingParams:
    """The model's own sampling parameters, with a warning that names what is not obeyed."""
    ignored = not_honoured(generation, context)
    params = default_params(generation)
    if params.stop and not has_text:
        ignored.append("stop_strings (there is no tokenizer)")
        params = replace(params, stop=())
    if ignored:
        _log.warning(f"{folder.name}: generation_config.json asks for what is not done: {', '.join(ignored)}")
    return params
