"""Skips tests marked `gpu` on machines without a GPU that torch can use.

MINILLM_STANDIN=simt runs them on the simulator: that proves the tests, not the GPU (scripts/gpu_check.py).
"""

import os
from datetime import UTC, datetime

import pytest


def pytest_addoption(parser):
    parser.addoption("--corpus", action="store_true", help="grade every solution in tests/labs/corpus")
    parser.addoption("--corpus-seed", help="what chooses the solutions that are graded (default: the date)")


def pytest_configure(config):
    # In the environment, so that worker processes choose the same, also at midnight.
    today = datetime.now(UTC).date().isoformat()
    seed = config.option.corpus_seed or os.environ.setdefault("MINILLM_CORPUS_SEED", today)
    config.option.corpus_seed = seed
    if config.pluginmanager.hasplugin("hypothesispytest"):
        from hypothesis import settings

        # Compilers and other tests share the cores, so a time limit for an example would fail by chance.
        settings.register_profile("minillm", deadline=None)
        settings.load_profile("minillm")


def pytest_report_header(config):
    return (
        f"corpus of the labs: {'all of it' if config.option.corpus else f'seed {config.option.corpus_seed}'}"
    )


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch  # seconds: only when a test asks for a GPU

    if not torch.cuda.is_available() and os.environ.get("MINILLM_STANDIN") != "simt":
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no GPU that torch can use"))


@pytest.fixture(scope="session", autouse=True)
def kernels():
    """Compiles the native kernels, where that can be done, before any test looks at what is printed."""
    from minillm.model.loader import make_ops

    make_ops("auto", "cpu")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A tiny model folder that no test changes."""
    import tiny

    return tiny.make_folder(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def llm(folder):
    """A fresh engine over the tiny model."""
    import tiny

    return tiny.load(folder)


@pytest.fixture(params=["avx512_bf16", "avx2", "generic"])
def cpu_isa(request):
    """Each instruction set of the native kernels in turn, where kernels and processor have it."""
    from minillm.ops.registered import available_isas, load_native, use_isa
    from minillm.toolchain.compiler import BuildFailed, find_compiler

    try:
        load_native()
    except BuildFailed as reason:
        if find_compiler():
            raise  # sources that do not compile are a failure, not a skip
        pytest.skip(f"native kernels: {reason}")
    if request.param not in available_isas():
        pytest.skip(f"this processor has no {request.param}")
    before = use_isa(request.param)
    yield request.param
    use_isa(before)


@pytest.fixture
def native_ops(cpu_isa):
    """The native ops on each instruction set."""
    from minillm.ops.cpu import CpuOps

    return CpuOps()
