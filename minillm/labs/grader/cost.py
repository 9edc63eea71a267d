"""Count the work of tensor code: a torch dispatch mode sees every operation before it runs.

    with counted_work() as work:
        part(...)
    work.num_ops, work.bytes_read, work.bytes_written, work.num_allocations, work.peak_bytes, work.ops["mm"]

    x[2:5].T             a view: no new memory, no bytes; counted only in `ops`
    x + y                reads x and y, writes a fresh output
    x[ids]               reads the rows that are taken, not all of x
    x[ids] = y, x += y   writes y's bytes, or x's, to memory that exists
    torch.empty(n)       allocates, but writes nothing

The numbers are sizes of tensors, not measurements: they are the same on every machine and in every run. One
operation counts once, although its kernel may read an input several times. What Python itself does (lists,
loops), and what other threads do, is not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# These read as many bytes of their first input as they return.
_TAKES = frozenset({"index", "index_select", "gather", "embedding", "take", "masked_select"})
# These write only their last tensor input to places in the first.
_PLACES = frozenset(
    {"index_put_", "_index_put_impl_", "scatter_", "index_copy_", "scatter_add_", "index_add_"}
)
_EMPTY = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"})


@dataclass
class Work:
    """The work of one `with`. Bytes are sums over all operations.

    `num_ops`: operations that compute or copy; views are not counted. `peak_bytes`: the largest sum of the
    memory that was allocated inside the `with` and still in use. `ops`: calls by name ("mm", "view").
    """

    num_ops: int = 0
    num_allocations: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    bytes_allocated: int = 0
    peak_bytes: int = 0
    ops: Counter[str] = field(default_factory=Counter)


@contextmanager
def counted_work() -> Iterator[Work]:
    """Count the tensor operations of this thread inside the `with`. Nested uses all count."""
    mode = _Counting()
    with mode:
        yield mode.work


class _Counting(TorchDispatchMode):
    """Runs every operation and adds it to `work`."""

    def __init__(self) -> None:
        super().__init__()
        self.work = Work()
        self._live: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = _tensors((args, kwargs or {}))
        self._add(func, inputs, _tensors(result))
        return result

    def _add(self, func: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        work, name = self.work, func._schema.name.partition("::")[2]
        work.ops[name] += 1
        known = {_storage(tensor) for tensor in inputs}
        fresh = [tensor for tensor in outputs if _storage(tensor) not in known]
        self._allocate(fresh)
        changed = _changed(func, inputs)
        if not fresh and not changed and outputs:
            return  # a view
        work.num_ops += 1
        if name in _EMPTY:
            return
        work.bytes_written += _size(fresh) + (_size(inputs[-1:]) if name in _PLACES else _size(changed))
        work.bytes_read += _size([*outputs, *inputs[1:]] if name in _TAKES else _read(func, inputs, changed))

    def _allocate(self, fresh: Iterable[Tensor]) -> None:
        """Add the memory of fresh outputs; look for freed memory only if the peak might rise."""
        work = self.work
        for tensor in fresh:
            storage = tensor.untyped_storage()
            work.num_allocations += 1
            work.bytes_allocated += storage.nbytes()
            self._live[StorageWeakRef(storage)] = storage.nbytes()
        if sum(self._live.values()) > work.peak_bytes:
            self._live = {ref: size for ref, size in self._live.items() if not ref.expired()}
            work.peak_bytes = max(work.peak_bytes, sum(self._live.values()))


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _changed(func: Any, inputs: list[Tensor]) -> list[Tensor]:
    """The inputs that the operation writes to: an in-place operation's first, or `out=`, which is last."""
    if not func._schema.is_mutable or not inputs:
        return []
    first = func._schema.arguments[0].alias_info
    return inputs[:1] if first and first.is_write else inputs[-1:]


def _read(func: Any, inputs: list[Tensor], changed: list[Tensor]) -> list[Tensor]:
    """The inputs that the operation reads. `copy_`, `fill_` and `out=` do not read what they overwrite."""
    name = func._schema.name.partition("::")[2]
    overwrites = name in _PLACES or name in ("copy_", "fill_", "zero_") or not name.endswith("_")
    return [x for x in inputs if not (overwrites and any(x is y for y in changed))]
