"""Task 11.8, four worlds: tenant b sends the same requests while others do other things.

    W0   nobody else                          W2   a floods: more prompts than fit, before every step
    W1   others have sent b's prompts before  W3   a floods, aborts at random, and its listeners raise

In W1 nobody has a guarantee, all share one cache, and b has the name "". In the others b stays inside its
guarantee. So all that it sees must be the same in every world: answers with
log-probabilities bit by bit, seeds, cached tokens, steps, events, counts and errors. What differs is told in
words, with the task that most likely causes it.

Each sequence runs through the model alone. So a row's bits cannot depend on what else is in its batch, with
the reference backend either: what differs here, the file has caused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from torch import Tensor

from minillm.config import EngineConfig, SamplingParams
from minillm.config.tenants import Limits, TenantLimits
from minillm.engine.engine import Engine
from minillm.errors import MinillmError
from minillm.labs.grader.lab import Words
from minillm.labs.grader.serving import BLOCK_SIZE
from minillm.labs.grader.tiny_model import fill, tiny_llm
from minillm.observe.events import Event
from minillm.worker.decode import decode
from minillm.worker.prefill import prefill
from minillm.worker.runner import ModelRunner
from minillm.worker.step import DecodeRow, PrefillChunk

STEPS = 26
LIMITS: Limits = {
    "b": TenantLimits(guaranteed_blocks=16, guaranteed_tokens_per_step=6, max_queued_tokens=40),
    None: TenantLimits(max_blocks=20),
}
OPEN: Limits = {None: TenantLimits(max_blocks=40)}  # nobody has a guarantee
SYSTEM = [(11 * i) % 90 for i in range(16)]
# (step, prompt, output tokens, samples, seed): what b sends. The last one is refused: too much waits.
REQUESTS: tuple[tuple[int, list[int], int, int, int | None], ...] = (
    (0, [*SYSTEM, 7, 8, 9], 4, 1, None),
    (1, [*SYSTEM, 9, 9], 3, 2, 5),
    (8, [7] * 21, 3, 1, None),
    (12, [*SYSTEM, 7, 8, 9], 3, 1, 5),
    (17, [7] * 21, 2, 1, None),
    (18, [8] * 30, 1, 1, None),
    (18, [8] * 30, 1, 1, None),
)
Others = Callable[[Engine, int, Random], None]


@dataclass
class View:
    """All that b sees, by what it is."""

    seeds: list[Any] = field(default_factory=list)
    errors: list[Any] = field(default_factory=list)
    hits: list[Any] = field(default_factory=list)
    steps: list[Any] = field(default_factory=list)
    counts: list[Any] = field(default_factory=list)
    tokens: list[Any] = field(default_factory=list)
    logprobs: list[list[float]] = field(default_factory=list)


def idle(engine: Engine, step: int, random: Random) -> None:
    """W0."""


def flood(engine: Engine, step: int, random: Random) -> None:
    """W2: also b's own prompts, also from a third tenant and from none."""
    prompts = [[random.randrange(90)] * random.randrange(9, 60), [*SYSTEM, 7, 8, 9], [7] * 21]
    for prompt, tenant in zip(prompts, ("a", "c", None), strict=True):
        with suppress(MinillmError):  # its queue is full
            engine.add_request(prompt, _params(random.randrange(1, 16)), tenant)


def storm(engine: Engine, step: int, random: Random) -> None:
    """W3."""
    if step == 0:
        engine.events.listeners.append(_crash)
    flood(engine, step, random)
    live = [request.request_id for request in engine._registry.requests() if request.tenant == "a"]
    for request_id in random.sample(live, min(len(live), 1)):
        engine.abort_request(request_id, "a")


def _crash(event: Event) -> None:
    raise RuntimeError("a listener of a")


def _params(tokens: int, n: int = 1, seed: int | None = None) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, n=n, seed=seed, temperature=0.8, logprobs=2, ignore_eos=True)


def prefill_alone(runner: ModelRunner, chunks: Sequence[PrefillChunk]) -> Tensor:
    """The logits of each chunk's last token, each chunk in a pass of its own."""
    return torch.cat([prefill(runner, [chunk]) for chunk in chunks])


def decode_alone(runner: ModelRunner, rows: Sequence[DecodeRow]) -> Tensor:
    """The logits of each row, each in a pass of its own."""
    return torch.cat([decode(runner, [row]) for row in rows])


def engine_of(parts: Any, limits: Limits = LIMITS, num_blocks: int = 44) -> Engine:
    """An engine with the file's parts."""
    replaced = {
        "scope": parts.block_scope,
        "shares": parts.Shares,
        "quota": parts.Quota,
        "prefill_loop": prefill_alone,
        "decode_loop": decode_alone,
    }
    sizes: dict[str, Any] = {"max_num_batched_tokens": 16, "max_num_seqs": 8, "max_queued_requests": 12}
    model = tiny_llm().engine.model
    memory = num_blocks * BLOCK_SIZE * model.config.kv_bytes_per_token(torch.float32.itemsize)
    config = EngineConfig(
        kv_memory=memory, block_size=BLOCK_SIZE, prefill_chunk=8, tenant_limits=limits, **sizes
    )
    engine = Engine(model, config, replaced)
    fill(engine)
    return engine


