"""Builds the objects of an engine from a model, a configuration and the parts.

    Parts --> ops --> decoder --> runner (cache tensors) --> worker
    config --> pool --> KV manager --> scheduler
    drafter, controller --> speculation         sampler, rule --> verification (in the worker)

Where the drafter comes from:

    draft_model=folder or "auto"     DraftModel; it has its own KV tensors, indexed by the target's block ids
    draft_model="ngram"              NgramDrafter
    parts={"drafter": ...}           the reader's own
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import cast

from minillm.config import EngineConfig
from minillm.engine.checked import (
    CheckedPool,
    checked_attention,
    checked_linear,
    checked_read,
    checked_rope,
    checked_sampler,
    checked_scope,
    checked_slots,
    checked_verify,
)
from minillm.engine.guarantee import Guarantee, kept_guarantee, require_guarantee
from minillm.engine.kv_manager import KVCacheManager, MakeCache
from minillm.engine.parts import Parts, require_methods
from minillm.engine.scheduler import Scheduler
from minillm.engine.tenant_memory import KVMemory, LaneMakers, LaneMemory, TenantMemory
from minillm.engine.tenant_scheduler import AnyScheduler, TenantScheduler
from minillm.engine.usable_parts import require_usable
from minillm.errors import UsageError
from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import slot_mapping
from minillm.memory.budget import num_blocks_for
from minillm.memory.kv_cache import KVCache
from minillm.memory.prefix_cache import PrefixCache
from minillm.memory.public_prefixes import PublicPrefixes
from minillm.memory.scope import block_scope
from minillm.memory.shares import Share, Shares
from minillm.model.loader import LoadedModel
from minillm.observe.events import Events
from minillm.ops.sampling import sample
from minillm.ops.swapped import SwappedOps
from minillm.speculation.controller import Controller
from minillm.speculation.draft_model import DraftModel
from minillm.speculation.lookahead import Speculation
from minillm.speculation.ngram import NgramDrafter
from minillm.speculation.pairing import NGRAM
from minillm.speculation.proposal import Drafter
from minillm.speculation.verification import Verifier
from minillm.worker.runner import ModelRunner
from minillm.worker.worker import Sampler, Worker, WorkerParts


@dataclass(frozen=True)
class Machinery:
    """What runs the model: the worker, the speculation that drafts for it, and the size of the KV cache.

    `rejects`: drafts are verified by rejection sampling. `guarantee`: what stays the same, bit by bit.
    """

    model: LoadedModel
    worker: Worker
    speculation: Speculation | None
    num_blocks: int
    rejects: bool
    guarantee: Guarantee

    def draft(self, envelope: str | None) -> tuple[DraftModel, str] | None:
        """The draft model with the digest of its KV envelope, if the drafter is one."""
        drafter = self.speculation.drafter if self.speculation else None
        return (drafter, envelope) if isinstance(drafter, DraftModel) and envelope else None


def assemble(model: LoadedModel, draft: LoadedModel | None, config: EngineConfig, parts: Parts) -> Machinery:
    """Build everything below the engine, using `parts`.

    Raises:
        KVCapacityError: `kv_memory` does not hold one block.
        UsageError: drafts are longer than the context, or a part would never be used.
        GuaranteeError: these options and parts do not keep `config.guarantee`.
    """
    require_usable(parts, model, config)
    guarantee = kept_guarantee(model, config, parts)
    require_guarantee(guarantee, config.guarantee)
    if parts.replaces_ops:
        ops = SwappedOps(
            model.decoder.ops,
            checked_rope(parts.rope),
            checked_attention(parts.attention),
            checked_linear(parts.linear),
            parts.write_cache,
            checked_read(parts.read_cache),
        )
        model = replace(model, decoder=model.decoder.with_ops(ops))
    rejects = config.draft_verification == "rejection"
    token_bytes = sum(m.config.kv_bytes_per_token(m.dtype.itemsize) for m in (model, draft) if m)
    num_blocks = num_blocks_for(token_bytes, config, model.device, model.max_model_len)
    cache = KVCache.allocate(model.config, num_blocks, config.block_size, model.dtype, model.device)
    own_slots = parts.slot_mapping is slot_mapping
    slots = slot_mapping if own_slots else checked_slots(parts.slot_mapping, num_blocks * config.block_size)
    runner = ModelRunner(model.decoder, cache, config.block_size, slots)
    own_sampler = parts.sampler is sample
    sampler: Sampler = model.decoder.ops.sample if own_sampler else checked_sampler(parts.sampler)
    speculation = _make_speculation(model, draft, config, parts, num_blocks)
    own_rule = model.decoder.ops.verify_draft if rejects else None
    verify_draft = checked_verify(parts.verify_draft) if parts.verify_draft else own_rule
    worker_parts = WorkerParts(
        parts.prefill_loop,
        parts.decode_loop,
        None if own_sampler else sampler,
        Verifier(model.decoder.ops, sampler, verify_draft) if speculation else None,
    )
    return Machinery(model, Worker(runner, worker_parts), speculation, num_blocks, rejects, guarantee)


def make_pool(parts: Parts, num_blocks: int, block_size: int) -> BlockPool:
    """Make an empty pool with the `block_pool` part; a replaced part's pool is checked."""
    made: BlockPool = require_methods("block_pool", parts.block_pool(num_blocks, block_size))
    if parts.block_pool is not BlockPool:
        made = cast(BlockPool, CheckedPool(made))
    return made


