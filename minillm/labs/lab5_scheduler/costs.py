"""What the parts of this lab may cost: one call with many sequences, and programs that do too much.

A call may look at every sequence, and sort them. What grows faster is too much:

    300 sequences, each looked at a few times       some thousand lines of Python
    300 sequences, each compared with all others    90,000 lines and more

Two things are counted (`counts.py`): the lines of Python that run, and the entries that are read of the lists
of running sequences, waiting sequences and tokens. The limits are a multiple of what the engine's own parts
need, and far below the square.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from minillm.engine.scheduler import Scheduler, WaitingLine, rank
from minillm.engine.sequence import Sequence
from minillm.engine.step_plan import StepPlan
from minillm.labs.grader.counts import (
    BYTES,
    LINES,
    ReadList,
    counted_lines,
    lists_read,
    small_work,
    together,
    within,
)
from minillm.labs.grader.lab import Case, Counted, Mistake
from minillm.labs.grader.serving import BLOCK_SIZE
from minillm.labs.lab5_scheduler.plan_cases import SequenceState, Stage, waiting_sequence

READS = 20  # so many times over may a call read a list
RUNNING, WAITING, PROMPT = "the list of running sequences", "a waiting line", "the prompt"
DECODING, STARTED, NEW = SequenceState(6, 6, 1), SequenceState(30, 8), SequenceState(6, is_waiting=True)


def measured(limit: int, action: Callable[[], Any], *lists: tuple[str, ReadList]) -> Counted:
    """What `action` costs, in words: the lines that run or, if these are few, the entries that it reads."""
    sizes = [(name, items, len(items)) for name, items in lists]
    lines = within(limit, counted_lines(action), LINES)
    return together(lines, lists_read(READS, sizes))


def too_much(limit: int, what: str, rule: str, wrong: Any, counted: str = LINES) -> Mistake:
    """The mistake of a part that needs more than `limit` lines, or bytes, for `what`."""
    return Mistake(f"more than {limit:,} {counted} for {what}: {rule}", wrong)


def too_often(name: str, what: str, wrong: Any) -> Mistake:
    """The mistake of a part that reads a list again and again for `what`."""
    return Mistake(f"all of {name} is read more than {READS} times for {what}: a few times are enough", wrong)


# --- 5.1 and 5.2, the order ---------------------------------------------------------------------------

RANK_LINES, RANK_BYTES = 2_500, 120_000  # for 300 steps of AGING_SECONDS
FIRST_LINES = 40_000  # for 400 waiting sequences


def rank_cost(rank_of: Callable[..., Any]) -> Counted:
    """The rank of a sequence with 100,000 tokens that has waited 3,000 s."""
    sequence = waiting_sequence(0)
    sequence.prompt_token_ids = [1] * 100_000
    return small_work((RANK_LINES, RANK_BYTES), rank_of, (waiting_sequence(1), 25.0), (sequence, 3000.0))


def first_cost(line_class: Any) -> Counted:
    """`first` of 400 sequences in four lines; the one in the last line that has aged is the next."""
    line = line_class()
    for i in range(400):
        line.add(waiting_sequence(i, i % 4, 0.0 if i % 4 == 3 else 900.0))
    lists = [(WAITING, ReadList(items)) for items in line._lines.values()]
    line._lines = {items[0].params.priority: items for _, items in lists}
    return measured(FIRST_LINES, partial(line.first, 1000.0), *lists)


def second_by_second(sequence: Sequence, now: float) -> tuple[int, int, int]:
    """Counts the seconds of the age one by one."""
    seconds = aged = 0
    while sequence.arrival + seconds + 1 <= now:
        seconds += 1
        aged += seconds % 10 == 0
    return sequence.params.priority - aged, sequence.order, sequence.index


def copies_tokens(sequence: Sequence, now: float) -> tuple[int, int, int]:
    """Copies the tokens of the sequence, which it does not need."""
    list(sequence.prompt_token_ids)
    return rank(sequence, now)


class ComparesAll(WaitingLine):
    """Compares every sequence with all others."""

    def first(self, now: float) -> Sequence | None:
        everyone = [sequence for line in self._lines.values() for sequence in line]
        ranks = [rank(sequence, now) for sequence in everyone]
        places = [sum(other < mine for other in ranks) for mine in ranks]
        return everyone[places.index(0)] if everyone else None


class CopiesLines(WaitingLine):
    """Copies its line for every sequence."""

    def first(self, now: float) -> Sequence | None:
        best: Sequence | None = None
        for line in self._lines.values():
            for i in range(len(line)):
                sequence = list(line)[i]
                best = sequence if best is None or rank(sequence, now) < rank(best, now) else best
        return best


RANK_COST = Case("the work after 3,000 s, for a sequence of 100,000 tokens", rank_cost, "cost")
FIRST_COST = Case("the work for 400 sequences in four lines", first_cost, "cost")
AGE = "an age of 300 steps"
RANK_RULE = "the work may grow with the steps, not with the seconds or the tokens"
RANK_TOO_MUCH = (
    too_much(RANK_LINES, AGE, RANK_RULE, second_by_second),
    too_much(RANK_BYTES, AGE, RANK_RULE, copies_tokens, BYTES),
)
FIRST_TOO_MUCH = (
    too_much(FIRST_LINES, "400 sequences", "the work may grow as sorting does, not faster", ComparesAll),
    too_often(WAITING, "400 sequences", CopiesLines),
)

# --- 5.3 to 5.6, a method of the scheduler ------------------------------------------------------------

CHUNK_LINES = 8_000  # for a chunk of 64 tokens and 200 running sequences
FIT_LINES = 80_000  # for 400 running sequences
STEP_LINES = 130_000  # for 1,020 running sequences
START_LINES = 40_000  # for 300 running sequences and 300 found blocks


def crowd(scheduler_class: Any, num_free: int, *states: SequenceState, **options: Any) -> tuple[Stage, Any]:
    """A stage with many sequences, and its list of running ones, which counts the entries that are read."""
    stage = Stage(scheduler_class, num_free, states, **options)
    stage.scheduler.running = ReadList(stage.scheduler.running)
    return stage, (RUNNING, stage.scheduler.running)


def chunk_cost(scheduler_class: Any) -> Counted:
    """A chunk of 64 tokens of a prompt of 40,000, while 200 other sequences run."""
    sizes = {"prefill_chunk": 64, "max_num_batched_tokens": 512}
    stage, running = crowd(scheduler_class, 40, *[DECODING] * 200, SequenceState(40_000, 8), **sizes)
    sequence = stage.sequences[-1]
    sequence.prompt_token_ids = tokens = ReadList(sequence.prompt_token_ids)
    action = partial(stage.scheduler._prefill, StepPlan(), sequence, 312)
    return measured(CHUNK_LINES, action, running, (PROMPT, tokens))


def fit_cost(scheduler_class: Any) -> Counted:
    """The oldest of 400 sequences needs the blocks of all others."""
    stage, running = crowd(scheduler_class, 0, *[DECODING] * 400)
    action = partial(stage.scheduler._fits, StepPlan(), stage.sequences[0], 2 * 400 * BLOCK_SIZE)
    return measured(FIT_LINES, action, running)


def step_cost(scheduler_class: Any) -> Counted:
    """A step of 1,000 sequences after their prefill and 20 in it; 600 wait, and no place is free."""
    states = [*[DECODING] * 1000, *[STARTED] * 20, *[NEW] * 600]
    stage, running = crowd(scheduler_class, 1_200, *states, max_num_batched_tokens=2048, max_num_seqs=1020)
    lines = stage.scheduler.waiting._lines
    lists = [(WAITING, ReadList(items)) for items in lines.values()]
    lines.update(zip(lines, (items for _, items in lists), strict=True))
    return measured(STEP_LINES, partial(stage.scheduler.schedule, 0.0), running, *lists)


def start_cost(scheduler_class: Any) -> Counted:
    """A sequence that finds 300 blocks in the prefix cache, while 300 others run."""
    states = [*[DECODING] * 300, SequenceState(1_202, 1_200), SequenceState(1_204, is_waiting=True)]
    stage, running = crowd(scheduler_class, 6_000, *states, prefix_caching=True)
    *_, author, sequence = stage.sequences
    stage.memory.publish(author)
    stage.scheduler.remove(author)
    stage.memory.match(sequence)  # its digests are computed once
    sequence.prompt_token_ids = tokens = ReadList(sequence.prompt_token_ids)
    action = partial(stage.scheduler._start, StepPlan(), sequence)
    return measured(START_LINES, action, running, (PROMPT, tokens))


def wasteful(method: str, waste: Callable[..., Any]) -> type[Scheduler]:
    """A scheduler whose `method` first calls `waste` with its own arguments."""
    own = getattr(Scheduler, method)

    def run(scheduler: Scheduler, *arguments: Any, **options: Any) -> Any:
        waste(scheduler, *arguments)
        return own(scheduler, *arguments, **options)

    return type("Wasteful", (Scheduler,), {method: run})


def copies(
    found: Callable[..., Iterable[list[Any]]], times: Callable[[Scheduler], int]
) -> Callable[..., None]:
    """A waste: copies the lists that `found` returns, so many times."""

    def waste(scheduler: Scheduler, *arguments: Any) -> None:
        for _ in range(times(scheduler)):
            for items in found(scheduler, *arguments):
                list(items)

    return waste


def _running(scheduler: Scheduler, *_: Any) -> Iterable[list[Any]]:
    return [scheduler.running]


def _prompt(scheduler: Scheduler, plan: StepPlan, sequence: Sequence, *_: Any) -> Iterable[list[Any]]:
    return [sequence.prompt_token_ids]


def _waiting(scheduler: Scheduler, *_: Any) -> Iterable[list[Any]]:
    return scheduler.waiting._lines.values()


def _num_running(scheduler: Scheduler) -> int:
    return len(scheduler.running)


def _chunk_tokens(scheduler: Scheduler) -> int:
    return scheduler._config.prefill_chunk


def _walks_prompt(scheduler: Scheduler, plan: StepPlan, sequence: Sequence, *_: Any) -> None:
    for _t in range(sequence.num_tokens):
        pass


def _searches_newest(scheduler: Scheduler, *_: Any) -> None:
    for _r in range(len(scheduler.running)):
        max(scheduler.running, key=lambda r: r.rank)


CHUNK = "a chunk of 64 tokens beside 200 running sequences"
FITS = "400 running sequences"
STEP = "1,020 running sequences"
START = "300 running sequences and 300 found blocks"
CHUNK_COST = Case(f"the work for {CHUNK}", chunk_cost, "cost")
FIT_COST = Case("the work for the oldest of 400 sequences, which needs all blocks", fit_cost, "cost")
STEP_COST = Case("the work for a step of 1,020 sequences, 600 wait", step_cost, "cost")
START_COST = Case(f"the work for {START}", start_cost, "cost")
CHUNK_TOO_MUCH = (
    too_much(
        CHUNK_LINES,
        CHUNK,
        "the work may grow with the chunk's tokens and with the running sequences, not faster",
        wasteful("_prefill", _walks_prompt),
    ),
    too_often(RUNNING, CHUNK, wasteful("_prefill", copies(_running, _chunk_tokens))),
    too_often(PROMPT, CHUNK, wasteful("_prefill", copies(_prompt, _chunk_tokens))),
)
FIT_TOO_MUCH = (
    too_much(
        FIT_LINES,
        FITS,
        "the work may grow with the number of running sequences, not faster",
        wasteful("_fits", _searches_newest),
    ),
    too_often(RUNNING, FITS, wasteful("_fits", copies(_running, _num_running))),
)
STEP_TOO_MUCH = (
    too_much(
        STEP_LINES,
        STEP,
        "the work may grow with the number of running sequences, and as sorting does",
        wasteful("schedule", _searches_newest),
    ),
    too_often(RUNNING, STEP, wasteful("schedule", copies(_running, _num_running))),
    too_often(WAITING, STEP, wasteful("schedule", copies(_waiting, _num_running))),
)
START_TOO_MUCH = (
    too_much(
        START_LINES,
        START,
        "the work may grow with the running sequences and with the found blocks, not faster",
        wasteful("_start", _searches_newest),
    ),
    too_often(RUNNING, START, wasteful("_start", copies(_running, _num_running))),
    too_often(PROMPT, START, wasteful("_start", copies(_prompt, _num_running))),
)
