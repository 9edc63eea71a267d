"""`minillm doctor`: what this machine has, what minillm uses of it, and how to get the missing parts.

A missing compiler or GPU is not an error: the reference backend needs neither. Only parts that minillm cannot
run without (Python, torch) are a *problem* and set the exit code. The report must also work on a broken
machine, because it is needed there. So torch is imported late, and a failed import is a line of the table.

    check.py        one line of the report
    python.py       Python and torch
    machine.py      processor, memory, GPUs
    toolchains.py   compilers, CUDA, the simulator
    parts.py        models, backend, optional packages
    quantization.py kernels of quantised weights, bytes in each scheme
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from minillm.cli.doctor import machine, parts, python, quantization, toolchains
from minillm.cli.doctor.check import Check, Status

STYLES: dict[Status, str] = {"ok": "green", "info": "cyan", "missing": "yellow", "problem": "bold red"}


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `doctor` to the command line."""
    parser = subparsers.add_parser("doctor", help="check this machine: torch, compilers, GPUs, models")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print the report to stdout; return 1 if a part that minillm needs is broken, else 0."""
    checks = collect()
    healthy = all(check.status != "problem" for check in checks)
    if args.json:
        print(json.dumps({"ok": healthy, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        print_table(checks)
    return 0 if healthy else 1


def print_table(checks: list[Check]) -> None:
    """Print the checks as a table; advice, if there is any, is below the value."""
    from rich.console import Console
    from rich.text import Text

    from minillm.tables import folding_table

    table = folding_table("check", "status", "value", title="minillm doctor", title_justify="left")
    for check in checks:
        # Text, not str: rich would read a path with [brackets] as markup.
        value = Text(check.value, overflow="fold")
        if check.advice:
            value.append(f"\n-> {check.advice}", style="dim")
        table.add_row(Text(check.name), Text(check.status, style=STYLES[check.status]), value)
    Console().print(table)


def collect() -> list[Check]:
    """All checks, in the order of the report: software, machine, toolchains, minillm's parts."""
    torch, torch_error = python.import_torch()
    return [
        python.check_python(sys.version_info[:3]),
        python.check_minillm(),
        python.check_torch(torch, torch_error),
        machine.check_cpu(),
        machine.check_threads(torch),
        machine.check_memory(),
        machine.check_gpu(torch),
        toolchains.check_compiler(),
        toolchains.check_nvcc(),
        toolchains.check_cuda_kernels(torch),
        toolchains.check_simulator(torch),
        *map(parts.check_model, parts.ZOO_MODELS),
        parts.check_backend(torch),
        quantization.check_code_kernels(),
        quantization.check_packed_bytes(torch),
        *(parts.check_package(name, purpose) for name, purpose in parts.OPTIONAL_PACKAGES.items()),
    ]
