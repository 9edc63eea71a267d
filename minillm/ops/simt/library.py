"""Compile a .cu file for the simulator and call its launchers. Labs and tests run their kernels this way.

    library = compile_kernels("lab7.cu")
    library.run("attention", q=q, k=k, v=v, out=out, seq_len=64, head_dim=32, scale=0.17)

A launcher is a C function in the file: `extern "C" void attention(const float* q, ...)`. Arguments are
passed in the order given: tensors as pointers, ints as C ints, floats as C floats. The kernels may access
only the memory of these tensors. Errors use the names given here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from minillm.errors import UsageError
from minillm.ops.simt.machine import machine, raise_error
from minillm.toolchain.compiler import BuildFailed
from minillm.toolchain.simt import build_kernels

Argument = Tensor | int | float


class KernelLibrary:
    """The launchers of one compiled file."""

    def __init__(self, path: Path) -> None:
        machine()  # first: the library's symbols are looked up in it
        self._library = ctypes.CDLL(str(path))

    def run(self, launcher: str, **arguments: Argument) -> None:
        """Call a launcher; its kernels have finished when this returns.

        Raises:
            UsageError: the file has no such launcher, or a tensor is not on the CPU.
            SimtError: a kernel made an error that the simulator detects.
        """
        try:
            function = self._library[launcher]
        except AttributeError:
            raise UsageError(f'there is no extern "C" function {launcher!r} in the file') from None
        machine().clear_globals()
        converted = [_convert(name, value) for name, value in arguments.items()]
        try:
            function(*converted)
        finally:
            machine().clear_globals()
        raise_error()


def compile_kernels(
    source: str | Path, flags: Sequence[str] = (), folder: Path | None = None
) -> KernelLibrary:
    """Compile a .cu file, or take it from the cache (or from `folder`, if that is given).

    Raises:
        UsageError: it does not compile; the message contains the compiler's message.
    """
    try:
        return KernelLibrary(build_kernels(Path(source), flags, folder))
    except BuildFailed as error:
        raise UsageError(f"{Path(source).name}: {error}") from None


def _convert(name: str, value: Argument) -> ctypes._SimpleCData:  # type: ignore[type-arg]
    if isinstance(value, Tensor):
        if value.device.type != "cpu":
            raise UsageError(f"{name} is on {value.device}", "the simulator runs kernels on CPU tensors")
        machine().add_global(name, value.data_ptr(), _span(value))
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_int(value) if isinstance(value, int) else ctypes.c_float(value)


def _span(tensor: Tensor) -> int:
    """Bytes from the first element to the last, gaps of a strided tensor included."""
    if not tensor.numel():
        return 0
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()
