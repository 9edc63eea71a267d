"""The simulator: exact counters on kernels counted by hand, and every bug reported with its line."""

from pathlib import Path

import pytest
import torch
from bugs import ALWAYS, ASAN, CHECKED, OTHER, RIGHT

from minillm.errors import UsageError
from minillm.ops.simt import SimtError, compile_kernels, flavour, profile, schedule
from minillm.ops.simt.machine import machine
from minillm.toolchain.compiler import BuildFailed, find_compiler

try:
    machine()
except BuildFailed as reason:
    if find_compiler():
        raise  # sources that do not compile are a failure, not a skip
    pytest.skip(f"simulator: {reason}", allow_module_level=True)

KERNELS = Path(__file__).parent / "kernels"


@pytest.fixture(scope="module")
def counted():
    return compile_kernels(KERNELS / "counted.cu")


@pytest.fixture(scope="module")
def bugs():
    return compile_kernels(KERNELS / "bugs.cu")


def run(library, name, **arguments):
    """Run one launcher and return the counters of its kernel."""
    with profile() as p:
        library.run(name, **arguments)
    assert len(p.kernels) == 1
    return p


# --- counters ---------------------------------------------------------------------------------------


def test_a_copy_reads_and_writes_every_byte_once(counted):
    x, y = torch.randn(1000), torch.zeros(1000)
    p = run(counted, "run_copy", x=x, y=y, n=1000)
    assert torch.equal(x, y)
    assert (p.launches, p.blocks, p.threads) == (1, 16, 1024)
    assert (p.global_read_bytes, p.global_write_bytes) == (4000, 4000)
    assert p.tensors == p["copy"].tensors == {"x": (4000, 0), "y": (0, 4000)}
    # 31 full warps of 128 bytes and 8 threads of the last warp, 32 bytes. Tensors begin at a sector.
    assert (p.global_read_sectors, p.global_write_sectors) == (125, 125)
    assert p.shared_read_bytes == p.shared_wavefronts == p.barriers == p.warp_operations == 0


def test_wide_accesses_are_one_access_of_sixteen_bytes(counted):
    x, y = torch.randn(512), torch.zeros(512)
    p = run(counted, "run_copy_wide", x=x, y=y, n=512)
    assert torch.equal(x, y)
    assert (p.global_read_bytes, p.global_read_sectors) == (2048, 64)


@pytest.mark.parametrize(("stride", "sectors"), [(0, 1), (1, 4), (2, 8), (8, 32), (32, 32)])
def test_sectors_tell_coalesced_from_scattered(counted, stride, sectors):
    x, y = torch.randn(1024), torch.zeros(32)
    p = run(counted, "run_gather", x=x, y=y, stride=stride)
    assert torch.equal(y, x[torch.arange(32) * stride])
    assert (p.global_read_bytes, p.global_read_sectors) == (128 if stride else 4, sectors)


@pytest.mark.parametrize(
    ("launcher", "read_wavefronts"), [("run_transpose", 32 * 32), ("run_transpose_padded", 32)]
)
def test_wavefronts_show_the_bank_conflict_and_the_padding_that_cures_it(counted, launcher, read_wavefronts):
    x, y = torch.randn(32, 32), torch.zeros(32, 32)
    p = run(counted, launcher, x=x, y=y)
    assert torch.equal(y, x.T)
    assert (p.shared_read_bytes, p.shared_write_bytes) == (4096, 4096)
    assert p.shared_accesses == 64
    assert p.shared_wavefronts == 32 + read_wavefronts
    assert p.barriers == 1


@pytest.mark.parametrize(("stride", "wavefronts"), [(4, 4), (8, 8), (0, 4)])
def test_sixteen_byte_shared_reads_go_by_quarter_warps(counted, stride, wavefronts):
    x, y = torch.randn(256), torch.zeros(128)
    p = run(counted, "run_wide_rows", x=x, y=y, stride=stride)
    assert p.shared_accesses == 9
    assert p.shared_wavefronts == 8 + wavefronts


