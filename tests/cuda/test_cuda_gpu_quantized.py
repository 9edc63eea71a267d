"""Products, lookups and experts of quantised matrices on a GPU; see test_cuda_gpu.py.

test_cuda_quantized.py makes the same checks on more forms and shapes, in the simulator.
"""

from __future__ import annotations

import pytest
import torch
from cases import DTYPES, random
from quantized_experts import check_experts
from quantized_matrices import matrix, packed
from quantized_products import CODES_AND_INT8_X, check_product, is_right, with_wrong_scales
from test_cuda_gpu import DEVICE, ON_GPU, broken_context, on_gpu, ops

from minillm.config.quantization import CODES, Codes, Form
from minillm.ops.cuda import CudaOps

__all__ = ["broken_context", "ops"]  # fixtures
pytestmark = pytest.mark.gpu
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "bf16", "f16"])
each_form = pytest.mark.parametrize(("codes", "int8_x"), CODES_AND_INT8_X)


@each_dtype
@each_form
def test_products(ops: CudaOps, codes: Codes, int8_x: bool, dtype: torch.dtype) -> None:
    for n, (out, size, rows) in enumerate([(17, 130, 70), *([(1000, 2048, 513)] if ON_GPU else [])]):
        for minimum in (False, True):
            form = Form(codes, 32, wide=minimum, minimum=minimum, int8_x=int8_x)
            made = matrix(form, out, size, ordered=minimum, seed=n)
            check_product(ops, made, dtype, rows, with_bias=minimum, device=DEVICE)


@each_dtype
def test_scales_that_are_one_percent_wrong_are_noticed(ops: CudaOps, dtype: torch.dtype) -> None:
    """The control."""
    for codes in CODES:
        made, x = matrix(Form(codes, 32), 17, 130), random(3, 130, dtype=dtype)
        found = ops.linear(on_gpu(x), packed(ops, with_wrong_scales(made), dtype))
        assert is_right(found.cpu(), made, x).double().mean() < 0.75


@each_dtype
@each_form
def test_experts(ops: CudaOps, codes: Codes, int8_x: bool, dtype: torch.dtype) -> None:
    check_experts(ops, Form(codes, 32, minimum=True, int8_x=int8_x), dtype, DEVICE)
