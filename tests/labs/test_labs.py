"""The labs' grader, graded: right files, empty ones, ones wrong in known ways, and ones that misbehave."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from labs_wrong import WRONG, wrong_files

from minillm.cli.main import main
from minillm.labs import lab9_speculation, supervise
from minillm.labs.acceptance import DISTRIBUTION_CASES, fit
from minillm.labs.child import judge_file, load
from minillm.labs.judge import judge
from minillm.labs.lab import all_labs, find_lab, find_task
from minillm.labs.sections import CudaLab
from minillm.labs.skeleton import skeleton, solution
from minillm.labs.tiny import tiny_llm
from minillm.toolchain.compiler import find_compiler

# Labs in CUDA need a compiler for the simulator.
LABS = [lab for lab in all_labs() if find_compiler() or not isinstance(lab, CudaLab)]
MISTAKES = [
    pytest.param(task, mistake, id=f"{task.number}-{i}")
    for lab in LABS
    for task in lab.tasks
    for i, mistake in enumerate(task.mistakes)
]
each_lab = pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.folder)


@pytest.fixture(scope="module")
def build():
    """scripts/dev/build_labs.py as a module."""
    path = Path(__file__).resolve().parents[2] / "scripts" / "dev" / "build_labs.py"
    spec = importlib.util.spec_from_file_location("build_labs", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def check(tmp_path):
    """Check a text in child processes with small limits: rows by task, and the report."""

    def run(text, lab=3, seconds=5.0, memory=1 << 30):
        file = tmp_path / f"lab{lab}.py"
        file.write_text(text)
        report = supervise.check(find_lab(str(lab)), file, supervise.Limits(seconds, memory))
        assert [row.task for row in report.rows] == [task.number for task in find_lab(str(lab)).tasks]
        return {row.task: row for row in report.rows}, report

    return run


@pytest.fixture
def graded(tmp_path, monkeypatch):
    """Judge a text in this process: the rows by task."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "student_lab", raising=False)

    def run(lab, text):
        file = tmp_path / lab.file
        file.write_text(text)
        module = load(file)
        monkeypatch.delitem(sys.modules, "student_lab")
        return {task.number: judge_file(lab, task, module, file) for task in lab.tasks}

    return run


