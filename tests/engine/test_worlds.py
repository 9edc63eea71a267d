"""Contract C2 under load: an answer has the same bits when it runs alone and under all engine conditions.

A *world* is one combination of conditions: the number of running requests, the chunk size, a cold or a warm
prefix cache, a large pool or one so small that it preempts, and an order of arrival. 64 prompts of different
lengths, half greedy and half sampled, run in each world. The log-probabilities of the whole vocabulary are
compared by `torch.equal` with a run alone. The normal test uses a covering set of worlds, in which every pair
of settings of two conditions occurs; the full product is marked slow. The control is the reference backend in
float32, which differs.
"""

from __future__ import annotations

import itertools
import random
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny
import torch
from company import DTYPES, WIDE
from torch import Tensor

from minillm import LLM, SamplingParams
from minillm.engine.outputs import RequestOutput

SHARED = (0, 1, 15, 16, 17, 31, 32, 33, 255, 257)
NEW_TOKENS = 10
TIGHT_BLOCKS = 20  # enough for the longest prompt and its answer


class World(NamedTuple):
    """One setting of every condition. Chunk size 0 means the whole prompt."""

    company: int
    chunk: int
    warm: bool
    tight: bool
    order: str


DIMENSIONS = ((1, 2, 8, 33), (16, 64, 0), (False, True), (False, True), ("given", "reversed", "shuffled"))
PRODUCT = [World(*settings) for settings in itertools.product(*DIMENSIONS)]


def pairs(world: World) -> set[tuple[int, object, int, object]]:
    return {(a, world[a], b, world[b]) for a, b in itertools.combinations(range(len(world)), 2)}


def covering(count: int) -> list[World]:
    """At least `count` worlds in which every pair of settings occurs."""
    rest, chosen = PRODUCT[:], list[World]()
    missing = set[tuple[int, object, int, object]]().union(*map(pairs, PRODUCT))
    random.Random(0).shuffle(rest)
    while missing or len(chosen) < count:
        best = max(rest, key=lambda world: len(pairs(world) & missing))
        rest.remove(best)
        chosen.append(best)
        missing -= pairs(best)
    return chosen


def ragged_prompts() -> list[list[int]]:
    """64 prompts of 1 to 300 tokens. The first ten begin with 0 to 257 tokens that a warm cache holds."""
    rng = random.Random(4)
    common = [rng.randrange(250) for _ in range(300)]
    shared = [
        [*common[:length], *(rng.randrange(250) for _ in range(1 + i))] for i, length in enumerate(SHARED)
    ]
    lengths = [2, 15, 16, 17, 3, 300, 1] + [rng.randrange(1, 120) for _ in range(32)]
    # The small pool holds two of these until one of them grows.
    lengths += [length for _ in range(5) for length in (300, 1, 2)]
    return shared + [[rng.randrange(250) for _ in range(length)] for length in lengths]


PROMPTS = ragged_prompts()
PARAMS = [
    SamplingParams(
        max_tokens=NEW_TOKENS,
        temperature=0.7 * (i % 2),
        seed=i,
        ignore_eos=True,
        logprobs=tiny.VOCAB_SIZE,
    )
    for i in range(len(PROMPTS))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny.config(**WIDE, max_position_embeddings=512)
    path = tmp_path_factory.mktemp("worlds") / "model"
    return tiny.make_folder(path, config, tensors=tiny.weights(config, scale=0.1))


def load(folder: Path, dtype: str, world: World, backend: str = "native") -> LLM:
    block_bytes = 16 * 2 * 2 * 2 * 32 * {"float32": 4, "bfloat16": 2}[dtype]  # layers, k and v, heads, dim
    llm = tiny.load(
        folder,
        backend=backend,
        dtype=dtype,
        kv_memory=block_bytes * (TIGHT_BLOCKS if world.tight else 1200),
        prefill_chunk=world.chunk or 512,
        max_num_seqs=world.company,
    )
    for tensor in (*llm.engine.worker.runner.cache.k, *llm.engine.worker.runner.cache.v):
        tensor.fill_(float("nan"))
    if world.tight:
        llm.engine.scheduler.headroom_tokens = 0
    return llm


def bits(output: RequestOutput) -> tuple[list[int], Tensor]:
    """The tokens and their log-probabilities [tokens, vocab_size], sorted by token id."""
    assert output.logprobs is not None
    return output.token_ids, torch.tensor([[p for _, p in sorted(row.items())] for row in output.logprobs])


def run(llm: LLM, world: World) -> list[RequestOutput]:
    """Run all prompts in the order of the world; return the answers in the order of the prompts."""
    order = list(range(len(PROMPTS)))
    if world.order == "shuffled":
        random.Random(9).shuffle(order)
    elif world.order == "reversed":
        order.reverse()
    if world.warm:
        longest = max(SHARED)
        llm.generate([*PROMPTS[SHARED.index(longest)][:longest], 251], SamplingParams(max_tokens=1))
    outputs = llm.generate([PROMPTS[i] for i in order], [PARAMS[i] for i in order])
    by_prompt = dict(zip(order, outputs, strict=True))
    return [by_prompt[i] for i in range(len(PROMPTS))]


@cache
def alone(folder: Path, dtype: str, backend: str = "native") -> list[tuple[list[int], Tensor]]:
    """The run to compare with: one request at a time, unchunked, each with an empty cache."""
    llm = load(folder, dtype, World(1, 0, False, False, "given"), backend)
    found = []
    for prompt, params in zip(PROMPTS, PARAMS, strict=True):
        found.append(bits(llm.generate(prompt, params)[0]))
        cached = llm.engine.memory.cache
        assert cached is not None
        cached.evict(cached.num_unused)
    return found


def differing(a: list[tuple[list[int], Tensor]], b: list[tuple[list[int], Tensor]]) -> list[int]:
    return [
        i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x[0] != y[0] or not torch.equal(x[1], y[1])
    ]


def check_world(folder: Path, dtype: str, world: World) -> None:
    llm = load(folder, dtype, world)
    with llm.engine.events.record() as events:
        outputs = run(llm, world)
    assert differing(alone(folder, dtype), [bits(output) for output in outputs]) == []
    preempted = sum(event.kind == "preempt" for event in events)
    assert (preempted > 0) == (world.tight and world.company > 1), "only small pools preempt"
    if world.warm and not world.tight:
        cached = [output.metrics.cached_tokens for output in outputs[: len(SHARED)]]
        assert all(tokens >= shared // 16 * 16 for tokens, shared in zip(cached, SHARED, strict=True))
    assert tiny.all_free(llm)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("world", covering(24), ids=str)
def test_the_same_bits_in_every_world(folder: Path, world: World, dtype: str) -> None:
    check_world(folder, dtype, world)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_in_the_full_product(folder: Path, dtype: str) -> None:
    for world in PRODUCT:
        check_world(folder, dtype, world)


def test_the_covering_set_covers() -> None:
    wanted = set[tuple[int, object, int, object]]().union(*map(pairs, PRODUCT))
    assert set[tuple[int, object, int, object]]().union(*map(pairs, covering(24))) == wanted
    assert len(covering(24)) >= 24


def test_control_the_reference_backend_differs(folder: Path) -> None:
    world = World(8, 16, True, False, "given")
    outputs = run(load(folder, "float32", world, "reference"), world)
    assert differing(alone(folder, "float32", "reference"), [bits(output) for output in outputs])
