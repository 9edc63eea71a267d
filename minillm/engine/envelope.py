"""The execution envelope: everything that an answer depends on, besides the request.

    KVEnvelope (memory/envelope.py)       weights, config, dtype, kernels, ...: what decides a cache block
      + tokenizer, chat template          how text becomes token ids, and messages become text
      + ends of text, sampling defaults   what the model's files say about sampling
      + features                          options that change tokens, replaced parts, versions
    = ExecutionEnvelope

`engine/record.py` makes it of a loaded model. This file imports no torch: `minillm verify same` reads the
names of the components from here.

Equal envelopes and equal seeds give equal tokens to equal requests. With the reference backend they do so
within its tolerance only: its sums depend on the shape of a batch. The seed of a request and its sampling
parameters are no part of the envelope; they belong to the request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from minillm.config import SamplingParams
from minillm.memory.encoding import digest
from minillm.memory.envelope import SCHEMA, KVEnvelope, components, kv_digest

# Fields of the envelope that an output shows as they are, beside their digests.
READABLE = ("backend", "kernels", "device", "dtype", "torch", "block_size", "minillm")


@dataclass(frozen=True)
class ExecutionEnvelope:
    """What an answer depends on, besides the request. All fields but `kv` are plain values.

    tokenizer          tokenizer.json, the tokens that other files add, and how they are used
    chat_templates     the templates by name
    end_of_text        ids that end an answer
    sampling_defaults  the sampling parameters of generation_config.json
    speculation        None, or under rejection sampling the draft: only there it decides tokens
    parts              replaced parts that write no blocks, by name
    minillm            the version
    engine_seed        requests that give no seed derive theirs from it
    """

    kv: KVEnvelope
    tokenizer: Mapping[str, Any] | None
    chat_templates: Mapping[str, str]
    end_of_text: Sequence[int]
    sampling_defaults: Mapping[str, Any]
    speculation: Mapping[str, Any] | None
    parts: Mapping[str, str]
    minillm: str
    engine_seed: int

    def to_dict(self) -> dict[str, Any]:
        """The envelope as an output carries it: both digests, those of all components, and readable fields.

        `allowed_config_keys` is there only if a key was allowed, `kv_dtype` only if it is not the dtype.
        """
        own = {f.name: digest(getattr(self, f.name)) for f in fields(self) if f.name != "kv"}
        kv = components(self.kv)
        values = {**vars(self.kv), **vars(self)}
        readable = {name: values[name] for name in READABLE}
        if self.kv.allowed_config_keys:
            readable["allowed_config_keys"] = ", ".join(self.kv.allowed_config_keys)
        if self.kv.kv_dtype:
            readable["kv_dtype"] = self.kv.kv_dtype
        totals = {"kv": kv_digest(kv), "execution": execution_digest(kv, own)}
        return {"schema": SCHEMA, **totals, **readable, "components": {**kv, **own}}


def execution_digest(kv: Mapping[str, str], own: Mapping[str, str]) -> str:
    """The digest of an execution envelope, from the digests of the KV envelope's components and its own."""
    return digest(["execution envelope", SCHEMA, {"kv": kv_digest(kv), **own}])


def plain_params(params: SamplingParams) -> dict[str, Any]:
    """Sampling parameters as plain values that can be encoded, and written as JSON."""
    return params.to_dict() | {"max_tokens": int(params.max_tokens)}  # without the mark of a default
