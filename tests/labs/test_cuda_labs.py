"""Labs in CUDA: how a file is put together, what an error says, what a kernel may and may not win by cost."""

import re

import pytest
import torch
from lab_list import LABS

from minillm.labs.grader.cuda_kernels import Build
from minillm.labs.grader.cuda_text import filled, helpers, replaced, sections
from minillm.labs.grader.judge_here import judge_file
from minillm.labs.grader.registry import find_lab
from minillm.labs.grader.student_file import load
from minillm.ops.simt import compile_kernels, flavour, profile

if not any(lab.number == 7 for lab in LABS):
    pytest.skip("no compiler for the simulator", allow_module_level=True)

LAB7, LAB10 = find_lab("7"), find_lab("10")
SOLUTION = LAB7.solution()


def judged(number, text, tmp_path, lab=LAB7):
    """The result of one task of a lab for a whole text."""
    file = tmp_path / lab.file
    file.write_text(text)
    task = next(task for task in lab.tasks if task.number == number)
    return judge_file(lab, task, load(file), file)


def line_of(text, part, nth=0):
    """The number of the nth line that contains `part`."""
    return [i for i, line in enumerate(text.splitlines(), start=1) if part in line][nth]


# --- messages ---------------------------------------------------------------------------------------------


def test_a_race_shows_both_lines_of_the_student_s_file(tmp_path):
    text = "// a line more\n\n" + SOLUTION.replace(
        "    __syncthreads();\n    add_values(sums", "    add_values(sums"
    )
    row = judged("7.5", text, tmp_path)
    assert "between loading V and using it" in row.diagnosis
    load, add = line_of(text, "load_tile(kv_tile, v"), line_of(text, "add_values(sums")
    assert f"at lab7.cu:{load} (in load_tile)" in row.message
    assert f"at lab7.cu:{add} (in add_values)" in row.message


def test_a_race_in_the_student_s_own_lines_is_told_from_one_in_the_lab_s_part(tmp_path):
    text = SOLUTION.replace("  // begin 7.5\n", "  // begin 7.5\n  weights[0][0] = threadIdx.x;\n")
    row = judged("7.5", text, tmp_path)
    at = f"at lab7.cu:{line_of(text, '// begin 7.5') + 1};"
    assert row.message.count(at) == 2 and "race" in row.message and "own part" not in row.message
    assert row.diagnosis == ""  # it is no known mistake


def test_an_error_that_no_line_of_the_student_leads_to_is_in_the_lab_s_part(tmp_path):
    body = "  if (threadIdx.x < 32) tile[0][threadIdx.x] = from[threadIdx.x];\n"
    row = judged("7.1", replaced(SOLUTION, "7.1", body), tmp_path)
    assert "uninitialised of tile in store_tile" in row.message
    assert "in store_tile, the lab's own part" in row.message


def test_a_compile_error_has_the_student_s_line(tmp_path):
    text = "\n" + SOLUTION.replace("return factor;", "return facto;")
    row = judged("7.3", text, tmp_path)
    assert row.earned == 0 and f"lab7.cu:{line_of(text, 'return facto;')}" in row.message


# --- what is judged -----------------------------------------------------------------------------------------


def test_helpers_belong_to_every_section(tmp_path):
    text = SOLUTION.replace(
        "// begin helpers\n", "// begin helpers\n__device__ float weight(float x) { return expf(x); }\n"
    ).replace("scores[j] = expf(scores[j] - largest);", "scores[j] = weight(scores[j] - largest);")
    assert helpers(text)[1].startswith("__device__")
    assert judged("7.3", text, tmp_path).status == "ok"
    lost = text.replace("__device__ float weight(float x) { return expf(x); }\n", "")
    assert "weight" in judged("7.3", lost, tmp_path).message  # control: without it the file does not compile


def test_text_outside_of_the_sections_has_no_effect():
    on_the_host = SOLUTION.replace("LAUNCH(attention", "for (;;) out[0] = 0; LAUNCH(attention")
    assembled = filled(SOLUTION, on_the_host, list(sections(SOLUTION)), "lab7.cu")
    assert on_the_host != SOLUTION and "for (;;)" not in assembled


@pytest.mark.parametrize(
    "line",
    ['#include "lab7.cu"', "simt::barrier(0, {});", '  asm("");', "#line 3"],
    ids=["include", "simt", "asm", "line"],
)
def test_a_section_that_reaches_beyond_a_kernel_is_not_run(tmp_path, line):
    text = SOLUTION.replace("  // end 7.1", f"{line}\n  // end 7.1")
    row = judged("7.1", text, tmp_path)
    assert (row.earned, row.status) == (0, "refused")
    assert f"lab7.cu:{line_of(SOLUTION, '// end 7.1')}:" in row.message


def test_comments_may_say_anything(tmp_path):
    text = SOLUTION.replace("  // end 7.1", "  // simt, asm\n  /* #include */\n// end 7.1")
    assert judged("7.1", text, tmp_path).status == "ok"


def test_the_last_task_needs_the_student_s_own_layout_and_loops(tmp_path):
    columns = SOLUTION.replace("return row * (kDim + 4) + column;", "return row * kDim + column;")
    assert judged("7.5", columns, tmp_path).status == "ok"  # the layout is the lab's own here
    row = judged("7.7", columns, tmp_path)
    assert row.earned == 0 and "wavefronts" in row.actual and "needed" in row.actual


