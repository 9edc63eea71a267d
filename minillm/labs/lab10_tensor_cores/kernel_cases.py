"""The cases of tasks 10.5 to 10.7: the copy of a stage, the whole kernel, and an engine with it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from random import Random
from typing import Any

import torch
from torch import Tensor

from minillm.config import SamplingParams
from minillm.labs.grader.cuda_cost import barriers, bytes_moved, wavefronts, within
from minillm.labs.grader.cuda_kernels import Kernels
from minillm.labs.grader.lab import Case, Cost, Words
from minillm.labs.grader.tiny_model import tiny_llm
from minillm.labs.lab10_tensor_cores.fragment_cases import (
    CHUNKS,
    DEPTH,
    LANES,
    OUT,
    TOKENS,
    WARPS,
    WIDE,
    case,
    numbers,
)
from minillm.ops.simt import SimtError

STEPS, ROOM, SECTOR = DEPTH // 16, 72, 32

# ---- 10.5 --------------------------------------------------------------------------------------------------


def copied(
    shape: tuple[int, int], first: int, columns_at: list[int], is_few: bool, kernels: Kernels
) -> list[Any]:
    """The stage after the copies of a matrix of this shape, and the bytes. Behind the matrix lie 99s."""
    rows, columns = shape
    matrix = torch.cat([numbers(3, rows, columns), torch.full((40, columns), 99.0).bfloat16()])
    stage = run_copy(matrix, shape, first, columns_at, is_few, kernels)
    exist = max(0, min(len(stage), rows - first))
    chunks = exist * sum(min(CHUNKS, max(0, columns - at) // WIDE) for at in columns_at)
    return [
        stage.float(),
        *bytes_moved(kernels.counted, {"from": 2 * WIDE * chunks}),
        by_cp_async(kernels.counted.async_copy_bytes, 2 * WIDE * chunks),
        barriers(kernels.counted, 1 + len(columns_at)),
    ]


def run_copy(
    matrix: Tensor,
    shape: tuple[int, int],
    first: int,
    columns_at: list[int],
    is_few: bool,
    kernels: Kernels,
    is_waited: bool = True,
) -> Tensor:
    """The stage [8 or 32, 64] after it held fives and then was copied to."""
    stage = torch.zeros(TOKENS if is_few else OUT, DEPTH, dtype=torch.bfloat16)
    tensors = {"from": matrix, "to": stage, "columns_at": torch.tensor(columns_at, dtype=torch.int32)}
    sizes = {"copies": len(columns_at), "first": first, "rows": shape[0], "columns": shape[1]}
    # Without a wait the stage still holds what it held: the simulator's copies land as late as CUDA allows.
    kernels.run("run_copy", is_waited, **tensors, **sizes, is_waited=int(is_waited), is_few=int(is_few))
    return stage


def by_cp_async(copied: int, needed: int) -> Cost:
    """Whether all bytes went by cp.async."""
    return Cost(
        f"bytes by cp.async: {copied:,} of {needed:,}" if copied != needed else "all bytes by cp.async"
    )


def on_their_way(kernels: Kernels) -> list[Cost]:
    """What a full stage costs, and whether its copies are on their way when the function returns."""
    matrix, shape = numbers(4, OUT, DEPTH), (OUT, DEPTH)
    stage = run_copy(matrix, shape, 0, [0], False, kernels, is_waited=False)
    counted = kernels.counted
    # Filling the stage and reading it back need no bank twice: one wavefront for 32 numbers.
    given = OUT * (ROOM + DEPTH) // LANES
    fetched = counted.global_read_sectors - WARPS  # a sector of `columns_at` for each warp
    is_early = bool((stage != 5).any())
    return [
        Cost("something was copied before a commit" if is_early else "the copies are on their way"),
        within("sectors fetched", fetched, OUT * DEPTH * 2 // SECTOR),
        within("wavefronts of the copies", counted.shared_wavefronts - given, OUT),
    ]


COPIES = (
    case("32 rows, the first 64 columns", copied, (40, 128), 0, [0], False),
    case("32 rows from row 5, columns 64 to 127", copied, (40, 128), 5, [64], False),
    case("the last 8 of 40 rows", copied, (40, 64), 32, [0], False),
    case("the last 24 of 88 columns", copied, (33, 88), 1, [64], False),
    case("8 rows, of which 3 exist", copied, (11, 72), 8, [0], True),
    case("15 rows of 24 columns", copied, (20, 24), 5, [0], False),
    case("what 32 rows cost", on_their_way, side="cost"),
    case("a full stage, then the last 8 columns", copied, (12, 72), 0, [0, 64], True, side="aliasing"),
)


def more_copies(random: Random) -> Iterator[Case]:
    """Any matrix."""
    for _ in range(2):
        shape, is_few = (random.randint(1, 70), 8 * random.randint(1, 20)), random.random() < 0.5
        first, at = random.randrange(shape[0]), random.randrange(0, shape[1], DEPTH)
        name = f"a matrix of {shape[0]} x {shape[1]} from row {first}, column {at}"
        yield case(name, copied, shape, first, [at], is_few)


# ---- 10.6, 10.7 --------------------------------------------------------------------------------------------


def launch(kernels: Kernels, x: Tensor, weight: Tensor, y: Tensor, columns: int, is_checked: bool) -> None:
    """y = x W^T over `columns` columns, by the student's kernel.

    Raises:
        SimtError: its class names what happened to which array, not in which functions: whether the compiler
            puts load_matrices into its caller depends on what else is compiled.
    """
    sizes = {"tokens": len(x), "out": len(weight), "in": columns}
    try:
        kernels.run("run_linear", is_checked, x=x, weight=weight, y=y, **sizes)
    except SimtError as error:
        account = re.split(":| in ", type(error).__name__)[0]
        error.__class__ = type(account, (SimtError,), {"place": account})
        raise


def linear(x: Tensor, weight: Tensor, kernels: Kernels, is_checked: bool = True) -> Tensor:
    """The student's kernel: bfloat16 [tokens, out]."""
    y = torch.full((len(x), len(weight)), torch.nan, dtype=torch.bfloat16)
    launch(kernels, x, weight, y, x.shape[1], is_checked)
    return y


