# ruff: noqa: E501 - a mutant is a line of the table
"""The kernels of layers with experts: beside plain Python on odd sizes, and with one wrong line each (mutants).

As in test_cuda_mutants.py each mutant is caught by the check that the table names: numbers and accesses in
`fast` and `check`, then the bytes beside those of the right kernel.
"""

from __future__ import annotations

import random as random_numbers
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import oracle
import pytest
import torch
from cases import random
from mutants import (
    BARRIER,
    BYTES,
    FLOAT32_ONLY,
    WRONG,
    compile_here,
    copy_sources,
    drop_lines,
    make_edits,
    verdict,
)
from torch import Tensor

from minillm.ops.contract import expert_rows
from minillm.ops.simt import KernelLibrary, flavour, schedule
from minillm.ops.simt.machine import machine
from minillm.toolchain.compiler import BuildFailed, find_compiler
from minillm.toolchain.sources import find_sources

try:
    machine()
except BuildFailed as reason:
    if find_compiler():
        raise  # sources that do not compile are a failure, not a skip
    pytest.skip(f"simulator: {reason}", allow_module_level=True)

# (kernel, name of the mutant, text, replacement, what catches it). "linear_experts" is in linear_l2.cu and row_tiles.h.
MUTANTS = [
    ("group", "no barrier after the sums", f"{BARRIER}  // the sums of all warps are written", "", "out of bounds"),
    ("group", "a thread's last pair forgotten", "for (int pair = first; pair < last; pair++) {\n    int", "for (int pair = first; pair + 1 < last; pair++) {\n    int", WRONG),
    ("group", "a pair too many", "min(first + each, p.pairs)", "first + each", "out of bounds"),
    ("group", "rows of its own warp counted twice", "if (w < warp)", "if (w <= warp)", WRONG),
    ("group", "rows of lanes before forgotten", "row = up_to_me - mine", "row = 0", WRONG),
    ("group", "half of a warp", "step < 32; step *= 2", "step < 16; step *= 2", WRONG),
    ("group", "its own pairs counted as lower", "other < expert", "other <= expert", WRONG),
    ("group", "what does not exist is ignored", "expert < 0 || expert >= p.num_experts ?", "false ?", WRONG),
    ("group", "what does not exist has a place", "expert < p.num_experts ? row : -1", "row", WRONG),
    ("group", "number in the row for the token", "pair / p.per_token", "pair % p.per_token", WRONG),
    ("group", "no end of the last expert", "p.num_experts + 1, kThreads", "p.num_experts, kThreads", WRONG),
    ("linear_l5_experts", "tiles of another size", "find_tile<S::kTokens>", "find_tile<16>", WRONG),
    ("linear_l5_experts", "blocks without a tile go on", "if (tile.end == 0) return;", "", BYTES),
    ("linear_l5_experts", "rows of the next expert", "own.rows = tile.end;", "", "race"),
    ("linear_l5_experts", "the first matrix", "above * own.in", "0 * above * own.in", WRONG),
    ("linear_l5_experts", "too few tiles", "(kRows - 1)) / kRows", "(kRows - 2)) / kRows", WRONG),
    ("linear_l5_experts", "the first tile again and again", "start + within * kRows", "start", WRONG),
    ("linear_experts", "experts lie closer", "* p.pitch;", "* p.out;", WRONG),
    ("linear_experts", "bias of the first expert", "if (own.bias) own.bias = static_cast<const T*>(own.bias) + above;", "", WRONG),
    ("linear_experts", "rows of the next expert", "own.rows = tile.end;", "", WRONG),
    ("linear_experts", "a tile of two experts", "within < tiles)", "within <= tiles)", "out of bounds"),
    ("linear_experts", "the first 32 experts counted again", "tile -= __shfl_sync(0xffffffff, up_to_me, 31);", "", "out of bounds"),
    ("linear_experts", "only 32 experts", "from < p.num_experts; from += 32", "from < 32; from += 32", WRONG),
    ("linear_experts", "too few tiles", "(kRows - 1)) / kRows", "(kRows - 2)) / kRows", WRONG),
    ("linear_experts", "tiles of lanes before forgotten", "if (lane >= step) up_to_me += before;", "", "out of bounds"),
    ("linear_experts", "the first tile again and again", "start + within * kRows", "start", WRONG),
    ("linear_experts", "blocks without a tile go on", "if (tile.end == 0) return;", "", BYTES),
    ("combine", "a pair without a row is read", "place > 0 ? place : 0", "place", "out of bounds"),
    ("combine", "a pair without a row counts nothing", "? NAN :", "? 0.0f :", WRONG),
    ("combine", "a pair without a row takes the first", "place < 0 ? NAN : weight", "weight", WRONG),
]  # fmt: skip


