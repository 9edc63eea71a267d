"""A backend with some of its functions replaced: the engine can run a reader's own kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from minillm.ops import variants
from minillm.ops.contract import Ops
from minillm.ops.reference import (
    ReadFn,
    RopeFn,
    WriteFn,
    apply_rope,
    attend_pages,
    grouped_query_attention,
    rotate_and_write,
    write_cache,
)


class SwappedOps:
    """`Ops` with some functions replaced; the other methods are those of `inner`.

    With a replaced `rope` or `write`, `rope_and_cache` first rotates and then writes the cache. With a
    replaced `read`, attention is the reference's, over the rows that `read` returns. With any replaced
    function the layers run one op at a time. A replaced `linear` gets plain matrices [out, in]:
    `Decoder.with_ops` unpacks them.
    """

    def __init__(
        self,
        inner: Ops,
        rope: RopeFn | None = None,
        attention: Callable[..., Tensor] | None = None,
        linear: Callable[..., Tensor] | None = None,
        write: WriteFn | None = None,
        read: ReadFn | None = None,
    ) -> None:
        self._inner = inner
        self.name = inner.name
        if rope is not None or write is not None:
            rotate, written = rope or apply_rope, write or write_cache
            self.rope_and_cache = partial(rotate_and_write, rotate, write=written, view_keys=inner.view_keys)
        if read is not None:
            attention = partial(attend_pages, grouped_query_attention, read=read)
        if attention is not None:
            self.paged_attention = attention
        if linear is not None:
            self.linear = linear
            self.packs, self.plain_only = False, True
            self.experts = partial(variants.experts, self)  # of `linear`, one expert after the other

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
