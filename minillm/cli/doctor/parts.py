"""minillm's own parts: the models that ship, the backend that "auto" selects, and optional packages."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from types import ModuleType

from minillm.cli.doctor.check import Check
from minillm.cli.doctor.python import package_dir
from minillm.toolchain.cache import cache_folder
from minillm.toolchain.compiler import BuildFailed, find_compiler
from minillm.toolchain.cpu import cpu_library

ZOO_MODELS = ("storyteller-6m", "storyteller-1m")
OPTIONAL_PACKAGES = {
    "matplotlib": 'plots: pip install "minillm[plots]"',
    "jupytext": 'notebooks: pip install "minillm[notebooks]"',
    "transformers": "comparison with Hugging Face: pip install transformers",
    "llama_cpp": 'comparison with llama.cpp: pip install "minillm[llama-cpp]"',
}


def check_model(name: str) -> Check:
    """A model that ships with the package."""
    folder = package_dir() / "zoo" / name
    if (folder / "config.json").is_file():
        return Check(f"model {name}", "ok", str(folder))
    return Check(f"model {name}", "missing", f"not in {folder}", "reinstall minillm, or give --model FOLDER")


def check_backend(torch: ModuleType | None) -> Check:
    """The backend that `backend="auto"` selects, and the reason. This check compiles nothing."""
    if torch is None:
        return Check("backend", "missing", "unknown", "repair torch first")
    if torch.cuda.is_available():
        advice = 'backend="native" uses the CUDA kernels of minillm'
        return Check("backend", "ok", "reference (PyTorch) on the GPU", advice)
    try:
        library, compiler = cpu_library().find(), find_compiler()
    except (BuildFailed, OSError) as error:
        return Check("backend", "missing", f"reference (PyTorch): {error}", "reinstall minillm")
    if library is not None:
        path = os.environ.get("MINILLM_CPU_PATH") or "the best code path this processor has"
        return Check("backend", "ok", f"native (CPU kernels compiled: {library}), {path}")
    if compiler is None:
        advice = "with a C++ compiler the kernels are compiled on first use"
        return Check("backend", "missing", "reference (PyTorch): there is no C++ compiler", advice)
    return Check("backend", "ok", f"native: the CPU kernels are compiled on first use, into {cache_folder()}")


def check_package(name: str, purpose: str) -> Check:
    """An optional Python package; `purpose` is its use and the command that installs it."""
    # The package is not imported: transformers alone takes seconds.
    if importlib.util.find_spec(name) is None:
        return Check(name, "info", "not installed", purpose)
    return Check(name, "ok", installed_version(name))


def installed_version(name: str) -> str:
    """The version in the package's metadata; a package that pip did not install has none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown version"
