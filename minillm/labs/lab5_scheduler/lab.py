"""Lab 5: continuous batching with chunked prefill: which sequences run in the next step, and which wait."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from minillm.labs.grader.lab import Case, Change, Lab, Part, Task
from minillm.labs.grader.serving import Ask, serve
from minillm.labs.lab5_scheduler.admission_cases import ADMISSION_CASES, ADMISSION_MISTAKES
from minillm.labs.lab5_scheduler.chunk_cases import CHUNK_CASES, CHUNK_MISTAKES
from minillm.labs.lab5_scheduler.plan_cases import more_steps
from minillm.labs.lab5_scheduler.preemption_cases import FIT_CASES, FIT_MISTAKES
from minillm.labs.lab5_scheduler.rank_cases import (
    FIRST_CASES,
    FIRST_MISTAKES,
    RANK_CASES,
    RANK_MISTAKES,
    more_firsts,
    more_ranks,
)
from minillm.labs.lab5_scheduler.schedule_cases import STEP_CASES, STEP_MISTAKES

SCHEDULER = "minillm.engine.scheduler"
CHANGE = Change(
    (
        "minillm.engine.prefill",
        "minillm.engine.prefill.Chunk",
        "minillm.engine.request.RequestGroup",
        "add(group)",
        ".request",
        "._memory.release",
    ),
    "the scheduler now runs a Sequence (minillm.engine.sequence), a Request holds the sequences of one "
    "prompt, a Chunk has a `sequence`, and `schedule` begins with `_order_running(now)`",
)


def in_engine(asks: Sequence[Ask], num_blocks: int, parts: Any, **config: Any) -> list[Any]:
    """Every step and all answers; the file's scheduler uses the file's waiting line."""
    return serve({"scheduler": parts.Scheduler}, asks, num_blocks, **config)


RAGGED = (Ask(10, 30), Ask(30, 30), Ask(5, 12, at=2, n=3), Ask(18, 9, at=4), Ask(3, 20, at=5, priority=-1))
LAB = Lab(
    5,
    "scheduler",
    "Continuous batching with chunked prefill",
    (
        Task(
            "5.1",
            "priority, age, submission",
            10,
            Part(SCHEDULER, "rank"),
            RANK_CASES,
            RANK_MISTAKES,
            more_ranks,
        ),
        Task(
            "5.2",
            "the next waiting sequence",
            10,
            Part(SCHEDULER, "WaitingLine", ("first",)),
            FIRST_CASES,
            FIRST_MISTAKES,
            more_firsts,
        ),
        Task(
            "5.3",
            "the next chunk",
            20,
            Part(SCHEDULER, "Scheduler", ("_prefill",)),
            CHUNK_CASES,
            CHUNK_MISTAKES,
            more_steps,
        ),
        Task(
            "5.4",
            "blocks and preemption",
            20,
            Part(SCHEDULER, "Scheduler", ("_fits",)),
            FIT_CASES,
            FIT_MISTAKES,
            more_steps,
        ),
        Task(
            "5.5",
            "the plan of a step",
            15,
            Part(SCHEDULER, "Scheduler", ("schedule",)),
            STEP_CASES,
            STEP_MISTAKES,
            more_steps,
        ),
        Task(
            "5.6",
            "admission",
            15,
            Part(SCHEDULER, "Scheduler", ("_start",)),
            ADMISSION_CASES,
            ADMISSION_MISTAKES,
            more_steps,
        ),
        Task(
            "5.7",
            "your scheduler in the running engine",
            10,
            None,
            (
                Case("seven completions, enough memory", partial(in_engine, RAGGED, 99)),
                Case("little memory, with preemptions", partial(in_engine, RAGGED, 20)),
            ),
        ),
    ),
    CHANGE,
)
