"""Lab 9: speculative decoding: accepted drafts, the token after them, drafting, and memory."""

from __future__ import annotations

from minillm.labs.grader.lab import Case, Change, Lab, Part, Task
from minillm.labs.lab9_speculation.branch_cases import BRANCH_CASES, BRANCH_MISTAKES, random_branches
from minillm.labs.lab9_speculation.coupled_cases import WALK_CASES, WALK_MISTAKES, random_trees
from minillm.labs.lab9_speculation.distribution_cases import DISTRIBUTION_CASES
from minillm.labs.lab9_speculation.engine_cases import in_trees, looking_up, rejecting
from minillm.labs.lab9_speculation.leftover_cases import LEFT_CASES, LEFT_MISTAKES, random_draws
from minillm.labs.lab9_speculation.ngram_cases import LOOKUP_CASES, random_texts
from minillm.labs.lab9_speculation.ngram_mistakes import LOOKUP_MISTAKES
from minillm.labs.lab9_speculation.rejection_cases import ACCEPT_CASES, random_verdicts
from minillm.labs.lab9_speculation.rejection_mistakes import ACCEPT_MISTAKES
from minillm.labs.lab9_speculation.truncate_cases import TRUNCATE_CASES, TRUNCATE_MISTAKES, random_cuts

VERIFICATION = "minillm.ops.verification"
TABLE = "minillm.memory.block_table"
CHANGE = Change(
    ("minillm.speculation.drafts", "minillm.engine.speculate", "minillm.engine.verdicts", ".lanes"),
    "a Draft is now a Proposal (minillm.speculation.proposal) with `branches`, lanes are `block_tables`",
)
LAB = Lab(
    9,
    "speculation",
    "Speculative decoding: verify, keep, roll back",
    (
        Task(
            "9.1",
            "down the tree of drafts",
            20,
            Part(VERIFICATION, "verify_coupled"),
            WALK_CASES,
            WALK_MISTAKES,
            random_trees,
        ),
        Task(
            "9.2",
            "the draw after the drafts",
            15,
            Part(VERIFICATION, "draw_leftover"),
            LEFT_CASES,
            LEFT_MISTAKES,
            random_draws,
        ),
        Task(
            "9.3",
            "rejection sampling, exact",
            20,
            Part(VERIFICATION, "verify_draft"),
            ACCEPT_CASES + DISTRIBUTION_CASES,
            ACCEPT_MISTAKES,
            random_verdicts,
        ),
        Task(
            "9.4",
            "drafts without a model",
            15,
            Part("minillm.speculation.ngram", "NgramIndex", ("extend", "continuations"), ("_copy",)),
            LOOKUP_CASES,
            LOOKUP_MISTAKES,
            random_texts,
        ),
        Task(
            "9.5",
            "roll back",
            10,
            Part(TABLE, "BlockTable", ("truncate",)),
            TRUNCATE_CASES,
            TRUNCATE_MISTAKES,
            random_cuts,
        ),
        Task(
            "9.6",
            "two branches of one sequence",
            10,
            Part(TABLE, "BlockTable", ("branch", "adopt")),
            BRANCH_CASES,
            BRANCH_MISTAKES,
            random_branches,
        ),
        Task(
            "9.7",
            "your speculation in the running engine",
            10,
            None,
            (
                Case("n-gram drafts", looking_up),
                Case("trees of three branches", in_trees),
                Case("a draft model, with rejection sampling", rejecting),
            ),
        ),
    ),
    CHANGE,
)
