"""The divergence record: what every token was drawn from, so that two runs can be compared afterwards.

    LLM(diverge_record="a.record")    ->   a file of lines, each one JSON object:

    {"format": "minillm divergence record", "version": 1, "model": .., "logits_dtype": .., "envelope": {..},
     "schedule": {..}}                                       the first line: envelope, backend, chunk sizes
    {"request": 0, "prompt": [5, 17], "seed": 1, "sampling": {..}}       before a request's first step
    {"r": 0, "s": 0, "p": 0, "t": 42, "d": "9f0c..", "top": [[42, 7.25], [9, 7.0]]}             a step

A step is one drawn token: request `r`, sample `s`, output position `p`, token `t`; `d` is the SHA-256 of the
bytes of its row of logits, and `top` holds the two highest logits. `d` and `top` are null if the step was
interrupted after its token had been appended. The digests are not keyed: two runs could not be compared then.
So a record holds token ids and what can be guessed from digests. It is opt-in, readable by its owner only,
and never part of a trace (contract C8).

Lines are appended with one write for each step of the engine (`config/new_file.py`). Whatever stops the
process, the file is whole up to its last line break. A reader leaves out what follows (`verify/record.py`).

Rows are recorded on whatever path they were computed: op by op, fused, verified drafts, forks of a prompt. A
preempted answer draws none of its tokens again, so no step is recorded twice.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minillm.config import EngineConfig
from minillm.config.new_file import LineFile
from minillm.engine.envelope import plain_params
from minillm.engine.sequence import Sequence
from minillm.engine.watch import RowWatch
from minillm.model.loader import LoadedModel

FORMAT, VERSION = "minillm divergence record", 1
SCHEDULE = ("block_size", "prefill_chunk", "max_num_batched_tokens", "max_num_seqs")
NUM_TOP = 2  # the winner and the runner-up


class Fingerprint(NamedTuple):
    """A row of logits: the digest of its bytes, and its highest values with their ids."""

    digest: str
    top: list[list[float]]


def fingerprints(logits: Tensor) -> list[Fingerprint]:
    """The fingerprint of each row of `logits` [num_rows, vocab_size]."""
    rows = logits.detach().cpu().contiguous()
    left, found = rows.float(), list[list[list[float]]]([] for _ in rows)
    left = left.clone() if left is rows else left
    for _ in range(min(NUM_TOP, rows.shape[1])):
        best = left.max(dim=-1)
        for top, token_id, value in zip(found, best.indices.tolist(), best.values.tolist(), strict=True):
            top.append([token_id, value])
        left.scatter_(1, best.indices.unsqueeze(1), -torch.inf)
    return [Fingerprint(digest_of(row), top) for row, top in zip(rows, found, strict=True)]


def digest_of(row: Tensor) -> str:
    """SHA-256 of the bytes of a tensor on the CPU."""
    return hashlib.sha256(row.contiguous().view(torch.uint8).numpy().data).hexdigest()


def start_record(
    config: EngineConfig, model: LoadedModel, envelope: Mapping[str, Any]
) -> RowWatch[Fingerprint] | None:
    """The watch that writes the record of an engine; None if nobody asked for one.

    Raises:
        UsageError, StorageError: the file exists, or cannot be made.
    """
    if config.diverge_record is None:
        return None
    return DivergeRecorder(config.diverge_record, model, config, envelope).watch


class DivergeRecorder:
    """Writes the record of one engine. `watch` is given to the worker and the stepper."""

    def __init__(
        self, path: str | Path, model: LoadedModel, config: EngineConfig, envelope: Mapping[str, Any]
    ) -> None:
        self.watch: RowWatch[Fingerprint] = RowWatch(fingerprints, self._take, self._flush)
        self._numbers: dict[str, int] = {}  # request id -> its number in the record
        self._written: weakref.WeakKeyDictionary[Sequence, int] = weakref.WeakKeyDictionary()
        self._file = LineFile(path, "diverge_record", "the divergence record")
        weakref.finalize(self, self._file.close)
        header = {
            "format": FORMAT,
            "version": VERSION,
            "model": model.folder.name,
            "logits_dtype": str(model.dtype).removeprefix("torch."),
            "envelope": dict(envelope),
            "schedule": {
                **{name: getattr(config, name) for name in SCHEDULE},
                "max_model_len": model.max_model_len,
            },
        }
        self._file.add(_line(header))
        self._file.flush()

    def _take(self, sequence: Sequence, position: int, kept: Fingerprint) -> None:
        """Make the line of one step, and before a request's first one the line of the request."""
        number = self._numbers.get(sequence.request_id)
        if number is None:
            number = self._numbers[sequence.request_id] = len(self._numbers)
            self._file.add(_line(_request(number, sequence)))
        for missed in range(self._written.get(sequence, 0), position):
            self._file.add(_line(_step(number, sequence, missed, None)))
        self._file.add(_line(_step(number, sequence, position, kept)))
        self._written[sequence] = position + 1

    def _flush(self) -> None:
        """Append the lines of a step."""
        self._file.flush()


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))


def _request(number: int, sequence: Sequence) -> dict[str, Any]:
    return {
        "request": number,
        "prompt": sequence.prompt_token_ids,
        "seed": sequence.seed,
        "sampling": plain_params(sequence.params),
    }


def _step(number: int, sequence: Sequence, position: int, kept: Fingerprint | None) -> dict[str, Any]:
    return {
        "r": number,
        "s": sequence.index,
        "p": position,
        "t": sequence.output_token_ids[position],
        "d": kept.digest if kept else None,
        "top": kept.top if kept else None,
    }
