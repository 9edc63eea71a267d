"""Memory on huge pages: the same results as on other memory, and no error on systems without huge pages."""

from __future__ import annotations

import gc
import mmap
import re
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

from minillm.ops import huge_pages
from minillm.ops.cpu import CpuOps
from minillm.ops.huge_pages import HugePages, empty_bytes

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has this kind of huge pages")


@ON_LINUX
def test_tensors_lie_end_to_end() -> None:
    pages, shapes = HugePages(), [(300, 151), (400, 100), (7, 70000)]
    tensors = [pages.empty(shape, torch.float32) for shape in shapes]
    assert [tuple(t.shape) for t in tensors] == shapes
    assert all(t.is_contiguous() and t.data_ptr() % 64 == 0 for t in tensors)
    ends = [-(-t.nbytes // 64) * 64 + t.data_ptr() for t in tensors]
    assert [t.data_ptr() for t in tensors[1:]] == ends[:-1]


@ON_LINUX
def test_a_tensor_outlives_who_gave_it() -> None:
    pages = HugePages()
    first = pages.empty((512, 512), torch.float32).fill_(1.5)
    second = pages.empty((4096, 4096), torch.float32).fill_(2.5)  # larger than one piece
    del pages
    gc.collect()
    noise = [torch.full((1 << 20,), float("nan")) for _ in range(8)]
    assert torch.equal(first, torch.full((512, 512), 1.5))
    assert torch.equal(second, torch.full((4096, 4096), 2.5))
    assert len(noise) == 8


@ON_LINUX
def test_what_is_small_is_left_to_torch() -> None:
    pages = HugePages()
    first = pages.empty((512, 512), torch.float32)
    small = pages.empty((16, 16), torch.bfloat16)
    assert tuple(small.shape) == (16, 16) and small.dtype == torch.bfloat16
    assert not first.data_ptr() <= small.data_ptr() < first.data_ptr() + (32 << 20)


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
    """Bytes on huge pages in the memory mapping that contains `tensor`."""
    for mapping in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        first, last = (int(x, 16) for x in mapping.split(" ", 1)[0].split("-"))
        if first <= tensor.data_ptr() < last:
            found = re.search(r"AnonHugePages:\s+(\d+) kB", mapping)
            return int(found[1]) << 10 if found else 0
    raise AssertionError("no mapping holds it")


def test_nobody_to_ask_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "_ADVICE", None)
    assert HugePages().empty((512, 512), torch.float16).fill_(1).sum() == 512 * 512
    assert len(empty_bytes(12345).fill_(7)) == 12345


@ON_LINUX
def test_a_kernel_without_them_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = []

    class Refusing(mmap.mmap):
        def madvise(self, *arguments: int) -> None:
            refused.append(arguments)
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(huge_pages.mmap, "mmap", Refusing)
    assert HugePages().empty((512, 512), torch.float32).fill_(1).sum() == 512 * 512
    assert refused


@ON_LINUX
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_models_matrices_lie_there(native_ops: CpuOps, tmp_path: Path, dtype: str) -> None:
    config = tiny.config(hidden_size=256, intermediate_size=512, num_hidden_layers=3)
    llm = tiny.load(tiny.make_folder(tmp_path, config), backend="native", dtype=dtype)
    matrices = llm.engine.model.decoder.matrices
    large = [m.data for m in matrices if m.nbytes >= 128 << 10]
    assert len(large) >= 3 * 3
    places = sorted((m.data_ptr(), m.nbytes) for m in large)
    gaps = [after - before - size for (before, size), (after, _) in pairwise(places)]
    assert gaps == [0] * len(gaps), "end to end"
