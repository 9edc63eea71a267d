"""The pages: links lead somewhere, Python runs, commands are those of the command line."""

from __future__ import annotations

import os
import re
import shlex
from argparse import ArgumentError
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT, Page, all_pages, page

from minillm.cli.main import _parser, main
from minillm.toolchain.compiler import find_compiler

PAGES = {p.name: p for p in all_pages()}
WITH_PYTHON = [
    name
    for name, p in PAGES.items()
    if name != "docs/extending.md" and any(b.language == "python" for b in p.blocks)
]
DOCS = (
    "README",
    "architecture",
    "contracts",
    "extending",
    "families",
    "instructor_guide",
    "kernels",
    "replay",
    "teaching",
    "troubleshooting",
    "usage",
)
ORDER = ("Hear it speak", "Learn with it", "Read it", "Use it", "Work on it", "The rest")
# Every one ends in a second or two; they do not need a terminal, a network or a long measurement.
CHEAP = {"labs", "inspect", "doctor"}


def broken(source: Page) -> list[str]:
    """Links to files that are not there, or to headings that a page lacks."""
    found = []
    for link in source.links:
        if re.match(r"[a-z]+:", link):
            continue  # the web is not ours to test
        file, _, anchor = link.partition("#")
        target = (source.path.parent / file).resolve() if file else source.path
        if not target.exists() or (anchor and anchor not in Page(target).anchors):
            found.append(link)
    return found


def commands(source: Page) -> Iterator[list[str]]:
    """What the page types after `minillm`, without comments; pipes are cut off."""
    for block in source.blocks:
        if block.language in ("bash", "console", "sh"):
            for line in block.text.splitlines():
                for command in line.split(" | "):
                    words = shlex.split(command, comments=True)
                    if words[:1] == ["minillm"]:
                        yield words[1:]


ALL_COMMANDS = [(name, words) for name, p in PAGES.items() for words in commands(p)]


# ---- links ----------------------------------------------------------------------------------------


def test_the_pages_are_there() -> None:
    assert {f"docs/{name}.md" for name in DOCS} <= set(PAGES)
    assert len(PAGES) >= 25 and sum(len(p.links) for p in PAGES.values()) > 150


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    assert broken(PAGES[name]) == []


