"""Which messages of a long conversation stay in the prompt.

A conversation outgrows the context, and its oldest turns must go. The rest of the prompt should stay the same
from turn to turn, because the prefix cache only finds the blocks of an equal beginning. Dropping just enough
in each turn would move the beginning every time, and every turn would compute its whole prompt again. So when
the limit is reached, turns go until the prompt takes half of it. Then none go for many turns:

    limit   ----------------------------------------------
                       /|          /|          /|            each / is many turns with an unchanged beginning,
    half              / |         / |         / |            computed once and then found in the cache
                     /  |  ...   /  |  ...   /  |

The choice depends on the messages alone, so a caller that keeps no state drops the same ones in every turn.
System messages always stay. Left out: a summary of what was dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from minillm.text.chat_template import Message

Measure = Callable[[Sequence[int]], int]


def kept_messages(messages: Sequence[Message], num_tokens: Measure, limit: int) -> list[int]:
    """The indices of the messages that stay.

    Args:
        num_tokens: the size of the prompt that consists of the messages with these indices.
        limit: the most tokens of the prompt. The last turn stays even if it is larger.
    """
    everything = list(range(len(messages)))
    if num_tokens(everything) <= limit:
        return everything
    dropped: set[int] = set()
    for end in _turn_ends(messages):
        so_far = [i for i in range(end + 1) if i not in dropped]
        if num_tokens(so_far) > limit:
            dropped |= _oldest(messages, so_far, num_tokens, limit)
    return [i for i in everything if i not in dropped]


def _turn_ends(messages: Sequence[Message]) -> list[int]:
    """The last message of every prompt that this conversation has had: those of the user, and the last."""
    last = len(messages) - 1
    return [i for i, message in enumerate(messages) if message["role"] == "user" or i == last]


def _oldest(messages: Sequence[Message], kept: list[int], num_tokens: Measure, limit: int) -> set[int]:
    """Whole turns from the oldest on, until the rest takes half of `limit`."""
    dropped: set[int] = set()
    while True:
        rest = [i for i in kept if i not in dropped]
        turn = _first_turn(messages, rest)
        if not turn or num_tokens(rest) <= limit // 2:
            return dropped
        dropped |= turn


def _first_turn(messages: Sequence[Message], kept: list[int]) -> set[int]:
    """The oldest message and its answers, without the last message; many templates require that a
    conversation begins with the user."""
    turn: set[int] = set()
    for i in kept[:-1]:
        if messages[i]["role"] == "system":
            continue
        if turn and messages[i]["role"] == "user":
            break
        turn.add(i)
    return turn