@pytest.fixture
def cli(capsys):
    def run(*args):
        code = main(["labs", *map(str, args)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


# --- what is handed out -------------------------------------------------------------------------------


def test_committed_files_are_the_generated_ones(build):
    for path, text in build.built_files().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run scripts/dev/build_labs.py"


def test_a_changed_docstring_is_noticed(build, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(build, "LABS", tmp_path / "notebooks" / "labs")
    monkeypatch.setattr(sys, "argv", ["build_labs.py"])
    assert build.main() == 0
    monkeypatch.setattr(sys, "argv", ["build_labs.py", "--check"])
    assert build.main() == 0
    capsys.readouterr()
    path = build.LABS / "lab3_cache" / "lab3.py"
    path.write_text(path.read_text().replace("How many blocks hold", "How many blocks keep"))
    assert build.main() == 1
    assert capsys.readouterr().out == "differs: notebooks/labs/lab3_cache/lab3.py\n"


@each_lab
def test_a_skeleton_is_not_written_yet_and_nothing_else(graded, lab):
    rows = graded(lab, skeleton(lab))
    assert {row.status for row in rows.values()} == {"todo"}
    assert sum(row.earned for row in rows.values()) == 0
    for task in lab.tasks:
        assert f"minillm labs hint {lab.number}." in rows[task.number].message


@each_lab
def test_the_engine_s_own_parts_get_full_points(cli, tmp_path, lab):
    (tmp_path / lab.file).write_text(solution(lab))
    code, out, _ = cli("check", lab.number, "--dir", tmp_path)
    assert code == 0 and f"{lab.points} of {lab.points} points" in out


@each_lab
def test_every_task_has_three_hints_and_the_engine_task_one(lab):
    for task in lab.tasks:
        assert len(lab.hints(task.number)) == (3 if task.part else 1), task.number


# --- what is said of mistakes -------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "mistake"), MISTAKES)
def test_a_known_mistake_is_wrong_and_gets_its_own_diagnosis(task, mistake):
    row = judge(task, mistake.wrong, task.part.own)
    assert (row.earned, row.diagnosis) == (0, mistake.diagnosis)


@each_lab
def test_a_wrong_solution_gets_its_own_diagnosis_and_no_other_task_is_blamed(graded, lab):
    told = []
    for text, slips in wrong_files(lab):
        rows = graded(lab, text)
        says = {number: (slip.name, text) for slip in slips for number, text in slip.says.items()}
        for task in lab.tasks:
            row = rows[task.number]
            if task.number in says:
                name, text = says[task.number]
                assert row.earned == 0 and text in row.diagnosis, f"{name}: {row}"
                told.append(name)
            elif task.part:
                assert row.status == "ok", f"{[slip.name for slip in slips]}: {row}"
            else:  # the whole file in the engine: it may fail, but names no mistake
                assert row.diagnosis == ""
    assert set(told) == {slip.name for slip in WRONG[lab.number]}


def test_a_difference_shows_a_corner_of_both(graded):
    lab = find_lab("3")
    rows = graded(
        lab, solution(lab) + "\n\ndef slot_mapping(table, positions, size):\n    return [*positions]\n"
    )
    row = rows["3.2"]
    assert (row.where, row.expected[:7], row.actual[:5]) == ("[0]", "[20, 21", "[0, 1")


def test_an_error_names_its_line_and_torch_s_own_not_implemented_is_no_open_task(graded):
    lab = find_lab("3")
    broken = "\n\ndef blocks_for(tokens, size):\n    raise NotImplementedError('no kernel for this dtype')\n"
    text = solution(lab) + broken
    row = graded(lab, text)["3.1"]
    assert row.status == "error" and "no kernel for this dtype" in row.message
    assert f"(line {len(text.splitlines())})" in row.message


# --- what the cases go through -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "case", "words"),
    [
        ("4.6", 1, ("preempt", "evict", "cached", "d1")),
        ("4.6", 2, ("preempt", "d1")),
        ("5.7", 1, ("preempt", "evict", "cached", "c2")),
        ("6.8", 1, ("evict", "cached")),
    ],
)
def test_a_tight_engine_is_tight(number, case, words):
    lab, task = find_task(number)
    seen = str(task.cases[case].run(lab.own()))
    assert [word for word in words if word not in seen] == []


def test_a_constant_hash_costs_false_matches_and_changes_nothing_else():
    lab, task = find_task("6.8")
    sound, _, constant = (case.run(lab.own()) for case in task.cases)
    assert sound[:-1] == constant[:-1]
    assert sound[-1] == 0 < constant[-1]


def hand(number, name):
    """What the engine's own part makes of the case called `name`, as plain lists."""
    _, task = find_task(number)
    answer = next(case for case in task.cases if case.name == name).run(task.part.own)
    return [part.tolist() if hasattr(part, "tolist") else part for part in answer]


# 9.2: weights 1/8 1/2 1/8 1/4 have borders .125 .625 .75 1; of p - q are left 0 1/4 0 1/4, borders 1/2 1.
# 9.3: what each draft's u * q < p comes to, in halves and quarters, and where the last uniform falls.
@pytest.mark.parametrize(
    ("number", "case", "answer"),
    [
        ("9.1", "a chain of which two stand", [[5, 6, 9, -1], [0, 1, 2, -1]]),
        ("9.1", "the tree of the picture", [[3, 4, 9, -1, -1], [0, 3, 4, -1, -1]]),
        ("9.2", "no q: four tokens", [0, 1, 1, 1, 1, 1, 2, 3, 3]),
        ("9.2", "p - q is positive at two of four", [1, 1, 1, 1, 3, 3, 3, 3, 3]),
        ("9.2", "a uniform that is a border", [2, 3]),
        ("9.3", "both stand", [[[1, 2, 2]], [2]]),
        ("9.3", "the first falls", [[[3, -1, -1]], [0]]),
        ("9.3", "the second falls", [[[1, 3, -1]], [1]]),
        (
            "9.3",
            "half as likely as drafted: uniforms below, at and above 1/2",
            [[[0, 1], [3, -1], [3, -1]], [1, 0, 0]],
        ),
        ("9.3", "probability 0 in both", [[[1, -1]], [0]]),
        ("9.3", "drafts of two, one and no tokens", [[[1, 2, 0], [1, 3, -1], [3, -1, -1]], [2, 1, 0]]),
    ],
)
def test_small_cases_come_out_as_by_hand(number, case, answer):
    assert hand(number, case) == answer


def test_many_draws_fit_the_target_and_accepting_everything_does_not():
    _, task = find_task("9.3")
    everything = next(m.wrong for m in task.mistakes if "everything" in m.diagnosis)
    for case in DISTRIBUTION_CASES:
        assert [str(fit) for fit in case.run(task.part.own)] == [
            f"token {i}: as the target" for i in (1, 2, 3)
        ]
        first, second, third = (str(fit) for fit in case.run(everything))
        assert "came" in first and "came" in second  # the draft's distribution
        assert third == "token 3: as the target"  # the bonus is the target's own


def test_a_skewed_distribution_is_called_so():
    p = torch.tensor([0.25] * 4 + [0.0] * 4)
    even = torch.arange(400) % 4
    assert str(fit("x", even, p)) == "x: as the target"
    assert "id 0 came 200 times, expected about 100" in str(fit("x", even.where(even > 1, 0), p))
    assert "came" in str(fit("x", even.where(even > 0, 7), p))  # probability 0
    assert str(fit("x", torch.full((9,), -1), p)) == "x: none came"


@pytest.mark.parametrize("case", range(3))
def test_drafts_stand_and_fall_in_the_engine(case):
    lab, task = find_task("9.7")
    answers, stood, used = task.cases[case].run(lab.own())
    outcomes = [outcome for step in stood for outcome in step]
    assert any(accepted > 0 for _, _, accepted in outcomes) and used == 0
    assert any(accepted < depth for _, depth, accepted in outcomes)
    plain = tiny_llm().generate(list(lab9_speculation.PROMPTS), list(lab9_speculation.PARAMS))
    wanted = [[c.token_ids for c in output.outputs] for output in plain]
    # Rejection sampling promises a distribution; coupled speculation, and greedy in both, the same tokens.
    assert answers[:2] == wanted[:2] and (case == 2 or answers == wanted)


class Unwritten:
    """A part that nobody has written: raises as soon as it is asked."""

    def __init__(self, *args):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("part", "case"), [("verify_coupled", 0), ("NgramIndex", 0), ("BlockTable", 1), ("verify_draft", 2)]
)
def test_the_engine_asks_the_parts_of_the_file(part, case):
    lab, task = find_task("9.7")
    parts = lab.own()
    setattr(parts, part, Unwritten)
    with pytest.raises(NotImplementedError):
        task.cases[case].run(parts)


# --- files that misbehave -----------------------------------------------------------------------------

BODIES = """
import os, sys

def blocks_for(num_tokens, block_size):
    sys.exit(3)

def slot_mapping(block_table, positions, block_size):
    os._exit(7)

def prefill(runner, chunks):
    return bytearray(1 << 40)

def decode(runner, requests):
    while True:
        pass
"""


def test_misbehaviour_costs_its_own_task_only(check):
    flood = "\nprint('begin')\nprint('x' * 5_000_000)\n"
    rows, report = check(solution(find_lab("3")) + flood + BODIES, seconds=2.0)
    told = {number: row.status for number, row in rows.items()}
    assert told == {
        **{"3.1": "error", "3.2": "crash", "3.3": "ok", "3.4": "ok", "3.5": "memory", "3.6": "timeout"},
        "3.7": told["3.7"],
    }
    assert told["3.7"] != "ok"
    assert "SystemExit" in rows["3.1"].message and "exit code 7" in rows["3.2"].message
    assert "endless loop" in rows["3.6"].message
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
            "import os\nfor fd in range(3, 20):\n  try: os.write(fd, b'{}\\n')\n  except OSError: pass\n",
            "contact",
        ),
    ],
)
def test_a_file_that_does_not_load_says_why_once(check, text, says):
    rows, _ = check(text, seconds=2.0)
    assert {row.status for row in rows.values()} == {"unloadable"}
    assert all(says in row.message for row in rows.values())


