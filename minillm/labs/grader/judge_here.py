"""Judge a student's file in this process: for tests, and for files that are trusted."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from minillm.labs.grader.cuda_judge import NotJudged
from minillm.labs.grader.judge import judge
from minillm.labs.grader.lab import Lab, Task
from minillm.labs.grader.reference import engine_reference, known_lab
from minillm.labs.grader.result import TaskResult, failed
from minillm.labs.grader.student_file import part_of


def judge_file(lab: Lab, task: Task, module: ModuleType, file: Path) -> TaskResult:
    """Judge one task of a loaded file."""
    known, right = known_lab(str(lab.number))
    try:
        with part_of(lab, task, module, file) as mine:
            return judge(task, mine, None, file, right if known.tasks == lab.tasks else engine_reference(lab))
    except NotJudged as reason:
        return failed(task, reason.status, str(reason))
    except MemoryError:
        return failed(task, "memory", "the file needs more memory than a check may use")
    except BaseException as error:
        return failed(task, "crash", f"the check was ended by {type(error).__name__}: {error}")
