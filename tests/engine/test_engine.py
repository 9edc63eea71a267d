"""The engine computes the right tokens with any batch, chunk size and block size.

Every answer is compared with a dense recomputation (`dense.py`) that uses no cache. The reference backend
promises a tolerance, not equal bits, so logprobs (of scale 10) are compared with a tolerance of 1e-3.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dense
import pytest
import tiny
import torch

from minillm import LLM, SamplingParams
from minillm.engine.outputs import RequestOutput
from minillm.ops.sampling import noise_key

TOLERANCE = 1e-3
CONFIG = tiny.config()
WEIGHTS = tiny.weights(CONFIG)
NUM_IDS = tiny.byte_level_tokenizer().get_vocab_size()
RAGGED = [[7], list(range(20, 37)), [5, 6], list(range(100, 133)), [9] * 16, list(range(40, 80)), [8, 8, 8]]


def greedy(tokens: int = 8, **params: Any) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True, logprobs=3, **params)


def poison(llm: LLM) -> LLM:
    """Write NaN to every cache slot: reading a slot before it is written then gives NaN."""
    for tensor in (*llm.engine.worker.runner.cache.k, *llm.engine.worker.runner.cache.v):
        tensor.fill_(float("nan"))
    return llm


def assert_dense(output: RequestOutput, cfg: dict[str, Any] = CONFIG) -> None:
    """Recompute the whole sequence: each token must be the argmax, and each logprob must be equal."""
    for completion in output.outputs:
        ids = output.prompt_token_ids + completion.token_ids
        expected = dense.logits(cfg, WEIGHTS, ids)[len(output.prompt_token_ids) - 1 : -1]
        assert expected[:, :NUM_IDS].argmax(-1).tolist() == completion.token_ids
        logprobs = expected.log_softmax(-1)
        for row, found in enumerate(completion.logprobs or ()):
            assert {int(i) for i in logprobs[row].topk(3).indices} <= set(found)
            assert all(abs(float(logprobs[row, i]) - value) < TOLERANCE for i, value in found.items())


def assert_same(a: RequestOutput, b: RequestOutput) -> None:
    assert a.token_ids == b.token_ids and a.text == b.text and a.finish_reason == b.finish_reason
    for x, y in zip(a.logprobs or (), b.logprobs or (), strict=True):
        assert x.keys() == y.keys() and all(abs(x[i] - y[i]) < TOLERANCE for i in x)


# ---- compared with a computation without cache ----------------------------------------------------


@pytest.mark.parametrize("prompt", [[7], list(range(20, 37)), [9] * 16], ids=len)
def test_greedy_equals_recomputation(llm: LLM, prompt: list[int]) -> None:
    output = poison(llm).generate(prompt, greedy(20))[0]
    assert len(output.token_ids) == 20 and output.finish_reason == "length"
    assert len(set(output.token_ids)) > 3, "equal tokens would prove little"
    assert_dense(output)
    assert tiny.all_free(llm)


def test_logits_equal_the_dense_pass(llm: LLM) -> None:
    ids = list(range(30, 70))
    expected = dense.logits(CONFIG, WEIGHTS, ids)
    found = poison(llm).logits(ids)
    assert found.dtype == torch.float32 and found.shape == (40, tiny.VOCAB_SIZE)
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())
    wrong = dense.logits(CONFIG | {"sliding_window": 39}, WEIGHTS, ids)
    assert float((found - wrong).abs().max()) > 1e-3 * float(expected.abs().max()), "control: one key fewer"


@pytest.mark.parametrize("block_size", [1, 2, 3, 5, 8, 16, 32])
def test_block_sizes(folder: Path, block_size: int) -> None:
    llm = poison(tiny.load(folder, block_size=block_size))
    for output in llm.generate(RAGGED, greedy(6)):
        assert_dense(output)
    assert tiny.all_free(llm)


@pytest.mark.parametrize("chunk", [1, 3, 7, 16, 512])
@pytest.mark.parametrize("window", [None, 1, 4, 11])
def test_chunked_prefill_and_windows(tmp_path: Path, chunk: int, window: int | None) -> None:
    cfg = CONFIG if window is None else tiny.mistral_config(window)
    folder = tiny.make_folder(tmp_path, cfg, tensors=WEIGHTS)
    llm = poison(tiny.load(folder, prefill_chunk=chunk, block_size=4))
    for output in llm.generate([RAGGED[1], RAGGED[0], RAGGED[3]], greedy(5)):
        assert_dense(output, cfg)
    if window:
        plain = dense.logits(CONFIG, WEIGHTS, RAGGED[3])[-1].log_softmax(-1)
        windowed = dense.logits(cfg, WEIGHTS, RAGGED[3])[-1].log_softmax(-1)
        assert float((plain - windowed).abs().max()) > 10 * TOLERANCE, "control: the window matters"


def test_reused_blocks_hold_nothing_of_their_last_owner(folder: Path) -> None:
    llm = poison(tiny.load(folder, kv_memory=tiny.blocks(4), block_size=16))
    for prompt in (RAGGED[3], RAGGED[1], RAGGED[4], RAGGED[0]):
        assert_dense(llm.generate(prompt, greedy(10))[0])


def test_control_reading_an_unwritten_slot_shows(folder: Path) -> None:
    """The control: with a slot mapping that skips one slot, attention reads NaN."""

    def skipping(table: list[int], positions: list[int], size: int) -> list[int]:
        return [table[p // size] * size + (p + (p == 3)) % size for p in positions]

    llm = poison(tiny.load(folder, parts={"slot_mapping": skipping}))
    assert llm.generate(RAGGED[1], greedy(2))[0].finish_reason == "error"


# ---- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_seqs": 3},
        {"max_num_batched_tokens": 5, "prefill_chunk": 4},
        {"max_num_batched_tokens": 1},
    ],
    ids=str,
)
def test_ragged_batch_equals_one_by_one(folder: Path, options: dict[str, int]) -> None:
    llm = poison(tiny.load(folder, **options))
    lengths = [3, 9, 1, 5, 7, 2, 12]
    params = [greedy(n) for n in lengths]
    together = llm.generate(RAGGED, params)
    alone = [poison(tiny.load(folder)).generate(p, s)[0] for p, s in zip(RAGGED, params, strict=True)]
    for a, b in zip(together, alone, strict=True):
        assert_same(a, b)
    assert [len(o.token_ids) for o in together] == lengths
    assert tiny.all_free(llm)


def test_requests_that_join_a_running_batch(folder: Path) -> None:
    """Requests arrive later than in `generate`, so prefill and decode run in the same steps."""
    engine = poison(tiny.load(folder, prefill_chunk=5)).engine
    finished, waiting = {}, list(RAGGED)
    while waiting or engine.has_unfinished_requests():
        if waiting:
            engine.add_request(waiting.pop(0), greedy(7))
        finished |= {o.request_id: o for o in engine.step() if o.finished}
    assert len(finished) == len(RAGGED)
    for output in finished.values():
        assert_dense(output)


# ---- samples and seeds ----------------------------------------------------------------------------

SAMPLED = {"max_tokens": 12, "temperature": 2.0, "ignore_eos": True, "logprobs": 0}


@pytest.mark.parametrize("prompt_len", [1, 15, 16, 17, 32])
def test_samples_are_forks_of_one_prompt(folder: Path, prompt_len: int) -> None:
    """The n samples share full blocks and equal n requests sampled with the same (seed, index)."""
    llm = poison(tiny.load(folder))
    prompt = list(range(30, 30 + prompt_len))
    request_id = llm.engine.add_request(prompt, SamplingParams(n=4, seed=11, **SAMPLED))
    llm.engine.step()
    group = llm.engine._registry.live[request_id].sequences
    full = prompt_len // 16
    for block in range(full):
        assert {r.block_table.block_ids[block] for r in group} == {group[0].block_table.block_ids[block]}
        # Five owners: four sequences and the prefix cache.
        assert llm.engine.pool.ref_count(group[0].block_table.block_ids[block]) == 5
    shared = {b for r in group for b in r.block_table.block_ids[:full]}
    before = [llm.engine.worker.runner.cache.k[0][b].clone() for b in sorted(shared)]
    while llm.engine.has_unfinished_requests():
        output = llm.engine.step()[-1]
        after = [llm.engine.worker.runner.cache.k[0][b] for b in sorted(shared)]
        assert all(map(torch.equal, before, after)), "shared blocks are read-only"
    assert tiny.all_free(llm)
    assert len({tuple(c.token_ids) for c in output.outputs}) == 4, "every sample has its own noise"
    for index, completion in enumerate(output.outputs):
        assert len(completion.token_ids) == SAMPLED["max_tokens"], "a fork that reads NaN would end early"
        assert completion.token_ids == redraw(prompt, completion.token_ids, seed=11, index=index)


def redraw(prompt: list[int], tokens: list[int], seed: int, index: int) -> list[int]:
    """Sample again at each position of `tokens`: Gumbel-max over dense logits, with noise computed here."""
    from minillm.ops.sampling import gumbel_noise

    rows = dense.logits(CONFIG, WEIGHTS, prompt + tokens)[len(prompt) - 1 : -1, :NUM_IDS]
    noise = gumbel_noise([noise_key(seed, index, p) for p in range(len(tokens))], NUM_IDS)
    return (rows / SAMPLED["temperature"] + noise).argmax(-1).tolist()


def test_seed_reproduces_in_any_company(folder: Path) -> None:
    params = [SamplingParams(seed=i, **SAMPLED) for i in range(len(RAGGED))]
    first = tiny.load(folder).generate(RAGGED, params)
    again = tiny.load(folder, max_num_seqs=2, prefill_chunk=3, seed=99).generate(RAGGED[::-1], params[::-1])
    assert [o.token_ids for o in first] == [o.token_ids for o in again[::-1]]
    other = tiny.load(folder).generate(RAGGED, [SamplingParams(seed=i + 50, **SAMPLED) for i in range(7)])
    assert [o.token_ids for o in other] != [o.token_ids for o in first], "control: the seed decides"


def test_derived_seeds_are_reported_and_reproduce(folder: Path) -> None:
    none = SamplingParams(**SAMPLED)
    first = tiny.load(folder, seed=3).generate([RAGGED[1]] * 4, none)
    seeds = [o.outputs[0].seed for o in first]
    assert len(set(seeds)) == 4 and len({tuple(o.token_ids) for o in first}) == 4
    assert [o.outputs[0].seed for o in tiny.load(folder, seed=3).generate([RAGGED[1]] * 4, none)] == seeds
    assert [o.outputs[0].seed for o in tiny.load(folder, seed=4).generate([RAGGED[1]] * 4, none)] != seeds
    for output in first:
        again = tiny.load(folder).generate(RAGGED[1], SamplingParams(seed=output.outputs[0].seed, **SAMPLED))
        assert again[0].token_ids == output.token_ids


def test_ids_without_a_token_are_never_generated(tmp_path: Path) -> None:
    """Ids that the tokenizer lacks get the highest logits, and are still never sampled."""
    tensors = dict(WEIGHTS)
    tensors["lm_head.weight"] = WEIGHTS["lm_head.weight"].clone()
    tensors["lm_head.weight"][NUM_IDS:] *= 30
    llm = tiny.load(tiny.make_folder(tmp_path, tensors=tensors))
    for params in (greedy(20), SamplingParams(seed=1, **(SAMPLED | {"max_tokens": 20, "logprobs": 5}))):
        output = llm.generate([5, 6, 7], params)[0]
        assert max(output.token_ids) < NUM_IDS
        best = {max(row, key=row.__getitem__) for row in output.logprobs}
        assert max(best) >= NUM_IDS, "control: without the mask they would be chosen"


def test_repetition_penalty_sees_prompt_and_output(llm: LLM) -> None:
    params = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True, repetition_penalty=1e9)
    output = llm.generate([5, 6, 7], params)[0]
    assert len({*output.token_ids, 5, 6, 7}) == 43
    assert len(set(llm.generate([5, 6, 7], greedy(40))[0].token_ids)) < 40, "control"
