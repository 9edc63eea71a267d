"""The record of minillm/bench/sass.json, made from object files: which loops of which kernels it has."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

from sass_loops import Loop, described, find_loops, schedules

from minillm.bench import sass
from minillm.bench.chips import CHIPS
from minillm.toolchain.cuda_toolkit import Disassembler

TYPES = {"f": "float32", "13__nv_bfloat16": "bfloat16", "6__half": "float16"}
USED = re.compile(
    r"Compiling entry function '(\S+)' for 'sm_(\d+)'.*?Used (\d+) registers([^\n]*)", re.DOTALL
)  # of ptxas -v
STATIC = re.compile(r"(\d+) bytes smem")
Wanted = dict[str, Callable[[Loop], bool]]

has_mma: Wanted = {"tile": lambda loop: loop.count("HMMA") > 0}
has_stage: Wanted = {
    "stage": lambda loop: loop.count("BAR") > 0,
    "column": lambda loop: loop.count("FFMA") >= 8 and loop.count("LDS") > 0,
}


@dataclass(frozen=True)
class Kernel:
    """A kernel of a file: the name of its record, its symbol, and the loops of the record by what is in them.

    The symbol's groups are the number type, if there is one, and what else the name has. Of several loops
    that have what is wanted the first counts, and no loop counts twice: `wanted` is in the order of the text.
    """

    file: str
    name: str
    symbol: str
    wanted: Wanted
    keep_all: bool = False
    optional: tuple[str, ...] = ()  # loops that ptxas may unroll into the one around them
    unread: tuple[str, ...] = ()  # architectures for which ptxas makes other loops: they have no record


TYPE = r"I(f|13__nv_bfloat16|6__half)"
ATTENTION = TYPE + r"Li(64|128)"
KERNELS = [
    Kernel(
        "attention_v1", "v1 scores", rf"attention_v1_scores{TYPE}E", {"column": lambda x: x.count("FFMA") > 0}
    ),
    Kernel(
        "attention_v1", "v1 output", rf"attention_v1_output{TYPE}E", {"key": lambda x: x.count("FFMA") >= 4}
    ),
    Kernel(
        "attention_v1",
        "v1 softmax",
        r"attention_v1_softmax()E",
        {"largest": lambda x: x.count("FMNMX") >= 8, "weights": lambda x: x.count("MUFU") >= 2},
    ),
    Kernel(
        "attention_v2",
        "v2",
        rf"attention_v2_kernel{ATTENTION}ELb0E",
        {
            "tile": lambda x: x.count("BAR") > 0,
            "column": lambda x: x.count("FFMA") >= 8 and x.count("LDS") > 0,
            "key": lambda x: x.count("FFMA") >= 8 and x.count("LDS") > 0,
        },
    ),
    Kernel("attention_v3", "v3", rf"attention_v3_kernel{ATTENTION}E", has_mma),
    Kernel(
        "decode_d1",
        "d1",
        rf"decode_d1_kernel{ATTENTION}ELb0E",
        {
            "chunk": lambda x: x.count("BAR") > 1,
            "column": lambda x: x.count("FFMA") >= 4 and 0 < x.count("LDG") <= 8,
            "tile": lambda x: x.count("FFMA") >= 8 and x.count("LDG") >= 16,
        },
        optional=("column",),
        unread=("75",),
    ),
    Kernel("decode_d2", "d2", rf"decode_d2_kernel{ATTENTION}E", has_mma),
    Kernel("decode_d3", "d3", rf"decode_d3_kernel{ATTENTION}E", has_mma),
    Kernel(
        "decode_d3",
        "d3_combine",
        rf"decode_d3_combine_kernel{ATTENTION}E",
        {"splits": lambda x: x.count("LDG") > 8},
    ),
    Kernel("linear_l1", "l1", rf"linear_l1_kernel{TYPE}E", has_stage),
    Kernel("linear_l2", "l2", rf"linear_l2_kernel{TYPE}E", has_stage),
    Kernel(
        "linear_l3", "l3", rf"linear_l3_kernel{TYPE}E", {"stage": lambda x: x.count("BAR") > 0}, keep_all=True
    ),
    Kernel("linear_l4", "l4", rf"linear_l4_kernel{TYPE}E", {"stage": lambda x: x.count("HMMA") > 0}),
    Kernel(
        "linear_l5",
        "l5",
        rf"linear_l5_kernel{TYPE}NS1_5ShapeILi(\d+)ELi(\d+)ELi(\d+)ELi(\d+)E",
        {"stage": lambda x: x.count("HMMA") > 0},
    ),
]
TENSOR = {"attention_v3", "decode_d2", "decode_d3", "linear_l4", "linear_l5"}
FILES = sorted({kernel.file for kernel in KERNELS})


def record_of(tool: Disassembler, compiled: Path, said: str, arch: str) -> dict[str, dict[str, object]]:
    """{name: registers, static shared memory, loops} of the kernels of an object file, for sm_`arch`.

    Raises:
        LookupError: a kernel has not the loops that its record needs.
    """
    (chip,) = (chip for chip in CHIPS.values() if chip.arch == arch)
    used = {(symbol, of): (int(n), STATIC.search(rest)) for symbol, of, n, rest in USED.findall(said)}
    found: dict[str, dict[str, object]] = {}
    for symbol, code in schedules(tool, compiled, arch).items():
        for kernel in KERNELS:
            if kernel.file != compiled.stem or not (match := re.search(kernel.symbol, symbol)):
                continue
            if arch in kernel.unread:
                continue
            tensor = kernel.file in TENSOR and "combine" not in kernel.name
            if tensor and not any(step.name == "HMMA" for step in code):
                continue  # compiled for a chip that has no such mma
            registers, static = used[symbol, arch]
            loops = _pick(find_loops(code, kernel.keep_all), kernel)
            found[_name(kernel, match)] = {
                "registers": registers,
                "shared": int(static[1]) if static else 0,
                "loops": {
                    name: list(astuple(sass.Loop(**described(loop, chip)))) for name, loop in loops.items()
                },
            }
    return found


def _pick(loops: list[Loop], kernel: Kernel) -> dict[str, Loop]:
    picked: dict[str, Loop] = {}
    for name, wanted in kernel.wanted.items():
        left = [loop for loop in loops if wanted(loop) and loop not in picked.values()]
        if left:
            picked[name] = left[0]
        elif name not in kernel.optional:
            raise LookupError(f"{kernel.name} has no loop {name!r}")
    return picked


def _name(kernel: Kernel, match: re.Match[str]) -> str:
    kind, *sizes = match.groups()
    if kernel.name == "l5":
        warps_out, warps_tokens, out, tokens = map(int, sizes)
        sizes = [f"{16 * out * warps_out}x{8 * tokens * warps_tokens}"]
    return " ".join([kernel.name, *([TYPES[kind]] if kind else []), *sizes])
