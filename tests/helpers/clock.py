"""Drafting on a clock that is made up, for tests of the controller."""

from __future__ import annotations

import random
from collections.abc import Callable

from minillm.speculation.controller import Controller
from minillm.speculation.state import DraftState


class Sequence:
    """Stands for a sequence: the controller looks at what its drafts did, and at nothing else."""

    def __init__(self, acceptance: float) -> None:
        self.acceptance = acceptance
        self.draft = DraftState()


def simulate(
    controller: Controller,
    sequences: list[Sequence],
    steps: int,
    target: Callable[[int], float],
    level: Callable[[int], float],
    seed: int = 0,
    first: float = 0.0,
) -> tuple[float, list[list[int]]]:
    """Tokens per second of a clock that is made up, and the depths chosen at each step.

    Drafting takes `first` seconds and then those of each level.
    """
    rng, seconds, tokens, chosen = random.Random(seed), 0.0, 0, list[list[int]]()
    for _ in range(steps):
        depths = controller.choose(sequences)  # type: ignore[arg-type]
        rows = len(sequences) + sum(depths)
        step = target(rows)
        controller.record_target(rows, step)
        if any(depths):
            branches = sum(depth > 0 for depth in depths)
            drafting = first + max(depths) * level(branches)
            controller.record_draft(branches, max(depths), drafting)
            step += drafting
        for sequence, depth in zip(sequences, depths, strict=True):
            stood = 0
            while stood < depth and rng.random() < sequence.acceptance:
                stood += 1
            if depth:
                controller.record_result(sequence, depth, stood)  # type: ignore[arg-type]
            tokens += 1 + stood
        seconds += step
        chosen.append(depths)
    return tokens / seconds, chosen


def memory_bound(rows: int) -> float:
    """A pass that reads weights for 1 ms and computes 0.02 ms a row."""
    return 1e-3 + 2e-5 * rows


def compute_bound(rows: int) -> float:
    return 1e-3 * rows
