"""The kernel that lab 10 builds gives the bits of the engine's linear on tensor cores."""

from __future__ import annotations

import pytest
import torch

from minillm.labs.grader.cuda_kernels import finished
from minillm.labs.lab10_tensor_cores.fragment_cases import SOURCE, numbers
from minillm.labs.lab10_tensor_cores.kernel_cases import cancelling, linear
from minillm.ops.simt import SimtOps


@pytest.mark.parametrize("sizes", [(1, 16, 8), (7, 40, 72), (9, 33, 200), (70, 18, 136)], ids=str)
def test_the_lab_s_kernel_has_the_engine_s_bits(sizes: tuple[int, int, int]) -> None:
    tokens, out, columns = sizes
    x, weight = numbers(1, tokens, columns), numbers(2, out, columns)
    assert torch.equal(linear(x, weight, finished(SOURCE, "10.6")), SimtOps().linear(x, weight, rung="l5"))


def test_what_cancels_has_them_too_and_another_rung_has_not() -> None:
    """What is left of the sums is rounding error, which shows the order."""
    x, weight = cancelling(70, 18, 72)
    y = linear(x, weight, finished(SOURCE, "10.6"))
    assert torch.equal(y, SimtOps().linear(x, weight, rung="l5"))
    assert not torch.equal(y, SimtOps().linear(x, weight, rung="l2"))
