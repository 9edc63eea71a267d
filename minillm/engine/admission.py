"""What can be known of a request before it runs: whether it can be served at all, and how far.

A request that could never be served, even on an empty engine, is refused here with a typed error
and never queued. Limits that only cut it short (context, pool) cap `max_tokens` instead. Neither
looks at who else is running: an answer's length never depends on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence as List

from minillm.config import EngineConfig, SamplingParams, shown
from minillm.engine.parts import Parts, require_methods
from minillm.engine.request import Request, group_blocks
from minillm.engine.scheduler import max_running
from minillm.engine.sequence import Sequence, TextStream
from minillm.errors import KVCapacityError, PromptTooLong, UsageError
from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import BlockTable
from minillm.model.loader import LoadedModel
from minillm.text.detokenizer import NullDetokenizer


def check_request(
    model: LoadedModel,
    config: EngineConfig,
    num_blocks: int,
    prompt: str | List[int],
    params: SamplingParams,
    tenant: str | None = None,
) -> list[int]:
    """The prompt's token ids, if a request with `params` could be served on an empty engine.

    Raises:
        UsageError: empty, not text or ids, an id out of range, more samples than sequences,
            a tenant that is no text.
        PromptTooLong: no token fits behind it in the context.
        KVCapacityError: prompt and one token (of each sample) are more than the whole pool.
    """
    if not isinstance(params, SamplingParams):
        raise UsageError(f"sampling_params must be SamplingParams, not {shown(params)}")
    _check_tenant(tenant)
    ids = model.token_ids(prompt)
    if len(ids) + 1 > model.max_model_len:
        full = model.max_model_len == model.config.context_limit
        raise PromptTooLong(
            f"the prompt has {len(ids)} tokens; with one to generate the context holds {model.max_model_len}",
            "shorten the prompt" if full else "shorten the prompt or raise max_model_len",
        )
    if params.n > max_running(config):
        raise UsageError(f"n={params.n} is more than the {max_running(config)} sequences that run at once")
    needed = group_blocks(len(ids), len(ids) + 1, params.n, config.block_size)
    if needed > num_blocks:
        raise KVCapacityError(
            f"prompt and one token need {needed} KV blocks, the whole pool has {num_blocks}",
            "raise kv_memory or shorten the prompt",
        )
    return ids


def _check_tenant(tenant: str | None) -> None:
    """A tenant is part of the prefix cache's keys, so it must be text that can be encoded."""
    if tenant is None:
        return
    if not isinstance(tenant, str):
        raise UsageError(f"tenant must be text or None, not {type(tenant).__name__}")
    try:
        tenant.encode()
    except UnicodeEncodeError:
        raise UsageError(
            "tenant is not valid Unicode", "decode it from UTF-8 without surrogateescape"
        ) from None


def capped_max_tokens(
    prompt_len: int, params: SamplingParams, max_model_len: int, num_blocks: int, block_size: int
) -> int:
    """`max_tokens`, or as many as context and whole pool hold behind the prompt."""
    shared = prompt_len // block_size
    per_sample = (num_blocks - shared) // params.n
    pool_tokens = (shared + per_sample) * block_size
    return min(params.max_tokens, max_model_len - prompt_len, pool_tokens - prompt_len)


def make_request(
    ids: list[int],
    params: SamplingParams,
    tenant: str | None,
    model: LoadedModel,
    parts: Parts,
    pool: BlockPool,
) -> Request:
    """A checked request, not yet submitted. Asks the detokenizer part, so no lock may be held."""
    max_tokens = capped_max_tokens(len(ids), params, model.max_model_len, pool.num_blocks, pool.block_size)
    sequences = [
        Sequence(
            request_id="",
            index=i,
            prompt_token_ids=ids,
            params=params,
            seed=0,
            max_tokens=max_tokens,
            block_table=BlockTable(pool),
            detokenizer=_text_stream(ids, params, model, parts),
            tenant=tenant,
        )
        for i in range(params.n)
    ]
    sequences[0].forks = sequences[1:]
    return Request("", sequences)


def _text_stream(ids: list[int], params: SamplingParams, model: LoadedModel, parts: Parts) -> TextStream:
    if model.tokenizer is None:
        return NullDetokenizer()
    made: TextStream = require_methods(
        "detokenizer", parts.detokenizer(model.tokenizer.rust, params.stop, ids)
    )
    return made