def test_a_kernel_without_tiles_loses_the_points_of_what_it_moves(tmp_path):
    naive = """
  if (first_row + row >= n) return;
  const float* mine = q + head + (first_row + row) * kDim;
  for (int key = 0; key <= first_row + row; key++) {
    float score = 0;
    for (int d = 0; d < kDim; d++) score += mine[d] * k[head + key * kDim + d];
    score *= scale;
    float largest = fmaxf(s.max, score), factor = expf(s.max - largest), weight = expf(score - largest);
    s = {largest, s.sum * factor + weight};
    for (int i = 0; i < kEach; i++)
      sums[i] = sums[i] * factor + weight * v[head + key * kDim + part + i * kParts];
  }
  for (int i = 0; i < kEach; i++) out[head + (first_row + row) * kDim + part + i * kParts] = sums[i] / s.sum;
"""
    text = replaced(SOLUTION, "7.5", naive)
    for number in ("7.5", "7.7"):
        row = judged(number, text, tmp_path)
        assert row.earned == 0 and row.message == "what 40 rows cost"
        _, _, of_q = row.rows[0]
        used, needed = (int(number.replace(",", "")) for number in re.findall(r"\d[\d,]+", of_q))
        assert of_q.startswith("q, bytes") and used > 4 * needed


def test_texts_that_are_compiled_together_stay_apart():
    build = Build("both.cu")
    text = '#include "dialect.h"\n__global__ void f(float* x) { x[threadIdx.x] = VALUE; }\n'
    text += 'extern "C" void run_f(float* x) { LAUNCH(f, 1, 32, 0, 0, x); }\n'
    first, second = (build.add(text.replace("VALUE", value)) for value in ("1", "2"))
    x, y = torch.zeros(32), torch.zeros(32)
    first.run("run_f", x=x)
    second.run("run_f", x=y)
    assert (x.unique().tolist(), y.unique().tolist()) == ([1.0], [2.0])


# --- lab 10 -------------------------------------------------------------------------------------------------


def test_a_copy_that_nobody_waits_for_names_the_line_of_the_copy(tmp_path):
    text = "// a line more\n" + LAB10.solution().replace("wait_copies<1>();", "wait_copies<2>();")
    row = judged("10.6", text, tmp_path, LAB10)
    assert "copy not waited for of w_stages" in row.message and "still on their way" in row.diagnosis
    assert (
        f"the copy was issued at lab10.cu:{line_of(text, 'copy_rows<kOut>(')} (in copy_rows)" in row.message
    )


def test_the_last_task_needs_the_student_s_own_layout_and_copies(tmp_path):
    """Its own layout is right, but each ldmatrix needs eight wavefronts; the other tasks have the lab's."""
    text = replaced(LAB10.solution(), "10.4", "  return row * kDepth + chunk * kWide;\n")
    assert judged("10.6", text, tmp_path, LAB10).status == "ok"
    row = judged("10.7", text, tmp_path, LAB10)
    assert (row.earned, row.is_right) == (0, True) and "wavefronts of shared memory" in row.actual


# --- handouts -----------------------------------------------------------------------------------------------


def of_the_page(lab, tmp_path):
    """The handout of a lab, and its kernel."""
    page = lab.handout()
    (tmp_path / "page.cu").write_text(re.search(r"```cuda\n(.*?)```", page, re.DOTALL)[1])
    return page, compile_kernels(tmp_path / "page.cu", folder=tmp_path)


def test_the_kernel_of_the_handout_does_what_the_page_says(tmp_path):
    page, library = of_the_page(LAB7, tmp_path)
    x, y, total = torch.randn(64), torch.zeros(64), torch.zeros(1)
    with profile() as p:
        library.run("run", x=x, y=y, sum=total)
    assert torch.equal(y, x.flip(0)) and total.item() == pytest.approx(x[:32].sum().item(), abs=1e-5)
    told = f"{p.global_read_bytes} bytes read in {p.global_read_sectors} sectors, "
    told += f"{p.shared_wavefronts} wavefronts, {p.barriers} barrier, {p.warp_operations} shuffles"
    assert told in page


def test_the_copying_kernel_of_the_handout_does_what_the_page_says(tmp_path):
    page, library = of_the_page(LAB10, tmp_path)
    x, y = torch.randn(256).bfloat16(), torch.zeros(256).bfloat16()
    with profile() as p, flavour("check"):
        library.run("run", **{"from": x, "to": y, "count": 200})
    x[200:] = 0
    assert torch.equal(y.view(32, 8), x.view(32, 8).flip(0))
    told = (
        f"{p.async_copy_bytes} bytes by cp.async, {p.shared_wavefronts} wavefronts (4 to write, 4 to read), "
    )
    assert f"With count = 200 the simulator counts {told}{p.barriers} barrier." in page


@pytest.mark.parametrize("number", ["7", "8", "10"])
def test_a_handout_names_no_file_that_holds_the_answer(number):
    page = find_lab(number).handout()
    assert not re.search(r"csrc/cuda/(attention|decode|linear)", page)
