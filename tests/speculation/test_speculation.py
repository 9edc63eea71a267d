"""Contract C7: speculation changes nothing but time.

The tests cover every kind of drafter, draft lengths 1 to 8, chains and trees, mixed batches, preemption and
prefix hits. Tokens and log-probabilities must have the same bits as without speculation. The draft model's
keys and values are tested with the target as its own draft model: then every draft token must be accepted.
"""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import drafting
import pytest
import tiny
import torch
from drafting import TOKEN_BYTES, differing, load, mixed_params

from minillm import LLM, SamplingParams
from minillm.engine.outputs import RequestOutput
from minillm.errors import MinillmError
from minillm.memory.block_table import blocks_for
from minillm.observe.metrics import summarize
from minillm.ops.reference import ReferenceOps
from minillm.speculation.proposal import NO_PROPOSAL, Proposal
from minillm.speculation.scripted import ScriptedDrafter
from minillm.worker.decode import decode

DRAFTERS = ("model", "ngram", "oracle", "random", "adversary", "model tree", "ngram tree", "random tree")
LENGTHS = (1, 3, 5, 8)
TREE = (2, 2, 1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return drafting.make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The target as its own draft model."""
    return drafting.make_pair(tmp_path_factory.mktemp("twins"), noise=0.0)


def prompts(count: int) -> list[list[int]]:
    """Prompts of different lengths: a third begin with the same 48 tokens, a third repeat themselves."""
    rng = random.Random(3)
    common = [rng.randrange(2, 250) for _ in range(48)]
    found = []
    for i in range(count):
        own = [rng.randrange(2, 250) for _ in range(rng.choice((1, 2, 7, 15, 16, 17, 31, 40)))]
        found.append([common + own, own * 3, own][i % 3])
    return found


@cache
def expected(target: Path, count: int, tokens: int) -> list[RequestOutput]:
    return load(target).generate(prompts(count), mixed_params(count, tokens, logprobs=8))


def options(pair: tuple[Path, Path], drafter: str, length: int, known: list[RequestOutput]) -> dict[str, Any]:
    kind, _, shape = drafter.partition(" ")
    chosen: dict[str, Any] = {"num_draft_tokens": length}
    if shape:
        chosen["draft_tree"] = TREE
    if kind in ("model", "ngram"):
        return chosen | {"draft_model": pair[1] if kind == "model" else "ngram"}
    if kind == "random":
        return chosen | {"parts": drafting.randomly()}
    return chosen | {"parts": drafting.scripted(known, 1.0 if kind == "oracle" else 0.0)}


def check_exact(
    pair: tuple[Path, Path], drafter: str, length: int, count: int, tokens: int, tight: bool
) -> None:
    """Run all prompts with speculation, twice, so that the second run hits the prefixes of the first."""
    known = expected(pair[0], count, tokens)
    more = options(pair, drafter, length, known)
    if tight:
        bytes_per_token = TOKEN_BYTES * (2 if "model" in drafter else 1)
        more |= {"kv_memory": blocks_for(150 + tokens, 16) * 16 * bytes_per_token * 2, "prefill_chunk": 64}
    llm = load(pair[0], **more)
    if tight:
        llm.engine.scheduler.headroom_tokens = 0
    params = mixed_params(count, tokens, logprobs=8)
    for _ in range(2):
        with llm.engine.events.record() as events:
            found = llm.generate(prompts(count), params)
        assert differing(found, known) == []
        assert tiny.all_free(llm)
        assert sum(o.metrics.drafted for o in found) > 0
        assert not tight or any(event.kind == "preempt" for event in events)
    assert any(o.metrics.cached_tokens for o in found), "the second run found the first's blocks"


COVERING = [
    (drafter, LENGTHS[(i + shift) % 4], bool((i + shift) % 2))
    for i, drafter in enumerate(DRAFTERS)
    for shift in (0, 1)
]


@pytest.mark.parametrize(("drafter", "length", "tight"), COVERING)
def test_speculation_changes_no_bit(pair: tuple[Path, Path], drafter: str, length: int, tight: bool) -> None:
    check_exact(pair, drafter, length, 42, 24, tight)


@pytest.mark.slow
@pytest.mark.parametrize("tight", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_speculation_changes_no_bit_at_length(
    pair: tuple[Path, Path], drafter: str, length: int, tight: bool
) -> None:
    check_exact(pair, drafter, length, 200, 64, tight)


def test_control_the_reference_backend_differs(pair: tuple[Path, Path]) -> None:
    """Its rows depend on the number of rows, so the comparison above can fail."""
    work = prompts(42), mixed_params(42, 24, logprobs=8)
    plain = tiny.load(pair[0], backend="reference", kv_memory="8MiB").generate(*work)
    drafted = load(pair[0], backend="reference", parts=drafting.randomly()).generate(*work)
    assert differing(drafted, plain)


def test_control_accepting_everything_differs(pair: tuple[Path, Path]) -> None:
    llm = load(pair[0], parts=drafting.randomly())
    ops = llm.engine.model.decoder.ops

    def accept_all(sampled: Any, drafted: Any, parents: Any, start: Any) -> Any:
        children = [*drafted.tolist()[1:], 0]
        last = {end - 1 for end in start.tolist()}
        taken = [t if i in last else d for i, (t, d) in enumerate(zip(sampled.tolist(), children))]  # noqa: B905
        nodes = [i - max(s for s in start.tolist() if s <= i) for i in range(len(taken))]
        return torch.tensor(taken), torch.tensor(nodes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "verify_coupled", accept_all)
        found = llm.generate(prompts(6), mixed_params(6, 24, logprobs=8))
    assert differing(found, expected(pair[0], 42, 24)[:6])


# ---- acceptance -----------------------------------------------------------------------------------


def test_an_oracle_is_believed_and_noise_is_not(pair: tuple[Path, Path]) -> None:
    known = expected(pair[0], 42, 24)
    work = prompts(42), mixed_params(42, 24, logprobs=8)
    oracle = load(pair[0], parts=drafting.scripted(known), num_draft_tokens=5).generate(*work)
    assert all(o.metrics.drafted == o.metrics.accepted > 0 for o in oracle)
    noise = load(pair[0], parts=drafting.randomly(), num_draft_tokens=5).generate(*work)
    share = sum(o.metrics.accepted for o in noise) / sum(o.metrics.drafted for o in noise)
    assert share < 0.2


@pytest.mark.parametrize("acceptance", [0.2, 0.5, 0.8])
def test_tokens_per_verification_follow_the_formula(pair: tuple[Path, Path], acceptance: float) -> None:
    """The mean is (1 - a^(k+1)) / (1 - a) within 2 %, over 10,000 verifications."""
    k, count = 4, 96
    formula = (1 - acceptance ** (k + 1)) / (1 - acceptance)
    tokens = int(11_500 * formula / count)
    params = [
        SamplingParams(max_tokens=tokens, temperature=1.0, seed=i, ignore_eos=True) for i in range(count)
    ]
    short = [[5 + i, 7] for i in range(count)]
    known = load(pair[0], max_num_seqs=96).generate(short, params)
    parts = drafting.scripted(known, acceptance)
    llm = load(pair[0], parts=parts, num_draft_tokens=k, max_num_seqs=96)
    with llm.engine.events.record() as events:
        llm.generate(short, params)
    full = [o for e in events if e.kind == "speculate" for o in e["outcomes"] if o.depth == k]
    assert len(full) > 10_000
    mean = sum(outcome.accepted + 1 for outcome in full[:10_000]) / 10_000
    assert abs(mean / formula - 1) < 0.02


def test_trees_stand_at_least_as_often_as_their_first_path(pair: tuple[Path, Path]) -> None:
    work = prompts(42), mixed_params(42, 24)

    def steps(**more: Any) -> int:
        llm = load(pair[0], draft_model=pair[1], **more)
        with llm.engine.events.record() as events:
            llm.generate(*work)
        return summarize(events).speculation.verifications

    assert steps(draft_tree=(3, 2)) < steps(num_draft_tokens=2)


# ---- the draft model's keys and values ------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"draft_tree": (2, 2, 1)},
        {"prefill_chunk": 16},
        {"block_size": 1},
        {"block_size": 5, "draft_tree": (3, 1)},
        {"kv_memory": 12 * 16 * 2 * TOKEN_BYTES},
        {"num_draft_tokens": 1},
    ],
    ids=str,
)
def test_a_draft_that_is_the_target_is_always_right(twins: tuple[Path, Path], more: dict[str, Any]) -> None:
    """With prefix hits, forks, preemption and catching up: a wrong key in its cache would reject a token."""
    llm = load(twins[0], draft_model=twins[1], **more)
    params = mixed_params(21, 16, n=2, ignore_eos=True) + mixed_params(21, 16, ignore_eos=True)
    for _ in range(2):
        with llm.engine.events.record() as events:
            llm.generate(prompts(42), params)
        outcomes = [o for e in events if e.kind == "speculate" for o in e["outcomes"]]
        assert sum(o.accepted for o in outcomes) > 300
        assert all(o.accepted == o.depth for o in outcomes), "one branch of each draft is the answer"
        assert tiny.all_free(llm)


def test_blocks_written_while_drafting_was_off_are_caught_up_with(twins: tuple[Path, Path]) -> None:
    """First a prefix hit on blocks without keys of the draft model, then one on blocks with them."""
    llm = load(twins[0], draft_model=twins[1])
    prompt = prompts(1)[0]
    known = load(twins[0]).generate(prompt, SamplingParams(max_tokens=20, temperature=0.0))
    llm.generate(prompt, SamplingParams(max_tokens=1, temperature=0.0))  # only prefill: nothing is drafted
    block = llm.engine.memory.cache._by_block  # type: ignore[union-attr]
    assert [b.draft for b in block.values()] == [None] * 3
    drafts = drafting.drafter_of(llm)
    for hit in range(2):
        fed = list[int]()
        own = drafts.runner.decode_ahead

        def watched(batch: Any, *rest: Any, fed: Any = fed, own: Any = own) -> Any:
            fed.append(batch[0].start)
            return own(batch, *rest)

        drafts.runner.decode_ahead = watched
        output = llm.generate(prompt, SamplingParams(max_tokens=20, temperature=0.0))
        drafts.runner.decode_ahead = own
        assert output[0].metrics.cached_tokens == 48
        assert fed[0] == (48 if hit else 0), "the draft model starts after its last key"
        assert output[0].metrics.drafted == output[0].metrics.accepted > 0
        assert differing(output, known) == []
    assert all(b.draft for b in block.values())


def test_a_draft_is_caught_up_with_in_chunks(twins: tuple[Path, Path]) -> None:
    """The draft model computes a long prompt in chunks, one per step, and drafts nothing until it is done."""
    llm = load(twins[0], draft_model=twins[1], prefill_chunk=64)
    prompt = list(range(2, 232))
    with llm.engine.events.record() as events:
        output = llm.generate(prompt, SamplingParams(max_tokens=20, temperature=0.0))[0]
    decoding = [e for e in events if e.kind in ("decode_step", "speculate")]
    assert [e.kind for e in decoding[:4]] == ["decode_step"] * 4, "three steps without a draft"
    assert decoding[4].kind == "speculate" and decoding[4]["outcomes"][0].depth == 5
    assert output.metrics.drafted == output.metrics.accepted


def test_a_draft_with_a_shorter_context_stops_there(pair: tuple[Path, Path], tmp_path: Path) -> None:
    config = drafting.CONFIG | {"max_position_embeddings": 40}
    draft = tiny.make_folder(tmp_path / "short", config, tensors=tiny.weights(config, scale=0.1))
    params = SamplingParams(max_tokens=60, temperature=0.0, logprobs=3, ignore_eos=True)
    work = [[9] * 10, [11] * 100], params
    known = load(pair[0]).generate(*work)
    llm = load(pair[0], draft_model=draft)
    found = llm.generate(*work)
    assert differing(found, known) == []
    assert found[0].metrics.drafted > 0 and found[1].metrics.drafted == 0


# ---- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("drafter", ["model", "oracle", "random tree", "model tree"])
def test_rejected_slots_are_never_read(pair: tuple[Path, Path], drafter: str) -> None:
    """NaN is written to every unused slot between steps. No sequence has more blocks than it needs."""
    known = expected(pair[0], 42, 24)
    llm = load(pair[0], **options(pair, drafter, 5, known))
    engine, size = llm.engine, llm.engine.config.block_size
    ids = [
        engine.add_request(p, q) for p, q in zip(prompts(42), mixed_params(42, 24, logprobs=8), strict=True)
    ]
    finished = dict[str, RequestOutput]()
    while engine.has_unfinished_requests():
        finished |= {output.request_id: output for output in engine.step() if output.finished}
        for request in engine.scheduler.running:
            assert len(request.block_table.block_ids) == blocks_for(request.num_computed_tokens, size)
        drafting.poison(llm)
    assert differing([finished[i] for i in ids], known) == []
    assert tiny.all_free(llm)


def test_control_a_poisoned_slot_that_counts_is_noticed(pair: tuple[Path, Path]) -> None:
    llm = load(pair[0], parts=drafting.randomly())
    engine = llm.engine
    engine.add_request(prompts(1)[0], SamplingParams(max_tokens=20, temperature=0.0))
    for _ in range(3):
        engine.step()
    request = engine.scheduler.running[0]
    engine.worker.runner.cache.v[0][request.block_table.block_ids[0], 0] = float("nan")
    outputs = [*engine.step(), *engine.step()]  # the first step may stop drafting
    assert outputs[-1].finish_reason == "error" and "NaN" in str(outputs[-1].error)


def test_look_ahead_takes_nothing_from_anybody(pair: tuple[Path, Path]) -> None:
    """A request that just fills the pool is served to its end; look-ahead uses only the blocks left over."""
    prompt, params = [9] * 20, SamplingParams(max_tokens=44, temperature=0.0, ignore_eos=True, logprobs=3)
    known = load(pair[0]).generate(prompt, params)
    pool = 4 * 16 * TOKEN_BYTES  # exactly 64 tokens: prompt and answer
    for shape in ((1,) * 8, (4, 2, 2)):
        llm = load(pair[0], kv_memory=pool, parts=drafting.randomly(), draft_tree=shape)
        with llm.engine.events.record() as events:
            assert differing(llm.generate(prompt, params), known) == []
        assert not any(event.kind in ("preempt", "refuse") for event in events)
        depths = [e["outcomes"][0].depth for e in events if e.kind == "speculate"]
        assert max(depths) == len(shape) and min(depths) < len(shape), "it drafts, and drafts get shorter"


def test_look_ahead_keeps_to_the_token_budget(pair: tuple[Path, Path]) -> None:
    llm = load(pair[0], parts=drafting.randomly(), max_num_batched_tokens=24, num_draft_tokens=8)
    with llm.engine.events.record() as events:
        found = llm.generate(prompts(42), mixed_params(42, 24, logprobs=8))
    assert differing(found, expected(pair[0], 42, 24)) == []
    rows = [event["rows"] for event in events if event.kind == "speculate"]
    prefilled = {event.step: event["prefill_tokens"] for event in events if event.kind == "step"}
    steps = [event.step for event in events if event.kind == "speculate"]
    assert max(rows) == 24
    assert all(n + prefilled[step] <= 24 for n, step in zip(rows, steps, strict=True))


def test_a_tree_keeps_to_the_token_budget(pair: tuple[Path, Path]) -> None:
    """Branches are left out before the budget is exceeded, and it is used to the last row."""
    tree, budget = (2, 2, 1), 24
    params = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True, logprobs=2)
    work = [[5 + i, 7] for i in range(4)], params
    llm = load(pair[0], parts=drafting.randomly(), max_num_batched_tokens=budget, draft_tree=tree)
    with llm.engine.events.record() as events:
        found = llm.generate(*work)
    assert differing(found, load(pair[0]).generate(*work)) == []
    full = [e for e in events if e.kind == "speculate" and len(e["requests"]) == 4][:-6]
    assert len(full) > 3 and {event["rows"] for event in full} == {budget}
    # 20 rows are left beside the newest tokens': 15 for four branches, 3 for one, 2 for a shorter one.
    assert {tuple(o.drafted for o in event["outcomes"]) for event in full} == {(12, 3, 2, 0)}


# ---- ends inside a run ----------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", range(1, 12))
def test_max_tokens_inside_an_accepted_run(pair: tuple[Path, Path], tokens: int) -> None:
    params = SamplingParams(max_tokens=tokens, temperature=0.8, seed=4, ignore_eos=True, logprobs=4)
    known = load(pair[0]).generate([9] * 20, SamplingParams(**(params.to_dict() | {"max_tokens": 40})))
    llm = load(pair[0], parts=drafting.scripted(known), num_draft_tokens=8)
    output = llm.generate([9] * 20, params)[0]
    assert output.token_ids == known[0].token_ids[:tokens] and output.finish_reason == "length"
    assert output.logprobs == known[0].logprobs[:tokens]  # type: ignore[index]
    assert output.metrics.accepted == output.metrics.drafted == max(0, tokens - 2 - (tokens - 2) // 9)
    assert tiny.all_free(llm)


@pytest.mark.parametrize("place", range(1, 14, 3))
@pytest.mark.parametrize("how", ["stop_token_ids", "stop"])
def test_a_stop_inside_an_accepted_run(pair: tuple[Path, Path], place: int, how: str) -> None:
    free = SamplingParams(max_tokens=40, temperature=1.0, seed=11, ignore_eos=True, logprobs=2)
    whole = load(pair[0]).generate([9] * 20, free)
    token = whole[0].token_ids[place]
    if how == "stop":
        text = load(pair[0]).engine.model.require_tokenizer().rust.decode([token])
        ending: dict[str, Any] = {"stop": text}
        assert text.isprintable() and text, "choose another seed"
    else:
        ending = {"stop_token_ids": [token]}
    params = SamplingParams(**(free.to_dict() | ending))
    known = load(pair[0]).generate([9] * 20, params)
    llm = load(pair[0], parts=drafting.scripted(whole), num_draft_tokens=8)
    with llm.engine.events.record() as events:
        found = llm.generate([9] * 20, params)
    assert differing(found, known) == [] and found[0].finish_reason == "stop"
    outcomes = [o for e in events if e.kind == "speculate" for o in e["outcomes"]]
    sampled = sum(len(e["requests"]) for e in events if e.kind == "sample")
    assert sampled == len(found[0].token_ids), "what stands behind the end was not given"
    assert found[0].metrics.accepted == sum(o.accepted for o in outcomes) <= sampled - 1
    assert found[0].metrics.drafted == sum(o.drafted for o in outcomes) >= found[0].metrics.accepted
    assert tiny.all_free(llm)
    assert llm.generate([9] * 20, params)[0].token_ids == known[0].token_ids, "no wrong block was published"


def test_cancelled_and_overdue_in_the_middle(pair: tuple[Path, Path]) -> None:
    llm = load(pair[0], draft_model=pair[1])
    known = load(pair[0]).generate([7] * 9, SamplingParams(max_tokens=60, temperature=0.0, ignore_eos=True))
    engine = llm.engine
    kept = engine.add_request([7] * 9, SamplingParams(max_tokens=60, temperature=0.0, ignore_eos=True))
    gone = engine.add_request([8] * 9, SamplingParams(max_tokens=60, temperature=0.0, ignore_eos=True))
    late = engine.add_request(
        [6] * 9, SamplingParams(max_tokens=200, temperature=0.0, ignore_eos=True, deadline=0.05)
    )
    outputs = dict[str, RequestOutput]()
    for step in range(400):
        if step == 3:
            engine.abort_request(gone)
        outputs |= {output.request_id: output for output in engine.step()}
        if not engine.has_unfinished_requests():
            break
    assert outputs[gone].finish_reason == "cancelled" and outputs[gone].token_ids
    assert outputs[late].finish_reason in ("deadline", "length")
    assert outputs[kept].token_ids == known[0].token_ids
    assert tiny.all_free(llm)


# ---- faults ---------------------------------------------------------------------------------------


def test_broken_logits_inside_a_path_end_the_request_where_decode_would(tmp_path: Path) -> None:
    """Token 200 has a broken embedding: a sequence ends when it is its newest token, drafted or not."""
    tensors = tiny.weights(drafting.CONFIG, scale=0.1)
    plain = load(tiny.make_folder(tmp_path / "good", drafting.CONFIG, tensors=tensors))
    params = SamplingParams(max_tokens=30, temperature=1.0, seed=2, ignore_eos=True)
    whole = plain.generate([[5, 6], [7, 8]], params)
    broken = whole[0].token_ids[7]
    assert broken not in whole[1].token_ids and broken not in whole[0].token_ids[:7]
    tensors["model.embed_tokens.weight"][broken, 0] = float("nan")
    bad = tiny.make_folder(tmp_path / "bad", drafting.CONFIG, tensors=tensors)
    alone = load(bad).generate([[5, 6], [7, 8]], params)
    found = load(bad, parts=drafting.scripted(whole), num_draft_tokens=5).generate([[5, 6], [7, 8]], params)
    assert alone[0].finish_reason == "error"
    assert differing(found, alone) == []
    assert str(found[0].error) == str(alone[0].error)


def test_broken_logits_are_never_drawn_from(tmp_path: Path) -> None:
    """Not even to throw the draw away: a sampler may do anything with NaN."""
    tensors = tiny.weights(drafting.CONFIG, scale=0.1)
    params = SamplingParams(max_tokens=20, temperature=1.0, seed=2, ignore_eos=True)
    good = load(tiny.make_folder(tmp_path / "good", drafting.CONFIG, tensors=tensors))
    whole = good.generate([[5, 6], [7, 8]], params)
    tensors["model.embed_tokens.weight"][whole[0].token_ids[7], 0] = float("nan")
    bad, asked = tiny.make_folder(tmp_path / "bad", drafting.CONFIG, tensors=tensors), list[bool]()

    def watched(logits: torch.Tensor, batch: Any) -> torch.Tensor:
        asked.append(bool(logits.isfinite().all()))
        return ReferenceOps().sample(logits, batch)

    for parts in ({"sampler": watched}, {"sampler": watched, **drafting.scripted(whole)}):
        output = load(bad, parts=parts).generate([[5, 6], [7, 8]], params)[0]
        assert output.finish_reason == "error" and all(asked) and len(asked) > 4


@pytest.mark.parametrize("drafts", ["none", "all", "one"])
def test_only_a_later_row_wants_logprobs(pair: tuple[Path, Path], drafts: str) -> None:
    """Its log-probabilities are those of its own rows, whoever stands before it."""
    tops = [None, None, 3, None, 0]
    prompts = [[5 + i, 7, 9] for i in range(5)]
    params = [
        SamplingParams(max_tokens=12, temperature=0.8, seed=i, ignore_eos=True, logprobs=t)
        for i, t in enumerate(tops)
    ]
    known = [load(pair[0]).generate(p, q)[0] for p, q in zip(prompts, params, strict=True)]
    told = [known[2]] if drafts == "one" else known
    answer = drafting.answers(told)

    def known_or_nothing(sequence: Any) -> Any:
        return answer(sequence) if drafts == "all" or sequence.prompt_token_ids == prompts[2] else []

    parts = {"drafter": lambda model, config: ScriptedDrafter(known_or_nothing, tiny.VOCAB_SIZE, 0.6)}
    found = load(pair[0], **({} if drafts == "none" else {"parts": parts})).generate(prompts, params)
    assert differing(found, known) == []
    assert [o.logprobs is None for o in found] == [top is None for top in tops]
    wanted = {"none": [False] * 5, "all": [True] * 5, "one": [False, False, True, False, False]}
    assert [o.metrics.drafted > 0 for o in found] == wanted[drafts], "each is credited with its own"
    assert all(len(row) in (3, 4) for row in found[2].logprobs or []) and len(found[2].logprobs or []) == 12


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([[1] * 9], "allowed are 1 of 5"),
        ([[1], [2]], "2 branches"),
        ([[5000]], "token id 5000"),
        ([[-1]], "token id -1"),
    ],
)
def test_a_drafter_that_does_not_keep_to_its_word(
    pair: tuple[Path, Path], paths: list[list[int]], message: str
) -> None:
    class Wrong(ScriptedDrafter):
        def propose(self, lookaheads: Any) -> list[Proposal]:
            return [Proposal(paths) for _ in lookaheads]

    llm = load(pair[0], parts={"drafter": lambda model, config: Wrong(lambda s: [], 9)})
    with pytest.raises(MinillmError, match=message):
        llm.generate([5, 6], SamplingParams(max_tokens=20))
    llm.engine.step()
    assert tiny.all_free(llm)


@pytest.mark.parametrize("failing", ["propose", "settle"])
def test_a_drafter_that_raises_loses_no_blocks(pair: tuple[Path, Path], failing: str) -> None:
    llm = load(pair[0], parts=drafting.randomly(), draft_tree=(3, 2))

    def fail(*args: Any) -> Any:
        raise ZeroDivisionError

    setattr(drafting.drafter_of(llm), failing, fail)
    with pytest.raises(ZeroDivisionError):
        llm.generate(prompts(6), SamplingParams(max_tokens=20))
    llm.engine.step()
    assert tiny.all_free(llm)


def test_a_pass_that_fails_after_no_guess_costs_no_prefix(pair: tuple[Path, Path]) -> None:
    """The room for guesses is given back between drafting and the pass; that is no reason to begin again."""
    fails = list[bool]()

    def loop(runner: Any, rows: Any) -> torch.Tensor:
        if fails:
            raise ZeroDivisionError
        return decode(runner, rows)

    class Silent(ScriptedDrafter):
        def propose(self, lookaheads: Any) -> list[Proposal]:
            return [NO_PROPOSAL for _ in lookaheads]

    parts = {"drafter": lambda model, config: Silent(lambda s: [], 9), "decode_loop": loop}
    llm, params = load(pair[0], parts=parts), SamplingParams(max_tokens=5, ignore_eos=True)
    llm.generate([9] * 40, params)
    cached = llm.engine.stats()["cached_blocks"]
    fails.append(True)
    with pytest.raises(ZeroDivisionError):
        llm.generate([8] * 5, params)
    llm.engine.step()
    assert tiny.all_free(llm) and llm.engine.stats()["cached_blocks"] == cached == 2


def test_answers_that_share_their_prompt_are_drafted_apart(pair: tuple[Path, Path]) -> None:
    params = mixed_params(14, 20, n=3, logprobs=3)
    known = load(pair[0]).generate(prompts(14), params)
    for more in (
        {"draft_model": pair[1]},
        {"draft_model": pair[1], "draft_tree": (2, 2)},
        {"draft_model": "ngram"},
    ):
        llm: LLM = load(pair[0], **more)
        assert differing(llm.generate(prompts(14), params), known) == []
        assert tiny.all_free(llm)
