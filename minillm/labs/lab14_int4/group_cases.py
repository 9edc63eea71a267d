"""The cases of tasks 14.1 to 14.4: one group of 16 outputs: pack it, unpack a line, sum codes, scale once.

A chunk is an int32 tensor [160]: 16 scales, 16 minima (the bits of floats), 8 lines of 16 words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from minillm.labs.grader.cuda_cost import within
from minillm.labs.grader.cuda_kernels import Kernels
from minillm.labs.grader.cuda_lab import Section
from minillm.labs.grader.lab import Case, Cost, Side, Words
from minillm.labs.grader.tiny_model import random_tensor
from minillm.ops.simt import SimtError

SOURCE = Path(__file__).with_name("lab14.cu")
SIDE, GROUP, CODES, LINES, CHUNK = 16, 64, 8, 8, 160


def section(number: str, name: str) -> Section:
    """The section of task `number`, the body of function `name`."""
    return Section(str(SOURCE), name, task=number)


def case(name: str, run: Callable[..., Any], *arguments: Any, side: Side = "answer") -> Case:
    """A case that calls `run` with these arguments."""
    return Case(name, partial(run, *arguments), side)


def run(kernels: Kernels, launcher: str, is_checked: bool = True, **arguments: Any) -> None:
    """Call a launcher.

    Raises:
        SimtError: its class names what happened, not in which function: a student may read x in a function of
            the own. What is past the end of one array may be close to another, so that is not named either.
    """
    try:
        kernels.run(launcher, is_checked, **arguments)
    except SimtError as error:
        account = re.split(":| in ", type(error).__name__)[0]
        if error.kind == "out of bounds":
            account = f"{error.kind}, {'write' if ' write of ' in error.detail[0] else 'read'}"
        error.__class__ = type(account, (SimtError,), {"place": account})
        raise


def chunks_of(seed: int, count: int) -> Tensor:
    """`count` chunks of random codes, int32 [count, 160]; scales near 0.1, minima near -0.7."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(-(1 << 31), 1 << 31, (count, CHUNK), generator=generator).int()
    words[:, :SIDE] = (0.1 + 0.02 * random_tensor(seed + 1, count, SIDE)).view(torch.int32)
    words[:, SIDE : 2 * SIDE] = (-0.7 + 0.2 * random_tensor(seed + 2, count, SIDE)).view(torch.int32)
    return words


# ---- 14.1 --------------------------------------------------------------------------------------------------


