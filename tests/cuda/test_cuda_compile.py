"""Every .cu file compiles to SASS for sm_75, sm_80 and sm_90, without spills, with the recorded registers.

Needs nvcc but no GPU. After a deliberate change of a kernel:

    MINILLM_RECORD=1 pytest tests/cuda/test_cuda_compile.py
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from gpu_objects import RECORD, changed, compile_once

from minillm.labs.grader.registry import find_lab
from minillm.toolchain.cuda import ARCHITECTURES, compile_command
from minillm.toolchain.cuda_toolkit import find_cuda, nvcc_version
from minillm.toolchain.sources import find_sources

CUDA = find_cuda()
if CUDA is None:
    pytest.skip("no nvcc: the kernels are only simulated here", allow_module_level=True)

SOURCES = find_sources("cuda", ".cu")
RUN_IN_TESTS = ("counted.cu", "bugs.cu", "sync.cu", "words.cu", "limits.cu")
OTHERS = [Path(__file__).parent / "kernels" / name for name in RUN_IN_TESTS]
OTHERS += [find_lab(number).package / f"lab{number}.cu" for number in ("7", "8", "10", "14")]
FUNCTION = re.compile(
    r"Compiling entry function '(\S+)' for '(\S+)'.*?"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
    re.DOTALL,
)


def registers(source: Path, said: str) -> dict[str, dict[str, int]]:
    """{kernel: {architecture: registers of the instantiation with the most}}."""
    kernels = re.findall(r"__global__[^;{]*?(\w+)\(const __grid_constant__", source.read_text())
    found: dict[str, dict[str, int]] = {}
    for symbol, arch, stack, stores, loads, used in FUNCTION.findall(said):
        assert (stack, stores, loads) == ("0", "0", "0"), f"{symbol} for {arch} spills"
        (name,) = [k for k in kernels if f"{len(k)}{k}I" in symbol or f"{len(k)}{k}E" in symbol]
        per_arch = found.setdefault(name, {})
        per_arch[arch] = max(per_arch.get(arch, 0), int(used))
    assert set(found) == set(kernels)
    return found


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_kernels_compile_without_spills(source, gpu_objects):
    found = registers(source, compile_once(source, gpu_objects)[1])
    assert all(set(per_arch) == {f"sm_{arch}" for arch in ARCHITECTURES} for per_arch in found.values())
    record = json.loads(RECORD.read_text()) if RECORD.is_file() else {"nvcc": "", "registers": {}}
    version = nvcc_version(CUDA)
    if os.environ.get("MINILLM_RECORD") == "1":
        record = {"nvcc": version, "registers": {**record["registers"], source.stem: found}}
        RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    if record["nvcc"] == version:  # other versions allocate registers differently
        assert found == record["registers"][source.stem], "set MINILLM_RECORD=1 if the change is intended"


def test_control_a_spill_is_seen(tmp_path):
    more_blocks = "__launch_bounds__(kThreads, 4)", "__launch_bounds__(kThreads, 8)"
    source = changed("decode_d1", tmp_path, [("decode_d1.cu", *more_blocks)])
    said = compile_once(source, tmp_path, ["90"])[1]
    with pytest.raises(AssertionError, match="spills"):
        registers(source, said)


@pytest.mark.parametrize("source", OTHERS, ids=lambda path: path.stem)
def test_what_the_simulator_runs_in_tests_is_cuda(source, tmp_path):
    """nvcc accepts the dialect too, so a student's finished file compiles unchanged."""
    quiet = ["-diag-suppress", "177,128"]
    command = compile_command(CUDA, source, tmp_path / "out.o", ARCHITECTURES)
    done = subprocess.run([*command, *quiet], capture_output=True, text=True)
    if source.stem == "bugs":  # one of its bugs uses more shared memory than nvcc accepts
        assert done.returncode != 0
        assert "uses too much shared data" in done.stderr
        return
    assert done.returncode == 0, done.stderr


def test_asynchronous_copies_exist_from_sm_80_on(tmp_path):
    for arch, there in (("75", False), ("80", True)):
        target = tmp_path / f"{arch}.ptx"
        source = Path(__file__).parent / "kernels" / "counted.cu"
        command = compile_command(CUDA, source, target, [])
        subprocess.run([*command, "-ptx", f"-arch=compute_{arch}"], check=True, capture_output=True)
        assert ("cp.async.ca" in target.read_text()) == there


@pytest.mark.slow
def test_the_torch_binding_for_cuda_builds_and_loads_without_a_gpu():
    """Registration needs no driver; only a launch does."""
    from minillm.ops.cuda import load_library

    load_library()
    rows = (
        "rms_norm",
        "add_rms_norm",
        "layer_norm",
        "act_and_mul",
        "act",
        "softcap",
        "route",
        "experts",
        "linear",
        "linear_codes",
        "embedding_codes",
        "rope_and_cache",
        "copy_blocks",
        "sample",
        "finite_rows",
    )
    for op in (*rows, "variant_attention", "verify_coupled", "verify_draft"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"minillm_cuda::{op}", "CUDA")
    assert torch._C._dispatch_has_kernel_for_dispatch_key("minillm_cuda::paged_attention", "CUDA")
    q = torch.empty(3, 2, 32, device="meta")
    index = torch.empty(1, dtype=torch.int32, device="meta")
    out = torch.ops.minillm_cuda.paged_attention(q, q, q, index, index, index, 0.1, 0, "v2", 0, 0)
    assert out.shape == q.shape