def test_shuffles_and_barriers_are_counted_per_warp_and_per_block(counted):
    x, y = torch.randn(3, 64), torch.zeros(3)
    p = run(counted, "run_warp_sums", x=x, y=y, blocks=3)
    torch.testing.assert_close(y, x.sum(1))
    assert p.warp_operations == 3 * 2 * 5
    assert p.barriers == 3
    assert (p.shared_write_bytes, p.shared_read_bytes) == (3 * 8, 3 * 8)
    assert p.global_write_bytes == 12


def test_asynchronous_copies_are_counted_and_land(counted):
    x, y = torch.randn(64), torch.zeros(64)
    with flavour("check"):
        p = run(counted, "run_reverse", x=x, y=y)
    assert torch.equal(y, x.flip(0))
    assert (p.async_copy_bytes, p.global_read_bytes, p.shared_write_bytes) == (256, 256, 256)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_tensor_core_multiplies_tiles_spread_over_the_lanes(counted, dtype):
    x, w = torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype)
    y = torch.zeros(16, 8)
    p = run(counted, f"run_mma_{str(dtype).removeprefix('torch.')}", x=x.float(), w=w.float(), y=y)
    torch.testing.assert_close(y, (x.double() @ w.double()).float())
    assert (p.mma, p.warp_operations) == (1, 1)


def test_kernels_are_counted_apart_and_summed(counted):
    x, y = torch.randn(64), torch.zeros(64)
    with profile() as p:
        counted.run("run_copy", x=x, y=y, n=64)
        counted.run("run_copy", x=x, y=y, n=32)
        counted.run("run_gather", x=x, y=y, stride=1)
    assert set(p.kernels) == {"copy", "gather"}
    assert (p["copy"].launches, p["copy"].global_read_bytes) == (2, 384)
    assert p.global_read_bytes == p["copy"].global_read_bytes + p["gather"].global_read_bytes
    counted.run("run_copy", x=x, y=y, n=64)
    assert p["copy"].launches == 2


# --- the machine --------------------------------------------------------------------------------------


def test_indices_cover_grid_and_block_in_three_dimensions(counted):
    y = torch.zeros(12, 32, dtype=torch.int32)
    counted.run("run_where", y=y)
    assert torch.equal(y, (1000 * torch.arange(12)[:, None] + torch.arange(32)).int())


