"""Contract C2: with the native kernels a token's logits have the same bits in any batch.

Every comparison uses `torch.equal` on the log-probabilities of the whole vocabulary: equal tokens of a small
model prove almost nothing. The model is wide enough, and its prompts are long enough, for several strips of
columns, several tiles of rows and several tiles of keys. The control is the reference backend: its order of
summation depends on the number of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from company import WIDE
from torch import Tensor

from minillm import LLM, SamplingParams
from minillm.config import EngineConfig
from minillm.memory.kv_cache import KVCache
from minillm.model.loader import load_model
from minillm.ops.cpu import CpuOps
from minillm.worker.runner import ModelRunner
from minillm.worker.step import SequenceRows

LENGTHS = [1, 5, 16, 63, 64, 65, 130, 37, 12, 2, 200, 33, 90]
PROMPTS = [[(i * 7919 + j * 104_729) % 300 for j in range(length)] for i, length in enumerate(LENGTHS)]
GREEDY = SamplingParams(max_tokens=5, temperature=0.0, ignore_eos=True, logprobs=tiny.VOCAB_SIZE)
SAMPLED = SamplingParams(
    max_tokens=5, temperature=1.5, top_p=0.95, seed=7, ignore_eos=True, logprobs=tiny.VOCAB_SIZE
)
SHORT = "float32 in 16 bits"  # computed in float32 from a bfloat16 checkpoint whose matrices stay in bfloat16
DTYPES = ["float32", SHORT, "bfloat16"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("invariance")
    llama = tiny.config(**WIDE)
    mistral = tiny.mistral_config(window=40, **WIDE)
    made = {}
    for name, cfg in (("llama", llama), ("mistral", mistral)):
        tensors = tiny.weights(cfg, scale=0.1)
        made[name] = tiny.make_folder(base / name, cfg, tensors=tensors)
        tiny.make_folder(base / name / "short", cfg, tensors={k: t.bfloat16() for k, t in tensors.items()})
    return made


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def stored(folder: Path, dtype: str) -> tuple[Path, str]:
    """The folder and the `dtype` option for one of `DTYPES`."""
    return (folder / "short", "float32") if dtype == SHORT else (folder, dtype)


def load(folder: Path, dtype: str, **options: Any) -> LLM:
    folder, dtype = stored(folder, dtype)
    return tiny.load(folder, **({"backend": "native", "kv_memory": "64MiB", "dtype": dtype} | options))


def answers(llm: LLM, prompts: list[list[int]], params: SamplingParams) -> list[tuple[list[int], Tensor]]:
    """For each prompt: its tokens and their log-probabilities [tokens, vocab_size], sorted by token id."""
    found = []
    for output in llm.generate(prompts, params):
        assert output.logprobs is not None
        rows = [[value for _, value in sorted(row.items())] for row in output.logprobs]
        found.append((output.token_ids, torch.tensor(rows)))
    return found


def differing(a: list[tuple[list[int], Tensor]], b: list[tuple[list[int], Tensor]]) -> list[int]:
    """The prompts whose tokens or log-probabilities differ in any bit."""
    pairs = zip(a, b, strict=True)
    return [i for i, (x, y) in enumerate(pairs) if x[0] != y[0] or not torch.equal(x[1], y[1])]


def alone(llm: LLM, params: SamplingParams) -> list[tuple[list[int], Tensor]]:
    return [answers(llm, [prompt], params)[0] for prompt in PROMPTS]


COMPANY = {
    "in one batch": {},
    "in chunks of 7": {"prefill_chunk": 7},
    "in chunks of 1": {"prefill_chunk": 1},
    "ragged": {"prefill_chunk": 50, "max_num_batched_tokens": 61},
    "three at a time": {"max_num_seqs": 3},
    "in blocks of 5": {"block_size": 5},
}


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", ["llama", "mistral"])
def test_alone_or_in_company(
    folders: dict[str, Path], cpu_isa: str, model: str, dtype: str, params: SamplingParams
) -> None:
    expected = alone(load(folders[model], dtype), params)
    for name, options in COMPANY.items():
        found = answers(load(folders[model], dtype, **options), PROMPTS, params)
        assert differing(expected, found) == [], name


@pytest.mark.parametrize("dtype", DTYPES)
def test_position_in_the_batch(folders: dict[str, Path], cpu_isa: str, dtype: str) -> None:
    llm = load(folders["llama"], dtype)
    expected = answers(llm, PROMPTS, SAMPLED)
    assert differing(expected[::-1], answers(llm, PROMPTS[::-1], SAMPLED)) == []
    for i in (1, 5):
        copies = [PROMPTS[i], PROMPTS[10], *[PROMPTS[i]] * 13]
        found = answers(llm, copies, SAMPLED)
        assert differing([expected[i]] * 14, [found[0], *found[2:]]) == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_number_of_threads(folders: dict[str, Path], cpu_isa: str, dtype: str, threads: None) -> None:
    llm = load(folders["llama"], dtype)
    torch.set_num_threads(1)
    expected = answers(llm, PROMPTS, SAMPLED)
    for count in (2, 3, 7):
        torch.set_num_threads(count)
        assert torch.get_num_threads() == count
        assert differing(expected, answers(llm, PROMPTS, SAMPLED)) == [], f"{count} threads"
        assert differing(expected, alone(llm, SAMPLED)) == [], f"{count} threads, alone"


@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_of_one_prompt(folders: dict[str, Path], cpu_isa: str, dtype: str) -> None:
    """Sample 0 is the same with n=1 and with forks. Greedy samples are all the same."""
    llm = load(folders["llama"], dtype)
    three = SamplingParams(**(GREEDY.to_dict() | {"n": 3}))
    output = llm.generate(PROMPTS[6], three)[0]
    own = llm.generate(PROMPTS[6], GREEDY)[0]
    assert [c.logprobs for c in output.outputs] == [own.logprobs] * 3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", ["llama", "mistral"])
def test_decoded_or_prefilled(folders: dict[str, Path], cpu_isa: str, model: str, dtype: str) -> None:
    """The logits of a token have the same bits in a decode step and inside a prompt."""
    seen: list[Tensor] = []

    def sampler(logits: Tensor, batch: Any) -> Tensor:
        seen.append(logits[0].float())
        return logits.argmax(-1)

    llm = load(folders[model], dtype, parts={"sampler": sampler})
    output = llm.generate(PROMPTS[6], SamplingParams(max_tokens=20, ignore_eos=True))[0]
    whole = llm.logits([*PROMPTS[6], *output.token_ids])
    assert torch.equal(torch.stack(seen), whole[len(PROMPTS[6]) - 1 : -1])


class OneByOne:
    """Native ops without the fused call: the decoder loops over its layers."""

    name = "native, op by op"

    def __init__(self) -> None:
        self.inner, self.calls = CpuOps(), 0

    def __getattr__(self, op: str) -> Any:
        self.calls += op == "paged_attention"
        return getattr(self.inner, op)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", ["llama", "mistral"])
def test_layers_in_one_call_or_op_by_op(
    folders: dict[str, Path], cpu_isa: str, model: str, dtype: str
) -> None:
    results, watched = [], OneByOne()
    folder, asked = stored(folders[model], dtype)
    for ops in (CpuOps(), watched):
        loaded = load_model(folder, EngineConfig(dtype=asked, device="cpu"), ops)
        kept = {m.data.dtype for m in loaded.decoder.matrices}
        assert kept == {torch.float32 if dtype == "float32" else torch.bfloat16}
        cache = KVCache.allocate(loaded.config, 20, 16, loaded.dtype, loaded.device)
        runner = ModelRunner(loaded.decoder, cache, 16)
        first = runner.forward(
            [SequenceRows(PROMPTS[6], 0, range(9)), SequenceRows(PROMPTS[3], 0, range(9, 13))]
        )
        second = runner.forward([SequenceRows([5], 130, range(9)), SequenceRows([6, 7], 63, range(9, 14))])
        results.append(torch.cat([first, second]))
    assert watched.calls == 2 * loaded.config.num_hidden_layers
    assert torch.equal(*results)


def test_control_the_reference_differs(folders: dict[str, Path]) -> None:
    """Without row-invariant kernels the same comparison fails for most prompts, in float32."""
    llm = load(folders["llama"], "float32", backend="reference")
    different = differing(alone(llm, GREEDY), answers(llm, PROMPTS, GREEDY))
    assert len(different) > len(PROMPTS) // 2
