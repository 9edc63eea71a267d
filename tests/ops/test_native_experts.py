"""The router and the experts, on every instruction set: ties, NaN, unused experts, rows alone or not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import oracle
import pytest
import quantized_matrices
import torch
from cases import BOUND
from native import DTYPES, REFERENCE, check, random, threads
from quantized_products import CODES_AND_INT8_X, with_wrong_scales
from torch import Tensor

from minillm.config.quantization import Codes, Form
from minillm.ops import variants
from minillm.ops.contract import Matrix, PackedWeight, Routing, expert_rows
from minillm.ops.cpu import CpuOps
from minillm.ops.quantized import QuantizedMatrix, rounded_x

HIDDEN, SIZE, COUNT, TOKEN = 33, 21, 7, 3
ACTIVATION = "gelu_tanh"


def chosen_by(row: list[float], count: int) -> list[int]:
    """The rule in words: NaN first, then the highest; of equal ones the lower number; in rising order."""
    order = sorted(range(len(row)), key=lambda i: (not math.isnan(row[i]), -row[i], i))
    return sorted(order[:count])


# ---- the router -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 3, 8, 17, 128])
@pytest.mark.parametrize("renormalize", [False, True])
def test_route(native_ops: CpuOps, dtype: torch.dtype, count: int, renormalize: bool) -> None:
    for per_token in {1, min(4, count), count}:
        logits = random(37, count, dtype=dtype, seed=count)
        chosen, weights = native_ops.route(logits, per_token, renormalize)
        assert chosen.tolist() == [chosen_by(row, per_token) for row in logits.tolist()]
        exact = logits.double().gather(1, chosen).softmax(-1)
        if not renormalize:
            exact = logits.double().softmax(-1).gather(1, chosen)
        check(weights, REFERENCE.route(logits, per_token, renormalize).weights, exact)
        alone = [native_ops.route(row, per_token, renormalize) for row in logits.split(1)]
        assert torch.equal(torch.cat([routing.chosen for routing in alone]), chosen)
        assert torch.equal(torch.cat([routing.weights for routing in alone]), weights)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_go_to_the_lower_number(native_ops: CpuOps, dtype: torch.dtype) -> None:
    logits = torch.zeros(5, 40, dtype=dtype)
    logits[1, [38, 20, 3]] = 1.0
    logits[2] = torch.arange(40) % 2
    logits[3] = -torch.arange(40).flip(0) // 4
    logits[4, ::2] = -0.0  # equal to 0.0
    chosen, weights = native_ops.route(logits, 4, True)
    assert chosen.tolist() == [[0, 1, 2, 3], [0, 3, 20, 38], [1, 3, 5, 7], [35, 36, 37, 39], [0, 1, 2, 3]]
    assert torch.equal(chosen, REFERENCE.route(logits, 4, True).chosen)
    assert torch.equal(weights[0], torch.full((4,), 0.25))


def test_nan_counts_as_the_highest_and_makes_the_weights_nan(native_ops: CpuOps) -> None:
    nan, inf = math.nan, math.inf
    logits = torch.tensor([[1.0, nan, inf, 0.0], [nan, nan, nan, nan], [-inf, -inf, -inf, 0.0]])
    for renormalize in (False, True):
        chosen, weights = native_ops.route(logits, 2, renormalize)
        assert chosen.tolist() == [[1, 2], [0, 1], [0, 3]]
        assert weights[:2].isnan().all()
        assert weights[2].tolist() == [0.0, 1.0]


# ---- the experts ----------------------------------------------------------------------------------


def stack(out: int, size: int, dtype: torch.dtype, seed: int, bias: bool) -> Matrix:
    """The matrices of all experts, one below the other; the rows between them are NaN."""
    rows = expert_rows(out)
    weight, offset = random(COUNT * rows, size, seed=seed, scale=0.3), random(COUNT * rows, seed=seed + 1)
    for part in (weight, offset):
        part.unflatten(0, (COUNT, rows))[:, out:] = math.nan
    return Matrix(weight.to(dtype), offset.to(dtype) if bias else None)


def layer(dtype: torch.dtype, bias: bool) -> tuple[Matrix, Matrix]:
    return stack(2 * SIZE, HIDDEN, dtype, 1, bias), stack(HIDDEN, SIZE, dtype, 5, bias)


def packed(ops: CpuOps, matrix: Matrix) -> Matrix:
    assert isinstance(matrix.weight, Tensor)
    weight = ops.prepare_weight(matrix.weight.clone())
    assert isinstance(weight, PackedWeight)
    return Matrix(weight, matrix.bias)


def exact_experts(
    x: Tensor,
    routing: Routing,
    gate_up: Matrix,
    down: Matrix,
    rounded: Callable[[Tensor], Tensor] = torch.Tensor.double,
) -> Tensor:
    """Row by row in float64; `rounded` is what a product makes of its activations."""

    def expert(matrix: Matrix, number: int, out: int, x: Tensor) -> Tensor:
        assert isinstance(matrix.weight, Tensor)
        part = slice(number * expert_rows(out), number * expert_rows(out) + out)
        y = matrix.weight[part].double() @ rounded(x)
        return y if matrix.bias is None else y + matrix.bias[part].double()

    rows = []
    for row, chosen, weights in zip(x.double(), routing.chosen.tolist(), routing.weights, strict=True):
        total = torch.zeros(HIDDEN, dtype=torch.float64)
        for number, weight in zip(chosen, weights.double(), strict=True):
            gate, up = expert(gate_up, number, 2 * SIZE, row).chunk(2)
            inner = torch.nn.functional.gelu(gate, approximate="tanh") * up
            total += weight * expert(down, number, HIDDEN, inner)
        rows.append(total)
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
def test_experts(native_ops: CpuOps, dtype: torch.dtype, bias: bool) -> None:
    """Against float64; packed or plain; and the composition of single ops, bit for bit."""
    plain = layer(dtype, bias)
    matrices = [packed(native_ops, matrix) for matrix in plain]
    for rows in (1, 2, 17, 40):
        x = random(rows, HIDDEN, dtype=dtype, seed=rows)
        routing = native_ops.route(random(rows, COUNT, seed=3), TOKEN, True)
        found = native_ops.experts(x, routing, *matrices, ACTIVATION)
        expected = REFERENCE.experts(x, routing, *plain, ACTIVATION)
        check(found, expected, exact_experts(x, routing, *plain), rows)
        assert torch.equal(native_ops.experts(x, routing, *plain, ACTIVATION), found)
        assert torch.equal(expert_by_expert(native_ops, x, routing, *plain), found)


def expert_by_expert(ops: CpuOps, x: Tensor, routing: Routing, gate_up: Matrix, down: Matrix) -> Tensor:
    """The experts as linear, act_and_mul, linear on each row, summed in rising order and rounded once."""
    return variants.experts(ops, x, routing, gate_up, down, ACTIVATION)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("codes", "int8_x"), CODES_AND_INT8_X)
def test_quantised_experts(native_ops: CpuOps, codes: Codes, int8_x: bool, dtype: torch.dtype) -> None:
    """Against float64; and the composition of single products, bit for bit, on any number of threads."""
    form = Form(codes, 32, minimum=codes == "uint4", int8_x=int8_x)
    made = [
        replace(quantized_matrices.matrix(form, COUNT * expert_rows(out), size, seed=size), dtype=dtype)
        for out, size in ((2 * SIZE, HIDDEN), (HIDDEN, SIZE))
    ]
    for matrix in made:
        matrix.scales.mul_(16 if form.bits == 4 else 1)  # else the biases were all that counts
    biases = [random(matrix.shape[0], seed=5, scale=0.1).to(dtype) for matrix in made]
    gate_up, down = map(Matrix, made, biases)

    def run(given: list[QuantizedMatrix], x: Tensor, routing: Routing) -> Tensor:
        whole = [quantized_matrices.packed(native_ops, matrix, dtype) for matrix in given]
        return native_ops.experts(x, routing, *map(Matrix, whole, biases), ACTIVATION)

    for rows in (1, 17, 40):
        x = random(rows, HIDDEN, dtype=dtype, seed=rows)
        routing = native_ops.route(random(rows, COUNT, seed=3), TOKEN, True)
        found = run(made, x, routing)
        for count in (1, 3):
            with threads(count):
                assert torch.equal(run(made, x, routing), found)
                assert torch.equal(expert_by_expert(native_ops, x, routing, gate_up, down), found)
        if int8_x and dtype != torch.float32:
            continue  # a bfloat16 halfway between two codes gets either: the bits above say more
        rounded = (lambda row: rounded_x(row.float(), form, None).double()) if int8_x else torch.Tensor.double
        plain = map(Matrix, [matrix.dequantize() for matrix in made], biases)
        exact = exact_experts(x, routing, *plain, rounded)
        assert oracle.error(found, exact) <= BOUND[dtype], rows
        wrong = run([with_wrong_scales(matrix) for matrix in made], x, routing)
        assert oracle.error(wrong, exact) > BOUND[dtype], "the control"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_the_others(native_ops: CpuOps, dtype: torch.dtype) -> None:
    matrices = [packed(native_ops, matrix) for matrix in layer(dtype, bias=True)]
    x, logits = random(40, HIDDEN, dtype=dtype), random(40, COUNT, seed=3)
    logits[20:] = 0  # all rows tie, and share their experts

    def run(rows: Tensor) -> Tensor:
        return native_ops.experts(
            x[rows], native_ops.route(logits[rows], TOKEN, False), *matrices, ACTIVATION
        )

    every = torch.arange(40)
    together = run(every)
    assert all(torch.equal(run(every[i : i + 1])[0], together[i]) for i in range(40))
    assert torch.equal(run(every.flip(0)).flip(0), together)
    for count in (1, 2, 3):
        with threads(count):
            assert torch.equal(run(every), together)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_nan_spoils_only_itself(native_ops: CpuOps, dtype: torch.dtype) -> None:
    """It gets experts like any other row; the rows that share them keep their bits."""
    matrices = [packed(native_ops, matrix) for matrix in layer(dtype, bias=True)]
    x, logits = random(9, HIDDEN, dtype=dtype), random(9, COUNT, dtype=dtype, seed=3)
    expected = native_ops.experts(x, native_ops.route(logits, TOKEN, True), *matrices, ACTIVATION)
    x[4], logits[4] = math.nan, math.nan
    found = native_ops.experts(x, native_ops.route(logits, TOKEN, True), *matrices, ACTIVATION)
    others = torch.arange(9) != 4
    assert torch.equal(found[others], expected[others])
    assert found[4].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_unused_experts_are_not_read(native_ops: CpuOps, dtype: torch.dtype) -> None:
    """Experts full of NaN, matrices and biases, do not touch the result; the control uses one of them."""
    plain, x = layer(dtype, bias=True), random(5, HIDDEN, dtype=dtype)
    routing = Routing(torch.tensor([[1, 4]] * 5), torch.full((5, 2), 0.5))
    expected = native_ops.experts(x, routing, *plain, ACTIVATION)
    for matrix, size in zip(plain, (2 * SIZE, HIDDEN), strict=True):
        for part in matrix:
            assert isinstance(part, Tensor)
            part.unflatten(0, (COUNT, expert_rows(size)))[[0, 2, 3, 5, 6]] = math.nan
    matrices = [packed(native_ops, matrix) for matrix in plain]
    assert torch.equal(native_ops.experts(x, routing, *matrices, ACTIVATION), expected)
    used = Routing(torch.tensor([[1, 5]] * 5), routing.weights)
    assert native_ops.experts(x, used, *matrices, ACTIVATION).isnan().all()


def test_what_does_not_fit_is_refused(native_ops: CpuOps) -> None:
    gate_up, down = (packed(native_ops, matrix) for matrix in layer(torch.float32, bias=True))
    x, weights = random(2, HIDDEN), torch.ones(2, 2)

    def run(chosen: list[list[int]] | None = None, x=x, weights=weights, up=gate_up, down=down, act="silu"):
        routing = Routing(torch.tensor(chosen or [[0, 1], [2, 3]]), weights)
        return lambda: native_ops.experts(x, routing, up, down, act)

    run()()  # the control
    for error, says, call in [
        (RuntimeError, "experts: expert 7 is outside 0..6", run([[0, 1], [2, 7]])),
        (RuntimeError, "experts: expert -1 is outside", run([[-1, 1], [2, 3]])),
        (RuntimeError, "experts: the experts of row 1 do not rise", run([[0, 1], [3, 2]])),
        (RuntimeError, "experts: the experts of row 0 do not rise", run([[1, 1], [2, 3]])),
        (RuntimeError, "experts: weights has another dtype", run(weights=weights.double())),
        (RuntimeError, "experts: x has another dtype", run(x=x.half())),
        (RuntimeError, "experts: bias's length is 3", run(down=Matrix(down.weight, torch.ones(3)))),
        (RuntimeError, "experts: there is no activation 'selu'", run(act="selu")),
        (ValueError, "experts: chosen is [2, 2], weights is [2, 3]", run(weights=torch.ones(2, 3))),
        (ValueError, "experts: gate_up is [336, 33], down [336, 21]", run(x=random(2, 30))),
        (RuntimeError, "route: 8 of 7 experts", lambda: native_ops.route(torch.ones(2, 7), 8, True)),
        (RuntimeError, "route: 0 of 7 experts", lambda: native_ops.route(torch.ones(2, 7), 0, True)),
        (RuntimeError, "act: swiglu_clamped needs a gate", lambda: native_ops.act(x, "swiglu_clamped")),
    ]:
        with pytest.raises(error) as caught:
            call()
        assert says in str(caught.value)


def test_no_rows(native_ops: CpuOps) -> None:
    matrices = layer(torch.float32, bias=False)
    routing = native_ops.route(torch.empty(0, COUNT), TOKEN, True)
    assert routing.chosen.shape == routing.weights.shape == (0, TOKEN)
    assert native_ops.experts(torch.empty(0, HIDDEN), routing, *matrices, "silu").shape == (0, HIDDEN)
