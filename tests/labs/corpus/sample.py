"""Which files of the corpus a run grades: all files of a changed lab, a few files of any other.

The record `graded/labN.txt` has a hash over everything that the marks of lab N depend on: its folder, the
grader, the sources of its parts, its corpus file. If the hash is another one today, the lab has changed.
"""

from __future__ import annotations

import hashlib
import importlib
import random
from pathlib import Path

from corpus.variants import Variant, files, is_cuda, odd, wrong

from minillm.labs.grader.lab import Lab

CORPUS = Path(__file__).parent
REPO = CORPUS.parents[2]
RECORD = CORPUS / "graded"
SIMULATOR = [REPO / "minillm" / "ops" / "simt", REPO / "csrc" / "simt"]


def inputs(lab: Lab) -> list[Path]:
    """The files that the marks of `lab` depend on."""
    folders = [lab.package, REPO / "minillm" / "labs" / "grader", *(SIMULATOR if is_cuda(lab) else [])]
    found = [
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix in (".py", ".cu", ".h", ".cpp")
    ]
    if not is_cuda(lab):
        modules = {importlib.import_module(part.module) for part in lab.parts}
        found += [Path(str(module.__file__)) for module in modules]
    return sorted({*found, CORPUS / "variants.py", CORPUS / f"lab{lab.number}.py"})


def digest(lab: Lab) -> str:
    """A hash over the names and the bytes of the lab's inputs."""
    total = hashlib.sha256()
    for path in inputs(lab):
        total.update(f"{path.relative_to(REPO)}\n{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def is_changed(lab: Lab, record: Path = RECORD) -> bool:
    """Whether the lab is another one than when all of its files were graded."""
    file = record / f"lab{lab.number}.txt"
    return not file.exists() or file.read_text().strip() != digest(lab)


def write_record(lab: Lab, record: Path = RECORD) -> None:
    """Note that all files of this lab were graded and are right."""
    record.mkdir(exist_ok=True)
    (record / f"lab{lab.number}.txt").write_text(digest(lab) + "\n")


def all_files(lab: Lab) -> list[tuple[str, list[Variant]]]:
    """Every file of the lab's corpus."""
    return files(lab, wrong(lab)) + files(lab, odd(lab))


def some_files(lab: Lab, seed: str) -> list[tuple[str, list[Variant]]]:
    """One or two wrong files and one odd file; the seed chooses how variants are combined, too."""
    choice = random.Random(f"{seed} {lab.number}")
    picked = []
    for variants, count in ((wrong(lab), 1 if is_cuda(lab) else 2), (odd(lab), 1)):
        choice.shuffle(variants)
        picked += files(lab, variants)[:count]
    return picked
