"""docs/contracts.md names tests that exist: for each contract at least one that holds it, and one control."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest
from pages import ROOT, page

CONTRACTS = page("docs/contracts.md")
SECTIONS = {
    title.partition(":")[0]: text
    for title, text in re.findall(
        r"^## (C\d+: [^\n]+)\n(.*?)(?=^## |\Z)", CONTRACTS.text, re.MULTILINE | re.DOTALL
    )
}
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
PARTS = ("Tests", "Controls")


def named_in(text: str, part: str) -> list[tuple[str, str]]:
    """(file, test) of each item of the list under **part**."""
    found = re.search(rf"^\*\*{part}\*\*\n\n((?:[* ] .+\n)+)", text, re.MULTILINE)
    return NAMED.findall(found[1]) if found else []


@cache
def defined_tests(file: str) -> set[str]:
    """The tests that a file defines; none if there is no such file."""
    path = ROOT / file
    tree = ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([], [])
    return {n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")}


def missing(text: str) -> list[str]:
    """The tests that a text names and nobody has written."""
    return [f"{file}::{name}" for file, name in NAMED.findall(text) if name not in defined_tests(file)]


def test_every_contract_has_a_section() -> None:
    assert list(SECTIONS) == [f"C{i}" for i in [*range(1, 11), 12]]
    assert len(NAMED.findall(CONTRACTS.text)) > 40


@pytest.mark.parametrize("contract", SECTIONS)
@pytest.mark.parametrize("part", PARTS)
def test_every_contract_names_tests_and_a_control(contract: str, part: str) -> None:
    assert named_in(SECTIONS[contract], part) != []


def test_every_test_that_is_named_exists() -> None:
    assert missing(CONTRACTS.text) == []


def test_control_a_test_that_was_renamed_is_noticed() -> None:
    text = "`tests/docs/test_contracts.py::test_that_never_was`, `tests/docs/test_gone.py::test_x`"
    assert len(missing(text)) == 2
    assert missing("`tests/docs/test_contracts.py::test_every_contract_has_a_section`") == []
    assert named_in("**Tests**\n\nnone of them\n", "Tests") == []


def test_every_contract_that_is_cited_has_a_section() -> None:
    cited = set[str]()
    for folder in ("minillm", "csrc", "scripts", "notebooks/src", "tests"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".h", ".cpp", ".cu", ".md"):
                text = path.read_text(encoding="utf-8")
                cited |= set(re.findall(r"[Cc]ontracts? (C\d+)\b", text))
    assert {"C2", "C7"} <= cited <= set(SECTIONS)
