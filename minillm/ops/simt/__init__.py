"""Runs the CUDA kernels of csrc/cuda on a CPU, with counters and checks (the simulator is csrc/simt)."""

from minillm.ops.simt.library import KernelLibrary, compile_kernels
from minillm.ops.simt.machine import (
    Counters,
    Profile,
    SimtError,
    flavour,
    flavours,
    profile,
    registers,
    schedule,
)
from minillm.ops.simt.ops import SimtOps

__all__ = [
    "Counters",
    "KernelLibrary",
    "Profile",
    "SimtError",
    "SimtOps",
    "compile_kernels",
    "flavour",
    "flavours",
    "profile",
    "registers",
    "schedule",
]
