"""Shared by the tests of the CUDA kernels: what nvcc compiled, and the registers it gave them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import mutants
import pytest
from gpu_objects import recorded_registers

from minillm.ops.simt import registers
from minillm.ops.simt.machine import machine


@pytest.fixture(scope="session", autouse=True)
def run_folder(tmp_path_factory) -> Path:
    """What is compiled once for all processes of this run lies here."""
    own = tmp_path_factory.getbasetemp()
    mutants.run_folder = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    return mutants.run_folder


@pytest.fixture(scope="session")
def gpu_objects(run_folder) -> Path:
    """The folder in which nvcc compiles each kernel once."""
    return run_folder / "gpu-objects"


@pytest.fixture(autouse=True, scope="module")
def known_registers() -> Iterator[None]:
    """The simulator, if the module uses it, refuses a launch whose block needs too many registers."""
    if not machine.cache_info().currsize:  # a test on a GPU does not wait until it is compiled
        yield
        return
    with registers(recorded_registers()):
        yield
