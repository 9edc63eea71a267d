"""A student package for one lab: an engine without the parts that the student writes, and recorded answers.

    DIR/README.md          set-up, handout               DIR/minillm/           the engine
    DIR/lab3.py            the skeleton                    memory/...         parts call the student's file
    DIR/pyproject.toml     pip install -e DIR              labs/lab3_cache/   cases, without known mistakes
                                                               recorded.json  expected answers

What else holds the same ideas stays away: all kernels in C++ and CUDA, the other labs, the trained models,
hints that quote the solution. A lab in CUDA gets the simulator.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import astuple
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import minillm
from minillm.errors import UsageError
from minillm.labs.classroom.solution_lines import quoted, solution_lines
from minillm.labs.classroom.strip import WRITTEN, stripped, without
from minillm.labs.classroom.tidy import tidied
from minillm.labs.grader.codec import encode
from minillm.labs.grader.cuda_lab import CudaLab
from minillm.labs.grader.lab import Lab, Part, Task
from minillm.labs.grader.recorded import FILE, Recording, skeleton_name
from minillm.labs.grader.reference import Reference, engine_reference
from minillm.labs.grader.skeleton import skeleton
from minillm.toolchain.sources import csrc

ENGINE = Path(minillm.__file__).resolve().parent
_LEFT_OUT = set("zoo labs csrc kernels bench/kernels.py bench/peers bench/load observe/replay".split())
_LEFT_OUT.add("bench/llama_cpp_worker.py")
# What is made of events is the subject of lab 12.
_LEFT_OUT |= {f"observe/{name}.py" for name in ("chrome_trace", "figures", "histogram", "online", "plots")}
_INCLUDED = re.compile(r'^#include "([^"]+)"', re.MULTILINE)
# Those of pyproject.toml, which an installed minillm does not have.
DEPENDENCIES = [
    "torch>=2.10",
    "safetensors>=0.4.5",
    "tokenizers>=0.22",
    "jinja2>=3.1.6",
    "huggingface_hub>=0.30",
]
DEPENDENCIES += ["rich>=13"]
_PROJECT = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "minillm"
version = "{version}"
requires-python = ">=3.11"
dependencies = {dependencies}

[project.scripts]
minillm = "minillm.cli.main:main"

[tool.setuptools.packages.find]
include = ["minillm*"]

[tool.setuptools.package-data]
minillm = ["py.typed", "labs/**/*", "csrc/**/*"]
"""


_SET_UP = """

## Set-up

Linux, Python 3.11 or newer.{compiler} In the folder of this page:

    python3 -m venv .venv
    source .venv/bin/activate
    pip install -e .
    minillm labs check {lab.number}

The last line checks `{lab.file}`, the skeleton beside this page. Hand in this file. The package has an engine
without the parts of this lab: it calls those in your file. So keep the order of the tasks: a mistake in one
can make a later one fail. The expected answers are recorded. The lecturer's check may have more cases, and
tells the cause of common mistakes. `minillm doctor` misses kernels and models: this lab needs none of them.
"""
_COMPILER = " A C++ compiler, for example g++, for the kernels."


