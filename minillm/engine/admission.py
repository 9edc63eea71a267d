"""The checks a request must pass before it is queued.

A request that does not fit even an empty engine is refused here with a typed error and is never queued.
A request that fits but asks for too many tokens is accepted: the context and the pool size cap its
`max_tokens`. Both checks ignore the other requests, so the length of an answer never depends on them.
"""

from __future__ import annotations

from dataclasses import replace

from minillm.config import EngineConfig, SamplingParams, shown
from minillm.engine.longrope import on_one_side
from minillm.engine.parts import Parts, require_methods
from minillm.engine.prompt import EncodedPrompt, Prompt, encoded_prompt
from minillm.engine.request import Request, group_blocks
from minillm.engine.sequence import Sequence, TextStream
from minillm.engine.tenant_scheduler import most_running
from minillm.errors import KVCapacityError, PromptTooLong, UsageError
from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import BlockTable
from minillm.model.loader import LoadedModel
from minillm.text.detokenizer import NullDetokenizer


def check_request(
    model: LoadedModel,
    config: EngineConfig,
    num_blocks: int,
    prompt: Prompt,
    params: SamplingParams,
    tenant: str | None = None,
) -> EncodedPrompt:
    """Return the prompt as token ids, if an empty engine could serve a request with `params`.

    Raises:
        UsageError: the prompt is empty or is neither text nor token ids, an id is out of range,
            `n` is more than the sequences that can run at once, the tenant is not text, or a stop string
            can never match.
        PromptTooLong: the prompt leaves no room in the context for one more token.
        KVCapacityError: the prompt and one token per sample need more than `num_blocks` blocks, the most
            that the tenant can have.
        LongRopeLimit: prompt and answer would cross longrope's original length.
    """
    if not isinstance(params, SamplingParams):
        raise UsageError(f"sampling_params must be SamplingParams, not {shown(params)}")
    resolved_stops(params, model)
    encoded = encoded_prompt(prompt, model)
    ids = encoded.token_ids
    if len(ids) + 1 > model.max_model_len:
        full = model.max_model_len == model.config.context_limit
        raise PromptTooLong(
            f"the prompt has {len(ids)} tokens and needs room for one more; "
            f"the context holds {model.max_model_len}",
            "shorten the prompt" if full else "shorten the prompt or raise max_model_len",
        )
    if params.n > (most := most_running(config, tenant)):
        hint = "" if most else "the guarantees of other tenants leave no tokens of a step"
        raise UsageError(f"n={params.n} is more than the {most} sequences that run at once", hint)
    needed = group_blocks(len(ids), len(ids) + 1, params.n, config.block_size)
    if needed > num_blocks:
        raise KVCapacityError(
            f"prompt and one token need {needed} KV blocks, {_share(config)} has {num_blocks}",
            "raise kv_memory or shorten the prompt",
        )
    capped_max_tokens(len(ids), params, model, num_blocks, config.block_size)
    return encoded


def _share(config: EngineConfig) -> str:
    return "the tenant's share" if config.tenant_limits or config.public_prefixes else "the whole pool"


def resolved_stops(params: SamplingParams, model: LoadedModel) -> SamplingParams:
    """`params`, with the stop strings that are special tokens as stop ids, too.

    Raises:
        UsageError: a stop string that could never match.
    """
    if not params.stop:
        return params
    if model.tokenizer is None:
        raise UsageError("stop strings need a tokenizer, and this model has none", "use stop_token_ids")
    more = model.tokenizer.stop_token_ids(tuple(params.stop))
    return replace(params, stop_token_ids=(*params.stop_token_ids, *more)) if more else params


def capped_max_tokens(
    prompt_len: int, params: SamplingParams, model: LoadedModel, num_blocks: int, block_size: int
) -> int:
    """Return `max_tokens`, capped by what the context and the whole pool can hold after the prompt.

    Raises:
        LongRopeLimit: prompt and answer would cross longrope's original length.
    """
    shared = prompt_len // block_size
    per_sample = (num_blocks - shared) // params.n
    pool_tokens = (shared + per_sample) * block_size
    capped = min(params.max_tokens, model.max_model_len - prompt_len, pool_tokens - prompt_len)
    return on_one_side(model.short_length, prompt_len, capped, params.max_tokens)


def make_request(
    prompt: EncodedPrompt,
    params: SamplingParams,
    tenant: str | None,
    model: LoadedModel,
    parts: Parts,
    pool: BlockPool,
    num_blocks: int,
) -> Request:
    """Make a request from checked arguments; it is not submitted yet. `num_blocks`: as in `check_request`.

    Its sampling parameters are those that count: with resolved stops and with the capped `max_tokens`.

    Calls the `detokenizer` part, which is foreign code: the caller must not hold a lock.
    """
    ids, params = prompt.token_ids, resolved_stops(params, model)
    max_tokens = capped_max_tokens(len(ids), params, model, num_blocks, pool.block_size)
    params = replace(params, max_tokens=max_tokens)
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
            rope_offset=model.rope_offset(len(ids)),
        )
        for i in range(params.n)
    ]
    sequences[0].forks = sequences[1:]
    return Request("", sequences, prompt.digest)


def _text_stream(ids: list[int], params: SamplingParams, model: LoadedModel, parts: Parts) -> TextStream:
    if model.tokenizer is None:
        return NullDetokenizer()
    made: TextStream = require_methods(
        "detokenizer", parts.detokenizer(model.tokenizer.rust, params.stop, ids)
    )
    return made
