"""The sanitizers of scripts/sanitize.sh report mistakes: tested with kernels that have one mistake each."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minillm.toolchain.compiler import BuildFailed, run_compiler
from minillm.toolchain.crew import Crew
from minillm.toolchain.sanitizer import environment, preload

REPO = Path(__file__).resolve().parents[2]
MISTAKES = {
    "the last row reads beyond its end": (
        "vec.h",
        "  memcpy(padded, p, n * sizeof(T));\n  return load(padded);",
        "  memcpy(padded, p, (n + 1) * sizeof(T));\n  return load(padded);",
        "heap-buffer-overflow",
    ),
    "a slot computed in 32 bits": (
        "keytile.h",
        "int64_t at = (table[(first + i) / block_size] * block_size + inside) * slot_size;",
        "int64_t at = (table[0] + 1) * (1 << 30) * 4;",
        "signed integer overflow",
    ),
}
CALL = """
import torch
from native import Case
from minillm.ops.cpu import CpuOps
ops = CpuOps()
ops.rms_norm(torch.ones(1, 17), torch.ones(17), 1e-5)
q, k, v, meta, _ = Case([(1, 40)], heads=1, kv_heads=1, dim=16, block_size=4).build(torch.float32)
ops.paged_attention(q, k, v, meta, 1.0)
print("nothing noticed")
"""


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_has_its_place(name: str) -> None:
    """The line that the test below replaces still exists. That test is slow and runs rarely."""
    file, right, _, _ = MISTAKES[name]
    assert (REPO / "csrc" / "cpu" / file).read_text().count(right) == 1


def test_quantised_weights_and_keys_run_under_them() -> None:
    """Op by op and in an engine, native and simulated; and every file that the scripts name exists."""
    named = set[str]()
    for script in ("sanitize.sh", "full_check.sh"):
        for pattern in re.findall(r"tests/[\w/*]+\.py", (REPO / "scripts" / script).read_text()):
            found = {str(path.relative_to(REPO)) for path in REPO.glob(pattern)}
            assert found, f"{script} names {pattern}"
            named |= found
    kernels = {f"ops/test_native_{what}" for what in ("quantized", "kv8")}
    engine = {"engine/test_quantized", "engine/test_kv_dtype", "model/test_stored_quantized"}
    simulated = {f"cuda/test_{kind}_{what}" for kind in ("cuda", "simt") for what in ("quantized", "kv8")}
    assert {f"tests/{name}.py" for name in kernels | engine | simulated} <= named


def test_the_compiler_itself_runs_without_the_sanitizers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under them it takes twice the time. Elsewhere what is preloaded stays."""
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\n[ -z "$LD_PRELOAD" ] || { echo "error: found it" >&2; exit 1; }\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("LD_PRELOAD", "libnone.so")
    with Crew(tmp_path / "scratch") as crew:
        with pytest.raises(BuildFailed, match="found it"):
            run_compiler(crew, [str(compiler)])
        monkeypatch.setenv("MINILLM_SANITIZE", "1")
        run_compiler(crew, [str(compiler)])


@pytest.mark.slow
@pytest.mark.skipif(not preload(), reason="the compiler has no sanitizers")
@pytest.mark.parametrize("name", [None, *MISTAKES])
def test_a_mistake_is_noticed(tmp_path: Path, name: str | None) -> None:
    shutil.copytree(REPO / "minillm", tmp_path / "minillm", ignore=shutil.ignore_patterns("zoo", "kernels"))
    for part in ("cpu", "shared"):
        shutil.copytree(REPO / "csrc" / part, tmp_path / "csrc" / part)
    says = ""
    if name is not None:
        file, right, wrong, says = MISTAKES[name]
        source = tmp_path / "csrc" / "cpu" / file
        source.write_text(source.read_text().replace(right, wrong))
    done = subprocess.run(
        [sys.executable, "-P", "-c", CALL],
        env=os.environ
        | environment()
        | {
            "PYTHONPATH": f"{tmp_path}:{REPO / 'tests' / 'helpers'}",
            "MINILLM_CACHE": str(tmp_path / "cache"),
            "MINILLM_CPU_PATH": "generic",
        },
        capture_output=True,
        text=True,
    )
    assert (done.stdout == "nothing noticed\n") == (name is None), done.stderr[-2000:]
    assert says in done.stderr
