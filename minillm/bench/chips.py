"""What a GPU can do in a cycle: the figures that an estimate needs (predict.py), each with its source.

    SM (multiprocessor)                                    chip
    +--------------------------------------------+         SMs share
    | 4 sub-cores: issue 1 warp instruction/cycle |         L2 cache   bytes a second
    |   fp32, alu, special: lanes                 |         DRAM       bytes a second
    |   tensor core: FLOPs                        |
    | shared memory: 1 wavefront (128 bytes)/cycle|         a load that misses every cache waits
    | L1: 1 line (128 bytes) a cycle              |         `dram_latency` cycles
    +--------------------------------------------+

Sources. [G] CUDA C++ Programming Guide, "Arithmetic Instructions" (results per cycle and SM) and "Technical
Specifications per Compute Capability". [T4] NVIDIA T4 datasheet. [A] NVIDIA A100 whitepaper. [H] NVIDIA H100
whitepaper. [J] Jia et al., arXiv 1903.07486 (T4). [L] Luo et al., arXiv 2402.13499 (A100, H100): latencies,
and mma.sync, which reaches 63 % of an H100's peak (only wgmma reaches all of it). [C] chipsandcheese.com,
"Nvidia's H100: Funny L2, and Tons of Bandwidth" (L2). [B] benchmarks/README.md, "one H100".
"""

from __future__ import annotations

from dataclasses import dataclass

from minillm.errors import UsageError

WARP = 32
SUBCORES = 4  # of an SM, each with a quarter of its lanes and its own warps


@dataclass(frozen=True)
class Chip:
    """A GPU. Rates are per cycle and SM where nothing else is said; latencies are in cycles."""

    name: str
    arch: str  # of the machine code it runs: "90" is sm_90
    sms: int
    clock: float  # Hz, boost
    bandwidth: float  # of DRAM, bytes a second
    l2_bytes: int
    l2_bandwidth: float  # bytes a second
    shared_bytes: int  # for the blocks of an SM together
    max_warps: int
    max_blocks: int
    fp32: int  # lanes
    tensor_flops: int  # of mma.sync, 16-bit inputs, float32 sums; 0: no m16n8k16
    dram_latency: int
    alu: int = 64  # lanes: integers, comparisons, minima [G]
    special: int = 16  # lanes: exp2, reciprocal [G]
    registers: int = 65_536  # [G]
    block_overhead: int = 1_024  # shared memory that the system keeps for each block, from sm_80 on [G]


# Latencies [J]; L2 bandwidth measured [J]. Its tensor cores have no mma.m16n8k16 (PTX ISA: sm_80).
T4 = Chip("T4", "75", 40, 1.59e9, 320e9, 4 << 20, 1.27e12, 64 << 10, 32, 16, 64, 0, 296, block_overhead=0)
# The 40 GB part [A]. mma.sync reaches the peak, 312 TFLOP/s: 2048 FLOPs a cycle and SM. L2: 5120 bytes a
# cycle [A].
A100 = Chip("A100", "80", 108, 1.41e9, 1555e9, 40 << 20, 7.2e12, 164 << 10, 64, 32, 64, 2048, 466)
# SXM [H]. Peak 4096 FLOPs a cycle and SM, of which mma.sync reaches 63 % [L].
H100 = Chip("H100", "90", 132, 1.755e9, 3350e9, 50 << 20, 6.5e12, 228 << 10, 64, 32, 128, 2580, 479)

CHIPS = {"t4": T4, "a100": A100, "h100": H100}


def chip_named(name: str) -> Chip:
    """The chip of this name, in any case.

    Raises:
        UsageError: there are no figures of such a chip.
    """
    try:
        return CHIPS[name.lower()]
    except KeyError:
        raise UsageError(f"there are no figures of a chip {name!r}", f"use {', '.join(CHIPS)}") from None