# --- the commands -------------------------------------------------------------------------------------


def test_list_names_every_task(cli):
    code, out, _ = cli("list")
    assert code == 0
    assert all(task.number in out for lab in LABS for task in lab.tasks)


def test_start_overwrites_only_when_forced(cli, tmp_path):
    code, out, _ = cli("start", 3, "--dir", tmp_path / "mine")
    file = tmp_path / "mine" / "lab3.py"
    assert code == 0 and str(file) in out
    assert file.read_text() == skeleton(find_lab("3"))
    assert (tmp_path / "mine" / "README.md").read_text() == find_lab("3").handout()
    file.write_text("# work of a week\n")
    code, _, err = cli("start", 3, "--dir", tmp_path / "mine")
    assert code == 2 and "--force" in err
    assert file.read_text() == "# work of a week\n"
    assert cli("start", 3, "--dir", tmp_path / "mine", "--force")[0] == 0
    assert file.read_text() == skeleton(find_lab("3"))


def test_check_as_json_is_one_object(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli("start", 3)[0] == 0
    code, out, err = cli("check", 3, "--json")
    report = json.loads(out)
    assert code == 1 and err == ""
    assert (report["points"], report["earned"], report["ok"]) == (100, 0, False)
    assert [task["status"] for task in report["tasks"]] == ["todo"] * 7


def test_check_prints_a_failure_once_and_returns_1(cli, tmp_path):
    (tmp_path / "lab2.py").write_text("def broken(:\n")
    code, out, _ = cli("check", 2, "--dir", tmp_path)
    assert code == 1 and out.count("SyntaxError") == 1 and "0 of 100 points" in out


def test_hints_come_in_levels(cli):
    texts = [cli("hint", "3.2", "--level", level)[1] for level in (1, 2, 3)]
    assert len(set(texts)) == 3
    assert cli("hint", "3.2")[1] == texts[0]
    assert "--level 2" in texts[0] and "--level" not in texts[2]


@pytest.mark.parametrize(
    "args",
    [
        ("start", "10"),
        ("check", "zero"),
        ("check", "1", "--dir", "/nowhere"),
        ("hint", "3.9"),
        ("hint", "10.1"),
        ("hint", "3.2", "--level", "4"),
        ("hint", "3.2", "--level", "0"),
    ],
)
def test_what_does_not_exist_is_a_usage_error(cli, args):
    code, out, err = cli(*args)
    assert (code, out) == (2, "")
    assert err.startswith("minillm: ") and err.count("\n") == 1
