"""What metrics read of an engine, once, beside its events: the size of a block, the costs of the model."""

from __future__ import annotations

from typing import Any, Protocol

from minillm.observe.events import Events


class Costs(Protocol):
    """Estimates FLOPs, bytes read and bytes written (`model/step_costs.py`)."""

    weight_bytes: int

    def prefill(self, start: int, end: int) -> tuple[int, int, int]:
        """Of the tokens `start` to `end` of a sequence, without weights."""

    def decode(self, rows: int, sequences: int, context: int) -> tuple[int, int, int]:
        """Of the decode rows of a step, without weights."""


class Engine(Protocol):
    """The parts of an engine that are read here."""

    events: Events

    @property
    def pool(self) -> Any:
        """`num_blocks`: the blocks of the KV cache."""

    @property
    def model(self) -> Any:
        """`step_costs()`: estimates for this model."""

    @property
    def worker(self) -> Any:
        """`runner.cache`: the tensors of the KV cache."""

    @property
    def speculation(self) -> Any:
        """`drafter`: a draft model has a `runner` with tensors of its own, for the same blocks."""


def block_bytes(engine: Engine) -> int:
    """Bytes of one KV block in all layers, those of the draft model included."""
    runners = engine.worker.runner, getattr(getattr(engine.speculation, "drafter", None), "runner", None)
    caches = [getattr(runner, "cache", None) for runner in runners]
    total = sum(getattr(cache, "nbytes", 0) for cache in caches)
    return int(total) // int(engine.pool.num_blocks)
