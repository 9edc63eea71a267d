"""The words of sm_90 in the simulator: right results, everything lands late, and each misuse is reported."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bugs import marked
from cases import random
from torch import Tensor

from minillm.ops.simt import SimtError, compile_kernels, flavour, profile, schedule
from minillm.ops.simt.machine import machine
from minillm.toolchain.compiler import BuildFailed, find_compiler
from minillm.toolchain.sanitizer import environment, preload

try:
    machine()
except BuildFailed as reason:
    if find_compiler():
        raise  # sources that do not compile are a failure, not a skip
    pytest.skip(f"simulator: {reason}", allow_module_level=True)

REPO = Path(__file__).resolve().parents[2]
KERNELS = REPO / "tests" / "cuda" / "kernels"
BUGS = KERNELS / "hopper_bugs.cu"
ALWAYS, CHECKED, OTHER, LATE = (marked(word, BUGS) for word in ("BUG", "BUG-CHECK", "OTHER", "WRONG"))
# In `fast` these read what a copy has not brought yet.
LATE_COPIES = ["bulk_not_waited", "waits_with_the_wrong_parity", "only_one_warp_waits"]
ORDERS = {"forward": {}, "reversed": {"reverse": True}, "shuffled": {"seed": 5}}
NONE, BYTES_32, BYTES_64, BYTES_128 = range(4)


@pytest.fixture(scope="module")
def right():
    return compile_kernels(KERNELS / "hopper.cu")


@pytest.fixture(scope="module")
def bugs():
    return compile_kernels(BUGS)


# --- bulk copies and mbarriers ----------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
def test_a_bulk_copy_lands_and_is_counted(right, order):
    x, y = random(64), torch.zeros(64)
    with flavour("check"), schedule(**ORDERS[order]), profile() as p:
        right.run("run_bulk_reverse", x=x, y=y)
    assert torch.equal(y, x.flip(0))
    assert (p.async_copy_bytes, p.shared_write_bytes, p.global_read_sectors) == (256, 256, 8)
    assert p.tensors == {"x": (256, 0), "y": (0, 256)}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_a_ring_of_mbarriers_goes_through_its_phases(right, order, rows):
    x, y = random(rows, 32), torch.zeros(rows)
    with flavour("check"), schedule(**ORDERS[order]):
        right.run("run_ring_sums", x=x, y=y, n=rows)
    torch.testing.assert_close(y, x.sum(1))


@pytest.mark.parametrize("order", ORDERS)
def test_an_mbarrier_orders_memory(right, order):
    x, y = random(64), torch.zeros(64)
    with flavour("check"), schedule(**ORDERS[order]):
        right.run("run_handed_over", x=x, y=y)
    assert torch.equal(y, x.view(2, 32).flip(0).flatten())


def boxed(x: Tensor, box: list[int], at: list[int], swizzle: int) -> Tensor:
    """The box of `x` [outermost, .., innermost] as bytes in shared memory; `box` and `at` innermost first."""
    tile = torch.zeros(box[::-1], dtype=x.dtype)
    for place in itertools.product(*(range(size) for size in box)):
        from_ = [first + i for first, i in zip(at, place, strict=True)]
        if all(0 <= i < size for i, size in zip(from_, reversed(x.shape), strict=True)):
            tile[place[::-1]] = x[tuple(from_[::-1])]
    pieces = tile.view(torch.uint8).reshape(-1, 16)
    places = torch.arange(len(pieces))
    places ^= (places >> 3) & ((1 << swizzle) - 1)  # address bits 7.. into bits 4..
    return torch.empty_like(pieces).index_copy_(0, places, pieces).flatten()


BOXES = [
    ([64, 8], [64, 8], [0, 0], torch.float16, BYTES_128),
    ([96, 20], [32, 16], [64, 10], torch.float16, BYTES_64),  # past the last row
    ([32, 40], [16, 8], [24, 4], torch.float16, BYTES_32),  # past the last column
    ([16, 8], [8, 4], [-4, -2], torch.float32, NONE),  # before the first of both
    ([64, 3, 9], [64, 1, 8], [0, 2, 1], torch.bfloat16, BYTES_128),  # a page of keys
    ([8, 2, 3, 5], [8, 2, 1, 4], [0, 0, 2, 3], torch.float32, BYTES_32),
]


@pytest.mark.parametrize(("dims", "box", "at", "dtype", "swizzle"), BOXES)
def test_a_tensor_copy_brings_its_box_swizzled_with_zeros_outside(right, dims, box, at, dtype, swizzle):
    x = random(*dims[::-1], dtype=dtype)
    expected = boxed(x, box, at, swizzle)
    y = torch.full((len(expected) // 4,), torch.nan)
    sizes = {"dims": dims, "box": box, "at": at}
    given = {name: torch.tensor(numbers, dtype=torch.int32) for name, numbers in sizes.items()}
    with flavour("check"), profile() as p:
        right.run("run_box", x=x, y=y, **given, rank=len(dims), bytes=x.element_size(), swizzle=swizzle)
    assert torch.equal(y.view(torch.uint8), expected)
    inside = [min(first + size, dim) - max(first, 0) for first, size, dim in zip(at, box, dims, strict=True)]
    assert p.tensors["x"] == (torch.tensor(inside).prod() * x.element_size(), 0)
    assert p.async_copy_bytes == p.tensors["x"][0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"box": [24, 8]}, "a row of the box is a multiple of 16 bytes"),
        ({"box": [64, 8], "dims": [64, 8]}, "a row of the box has 256 bytes, its swizzle 128"),
        ({"box": [32, 257]}, "the box of dimension 1 is 1 to 256"),
        ({"dims": [34, 8]}, "the stride of dimension 1 is a multiple of 16"),
        ({"dims": [32, 0]}, "the size of dimension 1 is 1 to"),
    ],
)
def test_a_map_that_the_driver_refuses_is_refused(right, change, reason):
    sizes = {"dims": [32, 8], "box": [32, 8], "at": [0, 0]} | change
    sizes["box"][0] -= 1 if "multiple of 16 bytes" in reason else 0
    given = {name: torch.tensor(numbers, dtype=torch.int32) for name, numbers in sizes.items()}
    with pytest.raises(SimtError, match=reason) as caught:
        right.run("run_box", x=random(64, 64), y=random(64), **given, rank=2, bytes=4, swizzle=BYTES_128)
    assert (caught.value.kind, caught.value.file) == ("launch", "hopper.cu")


# --- wgmma ------------------------------------------------------------------------------------------


def product(right, columns: int = 64, dtype=torch.bfloat16, **how: int) -> Tensor:
    """c + a b^T of numbers of `dtype`, after its comparison with float64."""
    a, b = random(64, 64, dtype=dtype, seed=1).float(), random(columns, 64, dtype=dtype, seed=2).float()
    c = random(64, columns, seed=3)
    exact = c.double() + a.double() @ b.double().T
    right.run(f"run_product_{columns}", a=a, b=b, c=c, **how)
    torch.testing.assert_close(c.double(), exact, rtol=0, atol=2e-5)
    return c


def test_every_layout_and_source_gives_the_same_bits(right):
    found = []
    with flavour("check"):
        for swizzle, mn, in_registers in itertools.product(range(4), (0, 1), (0, 1)):
            how = {"is_bf16": 1, "swizzle": swizzle, "mn": mn, "in_registers": in_registers}
            found.append(product(right, **how))
    assert all(torch.equal(c, found[0]) for c in found)


def test_products_of_float16_and_of_128_columns(right):
    product(right, dtype=torch.float16, is_bf16=0, swizzle=BYTES_128, mn=0, in_registers=0)
    with profile() as p:
        product(right, columns=128)
    assert (p.wgmma, p.mma) == (4, 0)


@pytest.mark.parametrize("order", ORDERS)
def test_one_group_may_be_read_while_the_next_is_unfinished(right, order):
    x, y = random(8, dtype=torch.bfloat16).float(), torch.zeros(256)
    with flavour("check"), schedule(**ORDERS[order]):
        right.run("run_two_groups", x=x, y=y)
    once = x @ x
    torch.testing.assert_close(y, torch.cat([2 * once.expand(128), 4 * once.expand(128)]))


def test_a_warpgroup_changes_its_registers(right):
    y = torch.zeros(256)
    right.run("run_registers", y=y)
    assert torch.equal(y, torch.ones(256))


@pytest.mark.parametrize("number", [16, 28, 264])
def test_numbers_of_registers_that_do_not_exist_do_not_compile(number, tmp_path):
    kernel = f"__global__ void f() {{ raise_registers<{number}>(); }}"
    source = tmp_path / "registers.cu"
    source.write_text(
        f'#include "dialect_hopper.h"\n{kernel}\nextern "C" void run() {{ LAUNCH(f, 1, 128, 0, 0); }}\n'
    )
    with pytest.raises(Exception, match="setmaxnreg takes 24 to 256"):
        compile_kernels(source)


# --- deliberate bugs ----------------------------------------------------------------------------------


def attempt(bugs, name: str, order: str = "forward") -> Tensor:
    x, y = torch.arange(64.0), torch.zeros(256)
    with schedule(**ORDERS[order]):
        bugs.run(f"run_{name}", x=x, y=y)
    return y


@pytest.mark.parametrize("name", [*ALWAYS, *CHECKED])
def test_each_bug_is_reported_with_kernel_and_line(bugs, name):
    kind, line = (ALWAYS | CHECKED)[name]
    with flavour("check"), pytest.raises(SimtError) as caught:
        attempt(bugs, name)
    error = caught.value
    assert (error.kind, error.kernel, error.file, error.line) == (kind, name, BUGS.name, line), str(error)
    if name in OTHER:
        assert f"{BUGS.name}:{OTHER[name][1]}" in str(error)


@pytest.mark.parametrize("name", ALWAYS)
def test_what_is_always_wrong_is_seen_without_check(bugs, name):
    with pytest.raises(SimtError) as caught:
        attempt(bugs, name)
    assert (caught.value.kind, caught.value.line) == ALWAYS[name]


@pytest.mark.parametrize("name", [*CHECKED, *LATE])
def test_what_lands_late_shows_in_the_numbers(bugs, name):
    """Without `check` no error is reported; a wait that is left out reads NaN."""
    y = attempt(bugs, name)
    assert y.isnan().any() == (name in (*LATE, *LATE_COPIES, "operand_not_written"))


RACES = [name for name, (kind, _) in CHECKED.items() if kind in ("race", "no proxy fence")]


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
@pytest.mark.parametrize("name", RACES)
def test_missing_order_is_found_in_any_order(bugs, name, order):
    with flavour("check"), pytest.raises(SimtError) as caught:
        attempt(bugs, name, order)
    kinds = {
        CHECKED[name][0],
        "race",
        "copy not waited for",
        "wgmma not waited for",
        "no proxy fence",
        "mbarrier",
    }
    assert caught.value.kind in kinds


def test_a_deadlock_says_what_the_mbarrier_lacks(bugs):
    with pytest.raises(
        SimtError, match=r"32 threads wait at mbarrier_wait \(hopper_bugs.cu:\d+\) for `full`"
    ):
        attempt(bugs, "more_bytes_expected")
    with pytest.raises(SimtError, match="whose phase 0 lacks 1 arrival"):
        attempt(bugs, "an_arrival_is_missing")


# --- the sanitizers -------------------------------------------------------------------------------------

RUN = """
import json, sys
import torch
from minillm.ops.simt import compile_kernels, flavour

library = compile_kernels(sys.argv[1])
x, y, c = torch.arange(64.0), torch.zeros(64), torch.zeros(64, 64)
with flavour("asan"):
    library.run("run_bulk_reverse", x=x, y=y)
    ones = torch.ones(64, 64)
    library.run("run_product_64", a=ones, b=ones, c=c, bf16=1, swizzle=3, mn=1, a_in=1)
print(json.dumps([y.tolist(), c.unique().tolist()]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not preload(), reason="the compiler has no shared AddressSanitizer")
def test_right_kernels_run_under_the_sanitizers():
    command = [sys.executable, "-P", "-c", RUN, str(KERNELS / "hopper.cu")]
    here = os.environ | environment() | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=here, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == [list(range(63, -1, -1)), [64.0]]