def warm(engine: Engine) -> None:
    """W1, before b begins."""
    for _, prompt, *_ in REQUESTS[:5]:
        for tenant in ("a", None):
            engine.add_request(prompt, _params(2), tenant)
        for _ in range(STEPS):
            engine.step()


@contextmanager
def no_log() -> Iterator[None]:
    """Inside the `with` nothing is logged: W3's listeners would tell the student of errors that are meant."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def watch(engine: Engine, others: Others = idle, tenant: str | None = "b", seed: int = 11) -> View:
    """Send b's requests while `others` acts before each step; return what b, here `tenant`, sees."""
    view, names, random = View(), dict[str, int](), Random(seed)
    first = engine.events.step
    with engine.events.record() as trace:
        for step in range(STEPS):
            others(engine, step, random)
            for number, (when, prompt, tokens, n, own_seed) in enumerate(REQUESTS):
                if when == step:
                    try:
                        names[engine.add_request(prompt, _params(tokens, n, own_seed), tenant)] = number
                    except MinillmError as error:
                        view.errors.append((number, f"{type(error).__name__}: {error}"))
            for output in engine.step():
                if output.request_id in names:
                    _add(view, step, names[output.request_id], output)
            view.counts.append((step, sorted(engine.stats(tenant).items())))
    for event in trace:
        if event.request_id in names:
            view.steps.append((names[event.request_id], event.step - first, event.kind))
    return view


def _add(view: View, step: int, number: int, output: Any) -> None:
    view.steps.append((number, step, "output"))
    view.seeds.append((number, [completion.seed for completion in output.outputs]))
    if output.finished:
        view.hits.append((number, output.metrics.cached_tokens))
        view.tokens.append((number, [completion.token_ids for completion in output.outputs]))
        chosen = [each for completion in output.outputs for each in completion.logprobs or []]
        view.logprobs.append([value for each in chosen for value in each.values()])


# --- what b notices -----------------------------------------------------------------------------------


def noticed(quiet: View, busy: View) -> Words:
    """What differs from the world in which b is alone, in words."""
    for found in (_seeds, _errors, _hits, _steps, _counts, _bits):
        if text := found(quiet, busy):
            return Words(text)
    return Words("b notices nothing")


def _first(left: list[Any], right: list[Any]) -> tuple[Any, Any] | None:
    """The first pair that differs; a missing one is None."""
    longest = max(len(left), len(right))
    padded = ([*side, *[None] * (longest - len(side))] for side in (left, right))
    return next((pair for pair in zip(*padded, strict=True) if pair[0] != pair[1]), None)


def _seeds(quiet: View, busy: View) -> str:
    known = dict(map(_hashable, quiet.seeds))
    differs = [number for number, seeds in map(_hashable, busy.seeds) if known.get(number, seeds) != seeds]
    return f"request {differs[0]} of b has another seed: the number counts all tenants" if differs else ""


def _hashable(pair: tuple[int, list[int]]) -> tuple[int, tuple[int, ...]]:
    return pair[0], tuple(pair[1])


def _errors(quiet: View, busy: View) -> str:
    if pair := _first(quiet.errors, busy.errors):
        return f"b gets other errors, alone {pair[0]}, here {pair[1]}: others fill its queue (11.7)"
    return ""


def _hits(quiet: View, busy: View) -> str:
    there = dict(busy.hits)
    for number, cached in quiet.hits:
        here = there.get(number, cached)
        if here > cached:
            return (
                f"request {number} of b finds {here} cached tokens, alone {cached}: blocks of another tenant "
                "are found, look at the scope (11.1)"
            )
        if here < cached:
            return (
                f"request {number} of b finds {here} cached tokens, alone {cached}: its cached blocks were "
                "evicted for a's sake, look at who keeps and who loses blocks (11.4, 11.5)"
            )
    return ""


def _steps(quiet: View, busy: View) -> str:
    pair = _first(sorted(quiet.steps), sorted(busy.steps))
    if pair is None:
        return ""
    number, step, kind = pair[0] or pair[1]
    return (
        f"request {number} of b: alone {kind!r} in step {step}, here it is not so: b waits for others, or "
        "its blocks are lent (11.3, 11.6)"
    )


def _counts(quiet: View, busy: View) -> str:
    if pair := _first(quiet.counts, busy.counts):
        where = f"stats('b') differ from step {pair[0][0]} on"
        return f"{where}: its blocks go for others, or count for them (11.1, 11.4, 11.5)"
    return ""


def _bits(quiet: View, busy: View) -> str:
    same = quiet.tokens == busy.tokens and len(quiet.logprobs) == len(busy.logprobs)
    pairs = zip(quiet.logprobs, busy.logprobs, strict=False)
    if same and all(torch.equal(torch.tensor(left), torch.tensor(right)) for left, right in pairs):
        return ""
    return "b gets other tokens or log-probabilities: a block has content of somebody else (11.1, 11.3)"
