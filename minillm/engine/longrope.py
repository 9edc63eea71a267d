"""longrope: a request stays on one side of the model's original length.

longrope rotates with short divisors in sequences up to the original length, and with long ones in longer
sequences. If a sequence grew across that length, all its keys in the cache would be wrong, and so would the
answer. So the most tokens that a request can reach, prompt and `max_tokens`, decide before it starts:

    original length 32        prompt 20, max_tokens 12     short: reaches 32
                              prompt 20, max_tokens 13     refused: would cross, 12 tokens fit
                              prompt 33, any max_tokens    long: all its tokens, from position 0 on
                              prompt 32                    refused: not one token fits

A `max_tokens` that nobody gave (`DefaultTokens`) is lowered instead: the answer ends at the original length
with reason "length". A context that is not longer than the original length has short sequences only.

transformers computes all keys again when a sequence crosses. Left out: that, because keys in shared blocks
cannot change.
"""

from __future__ import annotations

from minillm.config.sampling import DefaultTokens
from minillm.errors import LongRopeLimit


def on_one_side(short: int | None, prompt_len: int, max_tokens: int, wanted: int) -> int:
    """The `max_tokens` of a request that stays on the side of its prompt.

    Args:
        short: the most tokens of a short sequence, or None if all sequences are alike.
        prompt_len: tokens of the prompt.
        max_tokens: the most that context and pool allow.
        wanted: what the request asks for; a `DefaultTokens` may be lowered.

    Raises:
        LongRopeLimit: prompt and answer would cross; the message says how many tokens fit.
    """
    if short is None or prompt_len > short or prompt_len + max_tokens <= short:
        return max_tokens
    room = short - prompt_len
    if room and isinstance(wanted, DefaultTokens):
        return room
    what_fits = f"max_tokens of at most {room} fits" if room else "shorten the prompt"
    raise LongRopeLimit(
        f"{prompt_len} prompt tokens and up to {max_tokens} more would cross {short} tokens, "
        "where longrope changes all keys",
        f"{what_fits}; a prompt of more than {short} tokens may go on to the end of the context",
    )
