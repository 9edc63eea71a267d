"""Task 11.6, who is held back: cases of `Quota`'s `add`, `_start` and `released`."""

from __future__ import annotations

from typing import Any

from minillm.config.tenants import TenantLimits
from minillm.labs.grader.counts import LINES, counted_lines, within
from minillm.labs.grader.lab import Case, Counted, Words
from minillm.labs.lab11_tenants.quota_stage import Asked, Limits, QuotaStage, quota_case

QUOTA_LINES = 60_000  # for 200 requests that have started and 200 parked ones
BEN: Limits = {"ben": TenantLimits(max_blocks=10)}
EACH: Limits = {None: TenantLimits(max_blocks=6)}
SMALL, HALF = Asked("ben", 4, 4), Asked("ben", 8, 12)  # 2 and 5 of ben's 10 blocks


def turns(quota_class: Any) -> list[Words]:
    """Two quotas in turns; the list of released sequences is changed by its caller."""
    stages = [QuotaStage(quota_class, BEN, [HALF, HALF, SMALL, SMALL]) for _ in range(2)]
    told = [stage.act(f"add {name}") for name in "abc" for stage in stages]
    told.append(stages[0].act("end a"))
    stages[0].quota.released(0.0).clear()
    return [*told, *(stages[i].act(action) for action in ("add d", "look") for i in (0, 1))]


def work(quota_class: Any) -> Counted:
    """One of 200 small requests ends; of 200 parked ones the first starts, and 20 more come."""
    limits: Limits = {"ben": TenantLimits(max_blocks=400)}
    stage = QuotaStage(quota_class, limits, [SMALL] * 421)
    sequences = [request.sequences[0] for request in stage.requests.values()]
    for sequence in sequences[:400]:
        stage.quota.add(sequence)
    sequences[7].end("length")

    def act() -> None:
        stage.quota.released(0.0)
        for sequence in sequences[400:420]:
            stage.quota.add(sequence)

    return within(QUOTA_LINES, counted_lines(act), LINES)


QUOTA_CASES = (
    quota_case(
        "two fit, the third waits",
        BEN,
        [HALF, HALF, SMALL],
        "add a",
        "add b",
        "add c",
        "look",
        "end a",
        "look",
        "look",
    ),
    quota_case("exactly all blocks", BEN, [HALF, Asked("ben", 9, 11), SMALL], "add a", "add b", "add c"),
    quota_case("one block too many", BEN, [HALF, Asked("ben", 10, 11)], "add a", "add b", "end a", "look"),
    quota_case(
        "short prompts, long answers",
        BEN,
        [Asked("ben", 2, 20), Asked("ben", 2, 20)],
        "add a",
        "add b",
        "end a",
        "look",
    ),
    quota_case(
        "three samples share the prompt",
        BEN,
        [Asked("ben", 16, 4, 3), Asked("ben", 8, 4), SMALL],
        "add a",
        "add b",
        "add c",
        "end a",
        "look",
    ),
    quota_case(
        "a fork of a started request",
        BEN,
        [Asked("ben", 8, 8, 3), SMALL, HALF],
        "add a",
        "fork a",
        "add b",
        "add c",
        "fork a",
        "end one a",
        "look",
        "end a",
        "look",
    ),
    quota_case(
        "preempted, and queued again",
        BEN,
        [HALF, HALF, SMALL],
        "add a",
        "add b",
        "again a",
        "add c",
        "again b",
        "end b",
        "look",
        "again a",
    ),
    quota_case(
        "a small one behind a large one",
        BEN,
        [HALF, Asked("ben", 20, 12), SMALL],
        "add a",
        "add b",
        "add c",
        "look",
        "end a",
        "look",
    ),
    quota_case(
        "another tenant passes by",
        {**BEN, **EACH},
        [HALF, HALF, SMALL, Asked("cleo", 8), Asked("dan", 8)],
        "add a",
        "add b",
        "add c",
        "add d",
        "add e",
    ),
    quota_case(
        "two tenants wait, the second one's requests end",
        EACH,
        [Asked("dan", 12, 12), Asked("dan", 8), Asked("cleo", 12, 8), Asked("cleo", 8), Asked(None, 8)],
        *("add a", "add b", "add c", "add d", "add e", "look", "end c", "look", "end a", "look"),
    ),
    quota_case(
        "several are released at once",
        BEN,
        [Asked("ben", 20, 20), SMALL, SMALL, SMALL, HALF, SMALL],
        "add a",
        "add b",
        "add c",
        "add d",
        "add e",
        "add f",
        "end a",
        "look",
        "end b",
        "look",
        "end c",
        "look",
    ),
    quota_case(
        "the line's own order",
        BEN,
        [Asked("ben", 20, 20), Asked("ben", 4, priority=2), SMALL, Asked("ben", 8, 20, priority=1)],
        "add a",
        "add b",
        "add c",
        "add d",
        "end a",
        "look",
        "end c",
        "look",
    ),
    quota_case(
        "old requests of a later priority",
        BEN,
        [Asked("ben", 20, 20), Asked("ben", 24, 12, priority=2), Asked("ben", 20, 12, arrival=95.0)],
        "add a",
        "add b",
        "add c",
        "end a",
        "look late",
    ),
    quota_case(
        "larger than the limit, and alone",
        BEN,
        [SMALL, Asked("ben", 40, 8), SMALL],
        "add a",
        "add b",
        "end a",
        "look",
        "add c",
        "end b",
        "look",
    ),
    quota_case(
        "no limit",
        {"ben": TenantLimits(10), None: TenantLimits()},
        [Asked("ben", 40, 40), Asked(None, 40, 40), Asked("ben", 80)],
        "add a",
        "add b",
        "add c",
        "look",
    ),
    quota_case(
        "a limit for each tenant that is not named",
        EACH,
        [Asked(None, 16, 8), Asked("", 16, 8), Asked("eve", 16, 8), Asked(None, 1)],
        "add a",
        "add b",
        "add c",
        "add d",
    ),
    quota_case(
        "a parked one is aborted",
        BEN,
        [HALF, Asked("ben", 40), SMALL, SMALL],
        "add a",
        "add b",
        "add c",
        "drop b",
        "look",
        "add d",
    ),
    Case("two quotas in turns", turns, "aliasing"),
    Case("the work for 200 started and 200 parked requests", work, "cost"),
)
