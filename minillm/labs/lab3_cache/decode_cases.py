"""Task 3.8, one token for every sequence: cases of `decode`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

from minillm.labs.grader.lab import Case, Side
from minillm.labs.lab3_cache.loop_cases import Loop, Setting, copied, rounded, tokens_of
from minillm.worker.prefill import prefill

FIRST_BLOCK = 30
LENGTHS = (14, 7, 20)  # so that no position of one sequence follows one of another


def decode_case(
    name: str,
    seed: int,
    *steps: Sequence[int],
    side: Side = "answer",
    room: int = 0,
    anew: bool = False,
    lengths: Sequence[int] = LENGTHS,
) -> Case:
    """Decode the sequences of each step, after the engine's prefill. The new tokens are given.

    `room`: tokens for which the tables have blocks already; `anew`: copied tables.
    """

    def run(loop: Loop) -> Any:
        setting = Setting(len(lengths), FIRST_BLOCK)
        for i, length in enumerate(lengths):
            prefill(setting.runner, [setting.chunk(i, tokens_of(seed + i, length), 0)])
            setting.grow(i, room)
        seen, at, answer = list[Any](), list(lengths), tokens_of(seed, 40)
        for step in steps:
            rows = [setting.row(i, answer.pop(), at[i]) for i in step]
            result = setting.run(loop, [copied(row) for row in rows] if anew else rows)
            seen.append(setting.counter.words() if side == "cost" else result)
            for i in step:
                at[i] += 1
        return rounded(seen)

    return Case(name, run, side)


def in_turns(loop: Loop) -> Any:
    """Two sequences of one length in turns. Their first new tokens are equal, their prompts are not."""
    setting = Setting(2, FIRST_BLOCK)
    for i in (0, 1):
        prefill(setting.runner, [setting.chunk(i, tokens_of(51 + i, 14), 0)])
    seen = [
        setting.run(loop, [setting.row(i, token if i == 0 or step == 0 else 90 - token, 14 + step)])
        for step, token in enumerate(tokens_of(53, 3))
        for i in (0, 1)
    ]
    return rounded(seen)


def in_its_blocks(loop: Loop) -> Any:
    """A sequence ends; another one gets its blocks and has the same new tokens."""
    setting, answer, seen = Setting(1, FIRST_BLOCK), tokens_of(57, 2), list[Any]()
    for seed in (58, 59):
        prefill(setting.runner, [setting.chunk(0, tokens_of(seed, 14), 0)])
        seen += [setting.run(loop, [setting.row(0, answer[n], 14 + n)]) for n in (0, 1)]
        setting.end(0)
    return rounded(seen)


def alike(loop: Loop) -> Any:
    """Two sequences in one batch: the same token at the same position, after different prompts."""
    setting = Setting(2, FIRST_BLOCK)
    for i in (0, 1):
        prefill(setting.runner, [setting.chunk(i, tokens_of(61 + i, 9), 0)])
    return rounded(
        [
            setting.run(loop, [setting.row(i, token, 9 + step) for i in (0, 1)])
            for step, token in enumerate(tokens_of(63, 2))
        ]
    )


def more_decodes(random: Random) -> Iterator[Case]:
    """Random batches of three sequences of random lengths."""
    for _ in range(2):
        lengths = [random.randrange(1, 25) for _ in range(3)]
        steps = [random.sample(range(3), random.randrange(1, 4)) for _ in range(5)]
        seed = random.randrange(1000, 10**6)
        yield decode_case(f"prompts of {lengths} tokens, batches {steps}", seed, *steps, lengths=lengths)


DECODE_CASES = (
    decode_case("one sequence, one token", 11, [0]),
    decode_case("one sequence, three tokens", 14, [0], [0], [0]),
    decode_case("two sequences, one token", 17, [0, 1]),
    decode_case("two sequences, five tokens, into a new block", 20, *[[0, 1]] * 5),
    decode_case("three sequences in changing batches", 23, [0, 1, 2], [2, 0], [1], [2, 1, 0]),
    decode_case("block tables with more blocks than needed", 26, [0, 1], [1, 0], room=40),
    decode_case("block tables in a new list in every step", 29, *[[0, 1]] * 3, side="aliasing", anew=True),
    Case("two sequences of one length in turns", in_turns, "aliasing"),
    Case("two sequences with the same token at the same position", alike, "aliasing"),
    Case("a sequence in the blocks of another that has ended", in_its_blocks, "aliasing"),
    decode_case("three sequences, four tokens, the work", 32, *[[0, 1, 2]] * 4, side="cost"),
    decode_case("the work, with tables in a new list", 35, *[[0, 1]] * 2, side="cost", anew=True),
)
