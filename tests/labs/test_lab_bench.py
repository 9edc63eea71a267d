"""`minillm labs bench 14`: what is timed is the student's file; it needs the sections for the CPU."""

import re
import subprocess
from types import SimpleNamespace

import pytest
import torch
from lab_list import LABS

from minillm.bench import own_matmul
from minillm.cli.labs import bench
from minillm.labs.grader.cuda_kernels import finished
from minillm.labs.grader.cuda_text import replaced
from minillm.labs.grader.registry import find_lab
from minillm.labs.lab14_int4.group_cases import SOURCE
from minillm.labs.lab14_int4.matmul_cases import matrix, product

if not any(lab.number == 14 for lab in LABS):
    pytest.skip("no compiler for the simulator", allow_module_level=True)

LAB = find_lab("14")


def test_the_table_has_a_row_for_each_number_of_rows(cli, tmp_path, monkeypatch):
    (tmp_path / "lab14.cu").write_text(LAB.solution())
    monkeypatch.setattr(bench, "_timing", lambda source: vars(own_matmul.measure(source, 64, 128, 1)))
    code, out, _ = cli("bench", 14, "--dir", tmp_path)
    assert code == 0 and "no points depend on these times" in out
    assert re.findall(r"│ +(\d+) │", out) == [str(rows) for rows in own_matmul.ROWS]


def test_what_is_compiled_for_speed_has_the_simulator_s_bits(tmp_path):
    """No flag lets the compiler change the order of a sum."""
    chunks, x = matrix(1, 21, 150), torch.randn(5, 150)
    y = torch.full((5, 21), torch.nan)
    plain = own_matmul._compiled(LAB.solution(), tmp_path)
    pointers = [own_matmul.ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, chunks, y)]
    plain(*pointers, 5, 21, 150)
    assert torch.equal(y, product("run_matmul", chunks, x, 21, finished(SOURCE)))


def test_the_student_s_sections_are_timed(tmp_path):
    body = "  for (int i = 0; i < rows * out; i++) y[i] = 7;\n"
    (tmp_path / "lab14.cu").write_text(replaced(LAB.solution(), "14.6", body))
    source = bench._source(LAB, tmp_path / "lab14.cu")
    assert body in source and source.count("y[i] = 7") == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LAB.skeleton(), "Lab 14.1 pack_group"),
        ("", "has no // begin 14.1"),
        (replaced(LAB.solution(), "14.3", '  asm("");\n'), "has no place in a kernel"),
    ],
    ids=["skeleton", "empty", "asm"],
)
def test_a_file_that_is_not_ready_is_a_usage_error(cli, tmp_path, text, says):
    (tmp_path / "lab14.cu").write_text(text)
    code, out, err = cli("bench", 14, "--dir", tmp_path)
    assert (code, out) == (2, "") and says in err and err.count("\n") == 1


def test_other_labs_have_nothing_to_time(cli):
    code, _, err = cli("bench", 3)
    assert code == 2 and "lab 3 has nothing to time" in err


@pytest.mark.parametrize("said", [b"", b"x = 7", b"[1]", b"\xff{}", b'{"out": 1}\nx = 7'])
def test_an_answer_that_is_none_is_a_usage_error(monkeypatch, said):
    done = subprocess.CompletedProcess([], 0, said, b"\xff")
    process = SimpleNamespace(run=lambda *args, **options: done, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(bench, "sandboxed", lambda command, scratch, readable: command)
    monkeypatch.setattr(bench, "subprocess", process)
    with pytest.raises(bench.UsageError, match="ends its process"):
        bench._timing("")


def test_a_file_with_the_line_ends_of_windows_is_read(tmp_path):
    (tmp_path / "lab14.cu").write_bytes(LAB.solution().replace("\n", "\r\n").encode())
    assert "\r" not in bench._source(LAB, tmp_path / "lab14.cu")


@pytest.mark.slow
def test_what_the_product_prints_is_no_answer():
    body = '  __builtin_printf("rows %d\\n", rows);\n'
    assert bench._timing(replaced(LAB.solution(), "14.6", body))["nbytes"] > 0


@pytest.mark.slow
def test_a_crash_and_a_file_that_does_not_compile_are_told(tmp_path):
    crash = replaced(LAB.solution(), "14.6", "  __builtin_trap();\n")
    for text, says in ((crash, "ends its process"), (LAB.solution() + "int;x", "does not compile")):
        with pytest.raises(bench.UsageError, match=says):
            bench._timing(text)
