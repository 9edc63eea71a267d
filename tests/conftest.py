"""Skips tests marked `gpu` on machines without a GPU that torch can use."""

import pytest


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch  # seconds: only when a test asks for a GPU

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no GPU that torch can use"))


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
