"""An engine's speculation, put together from its configuration.

draft_model  a folder, "auto"    DraftModel over KV tensors of its own, under the target's block ids
             "ngram"             NgramDrafter
parts        drafter             anybody's
"""

from __future__ import annotations

import math

from minillm.config import EngineConfig
from minillm.engine.kv_manager import KVCacheManager
from minillm.engine.parts import Parts
from minillm.engine.speculate import Speculation
from minillm.engine.verdicts import Judge
from minillm.errors import UsageError
from minillm.memory.kv_cache import KVCache
from minillm.model.loader import LoadedModel
from minillm.model.runner import ModelRunner
from minillm.ops.sampling import sample
from minillm.speculation.controller import Controller
from minillm.speculation.draft_model import DraftModel
from minillm.speculation.drafts import Drafter
from minillm.speculation.ngram import NgramDrafter
from minillm.speculation.pairing import NGRAM


def make_speculation(
    model: LoadedModel,
    draft: LoadedModel | None,
    config: EngineConfig,
    parts: Parts,
    runner: ModelRunner,
    memory: KVCacheManager,
) -> Speculation | None:
    """What adds drafts to the engine's decode steps; None where nothing drafts.

    Raises:
        UsageError: drafts longer than the context, or a part that would never be asked.
    """
    rejects = config.draft_verification == "rejection"
    if parts.verify_draft and not rejects:
        raise UsageError(
            "part 'verify_draft' is asked in rejection sampling only", 'set draft_verification="rejection"'
        )
    drafter = _make_drafter(model, draft, config, parts, memory.pool.num_blocks)
    if drafter is None:
        return None
    shape, ops = config.draft_shape, model.decoder.ops
    if len(shape) + 2 > model.max_model_len:
        raise UsageError(
            f"drafts of {len(shape)} tokens do not fit a context of {model.max_model_len}",
            "lower num_draft_tokens",
        )
    verify_draft = (parts.verify_draft or ops.verify_draft) if rejects else None
    judge = Judge(
        ops, ops.sample if parts.sampler is sample else parts.sampler, model.num_token_ids, verify_draft
    )
    paths = math.prod(shape)
    controller = Controller(len(shape), paths, config.adaptive_draft)
    return Speculation(drafter, controller, judge, runner, memory, paths, config.max_num_batched_tokens)


def _make_drafter(
    model: LoadedModel, draft: LoadedModel | None, config: EngineConfig, parts: Parts, num_blocks: int
) -> Drafter | None:
    if parts.drafter:
        drafter: Drafter = parts.drafter(model, config)
        if not (hasattr(drafter, "propose") and hasattr(drafter, "settle")):
            raise UsageError(
                f"part 'drafter' made {drafter!r}, which does not draft",
                "see Drafter in speculation/drafts.py",
            )
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
    )
