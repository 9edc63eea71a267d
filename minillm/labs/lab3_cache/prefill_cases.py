"""Task 3.7, many known tokens in one pass: cases of `prefill`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

from minillm.labs.grader.lab import Case, Side
from minillm.labs.lab3_cache.loop_cases import Loop, Setting, copied, rounded, tokens_of

Part = tuple[int, int, int]  # sequence, start, end
LENGTHS = (14, 7, 20)


def prefill_case(
    name: str, seed: int, *steps: Sequence[Part], side: Side = "answer", room: int = 0, anew: bool = False
) -> Case:
    """Prefill in steps. `room`: tokens for which the tables have blocks already; `anew`: copied tables."""

    def run(loop: Loop) -> Any:
        setting = Setting(len(LENGTHS))
        tokens = [tokens_of(seed + i, length) for i, length in enumerate(LENGTHS)]
        for i in range(len(LENGTHS)) if room else ():
            setting.grow(i, room)
        seen: list[Any] = []
        for step in steps:
            chunks = [setting.chunk(i, tokens[i][start:end], start) for i, start, end in step]
            answer = setting.run(loop, [copied(chunk) for chunk in chunks] if anew else chunks)
            seen.append(setting.counter.words() if side == "cost" else answer)
        return rounded(seen)

    return Case(name, run, side)


def in_turns(loop: Loop) -> Any:
    """Two prompts with the same first chunk and the same last chunk, in turns."""
    setting = Setting()
    first, last, middle = tokens_of(61, 6), tokens_of(62, 3), (tokens_of(63, 4), tokens_of(64, 4))
    seen = [setting.run(loop, [setting.chunk(i, first, 0)]) for i in (0, 1)]
    seen += [setting.run(loop, [setting.chunk(i, middle[i], 6)]) for i in (0, 1)]
    seen += [setting.run(loop, [setting.chunk(i, last, 10)]) for i in (0, 1)]
    return rounded(seen)


def in_its_blocks(loop: Loop) -> Any:
    """A sequence ends; another one gets its blocks. Their second chunks have the same tokens."""
    setting, last, seen = Setting(1), tokens_of(67, 5), list[Any]()
    for seed in (68, 69):
        seen.append(setting.run(loop, [setting.chunk(0, tokens_of(seed, 5), 0)]))
        seen.append(setting.run(loop, [setting.chunk(0, last, 5)]))
        setting.end(0)
    return rounded(seen)


def more_prefills(random: Random) -> Iterator[Case]:
    """Three prompts, each cut at random places, side by side."""
    for _ in range(2):
        cuts = [sorted({0, length, *random.sample(range(length), 2)}) for length in LENGTHS]
        steps: list[list[Part]] = []
        for n in range(3):
            step = [(i, at[n], at[n + 1]) for i, at in enumerate(cuts) if n + 1 < len(at)]
            random.shuffle(step)
            steps.append(step)
        seed = random.randrange(1000, 10**6)
        yield prefill_case(f"three prompts, cut at {cuts}", seed, *steps)


PREFILL_CASES = (
    prefill_case("a whole prompt", 11, [(0, 0, 14)]),
    prefill_case("one prompt in two chunks", 14, [(1, 0, 4)], [(1, 4, 7)]),
    prefill_case(
        "two prompts in chunks, side by side",
        17,
        [(0, 0, 5), (1, 0, 5)],
        [(0, 5, 10), (1, 5, 7)],
        [(0, 10, 14)],
    ),
    prefill_case(
        "three prompts that begin and end in other steps",
        20,
        [(2, 0, 6)],
        [(1, 0, 7), (2, 6, 15)],
        [(0, 0, 1), (2, 15, 20)],
    ),
    prefill_case(
        "block tables with more blocks than the chunk needs",
        23,
        [(0, 0, 6), (1, 0, 3)],
        [(0, 6, 9), (1, 3, 7)],
        room=30,
    ),
    prefill_case(
        "block tables in a new list in every step",
        26,
        [(0, 0, 5), (1, 0, 5)],
        [(0, 5, 14), (1, 5, 7)],
        side="aliasing",
        anew=True,
    ),
    Case("two prompts with common first and last chunks, in turns", in_turns, "aliasing"),
    Case("a sequence in the blocks of another that has ended", in_its_blocks, "aliasing"),
    prefill_case(
        "three prompts in chunks, the work",
        29,
        [(0, 0, 5), (1, 0, 5), (2, 0, 3)],
        [(0, 5, 10), (1, 5, 7)],
        [(0, 10, 14)],
        side="cost",
    ),
    prefill_case(
        "the work, with block tables in a new list", 32, [(1, 0, 5)], [(1, 5, 7)], side="cost", anew=True
    ),
)
