"""Routing and experts in the simulator: odd sizes, ties, C2, and the bytes of the weights that are read."""

from __future__ import annotations

import math
from itertools import product

import family_oracle
import oracle
import pytest
import torch
from cases import DTYPES, REFERENCE, check, random
from torch import Tensor

from minillm.ops.contract import Matrix, Routing, expert_rows
from minillm.ops.simt import SimtOps, flavour, flavours, profile, schedule
from minillm.ops.simt.ops import load_ops
from minillm.toolchain.compiler import BuildFailed, find_compiler
from minillm.toolchain.sanitizer import sanitizing

try:
    load_ops()
except BuildFailed as reason:
    if find_compiler():
        raise  # sources that do not compile are a failure, not a skip
    pytest.skip(f"simulator: {reason}", allow_module_level=True)

OPS = SimtOps()
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "bf16", "f16"])


@pytest.fixture(autouse=True, params=flavours())
def simulated(request):
    """Every test runs in each flavour; all but "fast" in reversed order, which must not change a result."""
    with flavour(request.param), schedule(reverse=request.param != "fast"):
        yield request.param


@each_dtype
@pytest.mark.parametrize(("count", "per_token"), [(1, 1), (4, 2), (33, 5), (130, 8), (3, 3)])
def test_route(dtype, count, per_token):
    for rows, renormalize, tied in product((1, 17), (False, True), (False, True)):
        logits = random(rows, count, scale=2, seed=rows).to(dtype)
        if tied:
            logits = logits.float().div(2).round().to(dtype)
        found, exact = (
            OPS.route(logits, per_token, renormalize),
            family_oracle.route(logits, per_token, renormalize),
        )
        assert found.chosen.tolist() == exact[0]
        assert found.weights.dtype == torch.float32
        assert oracle.error(found.weights, exact[1]) < 1e-6
        assert torch.equal(found.chosen, REFERENCE.route(logits, per_token, renormalize).chosen)


@each_dtype
def test_a_row_of_route_does_not_depend_on_the_others(dtype):
    """To the bit, with many ties (contract C2)."""
    logits = random(33, 20).mul(2).round().div(2).to(dtype)
    for (first, count), renormalize in product([(0, 1), (32, 1), (5, 17)], (False, True)):
        rows = slice(first, first + count)
        alone, whole = (OPS.route(part, 4, renormalize) for part in (logits[rows], logits))
        assert all(torch.equal(a, w[rows]) for a, w in zip(alone, whole, strict=True))


def test_route_at_the_ends():
    nan, inf = math.nan, math.inf
    logits = torch.tensor([[0, nan, 1, nan], [nan] * 4, [-inf, 0, -inf, -inf], [0.0, -0.0, 0, -1], [5.0] * 4])
    found = OPS.route(logits, 2, True)
    assert found.chosen.tolist() == [[1, 3], [0, 1], [0, 1], [0, 1], [0, 1]]
    assert found.weights[:2].isnan().all()
    assert found.weights[2:].tolist() == [[0, 1], [0.5, 0.5], [0.5, 0.5]]
    for per_token in (0, 5):
        with pytest.raises(RuntimeError, match=f"{per_token} of 4 experts"):
            OPS.route(logits, per_token, True)


class Mixture:
    """Experts of odd sizes, stacked; the rows that fill a matrix up hold NaN, and no result may show it."""

    def __init__(self, count: int, hidden: int, size: int, dtype: torch.dtype, with_bias: bool) -> None:
        self.gate_up = [random(2 * size, hidden, dtype=dtype, seed=e, scale=0.3) for e in range(count)]
        self.down = [random(hidden, size, dtype=dtype, seed=50 + e, scale=0.3) for e in range(count)]
        self.biases = None, None
        if with_bias:
            sizes = (2 * size, hidden)
            self.biases = tuple([random(n, dtype=dtype, seed=99 + e) for e in range(count)] for n in sizes)
        self.matrices = [
            Matrix(self.stack(parts), None if biases is None else self.stack(biases))
            for parts, biases in zip((self.gate_up, self.down), self.biases, strict=True)
        ]

    @staticmethod
    def stack(parts: list[Tensor]) -> Tensor:
        rows = len(parts[0])
        stacked = torch.full(
            (len(parts), expert_rows(rows), *parts[0].shape[1:]), math.nan, dtype=parts[0].dtype
        )
        stacked[:, :rows] = torch.stack(parts)
        return stacked.flatten(0, 1)

    def exact(self, x: Tensor, routing: Routing, activation: str) -> Tensor:
        weights = self.gate_up, self.biases[0], self.down, self.biases[1]
        return family_oracle.experts(x, *routing, *weights, activation)