def sorted_pairs(chosen: Tensor, experts: int) -> list[Tensor]:
    """`starts`, `order` and `place` of group.cu, by Python's stable sort."""
    numbers = [e if 0 <= e < experts else experts for e in chosen.flatten().tolist()]
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    starts = [sum(n < e for n in numbers) for e in range(experts + 1)]
    place = [-1] * len(numbers)
    for row, pair in enumerate(order[: starts[-1]]):
        place[pair] = row
    tokens = [pair // chosen.shape[1] for pair in order]
    return [torch.tensor(numbers, dtype=torch.int64) for numbers in (starts, tokens, place)]


def run_group(run: Callable[..., None], chosen: Tensor, experts: int) -> list[Tensor]:
    pairs = chosen.numel()
    starts = torch.full((experts + 1,), -9, dtype=torch.int32)
    order, place = torch.full((2, pairs), -9, dtype=torch.int64)
    sizes = {"pairs": pairs, "per_token": chosen.shape[1], "num_experts": experts}
    run(chosen=chosen, starts=starts, order=order, place=place, **sizes)
    return [starts.long(), order, place]


def draw(rows: int, per_token: int, experts: int, *, outside: bool = False) -> Tensor:
    """Random experts, often the same; `outside`: some of them do not exist."""
    rng, wrong = random_numbers.Random(rows), (-1, experts, 2**40)
    chosen = [min(rng.randrange(experts), rng.randrange(experts)) for _ in range(rows * per_token)]
    if outside:
        chosen[::7] = [wrong[i % 3] for i in range(len(chosen[::7]))]
    return torch.tensor(chosen, dtype=torch.int64).view(rows, per_token)


def group(run: Callable[..., None]) -> tuple[Tensor, Tensor]:
    """More pairs than threads."""
    chosen = draw(203, 3, 5, outside=True)
    found, exact = run_group(run, chosen, 5), sorted_pairs(chosen, 5)
    return torch.cat(found).float(), torch.cat(exact).double()


COUNTS = {  # rows of each expert: two tiles and more, one row each, experts beyond 32
    "some": [0, 20, 0, 5, 33, 16],
    "one each": [1] * 9,
    "many": [3 * (e % 3 == 1) + 14 * (e == 39) for e in range(40)],
}


class Products:
    """Experts of 21 outputs, filled up with NaN. `rows` more than the experts have belong to none."""

    def __init__(
        self, counts: list[int], rows: int | None = None, dtype: torch.dtype = torch.float32, size: int = 70
    ) -> None:
        self.starts = [sum(counts[:e]) for e in range(len(counts) + 1)]
        self.rows, self.size = rows or self.starts[-1], size
        self.x, shape = random(self.rows, size, dtype=dtype), (len(counts), expert_rows(21))
        self.weight = torch.full((*shape, size), torch.nan, dtype=dtype)
        self.bias = torch.full(shape, torch.nan, dtype=dtype)
        for e in range(len(counts)):
            self.weight[e, :21] = random(21, size, dtype=dtype, seed=e + 1)
            self.bias[e, :21] = random(21, dtype=dtype, seed=e)

    def run(self, run: Callable[..., None]) -> Tensor:
        y, starts = torch.full((self.rows, 21), 7.0), torch.tensor(self.starts, dtype=torch.int32)
        sizes = {
            "rows": self.rows,
            "in": self.size,
            "out": 21,
            "num_experts": len(self.bias),
            "pitch": expert_rows(21),
        }
        run(x=self.x, weight=self.weight, bias=self.bias, y=y, starts=starts, **sizes)
        return y

    def expert_by_expert(self, linear: Callable[..., Tensor], dtype: torch.dtype) -> Tensor:
        y = torch.full((self.rows, 21), 7.0, dtype=dtype)
        for e, (start, end) in enumerate(pairwise(self.starts)):
            y[start:end] = linear(self.x[start:end], self.weight[e, :21], self.bias[e, :21])
        return y


def linear_experts(run: Callable[..., None]) -> tuple[Tensor, Tensor]:
    cases = [*map(Products, COUNTS.values()), Products([2, 0, 3], rows=9)]
    found = torch.cat([products.run(run) for products in cases])
    exact = [products.expert_by_expert(oracle.linear, torch.float64) for products in cases]
    return found.nan_to_num(9e9), torch.cat(exact)


ON_TENSOR_CORES = [*COUNTS.values(), [70, 3]]  # averages for each shape of tile


def on_tensor_cores(counts: list[int]) -> Products:
    return Products(counts, dtype=torch.bfloat16, size=136)


def linear_l5_experts(run: Callable[..., None]) -> tuple[Tensor, Tensor]:
    """bfloat16, the results in float32."""
    cases = [on_tensor_cores(counts) for counts in ON_TENSOR_CORES]
    found = torch.cat([products.run(run) for products in cases])
    exact = [products.expert_by_expert(oracle.linear, torch.float64) for products in cases]
    return found, torch.cat(exact)


def combine(run: Callable[..., None]) -> tuple[Tensor, Tensor]:
    """One token has a pair without a row."""
    outputs, weights, y = random(5, 130), random(3, 2, seed=1), torch.zeros(3, 130)
    place = torch.tensor([[4, 0], [1, -1], [3, 2]])
    run(outputs=outputs, weights=weights, place=place, y=y, rows=3, size=130, per_token=2)
    exact = (outputs[place].double() * weights.double().unsqueeze(-1)).sum(1)
    exact[1] = 9.0
    return y.nan_to_num(9.0), exact


FILES = {
    "group": ("group.cu",),
    "linear_experts": ("linear_l2.cu", "row_tiles.h"),
    "linear_l5_experts": ("linear_l5.cu", "row_tiles.h"),
    "combine": ("combine.cu",),
}
RUNS = {
    "group": group,
    "linear_experts": linear_experts,
    "linear_l5_experts": linear_l5_experts,
    "combine": combine,
}


def build(kernel: str, folder: Path, old: str = "", new: str = "") -> KernelLibrary:
    """The kernel with `old` replaced in the first of its files that has it, for float32 only."""
    copy_sources(folder, (*FILES[kernel], "dispatch.h"))
    changed = next((name for name in FILES[kernel] if old in (folder / name).read_text()), FILES[kernel][0])
    make_edits(folder, [(changed, old, new)] if old else [])
    drop_lines(folder / "dispatch.h", FLOAT32_ONLY)
    drop_lines(
        folder / FILES[kernel][0], ("if (p.dtype == DType::f16)",)
    )  # it would take as long again to compile
    return compile_here(folder, "experts.cu", [f'-DKERNEL="{FILES[kernel][0]}"', f"-DIS_{kernel.upper()}"])


def run_library(
    case: Callable[[Callable[..., None]], tuple[Tensor, Tensor]], library: KernelLibrary
) -> tuple[Tensor, Tensor]:
    return case(lambda **arguments: library.run("run", **arguments))


CASES = {kernel: partial(run_library, case) for kernel, case in RUNS.items()}


def is_right(found: Tensor, exact: Tensor) -> bool:
    return oracle.error(found, exact) <= 2e-6


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> dict[str, KernelLibrary]:
    """The unchanged kernels."""
    return {kernel: build(kernel, tmp_path_factory.mktemp(kernel)) for kernel in RUNS}


@pytest.mark.parametrize("kernel", RUNS)
def test_the_right_kernel_survives(kernel: str, right: dict[str, KernelLibrary]) -> None:
    assert verdict(CASES[kernel], right[kernel], right[kernel], is_right) == "survived"


@pytest.mark.parametrize(
    ("kernel", "old", "new", "caught_by"),
    [pytest.param(k, old, new, by, id=f"{k}: {what}") for k, what, old, new, by in MUTANTS],
)
def test_each_mutant_is_caught(
    kernel: str, old: str, new: str, caught_by: str, right: dict[str, KernelLibrary], tmp_path: Path
) -> None:
    mutant = build(kernel, tmp_path, old, new)
    assert verdict(CASES[kernel], mutant, right[kernel], is_right) == caught_by


def test_each_barrier_of_group_has_a_mutant() -> None:
    (source,) = find_sources("cuda", "group.cu")
    dropped = [old for kernel, _, old, _, _ in MUTANTS if kernel == "group" and BARRIER in old]
    assert len(dropped) == source.read_text().count(BARRIER) == 1


@pytest.mark.parametrize("name", ["fast", "check"])
@pytest.mark.parametrize(
    "order", [{}, {"reverse": True}, {"seed": 3}], ids=["forward", "reverse", "shuffled"]
)
def test_pairs_are_grouped_as_python_sorts_them(
    name: str, order: dict[str, int], right: dict[str, KernelLibrary]
) -> None:
    """No pairs, one expert, 1,000 experts, more pairs than threads, experts that do not exist, equal experts."""
    cases = [
        (draw(*shape), shape[2]) for shape in [(0, 2, 4), (1, 1, 1), (40, 1, 1), (17, 3, 9), (300, 2, 7)]
    ]
    cases += [(draw(90, 3, 6, outside=True), 6), (torch.full((130, 2), 3), 5), (torch.full((5, 1), -1), 2)]
    if name == "fast":
        cases.append((draw(33, 8, 1000), 1000))
    with flavour(name), schedule(**order):
        for chosen, experts in cases:
            found = run_group(lambda **a: right["group"].run("run", **a), chosen, experts)
            for mine, exact in zip(found, sorted_pairs(chosen, experts), strict=True):
                assert torch.equal(mine, exact), (chosen.shape, experts)
            exists = chosen[(chosen >= 0) & (chosen < experts)]
            by_torch = exists.argsort(stable=True)
            if len(exists) == chosen.numel():
                assert torch.equal(found[1], by_torch // chosen.shape[1])


@pytest.mark.parametrize(
    "order", [{}, {"reverse": True}, {"seed": 3}], ids=["forward", "reverse", "shuffled"]
)
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_each_row_has_the_bits_of_linear(
    counts: list[int], order: dict[str, int], right: dict[str, KernelLibrary]
) -> None:
    def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y, sizes = torch.zeros(len(x), 21), {"rows": len(x), "in": 70, "out": 21}
        right["linear_experts"].run("run_linear", x=x, weight=weight, bias=bias, y=y, **sizes)
        return y

    products = Products(counts)
    with schedule(**order):
        found = products.run(lambda **arguments: right["linear_experts"].run("run", **arguments))
    assert torch.equal(found, products.expert_by_expert(linear, torch.float32))


@pytest.mark.parametrize("counts", ON_TENSOR_CORES, ids=[*COUNTS, "many rows each"])
def test_each_row_has_the_bits_of_linear_l5(counts: list[int], right: dict[str, KernelLibrary]) -> None:
    library, products = right["linear_l5_experts"], on_tensor_cores(counts)

    def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y, sizes = torch.zeros(len(x), 21), {"rows": len(x), "in": products.size, "out": 21}
        library.run("run_linear", x=x, weight=weight, bias=bias, y=y, **sizes)
        return y

    found = products.run(lambda **arguments: library.run("run", **arguments))
    assert torch.equal(found, products.expert_by_expert(linear, torch.float32))
