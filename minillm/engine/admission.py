"""What can be known of a request before it runs: whether it can be served at all, and how far.

A request that could never be served, even on an empty engine, is refused here with a typed error
and never queued. Limits that only cut it short (context, pool) cap `max_tokens` instead. Neither
looks at who else is running: an answer's length never depends on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

from minillm.config import EngineConfig, SamplingParams
from minillm.engine.request import group_blocks
from minillm.engine.scheduler import max_running
from minillm.errors import KVCapacityError, PromptTooLong, UsageError
from minillm.model.loader import LoadedModel
from minillm.ops.sampling import mix64

_MASK = (1 << 64) - 1


def check_request(
    model: LoadedModel,
    config: EngineConfig,
    num_blocks: int,
    prompt: str | Sequence[int],
    params: SamplingParams,
) -> list[int]:
    """The prompt's token ids, if a request with `params` could be served on an empty engine.

    Raises:
        UsageError: empty, not text or ids, an id out of range, more samples than sequences.
        PromptTooLong: no token fits behind it in the context.
        KVCapacityError: prompt and one token (of each sample) are more than the whole pool.
    """
    if not isinstance(params, SamplingParams):
        raise UsageError(f"sampling_params must be SamplingParams, not {params!r}")
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


def capped_max_tokens(
    prompt_len: int, params: SamplingParams, max_model_len: int, num_blocks: int, block_size: int
) -> int:
    """`max_tokens`, or as many as context and whole pool hold behind the prompt."""
    shared = prompt_len // block_size
    per_sample = (num_blocks - shared) // params.n
    pool_tokens = (shared + per_sample) * block_size
    return min(params.max_tokens, max_model_len - prompt_len, pool_tokens - prompt_len)


def derived_seed(engine_seed: int, submission: int) -> int:
    """The seed of a request that names none: 32 bits, from the engine's seed and the request's number."""
    return mix64((mix64(engine_seed & _MASK) + submission + 1) & _MASK) >> 32