@pytest.mark.parametrize("link", ["no_file.md", "README.md#no-heading", "#nowhere", "../nothing"])
def test_control_a_broken_link_is_noticed(link: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# One heading\n")
    (tmp_path / "page.md").write_text(f"# A page\n\n[a]({link}) [b](README.md#one-heading) [c](#a-page)\n")
    assert broken(Page(tmp_path / "page.md")) == [link]


def test_every_page_of_docs_is_listed() -> None:
    listed = set(PAGES["docs/README.md"].links)
    assert {f"{name}.md" for name in DOCS if name != "README"} <= listed
    assert {f"docs/{name}.md" for name in DOCS} <= set(PAGES["README.md"].links)


# ---- the README -----------------------------------------------------------------------------------


def test_the_readme_is_short_and_in_order() -> None:
    readme = page("README.md")
    assert len(readme.text.splitlines()) <= 150
    headings = re.findall(r"^## (.+)$", readme.prose, re.MULTILINE)
    assert headings == list(ORDER)


# ---- Python ---------------------------------------------------------------------------------------


def test_there_is_python_to_run() -> None:
    assert {"README.md", "docs/usage.md", "docs/architecture.md", "docs/kernels.md"} <= set(WITH_PYTHON)


@pytest.mark.parametrize("name", WITH_PYTHON)
def test_python_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The blocks of a page share one namespace."""
    if name == "docs/kernels.md" and find_compiler() is None:
        pytest.skip("the simulator needs a C++ compiler")
    names: dict[str, Any] = {}
    for block in PAGES[name].blocks:
        if block.language == "python":
            exec(compile("\n" * block.line + block.text, name, "exec"), names)
    assert capsys.readouterr().out.strip() != ""


def test_the_table_of_seams_is_the_engine_s() -> None:
    from minillm.engine.parts import _ARGUMENTS

    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", PAGES["docs/architecture.md"].prose, re.MULTILINE)
    assert dict(rows) == _ARGUMENTS


def test_the_table_of_options_is_the_engine_s() -> None:
    from minillm.config import EngineConfig

    section = PAGES["docs/usage.md"].text.partition("### Engine options")[2].partition("\n### ")[0]
    named = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (.+?) \|", section, re.MULTILINE))))
    fields = {name for name in EngineConfig.__dataclass_fields__ if "draft" not in name}
    assert named == fields | {"parts", "draft_model"}


# ---- commands -------------------------------------------------------------------------------------


def accepts(words: list[str]) -> bool:
    """Whether the command line takes these words; a bad one ends with SystemExit."""
    try:
        _parser()[0].parse_args(words)
    except (SystemExit, ArgumentError):
        return False
    return True


def test_there_are_commands() -> None:
    assert len(ALL_COMMANDS) > 25
    shown = {words[0] for _, words in ALL_COMMANDS}
    assert shown == set(
        "generate chat pull list rm convert quantize inspect bench verify demo doctor labs".split()
    )


@pytest.mark.parametrize(("name", "words"), ALL_COMMANDS, ids=lambda value: str(value)[:60])
def test_commands_are_accepted(name: str, words: list[str]) -> None:
    assert accepts(words), f"{name}: minillm {' '.join(words)}"


def test_control_a_wrong_option_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    assert not accepts(["generate", "--no-such-option"]) and not accepts(["benchmark"])
    assert "no-such-option" in capsys.readouterr().err


def test_cheap_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each once, in an empty folder. A lab that is not written yet gets 1; lab 13 is a recipe's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "110")
    cheap = {tuple(words): None for _, words in ALL_COMMANDS if words[0] in CHEAP and "13" not in words[-1]}
    assert len(cheap) >= 5
    for words in cheap:
        if words[0] == "labs" and words[1] in ("check", "bench", "grade", "export"):
            continue  # they start processes or need files: tests/labs runs them
        assert main(list(words)) == 0, words
        assert capsys.readouterr().out.strip()
    assert os.listdir(tmp_path) == ["lab1_sampling"]


def test_a_page_s_environment_variables_are_read_somewhere() -> None:
    text = PAGES["docs/usage.md"].text.partition("## Environment variables")[2]
    named = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    sources = [*ROOT.glob("minillm/**/*.py"), *ROOT.glob("scripts/*.sh"), ROOT / "setup.py"]
    read = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    assert len(named) >= 8 and [name for name in named if name not in read] == []


# ---- names ----------------------------------------------------------------------------------------


def unknown_names(source: Page, known: set[str]) -> list[str]:
    """Names in `backticks` of which a part occurs nowhere in the code: Class, Class.method, some_function."""
    named = re.findall(r"`([A-Za-z_]\w*(?:\.\w+)*)`", source.prose)
    looks_like_code = [name for name in named if re.search(r"[_.]|[a-z][A-Z]", name)]
    return [name for name in looks_like_code if not set(name.split(".")) <= known]


def words_of_the_code() -> set[str]:
    paths = [
        path
        for folder in ("minillm", "csrc", "scripts", "tests/helpers")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".sh", ".cpp", ".h", ".cu")
    ]
    files = {part for path in paths for part in (path.stem, path.suffix[1:])}
    paths.append(ROOT / "pyproject.toml")
    return files.union(*(re.findall(r"\w+", path.read_text(encoding="utf-8")) for path in paths))


def test_names_on_the_pages_are_names_of_the_code() -> None:
    others = {"md", "ipynb", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "HTTPS_PROXY"}  # not ours
    known = words_of_the_code() | others
    own = [p for name, p in PAGES.items() if name.startswith("docs/") or "/" not in name]
    found = {p.name: unknown_names(p, known) for p in own if p.name != "CHANGELOG.md"}
    assert {name: names for name, names in found.items() if names} == {}


def test_control_a_renamed_method_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("`KVCacheManager.fork`, `KVCacheManager.frok`, `make_input`, `once`\n")
    assert unknown_names(Page(tmp_path / "page.md"), words_of_the_code()) == ["KVCacheManager.frok"]
