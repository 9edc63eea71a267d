"""A backend with some of its functions replaced: the engine can run a reader's own kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from minillm.ops.contract import Ops
from minillm.ops.reference import RopeFn, rotate_and_write


class SwappedOps:
    """`Ops` with some functions replaced; the other methods are those of `inner`.

    With a replaced `rope`, `rope_and_cache` first rotates with it and then writes the cache. With any
    replaced function the layers run one op at a time. A replaced `linear` gets plain matrices [out, in]:
    `Decoder.with_ops` unpacks them.
    """

    def __init__(
        self,
        inner: Ops,
        rope: RopeFn | None = None,
        attention: Callable[..., Tensor] | None = None,
        linear: Callable[..., Tensor] | None = None,
    ) -> None:
        self._inner = inner
        self.name = inner.name
        if rope is not None:
            self.rope_and_cache = partial(rotate_and_write, rope)
        if attention is not None:
            self.paged_attention = attention
        if linear is not None:
            self.linear = linear
            self.packs = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
