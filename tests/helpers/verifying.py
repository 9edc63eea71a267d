"""Shared by the tests of verification: the backends, hard inputs, and independent versions of both rules.

The rules use no code of the package. The tree is walked by recursion over lists of children. A draw inverts
a running sum in extended precision, one request at a time.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from minillm.ops.reference import ReferenceOps
from minillm.ops.registered import available_isas, load_native, use_isa
from minillm.toolchain.compiler import BuildFailed, find_compiler

BACKENDS = [
    "reference",
    *(f"native-{isa}" for isa in ("avx512_bf16", "avx2", "generic")),
    "simt-fast",
    "simt-check",
    pytest.param("cuda", marks=pytest.mark.gpu),
]


class OnGpu:
    """The two ops of the CUDA backend, with arguments and results on the CPU."""

    def __init__(self) -> None:
        from minillm.ops.cuda import CudaOps

        self._ops = CudaOps()

    def __getattr__(self, op: str) -> Any:
        def call(*arguments: Tensor | None) -> tuple[Tensor, ...]:
            there = (a if a is None else a.cuda() for a in arguments)
            return tuple(result.cpu() for result in getattr(self._ops, op)(*there))

        return call


@contextmanager
def backend(name: str) -> Iterator[Any]:
    """The ops of the named backend; the test is skipped if they cannot be built."""
    kind, _, variant = name.partition("-")
    try:
        if kind == "reference":
            yield ReferenceOps()
        elif kind == "cuda":
            yield OnGpu()
        elif kind == "native":
            yield from _native(variant)
        else:
            yield from _simulated(variant)
    except BuildFailed as reason:
        if find_compiler():
            raise  # sources that do not compile are a failure, not a skip
        pytest.skip(f"{name}: {reason}")


def _native(isa: str) -> Iterator[Any]:
    from minillm.ops.cpu import CpuOps

    load_native()
    if isa not in available_isas():
        pytest.skip(f"this processor has no {isa}")
    before = use_isa(isa)
    try:
        yield CpuOps()
    finally:
        use_isa(before)


def _simulated(variant: str) -> Iterator[Any]:
    from minillm.ops.simt import SimtOps, flavour, schedule

    ops = SimtOps()
    with flavour(variant), schedule(reverse=variant == "check"):
        yield ops


# ---- trees ----------------------------------------------------------------------------------------


Tree = tuple[list[int], list[int], list[int]]  # sampled, drafted, parents


def random_tree(rng: random.Random, size: int, vocab_size: int, depth: int) -> Tree:
    """A random tree. The parent of a node is one of the `depth` nodes before it; depth 1 gives a chain."""
    parents = [-1] + [max(0, node - rng.randint(1, depth)) for node in range(1, size)]
    sampled, drafted = ([rng.randrange(vocab_size) for _ in range(size)] for _ in range(2))
    for node in range(1, size):
        if rng.random() < 0.7:
            drafted[node] = sampled[parents[node]]
    return sampled, drafted, parents[:size]


def walk_trees(
    sampled: list[int], drafted: list[int], parents: list[int], starts: list[int]
) -> tuple[list[int], list[int]]:
    """`verify_coupled` by recursion; returns (tokens, nodes)."""
    tokens: list[int] = []
    nodes: list[int] = []
    for begin, end in pairwise(starts):
        size = end - begin
        children: list[list[int]] = [[] for _ in range(size)]
        for node in range(1, size):
            children[parents[begin + node]].append(node)

        def path_from(node: int, begin: int = begin, children: list[list[int]] = children) -> list[int]:
            wanted = sampled[begin + node]
            fitting = [child for child in children[node] if drafted[begin + child] == wanted]
            return [node] + (path_from(min(fitting)) if fitting else [])

        path = path_from(0) if size else []
        tokens += [sampled[begin + node] for node in path] + [-1] * (size - len(path))
        nodes += path + [-1] * (size - len(path))
    return tokens, nodes


# ---- chains of drafts -----------------------------------------------------------------------------


@dataclass
class Drafts:
    """Arguments of `verify_draft`. Values that no kernel may read are NaN."""

    draft: Tensor
    draft_probs: Tensor | None
    target_probs: Tensor
    uniforms: Tensor

    @property
    def arguments(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        return self.draft, self.draft_probs, self.target_probs, self.uniforms


def probabilities(generator: torch.Generator, *shape: int) -> Tensor:
    """Peaked random rows. A third of the ids have probability 0, and some rows are one-hot."""
    if 0 in shape:
        return torch.empty(shape)
    weights = torch.rand(shape, generator=generator, dtype=torch.float64).pow(6)
    weights *= torch.rand(shape, generator=generator) > 1 / 3
    weights += torch.nn.functional.one_hot(
        torch.randint(shape[-1], shape[:-1], generator=generator), shape[-1]
    ) * torch.tensor([0.01, 0.5, 1e9])[torch.randint(3, shape[:-1], generator=generator)].unsqueeze(-1)
    found = (weights / weights.sum(-1, keepdim=True)).float()
    return torch.where(found > 1e-8, found, 0.0)


def make_drafts(count: int, k: int, vocab_size: int, with_probs: bool, seed: int = 0) -> Drafts:
    """Requests with 0 to k draft tokens, sampled from the mean of the target and a random distribution."""
    generator = torch.Generator().manual_seed(seed)
    target = probabilities(generator, count, k + 1, vocab_size)
    probs = (target[:, :k] + probabilities(generator, count, k, vocab_size)) / 2
    draft = torch.empty(count, k, dtype=torch.int64)
    if count and k:
        draft = torch.multinomial(probs.flatten(0, 1), 1, generator=generator).view(count, k)
    uniforms = torch.rand(count, k + 1, generator=generator, dtype=torch.float64).clamp(1e-12)
    lengths = torch.randint(k + 1, (count,), generator=generator) if k else [0] * count
    for i, length in enumerate(map(int, lengths)):
        if i % 3 == 0:
            length = k  # a third have the full length
        draft[i, length:] = -1
        probs[i, length:] = torch.nan
        target[i, length + 1 :] = torch.nan
        uniforms[i, length:k] = torch.nan
    return Drafts(draft, probs if with_probs else None, target, uniforms)


def expected(drafts: Drafts, request: int) -> tuple[list[int], np.ndarray]:
    """The accepted tokens, and the weights from which the next token is sampled."""
    p, uniforms = drafts.target_probs[request].double().numpy(), drafts.uniforms[request].tolist()
    accepted: list[int] = []
    for i, token in enumerate(drafts.draft[request].tolist()):
        if token == -1:
            break
        q = np.zeros(p.shape[1])
        q[token] = 1.0
        if drafts.draft_probs is not None:
            q = drafts.draft_probs[request, i].double().numpy()
        if uniforms[i] * q[token] >= p[i, token]:
            rest = np.where(p[i] > q, p[i] - q, 0.0)
            return accepted, rest if rest.any() else p[i]
        accepted.append(token)
    return accepted, p[len(accepted)]


def compare(found: tuple[Tensor, Tensor], drafts: Drafts) -> int:
    """Assert that the tokens follow the rule.

    If the uniform is within 1e-6 of the border between two tokens, both are accepted.

    Returns:
        The number of such cases.
    """
    tokens, accepted, near = *found, 0
    k = drafts.draft.shape[1]
    assert tokens.shape == drafts.uniforms.shape and tokens.dtype == torch.int64
    assert accepted.shape == tokens.shape[:1] and accepted.dtype == torch.int64
    for request, row in enumerate(tokens.tolist()):
        stand, weights = expected(drafts, request)
        assert accepted[request] == len(stand), f"request {request}: {stand} should be accepted"
        assert row[: len(stand)] == stand
        assert row[len(stand) + 1 :] == [-1] * (k - len(stand))
        token, uniform = row[len(stand)], float(drafts.uniforms[request, k])
        assert weights[token] > 0, f"request {request}: {token} has weight 0"
        running = np.cumsum(weights.astype(np.longdouble))
        running /= running[-1]
        before = running[token - 1] if token else 0.0
        if not before <= uniform < running[token]:
            assert before - 1e-6 < uniform < running[token] + 1e-6, f"request {request}: {token} was sampled"
            near += 1
    return near