@pytest.mark.parametrize("lane", [0, 7, 31])
def test_shfl_gives_one_lanes_value_to_all(counted, lane):
    x, y = torch.arange(32, dtype=torch.int32) * 3, torch.zeros(32, dtype=torch.int32)
    counted.run("run_broadcast", x=x, y=y, lane=lane)
    assert y.tolist() == [3 * lane] * 32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_numbers_round_as_torch_does(counted, dtype):
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype).float()
    ties = (every[:-1].double() + every[1:].double()).div(2).float()  # halfway between neighbours
    odd = torch.tensor([65519.0, 65520.0, 1e-8, 2.0**-25, 2.0**-24 * 1.5, 3e38, -3.4e38])
    x = torch.cat([every, ties, ties.nextafter(torch.tensor(0.0)), odd, torch.randn(1 << 12)])
    x = torch.cat([x, torch.zeros(-len(x) % 32)])
    y = torch.empty_like(x)
    counted.run(f"run_{str(dtype).removeprefix('torch.')}", x=x, y=y, n=len(x))
    torch.testing.assert_close(y, x.to(dtype).float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("threads", [0, 20, 1056])
def test_blocks_are_whole_warps(counted, threads):
    with pytest.raises(SimtError) as caught:
        counted.run("run_threads", y=torch.zeros(1), threads=threads)
    assert caught.value.kind == "launch"


def test_an_empty_grid_is_refused_and_the_next_launch_works(counted):
    with pytest.raises(SimtError, match="empty"):
        counted.run("run_empty", y=torch.zeros(1))
    counted.run("run_copy", x=torch.zeros(1), y=torch.zeros(1), n=1)


def test_only_the_given_part_of_a_tensor_may_be_touched(counted):
    x, y = torch.zeros(64), torch.zeros(64)
    counted.run("run_copy", x=x, y=y, n=64)
    with pytest.raises(SimtError, match=r"0 bytes past the end of `x` \(128 bytes\)"):
        counted.run("run_copy", x=x[:32], y=y, n=64)


def test_a_wrong_file_or_name_says_so(counted, tmp_path):
    with pytest.raises(UsageError, match="no extern"):
        counted.run("run_nothing")
    (tmp_path / "bad.cu").write_text('#include "dialect.h"\n__global__ void f() { int x = "no"; }\n')
    with pytest.raises(UsageError, match=r"bad\.cu.*error"):
        compile_kernels(tmp_path / "bad.cu")
    with pytest.raises(UsageError, match="not a file"):
        compile_kernels(tmp_path / "none.cu")
    with pytest.raises(UsageError, match="no flavour"), flavour("slow"):
        pass


# --- deliberate bugs ------------------------------------------------------------------------------------


ORDERS = {"forward": {}, "reversed": {"reverse": True}, "shuffled": {"seed": 5}}


def attempt(bugs, name, order="forward"):
    x, y = torch.arange(64.0), torch.zeros(256)
    with schedule(**ORDERS[order]):
        bugs.run(f"run_{name}", x=x, y=y)


@pytest.mark.parametrize("name", [*ALWAYS, *CHECKED])
def test_each_bug_is_reported_with_kernel_and_line(bugs, name):
    kind, line = (ALWAYS | CHECKED)[name]
    with flavour("check"), pytest.raises(SimtError) as caught:
        attempt(bugs, name)
    error = caught.value
    assert (error.kind, error.kernel, error.file, error.line) == (kind, name, "bugs.cu", line), str(error)
    if name in OTHER:
        assert f"bugs.cu:{OTHER[name][1]}" in str(error)


@pytest.mark.parametrize("name", ALWAYS)
def test_what_is_always_wrong_is_seen_without_check(bugs, name):
    with pytest.raises(SimtError) as caught:
        attempt(bugs, name)
    assert (caught.value.kind, caught.value.line) == ALWAYS[name]


@pytest.mark.parametrize("name", CHECKED)
def test_only_check_sees_what_depends_on_order(bugs, name):
    attempt(bugs, name)  # control: without `check` no error is reported


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
@pytest.mark.parametrize("name", [name for name, (kind, _) in CHECKED.items() if kind == "race"])
def test_races_are_found_in_any_order(bugs, name, order):
    with flavour("check"), pytest.raises(SimtError) as caught:
        attempt(bugs, name, order)
    lines = {CHECKED[name][1], OTHER.get(name, CHECKED[name])[1]}
    assert caught.value.kind == "race"
    assert caught.value.line in lines


@pytest.mark.parametrize("name", ASAN)
def test_what_only_the_sanitizers_see_is_left_to_them(bugs, name):
    with flavour("check"):
        attempt(bugs, name)  # test_simt_asan.py has the other half


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", RIGHT)
def test_right_kernels_are_left_in_peace(bugs, name, order):
    with flavour("check"):
        attempt(bugs, name, order)


def test_a_message_names_block_thread_and_tensor(bugs):
    with pytest.raises(SimtError) as caught:
        attempt(bugs, "one_too_far")
    assert (caught.value.block, caught.value.thread) == ((0, 0, 0), (63, 0, 0))
    assert "block 0, thread 63 at bugs.cu" in str(caught.value)
    assert "0 bytes past the end of `x` (256 bytes)" in str(caught.value)


def test_the_schedule_changes_who_comes_first_and_nothing_else(bugs):
    first = {}
    for order in ORDERS:
        with pytest.raises(SimtError) as caught:
            attempt(bugs, "before_the_start", order)
        first[order] = caught.value.thread
    assert first["forward"] == (0, 0, 0)
    y = torch.zeros(256)
    for order in ORDERS:
        with schedule(**ORDERS[order]):
            bugs.run("run_two_blocks_one_place", x=torch.zeros(256), y=y)
        first[order] = y[0].item()
    assert (first["forward"], first["reversed"]) == (1.0, 0.0)  # the last block's write stays
