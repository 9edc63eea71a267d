"""The recipes of docs/extending.md, carried out from the page's own blocks.

A block that names a file is written into a copy of the package; a diff is applied to the copy; every other
Python block runs as it stands.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dense
import pytest
import torch
from cases import BOUND, CASES
from pages import ROOT, page

from minillm import LLM
from minillm.errors import UnsupportedModel
from minillm.model import families
from minillm.ops.registered import load_native
from minillm.toolchain.compiler import BuildFailed, find_compiler

RECIPES = page("docs/extending.md")
HELPERS = ROOT / "tests" / "helpers"


def run_blocks(title: str, language: str = "python") -> dict[str, Any]:
    """Run the section's plain Python blocks in one namespace, and return it."""
    names: dict[str, Any] = {}
    blocks = [b for b in RECIPES.section(title) if b.language == language and not b.file]
    assert blocks, title
    for block in blocks:
        exec(compile("\n" * block.line + block.text, RECIPES.name, "exec"), names)
    return names


def write_files(title: str, root: Path) -> list[Path]:
    """Write the section's named files below `root`."""
    written = []
    for block in RECIPES.section(title):
        if block.file:
            path = root / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.content, encoding="utf-8")
            written.append(path)
    return written


def apply_diffs(title: str, root: Path) -> None:
    """Apply the section's diffs: `--- file`, then lines that stay, go (-) and come (+)."""
    for block in RECIPES.section(title):
        if block.language == "diff":
            for file, lines in re.findall(r"^--- (\S+)\n((?:[ +-](?!-- ).*\n)+)", block.text, re.MULTILINE):
                old = "".join(line[1:] + "\n" for line in lines.splitlines() if line[0] != "+")
                new = "".join(line[1:] + "\n" for line in lines.splitlines() if line[0] != "-")
                text = (root / file).read_text(encoding="utf-8")
                assert text.count(old) == 1, f"{file} has {text.count(old)} times {old!r}"
                (root / file).write_text(text.replace(old, new), encoding="utf-8")


def copy_of_the_package(folder: Path, *others: str) -> Path:
    """The package, and other folders of the project, to be changed."""
    ignored = shutil.ignore_patterns("zoo", "kernels", "__pycache__")
    for name in ("minillm", *others):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    return folder


def run_in(root: Path, program: str) -> str:
    """What a Python program prints that imports the package at `root`."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=root,
        env=os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{HELPERS}", "COLUMNS": "110"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# ---- a model family -------------------------------------------------------------------------------


@pytest.fixture
def fable() -> Iterator[dict[str, Any]]:
    """The names of the family's recipe, which registers a family for the time of a test."""
    try:
        yield run_blocks("A model family")
    finally:
        families.FAMILIES.pop("fable", None)


def test_the_family_s_checkpoint_answers_as_a_dense_pass_does(fable: dict[str, Any]) -> None:
    ids, llm = fable["prompt"], fable["llm"]
    config = fable["config"] | {"num_key_value_heads": 2, "rms_norm_eps": 1e-6}
    exact = dense.logits(config, fable["weights"], ids)
    found = llm.logits(ids).double()
    scale = float(exact.abs().max())
    assert float((found - exact).abs().max()) < 2e-4 * scale
    assert len(fable["output"].token_ids) == 8
    # The controls: a forgotten window, and a forgotten norm, are far away.
    for wrong in (config | {"sliding_window": None}, config | {"qk_norm": False}):
        other = dense.logits(wrong, fable["weights"], ids)
        assert float((other - exact).abs().max()) > 100 * 2e-4 * scale


