"""The finished file of lab 14 is right: compared with float64, in every batch, and what it packs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minillm.labs.grader.cuda_kernels import Edits, finished
from minillm.labs.grader.tiny_model import random_tensor
from minillm.labs.lab14_int4.group_cases import SIDE, SOURCE, codes_of
from minillm.labs.lab14_int4.kernel_cases import pack
from minillm.labs.lab14_int4.matmul_cases import matrix, product

LAUNCHERS = ("run_matmul", "run_linear")


def weights(chunks: Tensor, out: int, columns: int) -> Tensor:
    """The numbers of a matrix of chunks, float64 [out, columns]."""
    blocks, groups, _ = chunks.shape
    scales, minima = (
        chunks[..., : 2 * SIDE].view(torch.float32).double().view(blocks, groups, 2, SIDE).unbind(2)
    )
    words = chunks[..., 2 * SIDE :].view(blocks, groups, 8, SIDE).transpose(2, 3)  # .., output, line
    codes = codes_of(words.reshape(-1)).view(blocks, groups, SIDE, 64).double()
    found = scales.unsqueeze(3) * codes + minima.unsqueeze(3)  # blocks, groups, outputs, inputs
    return found.transpose(1, 2).reshape(blocks * SIDE, groups * 64)[:out, :columns]


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("sizes", [(1, 16, 64), (3, 21, 77), (9, 70, 130), (5, 3, 5)], ids=str)
def test_the_finished_products_are_right(launcher: str, sizes: tuple[int, int, int]) -> None:
    rows, out, columns = sizes
    chunks, x = matrix(1, out, columns), random_tensor(2, rows, columns)
    y = product(launcher, chunks, x, out, finished(SOURCE))
    exact = x.double() @ weights(chunks, out, columns).T
    assert (y - exact).abs().max() < 1e-5 * columns
    assert (y - x.double() @ weights(matrix(2, out, columns), out, columns).T).abs().max() > 0.1  # control


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_row_has_the_same_bits_in_every_batch(launcher: str) -> None:
    chunks, x = matrix(3, 18, 150), random_tensor(4, 13, 150)
    alone = product(launcher, chunks, x[:1].clone(), 18, finished(SOURCE))
    for rows in (2, 3, 4, 5, 8, 13):
        assert torch.equal(product(launcher, chunks, x[:rows].clone(), 18, finished(SOURCE))[:1], alone)


def test_control_a_path_of_its_own_for_one_row_has_other_bits() -> None:
    order = (
        "chunks[block * groups + group]",
        "chunks[block * groups + (rows == 1 ? groups - 1 - group : group)]",
    )
    column = "column = group * kGroup", "column = (rows == 1 ? groups - 1 - group : group) * kGroup"
    other = Edits(SOURCE, "14.8")(order, column)
    chunks, x = matrix(3, 18, 150), random_tensor(4, 4, 150)
    alone, together = (product("run_linear", chunks, x[:rows].clone(), 18, other) for rows in (1, 4))
    assert torch.allclose(together[:1], alone, atol=1e-4) and not torch.equal(together[:1], alone)


@pytest.mark.parametrize("shape", [(16, 64), (21, 77), (3, 5)], ids=str)
def test_a_packed_matrix_is_at_most_half_a_scale_away(shape: tuple[int, int]) -> None:
    w = random_tensor(5, *shape)
    chunks = pack(w, finished(SOURCE))
    found = weights(chunks, *shape)
    for first in range(0, shape[1], 64):
        part, near = w[:, first : first + 64].double(), found[:, first : first + 64]
        scale = (part.amax(1) - part.amin(1)) / 15
        error = (near - part).abs().amax(1)
        assert (error <= 0.5001 * scale + 1e-6).all() and error.max() > 0.2 * scale.min()
