"""Drafters, the controller, and the drafts and options that an engine refuses."""

from __future__ import annotations

import json
import random
import shutil
from itertools import count
from pathlib import Path
from typing import Any

import drafting
import pytest
import tiny
from clock import Sequence, compute_bound, memory_bound, simulate

from minillm import SamplingParams
from minillm.cli.main import main
from minillm.config import MAX_BRANCHES
from minillm.errors import KVCapacityError, MinillmError, OutOfMemory, TokenizerError, UsageError
from minillm.model import loader
from minillm.speculation.controller import PLAIN_SAMPLES, PROBE, Controller
from minillm.speculation.ngram import NgramIndex

# ---- n-grams --------------------------------------------------------------------------------------


def continuations(text: str, length: int, count: int = 1) -> list[str]:
    index = NgramIndex()
    index.extend([ord(c) for c in text])
    return ["".join(map(chr, path)) for path in index.continuations(length, count)]


def test_what_followed_before_is_drafted() -> None:
    assert continuations("the cat sat on the mat. the c", 6) == ["at sat"]
    assert continuations("abcdefgh", 4) == []
    assert continuations("", 4) == continuations("a", 4) == []


def test_the_longest_and_then_the_latest_match_wins() -> None:
    assert continuations("xabcd1 yabcd2 zabcd", 1) == ["2"]
    assert continuations("xabcd1 cd2 cd3 xabcd", 1) == ["1"], "a match of four tokens wins over one of two"


def test_a_copy_goes_on_with_itself() -> None:
    assert continuations("ab ab ab", 8) == [" ab ab a"]
    assert continuations("aaa", 5) == ["aaaaa"]


def test_branches_begin_with_different_tokens() -> None:
    assert continuations("go1 go2 go2 go3 go", 2, 4) == ["3 ", "2 ", "1 "]


def test_an_index_grows_with_its_text() -> None:
    rng, index, tokens = random.Random(1), NgramIndex(), list[int]()
    for _ in range(300):
        new = [rng.randrange(4) for _ in range(rng.randrange(4))]
        index.extend(new)
        tokens += new
        whole = NgramIndex()
        whole.extend(tokens)
        assert index.continuations(5, 3) == whole.continuations(5, 3)


# ---- the controller -------------------------------------------------------------------------------