def export_package(lab: Lab, folder: Path) -> None:
    """Write the package of `lab` to `folder`, which must be empty or not exist.

    Raises:
        UsageError: the folder is not empty, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty", "give an empty or a new folder")
        _write_engine(lab, folder / "minillm")
        _write_lab(lab, folder / "minillm" / "labs" / lab.folder)
        (folder / "README.md").write_text(readme(lab), encoding="utf-8")
        (folder / lab.file).write_text(skeleton(lab), encoding="utf-8")
        project = _PROJECT.format(version=minillm.__version__, dependencies=json.dumps(DEPENDENCIES))
        (folder / "pyproject.toml").write_text(project, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror}", "choose another folder") from None


def readme(lab: Lab) -> str:
    """The handout after a section about the package. There `start` is not needed: the skeleton is in it."""
    title, _, page = lab.handout().partition("\n")
    kept = [line for line in page.splitlines() if f"minillm labs start {lab.number}" not in line]
    compiler = _COMPILER if isinstance(lab, CudaLab) else ""
    return title + _SET_UP.format(lab=lab, compiler=compiler) + "\n".join(kept) + "\n"


def recordings(lab: Lab) -> dict[str, list[Recording]]:
    """The engine's answer to every case, by task.

    Raises:
        UsageError: the engine's own part fails in a case.
    """
    right = engine_reference(lab)
    for task in lab.tasks:
        if why := right.fault(task):
            raise UsageError(f"task {task.number} has no right answer: {why}", "minillm labs check says more")
    return {task.number: [_recorded(right, task, i) for i in range(len(task.cases))] for task in lab.tasks}


def _recorded(right: Reference, task: Task, case: int) -> Recording:
    return {"answer": encode(right.expected(task, case)), "passes": astuple(right.passes(task, case))}


def _write_engine(lab: Lab, target: Path) -> None:
    """Every module of the engine; those with parts of the lab without their bodies."""
    parts = {} if isinstance(lab, CudaLab) else _parts_by_module(lab)
    twins = {} if isinstance(lab, CudaLab) else _twins_by_module(lab)
    for path in sorted(ENGINE.rglob("*")):
        place = path.relative_to(ENGINE)
        is_left_out = any(part.as_posix() in _LEFT_OUT for part in (place, *place.parents))
        if path.is_dir() or is_left_out or path.suffix not in (".py", ".typed", ".md"):
            continue
        text = path.read_text(encoding="utf-8")
        module = ".".join(["minillm", *place.with_suffix("").parts])
        if module in parts:
            text = stripped(text, parts[module])
        elif module in twins:
            text = without(text, twins[module])
        _write(target / place, text)
    _write(target / "written.py", WRITTEN)
    for folder in ("grader", "classroom"):
        shutil.copytree(
            ENGINE / "labs" / folder, target / "labs" / folder, ignore=shutil.ignore_patterns("__*")
        )
        shutil.copy(ENGINE / "labs" / folder / "__init__.py", target / "labs" / folder)
    shutil.copy(ENGINE / "labs" / "__init__.py", target / "labs")
    if isinstance(lab, CudaLab):
        _write_simulator(target / "csrc")


def _twins_by_module(lab: Lab) -> dict[str, list[str]]:
    """The names of functions that could answer in a part's place."""
    ordered = sorted(twin for part in lab.parts for twin in part.twins)
    return {module: [name for _, name in twins] for module, twins in groupby(ordered, key=itemgetter(0))}


def _parts_by_module(lab: Lab) -> dict[str, list[Part]]:
    ordered = sorted(lab.parts, key=lambda part: part.module)
    return {module: list(parts) for module, parts in groupby(ordered, key=lambda part: part.module)}


def _write_simulator(target: Path) -> None:
    for source in simulator_files():
        _write(target / source.relative_to(csrc().resolve()), source.read_text(encoding="utf-8"))


def simulator_files() -> list[Path]:
    """The simulator, the dialect of a lab's kernels, and every header that one of these files includes."""
    found: set[Path] = set()
    waiting = [csrc() / "cuda" / "common" / "dialect.h", *(csrc() / "simt").rglob("*.*")]
    while waiting:
        path = waiting.pop().resolve()
        if path not in found:
            found.add(path)
            waiting += [path.parent / name for name in _INCLUDED.findall(path.read_text(encoding="utf-8"))]
    return sorted(found)


def _write_lab(lab: Lab, target: Path) -> None:
    """The lab's folder: cases without mistakes, recorded answers, skeleton, handout."""
    sources = {path.stem: path.read_text(encoding="utf-8") for path in lab.package.glob("*.py")}
    for name, text in tidied(f"minillm.labs.{lab.folder}", sources).items():
        _write(target / f"{name}.py", text)
    _write(target / FILE, json.dumps(recordings(lab)))
    _write(target / skeleton_name(lab), skeleton(lab))
    _write(target / "handout.md", _handout(lab))
    if isinstance(lab, CudaLab):
        _write(target / lab.file, skeleton(lab))
        check = Path(lab.file).stem + "_check.cu"
        _write(target / check, (lab.package / check).read_text(encoding="utf-8"))


def _handout(lab: Lab) -> str:
    """The handout with its hints, without the hints that hold a line of the solution."""
    lines = solution_lines(lab)
    page = (lab.package / "handout.md").read_text(encoding="utf-8").partition("<!-- hints -->\n")[0]
    return page + "<!-- hints -->\n" + "".join(_hints(lab, task.number, lines) for task in lab.tasks)


def _hints(lab: Lab, number: str, lines: set[str]) -> str:
    kept = [hint for hint in lab.hints(number) if not quoted(hint, lines)]
    return f"### {number}\n" + "\n---\n".join(kept or ["Read the docstring and the handout again."]) + "\n"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
