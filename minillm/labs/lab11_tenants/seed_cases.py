"""Task 11.2, default seeds: cases and known mistakes of `derived_seed`."""

from __future__ import annotations

import builtins
import itertools
import zlib
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from minillm.engine.request import derived_seed
from minillm.labs.grader.counts import LINES, counted_lines, within
from minillm.labs.grader.lab import Case, Counted, Mistake, Words
from minillm.memory.encoding import digest

Key = tuple[int, str | None, int]  # the engine's seed, the tenant, the number of the tenant's request
SeedOf = Callable[[int, str | None, int], int]
NAMES = (
    None,
    "",
    "None",
    "a",
    "b",
    "ab",
    "ba",
    "a1",
    "a" * 40 + "b",
    "a" * 40 + "c",
    "b" + "a" * 40,
    "\u00e4",
)
SEED_LINES = 1_000


def clash_case(title: str, keys: Iterable[Key]) -> Case:
    """The pairs of different keys with one seed; there should be none."""
    listed = list(keys)

    def run(seed_of: SeedOf) -> list[Words]:
        first: dict[int, Key] = {}
        clashes = []
        for key in listed:
            other = first.setdefault(seed_of(*key), key)
            if other is not key:
                clashes.append(Words(f"{_shown(other)} and {_shown(key)} have one seed"))
        return clashes[:12]

    return Case(title, run)


def _shown(key: Key) -> str:
    name = key[1] if key[1] is None or len(key[1]) < 9 else f"{key[1][:3]}..{key[1][-1]}"
    return f"({key[0]}, {name!r}, {key[2]})"


def range_case(seed_of: SeedOf) -> list[Words]:
    """The seeds that are no whole numbers of 32 bits."""
    keys = list(itertools.product((0, 7, -3, 2**70), (None, "", "ben"), (0, 1, 500)))
    seeds = [(key, seed_of(*key)) for key in keys]
    wrong = [
        (key, "no int" if type(seed) is not int else "negative" if seed < 0 else "more than 32 bits")
        for key, seed in seeds
        if type(seed) is not int or not 0 <= seed < 2**32
    ]
    return [Words(f"{_shown(key)}: {why}") for key, why in wrong][:6]


def process_case(seed_of: SeedOf) -> Words:
    """Whether the seed would be the same in a process whose `hash` is salted differently."""
    own, keys = builtins.hash, [(5, "ben", 3), (5, None, 3)]
    seeds = [seed_of(*key) for key in keys]
    builtins.hash = lambda value: own(value) ^ 0x5A5A5A5A
    try:
        again = [seed_of(*key) for key in keys]
    finally:
        builtins.hash = own
    return Words("the same seeds in every process" if seeds == again else "other seeds in another process")


def again_case(seed_of: SeedOf) -> list[bool]:
    """Two tenants in turns, each question twice: the seed depends on the arguments only."""
    keys: list[Key] = [(5, "a", 0), (5, "b", 0), (5, "a", 1), (5, None, 0)]
    first, again = ([seed_of(*key) for key in order] for order in (keys, keys[::-1]))
    return [left == right for left, right in zip(first, again[::-1], strict=True)]


def work_case(seed_of: SeedOf) -> Counted:
    """The lines that run for request 100,000 of a tenant."""
    seed_of(1, "a", 2)
    return within(SEED_LINES, counted_lines(lambda: seed_of(1, "a", 100_000)), LINES)


def more_seeds(random: Random) -> Iterable[Case]:
    """Random keys of each kind."""
    for number in range(3):
        names = [None, *("".join(random.choices("ab01", k=random.randrange(6))) for _ in range(12))]
        keys = {
            (random.randrange(-5, 40), random.choice(names), random.choice([0, 1, 2, 11, 110, 256, 999]))
            for _ in range(200)
        }
        yield clash_case(f"200 random keys {number + 1}", sorted(keys, key=repr))


# --- known mistakes ---------------------------------------------------------------------------------


def _mixed(*values: Any) -> int:
    """A seed of plain values."""
    return int(digest(list(values))[:8], 16)


class CountsCalls:
    """Counts its own calls."""

    def __init__(self) -> None:
        self._calls = itertools.count()

    def __call__(self, engine_seed: int, tenant: str | None, number: int) -> int:
        return derived_seed(engine_seed, tenant, next(self._calls))


