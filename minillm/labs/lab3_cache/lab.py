"""Lab 3: the paged cache and the two loops: address translation, block tables, prefill, decode."""

from __future__ import annotations

from typing import Any

from minillm.config import SamplingParams
from minillm.labs.grader.lab import Case, Change, Lab, Part, Task
from minillm.labs.grader.student_tables import scheduler_with
from minillm.labs.grader.tiny_model import tiny_llm
from minillm.labs.lab3_cache.address_cases import COUNT_CASES, COUNT_MISTAKES, SLOT_CASES, SLOT_MISTAKES
from minillm.labs.lab3_cache.block_table_cases import FORK_CASES, FORK_MISTAKES, GROW_CASES, GROW_MISTAKES
from minillm.labs.lab3_cache.decode_cases import DECODE_CASES, DECODE_MISTAKES
from minillm.labs.lab3_cache.prefill_cases import PREFILL_CASES, PREFILL_MISTAKES

TABLE = "minillm.memory.block_table"
CHANGE = Change(
    (
        "minillm.engine.prefill",
        "minillm.engine.decode",
        "minillm.model.runner",
        "minillm.engine.request.Request",
        "decode(requests)",
        ".block_table.grow",
        ".num_computed_tokens",
        ".output_token_ids",
    ),
    "prefill now receives PrefillChunk(token_ids, start, block_table) and decode receives "
    "DecodeRow(token_id, position, block_table); the tables are already grown",
)


def in_engine(parts: Any) -> list[Any]:
    """Tokens of requests of different lengths, one forked, with the file's loops, slots and tables."""
    seams = {
        "prefill_loop": parts.prefill,
        "decode_loop": parts.decode,
        "slot_mapping": parts.slot_mapping,
        "scheduler": scheduler_with(parts.BlockTable),
    }
    llm = tiny_llm(parts=seams)
    prompts = ["A", "Once upon", "There was a small town by the sea"]
    params = [SamplingParams(max_tokens=size, seed=size, n=n) for size, n in ((9, 1), (14, 3), (20, 1))]
    outputs = llm.generate(prompts, params)
    return [[[c.token_ids for c in output.outputs] for output in outputs], llm.engine.stats()["used_blocks"]]


LAB = Lab(
    3,
    "cache",
    "The paged cache and the two loops",
    (
        Task("3.1", "the number of blocks", 5, Part(TABLE, "blocks_for"), COUNT_CASES, COUNT_MISTAKES),
        Task("3.2", "position to slot", 15, Part(TABLE, "slot_mapping"), SLOT_CASES, SLOT_MISTAKES),
        Task("3.3", "enough blocks", 20, Part(TABLE, "BlockTable", ("grow",)), GROW_CASES, GROW_MISTAKES),
        Task("3.4", "share a prompt", 20, Part(TABLE, "BlockTable", ("fork",)), FORK_CASES, FORK_MISTAKES),
        Task(
            "3.5",
            "many known tokens in one pass",
            15,
            Part("minillm.worker.prefill", "prefill"),
            PREFILL_CASES,
            PREFILL_MISTAKES,
        ),
        Task(
            "3.6",
            "one token for every sequence",
            15,
            Part("minillm.worker.decode", "decode"),
            DECODE_CASES,
            DECODE_MISTAKES,
        ),
        Task(
            "3.7",
            "your cache and loops in the running engine",
            10,
            None,
            (Case("five completions of three prompts", in_engine),),
        ),
    ),
    CHANGE,
)