@each_dtype
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "swiglu_clamped"])
def test_experts(dtype, activation):
    for rows, hidden, size, per_token in [(1, 33, 17, 2), (17, 64, 31, 3), (5, 40, 8, 1)]:
        mixture = Mixture(6, hidden, size, dtype, with_bias=rows != 17)
        x = random(rows, hidden, dtype=dtype, seed=3)
        routing = OPS.route(random(rows, 6, seed=rows), per_token, renormalize=True)
        arguments = x, routing, *mixture.matrices, activation
        check(
            OPS.experts(*arguments),
            REFERENCE.experts(*arguments),
            mixture.exact(x, routing, activation),
            rows,
        )


@each_dtype
def test_a_token_of_experts_does_not_depend_on_the_others(dtype):
    """To the bit, with ties in the router (contract C2)."""
    mixture, x = Mixture(6, 40, 24, dtype, with_bias=True), random(33, 40, dtype=dtype, seed=3)
    routing = OPS.route(random(33, 6, seed=7).round(), 3, renormalize=False)
    whole = OPS.experts(x, routing, *mixture.matrices, "silu")
    for first, count in [(0, 1), (32, 1), (5, 17)]:
        rows = slice(first, first + count)
        part = Routing(*(t[rows] for t in routing))
        assert torch.equal(OPS.experts(x[rows], part, *mixture.matrices, "silu"), whole[rows])


def test_control_a_router_that_breaks_ties_by_the_place_in_the_batch_is_seen():
    """Equal logits and equal rows: the honest router gives equal results, this one does not."""
    mixture, x = Mixture(4, 40, 24, torch.float32, with_bias=False), random(1, 40).expand(2, 40)
    logits = torch.zeros(2, 4)
    honest = OPS.experts(x, OPS.route(logits, 1, True), *mixture.matrices, "silu")
    by_place = Routing(torch.tensor([[0], [1]]), torch.ones(2, 1))
    assert torch.equal(honest[0], honest[1])
    found = OPS.experts(x, by_place, *mixture.matrices, "silu")
    assert not torch.equal(found[0], found[1])


@pytest.mark.skipif(sanitizing(), reason="the asan flavour counts nothing")
def test_only_the_matrices_of_used_experts_are_read():
    """Bytes of the weights, to the byte: with one row, each used expert's are read once."""
    hidden, size, count = 40, 24, 8
    mixture, x = Mixture(count, hidden, size, torch.float32, with_bias=True), random(1, hidden)
    for chosen in ([2], [0, 7], list(range(count))):
        routing = Routing(torch.tensor([chosen]), torch.ones(1, len(chosen)))
        with profile() as p:
            OPS.experts(x, routing, *mixture.matrices, "silu")
        # A block of `linear_experts` has 16 outputs, and reads its columns of the matrix once.
        assert p.tensors["gate_up"] == (len(chosen) * 2 * size * hidden * 4, 0)
        assert p.tensors["down"] == (len(chosen) * size * hidden * 4, 0)
        # A product is one launch, and there are blocks for used experts only: 3 of 16 outputs each.
        assert p["linear_experts"].launches == 2
        assert p["linear_experts"].blocks == len(chosen) * 2 * 3