@pytest.mark.parametrize("acceptance", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("level", [5e-5, 3e-4])
@pytest.mark.parametrize("first", [0.0, 4e-4])
@pytest.mark.parametrize("count", [1, 8])
def test_it_finds_nearly_the_best_length(acceptance: float, level: float, first: float, count: int) -> None:
    sequences = [Sequence(acceptance) for _ in range(count)]

    def speed(controller: Controller) -> float:
        return simulate(controller, sequences, 2000, memory_bound, lambda branches: level, first=first)[0]

    fixed = [speed(Controller(k, adaptive=False)) for k in range(1, 9)]
    plain = count / memory_bound(count)
    assert speed(Controller(8)) > 0.9 * max(*fixed, plain)


def test_it_turns_itself_off_where_drafts_do_not_pay() -> None:
    """If a row costs as much as a step, or drafts are never accepted, it is at most 2 % slower."""
    for target, acceptance in ((compute_bound, 0.6), (memory_bound, 0.02)):
        sequences = [Sequence(acceptance) for _ in range(4)]
        speed, chosen = simulate(Controller(5), sequences, 4000, target, lambda branches: 3e-4)
        assert speed > 0.98 * 4 / target(4)
        assert sum(map(any, chosen[2000:])) < 10
        assert any(map(any, chosen[1000:])), "it still tries sometimes"


def test_it_comes_back_when_drafts_stand_again() -> None:
    sequence, controller = Sequence(0.0), Controller(5)
    simulate(controller, [sequence], 200, memory_bound, lambda branches: 1e-4)
    sequence.acceptance = 0.95
    _, chosen = simulate(controller, [sequence], 1500, memory_bound, lambda branches: 1e-4)
    assert sum(depth >= 4 for (depth,) in chosen[1000:]) > 400


def test_a_pause_ends_with_the_crowd_it_was_for() -> None:
    """32 sequences are bound by arithmetic, so drafting pauses. One is bound by memory: the pause ends."""

    def both(rows: int) -> float:
        return max(1e-3, 1e-4 * rows)

    crowd, controller = [Sequence(0.8) for _ in range(32)], Controller(5)
    _, chosen = simulate(controller, crowd, 3000, both, lambda branches: 1e-4)
    assert sum(map(any, chosen[1000:])) < 10
    _, chosen = simulate(controller, crowd[:1], 40, both, lambda branches: 1e-4)
    assert sum(depth > 2 for (depth,) in chosen) > 30


def test_who_is_seldom_right_gets_shorter_drafts() -> None:
    sequences = [Sequence(0.95), Sequence(0.95), Sequence(0.05)]
    _, chosen = simulate(Controller(6), sequences, 600, memory_bound, lambda branches: 1e-5)
    mean = [sum(depths[i] for depths in chosen[300:]) / 300 for i in range(3)]
    assert mean[0] > 4 and mean[1] > 4 and mean[2] < 2


def test_it_times_steps_without_drafts_before_it_judges() -> None:
    controller, sequence = Controller(5), Sequence(0.9)
    _, chosen = simulate(controller, [sequence], 400, memory_bound, lambda branches: 1e-5)
    assert chosen[:PLAIN_SAMPLES] == [[0]] * PLAIN_SAMPLES and chosen[PLAIN_SAMPLES] == [5]
    assert sum(depth == 0 for (depth,) in chosen) < 10


def test_without_adaption_every_draft_is_as_long_as_it_may_be() -> None:
    controller = Controller(3, adaptive=False)
    _, chosen = simulate(controller, [Sequence(0.0)], 50, compute_bound, lambda branches: 1.0)
    assert chosen == [[3]] * 50


def test_one_disturbed_measurement_changes_little() -> None:
    """One slow measurement, because the machine was busy, does not stop drafting."""
    controller, sequence = Controller(5), Sequence(0.9)
    simulate(controller, [sequence], 100, memory_bound, lambda branches: 5e-5)
    controller.record_target(6, 1.0)
    _, chosen = simulate(controller, [sequence], 20, memory_bound, lambda branches: 5e-5)
    assert all(depth > PROBE for (depth,) in chosen)


@pytest.mark.parametrize("slow", [1.0, 1.3, 3.0])
def test_a_bad_moment_at_the_start_does_not_make_worthless_drafts_look_good(slow: float) -> None:
    """The first plain steps are measured too slow; drafts that are never accepted must still not win."""
    calls = count()

    def target(rows: int) -> float:
        return memory_bound(rows) * (slow if next(calls) < PLAIN_SAMPLES else 1.0)

    _, chosen = simulate(Controller(6), [Sequence(0.0)], 300, target, lambda branches: 2e-5)
    assert sum(depth > 0 for (depth,) in chosen) < 30


# ---- the engine with the controller ---------------------------------------------------------------


def test_outputs_do_not_depend_on_the_controller(tmp_path: Path) -> None:
    target, draft = drafting.make_pair(tmp_path)
    params = drafting.mixed_params(21, 40, logprobs=4)
    prompts = [[5 + i, 9, 5 + i, 9] for i in range(21)]
    known = drafting.load(target).generate(prompts, params)
    for more in ({"draft_model": draft}, {"draft_model": "ngram"}, {"parts": drafting.randomly()}):
        llm = drafting.load(target, adaptive_draft=True, **more)
        assert drafting.differing(llm.generate(prompts, params), known) == []
        assert tiny.all_free(llm)


# ---- options and pairs ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_draft_tokens": 0}, "at least 1"),
        ({"num_draft_tokens": -2}, "at least 1"),
        ({"num_draft_tokens": 2.5}, "integer"),
        ({"draft_model": "ngram", "num_draft_tokens": 5000}, "do not fit a context of 256"),
        ({"draft_model": 7}, "draft_model"),
        ({"draft_verification": "hope"}, "coupled, rejection"),
        ({"adaptive_draft": 1}, "True or False"),
        ({"draft_tree": ()}, "candidates at each depth"),
        ({"draft_tree": (2, 0)}, "candidates at each depth"),
        ({"draft_tree": "2"}, "candidates at each depth"),
        ({"draft_tree": (MAX_BRANCHES, 2)}, "branches"),
        ({"draft_tree": (2, 2), "draft_verification": "rejection"}, "chains"),
    ],
    ids=str,
)
def test_bad_options(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        tiny.load(folder, **options)
    assert caught.value.exit_code == 2


def test_a_draft_with_another_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    """Also if only one word of the vocabulary or one added token differs."""
    for i, change in enumerate((_rename_a_token, _add_a_token)):
        other = Path(shutil.copytree(folder, tmp_path / str(i)))
        file = other / "tokenizer.json"
        file.write_text(json.dumps(change(json.loads(file.read_text()))))
        with pytest.raises(TokenizerError, match=r"draft model: .* not have the same vocabulary") as caught:
            tiny.load(folder, draft_model=other)
        assert caught.value.exit_code == 6
    tiny.load(folder, draft_model=folder)


def _rename_a_token(settings: dict[str, Any]) -> dict[str, Any]:
    vocab = settings["model"]["vocab"]
    word = max(vocab, key=vocab.get)
    vocab["zebra"] = vocab.pop(word)
    settings["model"]["merges"] = [
        m for m in settings["model"]["merges"] if "".join(m).replace(" ", "") != word
    ]
    return settings


def _add_a_token(settings: dict[str, Any]) -> dict[str, Any]:
    extra = settings["added_tokens"][0] | {"id": 310, "content": "<extra>"}
    settings["added_tokens"].append(extra)
    return settings


def test_a_draft_without_a_tokenizer_needs_a_target_without_one(folder: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(folder, tmp_path / "bare"))
    (bare / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError):
        tiny.load(folder, draft_model=bare)
    with pytest.raises(TokenizerError):
        tiny.load(bare, draft_model=folder)
    output = tiny.load(bare, draft_model=bare, adaptive_draft=False).generate(
        [5, 6, 7], SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True)
    )[0]
    assert output.metrics.accepted == output.metrics.drafted > 0


