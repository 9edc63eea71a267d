"""The tool that draws mutants, on a package of three functions: what is drawn, survives, is killed."""

from __future__ import annotations

import ast
import random
import subprocess
import sys
import tomllib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "scripts" / "dev" / "mutants"
SOURCE = '''\
"""What 1 + 1 is, and more."""

LIMIT = 3


def clamp(x: int | None, low: int, high: int) -> int | None:
    """Not below `low`, not above `high`."""
    if x is None or low > high:
        raise ValueError(f"{low + 1}")
    return max(low, min(x, high))


def order(items: list[int]) -> list[int]:
    found = sorted(items, reverse=True)
    found.append(LIMIT)
    return found


def never(x: int) -> int:
    return x * 7
'''
WEAK = """\
from fake.tools import clamp, order

def test_clamp():
    clamp(2, 1, 3)

def test_order():
    order([1, 2])
"""
STRONG = """\
import pytest
from fake.tools import clamp, never, order

def test_clamp():
    assert [clamp(x, 1, 3) for x in (0, 1, 2, 3, 4)] == [1, 1, 2, 3, 3]
    assert clamp(5, 2, 2) == 2
    for x, low, high in ((None, 1, 2), (1, 3, 2)):
        with pytest.raises(ValueError):
            clamp(x, low, high)

def test_order():
    assert order([1, 5, 2]) == [5, 2, 1, 3]

def test_never():
    assert never(3) == 21
"""


@pytest.fixture
def mutations(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(TOOL))
    import mutations

    yield mutations
    del sys.modules["mutations"]


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    (tmp_path / "fake").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "conftest.py").write_text("")  # pytest treats plugins otherwise where there is one
    (tmp_path / "fake" / "__init__.py").write_text("")
    (tmp_path / "fake" / "tools.py").write_text(SOURCE)
    return tmp_path


def run(fake: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        str(TOOL),
        "--root",
        str(fake),
        "--sources",
        "fake/*.py",
        "--tests",
        "tests/test_*.py",
    ]
    command += ["--preload", "--equivalent", str(fake / "equivalent.toml"), "--jobs", "1", *more]
    return subprocess.run(command, capture_output=True, text=True, cwd=fake)


# ---- drawing --------------------------------------------------------------------------------------


def changed(mutant, root: Path) -> list[str]:
    """The new text of every line that a mutant changes."""
    before, after = (root / mutant.file).read_text().split("\n"), mutant.apply(root).split("\n")
    assert len(before) == len(after)
    return [new for old, new in zip(before, after, strict=True) if old != new]


def test_every_mutant_parses_and_differs_on_one_line(mutations, fake: Path) -> None:
    found = mutations.mutants_of(fake, "fake/tools.py")
    assert len(found) == len({(m.line, m.new) for m in found})
    for mutant in found:
        ast.parse(mutant.apply(fake))
        assert changed(mutant, fake) == [mutant.new]
    texts = {m.new.strip() for m in found}
    assert texts == {
        "LIMIT = 2",
        "LIMIT = 4",
        "if x is not None or low > high:",
        "if x is None and low > high:",
        "if x is None or low >= high:",
        "if not (x is None or low > high):",
        "return None",
        "return min(low, min(x, high))",
        "return max(low, max(x, high))",
        "return max(low, min(high, x))",
        "found = list(items)",
        "found = sorted(items, reverse=False)",
        "pass",
        "return x // 7",
        "return x * 6",
        "return x * 8",
    }


def test_the_engines_mutants_parse(mutations) -> None:
    """Of a few files of the package, a sample."""
    rng = random.Random(0)
    for file in (
        "minillm/engine/scheduler.py",
        "minillm/speculation/controller.py",
        "minillm/ops/sampling.py",
    ):
        for mutant in rng.sample(mutations.mutants_of(ROOT, file), 40):
            ast.parse(mutant.apply(ROOT))
            assert changed(mutant, ROOT) == [mutant.new]


