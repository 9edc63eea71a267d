"""Votes, masks of some lanes and named barriers: results, counts, and each misuse reported with its line."""

import pytest
import torch
from bugs import SYNC_ALWAYS, SYNC_CHECKED, SYNC_FILE, SYNC_OTHER, SYNC_RIGHT

from minillm.ops.simt import SimtError, compile_kernels, flavour, profile, schedule
from minillm.ops.simt.machine import machine
from minillm.toolchain.compiler import BuildFailed, find_compiler

try:
    machine()
except BuildFailed as reason:
    if find_compiler():
        raise  # sources that do not compile are a failure, not a skip
    pytest.skip(f"simulator: {reason}", allow_module_level=True)

ORDERS = {"forward": {}, "reversed": {"reverse": True}, "shuffled": {"seed": 5}}
MASKS = [0xFFFFFFFF, 0x0000FFFF, 0xAAAAAAAA, 0x80000000, 0x00030110]


@pytest.fixture(scope="module")
def kernels():
    return compile_kernels(SYNC_FILE)


@pytest.fixture(params=ORDERS)
def in_order(request):
    with flavour("check"), schedule(**ORDERS[request.param]):
        yield


def attempt(kernels, name, order="forward"):
    with schedule(**ORDERS[order]):
        kernels.run(f"run_{name}", x=torch.arange(128.0), y=torch.zeros(256))


# --- results and counts -----------------------------------------------------------------------------


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("ones", [0, 0xFFFFFFFF, 0x00010100])
def test_a_vote_counts_the_lanes_of_the_mask(kernels, in_order, mask, ones):
    # Any number but 0 is a yes: also one whose last bits are 0.
    x = torch.tensor([256 * (ones >> lane & 1) for lane in range(32)], dtype=torch.int32)
    y = torch.full((128,), -1, dtype=torch.int32)
    kernels.run("run_vote", x=x, y=y, mask=mask - (1 << 32) if mask >> 31 else mask)
    lanes = [lane for lane in range(32) if mask >> lane & 1]
    ballot, some, every, first = y.view(4, 32)[:, lanes].tolist()
    assert {number % 2**32 for number in ballot} == {ones & mask}
    assert set(some) == {int(ones & mask != 0)}
    assert set(every) == {int(ones & mask == mask)}
    assert set(first) == {x[lanes[0]].item()}
    outside = [lane for lane in range(32) if lane not in lanes]
    assert (y.view(4, 32)[:, outside] == -1).all()


@pytest.mark.parametrize("size", [2, 8, 32])
def test_groups_of_one_warp_exchange_at_the_same_time(kernels, in_order, size):
    x, y = torch.arange(32.0) ** 2, torch.zeros(32)
    kernels.run("run_group_sums", x=x, y=y, size=size)
    assert torch.equal(y, x.view(-1, size).sum(1, keepdim=True).expand(-1, size).flatten())


def test_lanes_of_two_masks_pass_memory_to_each_other(kernels, in_order):
    x, y = torch.arange(32.0), torch.zeros(32)
    kernels.run("run_by_parity", x=x, y=y)
    assert torch.equal(y, x.roll(-2) + 2)


@pytest.mark.parametrize("rounds", [1, 2, 7])
def test_producers_and_consumers_share_two_buffers(kernels, in_order, rounds):
    x = torch.arange(2.0 * rounds * 64)
    y = torch.zeros_like(x)
    with profile() as p:
        kernels.run("run_produce_and_consume", x=x, y=y, rounds=rounds)
    assert torch.equal(y, x.view(-1, 64).flip(1).flatten())
    assert (p.barriers, p.warp_operations) == (2 * (rounds + max(0, rounds - 2)), 0)


def test_two_barriers_are_in_use_at_once_and_again(kernels, in_order):
    x, y = torch.arange(128.0), torch.zeros(128)
    with profile() as p:
        kernels.run("run_pairs_of_warps", x=x, y=y)
    assert torch.equal(y, x.view(2, 2, 32).flip(1).flatten() + torch.tensor([1.0, 2.0]).repeat_interleave(64))
    assert p.barriers == 2 * 2 + 2 * 3


def test_lanes_that_meet_in_groups_are_one_access_of_the_warp(kernels):
    """The groups of even and of odd lanes meet apart: still each load is one access of four sectors."""
    x, y = torch.arange(32.0), torch.zeros(32)
    with profile() as p:
        kernels.run("run_by_parity", x=x, y=y)
    assert (p.global_read_sectors, p.global_write_sectors) == (3 * 4, 3 * 4)
    assert (p.shared_accesses, p.shared_wavefronts) == (6, 6)
    assert p.warp_operations == 3 * 2 * 2


# --- misuse -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SYNC_ALWAYS, *SYNC_CHECKED])
def test_each_bug_is_reported_with_kernel_and_line(kernels, name):
    kind, line = (SYNC_ALWAYS | SYNC_CHECKED)[name]
    with flavour("check"), pytest.raises(SimtError) as caught:
        attempt(kernels, name)
    error = caught.value
    assert (error.kind, error.kernel, error.file, error.line) == (kind, name, "sync.cu", line), str(error)
    if name in SYNC_OTHER:
        assert f"sync.cu:{SYNC_OTHER[name][1]}" in str(error)


@pytest.mark.parametrize("name", SYNC_ALWAYS)
def test_what_is_always_wrong_is_seen_without_check(kernels, name):
    with pytest.raises(SimtError) as caught:
        attempt(kernels, name)
    assert (caught.value.kind, caught.value.line) == SYNC_ALWAYS[name]


@pytest.mark.parametrize("name", SYNC_CHECKED)
def test_only_check_sees_what_depends_on_order(kernels, name):
    attempt(kernels, name)  # control: without `check` no error is reported


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
@pytest.mark.parametrize("name", SYNC_CHECKED)
def test_races_are_found_in_any_order(kernels, name, order):
    with flavour("check"), pytest.raises(SimtError) as caught:
        attempt(kernels, name, order)
    assert caught.value.kind == "race"
    assert caught.value.line in (SYNC_CHECKED[name][1], SYNC_OTHER[name][1])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", SYNC_RIGHT)
def test_right_kernels_are_left_in_peace(kernels, name, order):
    with flavour("check"):
        attempt(kernels, name, order)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("not_in_its_mask", "the mask 0x0000000f does not name the lane that calls, 4"),
        ("reads_outside_the_mask", "the mask 0x0000ffff does not name the lane that is read, 16"),
        ("masks_differ", "16 threads wait at __syncwarp of 0x0001ffff"),
        ("too_few_come", "32 threads wait at named_barrier_sync(2, 96)"),
        ("too_few_come", "32 of 96 threads have come"),
        ("nobody_waits", "of barrier 3 32 of 64 threads have come"),
        ("barrier_zero", "0 is __syncthreads"),
        ("part_of_a_warp", "48 threads is no multiple of 32"),
        ("more_than_the_block", "a block of 64 threads cannot bring 96"),
        ("mixed_counts", "barrier 1 takes 32 threads here"),
    ],
)
def test_a_message_names_mask_barrier_and_counts(kernels, name, says):
    with pytest.raises(SimtError) as caught:
        attempt(kernels, name)
    assert says in str(caught.value)