def test_a_missing_draft(folder: Path) -> None:
    with pytest.raises(MinillmError, match="draft model: there is no model folder") as caught:
        tiny.load(folder, draft_model="no-such-draft")
    assert caught.value.exit_code == 3


def test_a_draft_larger_than_memory(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights do not fit; or they fit, but with its keys and values no block fits the budget."""
    large = tiny.make_folder(tmp_path / "large", tiny.config(intermediate_size=4096))
    needed = 4 * loader.load_model_config(large).num_parameters
    with monkeypatch.context() as patch:
        patch.setattr("minillm.model.memory.free_memory", lambda device: needed - 1)
        with pytest.raises(OutOfMemory, match="draft model: the weights and rope tables need") as caught:
            tiny.load(folder, draft_model=large)
        assert caught.value.exit_code == 7
    one = tiny.blocks(1)
    tiny.load(folder, kv_memory=one)
    with pytest.raises(KVCapacityError):
        tiny.load(folder, kv_memory=one, draft_model=large)


def test_draft_keys_are_part_of_the_budget(folder: Path) -> None:
    plain, pair = tiny.load(folder), tiny.load(folder, draft_model=folder)
    assert pair.engine.pool.num_blocks == plain.engine.pool.num_blocks // 2
    assert sum(t.nbytes for t in drafting.all_caches(pair)) <= 1 << 20


def test_the_envelope_names_the_draft_only_where_it_matters(folder: Path) -> None:
    def execution(**options: Any) -> str:
        return tiny.load(folder, **options).engine.envelope["execution"]

    assert execution(draft_model="ngram") == execution()
    rejecting = execution(draft_model="ngram", draft_verification="rejection")
    assert rejecting != execution() and rejecting != execution(
        draft_model=folder, draft_verification="rejection"
    )


@pytest.mark.parametrize(
    ("args", "code", "word"),
    [
        (["--draft-model", "nothing-here"], 3, "draft model"),
        (["--draft-model", "auto"], 6, "vocabulary"),
        (["--draft-model", "ngram", "--num-draft-tokens", "0"], 2, "at least 1"),
        (["--draft-model", "ngram", "--num-draft-tokens", "9999"], 2, "context"),
        (["--num-draft-tokens", "3"], 2, "--draft-model"),
    ],
)
def test_bad_drafts_on_the_command_line(
    folder: Path, capsys: pytest.CaptureFixture[str], args: list[str], code: int, word: str
) -> None:
    assert main(["generate", "-p", "the cat", "--model", str(folder), *args]) == code
    captured = capsys.readouterr()
    assert captured.out == "" and word in captured.err and captured.err.count("\n") == 1


def test_generate_with_a_draft_prints_the_same_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for more in ([], ["--draft-model", "ngram"], ["--draft-model", str(folder), "--num-draft-tokens", "3"]):
        args = ["generate", "-p", "the cat sat", "-n", "40", "--temperature", "0", "--model", str(folder)]
        assert main([*args, *more]) == 0
        captured = capsys.readouterr()
        texts.append(captured.out)
        assert ("drafted stood" in captured.err) <= bool(more)
    assert texts[0] == texts[1] == texts[2]
