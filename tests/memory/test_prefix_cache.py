"""The prefix cache (contract C5): hits are correct with any hash function, and no block is lost."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import tiny
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from minillm import LLM, MinillmError, SamplingParams
from minillm.memory.block_pool import BlockPool
from minillm.memory.prefix_cache import CachedBlock, PrefixCache, Scope, encode

SIZE = 4
Chain = list[tuple[int, ...]]


def constant(data: bytes) -> bytes:
    """The worst possible hash function."""
    return b"same"


def digests(cache: PrefixCache, scope: Scope, chain: Chain) -> list[bytes]:
    found: list[bytes] = []
    for ids in chain:
        found.append(cache.digest(scope, found[-1] if found else None, ids))
    return found


def publish(cache: PrefixCache, pool: BlockPool, scope: Scope, chain: Chain) -> list[CachedBlock]:
    """Publish `chain` as a sequence that computes it and ends."""
    ids, parent, blocks = pool.allocate(len(chain)), None, []
    for block_id, tokens, digest in zip(ids, chain, digests(cache, scope, chain), strict=True):
        parent = cache.publish(scope, parent, tokens, digest, block_id)
        blocks.append(parent)
    pool.free(ids)
    cache.released(ids)
    return blocks


def match(cache: PrefixCache, scope: Scope, chain: Chain) -> list[int]:
    return [b.block_id for b in cache.match(scope, zip(digests(cache, scope, chain), chain, strict=True))]


# ---- the key --------------------------------------------------------------------------------------

SCOPE = Scope("envelope", "tenant", "conditioning")
CHAIN: Chain = [(1, 2, 3, 4), (5, 6, 7, 8)]
hashes = pytest.mark.parametrize("hash_function", [None, constant], ids=["sha256", "constant"])


def make(hash_function: Any = None) -> tuple[PrefixCache, BlockPool]:
    pool = BlockPool(32, SIZE)
    return (PrefixCache(pool, hash_function) if hash_function else PrefixCache(pool)), pool


@hashes
def test_equal_in_every_dimension_is_a_hit(hash_function: Any) -> None:
    cache, pool = make(hash_function)
    blocks = publish(cache, pool, SCOPE, CHAIN)
    assert match(cache, SCOPE, CHAIN) == [b.block_id for b in blocks]
    assert match(cache, SCOPE, CHAIN[:1]) == [blocks[0].block_id]


@hashes
@pytest.mark.parametrize(
    ("scope", "chain"),
    [
        (SCOPE._replace(envelope="other"), CHAIN),
        (SCOPE._replace(tenant="other"), CHAIN),
        (SCOPE._replace(tenant=None), CHAIN),
        (SCOPE._replace(conditioning="other"), CHAIN),
        # The same text, but divided between the fields in another way or in another order.
        (Scope("tenant", "envelope", "conditioning"), CHAIN),
        (Scope("envelope", "conditioning", "tenant"), CHAIN),
        (Scope("envelopetenant", "", "conditioning"), CHAIN),
        (Scope("envelope", "tenantconditioning", ""), CHAIN),
        (SCOPE, [(1, 2, 3, 5)]),
        (SCOPE, [(2, 1, 3, 4)]),
        (SCOPE, [(1, 2, 3)]),
        (SCOPE, [(1, 2, 3, 4, 5)]),
        (SCOPE, [CHAIN[1]]),  # the same tokens, without the block before them
    ],
)
def test_a_change_in_any_dimension_is_no_hit(hash_function: Any, scope: Scope, chain: Chain) -> None:
    cache, pool = make(hash_function)
    publish(cache, pool, SCOPE, CHAIN)
    assert match(cache, scope, chain) == []
    if hash_function:
        assert cache.false_matches > 0


@hashes
def test_same_block_behind_another_parent_is_another_block(hash_function: Any) -> None:
    cache, pool = make(hash_function)
    first = publish(cache, pool, SCOPE, [(1, 1, 1, 1), (9, 9, 9, 9)])
    second = publish(cache, pool, SCOPE, [(2, 2, 2, 2), (9, 9, 9, 9)])
    assert first[1].block_id != second[1].block_id
    assert match(cache, SCOPE, [(2, 2, 2, 2), (9, 9, 9, 9)]) == [b.block_id for b in second]


def test_encodings_differ_wherever_fields_do() -> None:
    """Type and length are part of the encoding, so different fields never have equal bytes."""
    values: list[Any] = ["", "1", "12", b"", b"1", b"12", 1, 12, None, [], [1], [12], [1, 2], [2, 1]]
    values += ["1s12", "sn", b"1s12", b"12n"]  # texts that hold the marks between two fields
    fields = [(a, b) for a, b in itertools.product(values, values)] + [(a,) for a in values] + [()]
    assert len({encode(*f) for f in fields}) == len(fields)


# ---- publishing and evicting ----------------------------------------------------------------------


def test_the_same_content_is_kept_once() -> None:
    cache, pool = make()
    first, second = publish(cache, pool, SCOPE, CHAIN), publish(cache, pool, SCOPE, CHAIN)
    assert first == second and cache.num_blocks == cache.num_unused == pool.num_used == 2


def test_least_recently_used_goes_first_and_children_before_parents() -> None:
    cache, pool = make()
    a = publish(cache, pool, SCOPE, [(1, 1, 1, 1), (2, 2, 2, 2)])
    b = publish(cache, pool, SCOPE, [(3, 3, 3, 3)])
    ids = cache.acquire(a)  # a is used again and freed: now b is the least recently used
    assert cache.num_unused == 1
    pool.free(ids)
    cache.released(ids)
    gone = []
    while cache.num_unused:
        before = {*pool_used(pool)}
        cache.evict(1)
        gone += before - {*pool_used(pool)}
    assert gone == [b[0].block_id, a[1].block_id, a[0].block_id]
    assert pool.num_free == pool.num_blocks and cache.evict(5) == 0


def test_an_evicted_block_leaves_nothing_behind() -> None:
    """The index is as large as the cache, however many contents have come and gone."""
    cache, pool = make()
    for i in range(200):
        publish(cache, pool, SCOPE, [(i, 0, 0, 0), (i, 1, 0, 0)])
        cache.evict(cache.num_unused - 3)
    assert len(cache._index) == len(cache._by_block) == cache.num_blocks == cache.num_unused == 3
    cache.evict(3)
    assert cache._index == {} == cache._by_block and pool.num_free == pool.num_blocks


def pool_used(pool: BlockPool) -> list[int]:
    return [i for i in range(pool.num_blocks) if pool.ref_count(i)]


class CacheMachine(RuleBasedStateMachine):
    """Sequences with a few shared prefixes start, publish and end; the cache is compared with plain dicts.

    The hash function is constant, so every lookup finds candidates that it must reject.
    """

    cache_class = PrefixCache

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(12, SIZE)
        self.cache = self.cache_class(self.pool, constant)
        self.sequences: list[tuple[Chain, list[int]]] = []
        self.content: dict[int, Chain] = {}  # block -> the token chain that its content depends on

    @rule(chain=st.lists(st.sampled_from([(0,) * SIZE, (1,) * SIZE]), min_size=1, max_size=4))
    def begin(self, chain: Chain) -> None:
        blocks = self.cache.match(SCOPE, zip(digests(self.cache, SCOPE, chain), chain, strict=True))
        needed = len(chain) - len(blocks)
        unused = sum(self.cache.is_unused(b) for b in blocks)
        if needed > self.pool.num_free + self.cache.num_unused - unused:
            return
        ids = self.cache.acquire(blocks)
        for i, block in enumerate(ids):
            assert self.content[block] == chain[: i + 1], "a false hit"
        self.cache.evict(max(0, needed - self.pool.num_free))
        ids += self.pool.allocate(needed)
        parent = blocks[-1] if blocks else None
        for i in range(len(blocks), len(chain)):
            self.content[ids[i]] = chain[: i + 1]
            digest = digests(self.cache, SCOPE, chain[: i + 1])[-1]
            parent = self.cache.publish(SCOPE, parent, chain[i], digest, ids[i])
            assert parent.block_id == ids[i], "it was not cached, so it is new"
        self.sequences.append((chain, ids))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        _, ids = self.sequences.pop(data.draw(st.integers(0, len(self.sequences) - 1)))
        self.pool.free(ids)
        self.cache.released(ids)

    @rule(count=st.integers(1, 3))
    def evict(self, count: int) -> None:
        self.cache.evict(count)

    @invariant()
    def owners_are_counted(self) -> None:
        owners = [0] * self.pool.num_blocks
        for _, ids in self.sequences:
            for block in ids:
                owners[block] += 1
        cached = set(self.cache._by_block)
        counts = [self.pool.ref_count(i) for i in range(self.pool.num_blocks)]
        assert counts == [owners[i] + (i in cached) for i in range(self.pool.num_blocks)]
        assert self.cache.num_unused == sum(i in cached and not owners[i] for i in range(len(owners)))

    @invariant()
    def the_index_holds_what_can_be_found(self) -> None:
        buckets = self.cache._index.values()
        assert all(buckets) and sum(map(len, buckets)) == self.cache.num_blocks

    @invariant()
    def parents_outlive_children(self) -> None:
        cached = set(map(id, self.cache._by_block.values()))
        assert all(b.parent is None or id(b.parent) in cached for b in self.cache._by_block.values())


CacheMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestCacheMachine = CacheMachine.TestCase


@pytest.mark.slow
def test_the_machine_for_long() -> None:
    """100,000 operations."""
    run_state_machine_as_test(CacheMachine, settings=settings(max_examples=1000, stateful_step_count=100))


# ---- in the engine --------------------------------------------------------------------------------

PROMPT = [(7 * i + 3) % 250 for i in range(70)]
GREEDY = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True, logprobs=1)


def poisoned(llm: LLM) -> LLM:
    """Write NaN to every slot: a request that reads a slot before it is written ends with an error."""
    for tensor in (*llm.engine.worker.runner.cache.k, *llm.engine.worker.runner.cache.v):
        tensor.fill_(float("nan"))
    return llm


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny.make_folder(tmp_path_factory.mktemp("tiny") / "model")


@pytest.mark.parametrize("shared", [0, 1, 15, 16, 17, 31, 32, 33, 64])
def test_a_warm_prefix_is_taken_and_counted(folder: Any, shared: int) -> None:
    llm = poisoned(tiny.load(folder))
    cold = tiny.load(folder, prefix_caching=False)
    llm.generate(PROMPT[:shared] + [240], GREEDY)
    prompt = [*PROMPT[:shared], 241, 242]
    output = llm.generate(prompt, GREEDY)[0]
    assert output.metrics.cached_tokens == shared // 16 * 16
    assert output.token_ids == cold.generate(prompt, GREEDY)[0].token_ids
    assert tiny.all_free(llm)


def test_at_least_one_token_is_computed(folder: Any) -> None:
    llm = poisoned(tiny.load(folder))
    first, second = (llm.generate(PROMPT[:32], GREEDY)[0] for _ in range(2))
    assert second.metrics.cached_tokens == 16 and second.logprobs == first.logprobs


def test_answers_are_cached_too(folder: Any) -> None:
    """The prompt of a conversation's next turn contains the answer of this turn."""
    llm = poisoned(tiny.load(folder))
    first = llm.generate(PROMPT[:30], SamplingParams(max_tokens=20, temperature=0, ignore_eos=True))[0]
    second = llm.generate([*PROMPT[:30], *first.token_ids, 5], GREEDY)[0]
    assert second.metrics.cached_tokens == 48  # 49 tokens were computed; the last sampled token was not


