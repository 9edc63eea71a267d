"""Files that misbehave: only the tasks with the misbehaving functions fail."""

import pytest

from minillm.labs.grader import supervise
from minillm.labs.grader.cuda_text import replaced, sections
from minillm.labs.grader.registry import find_lab
from minillm.labs.grader.skeleton import solution

BODIES = """
import os, sys

def blocks_for(num_tokens, block_size):
    sys.exit(3)

def slot_mapping(block_table, positions, block_size):
    os._exit(7)

def prefill(runner, chunks):
    return bytearray(1 << 40)

def decode(runner, rows):
    while True:
        pass
"""


def test_only_the_misbehaving_task_fails(check):
    flood = "\nprint('begin')\nprint('x' * 5_000_000)\n"
    rows, report = check(solution(find_lab("3")) + flood + BODIES, seconds=6.0)
    statuses = {number: row.status for number, row in rows.items()}
    assert statuses == {
        **{"3.1": "error", "3.2": "crash", "3.3": "ok", "3.4": "ok", "3.5": "ok", "3.6": "ok"},
        **{"3.7": "memory", "3.8": "timeout", "3.9": statuses["3.9"]},
    }
    assert statuses["3.9"] != "ok"
    assert "SystemExit" in rows["3.1"].message and "exit code 7" in rows["3.2"].message
    assert "endless loop" in rows["3.8"].message
    assert report.output.startswith("begin\nxxx") and len(report.output) <= supervise.KEPT_OUTPUT


def test_torch_memory_and_a_signal(check):
    text = """
import os, signal, torch

def base_frequencies(theta, head_dim):
    return torch.ones(1 << 34)

def apply_rope(x, cos, sin):
    os.kill(os.getpid(), signal.SIGSEGV)
"""
    rows, _ = check(solution(find_lab("2")) + text, lab=2)
    assert rows["2.1"].status == "memory"
    assert rows["2.2"].status == "crash" and "SIGSEGV" in rows["2.2"].message
    assert [rows[f"2.{i}"].status for i in (3, 4, 5, 6)] == ["ok"] * 4


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def blocks_for(:\n", "SyntaxError in line 1"),
        ("import os\nimport no_such_module\n", "ModuleNotFoundError in line 2"),
        ("raise SystemExit(0)\n", "SystemExit in line 1"),
        ("import os\nos._exit(0)\n", "exit code 0"),
        ("while True: pass\n", "endless loop"),
        (
            "import os\nfor fd in range(3, 4096):\n  try: os.write(fd, b'{}\\n')\n  except OSError: pass\n",
            "the pipe to the grader is broken",
        ),
    ],
)
def test_a_file_that_does_not_load_says_why_once(check, text, says):
    rows, _ = check(text, seconds=2.0)
    assert {row.status for row in rows.values()} == {"unloadable"}
    assert all(says in row.message for row in rows.values())


# What a section of lab 10 does before its right lines, and the status of its task.
KERNELS = {
    "10.1": ("if (*reinterpret_cast<const volatile int*>(64)) return;", "error"),
    "10.2": ("static volatile int calls = 0;\n  calls = calls + 1;", "error"),  # memory of no tensor
    "10.3": ("volatile char* much = new char[1ull << 40];\n  much[threadIdx.x] = 1;", "crash"),
    "10.5": ("for (volatile int i = 0; i < 1; i = 0) {\n  }", "timeout"),
    "10.6": ("if (lane == 5) __builtin_trap();", "crash"),
}


@pytest.mark.slow
def test_only_the_misbehaving_kernels_fail(tmp_path):
    lab = find_lab("10")
    text, file = solution(lab), tmp_path / lab.file
    for number, (line, _) in KERNELS.items():
        text = replaced(text, number, f"  {line}\n{sections(text)[number][1]}")
    file.write_text(text)
    rows = {row.task: row for row in supervise.check(lab, file, supervise.Limits(30.0)).results}
    statuses = {number: row.status for number, row in rows.items()}
    assert statuses == {
        **{number: status for number, (_, status) in KERNELS.items()},
        **{"10.4": "ok", "10.7": statuses["10.7"]},
    }
    assert statuses["10.7"] != "ok" and "endless loop" in rows["10.5"].message
    assert "out of bounds" in rows["10.1"].message and "out of bounds" in rows["10.2"].message
