"""A cache and a package index of its own for each test that asks for one."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import ggufs
import pytest
from wheels import MEMBER, wheel_of

from minillm.model.store.published import PUBLISHED, Published, WheelFile


@pytest.fixture(scope="module")
def content() -> bytes:
    return ggufs.whole(*ggufs.model("llama_tied"))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> Path:
    """An empty cache, and a package index that holds the wheel; the wheel's path."""
    wheel = tmp_path / "index" / "tiny_model-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.write_bytes(wheel_of(content))
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheel.parent)}
    for name, value in (settings | {"MINILLM_CACHE": str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    digest = hashlib.sha256(content).hexdigest()
    place = WheelFile("tiny-model", "1.0", MEMBER, len(content), digest, wheel.stat().st_size)
    monkeypatch.setitem(PUBLISHED, "tiny", Published("Tiny by nobody", "CC0-1.0", place))
    return wheel
