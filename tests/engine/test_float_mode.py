"""Contract C2: bits do not depend on the floating-point mode of a thread; any library may change it."""

from __future__ import annotations

import ctypes
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import native  # noqa: F401 (the module is skipped without the kernels)
import pytest
import tiny
import torch
from torch import Tensor

from minillm import LLM, SamplingParams

UPWARD = {"x86_64": 0x800, "aarch64": 0x400000}.get(platform.machine())
PROMPT = [5, 17, 200, 44, 8, 9] * 4
SAMPLED = SamplingParams(max_tokens=12, temperature=0.8, seed=3, ignore_eos=True, logprobs=3)


@contextmanager
def flushing() -> Iterator[None]:
    """Numbers below the smallest normal one count as zero, as in a program with -ffast-math."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no such mode")
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def rounding_up() -> Iterator[None]:
    libm = ctypes.CDLL(None)
    if UPWARD is None or libm.fesetround(UPWARD):
        pytest.skip("the mode has another name here")
    try:
        yield
    finally:
        libm.fesetround(0)


MODES = {"flushing": flushing, "rounding up": rounding_up}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose embeddings are below the smallest normal float32 number."""
    tensors = tiny.weights(tiny.config())
    tensors["model.embed_tokens.weight"] *= 1e-38
    return tiny.make_folder(tmp_path_factory.mktemp("small") / "model", tensors=tensors)


def answers(llm: LLM) -> tuple[Tensor, Any]:
    output = llm.generate([PROMPT], SAMPLED)[0].outputs[0]
    return llm.logits(PROMPT), (output.token_ids, output.logprobs)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_bits_in_every_mode(small: Path, mode: Any, threads: int) -> None:
    llm, before = tiny.load(small, backend="native", guarantee="G2"), torch.get_num_threads()
    logits, drawn = answers(llm)
    torch.set_num_threads(threads)
    try:
        with mode():
            there = answers(llm)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(there[0], logits) and there[1] == drawn


def test_a_thread_in_another_mode(small: Path) -> None:
    llm, found = tiny.load(small, backend="native"), list[tuple[Tensor, Any]]()
    logits, drawn = answers(llm)

    def elsewhere() -> None:
        with flushing():
            found.append(answers(llm))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert torch.equal(found[0][0], logits) and found[0][1] == drawn


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_control_the_reference_follows_the_mode(small: Path, mode: Any) -> None:
    llm = tiny.load(small, backend="reference")
    logits = llm.logits(PROMPT)
    with mode():
        assert not torch.equal(llm.logits(PROMPT), logits)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_the_caller_s_mode_is_left_as_it_was(small: Path, mode: Any) -> None:
    llm, x = tiny.load(small, backend="native"), torch.arange(1, 50) * 1e-39

    def computed() -> list[Tensor]:
        return [x * 0.5, torch.arange(1.0, 50.0) / 7]

    with mode():
        before = computed()
        llm.logits(PROMPT)
        assert all(map(torch.equal, before, computed()))
    assert not all(map(torch.equal, before, computed()))
