"""Named guarantees: what an engine promises, what it refuses to promise, and whether the promise is true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from company import WIDE

from minillm import LLM, SamplingParams
from minillm.config import TenantLimits
from minillm.engine.guarantee import MEANINGS
from minillm.errors import GuaranteeError, UsageError
from minillm.ops.sampling import sample

REFERENCE: dict[str, Any] = {"backend": "reference", "prefix_caching": False}
REJECTION: dict[str, Any] = {"backend": "native", "draft_model": "ngram", "draft_verification": "rejection"}
STEADY = {"prefix_caching": False, "adaptive_draft": False}
MINE: dict[str, Any] = {"backend": "native", "parts": {"linear": torch.nn.functional.linear}}


def my_sampler(logits: torch.Tensor, batch: Any) -> torch.Tensor:
    return sample(logits, batch)


# (options, the strongest guarantee they keep)
KEPT = [
    ({"backend": "native"}, "G3"),
    ({"backend": "native", "draft_model": "ngram"}, "G3"),
    ({"backend": "native", "draft_verification": "rejection"}, "G3"),  # without drafts nothing is rejected
    (REFERENCE, "G0"),
    ({"backend": "reference"}, "G4"),
    (REFERENCE | {"draft_model": "ngram"}, "G4"),
    (REFERENCE | {"draft_model": "ngram", "adaptive_draft": False}, "G0"),
    (REFERENCE | {"tenant_limits": {None: TenantLimits(max_blocks=8)}}, "G4"),
    ({"backend": "native", "tenant_limits": {None: TenantLimits(max_blocks=8)}}, "G3"),
    (REJECTION, "G4"),
    (REJECTION | {"prefix_caching": False}, "G4"),
    (REJECTION | STEADY, "G0"),
    (MINE, "G4"),
    ({"backend": "native", "parts": {"sampler": my_sampler}}, "G4"),
]


@pytest.mark.parametrize(("options", "level"), KEPT, ids=[str(i) for i in range(len(KEPT))])
def test_what_is_kept_starts_and_what_is_not_is_refused(
    folder: Path, options: dict[str, Any], level: str
) -> None:
    order = ["G4", "G0", "G1", "G2", "G3"]
    assert tiny.load(folder, **options).engine.guarantee.level == level
    for wanted in order:
        if order.index(wanted) <= order.index(level):
            assert tiny.load(folder, **options, guarantee=wanted).engine.guarantee.level == level
            continue
        with pytest.raises(GuaranteeError, match=rf"guarantee {wanted} .* cannot be kept: .*") as caught:
            tiny.load(folder, **options, guarantee=wanted)
        assert caught.value.hint and "\n" not in str(caught.value) and caught.value.exit_code == 2
        assert isinstance(caught.value, UsageError)


@pytest.mark.parametrize("value", ["g2", "G5", "", 2, True, ["G2"], Path("G2")], ids=repr)
def test_other_names_are_refused(folder: Path, value: Any) -> None:
    with pytest.raises(UsageError, match=r"guarantee=.* is not known"):
        tiny.load(folder, guarantee=value)


def test_an_engine_that_is_refused_leaves_no_record(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(GuaranteeError):
        tiny.load(folder, backend="reference", guarantee="G2", diverge_record=tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_every_guarantee_has_a_meaning() -> None:
    assert list(MEANINGS) == ["G0", "G1", "G2", "G3", "G4"]


# ---- the table is true -------------------------------------------------------------------------------

PROMPTS = [[(i * 7919 + j * 104_729) % 300 for j in range(n)] for i, n in enumerate((5, 64, 130, 37, 2, 90))]
PARAMS = [
    SamplingParams(max_tokens=6, temperature=0.7 * (i % 2), seed=i, ignore_eos=True, logprobs=tiny.VOCAB_SIZE)
    for i in range(len(PROMPTS))
]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny.config(**WIDE)
    return tiny.make_folder(
        tmp_path_factory.mktemp("guarantee") / "m", config, tensors=tiny.weights(config, scale=0.1)
    )


def bits(llm: LLM, at_once: int) -> list[Any]:
    found = []
    pairs = list(zip(PROMPTS, PARAMS, strict=True))
    for start in range(0, len(pairs), at_once):
        group = pairs[start : start + at_once]
        outputs = llm.generate([p for p, _ in group], [s for _, s in group])
        found += [(output.token_ids, output.logprobs) for output in outputs]
    return found


def test_the_reference_keeps_g0(wide: Path) -> None:
    llm = tiny.load(wide, **REFERENCE, kv_memory="64MiB", guarantee="G0")
    first = bits(llm, len(PROMPTS))
    assert (
        bits(llm, len(PROMPTS))
        == first
        == bits(tiny.load(wide, **REFERENCE, kv_memory="64MiB"), len(PROMPTS))
    )


def test_control_the_reference_does_not_keep_g1(wide: Path) -> None:
    llm = tiny.load(wide, **REFERENCE, kv_memory="64MiB")
    assert bits(llm, 1) != bits(llm, len(PROMPTS))


def test_control_the_reference_with_prefix_hits_does_not_keep_g0(wide: Path) -> None:
    llm = tiny.load(wide, backend="reference", kv_memory="64MiB")
    prompts, answers = [prompt[:33] for prompt in PROMPTS if len(prompt) > 33], []
    for _ in range(2):  # the second time one row of each prompt is computed, not 33
        answers.append([llm.generate(prompt, PARAMS[0])[0].logprobs for prompt in prompts])
    assert answers[0] != answers[1]


def test_native_keeps_g0_to_g3(wide: Path) -> None:
    llm = tiny.load(wide, backend="native", kv_memory="64MiB", guarantee="G3")
    first = bits(llm, len(PROMPTS))
    assert first == bits(llm, len(PROMPTS)) == bits(llm, 1)
    other = tiny.load(wide, backend="native", kv_memory="64MiB", prefill_chunk=7, draft_model="ngram")
    assert first == bits(other, 2)
