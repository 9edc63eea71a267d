"""Whose block is it: the scope of a cached block.

Only requests with equal scopes find each other's blocks (`prefix_cache.py`). So the scope decides what a
tenant can notice of another one: a hit tells that somebody has sent this text.

    prompt of a   [ system ][ system ][ a's own ]     public blocks are found by everybody, in a tree of
    prompt of b   [ system ][ system ][ b's own ]     their own (`public_prefixes.py`); what follows is not

    scope of a's own block:   KV envelope | tenant a | conditioning: follows public block 1

Whoever names no tenant is a tenant too, None. It is another one than "", and than "None".
"""

from __future__ import annotations

from collections.abc import Callable

from minillm.memory.prefix_cache import Scope

MakeScope = Callable[[str, str | None, bool, int | None], Scope]


def block_scope(envelope: str, tenant: str | None, is_long: bool, after: int | None) -> Scope:
    """The scope of a tenant's own blocks: all that their keys and values depend on, apart from the ids.

    Args:
        envelope: the model and its settings, as a digest.
        tenant: as the request gives it. The field `tenant` of the scope is the same value.
        is_long: whether the sequence reads longrope's tables of long sequences, so that keys are others.
        after: the number of the public block that the tenant's first own block follows, from 0; None if the
            prompt begins with no public block.
    """
    conditioning = ["longrope"] if is_long else []
    if after is not None:
        conditioning.append(f"public {after}")
    return Scope(envelope, tenant, " ".join(conditioning))
