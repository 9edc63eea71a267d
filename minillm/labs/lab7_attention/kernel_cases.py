"""The cases of lab 7: each section of the kernel, the whole kernel, and its traffic."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm.bench.traffic import Shape, tiled
from minillm.labs.grader.cuda_kernels import Kernels, edited
from minillm.labs.grader.cuda_lab import Section
from minillm.labs.grader.lab import Case, Mistake

SOURCE = Path(__file__).with_name("lab7.cu")
TILE = DIM = 32


def random(*shape: int, seed: int = 0) -> Tensor:
    """Numbers that are the same in every run."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wrong(diagnosis: str, old: str, new: str) -> Mistake:
    """The finished file with `old` replaced."""
    return Mistake(diagnosis, edited(SOURCE, old, new))


def section(name: str) -> Section:
    """The section that is the body of function `name`."""
    return Section(str(SOURCE), name)


def case(name: str, run: Any, *arguments: Any) -> Case:
    """A case that calls `run` with these arguments."""
    return Case(name, partial(run, *arguments))


def load(first: int, n: int, kernels: Kernels) -> list[Any]:
    """The tile, and whether neighbouring threads read neighbouring addresses."""
    matrix, tile = random(n, DIM), torch.zeros(TILE, DIM)
    kernels.run("run_load", **{"from": matrix, "to": tile, "first": first, "n": n})
    fetched = 32 * kernels.counted.global_read_sectors
    return [tile, "coalesced" if fetched <= kernels.counted.global_read_bytes else "scattered reads"]


def scores(first_row: int, first_key: int, kernels: Kernels) -> Tensor:
    """The 32 x 32 scores of one tile."""
    q, k, found = random(TILE, DIM), random(TILE, DIM, seed=1), torch.zeros(TILE, TILE)
    kernels.run("run_scores", q=q, k=k, to=found, first_row=first_row, first_key=first_key, scale=0.25)
    return found


def softmax(tiles: int, kernels: Kernels) -> list[Tensor]:
    """Weights and state over tiles whose scores rise, fall, and are partly masked."""
    given = random(tiles, TILE, TILE, seed=2) + 3 * torch.tensor([0.0, 2.0, -1.0])[:tiles, None, None]
    given[-1][torch.ones(TILE, TILE).triu(1).bool()] = -torch.inf
    weights, state = torch.zeros(tiles, TILE, TILE), torch.zeros(tiles, 4 * TILE, 3)
    kernels.run("run_softmax", given=given, weights=weights, state=state, tiles=tiles)
    return [weights, state]


def values(factor: float, kernels: Kernels) -> Tensor:
    """The output after one tile."""
    out = random(TILE, DIM, seed=5)
    kernels.run(
        "run_values",
        given=random(TILE, TILE, seed=3),
        values=random(TILE, DIM, seed=4),
        out=out,
        factor=factor,
    )
    return out


def attention(heads: int, n: int, kernels: Kernels) -> Tensor:
    """The whole kernel, under `check`."""
    q, k, v = (random(heads, n, DIM, seed=seed) for seed in (6, 7, 8))
    out = torch.zeros(heads, n, DIM)
    kernels.run("run_attention", q=q, k=k, v=v, out=out, heads=heads, n=n, scale=DIM**-0.5)
    return out


def traffic(heads: int, n: int, kernels: Kernels) -> list[str]:
    """Whether K and V are read once for each tile of rows that sees them, and q and out only once."""
    attention(heads, n, kernels)
    counted = {tensor: sum(moved) for tensor, moved in kernels.counted.tensors.items()}
    expected = tiled(Shape(n, n, num_heads=heads, num_kv_heads=heads, head_dim=DIM))
    names = {"q": "q", "k": "k_cache", "v": "v_cache", "out": "out"}
    return [
        f"{name}: {'once per tile' if counted.get(name, 0) <= sum(expected[theirs]) else 'more than needed'}"
        for name, theirs in names.items()
    ]


WHOLE = (
    case("one tile", attention, 1, 32),
    case("less than a tile", attention, 2, 5),
    case("more than three tiles", attention, 2, 101),
)
V_BARRIER = "a barrier is missing before or after V overwrites K: the message names the two lines of the race"