def test_tenants_share_with_themselves_only(folder: Any) -> None:
    llm = poisoned(tiny.load(folder))
    cached = {}
    for tenant in ("a", "b", None, "a", "b", None):
        output = llm.generate(PROMPT, GREEDY, tenant=tenant)[0]
        cached.setdefault(tenant, []).append(output.metrics.cached_tokens)
    assert cached == {"a": [0, 64], "b": [0, 64], None: [0, 64]}
    with pytest.raises(MinillmError, match="tenant"):
        llm.generate(PROMPT, GREEDY, tenant=5)


def test_with_a_constant_hash_all_answers_are_right(folder: Any) -> None:
    llm = poisoned(tiny.load(folder, parts={"prefix_cache": lambda pool: PrefixCache(pool, constant)}))
    prompts = [PROMPT[i:] + PROMPT[:i] for i in (0, 16, 32, 1, 0, 16, 32, 1)]
    outputs = [llm.generate(p, GREEDY)[0] for p in prompts]
    cold = tiny.load(folder, prefix_caching=False)
    assert [o.token_ids for o in outputs] == [o.token_ids for o in cold.generate(prompts, GREEDY)]
    assert [o.metrics.cached_tokens for o in outputs] == [0] * 4 + [64] * 4
    assert llm.engine.memory.cache.false_matches > 0


