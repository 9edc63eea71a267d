"""Task 3.9, the whole file in the engine: cases and known mistakes.

The tokens show whether the answers are right. The work shows whether they were computed as paging allows:
every token goes through the model once.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from minillm.config import SamplingParams
from minillm.labs.grader.lab import Case, Mistake, Words
from minillm.labs.grader.student_tables import scheduler_with
from minillm.labs.grader.tiny_model import tiny_llm
from minillm.labs.lab3_cache.loop_cases import LinearCounter
from minillm.labs.lab3_cache.loop_mistakes import keeps, runs_again
from minillm.memory.block_table import BlockTable, blocks_for, slot_mapping
from minillm.ops.reference import read_cache, write_cache
from minillm.worker.decode import decode
from minillm.worker.prefill import prefill


def seams(parts: Any) -> dict[str, Any]:
    """The file's functions as parts of the engine."""
    return {
        "prefill_loop": parts.prefill,
        "decode_loop": parts.decode,
        "slot_mapping": parts.slot_mapping,
        "write_cache": parts.write_cache,
        "read_cache": parts.read_cache,
        "scheduler": scheduler_with(parts.BlockTable),
    }


def in_engine(parts: Any) -> list[Any]:
    """Tokens of requests of different lengths, one forked; then of other requests in the same engine."""
    llm = tiny_llm(parts=seams(parts))
    prompts = ["A", "Once upon", "There was a small town by the sea"]
    params = [SamplingParams(max_tokens=size, seed=size, n=n) for size, n in ((9, 1), (14, 3), (20, 1))]
    outputs = llm.generate(prompts, params)
    again = llm.generate(prompts[::-1], SamplingParams(max_tokens=12, seed=5))
    answers = [[[c.token_ids for c in output.outputs] for output in done] for done in (outputs, again)]
    return [*answers, llm.engine.stats()["used_blocks"]]


def work_of_steps(parts: Any) -> list[Words]:
    """The runs of the model and their rows in every step: two requests, the second arrives later."""
    counter = LinearCounter()
    engine = tiny_llm(parts={**seams(parts), "linear": counter}).engine
    params = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)
    seen: list[Words] = []
    for step in range(12):
        if step in (0, 3):
            engine.add_request([7 + step, *range(30, 37 - step)], params)
        counter.restart()
        engine.step()
        seen.append(counter.words())
    return seen


def mistaken(**parts: Any) -> SimpleNamespace:
    """The engine's own parts, some of them replaced."""
    own = {
        "blocks_for": blocks_for,
        "slot_mapping": slot_mapping,
        "write_cache": write_cache,
        "read_cache": read_cache,
        "BlockTable": BlockTable,
        "prefill": prefill,
        "decode": decode,
    }
    return SimpleNamespace(**{**own, **parts})


ENGINE_CASES = (
    Case("five completions of three prompts, then three more", in_engine),
    Case("the work of each step of two requests", work_of_steps, "cost"),
)
ENGINE_MISTAKES = (
    *(
        Mistake(
            "your loops keep tokens and run them again: the keys and values of all tokens except the newest "
            "are in the cache",
            mistaken(prefill=first, decode=runs_again(key)),
        )
        for key in (lambda item: id(item.block_table), lambda item: item.block_table[0])
        for first in (keeps(key, prefill), runs_again(key))
    ),
)
