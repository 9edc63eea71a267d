"""Task 11.1, whose block is it: cases and known mistakes of `block_scope`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from minillm.labs.grader.counts import LINES, counted_lines, within
from minillm.labs.grader.lab import Case, Counted, Mistake, Words
from minillm.memory.block_pool import BlockPool
from minillm.memory.prefix_cache import PrefixCache, Scope

Key = tuple[str, str | None, bool, int | None]  # envelope, tenant, is_long, after
ScopeOf = Callable[..., Scope]
NAMES = (
    None,
    "",
    "None",
    "alice",
    "Alice",
    " alice",
    "alice ",
    "bob",
    "alice bob",
    "ali\u0301ce",
    "al\u00edce",
)
TOKENS = (5, 6, 7, 8)
SCOPE_LINES = 300


def shown(key: Key) -> str:
    """A key in words."""
    envelope, tenant, is_long, after = key
    more = [*(["long"] if is_long else []), *([] if after is None else [f"after public block {after}"])]
    return ", ".join([f"tenant {tenant!r}", *more, *([] if envelope == "kv" else [f"envelope {envelope!r}"])])


def apart_case(title: str, keys: Iterable[Key]) -> Case:
    """The pairs of different keys that have equal scopes; there should be none."""
    listed = list(keys)

    def run(scope_of: ScopeOf) -> list[Words]:
        made = [scope_of(*key) for key in listed]
        pairs = itertools.combinations(range(len(listed)), 2)
        same = [(i, j) for i, j in pairs if tuple(made[i]) == tuple(made[j])]
        return [Words(f"one scope: {shown(listed[i])}; {shown(listed[j])}") for i, j in same]

    return Case(title, run)


def field_case(scope_of: ScopeOf) -> list[Any]:
    """The field `tenant` of the scopes of all tenants, and whether each is a `Scope`."""
    made = [scope_of("kv", tenant, False, after) for tenant in NAMES for after in (None, 2)]
    return [scope.tenant for scope in made] + [isinstance(scope, Scope) for scope in made]


def found_case(scope_of: ScopeOf) -> list[Words]:
    """Each tenant publishes the same ids; who finds a block then, and how many blocks has each."""
    cache = PrefixCache(BlockPool(16, 4))
    writers: dict[int, str | None] = {}
    for tenant in (None, "", "None", "alice"):
        scope = scope_of("kv", tenant, False, 1)
        digest = cache.digest(scope, None, TOKENS)
        (block,) = cache._pool.allocate(1)
        writers[cache.publish(scope, None, TOKENS, digest, block).block_id] = tenant
        cache._pool.free([block])
        cache.released([block])
    told = []
    for tenant in (None, "", "None", "alice", "bob"):
        scope = scope_of(
            "kv", "".join(tenant) if tenant else tenant, False, 1
        )  # an equal text, another object
        found = cache.match(scope, [(cache.digest(scope, None, TOKENS), TOKENS)])
        whose = ", ".join(repr(writers[block.block_id]) for block in found) or "nobody"
        told.append(Words(f"{tenant!r} finds the block of {whose}; has {cache.num_unused_of(tenant)}"))
    return told


def turns_case(scope_of: ScopeOf) -> list[bool]:
    """Calls for two tenants in turns; equal calls give equal scopes, also later."""
    keys: list[Key] = [("kv", "a", False, None), ("kv", "b", False, None), ("kv", "a", False, 0)]
    first, again = ([scope_of(*key) for key in keys] for _ in range(2))
    other = scope_of("other", "a", False, None)
    return [first == again, len({first[0], first[1], first[2], other}) == 4]


def work_case(scope_of: ScopeOf) -> Counted:
    """The lines that run for a tenant with a name of 5,000 characters."""
    scope_of("kv", "a", True, 3)
    return within(SCOPE_LINES, counted_lines(lambda: scope_of("kv", "n" * 5000, True, 3)), LINES)


def more_scopes(random: Random) -> Iterable[Case]:
    """Random keys, many of them nearly equal."""
    for number in range(4):
        keys = set[Key]()
        while len(keys) < 30:
            name = random.choice([None, *("".join(random.choices("ab 1", k=n)) for n in range(5))])
            after = random.choice([None, 0, 1, 10, 11, 110])
            keys.add((random.choice(["kv", "kv2"]), name, random.random() < 0.5, after))
        yield apart_case(f"30 random keys {number + 1}", sorted(keys, key=repr))


# --- known mistakes ---------------------------------------------------------------------------------


def scope_with(
    tenant: Callable[[str | None], Any] = lambda tenant: tenant,
    conditioning: Callable[[bool, int | None], str] = lambda is_long, after: f"{is_long} {after}",
    envelope: Callable[[str], str] = lambda envelope: envelope,
) -> ScopeOf:
    """A scope whose fields are made by these functions."""

    def scope_of(own: str, name: str | None, is_long: bool, after: int | None) -> Scope:
        return Scope(envelope(own), tenant(name), conditioning(is_long, after))

    return scope_of


def without_owner_after_public(envelope: str, tenant: str | None, is_long: bool, after: int | None) -> Scope:
    """What follows public blocks belongs to everybody."""
    return Scope(envelope, tenant if after is None else None, f"{is_long} {after}")


def hidden_owner(envelope: str, tenant: str | None, is_long: bool, after: int | None) -> Scope:
    """The tenant stands in the conditioning."""
    return Scope(envelope, None, f"{tenant!r} {is_long} {after}")


def letter_by_letter(envelope: str, tenant: str | None, is_long: bool, after: int | None) -> Scope:
    """Copies the name letter by letter."""
    name = None if tenant is None else ""
    for letter in tenant or "":
        name = (name or "") + letter
    return Scope(envelope, name, f"{is_long} {after}")


SCOPE_CASES = (
    apart_case("tenants with names that look alike", [("kv", name, False, None) for name in NAMES]),
    apart_case(
        "after public blocks, or after none",
        [("kv", name, False, after) for name in (None, "a", "a1") for after in (None, 0, 1, 11)],
    ),
    apart_case(
        "long sequences",
        [("kv", "a", is_long, after) for is_long in (False, True) for after in (None, 0, 3)],
    ),
    apart_case(
        "two models", [(envelope, name, False, None) for envelope in ("kv", "k") for name in ("v", "vv")]
    ),
    Case("the field `tenant`", field_case),
    Case("four tenants write the same ids after public block 1, five look for them", found_case),
    Case("calls for two tenants in turns", turns_case, "aliasing"),
    Case("the work for a name of 5,000 characters", work_case, "cost"),
)
SCOPE_MISTAKES = (
    Mistake(
        "the tenant is missing: a hit tells one tenant what another one has sent", scope_with(lambda _: None)
    ),
    Mistake(
        'no tenant and the tenant "" share their blocks: None is a tenant of its own',
        scope_with(lambda t: t or None),
    ),
    Mistake(
        'no tenant and the tenant "" share their blocks: None is a tenant of its own',
        scope_with(lambda t: t or ""),
    ),
    Mistake(
        'None becomes the text "None", which is the name of another tenant: do not convert it',
        scope_with(str),
    ),
    Mistake(
        "names that differ only in case or spaces share their blocks: compare names exactly",
        scope_with(lambda t: t if t is None else t.strip().lower()),
    ),
    Mistake(
        "names that differ only in spaces share their blocks: compare names exactly",
        scope_with(lambda t: t if t is None else t.strip()),
    ),
    Mistake(
        "names that differ only in case share their blocks: compare names exactly",
        scope_with(lambda t: t if t is None else t.lower()),
    ),
    Mistake(
        "what follows public blocks is shared by all tenants: only the public blocks themselves are public",
        without_owner_after_public,
    ),
    Mistake(
        "the public block before is missing: the same ids after another beginning have other keys",
        scope_with(conditioning=lambda is_long, after: str(is_long)),
    ),
    Mistake(
        "the number 0 of a public block is taken for none: ask `is not None`",
        scope_with(conditioning=lambda is_long, after: f"{is_long} {after or None}"),
    ),
    Mistake(
        "the public block is named only by whether there is one: name which one it is",
        scope_with(conditioning=lambda is_long, after: f"{is_long} {after is None}"),
    ),
    Mistake(
        "`is_long` is missing: long sequences have other keys for the same ids",
        scope_with(conditioning=lambda is_long, after: str(after)),
    ),
    Mistake(
        "`is_long` is lost after public blocks: both belong to the conditioning",
        scope_with(conditioning=lambda is_long, after: str(is_long if after is None else after)),
    ),
    Mistake(
        "the envelope is missing: two models have other keys for the same ids",
        scope_with(envelope=lambda _: "kv"),
    ),
    Mistake(
        "the tenant is not in the field `tenant`: the counts of `stats(tenant)` look there", hidden_owner
    ),
    Mistake(
        f"more than {SCOPE_LINES:,} {LINES} for one scope: the name is copied letter by letter",
        letter_by_letter,
    ),
)
