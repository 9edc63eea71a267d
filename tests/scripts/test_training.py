"""The training model and the engine's decoder compute one function; the schedule and the data are sound."""

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from minillm import LLM

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="module", autouse=True)
def scripts_on_path():
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))


@pytest.fixture
def model():
    """A small model with random weights that bfloat16 holds exactly."""
    from train.model import LanguageModel, Shape

    torch.manual_seed(0)
    model = LanguageModel(Shape(64, 96, 2, 4, 2, head_dim=16, vocab_size=128))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
            parameter.copy_(parameter.bfloat16())  # what the export rounds to
    return model.eval()


@pytest.fixture
def exported(model, tmp_path):
    """The model, and its exported folder."""
    from tokenizers import Tokenizer, models
    from train.export import export

    Tokenizer(models.BPE({"<|endoftext|>": 0}, [])).save(str(tmp_path / "tokenizer.json"))
    export(model, tmp_path / "tokenizer.json", tmp_path / "model")
    return model, tmp_path / "model"


def test_training_model_and_decoder_agree(exported):
    model, folder = exported
    ids = torch.randint(0, 128, (50,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(ids[None])[0]
        model.model.layers[1].self_attn.k_proj.weight[0] *= 1.5
        control = model(ids[None])[0]
    tolerance = 2e-4 * expected.abs().max().item()
    found = LLM(folder, dtype="float32").logits(ids.tolist())
    assert (found - expected).abs().max() <= tolerance
    assert (found - control).abs().max() > 10 * tolerance


def test_learning_rate_warms_up_holds_and_decays_to_zero():
    from train.loop import learning_rate

    rates = [learning_rate(step, step / 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 40)
    assert rates[40] == rates[440] == 1.0
    assert all(a >= b for a, b in pairwise(rates[450:]))
    assert 0 < rates[-1] < 0.01


def test_a_source_reads_every_document_once_an_epoch():
    from train.data import Source

    docs = [np.full(5, i, dtype=np.uint16) for i in range(20)]
    source = Source(docs, seed=3, in_pieces=False)
    epochs = [np.concatenate([source.take(6)[:-1] for _ in range(19)]) for _ in range(2)]
    assert [np.bincount(epoch).max() for epoch in epochs] == [5, 5]
    assert not np.array_equal(*epochs)


def test_a_budget_is_what_is_left_until_its_end_and_a_stopped_clock_ends_it():
    from train.clock import Clock

    now = [100.0]
    clock = Clock(200, lambda: now[0])
    now[0] = 140  # the stage before was late
    budget = clock.until(0.6)
    assert budget.done() == 0
    now[0] = 180
    assert budget.done() == pytest.approx(0.5)
    assert clock.until(0.3).done() == 1
    clock.stop()
    assert budget.done() == 1


def test_stories_told_with_a_cache_are_those_told_without(model):
    from train.generated import continue_texts

    openings = [np.array(ids, dtype=np.uint16) for ids in ([0, 5], [0, 7, 9, 11], [0])]
    text = continue_texts(model, openings, 12, torch.zeros(3), seed=0)
    for row, opening in zip(text, openings, strict=True):
        assert row[: len(opening)].tolist() == opening.tolist()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(text[:, :-1])
    chosen = logits.gather(-1, text[:, 1:, None])[..., 0]
    drawn = torch.arange(1, 12) >= torch.tensor([len(o) for o in openings])[:, None]
    # Greedy, but for a rounding of bfloat16 between one token at a time and all at once.
    short = (logits.amax(-1) - chosen)[drawn]
    assert short.max() < 0.05
    other = logits.gather(-1, (text[:, 1:, None] + 1) % 128)[..., 0]
    assert (logits.amax(-1) - other)[drawn].max() > 0.05
    warm = continue_texts(model, openings, 12, torch.full((3,), 5.0), seed=0)
    assert not torch.equal(warm, text)


def test_bytes_of_tokens_are_the_bytes_of_their_text(tmp_path):
    from tokenizers import Tokenizer
    from train.data import token_bytes

    tokenizer = Tokenizer.from_file(str(SCRIPTS.parent / "minillm/zoo/storyteller-1m/tokenizer.json"))
    text = "Once upon a time\n\nthere was a caf\u00e9 \u2013 and a \U0001f43b."
    ids = tokenizer.encode(text).ids
    assert ids[0] == 0
    assert token_bytes(tokenizer)[ids].sum() == len(text.encode())


def test_parts_are_small_join_to_the_model_and_must_be_of_one_save(model, tmp_path, monkeypatch):
    import train.parts as parts

    monkeypatch.setattr(parts, "PART_BYTES", 20_000)
    parts.save_parts(model, tmp_path, "target", "1")
    files = sorted(tmp_path.glob("target-*.safetensors"))
    assert len(files) > 1
    assert max(file.stat().st_size for file in files) < 30_000
    joined = parts.load_parts(tmp_path, "target", model.shape)
    for key, value in model.state_dict().items():
        assert torch.equal(joined.state_dict()[key], value)
    kept = files[0].read_bytes()
    parts.save_parts(model, tmp_path, "target", "2")
    files[0].write_bytes(kept)
    with pytest.raises(ValueError, match="all parts of one target"):
        parts.load_parts(tmp_path, "target", model.shape)
    files[0].unlink()
    with pytest.raises(ValueError, match="all parts of one target"):
        parts.load_parts(tmp_path, "target", model.shape)


class Ticks:
    """A clock of which every look takes one second; it can be told to stop at a look."""

    def __init__(self) -> None:
        self.looks = 0
        self.at: dict[int, Callable[[], None]] = {}

    def __call__(self) -> float:
        self.looks += 1
        self.at.pop(self.looks, lambda: None)()
        return float(self.looks)


@pytest.fixture
def tiny_run(tmp_path, monkeypatch):
    """(run, its time): every stage on tiny models and random documents."""
    import train.generated as generated
    import train.recipe as recipe
    from tokenizers import Tokenizer, models
    from train.clock import Clock
    from train.data import FILES, Corpus
    from train.model import Shape

    for name in ("target", "draft"):
        monkeypatch.setitem(recipe.SHAPES, name, Shape(32, 32, 1, 2, 1, head_dim=16, vocab_size=128))
    monkeypatch.setattr(recipe, "_STORIES", 150)
    monkeypatch.setattr(recipe, "_SAMPLE_LENGTH", 20)
    monkeypatch.setattr(generated, "_LENGTH", 60)
    rng = np.random.default_rng(0)
    docs = [np.append(0, rng.integers(1, 128, 60)).astype(np.uint16) for _ in range(100)]
    corpus = Corpus(dict.fromkeys(FILES, docs), np.ones(128, dtype=np.int64))
    time = Ticks()
    tokenizer = Tokenizer(models.BPE({"<|endoftext|>": 0}, []))
    return recipe.Run(corpus, tokenizer, tmp_path, Clock(300, time), torch.device("cpu"), 1200), time


def test_a_run_trains_every_stage_and_keeps_the_best_target(tiny_run, tmp_path):
    from train.evaluate import bits_per_byte
    from train.parts import load_parts, read_results
    from train.recipe import STAGES

    run, _ = tiny_run
    run.run()
    results = read_results(tmp_path)
    assert list(results["stages"]) == [stage.name for stage in STAGES]
    assert 0 <= results["agreement"] <= 1
    assert len(results["samples"]) == 10
    of_target = ("teacher-1", "teacher-2", "student")
    best = min(results["stages"][name]["best"] for name in of_target)
    shape = run._models["target"].shape
    kept = load_parts(tmp_path, "target", shape)
    assert bits_per_byte(kept, run.corpus.docs["valid"], run.corpus.token_bytes) == pytest.approx(best, 1e-2)
    assert results["bits_per_byte"]["target"] == pytest.approx(best, 1e-2)
    draft = load_parts(tmp_path, "draft", shape)
    assert torch.equal(draft.model.embed_tokens.weight, run._models["polish"].model.embed_tokens.weight)


def test_a_run_that_is_stopped_writes_what_it_has_and_trains_no_more(tiny_run, tmp_path):
    from train.parts import load_parts, read_results

    run, time = tiny_run
    time.at[100] = run.clock.stop  # in the second stage
    run.run()
    results = read_results(tmp_path)
    assert list(results["stages"]) == ["teacher-1", "teacher-2"]
    assert "bits_per_byte" not in results
    load_parts(tmp_path, "target", run._models["target"].shape)
    assert not list(tmp_path.glob("draft-*"))