def test_two_that_share_a_prefix_admitted_in_one_step(folder: Any) -> None:
    """Neither may read blocks that the other is still writing; afterwards one copy is kept."""
    llm = poisoned(tiny.load(folder))
    outputs = llm.generate([PROMPT, PROMPT], GREEDY)
    assert [o.metrics.cached_tokens for o in outputs] == [0, 0]
    assert outputs[0].logprobs == outputs[1].logprobs and outputs[0].error is None
    assert llm.engine.stats()["cached_blocks"] == 4 and tiny.all_free(llm)


def test_samples_of_one_prompt_and_a_warm_prefix(folder: Any) -> None:
    llm = poisoned(tiny.load(folder))
    params = SamplingParams(max_tokens=20, seed=3, n=3, ignore_eos=True)
    first, second = (llm.generate(PROMPT, params)[0] for _ in range(2))
    assert second.metrics.cached_tokens == 64
    assert [c.token_ids for c in second.outputs] == [c.token_ids for c in first.outputs]
    assert tiny.all_free(llm)


def test_a_request_that_meets_nan_is_not_cached(tmp_path: Any) -> None:
    """The embedding of one token is broken: its blocks must not be shared with other requests."""
    tensors = tiny.weights(tiny.config())
    tensors["model.embed_tokens.weight"][9] = float("nan")
    llm = tiny.load(tiny.make_folder(tmp_path, tensors=tensors), prefill_chunk=16)
    bad, good = [1, 2, 9] * 20, [1, 2, 3] * 20
    outputs = llm.generate([bad, good], GREEDY)
    assert [o.finish_reason for o in outputs] == ["error", "length"]
    assert llm.engine.memory.cache.num_blocks == 4 == llm.engine.stats()["cached_blocks"]
    assert llm.generate(bad, GREEDY)[0].metrics.cached_tokens == 0
    assert llm.generate(good, GREEDY)[0].logprobs == outputs[1].logprobs


