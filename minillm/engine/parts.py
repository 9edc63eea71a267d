"""The seams: the parts of a running engine that a reader can replace with their own.

    LLM(parts={"sampler": my_sampler, "slot_mapping": my_slots})        also: Engine(model, config, parts=...)

Each name stands for one function or factory. A protocol in this file gives its signature. Parts are checked
once, when the engine is built. Three things are errors: a name that is not a part, a part that cannot be
called with the arguments of the protocol, and a factory whose object lacks a method the engine calls.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from minillm.config import EngineConfig, shown
from minillm.config.tenants import Limits
from minillm.engine.kv_manager import KVCacheManager
from minillm.engine.quota import Quota
from minillm.engine.scheduler import Scheduler
from minillm.engine.sequence import TextStream
from minillm.errors import UsageError
from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import slot_mapping
from minillm.memory.prefix_cache import PrefixCache, Scope
from minillm.memory.scope import block_scope
from minillm.memory.shares import Shares
from minillm.model.loader import LoadedModel
from minillm.observe.events import Events
from minillm.ops.contract import AttentionMetadata
from minillm.ops.sampling import sample
from minillm.speculation.proposal import Drafter
from minillm.speculation.verification import VerifyDraft
from minillm.text.detokenizer import Detokenizer
from minillm.worker.decode import decode
from minillm.worker.prefill import prefill
from minillm.worker.runner import SlotMapping
from minillm.worker.worker import DecodeLoop, PrefillLoop, Sampler


class MakeTextStream(Protocol):
    """Makes the streaming detokenizer of one completion. `tokenizer` is a `tokenizers.Tokenizer`."""

    def __call__(
        self, tokenizer: Any, stops: Sequence[str], prompt_token_ids: Sequence[int], /
    ) -> TextStream: ...


class MakeBlockPool(Protocol):
    """Makes an object with `BlockPool`'s methods."""

    def __call__(self, num_blocks: int, block_size: int, /) -> BlockPool: ...


class MakeScheduler(Protocol):
    """Makes an object with `Scheduler`'s methods, `waiting` and `running`."""

    def __call__(self, config: EngineConfig, memory: KVCacheManager, events: Events, /) -> Scheduler: ...


class MakePrefixCache(Protocol):
    """Makes an object with `PrefixCache`'s methods; not called if prefix caching is off."""

    def __call__(self, pool: BlockPool, /) -> PrefixCache: ...


class MakeScope(Protocol):
    """The scope of a tenant's cached blocks; the arguments are those of `block_scope`."""

    def __call__(self, envelope: str, tenant: str | None, is_long: bool, after: int | None, /) -> Scope: ...


class MakeShares(Protocol):
    """Makes an object with `Shares`' methods; called only with `tenant_limits`. `common`: blocks."""

    def __call__(self, pool: BlockPool, common: int, /) -> Shares: ...


class MakeQuota(Protocol):
    """Makes an object with `Quota`'s methods; called only with `tenant_limits`."""

    def __call__(self, limits: Limits, block_size: int, /) -> Quota: ...


class MakeDrafter(Protocol):
    """Makes an object with `Drafter`'s methods."""

    def __call__(self, model: LoadedModel, config: EngineConfig, /) -> Drafter: ...


class Rope(Protocol):
    """Rotates x [tokens, heads, head_dim] by cos and sin [tokens, head_dim / 2]."""

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, /) -> Tensor: ...


class Attention(Protocol):
    """Paged attention with the arguments of `Ops.paged_attention`; returns [tokens, heads, head_dim]."""

    def __call__(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        meta: AttentionMetadata,
        scale: float,
        window: int | None,
        /,
    ) -> Tensor: ...


class WriteCache(Protocol):
    """Writes rows [tokens, kv heads, head_dim] to their slots of one layer's K or V cache, in place."""

    def __call__(self, cache: Tensor, slot_mapping: Tensor, rows: Tensor, /) -> None: ...


class ReadCache(Protocol):
    """The first `num_tokens` rows of one sequence in a K or V cache: [tokens, kv heads, head_dim]."""

    def __call__(self, cache: Tensor, block_table: Tensor, num_tokens: int, /) -> Tensor: ...