def make_scheduler(parts: Parts, config: EngineConfig, memory: KVMemory, events: Events) -> AnyScheduler:
    """Make an empty scheduler with the `scheduler` part; with tenant limits one for each lane."""

    def make(config: EngineConfig, memory: KVCacheManager, events: Events) -> Scheduler:
        made: Scheduler = require_methods("scheduler", parts.scheduler(config, memory, events))
        return made

    if isinstance(memory, TenantMemory):
        quota = require_methods("quota", parts.quota(memory.limits, config.block_size))
        drafts = config.draft_model is not None or parts.drafter is not None
        return TenantScheduler(config, memory, events, make, quota, drafts)
    return make(config, memory, events)


def make_memory(
    pool: BlockPool,
    parts: Parts,
    config: EngineConfig,
    events: Events,
    envelopes: tuple[str, str | None],
    public: PublicPrefixes,
) -> KVMemory:
    """Make the KV memory over an empty pool. `envelopes`: KV digests of the model and of the draft model."""
    envelope, draft = envelopes

    def make_cache(pool: BlockPool) -> PrefixCache:
        made: PrefixCache = require_methods("prefix_cache", parts.prefix_cache(pool))
        return made

    caching = config.prefix_caching
    scope = parts.scope if parts.scope is block_scope else checked_scope(parts.scope)
    if not config.tenant_limits:
        return KVCacheManager(pool, envelope, events, caching, make_cache, draft, public, scope)

    def make_lane(share: Share, make_cache: MakeCache) -> LaneMemory:
        return LaneMemory(cast(BlockPool, share), envelope, events, caching, make_cache, draft, public, scope)

    def make_shares(pool: BlockPool, common: int) -> Shares:
        made: Shares = require_methods("shares", parts.shares(pool, common))
        return made

    return TenantMemory(
        pool, config.tenant_limits, public, events, LaneMakers(make_shares, make_lane, make_cache)
    )


def _make_speculation(
    model: LoadedModel, draft: LoadedModel | None, config: EngineConfig, parts: Parts, num_blocks: int
) -> Speculation | None:
    """Make the speculation of the decode steps, or None if there is no drafter."""
    drafter = _make_drafter(model, draft, config, parts, num_blocks)
    if drafter is None:
        return None
    shape = config.draft_shape
    if len(shape) + 2 > model.max_model_len:
        raise UsageError(
            f"drafts of {len(shape)} tokens do not fit a context of {model.max_model_len}",
            "lower num_draft_tokens",
        )
    branches = math.prod(shape)
    controller = Controller(len(shape), branches, config.adaptive_draft)
    return Speculation(drafter, controller, branches, config.max_num_batched_tokens, model.config.vocab_size)


def _make_drafter(
    model: LoadedModel, draft: LoadedModel | None, config: EngineConfig, parts: Parts, num_blocks: int
) -> Drafter | None:
    if parts.drafter:
        drafter: Drafter = require_methods("drafter", parts.drafter(model, config))
        return drafter
    if config.draft_model == NGRAM:
        return NgramDrafter()
    if draft is None:
        return None
    cache = KVCache.allocate(draft.config, num_blocks, config.block_size, draft.dtype, draft.device)
    return DraftModel(
        ModelRunner(draft.decoder, cache, config.block_size),
        num_token_ids=model.num_token_ids,
        vocab_size=model.config.vocab_size,
        max_model_len=draft.max_model_len,
        chunk=config.prefill_chunk,
        tree=config.draft_shape,
        with_probs=config.draft_verification == "rejection",
        has_long_rope=draft.short_length is not None,
    )
