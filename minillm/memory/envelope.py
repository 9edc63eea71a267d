"""The KV envelope: everything that decides the content of a cache block, besides the tokens.

    KVEnvelope                        components                      digest
      weights  "9c1f..."     -------> {"weights": "4ab0...",  ----+
      config   {...}         ------->  "config":  "77e2...",  ----+--> "e81d..."   Scope.envelope, the part
      ...                              ...}                   ----+                of a block's key

Two engines may share a block only if they would have written the same bytes into it. So the digest of the
envelope is part of every key of the prefix cache (contract C5). Each component has a digest of its own. With
these, two saved answers can be compared field by field without the weights (`engine/same.py`).

Left out: what only says where numbers are kept, such as the number of blocks or the width of stored weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from minillm.memory.encoding import digest

SCHEMA = 2  # of both envelopes; 1 was a digest of JSON


@dataclass(frozen=True)
class KVEnvelope:
    """What the keys and values of a block depend on. All fields are plain values (`encoding.py`).

    weights              SHA-256 of names, shapes and stored bytes of all tensors
    config               the resolved config: shapes, ropes, norms, windows, scales
    allowed_config_keys  keys of config.json that a user let through
    dtype                of weights, activations and the KV cache
    kv_dtype             of keys and values, where it is not `dtype`; None: it is
    quantization         form by matrix name for each layer, then outside them; None: none is quantised
    backend, device      which implementation of the operations, and where it runs
    kernels              the kernel set: the arithmetic and the build
    torch                the version of PyTorch
    block_size           tokens in a block: the block layout
    block_parts          replaced parts that write blocks; of a part its name counts, not its code
    """

    weights: str
    config: Mapping[str, Any]
    allowed_config_keys: Sequence[str]
    dtype: str
    kv_dtype: str | None
    quantization: Sequence[Mapping[str, Any]] | None
    backend: str
    device: str
    kernels: str
    torch: str
    block_size: int
    block_parts: Mapping[str, str]

    @property
    def digest(self) -> str:
        """The digest of all fields: the `envelope` of a `Scope`."""
        return kv_digest(components(self))


def components(envelope: Any) -> dict[str, str]:
    """The digest of each field of a dataclass, by name."""
    return {field.name: digest(getattr(envelope, field.name)) for field in fields(envelope)}


def kv_digest(parts: Mapping[str, str]) -> str:
    """The digest of a KV envelope, from the digests of its components.

    `kv_dtype` came after the schema: where it is None it is left out, so those engines keep their digest.
    """
    plain = {"kv_dtype": digest(None)}
    return digest(["kv envelope", SCHEMA, dict(parts.items() - plain.items())])
