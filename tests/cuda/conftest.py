"""Shared by the tests of the CUDA kernels: what nvcc compiled, and the registers it gave them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

RECORD = Path(__file__).parent / "cuda_registers.json"


@pytest.fixture(scope="session")
def gpu_objects(tmp_path_factory) -> Path:
    """The folder in which each kernel is compiled once, for all processes of this run."""
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "gpu-objects"
