"""Lab 3: the paged cache and the two loops: addresses, cache tensors, block tables, prefill, decode."""

from __future__ import annotations

from minillm.labs.grader.lab import Change, Lab, Part, Task
from minillm.labs.lab3_cache.address_cases import (
    COUNT_CASES,
    COUNT_MISTAKES,
    SLOT_CASES,
    SLOT_MISTAKES,
    more_counts,
    more_slots,
)
from minillm.labs.lab3_cache.cache_cases import READ_CASES, WRITE_CASES, more_reads, more_writes
from minillm.labs.lab3_cache.cache_mistakes import READ_MISTAKES, WRITE_MISTAKES
from minillm.labs.lab3_cache.decode_cases import DECODE_CASES, more_decodes
from minillm.labs.lab3_cache.decode_mistakes import DECODE_MISTAKES
from minillm.labs.lab3_cache.engine_cases import ENGINE_CASES, ENGINE_MISTAKES
from minillm.labs.lab3_cache.fork_cases import FORK_CASES, more_forks
from minillm.labs.lab3_cache.fork_mistakes import FORK_MISTAKES
from minillm.labs.lab3_cache.grow_cases import GROW_CASES, GROW_MISTAKES, more_grows
from minillm.labs.lab3_cache.prefill_cases import PREFILL_CASES, more_prefills
from minillm.labs.lab3_cache.prefill_mistakes import PREFILL_MISTAKES

TABLE, OPS = "minillm.memory.block_table", "minillm.ops.reference"
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


LAB = Lab(
    3,
    "cache",
    "The paged cache and the two loops",
    (
        Task(
            "3.1",
            "the number of blocks",
            5,
            Part(TABLE, "blocks_for", engine_calls=True),
            COUNT_CASES,
            COUNT_MISTAKES,
            more_counts,
        ),
        Task(
            "3.2",
            "position to slot",
            15,
            Part(TABLE, "slot_mapping"),
            SLOT_CASES,
            SLOT_MISTAKES,
            more_slots,
        ),
        Task(
            "3.3",
            "rows to their slots",
            10,
            Part(OPS, "write_cache"),
            WRITE_CASES,
            WRITE_MISTAKES,
            more_writes,
        ),
        Task(
            "3.4",
            "the rows of a sequence",
            10,
            Part(OPS, "read_cache"),
            READ_CASES,
            READ_MISTAKES,
            more_reads,
        ),
        Task(
            "3.5",
            "enough blocks",
            15,
            Part(TABLE, "BlockTable", ("grow",)),
            GROW_CASES,
            GROW_MISTAKES,
            more_grows,
        ),
        Task(
            "3.6",
            "share a prompt",
            15,
            Part(TABLE, "BlockTable", ("fork",)),
            FORK_CASES,
            FORK_MISTAKES,
            more_forks,
        ),
        Task(
            "3.7",
            "many known tokens in one pass",
            10,
            Part("minillm.worker.prefill", "prefill"),
            PREFILL_CASES,
            PREFILL_MISTAKES,
            more_prefills,
        ),
        Task(
            "3.8",
            "one token for every sequence",
            10,
            Part("minillm.worker.decode", "decode"),
            DECODE_CASES,
            DECODE_MISTAKES,
            more_decodes,
        ),
        Task("3.9", "your cache and loops in the running engine", 10, None, ENGINE_CASES, ENGINE_MISTAKES),
    ),
    CHANGE,
)