def summed(engine_seed: int, tenant: str | None, number: int) -> int:
    """A sum, whose terms can be exchanged."""
    return (engine_seed + number + (0 if tenant is None else 1 + zlib.crc32(tenant.encode()))) % 2**32


def joined(engine_seed: int, tenant: str | None, number: int) -> int:
    """A text without borders."""
    return _mixed(f"{engine_seed}{'' if tenant is None else tenant}{number}")


def drawn(engine_seed: int, tenant: str | None, number: int) -> int:
    """Draws all earlier seeds again."""
    generator = Random(f"{engine_seed}/{tenant!r}")
    for _ in range(number):
        generator.getrandbits(32)
    return generator.getrandbits(32)


def salted(engine_seed: int, tenant: str | None, number: int) -> int:
    """Python's hash of a text, which is another one in every process."""
    return hash((engine_seed, tenant, number)) % 2**32


def xor(engine_seed: int, tenant: str | None, number: int) -> int:
    """The terms cancel each other."""
    return (engine_seed ^ number ^ (0 if tenant is None else 1 + zlib.crc32(tenant.encode()))) % 2**32


SEED_CASES = (
    clash_case("names that look alike", [(5, name, 0) for name in NAMES]),
    clash_case("one tenant's requests", [(0, "a", number) for number in range(1500)]),
    clash_case("engines with other seeds", [(seed, "a", 0) for seed in (0, 1, 2, -1, 2**32, 2**40 + 1)]),
    clash_case(
        "seed, tenant and number together",
        itertools.product((0, 1, 2, 11), (None, "", "1", "a", "a1"), (0, 1, 2, 11, 12, 112)),
    ),
    clash_case("no tenant", itertools.product((0, 1, 2, 3), (None,), range(30))),
    Case("whole numbers of 32 bits", range_case),
    Case("in another process", process_case),
    Case("each question twice, in turns", again_case, "aliasing"),
    Case("the work for request 100,000", work_case, "cost"),
)
SEED_MISTAKES = (
    Mistake(
        "the tenant is missing: two tenants that send the same prompts get the same samples",
        lambda seed, tenant, number: derived_seed(seed, None, number),
    ),
    Mistake(
        "the engine's seed is missing: another seed of the engine changes nothing",
        lambda seed, tenant, number: derived_seed(0, tenant, number),
    ),
    Mistake(
        "the number is missing: all requests of a tenant draw the same samples",
        lambda seed, tenant, number: derived_seed(seed, tenant, 0),
    ),
    Mistake(
        'no tenant and the tenant "" are one',
        lambda seed, tenant, number: derived_seed(seed, tenant or "", number),
    ),
    Mistake(
        'no tenant and the tenant "" are one',
        lambda seed, tenant, number: derived_seed(seed, tenant or None, number),
    ),
    Mistake(
        'no tenant and the tenant "None" are one',
        lambda seed, tenant, number: _mixed(seed, str(tenant), number),
    ),
    Mistake(
        "seed, tenant and number are added: (0, .., 1) and (1, .., 0) get the same samples; mix them", summed
    ),
    Mistake("seed, tenant and number cancel each other in an exclusive or: mix them", xor),
    Mistake('the parts are joined without borders: tenant "a1", request 2 is tenant "a", request 12', joined),
    Mistake(
        "Python's `hash` of a text is another number in every process: use a digest, such as SHA-256", salted
    ),
    Mistake(
        "the seed has too few bits: soon two requests have the same", lambda *key: derived_seed(*key) >> 16
    ),
    Mistake("a seed has 32 bits: yours is larger", lambda *key: derived_seed(*key) << 20),
    Mistake("the seed depends on how often it was asked for: use `number`", CountsCalls()),
    Mistake(
        f"more than {SEED_LINES:,} {LINES} for request 100,000: the work must not grow with the number", drawn
    ),
    Mistake(
        "only the beginning of the name counts: use all of it",
        lambda seed, tenant, number: derived_seed(seed, tenant if tenant is None else tenant[:8], number),
    ),
    Mistake(
        "only the letters of the name count, not their order",
        lambda seed, tenant, number: derived_seed(
            seed, tenant if tenant is None else "".join(sorted(tenant)), number
        ),
    ),
    Mistake(
        "the engine's seed is cut to 32 bits",
        lambda seed, tenant, number: derived_seed(seed % 2**32, tenant, number),
    ),
)