def launches(routing: Routing, mixture: Mixture) -> dict[str, tuple[int, int]]:
    with profile() as p:
        OPS.experts(random(len(routing.chosen), 40), routing, *mixture.matrices, "silu")
    return {name: (c.launches, c.blocks) for name, c in p.kernels.items()}


@pytest.mark.skipif(sanitizing(), reason="the asan flavour counts nothing")
def test_the_launches_do_not_depend_on_which_experts_are_chosen():
    """So the host need not know, and a graph can repeat them. The number of rows changes them."""
    mixture, shares = Mixture(8, 40, 24, torch.float32, with_bias=False), torch.ones(20, 2)
    spread = torch.stack([torch.arange(20) % 4, torch.arange(20) % 4 + 4], 1)
    same = torch.tensor([[2, 5]]).expand(20, 2)
    found = [launches(Routing(chosen, shares), mixture) for chosen in (spread, same)]
    assert found[0] == found[1]
    assert {name for name, (count, _) in found[0].items() if count == 2} == {"linear_experts"}
    assert sum(count for count, _ in found[0].values()) == 6
    assert launches(Routing(same[:3], shares[:3]), mixture) != found[0]


@pytest.mark.parametrize("wrong", [4, -1, 2**40])
def test_experts_that_do_not_exist(wrong):
    """Refused where that costs no wait; on a GPU the token is NaN, and the others keep their bits."""
    mixture, x = Mixture(4, 40, 24, torch.float32, with_bias=True), random(3, 40)
    chosen = torch.tensor([[1, 2], [1, wrong], [0, 3]])
    weights, matrices = torch.ones(3, 2), mixture.matrices
    with pytest.raises(ValueError, match=f"expert {wrong} is chosen, and there are 4"):
        OPS.experts(x, Routing(chosen, weights), *matrices, "silu")
    stacked = matrices[0].weight, matrices[0].bias, matrices[1].weight, matrices[1].bias
    found = torch.ops.minillm_simt.experts(x, chosen, weights, *stacked, "silu", False, 0)
    assert found[1].isnan().all()
    right = OPS.experts(x[::2], Routing(chosen[::2], weights[::2]), *matrices, "silu")
    assert torch.equal(found[::2], right)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"chosen": torch.zeros(3, 2, dtype=torch.int64)}, "number of rows is 3, not 2"),
        ({"weights": torch.ones(2, 1)}, "experts per token is 1, not 2"),
        ({"gate_up": torch.ones(33, 40)}, "gate_up is 33, not 0|gate_up is 33, not"),
        ({"down": torch.ones(40, 8)}, "down is 40, not"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, says):
    """By the op itself: nothing may read outside of them."""
    arguments = {
        "x": random(2, 40),
        "chosen": torch.zeros(2, 2, dtype=torch.int64),
        "weights": torch.ones(2, 2),
        "gate_up": torch.ones(4 * 16, 40),
        "gate_up_bias": None,
        "down": torch.ones(4 * 48, 8),
        "down_bias": None,
    } | change
    with pytest.raises(RuntimeError, match=says):
        torch.ops.minillm_simt.experts(*arguments.values(), "silu", False, 0)


def test_no_rows_at_all():
    routing = OPS.route(torch.empty(0, 4), 2, True)
    assert routing.chosen.shape == routing.weights.shape == (0, 2)
    mixture = Mixture(4, 32, 24, torch.float32, with_bias=True)
    assert OPS.experts(torch.empty(0, 32), routing, *mixture.matrices, "silu").shape == (0, 32)


def test_opcheck():
    ops, x = torch.ops.minillm_simt, random(2, 32)
    gate_up, down = (m.weight.nan_to_num() for m in Mixture(2, 32, 8, torch.float32, False).matrices)
    chosen, shares = torch.tensor([[0], [1]]), torch.ones(2, 1)
    for op, arguments in [
        (ops.route, (x, 4, True)),
        (ops.experts, (x, chosen, shares, gate_up, None, down, None, "silu", False)),
    ]:
        torch.library.opcheck(op.default, (*arguments, 0), test_utils=["test_schema", "test_faketensor"])
