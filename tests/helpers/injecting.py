"""Ops that move the result of one op, for one token, by one unit in the last place.

The place is (token position, token id, call of the pass). Positions come from the part `slot_mapping`, which
is called with them before a pass begins, so the fault is the same however the token is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from minillm.config import EngineConfig
from minillm.engine.engine import Engine
from minillm.memory.block_table import slot_mapping
from minillm.model.loader import LoadedModel
from minillm.ops.contract import LayerCache
from minillm.ops.cpu import CpuOps
from minillm.verify.trace import ROW_OPS
from minillm.verify.weakened import one_unit_more


class InjectingOps:
    """Native ops with a fault at `at`: (position, token id, call)."""

    def __init__(self, at: tuple[int, int, int] | None = None) -> None:
        self._inner, self.at = CpuOps(), at
        self.name = self._inner.name
        self._coming: list[int] = []
        self._row: int | None = None
        self._call = 0

    def slots(self, table: Sequence[int], positions: Sequence[int], size: int) -> list[int]:
        self._coming += positions
        return slot_mapping(table, positions, size)

    def __getattr__(self, op: str) -> Any:
        inner = getattr(self._inner, op)
        if op not in ROW_OPS:
            return inner

        def call(*arguments: Any, **named: Any) -> Any:
            if op == "embedding":
                self._begin(arguments[0].tolist())
            result = inner(*arguments, **named)
            if self._row is not None and self.at is not None and self._call == self.at[2]:
                _move(result, self._row)
                for written in arguments if op == "rope_and_cache" else ():
                    if isinstance(written, LayerCache):
                        slot = int(arguments[-1].slot_mapping[self._row])
                        for cache in written:
                            _move(cache.flatten(0, 1), slot)
            self._call += 1
            return result

        return call

    def _begin(self, ids: list[int]) -> None:
        rows, self._coming, self._call = self._coming, [], 0
        found = zip(rows, ids, strict=True)
        wanted = None if self.at is None else self.at[:2]
        self._row = next((i for i, place in enumerate(found) if place == wanted), None)


def _move(result: Tensor | tuple[Tensor, ...], row: int) -> None:
    """Move every number of the row: of a single one, the next op may round the change away."""
    tensor = result[0] if isinstance(result, tuple) else result
    tensor[row] = one_unit_more(tensor[row])


def injected(model: LoadedModel, at: tuple[int, int, int] | None) -> tuple[LoadedModel, InjectingOps]:
    """The model, whose weights are shared, on ops with a fault."""
    ops = InjectingOps(at)
    return replace(model, decoder=model.decoder.with_ops(ops)), ops


def recording_engine(
    model: LoadedModel, path: Path, ops: InjectingOps | None = None, **options: Any
) -> Engine:
    """An engine that records; with `ops`, they see the positions of every pass."""
    settings = {"device": "cpu", "dtype": "float32", "kv_memory": "2MiB", "prefix_caching": False}
    config = EngineConfig(**(settings | options), diverge_record=path)
    return Engine(model, config, {"slot_mapping": ops.slots} if ops else None)


def drain(engine: Engine) -> None:
    """Run all requests to their ends."""
    while engine.has_unfinished_requests():
        engine.step()
