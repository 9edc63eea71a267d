"""Reads a divergence record, line by line, and believes nothing in it.

    line 1    header                         what computed it
    then      request and step lines         in the order in which they were computed
    the end   ... {"r": 0, "s": 0, "p": 7,   a line without its line break: the process was stopped while it
                                             wrote. It is left out, and `is_cut` says so.

The file may be anything: another program's JSON, a gigabyte without a line break, huge numbers.
Every field is checked, each error is one line and names the line of the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from minillm.config import EngineConfig, SamplingParams, require_int, shown
from minillm.config.files import shown_path
from minillm.config.line_files import json_object, numbered_lines
from minillm.config.quantization import QUANTIZATIONS
from minillm.engine.diverge_record import FORMAT, SCHEDULE, VERSION
from minillm.engine.record import forms_of
from minillm.errors import MinillmError, NotARecord, UnreadableFile, UsageError
from minillm.memory.encoding import digest
from minillm.model.families import load_model_config
from minillm.model.stored_pieces import quantization_of
from minillm.model.weights import with_forms
from minillm.ops.contract import DTYPES

LINE_LIMIT = 64 << 20  # bytes; a prompt of a million tokens takes 8 MB
_MAKE = 'make one with LLM(diverge_record="a.record")'
_AGAIN = "record the run again"
_LARGEST = (1 << 63) - 1
READABLE = ("backend", "kernels", "device", "dtype", "torch", "block_size", "minillm", "kv", "execution")


class Candidate(NamedTuple):
    """A token and its logit."""

    token_id: int
    logit: float


@dataclass(frozen=True)
class Step:
    """One drawn token. `order`: its place in the file. Without `digest`: the step was interrupted."""

    order: int
    token_id: int
    digest: str | None
    top: tuple[Candidate, ...]


@dataclass
class Recorded:
    """A request of a record. `samples[i][p]`: the step that drew token p of sample i."""

    number: int
    prompt: list[int]
    seed: int
    sampling: SamplingParams
    samples: dict[int, dict[int, Step]] = field(default_factory=dict)

    @property
    def num_steps(self) -> int:
        """The number of its steps, of all samples."""
        return sum(map(len, self.samples.values()))

    def tokens(self, sample: int, position: int) -> list[int]:
        """The ids before output position `position`: the prompt and the tokens drawn so far."""
        steps = self.samples[sample]
        return self.prompt + [steps[p].token_id for p in range(position)]


@dataclass
class Record:
    """A divergence record. `is_cut`: its last line was written in part, and is left out."""

    name: str
    model: str
    logits_dtype: str
    envelope: Mapping[str, Any]
    schedule: Mapping[str, Any]
    requests: list[Recorded] = field(default_factory=list)
    num_steps: int = 0
    is_cut: bool = False


def read_record(path: Path) -> Record:
    """Read a record.

    Raises:
        UnreadableFile: there is no such file, or it cannot be read.
        NotARecord: it is no divergence record, one of another version, or a damaged one.
    """
    name = shown_path(path)
    record: Record | None = None

    def too_long(number: int) -> NotARecord:
        return NotARecord(f"{name}, line {number}: longer than {LINE_LIMIT} bytes", _AGAIN)

    try:
        for number, line in numbered_lines(path, LINE_LIMIT, too_long):
            if not line.endswith(b"\n"):
                if record is None:
                    raise NotARecord(f"{name} is no divergence record", _MAKE)
                record.is_cut = True
                break
            found = _object(line, name, number)
            if record is None:
                record = _header(found, name)
            else:
                _add(record, found, number)
    except UnreadableFile as error:
        raise UnreadableFile(error.message, _MAKE) from None
    if record is None:
        raise NotARecord(f"{name} is empty", _MAKE)
    return record


def config_of(record: Record, folder: Path, allow_config_keys: Sequence[str] = ()) -> EngineConfig:
    """The options of an engine that computes with the model in `folder` as the record's engine did.

    Raises:
        NotARecord: the record names a backend, device, dtype or size that does not exist.
        UsageError: it has forms of matrices that this model does not get.
        MinillmError: as for any model that cannot be loaded.
    """
    names = {name: record.envelope[name] for name in ("backend", "device", "dtype")}
    names["kv_dtype"] = record.envelope.get("kv_dtype")
    names["quantization"] = _scheme_of(record, folder, allow_config_keys)
    sizes = {name: record.schedule[name] for name in (*SCHEDULE, "max_model_len")}
    try:
        return EngineConfig(**names, **sizes, allow_config_keys=allow_config_keys)
    except UsageError as error:
        raise NotARecord(f"{record.name}: {error.message}", _AGAIN) from None


def _scheme_of(record: Record, folder: Path, allow_config_keys: Sequence[str]) -> str | None:
    """The scheme of `LLM(quantization=...)` that gives the record's forms; None: the files have them so."""
    wanted = record.envelope["components"].get("quantization", digest(None))
    config = load_model_config(folder, allow_config_keys)
    schemes = (None, *QUANTIZATIONS) if quantization_of(folder) is None else (None,)
    for scheme in schemes:
        if digest(forms_of(with_forms(config, folder, scheme))) == wanted:
            return scheme
    raise UsageError(
        f"{record.name} was made with matrices in other forms than {folder.name} gives", "give its own model"
    )


