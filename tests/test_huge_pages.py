"""Memory on huge pages: the same numbers wherever they lie, and no harm where there are no such pages."""

from __future__ import annotations

import gc
import mmap
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from minillm.ops import huge_pages
from minillm.ops.huge_pages import HugePages, empty_bytes
from minillm.ops.native import NativeOps

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone can be asked for huge pages")


def matrix(*shape: int) -> Tensor:
    return torch.randn(shape)


@ON_LINUX
def test_matrices_lie_end_to_end_and_are_the_same_numbers() -> None:
    pages, sources = HugePages(), [matrix(300, 151), matrix(151, 300).t(), matrix(400, 100)]
    placed = [pages.place(source) for source in sources]
    assert all(torch.equal(a, b) and a.is_contiguous() for a, b in zip(placed, sources, strict=True))
    assert all(a.data_ptr() % 64 == 0 for a in placed)
    ends = [-(-a.nbytes // 64) * 64 + a.data_ptr() for a in placed]
    assert [a.data_ptr() for a in placed[1:]] == ends[:-1]


@ON_LINUX
def test_what_was_placed_outlives_who_placed_it() -> None:
    pages = HugePages()
    first, source = pages.place(matrix(512, 512)), matrix(4096, 4096)  # the second takes a piece of its own
    second = pages.place(source)
    expected = first.clone()
    del pages
    gc.collect()
    noise = [torch.full((1 << 20,), float("nan")) for _ in range(8)]
    assert torch.equal(first, expected)
    assert torch.equal(second, source)
    assert len(noise) == 8


def test_what_is_small_stays_where_it_is() -> None:
    small = matrix(16, 16)
    assert HugePages().place(small) is small


@ON_LINUX
def test_the_system_gives_huge_pages() -> None:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[never]" in setting.read_text():
        pytest.skip("this system gives no huge pages")
    memory = empty_bytes(16 << 20).fill_(1)
    ordinary = torch.ones(1 << 20, dtype=torch.uint8)
    assert huge_bytes(memory) >= 8 << 20
    assert "[always]" in setting.read_text() or huge_bytes(ordinary) < 2 << 20, "control"


def huge_bytes(tensor: Tensor) -> int:
    """Bytes on huge pages in the mapping that holds `tensor`."""
    for mapping in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        first, last = (int(x, 16) for x in mapping.split(" ", 1)[0].split("-"))
        if first <= tensor.data_ptr() < last:
            found = re.search(r"AnonHugePages:\s+(\d+) kB", mapping)
            return int(found[1]) << 10 if found else 0
    raise AssertionError("no mapping holds it")


def test_nobody_to_ask_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "_ADVICE", None)
    source = matrix(512, 512)
    assert HugePages().place(source) is source
    assert len(empty_bytes(12345).fill_(7)) == 12345


@ON_LINUX
def test_a_kernel_without_them_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = []

    class Refusing(mmap.mmap):
        def madvise(self, *arguments: int) -> None:
            refused.append(arguments)
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(huge_pages.mmap, "mmap", Refusing)
    source = matrix(512, 512)
    assert torch.equal(HugePages().place(source), source)
    assert refused


@ON_LINUX
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_lie_there_one_behind_the_other(dtype: torch.dtype) -> None:
    ops, (first, second) = NativeOps(), (matrix(512, 256).to(dtype), matrix(256, 512).to(dtype))
    packed = [ops.prepare_weight(weight.clone()) for weight in (first, second)]
    assert packed[1].data.data_ptr() == packed[0].data.data_ptr() + packed[0].data.nbytes
    for weight, kept in zip((first, second), packed, strict=True):
        assert torch.equal(ops.embedding(torch.arange(len(weight)), kept), weight)