def test_without_its_entry_the_family_is_refused(
    fable: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(families.FAMILIES, "fable")
    with pytest.raises(UnsupportedModel, match="architecture 'FableForCausalLM' is not supported"):
        LLM(fable["folder"], device="cpu")


# ---- a kernel rung --------------------------------------------------------------------------------

COMPARE = """
import oracle, torch
from cases import CASES
from minillm.ops.cuda_rungs import ATTENTION_RUNGS
from minillm.ops.simt import SimtOps, flavour
ops = SimtOps()
print(*ATTENTION_RUNGS)
for i, case in enumerate(CASES[::3]):
    with flavour("fast" if i else "check"):
        q, k, v, meta, tables = case.build(torch.float32)
        found, v2 = (
            ops.paged_attention(q, k, v, meta, case.dim**-0.5, case.window, rung) for rung in ("v0", "v2")
        )
        lens = [n for n, _ in case.seqs], [n for _, n in case.seqs]
        exact = oracle.paged_attention(q, k, v, tables, *lens, case.dim**-0.5, case.window)
        print(f"{oracle.error(found, exact):.3e}", torch.equal(found, v2))
"""


@pytest.mark.slow
@pytest.mark.skipif(find_compiler() is None, reason="the simulator needs a C++ compiler")
def test_the_rung_compiles_and_equals_the_others(tmp_path: Path) -> None:
    root = copy_of_the_package(tmp_path, "csrc")
    (kernel,) = write_files("A kernel rung", root)
    apply_diffs("A kernel rung", root)
    example = next(b.text for b in RECIPES.section("A kernel rung") if b.language == "python")
    names, *rows = run_in(root, COMPARE).splitlines()
    assert names.split() == ["v0", "v1", "v2", "d1"]
    assert len(rows) == len(CASES[::3]) >= 8
    for row in rows:
        error, is_equal = row.split()
        assert float(error) <= BOUND[torch.float32] and is_equal == "True", row
    difference, read = run_in(root, example).split()
    assert float(difference.removeprefix("tensor(").rstrip(")")) < 1e-5 and int(read) > 0
    assert kernel.name == "attention_v0.cu"


# ---- a drafter ------------------------------------------------------------------------------------


def test_the_drafter_changes_no_bit() -> None:
    try:
        load_native()
    except BuildFailed as reason:
        pytest.skip(f"the bits are promised by the native kernels: {reason}")
    names = run_blocks("A drafter")
    plain, drafted = names["plain"], names["drafted"]
    assert drafted.metrics.accepted > 0, "nothing stood, so nothing was tested"
    assert plain.token_ids == drafted.token_ids
    assert plain.logprobs == drafted.logprobs  # floats, compared as such: the same bits
    assert plain.metrics.drafted == 0


# ---- a lab ----------------------------------------------------------------------------------------

CHECK_LAB = """
from pathlib import Path
from minillm.cli.main import main
from minillm.labs.grader.judge_here import judge_file
from minillm.labs.grader.student_file import load
from minillm.labs.grader.registry import find_lab
from minillm.labs.grader.skeleton import solution

def check(what):
    row = judge_file(lab, lab.tasks[0], load(file), file)
    print(f"{what}: {row.status}, {row.earned} of {row.points}, {row.diagnosis}")

main(["labs", "list"])
main(["labs", "start", "13"])
main(["labs", "hint", "13.1"])
lab, file = find_lab("13"), Path("lab13_tail/lab13.py").resolve()
check("skeleton")
file.write_text(solution(lab))
check("solution")
rank = "math.ceil(share * len(values)) - 1"
file.write_text(solution(lab).replace(rank, "min(int(share * len(values)), len(values) - 1)"))
check("rank too high")
file.write_text(solution(lab).replace(rank, "round(share * len(values)) - 1"))
check("rounded")
"""


def test_the_lab_is_found_and_judges(tmp_path: Path) -> None:
    root = copy_of_the_package(tmp_path)
    assert len(write_files("A lab", root)) == 3
    said = run_in(root, CHECK_LAB)
    assert "lab 13" in said and "Tail latency" in said and "Sort the values first." in said
    assert "skeleton: todo, 0 of 100, \n" in said
    assert "solution: ok, 100 of 100, \n" in said
    assert "rank too high: wrong, 0 of 100, one rank too high: the smallest value has rank 1" in said
    assert "rounded: wrong, 0 of 100, \n" in said  # a mistake that the lab does not know has no diagnosis
    handout = (root / "lab13_tail" / "README.md").read_text()
    assert "| 13.1 | percentile: the value that a share of all requests do not exceed | 100 |" in handout


def test_the_lab_s_commands_are_those_of_the_page() -> None:
    said = [line for b in RECIPES.section("A lab") if b.language == "bash" for line in b.text.splitlines()]
    assert [line.split("#")[0].split() for line in said] == [
        ["minillm", "labs", "list"],
        ["minillm", "labs", "start", "13"],
        ["minillm", "labs", "check", "13"],
        ["minillm", "labs", "hint", "13.1"],
    ]