def _object(line: bytes, name: str, number: int) -> dict[str, Any]:
    if (found := json_object(line)) is not None:
        return found
    if number == 1:
        raise NotARecord(f"{name} is no divergence record", _MAKE)
    raise NotARecord(f"{name}, line {number}: no JSON object", _AGAIN)


def _header(found: dict[str, Any], name: str) -> Record:
    if found.get("format") != FORMAT:
        raise NotARecord(f"{name} is no divergence record", _MAKE)
    version = found.get("version")
    if type(version) is not int or version != VERSION:
        raise NotARecord(
            f"{name} has version {shown(version)} of the format, not {VERSION}",
            "record both runs with the same version of minillm",
        )
    envelope, schedule = found.get("envelope"), found.get("schedule")
    dtype, model = found.get("logits_dtype"), found.get("model")
    if not isinstance(envelope, dict) or not isinstance(schedule, dict) or not isinstance(model, str):
        raise NotARecord(f"{name}, line 1: no envelope, schedule or model", _AGAIN)
    if dtype not in DTYPES:
        raise NotARecord(f"{name}, line 1: logits_dtype is {shown(dtype)}", _AGAIN)
    texts = [key for key in READABLE if key != "block_size" and not isinstance(envelope.get(key), str)]
    parts = envelope.get("components")
    if texts or not isinstance(parts, dict) or not all(isinstance(v, str) for v in parts.values()):
        raise NotARecord(f"{name}, line 1: the envelope lacks {(texts or ['components'])[0]}", _AGAIN)
    _check(name, 1, lambda: [_size(schedule, key) for key in (*SCHEDULE, "max_model_len")])
    return Record(name, model, str(dtype), envelope, schedule)


def _size(found: Mapping[str, Any], key: str) -> int:
    return require_int(key, found.get(key), minimum=1, maximum=_LARGEST)


def _add(record: Record, found: dict[str, Any], line: int) -> None:
    def add() -> None:
        if "request" in found:
            record.requests.append(_request(found, len(record.requests)))
        else:
            _add_step(record, found)

    _check(record.name, line, add)


def _check(name: str, line: int, action: Callable[[], object]) -> None:
    """Run `action`; a wrong value becomes an error that names the line."""
    try:
        action()
    except MinillmError as error:
        raise NotARecord(f"{name}, line {line}: {error.message}", _AGAIN) from None
    except (TypeError, ValueError, OverflowError):
        raise NotARecord(f"{name}, line {line}: not a request or a step", _AGAIN) from None


def _request(found: dict[str, Any], number: int) -> Recorded:
    if require_int("request", found["request"]) != number:
        raise ValueError
    prompt, sampling = found.get("prompt"), found.get("sampling")
    if not isinstance(prompt, list) or not prompt or not isinstance(sampling, dict):
        raise ValueError
    ids = [_id(token_id) for token_id in prompt]
    return Recorded(number, ids, require_int("seed", found.get("seed")), SamplingParams(**sampling))


def _add_step(record: Record, found: dict[str, Any]) -> None:
    number = require_int("r", found.get("r"), minimum=0, maximum=len(record.requests) - 1)
    request = record.requests[number]
    sample = require_int("s", found.get("s"), minimum=0, maximum=request.sampling.n - 1)
    steps = request.samples.setdefault(sample, {})
    position = require_int("p", found.get("p"), minimum=0, maximum=_LARGEST)
    if position != len(steps):
        raise NotARecord(f"step {shown(position)} of a sample follows {len(steps)} steps")
    digest, top = found.get("d"), found.get("top")
    if digest is not None and not (isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest)):
        raise ValueError
    if not isinstance(top, list | None) or (top is not None and len(top) > 2):
        raise ValueError
    candidates = tuple(_candidate(pair) for pair in top or ())
    steps[position] = Step(record.num_steps, _id(found.get("t")), digest, candidates)
    record.num_steps += 1


def _candidate(pair: Any) -> Candidate:
    token_id, logit = pair
    if isinstance(logit, bool) or not isinstance(logit, int | float):
        raise ValueError
    return Candidate(_id(token_id), float(logit))


def _id(value: Any) -> int:
    return require_int("token id", value, minimum=0, maximum=_LARGEST)
