"""How long a kernel takes on a GPU, from what can be counted without one, and what limits it.

    counted in the simulator    wavefronts of shared memory, mma, bytes                    (counts.py)
    read in the machine code    registers, instructions of the loops, loads in flight      (sass.py)
    known of the chip           rates and latencies                                        (chips.py)

Each unit alone gives a limit: the work for it, divided by its rate. A kernel takes at least the longest of
them. It takes more if few warps are there to overlap them. Two laws say how much:

    Little's law   bytes in flight = bandwidth * latency. A warp that waits for `waits` loads, one after
                   another, takes waits * latency, whatever the bandwidth is. More loads before a wait, or
                   more warps, hide it
    queueing       a block alone takes C cycles. With n blocks, each of which keeps a unit busy for D of its T
                   cycles, the others take the share rho = (n - 1) * D / T of that unit, and it waits for
                   them: T = C + sum over the units of D * rho / (2 * (1 - rho))

The last is the wait in front of a server that always needs the same time (M/D/1). With one block T is C;
with many T tends to n * D of the busiest unit. The warps of a block meet at a barrier in each trip, and then
all want the same unit: so C is the time of a warp alone and, at the busiest unit, the turns of the others.
There is no number fitted to a kernel.

Sources: Little, "A proof for the queuing formula L = lambda W" (1961); Kleinrock, "Queueing Systems" (1975);
Volkov, "Understanding latency hiding on GPUs" (2016).
Left out: hits in L1, other waits at a block's barriers, the clock under load, instruction cache misses.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from minillm.bench.chips import SUBCORES, WARP, Chip
from minillm.bench.sass import Code
from minillm.errors import UsageError

MMA_FLOPS = 2 * 16 * 8 * 16
LINE = 128  # bytes

# One efficiency for each resource, the same for every kernel and chip: what the best of all measured kernels
# reached on an H100 (benchmarks/README.md). Nothing here may make a kernel look better than its limit.
DRAM_EFFICIENCY = 0.82  # decode_d3 reads 2.7 of 3.35 TB/s
LOADED_LATENCY = 1.7  # a load among many, beside one load in an idle chip
LAUNCH_SECONDS = 1.5e-6  # of a kernel in a CUDA graph: act_and_mul of one row takes this


@dataclass(frozen=True)
class Trips:
    """How often a warp runs a loop. Loads that are `ahead` trips early are waited for beside the work.

    `share` of the warps run it: those of empty rows do not, but wait for the others at a barrier.
    """

    loop: str
    count: float
    ahead: int = 0
    share: float = 1.0


@dataclass(frozen=True)
class Work:
    """One launch. `blocks` has the relative work of each block, in the order in which they start.

    Wavefronts of shared memory, lines of 128 bytes that L1 looks up, and mma are sums over the launch;
    `requested` bytes are those that kernels ask for, `unique` those of the tensors: what DRAM must deliver
    at least.
    """

    kernel: str
    blocks: Sequence[float]
    warps: int  # of a block
    trips: tuple[Trips, ...]
    wavefronts: float = 0
    lines: float = 0
    mma: float = 0
    requested: float = 0
    unique: float = 0
    dynamic_shared: int = 0
    entry_waits: int = 2  # latencies before the first trip: indexes, then the first data


@dataclass(frozen=True)
class Estimate:
    """Seconds of a kernel, `bound` by the longest of `parts`: seconds that each limit alone would take.

    `resident` blocks share an SM; the busiest SM has `busiest` times the average work.
    """

    seconds: float
    bound: str
    parts: dict[str, float] = field(default_factory=dict)
    resident: int = 0
    busiest: float = 1.0


def occupancy(work: Work, code: Code, chip: Chip) -> int:
    """How many blocks share an SM.

    Raises:
        UsageError: not even one fits.
    """
    registers = -(-code.registers * WARP // 256) * 256 * work.warps  # given to a warp in pieces of 256
    shared = code.shared + work.dynamic_shared
    fit = {
        "registers": chip.registers // registers,
        "warps": chip.max_warps // work.warps,
        "blocks": chip.max_blocks,
        "shared memory": chip.shared_bytes // (shared + chip.block_overhead) if shared else chip.max_blocks,
    }
    short = min(fit, key=lambda name: fit[name])
    if fit[short] == 0:
        raise UsageError(
            f"a block of {work.kernel} does not fit a {chip.name}: {short}", "choose a larger chip"
        )
    return fit[short]


def busiest_sm(blocks: Sequence[float], sms: int, resident: int) -> float:
    """The work of the SM that gets most: blocks in turn, later ones to the SM that has done least."""
    if min(blocks) == max(blocks):
        return blocks[0] * -(-len(blocks) // sms)
    loads = [0.0] * sms
    for i, block in enumerate(blocks[: sms * resident]):
        loads[i % sms] += block
    heapq.heapify(loads)
    for block in blocks[sms * resident :]:
        heapq.heapreplace(loads, loads[0] + block)
    return max(loads)


def queued(alone: float, demands: Sequence[tuple[float, int]]) -> float:
    """Cycles of a block that alone takes `alone`; `demands`: (its cycles at a unit, blocks that share it)."""
    alone = max([alone, *(d for d, _ in demands)])
    low = high = max([alone, *(d * n for d, n in demands)])

    def longer(time: float) -> bool:
        others = [(d, (n - 1) * d / time) for d, n in demands]  # of a unit's time
        return (
            any(rho >= 1 for _, rho in others)
            or alone + sum(d * rho / (1 - rho) / 2 for d, rho in others) > time
        )

    while longer(high):
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if longer(middle) else (low, middle)
    return high


def predict(work: Work, code: Code, chip: Chip) -> Estimate:
    """The estimate for one launch.

    Raises:
        UsageError: a block does not fit the chip, or it needs tensor cores that the chip has not.
    """
    if not work.blocks or sum(work.blocks) <= 0:
        return Estimate(LAUNCH_SECONDS, "launch", {"launch": LAUNCH_SECONDS})
    if work.mma and not chip.tensor_flops:
        raise UsageError(f"a {chip.name} has no mma.m16n8k16", "choose a chip of sm_80 or later")
    return _Launch(work, code, chip).estimate()


class _Launch:
    """Sums over the trips of an average warp, and what they mean on a chip."""

    def __init__(self, work: Work, code: Code, chip: Chip) -> None:
        self.work, self.code, self.chip = work, code, chip
        self.average = sum(work.blocks) / len(work.blocks)
        self.all_warps = len(work.blocks) * work.warps
        self.resident = min(occupancy(work, code, chip), -(-len(work.blocks) // chip.sms))
        self.latency = LOADED_LATENCY * chip.dram_latency
        self.bytes_a_cycle = {
            "DRAM": DRAM_EFFICIENCY * chip.bandwidth / chip.clock,
            "L2": chip.l2_bandwidth / chip.clock,
        }

    def units(self) -> dict[str, tuple[float, int]]:
        """{unit: (cycles for which an average warp keeps it busy, units of its kind in an SM)}."""
        chip, work = self.chip, self.work

        def count(what: str) -> float:
            loops = self.code.loops
            return sum(t.count * t.share * float(getattr(loops[t.loop], what)) for t in work.trips)

        lanes = {"float32": chip.fp32, "integers": chip.alu, "special functions": chip.special}
        names = {"float32": "fp32", "integers": "alu", "special functions": "special"}
        found = {unit: (count(names[unit]) * WARP * SUBCORES / lanes[unit], SUBCORES) for unit in lanes}
        found["instructions"] = count("instructions"), SUBCORES
        if work.mma:
            found["tensor cores"] = (
                work.mma / self.all_warps * MMA_FLOPS * SUBCORES / chip.tensor_flops,
                SUBCORES,
            )
        found["shared memory"] = work.wavefronts / self.all_warps, 1
        found["L1"] = work.lines / self.all_warps, 1
        return found

    def memory(self) -> dict[str, float]:
        """{DRAM or L2: cycles for which an average warp keeps it busy}, of the whole chip."""
        moved = {"DRAM": self.work.unique, "L2": self.work.requested}
        return {name: moved[name] / self.all_warps / self.bytes_a_cycle[name] for name in moved}

    def waits(self) -> tuple[float, float, float]:
        """Cycles of a warp alone: its trips; of these the global loads; the waits of what is copied ahead."""
        chain = loads = ahead = 0.0
        for trips in self.work.trips:
            loop = self.code.loops[trips.loop]
            chain += trips.count * (loop.cycles if trips.ahead else loop.alone(self.latency))
            loads += 0 if trips.ahead else trips.count * loop.waits * self.latency
            ahead += trips.count / trips.ahead * self.latency if trips.ahead else 0
        return chain, loads, ahead

    def block_cycles(self, blocks: int) -> float:
        """Cycles of an average block where each SM has so many."""
        mine = [(cycles, -(-self.work.warps // kind)) for cycles, kind in self.units().values()]
        together = max(cycles * (warps - 1) for cycles, warps in mine)  # they begin a trip at the same time
        units = [(cycles * warps, blocks) for cycles, warps in mine]
        on_chip = blocks * min(self.chip.sms, len(self.work.blocks))
        memory = [(cycles * self.work.warps, on_chip) for cycles in self.memory().values()]
        chain, _, ahead = self.waits()
        entry = self.work.entry_waits * self.latency
        alone = entry + chain + together
        if ahead:  # copies run beside the work: the slower of the two counts
            return max(queued(alone, units), queued(entry + ahead, memory))
        return queued(alone, units + memory)

    def estimate(self) -> Estimate:
        chip, work, blocks = self.chip, self.work, self.work.blocks
        busiest = busiest_sm(blocks, chip.sms, self.resident)
        cycles = busiest / self.average * self.block_cycles(self.resident) / self.resident
        cycles = max(cycles, max(blocks) / self.average * self.block_cycles(1))
        share = len(blocks) / chip.sms  # of an SM, if all had the same
        parts = {name: d * work.warps * share / kind for name, (d, kind) in self.units().items()}
        parts |= {name: d * self.all_warps for name, d in self.memory().items()}
        chain, loads, ahead = self.waits()
        rounds = max(share / self.resident, 1.0)
        parts["bytes in flight"] = (max(loads, ahead) + work.entry_waits * self.latency) * rounds
        parts["latency of instructions"] = max(chain - loads, 0.0) * rounds
        seconds = {name: n / chip.clock for name, n in parts.items()} | {"launch": LAUNCH_SECONDS}
        bound = max(seconds, key=lambda name: seconds[name])
        total = LAUNCH_SECONDS + cycles / chip.clock
        if not math.isfinite(total):
            raise UsageError(f"the work of {work.kernel} is not finite", "check the shape")
        return Estimate(total, bound, seconds, self.resident, busiest * chip.sms / sum(blocks))
