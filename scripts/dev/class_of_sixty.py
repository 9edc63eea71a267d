"""Is the grader right about a whole class? Sixty submissions of every kind, graded by `minillm labs grade`.

python scripts/dev/class_of_sixty.py                   all of it; prints false passes, false fails and seconds
python scripts/dev/class_of_sixty.py --keep FOLDER     keep the submissions and the results there

Each submission comes with what must be found: tasks that must get no points, tasks that must get all. A false
pass is a task of the first kind with points; a false fail is one of the second kind without.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO), str(REPO / "tests" / "labs")]

from corpus.variants import files, odd, wrong  # noqa: E402

from minillm.labs.grader.lab import Lab  # noqa: E402
from minillm.labs.grader.registry import all_labs, find_lab  # noqa: E402
from minillm.labs.grader.skeleton import skeleton, solution  # noqa: E402

SIZE = 60
Write = Callable[[Path], object]  # writes a submission into the folder of its student


@dataclass(frozen=True)
class Submission:
    """`none`: tasks that must get no points; `all`: tasks that must get all. `lab` None: no file is found."""

    kind: str
    write: Write
    lab: Lab | None
    none: set[str] = field(default_factory=set)
    all: set[str] = field(default_factory=set)


def tasks(lab: Lab, *, parts_only: bool = False) -> set[str]:
    return {task.number for task in lab.tasks if task.part or not parts_only}


def text(content: str | bytes, name: str) -> Write:
    data = content if isinstance(content, bytes) else content.encode()

    def write(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return write


def right(kind: str, lab: Lab, content: str | bytes, name: str = "") -> Submission:
    return Submission(kind, text(content, name or lab.file), lab, all=tasks(lab))


def refused(kind: str, lab: Lab | None, write: Write) -> Submission:
    return Submission(kind, write, lab, none=tasks(lab) if lab else set())


def partly(kind: str, lab: Lab, broken: set[str], content: str) -> Submission:
    """The tasks in `broken` are wrong, the other parts are right; the task of the whole file is left open."""
    return Submission(kind, text(content, lab.file), lab, broken, tasks(lab, parts_only=True) - broken)


# --- the kinds ----------------------------------------------------------------------------------------


def wrong_in(lab: Lab, part: str) -> set[str]:
    """The tasks that fail if `part` is wrong: its own, and that of the whole file."""
    return {task.number for task in lab.tasks if task.part is None or task.part.name == part}


def honest() -> Iterator[Submission]:
    """Finished, not begun, half done, wrong in known ways, odd but right."""
    for lab in all_labs():
        yield right("finished", lab, solution(lab))
    for number in ("1", "5", "7"):
        yield refused("not begun", find_lab(number), text(skeleton(find_lab(number)), find_lab(number).file))
    open_part = "\n\ndef {0}(*_):\n    raise NotImplementedError('Lab {1} {0}')\n"
    for number, name in (("3", "decode"), ("1", "sample"), ("4", "group_blocks")):
        lab = find_lab(number)
        (task,) = wrong_in(lab, name) - {lab.tasks[-1].number}
        yield partly("half done", lab, {task}, solution(lab) + open_part.format(name, task))
    for first in (0, 1):
        for lab in all_labs():
            for content, group in files(lab, wrong(lab))[first : first + 1]:
                names = ", ".join(variant.name for variant in group)
                yield partly(f"wrong: {names}", lab, {n for variant in group for n in variant.says}, content)
            for content, group in files(lab, odd(lab))[first : first + 1]:
                yield right(f"odd: {', '.join(variant.name for variant in group)}", lab, content)


def misbehaving() -> Iterator[Submission]:
    """Files that block, end, fill the memory, print, or do not load."""
    lab = find_lab("3")
    code = solution(lab)
    loop = "\n\ndef decode(runner, rows):\n    while True: pass\n"
    memory = "\n\ndef slot_mapping(table, positions, size):\n    return bytearray(1 << 40)\n"
    leave = "\n\nimport os\n\ndef slot_mapping(table, positions, size):\n    os._exit(0)\n"
    killed = "\n\nimport os, signal\n\ndef blocks_for(n, size):\n    os.kill(os.getpid(), signal.SIGSEGV)\n"
    depth = "\n\ndef slot_mapping(table, positions, size):\n    return slot_mapping(table, positions, size)\n"
    yield partly("endless loop in a part", lab, wrong_in(lab, "decode"), code + loop)
    yield partly("more memory than there is", lab, wrong_in(lab, "slot_mapping"), code + memory)
    yield partly("ends the process with 0", lab, wrong_in(lab, "slot_mapping"), code + leave)
    yield partly("a signal", lab, wrong_in(lab, "blocks_for"), code + killed)
    yield partly("endless recursion", lab, wrong_in(lab, "slot_mapping"), code + depth)
    yield right(
        "prints a lot", lab, code + "\nprint('x' * 3_000_000)\nimport sys; print('y', file=sys.stderr)\n"
    )
    for kind, content in {
        "endless loop on import": "while True: pass\n",
        "syntax error": "def broken(:\n",
        "no such module": "import no_such_module\n",
        "exits on import": "raise SystemExit(0)\n",
        "not UTF-8": code.encode() + b"\nNAME = 'Zo\xeb'\n",
    }.items():
        yield refused(kind, lab, text(content, lab.file))


def formats() -> Iterator[Submission]:
    """Right files in odd forms, and files that are no files."""
    lab = find_lab("4")
    code = solution(lab)
    yield right("byte order mark", lab, b"\xef\xbb\xbf" + code.encode())
    yield right("Windows line ends", lab, code.replace("\n", "\r\n"))
    yield right("declared latin-1", lab, b"# -*- coding: latin-1 -*-\n# Zo\xeb\n" + code.encode())
    yield right("another name", lab, code, "my_lab4_final.py")
    yield right("handed in again", lab, code, "Lab 4-1.py")
    yield Submission(
        "a zip", lambda f: _zip(f / "work.zip", {"lab4_pool/lab4.py": code}), lab, all=tasks(lab)
    )
    yield refused("UTF-16", lab, text(code.encode("utf-16"), "lab4.py"))
    yield refused("binary", lab, text(b"\x7fELF\0\1", "lab4.py"))
    yield refused("empty", lab, text("", "lab4.py"))
    yield refused("100 MB", lab, text(b"#" * 100_000_000, "lab4.py"))
    yield refused("a folder", lab, lambda f: (f / "lab4.py").mkdir())
    yield refused("a link", lab, lambda f: (f / "lab4.py").symlink_to("/etc/passwd"))
    yield refused("two files", lab, lambda f: [text(code, "lab4.py")(f), text("x = 1\n", "lab4-1.py")(f)])
    yield refused("no lab in the name", None, text(code, "solution.py"))
    yield refused("a zip that leads outside", None, lambda f: _zip(f / "a.zip", {"../../lab4.py": code}))


def forged() -> Iterator[Submission]:
    """Points without work: the engine's own parts, replaced checks, written results."""
    sampling = find_lab("1")
    yield refused("star import", sampling, text("from minillm.ops.sampling import *\n", sampling.file))
    lab = find_lab("3")
    own = "from minillm.memory.block_table import BlockTable, blocks_for, slot_mapping\n"
    loops = "from minillm.worker.decode import decode\nfrom minillm.worker.prefill import prefill\n"
    yield refused("engine's own parts", lab, text(own + loops, lab.file))
    checks = "\nimport minillm.labs.grader.compare as c, minillm.labs.grader.judge as j\n"
    checks += "c.difference = lambda *a, **k: None\nj.difference = c.difference\n"
    yield refused("replaced checks", lab, text(skeleton(lab) + checks, lab.file))
    report = "\nimport json, os\nrow = dict(task='3.1', title='x', points=5, earned=5, status='ok')\n"
    report += "line = json.dumps(dict(event='result', result=row)).encode() + b'\\n'\n"
    report += "for fd in range(3, 64):\n    try: os.write(fd, line)\n    except OSError: pass\n"
    yield refused("its own report", lab, text(skeleton(lab) + report, lab.file))
    equal = "\n\nclass Equal(list):\n    def __eq__(self, other): return True\n"
    equal += "    def __len__(self): return 10\n\n\n"
    equal += "def slot_mapping(table, positions, size):\n    return Equal([1])\n"
    yield partly("equals everything", lab, wrong_in(lab, "slot_mapping"), solution(lab) + equal)
    wrapped = "\n\nimport minillm.memory.block_table as t\n\n\ndef slot_mapping(table, positions, size):\n"
    yield partly(
        "wraps the engine",
        lab,
        {"3.2"},
        solution(lab) + wrapped + "    return t.slot_mapping(table, positions, size)\n",
    )
    kernels = find_lab("8")
    include = f'#include "{kernels.package / kernels.file}"\n'
    yield refused("includes the finished kernel", kernels, text(include, kernels.file))


