"""Outputs that `minillm generate --json` saved, read again and checked.

The file may be anything: a folder, a pipe, a gigabyte, another program's JSON. Every field that is used has
its type checked. What can be computed again is compared: the digest of the answer, the totals of the envelope
and the digests of its readable fields. So a file that was changed by hand in one place is refused.

Left out: signatures. Who writes a whole file anew can write what they like.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from minillm.config import SamplingParams, require_int, shown
from minillm.config.files import read_object
from minillm.engine.envelope import READABLE, ExecutionEnvelope, execution_digest
from minillm.engine.prompt import ids_digest
from minillm.errors import EncodingError, NotAnOutput, UnreadableFile, UsageError
from minillm.memory.encoding import digest
from minillm.memory.envelope import SCHEMA, KVEnvelope, kv_digest

FORMAT = 1  # of the object that `--json` prints
KV = tuple(field.name for field in fields(KVEnvelope))
OWN = tuple(field.name for field in fields(ExecutionEnvelope) if field.name != "kv")
_REASONS = ("stop", "length", "cancelled", "deadline", "error")
_SAVE = "save one with: minillm generate ... --json > A.json"
_AGAIN = "save the answer again"


@dataclass(frozen=True)
class SavedOutput:
    """What a saved output says about its request. `components`: the digests of the envelope's fields."""

    model: str
    prompt_digest: str
    prompt_token_digest: str
    token_ids: list[int]
    finish_reason: str
    seed: int
    sampling: SamplingParams
    readable: Mapping[str, Any]
    components: Mapping[str, str]


def read_output(path: Path) -> SavedOutput:
    """Read a saved output.

    Raises:
        UnreadableFile: there is no such file, or it cannot be read.
        NotAnOutput: it is no saved output, one of another version, or a damaged one.
    """
    try:
        found = read_object(path, NotAnOutput)
    except NotAnOutput as error:  # the hint is about models
        raise NotAnOutput(error.message, _SAVE) from None
    except UnreadableFile as error:
        raise UnreadableFile(error.message, _SAVE) from None
    try:
        return _checked(found, str(path))
    except (EncodingError, UsageError) as error:
        if isinstance(error, NotAnOutput):
            raise
        raise NotAnOutput(f"{path}: {error.message}", _AGAIN) from None


def _checked(found: dict[str, Any], name: str) -> SavedOutput:
    envelope = found.get("envelope")
    if not isinstance(envelope, dict) or "text" not in found:
        raise NotAnOutput(f"{name} is no saved output of minillm", _SAVE)
    versions = (found.get("format"), FORMAT), (envelope.get("schema"), SCHEMA)
    for version, own in versions:
        if type(version) is not int or version != own:
            raise NotAnOutput(
                f"{name} was saved by another version of minillm: format {shown(version)}, not {own}",
                "save both answers with the same version",
            )
    ids = _of_type(found, "token_ids", list)
    for token_id in ids:
        require_int("token_ids", token_id, minimum=0, maximum=(1 << 63) - 1)
    if ids_digest(ids) != _hex(found, "token_digest"):
        raise UsageError("was changed: token_ids do not fit token_digest")
    reason = _of_type(found, "finish_reason", str)
    if reason not in _REASONS:
        raise UsageError(f"finish_reason is {shown(reason)}")
    return SavedOutput(
        model=_of_type(found, "model", str),
        prompt_digest=_hex(found, "prompt_digest"),
        prompt_token_digest=_hex(found, "prompt_token_digest"),
        token_ids=ids,
        finish_reason=reason,
        seed=require_int("seed", found.get("seed")),
        sampling=_sampling(_of_type(found, "sampling", dict)),
        readable={key: envelope.get(key) for key in READABLE},
        components=_components(envelope),
    )


def _components(envelope: dict[str, Any]) -> dict[str, str]:
    """The digests of all components, checked against the totals and the readable fields."""
    given = _of_type(envelope, "components", dict)
    if set(given) != {*KV, *OWN}:
        raise UsageError("the envelope has other components than this version's")
    parts = {key: _hex(given, key) for key in (*KV, *OWN)}
    kv, own = {key: parts[key] for key in KV}, {key: parts[key] for key in OWN}
    totals = {"kv": kv_digest(kv), "execution": execution_digest(kv, own)}
    readable = {key: digest(envelope.get(key)) for key in READABLE}
    wrong = [key for key, total in totals.items() if envelope.get(key) != total]
    wrong += [key for key, value in readable.items() if value != parts[key]]
    if wrong:
        raise UsageError(f"was changed: {wrong[0]} does not fit the digests of the envelope")
    return parts


def _sampling(given: dict[str, Any]) -> SamplingParams:
    if set(given) != {field.name for field in fields(SamplingParams)}:
        raise UsageError("sampling has other parameters than this version's")
    return SamplingParams(**given)


def _of_type(found: Mapping[str, Any], key: str, kind: type) -> Any:
    value = found.get(key)
    if type(value) is not kind:
        raise UsageError(f"{key} must be a {kind.__name__}, not {shown(value)}")
    return value


def _hex(found: Mapping[str, Any], key: str) -> str:
    value = found.get(key)
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise UsageError(f"{key} must be a digest of 64 hex digits, not {shown(value)}")
    return value
