"""Quantised weights on this machine: the kernels that unpack them, and the bytes of the default model.

    avx512_bf16   with BF16, VBMI and VNNI: codes become pairs of bf16 by table lookups (vpermi2b)
    avx2          with FMA and F16C: codes and activations become pairs of 16-bit whole numbers (vpmaddwd), or
                  floats, for float32 activations and for fp8
    generic       portable code, in whatever vectors the compiler finds

One library has all of them and takes the first that the processor can run: see csrc/cpu/isas.cpp. If one
of the three is missing, the path is avx2, whatever else of AVX-512 is there.
"""

from __future__ import annotations

import os
import platform
from types import ModuleType

from minillm.cli.doctor.check import Check, read_text
from minillm.cli.doctor.machine import cpu_flags
from minillm.config.quantization import SCHEMES
from minillm.config.sizes import format_bytes
from minillm.toolchain.cpu import ISAS

_HOW = {
    "avx512_bf16": "bf16 pairs by table lookups (VBMI)",
    "avx2": "16-bit whole numbers, activations in fixed point (floats for float32 and fp8)",
    "generic": "portable code, no kernel for this processor",
}


def needed(isa: str) -> set[str]:
    """The instructions that a code path is compiled for, as the compiler calls them."""
    return {flag.removeprefix("-m") for flag in ISAS[isa] if flag.startswith("-m")}


def isa_of(flags: set[str]) -> str:
    """The code path for a processor with these flags: the first that it has all instructions of."""
    return next(isa for isa in ISAS if needed(isa) <= flags)


def check_code_kernels(flags: set[str] | None = None) -> Check:
    """The kernels for 8-bit and 4-bit weights that this processor runs. Nothing is compiled or loaded."""
    flags = cpu_flags(read_text("/proc/cpuinfo")) if flags is None else flags
    flags = {flag.replace("_", "") for flag in flags}  # Linux writes avx512_bf16, but avx512vbmi
    isa = os.environ.get("MINILLM_CPU_PATH") or isa_of(flags)
    value = f"{isa}: {_HOW.get(isa, 'as MINILLM_CPU_PATH says')}"
    if platform.machine() in ("x86_64", "AMD64") and isa_of(flags) != "avx512_bf16":
        value += f"; avx512_bf16 lacks {' '.join(sorted(needed('avx512_bf16') - flags))}"
    return Check("quantised weights", "info" if isa == "generic" else "ok", value)


def check_packed_bytes(torch: ModuleType | None) -> Check:
    """Bytes of the model that ships, as it is and in each scheme of `--quantization`, and what fits."""
    name = "packed bytes"
    if torch is None:
        return Check(name, "missing", "unknown", "repair torch first")
    from minillm.errors import MinillmError
    from minillm.model.families import load_model_config
    from minillm.model.loader import pick_dtype
    from minillm.model.locate import DEFAULT_MODEL, find_model
    from minillm.model.memory import weight_bytes
    from minillm.model.quantization.plan import planned
    from minillm.ops.device_memory import free_memory

    try:
        config = load_model_config(find_model(None), ())
        dtype = pick_dtype("auto", config)
    except MinillmError as error:
        return Check(name, "missing", f"unknown: {error.message}", error.hint)
    sizes = {scheme: weight_bytes(planned(config, scheme), dtype) for scheme in (None, *SCHEMES)}
    plain, free = sizes.pop(None), free_memory(torch.device("cpu"))
    value = f"{DEFAULT_MODEL} {format_bytes(plain)}; "
    value += ", ".join(f"{scheme} {format_bytes(size)}" for scheme, size in sizes.items())
    most = free * config.num_parameters
    fits = {"as it is": plain, "int8": sizes["int8"], "int4": sizes["int4"]}
    counts = ", ".join(f"{most / size / 1e9:.1f} G {how}" for how, size in fits.items())
    return Check(name, "info", f"{value}\nparameters that fit the free memory at these rates: {counts}")