def _zip(path: Path, entries: dict[str, str]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


# --- the run ------------------------------------------------------------------------------------------


def the_class() -> list[Submission]:
    """Sixty submissions; if the corpus gives more, wrong and odd files are left out from its end."""
    kept = [*misbehaving(), *formats(), *forged()]
    return [*itertools.islice(honest(), SIZE - len(kept)), *kept]


def student(i: int) -> str:
    """Names as they are in a class: spaces, other letters, other case, a formula."""
    odd_names = ("Zoë Müller", "李雷", "=SUM(A1)", "o'neil", "alice", "Alice", "a.b-c_d", "-x", "名前 2")
    return odd_names[i] if i < len(odd_names) else f"student{i:02}"


def graded(root: Path, out: Path) -> tuple[dict[str, dict[str, str]], float]:
    """The rows of grades.csv by student, and the seconds that the run took."""
    start = time.monotonic()
    command = [sys.executable, "-m", "minillm.cli.main", "labs", "grade", str(root), "--out", str(out)]
    paths = os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])
    subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=False)
    seconds = time.monotonic() - start
    with out.open(newline="", encoding="utf-8") as file:
        return {row["student"].lstrip("'"): row for row in csv.DictReader(file)}, seconds


def faults(submission: Submission, row: dict[str, str]) -> Iterator[tuple[str, str]]:
    """("false pass" or "false fail", task)."""
    points = {task.number: task.points for lab in all_labs() for task in lab.tasks}
    for number in sorted(submission.none):
        if float(row.get(number) or 0):
            yield "false pass", number
    for number in sorted(submission.all):
        if float(row.get(number) or 0) != points[number]:
            yield "false fail", number
    if not submission.lab and float(row["points"]):
        yield "false pass", "no file"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", type=Path, help="a folder for the submissions and the results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        place = args.keep or Path(scratch)
        room = the_class()
        for i, submission in enumerate(room):
            folder = place / "class" / student(i)
            folder.mkdir(parents=True)
            submission.write(folder)
        rows, seconds = graded(place / "class", place / "grades.csv")
    found = {"false pass": 0, "false fail": 0}
    for i, submission in enumerate(room):
        for fault, task in faults(submission, rows[student(i)]):
            found[fault] += 1
            print(f"{fault}: {task} of {student(i)}: {submission.kind}")
    lost = [name for name in map(student, range(len(room))) if name not in rows]
    each = seconds / len(room)
    print(
        json.dumps(
            {"submissions": len(room), **found, "without a row": len(lost), "seconds each": round(each, 1)}
        )
    )
    return 1 if any(found.values()) or lost else 0


if __name__ == "__main__":
    raise SystemExit(main())