def on_a_grid(seed: int, low: float, step: float, count: int) -> Tensor:
    """`count` weights, each at most a third of a step away from a code: rounding has one right answer.

    The first three are in the middle of the grid; the smallest and the largest one follow somewhere.
    """
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(1, 15, (count,), generator=generator).float()
    codes += torch.randint(-1, 2, (count,), generator=generator) * 0.3125
    if count > 4:
        codes[count // 2], codes[count - 1] = 15, 0
    return low + step * codes


def packed(w: Tensor, output: int, count: int, kernels: Kernels, behind: float = 0.0) -> list[Any]:
    """[scale, minimum], the codes of the output, and whether the other 15 were left alone.

    The chunk holds other words before. Behind the first `count` weights lies `behind`, if it is not 0.
    """
    before = chunks_of(77, 1)[0]
    chunk = before.clone()
    given = torch.cat([w, torch.full((8,), behind)]) if behind else w.clone()
    run(kernels, "run_pack_group", chunk=chunk, w=given, output=output, count=count)
    columns, was = chunk.view(LINES + 2, SIDE), before.view(LINES + 2, SIDE)
    others = [o for o in range(SIDE) if o != output]
    kept = torch.equal(columns[:, others], was[:, others])
    scale, minimum = columns[:2, output].view(torch.float32).tolist()
    return [
        [scale, minimum],
        codes_of(columns[2:, output]),
        Words("the other outputs as before" if kept else "words of other outputs were changed"),
    ]


def codes_of(words: Tensor) -> Tensor:
    """int32 [8] words -> [8, 8]: a row for each line, input by input."""
    return words.unsqueeze(1) >> 4 * torch.arange(CODES) & 15


COUNTING = torch.arange(GROUP).float() % 16  # weights 0 .. 15, again and again: the code is the weight

PACK = (
    case("the weights 0 to 15, four times", packed, COUNTING, 3, GROUP),
    case("64 weights between -2 and 1.75", packed, on_a_grid(1, -2.0, 0.25, GROUP), 0, GROUP),
    case("64 weights between 5 and 5.9375", packed, on_a_grid(2, 5.0, 0.0625, GROUP), 15, GROUP),
    case("13 weights", packed, on_a_grid(3, -1.0, 0.125, 13), 7, 13),
    case(
        "20 weights, with larger numbers behind them",
        partial(packed, behind=50.0),
        on_a_grid(4, -3.0, 0.5, 20),
        9,
        20,
    ),
    case("64 equal weights", packed, torch.full((GROUP,), 0.75), 2, GROUP),
    case("one weight", packed, torch.tensor([-0.5]), 11, 1),
)


def more_pack(random: Random) -> Iterator[Case]:
    """Any grid and count."""
    for _ in range(3):
        low, step, count = random.randint(-40, 8) / 8, 2.0 ** -random.randint(0, 6), random.randint(5, GROUP)
        w = on_a_grid(random.randrange(10**6), low, step, count)
        yield case(f"{count} weights from {low}", packed, w, random.randrange(SIDE), count)


# ---- 14.2 --------------------------------------------------------------------------------------------------


def unpacked(line: Tensor, kernels: Kernels) -> list[Any]:
    """The codes of a line [8, 16], and whether the line is as before."""
    codes, before = torch.zeros(CODES, SIDE), line.clone()
    run(kernels, "run_unpack", line=before, codes=codes)
    return [codes, Words("the line as before" if torch.equal(before, line) else "the line was changed")]


def own_code() -> Tensor:
    """A line in which code k of output o is (k + o) % 16."""
    codes = (torch.arange(CODES).unsqueeze(1) + torch.arange(SIDE)) % 16
    words = (codes << 4 * torch.arange(CODES).unsqueeze(1)).sum(0)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


UNPACK = (
    case("code k of output o is (k + o) % 16", unpacked, own_code()),
    case("random words", unpacked, chunks_of(5, 1)[0, 32:48].clone()),
)


def more_unpack(random: Random) -> Iterator[Case]:
    """Any line."""
    seed = random.randrange(10**6)
    yield case(f"random words, seed {seed}", unpacked, chunks_of(seed, 1)[0, 48:64].clone())


# ---- 14.3 --------------------------------------------------------------------------------------------------


def dotted(seed: int, count: int, kernels: Kernels, behind: int = 0) -> Tensor:
    """The sums [16] over `count` inputs; x ends there, or `behind` numbers later. The codes do not end."""
    chunk, x, sums = chunks_of(seed, 1)[0], random_tensor(seed + 9, count + behind), torch.zeros(SIDE)
    run(kernels, "run_dot", chunk=chunk, x=x, sums=sums, count=count)
    return sums


def picked(place: int, kernels: Kernels) -> Tensor:
    """The codes of one input: x is 1 there and 0 elsewhere."""
    x, sums = torch.zeros(GROUP), torch.zeros(SIDE)
    x[place] = 1
    run(kernels, "run_dot", chunk=chunks_of(6, 1)[0], x=x, sums=sums, count=GROUP)
    return sums


DOT = (
    case("x is 1 at input 0", picked, 0),
    case("x is 1 at input 29", picked, 29),
    case("64 inputs", dotted, 11, GROUP),
    case("24 inputs", dotted, 12, 24),
    case("13 inputs", dotted, 13, 13),
    case("10 inputs, with other numbers behind them", partial(dotted, behind=60), 15, 10),
    case("one input", dotted, 14, 1),
)


def more_dot(random: Random) -> Iterator[Case]:
    """Any number of inputs."""
    for _ in range(2):
        count, seed = random.randint(1, GROUP), random.randrange(10**6)
        yield case(f"{count} inputs, seed {seed}", dotted, seed, count)


# ---- 14.4 --------------------------------------------------------------------------------------------------


def added(seed: int, count: int, is_scaled: bool, has_minima: bool, kernels: Kernels) -> Tensor:
    """y [16] after a group was added; scales or minima are 0 where they are not wanted."""
    chunk, x = chunks_of(seed, 1)[0], random_tensor(seed + 9, count) + 0.5
    if not is_scaled:
        chunk[:SIDE] = 0
    if not has_minima:
        chunk[SIDE : 2 * SIDE] = 0
    sums, y = 20 * random_tensor(seed + 3, SIDE), random_tensor(seed + 4, SIDE)
    run(kernels, "run_add", chunk=chunk, sums=sums, x=x, y=y, count=count)
    return y


def cost_of_add(kernels: Kernels) -> Cost:
    """The bytes of scales and minima that are read."""
    added(26, GROUP, True, True, kernels)
    return within("bytes of scales and minima", kernels.counted.tensors["chunk"][0], 2 * 4 * SIDE, 2)


ADD = (
    case("scales only", added, 21, GROUP, True, False),
    case("minima only", added, 22, GROUP, False, True),
    case("64 inputs", added, 23, GROUP, True, True),
    case("13 inputs", added, 24, 13, True, True),
    case("one input", added, 25, 1, True, True),
    case("what a group costs", cost_of_add, side="cost"),
)


def more_add(random: Random) -> Iterator[Case]:
    """Any number of inputs."""
    count, seed = random.randint(1, GROUP), random.randrange(10**6)
    yield case(f"{count} inputs, seed {seed}", added, seed, count, True, True)
