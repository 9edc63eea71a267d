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


T4 = Chip(
    name="T4",
    arch="75",
    sms=40,
    clock=1.59e9,
    bandwidth=320e9,  # [T4]
    l2_bandwidth=1.27e12,  # measured [J]
    shared_bytes=64 << 10,
    max_warps=32,
    max_blocks=16,
    fp32=64,
    tensor_flops=0,  # its tensor cores have no m16n8k16
    dram_latency=296,  # [J]
    block_overhead=0,
)
A100 = Chip(  # of 40 GB
    name="A100",
    arch="80",
    sms=108,
    clock=1.41e9,
    bandwidth=1555e9,  # [A]
    l2_bandwidth=7.2e12,  # 5120 bytes a cycle [A]
    shared_bytes=164 << 10,
    max_warps=64,
    max_blocks=32,
    fp32=64,
    tensor_flops=2048,  # mma.sync reaches the peak of 312 TFLOP/s [A]
    dram_latency=466,  # [L]
)
H100 = Chip(  # SXM
    name="H100",
    arch="90",
    sms=132,
    clock=1.755e9,
    bandwidth=3350e9,  # [H]
    l2_bandwidth=6.5e12,  # 5.6e12 with 114 SMs [C], scaled to 132; linear_l5 moves 6.3e12 [B]
    shared_bytes=228 << 10,
    max_warps=64,
    max_blocks=32,
    fp32=128,
    tensor_flops=2580,  # 63 % of 4096 [L]
    dram_latency=479,  # [L]
)

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