def test_a_seed_decides_what_is_drawn(mutations) -> None:
    files = ["minillm/memory/block_pool.py", "minillm/memory/block_table.py"]
    drawn = [mutations.draw(ROOT, files, 12, seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] == mutations.draw(ROOT, files[::-1], 12, 1), "the order of the files does not matter"
    places = [(m.file, m.line) for m in drawn[0]]
    assert len(places) == 12 and all(a < b for a, b in pairwise(places)), "each on a line of its own"
    assert len(mutations.draw(ROOT, files, 10_000, 1)) < 100


def test_every_reason_belongs_to_a_mutant(mutations) -> None:
    """A line that has changed may need its test, and not its reason, any more."""
    entries = tomllib.loads((TOOL / "equivalent.toml").read_text())["mutant"]
    assert entries and all(entry["reason"] for entry in entries)
    there = {m.key for file in {e["file"] for e in entries} for m in mutations.mutants_of(ROOT, file)}
    assert {(e["file"], e["old"], e["new"]) for e in entries} <= there


def test_a_source_that_has_changed_is_noticed(mutations, fake: Path) -> None:
    mutant = mutations.mutants_of(fake, "fake/tools.py")[0]
    (fake / "fake" / "tools.py").write_text("\n" + SOURCE)
    with pytest.raises(ValueError, match="any more"):
        mutant.apply(fake)


# ---- running --------------------------------------------------------------------------------------


def survivors(output: str) -> set[str]:
    """The mutated lines of the report."""
    return {line.removeprefix("  + ") for line in output.splitlines() if line.startswith("  + ")}


def test_a_weak_test_lets_mutants_survive_and_a_strong_one_kills_them(fake: Path) -> None:
    test = fake / "tests" / "test_tools.py"
    test.write_text(WEAK)
    weak = run(fake)
    assert weak.returncode == 1, weak.stdout + weak.stderr
    assert len(survivors(weak.stdout)) > 5, weak.stdout
    assert "no test runs its line" in weak.stdout, "never() is never called"
    assert (fake / "fake" / "tools.py").read_text() == SOURCE
    test.write_text(STRONG)  # measured anew, as the file has changed
    strong = run(fake)
    assert strong.returncode == 0, strong.stdout + strong.stderr
    assert survivors(strong.stdout) <= {"return max(low, min(high, x))"}, "the same program in other words"


def test_a_survivor_with_a_reason_is_no_hole(fake: Path) -> None:
    (fake / "tests" / "test_tools.py").write_text(STRONG)
    line = next(i for i, text in enumerate(SOURCE.splitlines(), 1) if "return max" in text)
    asked = ("--line", f"fake/tools.py:{line}")
    assert survivors(run(fake, *asked).stdout) == {"return max(low, min(high, x))"}
    (fake / "equivalent.toml").write_text(
        '[[mutant]]\nfile = "fake/tools.py"\nold = "return max(low, min(x, high))"\n'
        'new = "return max(low, min(high, x))"\nreason = "min does not care about order"\n'
    )
    told = run(fake, *asked).stdout
    assert "min does not care about order" in told and "0 survived without a reason" in told


def test_a_test_that_never_ends_kills(fake: Path, mutations: Callable[..., object]) -> None:
    """A loop that a mutant makes endless is ended, and counts."""
    (fake / "fake" / "tools.py").write_text("def count(n):\n    while n > 0:\n        n -= 1\n    return n\n")
    (fake / "tests" / "test_tools.py").write_text(
        "from fake.tools import count\n\ndef test_count():\n    assert count(3) == 0\n"
    )
    told = run(fake, "--line", "fake/tools.py:3", "--patience", "1").stdout
    assert told.count("hung") >= 2 and "0 survived without a reason" in told


def test_a_mutant_that_cannot_be_imported_is_killed(fake: Path) -> None:
    """And a test that was measured and is gone is an error of the tool, and no verdict."""
    (fake / "fake" / "tools.py").write_text(
        "TABLE = {1: 'a'}\nVALUE = TABLE[1]\n\ndef get():\n    return VALUE\n"
    )
    test = fake / "tests" / "test_tools.py"
    test.write_text("from fake.tools import get\n\ndef test_get():\n    assert get() == 'a'\n")
    told = run(fake, "--line", "fake/tools.py:2")
    assert told.returncode == 0 and told.stdout.count("killed") >= 2, told.stdout + told.stderr
    coverage = fake / "build" / "mutants" / "coverage.json"
    coverage.write_text(coverage.read_text().replace("test_get", "test_got"))
    told = run(fake, "--line", "fake/tools.py:5")
    assert told.returncode == 1 and "have their names changed" in told.stderr
