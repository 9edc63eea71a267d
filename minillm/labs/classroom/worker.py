"""A process that checks submissions one after the other: a request per line in, a report per line out.

It imports torch and the labs once. If the check of one submission ends it, the class's run goes on.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from minillm.errors import UsageError
from minillm.labs.classroom.record import Rules
from minillm.labs.grader import supervise
from minillm.labs.grader.lab import Lab
from minillm.labs.grader.recorded import is_package
from minillm.labs.grader.registry import find_lab
from minillm.labs.grader.report import Report, as_json


def main() -> None:
    """Answer requests until the input ends. SIGTERM ends a check and its child processes."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what anything prints must not come between the answers
    for line in sys.stdin:
        answer = json.dumps(_answer(json.loads(line))) + "\n"
        try:
            answers.write(answer)
            answers.flush()
        except BrokenPipeError:  # the run was killed: nobody reads
            os._exit(1)


def checked(lab: Lab, file: Path, rules: Rules) -> Report:
    """Check one file by the rules.

    Raises:
        UsageError: the hidden cases are no cases, or this is a student package and has no answers to others.
    """
    if is_package(lab) and (rules.seed or rules.cases):
        raise UsageError("a student package has recorded answers only", "leave out --seed and --cases")
    limits = supervise.Limits(refuse_copies=rules.refuse_copies)
    return supervise.check(lab, file, limits, rules.seed, rules.cases)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    lab, file = find_lab(request["lab"]), Path(request["file"])
    cases = Path(request["cases"]) if request["cases"] else None
    report = checked(lab, file, Rules(request["seed"], cases, request["refuse_copies"]))
    return as_json(lab, file, report)


if __name__ == "__main__":
    main()
