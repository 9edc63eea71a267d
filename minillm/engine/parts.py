"""The seams: the parts of a running engine that a reader can swap for their own.

    LLM(parts={"sampler": my_sampler, "slot_mapping": my_slots})

Each name stands for one function (or factory) with the signature of the engine's own, given here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from minillm.engine.decode import decode
from minillm.engine.prefill import prefill
from minillm.engine.scheduler import Scheduler
from minillm.errors import UsageError
from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import slot_mapping
from minillm.memory.prefix_cache import PrefixCache
from minillm.ops.sampling import sample
from minillm.text.detokenizer import Detokenizer


@dataclass(frozen=True)
class Parts:
    """One implementation for every seam; the defaults are the engine's own.

    sampler        (logits [rows, vocab], SamplingBatch) -> int64 [rows]
    detokenizer    (tokenizers.Tokenizer, stop strings, prompt ids) -> object with push, finish, stopped
    slot_mapping   (block ids, positions, block_size) -> slots
    prefill_loop   (ModelRunner, [Chunk]) -> logits [chunks, vocab]
    decode_loop    (ModelRunner, [Request]) -> logits [requests, vocab]
    block_pool     (num_blocks, block_size) -> object with BlockPool's methods
    scheduler      (EngineConfig, KVCacheManager, Events) -> object with Scheduler's methods, `waiting`
                   and `running`
    prefix_cache   (block pool) -> object with PrefixCache's methods; not asked where prefix caching is off
    drafter        (LoadedModel, EngineConfig) -> object with Drafter's methods; None is what draft_model says
    verify_draft   Ops.verify_draft's arguments -> (tokens, accepted); asked when draft_verification is
                   "rejection"
    rope           (x [tokens, heads, head_dim], cos, sin [tokens, head_dim / 2]) -> like x
    attention      Ops.paged_attention's arguments -> [tokens, heads, head_dim]
    linear         (x [tokens, in], weight [out, in], bias or None) -> [tokens, out]

    None for the last four means the backend's own.
    """

    sampler: Callable[..., Any] = sample
    detokenizer: Callable[..., Any] = Detokenizer
    slot_mapping: Callable[..., Any] = slot_mapping
    prefill_loop: Callable[..., Any] = prefill
    decode_loop: Callable[..., Any] = decode
    block_pool: Callable[..., Any] = BlockPool
    scheduler: Callable[..., Any] = Scheduler
    prefix_cache: Callable[..., Any] = PrefixCache
    drafter: Callable[..., Any] | None = None
    verify_draft: Callable[..., Any] | None = None
    rope: Callable[..., Any] | None = None
    attention: Callable[..., Any] | None = None
    linear: Callable[..., Any] | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any] | None) -> Parts:
        """The engine's parts with those in `given` replaced.

        Raises:
            UsageError: a name that is no seam, or a value that cannot be called.
        """
        names = [f.name for f in fields(cls)]
        try:
            mine = dict(given or {})
        except (TypeError, ValueError):
            raise UsageError(f"parts must map names to parts, not {given!r}") from None
        for name, part in mine.items():
            if name not in names:
                raise UsageError(f"there is no part {name!r}", f"parts: {', '.join(names)}")
            if not callable(part):
                raise UsageError(f"part {name!r} must be callable, not {part!r}")
        return cls(**mine)
