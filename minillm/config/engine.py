"""How an engine is set up: `EngineConfig`, and the options of `LLM` that make one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, TypedDict, get_args

from minillm.config.checks import require_int, shown
from minillm.config.quantization import QUANTIZATIONS, Quantization
from minillm.config.tenants import Limits, TenantLimits, guaranteed_by_name, own_limits
from minillm.errors import UsageError

Backend = Literal["auto", "reference", "native", "simt"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
KVDtype = Literal["int8", "fp8"]
Device = Literal["auto", "cpu", "cuda"]
DraftVerification = Literal["coupled", "rejection"]
GuaranteeName = Literal["G0", "G1", "G2", "G3", "G4"]
# The same names, to check values that no type checker has seen.
BACKENDS: tuple[str, ...] = get_args(Backend)
DTYPES: tuple[str, ...] = get_args(Dtype)
KV_DTYPES: tuple[str, ...] = get_args(KVDtype)
DEVICES: tuple[str, ...] = get_args(Device)
VERIFICATIONS: tuple[str, ...] = get_args(DraftVerification)
GUARANTEES: tuple[str, ...] = get_args(GuaranteeName)
MAX_BRANCHES = 64  # of a draft tree
MAX_DRAFT_TOKENS = 1 << 16
MAX_SIZE = (1 << 48) - 1  # of sizes and counts: products of a few of them still fit a float


@dataclass(frozen=True)
class EngineConfig:
    """How an engine is set up; every size is per engine, every limit is hard.

    `kv_memory` is in bytes, "256MiB"-like text, or "auto". `prefill_chunk` is the most prompt tokens
    of one request that enter a step, `max_num_batched_tokens` the most tokens of a whole step.

    `quantization` names how the matrices are stored in fewer bits (`config/quantization.py`); None: as the
    model's files have them. A draft model is not quantised. `kv_dtype` is "int8" or "fp8" for a KV cache in
    8 bits, that of a draft model included (`ops/kv_codes.py`); None: in the dtype of the model.

    `draft_model` is a folder, a hub id, "auto" (the draft that ships) or "ngram"; None turns speculation off.
    A step drafts at most `num_draft_tokens` tokens for each sequence. With `adaptive_draft` it drafts fewer
    where more would not pay. `draft_tree` drafts branches instead of one chain: (3, 1) gives three candidates
    for the first token and one candidate after each of them. `draft_verification` is "coupled" or
    "rejection".

    `allow_config_keys` are keys of config.json that minillm does not know and that change no arithmetic.

    `public_prefixes` are beginnings of prompts, as text or token ids, that every tenant may share.
    `tenant_limits` are what each tenant is guaranteed and the most it may take (`config/tenants.py`).

    `guarantee` is what must stay the same, "G0" to "G4" (`engine/guarantee.py`). An engine that cannot keep
    it does not start. `diverge_record` is a new file that gets the token ids and the digests of the logits of
    every step (`engine/diverge_record.py`). `record` is a new file that gets every event and the block tables
    (`observe/trace_file.py`), without token ids. None: nothing is recorded.
    """

    dtype: Dtype = "auto"
    quantization: Quantization | None = None
    kv_dtype: KVDtype | None = None
    device: Device = "auto"
    backend: Backend = "auto"
    kv_memory: int | str = "auto"
    block_size: int = 16
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    prefill_chunk: int = 512
    max_queued_requests: int = 1024
    max_queued_tokens: int = 1 << 20
    prefix_caching: bool = True
    draft_model: str | Path | None = None
    num_draft_tokens: int = 5
    draft_verification: DraftVerification = "coupled"
    draft_tree: Sequence[int] | None = None
    adaptive_draft: bool = True
    seed: int = 0
    allow_config_keys: Sequence[str] = ()
    public_prefixes: Sequence[str | Sequence[int]] = ()
    tenant_limits: Limits | None = field(default=None, repr=False)  # it names tenants
    guarantee: GuaranteeName | None = None
    diverge_record: str | Path | None = None
    record: str | Path | None = None

    def __post_init__(self) -> None:
        choices = {"dtype": DTYPES, "device": DEVICES, "backend": BACKENDS}
        choices["draft_verification"] = VERIFICATIONS
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                raise UsageError(f"{name}={shown(value)} is not known", f"use one of {', '.join(allowed)}")
        for name in (
            "block_size",
            "max_num_seqs",
            "max_num_batched_tokens",
            "prefill_chunk",
            "max_queued_requests",
            "max_queued_tokens",
        ):
            require_int(name, getattr(self, name), minimum=1, maximum=MAX_SIZE)
        if self.max_model_len is not None:
            require_int("max_model_len", self.max_model_len, minimum=1, maximum=MAX_SIZE)
        require_int("seed", self.seed)
        for name in ("prefix_caching", "adaptive_draft"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} must be True or False, not {shown(getattr(self, name))}")
        keys = self.allow_config_keys
        if not isinstance(keys, list | tuple) or not all(isinstance(key, str) for key in keys):
            raise UsageError(f"allow_config_keys must be a list of keys, not {shown(keys)}")
        if self.quantization is not None and self.quantization not in QUANTIZATIONS:
            names = ", ".join(QUANTIZATIONS)
            raise UsageError(
                f"quantization={shown(self.quantization)} is not known", f"use one of {names}, or None"
            )
        if self.kv_dtype is not None and self.kv_dtype not in KV_DTYPES:
            names = ", ".join(KV_DTYPES)
            raise UsageError(f"kv_dtype={shown(self.kv_dtype)} is not known", f"use {names}, or None")
        self._check_draft()
        self._check_tenants()
        self._check_trust()

    def _check_tenants(self) -> None:
        limits = own_limits(self.tenant_limits, self.max_num_batched_tokens)
        object.__setattr__(self, "tenant_limits", limits)
        prefixes = self.public_prefixes
        if not isinstance(prefixes, list | tuple) or not all(
            isinstance(p, str | list | tuple) for p in prefixes
        ):
            raise UsageError(
                f"public_prefixes must be a list of texts or token id lists, not {type(prefixes).__name__}"
            )
        if prefixes and not self.prefix_caching:
            raise UsageError("public_prefixes need prefix_caching", "leave prefix_caching on")

    def _check_draft(self) -> None:
        if self.draft_model is not None and not isinstance(self.draft_model, str | Path):
            raise UsageError(
                f"draft_model must be a folder, a hub id, ngram, auto or None, not {shown(self.draft_model)}"
            )
        require_int("num_draft_tokens", self.num_draft_tokens, minimum=1, maximum=MAX_DRAFT_TOKENS)
        tree = self.draft_tree
        if tree is None:
            return
        if not isinstance(tree, list | tuple) or not tree or not all(type(n) is int and n > 0 for n in tree):
            raise UsageError(
                f"draft_tree={shown(tree)} is not known",
                "give the number of candidates at each depth, as (3, 1)",
            )
        if self.draft_verification == "rejection":
            raise UsageError("rejection sampling verifies chains, not trees", "leave draft_tree out")
        if math.prod(tree) > MAX_BRANCHES:
            raise UsageError(f"draft_tree={shown(tree)} has more than {MAX_BRANCHES} branches")

    def has_guarantee(self, tenant: str | None) -> bool:
        """Whether a tenant is named in `tenant_limits` and guaranteed anything."""
        return tenant in self.guaranteed

    @cached_property
    def guaranteed(self) -> dict[str, TenantLimits]:
        """The tenants of `tenant_limits` that are named and guaranteed anything."""
        return guaranteed_by_name(self.tenant_limits)

    def _check_trust(self) -> None:
        if self.guarantee is not None and self.guarantee not in GUARANTEES:
            names = ", ".join(GUARANTEES)
            raise UsageError(
                f"guarantee={shown(self.guarantee)} is not known", f"use one of {names}, or None"
            )
        for name in ("diverge_record", "record"):
            path = getattr(self, name)
            if path is None:
                continue
            if not isinstance(path, str | Path) or not str(path) or path == Path():
                raise UsageError(f"{name} must be the path of a new file, not {shown(path)}")

    @property
    def draft_shape(self) -> tuple[int, ...]:
        """Candidates at each depth of a draft; a chain has one at each."""
        return (1,) * self.num_draft_tokens if self.draft_tree is None else tuple(self.draft_tree)


class EngineOptions(TypedDict, total=False):
    """The options `LLM` takes, with `EngineConfig`'s meaning and defaults."""

    dtype: Dtype
    quantization: Quantization | None
    kv_dtype: KVDtype | None
    device: Device
    backend: Backend
    kv_memory: int | str
    block_size: int
    max_model_len: int | None
    max_num_seqs: int
    max_num_batched_tokens: int
    prefill_chunk: int
    max_queued_requests: int
    max_queued_tokens: int
    prefix_caching: bool
    seed: int
    draft_model: str | Path | None
    num_draft_tokens: int
    draft_verification: DraftVerification
    draft_tree: Sequence[int] | None
    adaptive_draft: bool
    allow_config_keys: Sequence[str]
    public_prefixes: Sequence[str | Sequence[int]]
    tenant_limits: Limits | None
    guarantee: GuaranteeName | None
    diverge_record: str | Path | None
    record: str | Path | None


def engine_config(options: EngineOptions) -> EngineConfig:
    """An `EngineConfig` of `LLM`'s keyword options.

    Raises:
        UsageError: an unknown option, or a value out of range.
    """
    for name in options:
        if name not in EngineConfig.__dataclass_fields__:
            known = ", ".join(EngineConfig.__dataclass_fields__)
            raise UsageError(f"LLM has no option {name}", f"options: {known}")
    return EngineConfig(**options)