def product(tokens: int, out: int, columns: int, seed: int, kernels: Kernels) -> list[Any]:
    """y for random numbers, to the bit, and whether the inputs are kept."""
    x, weight = numbers(seed, tokens, columns), numbers(seed + 1, out, columns)
    before = x.clone(), weight.clone()
    y = linear(x, weight, kernels)
    kept = all(map(torch.equal, before, (x, weight)))
    return [y.float(), Words("x and weight as before" if kept else "x or weight was changed")]


def unchecked(kernels: Kernels) -> Tensor:
    """Three stages without checks: tells a missing barrier from numbers that were never copied."""
    return linear(numbers(7, 3, 136), numbers(8, 20, 136), kernels, is_checked=False).float()


def cancelling(tokens: int, out: int, half: int) -> tuple[Tensor, Tensor]:
    """x and weight whose products cancel: what is left of y is rounding error, which shows the order."""
    x, weight = numbers(9, tokens, half), numbers(10, out, half)
    return torch.cat([x, x], 1), torch.cat([weight, -weight], 1)


def alone_and_together(tokens: int, kernels: Kernels) -> list[Any]:
    """y of a batch whose products cancel, and whether some of its tokens have the same bits alone."""
    x, weight = cancelling(tokens, 18, 72)
    y = linear(x, weight, kernels)
    alone = [linear(x[i : i + 1].clone(), weight, kernels) for i in (0, tokens // 2, tokens - 1)]
    same = all(torch.equal(row[0], y[i]) for row, i in zip(alone, (0, tokens // 2, tokens - 1), strict=True))
    return [y.float(), Words("alone as in a batch" if same else "a token has other bits alone")]


def cost(tokens: int, out: int, columns: int, kernels: Kernels) -> list[Cost]:
    """What the kernel moves, and how often it waits."""
    linear(numbers(1, tokens, columns), numbers(2, out, columns), kernels)
    counted = kernels.counted
    across, down, stages = -(-out // OUT), -(-tokens // TOKENS), -(-columns // DEPTH)
    moved = {"weight": 2 * out * columns * down, "x": 2 * tokens * columns * across, "y": 2 * tokens * out}
    rounds = across * down * stages
    copies, reads = OUT + TOKENS, WARPS * STEPS * (4 + 2)  # of eight lanes with 16 bytes each
    return [
        *bytes_moved(counted, moved),
        by_cp_async(counted.async_copy_bytes, moved["weight"] + moved["x"]),
        within("mma", counted.mma, rounds * WARPS * STEPS),
        wavefronts(counted, rounds * (copies + reads), 1.25),
        barriers(counted, 2 * rounds, 1.5),
    ]


def overlap(kernels: Kernels) -> list[Cost]:
    """Whether the copy of a stage is started before the stage before it is multiplied.

    Of W there are only the columns of the first stage. So the copy of the second stops the kernel, and the
    count tells how much was multiplied by then.
    """
    x, weight, y = numbers(3, 1, 2 * DEPTH), numbers(4, 1, DEPTH), torch.zeros(1, 1, dtype=torch.bfloat16)
    try:
        launch(kernels, x, weight, y, 2 * DEPTH, is_checked=True)
    except SimtError as error:
        if error.kind != "out of bounds":
            raise
    is_early = kernels.counted.mma < WARPS * STEPS
    return [Cost(f"the next stage is copied {'while' if is_early else 'after'} one is multiplied")]


WHOLE = (
    case("one token, 16 outputs, 8 columns", product, 1, 16, 8, 1),
    case("8 tokens, 32 outputs, one full stage", product, 8, 32, 64, 2),
    case("7 tokens, 40 outputs, 72 columns", product, 7, 40, 72, 3),
    case("9 tokens, 33 outputs, 200 columns", product, 9, 33, 200, 4),
    case("9 tokens whose products cancel, alone and together", alone_and_together, 9),
    case("three stages, without looking for races", unchecked),
    case("what 9 tokens and 40 outputs cost", cost, 9, 40, 128, side="cost"),
    case("two stages", overlap, side="cost"),
)


def more_whole(random: Random) -> Iterable[Case]:
    """Any sizes."""
    sizes = random.randint(1, 20), random.randint(1, 70), 8 * random.randint(1, 24)
    name = "{} tokens, {} outputs, {} columns".format(*sizes)
    return [case(name, product, *sizes, random.randrange(10**6))]


def generate(kernels: Kernels) -> list[Any]:
    """Texts and log-probabilities of an engine with the student's kernel, together and one by one."""

    def mine(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        y = linear(x.reshape(-1, x.shape[-1]).contiguous(), weight.contiguous(), kernels, is_checked=False)
        y = y.view(*x.shape[:-1], -1)
        return y if bias is None else y + bias

    params = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True, logprobs=2)
    prompts = ["the dog ran", "a cat", "b"]
    together, alone = answers(mine, prompts, params), answers(mine, prompts[:1], params)
    return [
        together,
        Words("alone as in a batch" if alone == together[:1] else "a text is another one alone"),
    ]


def answers(multiply: Any, prompts: list[str], params: SamplingParams) -> list[Any]:
    """[text, log-probabilities] of each prompt."""
    llm = tiny_llm(dtype="bfloat16", parts={"linear": multiply})
    outputs = [output.outputs[0] for output in llm.generate(prompts, params)]
    return [[output.text, [sorted(step.items()) for step in output.logprobs or ()]] for output in outputs]


ENGINE = (
    *(one for one in WHOLE if one.side == "cost"),
    case("7 tokens, 41 outputs, 200 columns", product, 7, 41, 200, 6),
    case("70 tokens whose products cancel, alone and together", alone_and_together, 70),
    case("three texts of 2 tokens", generate),
)
