"""The offline interface: generate, stream, logits, and the fields of an output."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from minillm import LLM, SamplingParams
from minillm.engine.request import derived_seed
from minillm.errors import KVCapacityError, MinillmError, PromptTooLong, UsageError

PROMPT = list(range(20, 37))


def greedy(tokens: int = 12, **params: Any) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True, **params)


# ---- generate -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("the cat", 1),
        (["the cat", [5, 6]], 2),
        ([5, 6, 7], 1),
        ((5, 6, 7), 1),
        ([[5, 6], (7,)], 2),
        ([], 0),
    ],
    ids=str,
)
def test_shapes_of_prompts(llm: LLM, prompts: Any, expected: int) -> None:
    assert len(llm.generate(prompts, greedy(2))) == expected


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        *((prompt, UsageError) for prompt in ("", [], [1, 10**6], None, 7.5, "a\ud800", [True], [[5]])),
        ([5] * 256, PromptTooLong),
    ],
    ids=lambda v: str(v)[:20],
)
def test_a_bad_prompt_among_good_raises_before_any_starts(
    llm: LLM, bad: Any, kind: type[MinillmError]
) -> None:
    with pytest.raises(kind, match=r"prompt 2: "):
        llm.generate([[5], [6], bad, [7]], greedy())
    assert llm.engine.stats()["waiting"] == 0 and tiny.all_free(llm)
    (output,) = llm.generate([[5]], SamplingParams())
    assert output.outputs[0].seed == derived_seed(0, None, 0), "no request was submitted before"


def test_parameters_for_each_prompt(llm: LLM) -> None:
    outputs = llm.generate([[5], [6]], [greedy(2), greedy(4)])
    assert [len(o.token_ids) for o in outputs] == [2, 4]
    with pytest.raises(UsageError, match="one for each"):
        llm.generate([[5], [6]], [greedy(2)])
    with pytest.raises(UsageError, match="prompt 1: sampling_params"):
        llm.generate([[5], [6]], [greedy(2), {"max_tokens": 3}])
    with pytest.raises(KVCapacityError, match="prompt 1"):
        tiny.load(llm.engine.model.folder, kv_memory=tiny.blocks(2)).generate([[5], [6] * 40], greedy())


def test_none_is_the_models_own(tmp_path: Path) -> None:
    llm = tiny.load(tiny.make_folder(tmp_path, generation={"max_new_tokens": 3, "do_sample": False}))
    assert llm.generate([5, 6])[0].token_ids == llm.generate([5, 6], greedy(3))[0].token_ids


# ---- stream ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [(), ("e",), ("\ufffd",)])
def test_pieces_join_to_the_text(llm: LLM, stop: tuple[str, ...]) -> None:
    for prompt in ("the cat", "日本", [5, 6, 7]):
        for seed in range(4):
            params = SamplingParams(max_tokens=40, temperature=3.0, seed=seed, stop=stop, ignore_eos=True)
            stream = llm.stream(prompt, params)
            pieces = list(stream)
            answer = llm.generate([prompt], params)[0]
            assert all(pieces) and "".join(pieces) == answer.text == stream.output.text
            assert stream.output.finish_reason == answer.finish_reason
            assert not any(s in answer.text for s in stop)
    assert tiny.all_free(llm)


def test_stream_gives_text_before_the_end(llm: LLM) -> None:
    stream = llm.stream(PROMPT, greedy(100))
    assert next(stream) and not stream.output.finished
    stream.close()


def test_closing_early_frees_the_blocks(llm: LLM) -> None:
    stream = llm.stream(PROMPT, greedy(200))
    first = next(stream)
    assert not tiny.all_free(llm)
    stream.close()
    stream.close()
    assert tiny.all_free(llm) and stream.output.finish_reason == "cancelled"
    assert stream.output.text.startswith(first)
    unread = llm.stream(PROMPT, greedy(200))
    unread.close()
    assert tiny.all_free(llm) and unread.output.token_ids == []


def test_a_forgotten_stream_is_ended(llm: LLM) -> None:
    next(llm.stream(PROMPT, greedy(200)))
    gc.collect()
    llm.generate([5], greedy(1))
    assert tiny.all_free(llm)


def test_streams_side_by_side_and_generate_in_between(llm: LLM) -> None:
    """Whichever call steps the engine, each call gets its own complete answer."""
    prompts = [PROMPT, [5, 6], [9] * 20]
    expected = [o.text for o in llm.generate(prompts, [greedy(n) for n in (30, 5, 60)])]
    streams = [llm.stream(p, greedy(n)) for p, n in zip(prompts, (30, 5, 60), strict=True)]
    texts = ["", "", ""]
    texts[0] += next(streams[0])
    middle = llm.generate([[7], [8]], greedy(40))
    assert [len(o.token_ids) for o in middle] == [40, 40]
    for _ in range(100):
        for i, stream in enumerate(streams):
            texts[i] += next(stream, "")
    assert texts == expected and tiny.all_free(llm)


def test_stream_refuses_at_once(llm: LLM) -> None:
    for prompt, params in (("", greedy()), ([5] * 256, greedy()), ([5], greedy(n=2)), ([5], 7)):
        with pytest.raises(UsageError):
            llm.stream(prompt, params)


# ---- logits ---------------------------------------------------------------------------------------


def test_logits_take_the_ids_as_they_are(tmp_path: Path) -> None:
    settings = {"bos_token": "<s>", "add_bos_token": True}
    llm = tiny.load(
        tiny.make_folder(tmp_path, settings=settings, tokenizer=tiny.byte_level_tokenizer(bos=True))
    )
    found = llm.logits([5, 6, 7])
    assert found.shape == (3, tiny.VOCAB_SIZE)
    assert torch.allclose(llm.logits([5])[0], found[0], atol=1e-4), "causal, and no token is added"
    assert found[:, 310:].isfinite().all(), "unmasked"
    assert len(llm.generate("a", greedy(1))[0].prompt_token_ids) == 2, "control: text does get a BOS"


@pytest.mark.parametrize("chunk", [1, 3, 7, 16, 40, 512])
def test_logits_in_chunks(folder: Path, chunk: int) -> None:
    ids = list(range(30, 70))
    whole = tiny.load(folder).logits(ids)
    parts = tiny.load(folder, prefill_chunk=chunk, block_size=4).logits(ids)
    assert torch.allclose(parts, whole, atol=1e-4 * float(whole.abs().max()))


def test_logits_limits(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    for bad in ([], [-1], [tiny.VOCAB_SIZE], [1.0], [True], "text", "", None, 5, [[5]], ["5"]):
        with pytest.raises(UsageError):
            llm.logits(bad)
    assert llm.logits([5] * 256).shape[0] == 256
    with pytest.raises(PromptTooLong):
        llm.logits([5] * 257)
    monkeypatch.setattr("minillm.engine.logits.MAX_LOGITS_BYTES", 10 * 4 * tiny.VOCAB_SIZE)
    assert len(llm.logits([5] * 10)) == 10
    with pytest.raises(UsageError, match="logits would take"):
        llm.logits([5] * 11)
    assert tiny.all_free(llm)


# ---- the fields of an output ----------------------------------------------------------------------


def test_metrics_are_sane(llm: LLM) -> None:
    for output in llm.generate([PROMPT, [5]], greedy(9)):
        m = output.metrics
        assert 0 <= m.queue <= m.ttft <= m.e2e
        assert len(m.itl) == 8 and all(gap > 0 for gap in m.itl)
        assert m.tpot == pytest.approx(sum(m.itl) / 8)
        assert m.ttft + sum(m.itl) <= m.e2e
        assert (m.cached_tokens, m.drafted, m.accepted) == (0, 0, 0)
    single = llm.generate([5], greedy(1))[0].metrics
    assert single.tpot is None and single.itl == []


def test_outputs_of_the_first_completion(llm: LLM) -> None:
    output = llm.generate(PROMPT, greedy(5, n=3, logprobs=2))[0]
    first = output.outputs[0]
    assert len(output.outputs) == 3 and output.prompt_token_ids == PROMPT and output.finished
    assert (output.text, output.token_ids, output.finish_reason, output.logprobs) == (
        first.text, first.token_ids, first.finish_reason, first.logprobs)  # fmt: skip
    assert all(len(row) in (2, 3) for row in output.logprobs)
    assert llm.generate(PROMPT, greedy(2))[0].logprobs is None


def test_an_output_does_not_change_later(llm: LLM) -> None:
    llm.engine.add_request(PROMPT, greedy(9, logprobs=1))
    (early,) = llm.engine.step()
    tokens, text = list(early.token_ids), early.text
    while llm.engine.has_unfinished_requests():
        llm.engine.step()
    assert early.token_ids == tokens and early.text == text and not early.finished
    assert len(early.logprobs) == len(tokens)


def test_envelope(tmp_path: Path, folder: Path) -> None:
    def envelope(where: Path, prompt: Any = (5,), **options: Any) -> dict[str, str]:
        return dict(tiny.load(where, **options).generate(list(prompt), greedy(2))[0].envelope)

    base = envelope(folder)
    assert envelope(folder) == base == envelope(folder, prompt=[9, 9], kv_memory="2MiB", max_num_seqs=3)
    one_bit = tiny.weights(tiny.config())
    one_bit["model.norm.weight"][0] += 1e-6
    others = {
        "weights": envelope(tiny.make_folder(tmp_path / "a", tensors=one_bit)),
        "config": envelope(tiny.make_folder(tmp_path / "b", tiny.config(rope_theta=9999.0))),
        "dtype": envelope(folder, dtype="bfloat16"),
        "block size": envelope(folder, block_size=8),
    }
    kv = [base["kv"], *(e["kv"] for e in others.values())]
    assert len(set(kv)) == len(kv), others.keys()
    tokenizer = tiny.byte_level_tokenizer(bos=True)
    other_text = envelope(tiny.make_folder(tmp_path / "c", tokenizer=tokenizer))
    assert other_text["kv"] == base["kv"] and other_text["execution"] != base["execution"]
    assert envelope(folder, seed=1)["execution"] != base["execution"]