def test_cached_blocks_make_room(folder: Any) -> None:
    """Cached blocks do not block a new request: the least recently used ones are evicted for it."""
    llm = poisoned(tiny.load(folder, kv_memory=tiny.blocks(8)))
    with llm.engine.events.record() as events:
        for i in range(6):
            assert llm.generate([i, *PROMPT], GREEDY)[0].error is None
            assert llm.engine.stats()["free_blocks"] == 8, "cached blocks count as free"
        assert llm.engine.stats()["cached_blocks"] > 4
        assert sum(e["blocks"] for e in events if e.kind == "evict") > 0
        assert llm.logits(PROMPT).isfinite().all()  # needs five of the eight blocks, none of them free


def test_off_means_off(folder: Any) -> None:
    llm = tiny.load(folder, prefix_caching=False)
    outputs = [llm.generate(PROMPT, GREEDY)[0] for _ in range(2)]
    assert outputs[1].metrics.cached_tokens == 0 and llm.engine.pool.num_used == 0
    with pytest.raises(MinillmError, match="prefix_caching"):
        tiny.load(folder, prefix_caching="yes")


# ---- negative controls: the machine catches faulty caches -------------------------------------------


class ForgetsReference(PrefixCache):
    """The mistake: it publishes a block without becoming its owner."""

    def publish(self, *args: Any) -> CachedBlock:
        before = self.num_blocks
        block = super().publish(*args)
        if self.num_blocks > before:
            self._pool.free([block.block_id])
        return block


class TrustsTheDigest(PrefixCache):
    """The mistake: it takes the first candidate without comparing the key."""

    def _find(self, digest: bytes, *rest: Any) -> CachedBlock | None:
        return next(iter(self._index.get(digest, ())), None)


class ParentsFirst(PrefixCache):
    """The mistake: a sequence's first block becomes unused first, so a parent is evicted before its child."""

    def released(self, block_ids: Sequence[int]) -> None:
        super().released(block_ids[::-1])


@pytest.mark.parametrize("broken", [ForgetsReference, TrustsTheDigest, ParentsFirst])
def test_the_machine_catches(broken: type[PrefixCache]) -> None:
    class Machine(CacheMachine):
        cache_class = broken

    with pytest.raises((AssertionError, ValueError, KeyError)):
        run_state_machine_as_test(
            Machine,
            settings=settings(max_examples=300, stateful_step_count=30, phases=[Phase.generate]),
        )
