"""The machine: processor, cores, memory, GPUs."""

from __future__ import annotations

import os
import platform
import re
from types import ModuleType

from minillm.cli.doctor.check import Check, read_text

CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve", "i8mm")


def check_cpu() -> Check:
    """The processor, and those of its vector instructions that the kernels use."""
    cpuinfo = read_text("/proc/cpuinfo")
    model = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    features = cpu_features(cpuinfo)
    value = f"{platform.machine()}, {model[1].strip() if model else platform.processor() or 'unknown model'}"
    return Check("cpu", "info", f"{value}, {' '.join(features) or 'no vector features reported'}")


def cpu_features(cpuinfo: str) -> list[str]:
    """The CPU_FEATURES that Linux's /proc/cpuinfo lists."""
    present = cpu_flags(cpuinfo)
    return [feature for feature in CPU_FEATURES if feature in present]


def cpu_flags(cpuinfo: str) -> set[str]:
    """All flags of the first processor (the line "flags" on x86, "Features" on Arm)."""
    line = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return set(line[1].split()) if line else set()


def check_threads(torch: ModuleType | None) -> Check:
    """The cores that this process may use (a container may have fewer), and torch's threads."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = f", torch uses {torch.get_num_threads()} threads" if torch else ""
    return Check("cores", "info", f"{usable} usable of {os.cpu_count()}{threads}")


def check_memory() -> Check:
    """Total and available memory, and the container's limit if there is one."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    value = f"{total / 2**30:.1f} GiB"
    available = re.search(r"^MemAvailable:\s*(\d+) kB", read_text("/proc/meminfo"), re.MULTILINE)
    if available:
        value += f", {int(available[1]) / 2**20:.1f} GiB available"
    limit = read_text("/sys/fs/cgroup/memory.max").strip()
    if limit.isdigit() and int(limit) < total:
        value += f", limited to {int(limit) / 2**30:.1f} GiB by the container"
    return Check("memory", "info", value)


def check_gpu(torch: ModuleType | None) -> Check:
    """The GPUs that this torch can use."""
    if torch is None:
        return Check("gpu", "missing", "unknown", "repair torch first")
    if not torch.cuda.is_available():
        advice = "" if torch.version.cuda is None else "this torch is a CUDA build: check with nvidia-smi"
        return Check("gpu", "info", "none that torch can use; everything runs on the CPU", advice)
    return Check("gpu", "ok", "; ".join(describe_gpu(torch, i) for i in range(torch.cuda.device_count())))


def describe_gpu(torch: ModuleType, index: int) -> str:
    """Name, compute capability and memory of one GPU."""
    gpu = torch.cuda.get_device_properties(index)
    return f"{gpu.name} (sm_{gpu.major}{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB)"