class LinearOp(Protocol):
    """x [tokens, in] times the transpose of weight [out, in], plus bias [out] if it is not None."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, /) -> Tensor: ...


@dataclass(frozen=True)
class Parts:
    """One implementation for every seam; the defaults are the engine's own.

    `drafter`: None means the drafter that `draft_model` names; a given one is always used. `verify_draft`:
    used only if `draft_verification` is "rejection". `verify_draft`, `rope`, `attention`, `linear`,
    `write_cache` and `read_cache`: None means the backend's own. `read_cache` is used by the reference's
    attention, so it excludes `attention`.
    """

    sampler: Sampler = sample
    detokenizer: MakeTextStream = Detokenizer
    slot_mapping: SlotMapping = slot_mapping
    prefill_loop: PrefillLoop = prefill
    decode_loop: DecodeLoop = decode
    block_pool: MakeBlockPool = BlockPool
    scheduler: MakeScheduler = Scheduler
    prefix_cache: MakePrefixCache = PrefixCache
    scope: MakeScope = block_scope
    shares: MakeShares = Shares
    quota: MakeQuota = Quota
    drafter: MakeDrafter | None = None
    verify_draft: VerifyDraft | None = None
    rope: Rope | None = None
    attention: Attention | None = None
    linear: LinearOp | None = None
    write_cache: WriteCache | None = None
    read_cache: ReadCache | None = None

    @classmethod
    def of(cls, given: Mapping[str, Callable[..., Any]] | None) -> Parts:
        """Return the engine's parts with those in `given` replaced.

        Raises:
            UsageError: a name is not a part, or a part does not take the arguments of its protocol.
        """
        try:
            mine = dict(given or {})
        except (TypeError, ValueError):
            raise UsageError(f"parts must map names to parts, not {shown(given)}") from None
        for name, part in mine.items():
            if name not in _ARGUMENTS:
                raise UsageError(f"there is no part {name!r}", f"parts: {', '.join(_ARGUMENTS)}")
            _require_callable(name, part)
        return cls(**mine)

    @property
    def replaces_ops(self) -> bool:
        """Whether an operation of the backend is replaced."""
        mine = (self.rope, self.attention, self.linear, self.write_cache, self.read_cache)
        return any(part is not None for part in mine)


# The arguments of each part. The check uses their number; the error message shows their names.
_ARGUMENTS = {
    "sampler": "logits, batch",
    "detokenizer": "tokenizer, stop strings, prompt ids",
    "slot_mapping": "block_table, positions, block_size",
    "prefill_loop": "runner, chunks",
    "decode_loop": "runner, rows",
    "block_pool": "num_blocks, block_size",
    "scheduler": "config, memory, events",
    "prefix_cache": "pool",
    "scope": "envelope, tenant, is_long, after",
    "shares": "pool, common",
    "quota": "limits, block_size",
    "drafter": "model, config",
    "verify_draft": "draft, draft_probs, target_probs, uniforms",
    "rope": "x, cos, sin",
    "attention": "q, k_cache, v_cache, meta, scale, window",
    "linear": "x, weight, bias",
    "write_cache": "cache, slot_mapping, rows",
    "read_cache": "cache, block_table, num_tokens",
}

# The methods and attributes that an object made by a factory must have, because the engine uses them.
_METHODS = {
    "detokenizer": "push finish stopped",
    "block_pool": "num_blocks block_size num_free allocate share free ref_count",
    "scheduler": "add fork remove requeue schedule waiting running",
    "prefix_cache": "digest match acquire publish released evict is_unused num_unused num_blocks",
    "shares": "add room trim reclaim available num_unused",
    "quota": "add remove released __len__",
    "drafter": "propose settle",
}


def _require_callable(name: str, part: object) -> None:
    if not callable(part):
        raise UsageError(f"part {name!r} must be callable, not {shown(part)}")
    arguments = _ARGUMENTS[name].split(", ")
    try:
        signature = inspect.signature(part)
    except (TypeError, ValueError):
        return  # some built-in functions have no signature; a wrong one fails at its first call
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise UsageError(
            f"part {name!r} cannot be called with its {len(arguments)} arguments: {error}",
            f"it gets ({', '.join(arguments)})",
        ) from None


def require_methods(name: str, made: Any) -> Any:
    """Return `made`, the object of factory part `name`, if it has every method the engine calls.

    Raises:
        UsageError: it lacks a method or an attribute; the message names it.
    """
    missing = [method for method in _METHODS[name].split() if not hasattr(made, method)]
    if missing:
        raise UsageError(
            f"part {name!r} made {type(made).__name__}, which has no {', '.join(missing)}",
            "give it the methods of the engine's own",
        )
    return made
