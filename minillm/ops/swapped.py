"""A backend with some of its functions replaced: how a reader's own kernel gets into the engine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from minillm.ops.contract import Ops
from minillm.ops.reference import RopeFn, rotate_and_write


class SwappedOps:
    """`Ops` with some functions replaced; the rest are those of `inner`.

    A replaced `rope` makes `rope_and_cache` a composition: rotate with it, then write the cache. With
    any of them replaced the layers run one op at a time. A replaced `linear` is given plain matrices
    [out, in]: `Decoder.with_ops` unpacks them.
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
