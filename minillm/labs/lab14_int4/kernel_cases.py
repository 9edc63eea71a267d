"""The cases of tasks 14.7 to 14.9: a warp and a chunk, the CUDA kernel, an engine with both products."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from random import Random
from typing import Any

import torch
from torch import Tensor

from minillm.config import SamplingParams
from minillm.labs.grader.cuda_cost import barriers, bytes_moved, sectors_read, within
from minillm.labs.grader.cuda_kernels import Kernels
from minillm.labs.grader.lab import Case, Cost, Words
from minillm.labs.grader.tiny_model import random_tensor, tiny_llm
from minillm.labs.lab14_int4.group_cases import CHUNK, GROUP, SIDE, case, chunks_of, run
from minillm.labs.lab14_int4.matmul_cases import (
    CHUNK_BYTES,
    MATMUL,
    ROWS,
    alone_and_together,
    any_size,
    bytes_of_matrix,
    product,
)

WARPS, LANES, SECTOR = 2, 32, 32
THREADS = WARPS * LANES

# ---- 14.7 --------------------------------------------------------------------------------------------------


def add_chunk(seed: int, rows: int, kernels: Kernels) -> list[Any]:
    """What two warps add for `rows` rows, [warps, rows, outputs], and whether both halves of a warp work.

    Before, sums[r] of thread t is t + r.
    """
    x = random_tensor(seed + 9, ROWS, GROUP)
    x[rows:] = 0
    sums, alone = torch.zeros(THREADS, ROWS), torch.zeros(THREADS, ROWS)
    run(kernels, "run_chunk", chunks=chunks_of(seed, WARPS), x=x, sums=sums, alone=alone)
    before = torch.arange(THREADS).unsqueeze(1) + torch.arange(ROWS)
    work = (alone != before)[:, 0].view(-1, SIDE).any(1)
    found = sums.view(WARPS, 2, SIDE, ROWS)[:, 0].transpose(1, 2)
    return [
        *found.contiguous(),
        Cost("both halves of a warp work" if bool(work.all()) else "half of the lanes do nothing"),
    ]


def cost_of_chunk(kernels: Kernels) -> list[Cost]:
    """What the chunks of two warps cost."""
    add_chunk(71, ROWS, kernels)
    counted, filling = kernels.counted, 4 * ROWS * GROUP
    sectors = counted.global_read_sectors - filling // SECTOR
    return [
        bytes_of_matrix(counted.tensors["chunks"][0], WARPS * CHUNK_BYTES),
        within("sectors fetched of the chunks", sectors, WARPS * CHUNK_BYTES // SECTOR),
        barriers(counted, 1),
    ]


WARP = (
    case("two warps, one row", add_chunk, 72, 1),
    case("two warps, four rows", add_chunk, 73, 4),
    case("what two chunks cost", cost_of_chunk, side="cost"),
)


def more_warp(random: Random) -> Iterator[Case]:
    """Any numbers."""
    seed, rows = random.randrange(10**6), random.randint(1, ROWS)
    yield case(f"two warps, {rows} rows, seed {seed}", add_chunk, seed, rows)


# ---- 14.8 --------------------------------------------------------------------------------------------------


def unchecked(kernels: Kernels) -> Tensor:
    """Three groups without looking for races: tells a missing barrier from x that was never copied."""
    chunks, x = matrix_of_kernel(), random_tensor(82, 3, 3 * GROUP)
    return product("run_linear", chunks, x, 2 * SIDE, kernels, checked=False)


def matrix_of_kernel() -> Tensor:
    """The chunks of 32 outputs and 192 inputs."""
    return chunks_of(81, 6).view(2, 3, CHUNK)


def cost(rows: int, out: int, columns: int, kernels: Kernels) -> list[Cost]:
    """What the kernel moves, and how often it waits."""
    any_size("run_linear", rows, out, columns, 83, kernels)
    counted = kernels.counted
    blocks, groups, down = -(-out // SIDE), -(-columns // GROUP), -(-rows // ROWS)
    across = -(-blocks // WARPS)
    return [
        bytes_of_matrix(counted.tensors["chunks"][0], blocks * groups * down * CHUNK_BYTES),
        *bytes_moved(counted, {"x": 4 * rows * columns * across, "y": 4 * rows * out}),
        sectors_read(counted, 1.1),
        barriers(counted, 2 * groups * across * down, 1.5),
    ]


KERNEL = (
    case("one row, 16 outputs, 64 inputs", any_size, "run_linear", 1, 16, 64, 84),
    case("4 rows, 32 outputs, 128 inputs", any_size, "run_linear", 4, 32, 128, 85),
    case("3 rows, 21 outputs, 77 inputs", any_size, "run_linear", 3, 21, 77, 86),
    case("9 rows, 70 outputs, 130 inputs", any_size, "run_linear", 9, 70, 130, 87),
    case("three groups, without looking for races", unchecked),
    case("9 rows, alone and together", alone_and_together, "run_linear", 9),
    case("what 8 rows and 64 outputs cost", cost, 8, 64, 128, side="cost"),
)


def more_kernel(random: Random) -> Iterable[Case]:
    """Any sizes."""
    sizes = random.randint(1, 12), random.randint(1, 70), random.randint(1, 200)
    name = "{} rows, {} outputs, {} inputs".format(*sizes)
    return [case(name, any_size, "run_linear", *sizes, random.randrange(10**6))]


# ---- 14.9 --------------------------------------------------------------------------------------------------


def generate(launcher: str, kernels: Kernels) -> list[Any]:
    """Texts and log-probabilities of an engine with the student's product, together and one by one.

    Each weight is packed by the student's pack_group when it is met first.
    """
    packed: dict[int, tuple[Tensor, Tensor]] = {}  # the weight stays alive, so its address stays its own

    def mine(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight.data_ptr() not in packed:
            packed[weight.data_ptr()] = weight, pack(weight, kernels)
        rows = x.reshape(-1, x.shape[-1]).float().contiguous()
        chunks = packed[weight.data_ptr()][1]
        y = product(launcher, chunks, rows, len(weight), kernels, checked=False)
        y = y.to(x.dtype).view(*x.shape[:-1], -1)
        return y if bias is None else y + bias

    params = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True, logprobs=2)
    prompts = ["the dog ran", "a cat", "b"]
    together, alone = answers(mine, prompts, params), answers(mine, prompts[:1], params)
    return [
        together,
        Words("alone as in a batch" if alone == together[:1] else "a text is another one alone"),
    ]


def pack(weight: Tensor, kernels: Kernels) -> Tensor:
    """The chunks of a weight [out, in], made by the student's pack_group."""
    w = weight.float().contiguous()
    chunks = torch.zeros(-(-len(w) // SIDE), -(-w.shape[1] // GROUP), CHUNK, dtype=torch.int32)
    run(kernels, "run_pack", False, w=w, chunks=chunks, out=len(w), columns=w.shape[1])
    return chunks


def answers(multiply: Callable[..., Tensor], prompts: list[str], params: SamplingParams) -> list[Any]:
    """[text, log-probabilities] of each prompt."""
    llm = tiny_llm(parts={"linear": multiply})
    outputs = [output.outputs[0] for output in llm.generate(prompts, params)]
    return [[output.text, [sorted(step.items()) for step in output.logprobs or ()]] for output in outputs]


ENGINE = (
    *(one for one in (*MATMUL, *KERNEL) if one.side == "cost"),
    case("on a CPU: 7 rows, 41 outputs, 200 inputs", any_size, "run_matmul", 7, 41, 200, 91),
    case("in CUDA: 7 rows, 41 outputs, 200 inputs", any_size, "run_linear", 7, 41, 200, 91),
    case("in CUDA: 70 rows, alone and together", alone_and_together, "run_linear", 70),
    case("three texts of 2 tokens, on a CPU", generate, "run_matmul"),
    case("three texts of 2 tokens, in CUDA", generate, "run_linear"),
)


def more_whole(random: Random) -> Iterable[Case]:
    """Any sizes, on a CPU and in CUDA."""
    sizes = random.randint(1, 12), random.randint(1, 70), random.randint(1, 200)
    name, seed = "{} rows, {} outputs, {} inputs".format(*sizes), random.randrange(10**6)
    return [case(f"{name}: {how}", any_size, how, *sizes, seed) for how in ("run_matmul", "run_linear")]
