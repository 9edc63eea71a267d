"""Task 9.7, an engine that speculates with the file's parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from minillm import LLM, SamplingParams
from minillm.labs.grader.student_tables import scheduler_with
from minillm.labs.grader.tiny_model import VOCAB_SIZE, tiny_llm, tiny_model
from minillm.speculation.proposal import DraftSequence, Lookahead, Proposal
from minillm.speculation.scripted import ScriptedDrafter

WINDOW = 24  # the draft model is the target with this window: they differ on longer texts
PROMPTS = ("Once upon a time, once upon a time, once", "abcabcabcabc", "The dog. The dog.")
PARAMS = tuple(
    SamplingParams(max_tokens=24, temperature=temperature, seed=seed, n=n, ignore_eos=True)
    for seed, (temperature, n) in enumerate(((0.0, 1), (0.0, 1), (1.0, 2)))
)


class Lookups:
    """`NgramDrafter` over the file's `NgramIndex`."""

    def __init__(self, index_class: Callable[[], Any]) -> None:
        self._make_index, self._indices = index_class, dict[DraftSequence, Any]()

    def propose(self, lookaheads: Sequence[Lookahead]) -> list[Proposal]:
        """The branches that the file's index finds for each sequence."""
        return [self._propose(lookahead) for lookahead in lookaheads]

    def settle(self, lookahead: Lookahead, proposal: Proposal, branch: int, kept: int) -> None:
        """Store nothing."""

    def _propose(self, lookahead: Lookahead) -> Proposal:
        sequence = lookahead.sequence
        index = self._indices.setdefault(sequence, self._make_index())
        index.extend(sequence.tokens(len(index.tokens), sequence.num_tokens))
        return Proposal(index.continuations(lookahead.depth, len(lookahead.block_tables)))


def speculating(parts: Any, seams: dict[str, Any], **options: Any) -> LLM:
    """The tiny engine with the file's `verify_coupled` and block tables, which are not engine parts."""
    scheduler = scheduler_with(parts.BlockTable)
    llm = tiny_llm(parts={"scheduler": scheduler, **seams}, adaptive_draft=False, **options)
    vars(llm.engine.worker.runner.decoder.ops)["verify_coupled"] = parts.verify_coupled
    return llm


def results(llm: LLM) -> list[Any]:
    """The answers, the accepted drafts of each step, and the blocks in use at the end."""
    with llm.engine.events.record() as trace:
        outputs = llm.generate(list(PROMPTS), list(PARAMS))
    outcomes = [[tuple(o) for o in event["outcomes"]] for event in trace if event.kind == "speculate"]
    answers = [[c.token_ids for c in output.outputs] for output in outputs]
    return [answers, outcomes, llm.engine.stats()["used_blocks"]]


def looking_up(parts: Any) -> list[Any]:
    """Chains from the file's index, verified by the file's `verify_coupled`."""
    drafter = Lookups(parts.NgramIndex)
    return results(speculating(parts, {"drafter": lambda model, config: drafter}, num_draft_tokens=4))


def in_trees(parts: Any) -> list[Any]:
    """Three branches; mostly the last one is accepted, and the sequence adopts its blocks."""
    answers = {
        (tuple(output.prompt_token_ids), i): completion.token_ids
        for output in tiny_llm().generate(list(PROMPTS), list(PARAMS))
        for i, completion in enumerate(output.outputs)
    }

    def answer(sequence: DraftSequence) -> Sequence[int]:
        return answers[tuple(sequence.prompt_token_ids), sequence.index]

    drafter = ScriptedDrafter(answer, VOCAB_SIZE, acceptance=0.8)
    return results(speculating(parts, {"drafter": lambda model, config: drafter}, draft_tree=(3, 1, 1, 1)))


def rejecting(parts: Any) -> list[Any]:
    """A draft model that differs little from the target, and the file's rule of acceptance."""
    return results(
        speculating(
            parts,
            {"verify_draft": parts.verify_draft},
            draft_model=tiny_model(window=WINDOW),
            draft_verification="rejection",
            num_draft_tokens=3,
            prefill_chunk=64,
        )
    )
