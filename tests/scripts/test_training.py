"""The training model and the engine's decoder compute the same function; learning rate and data are right."""

import sys
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
def exported(tmp_path):
    """A small training model with random weights, and its exported folder."""
    from tokenizers import Tokenizer, models
    from train.export import export
    from train.model import LanguageModel, Shape

    torch.manual_seed(0)
    model = LanguageModel(Shape(64, 96, 2, 4, 2, head_dim=16, vocab_size=128))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
            parameter.copy_(parameter.bfloat16())  # rounded as by the export
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

    rates = [learning_rate(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 40)
    assert rates[40] == rates[440] == 1.0
    assert all(a >= b for a, b in pairwise(rates[450:]))
    assert 0 < rates[-1] < 0.01


def test_a_source_reads_every_document_once_an_epoch_and_resumes():
    from train.data import Source

    docs = [np.full(5, i, dtype=np.uint16) for i in range(20)]
    source = Source(docs, seed=3, in_pieces=False)
    first = np.concatenate([source.take(6)[:-1] for _ in range(19)])
    assert np.bincount(first).max() == 5
    state = source.epoch, source.position
    expected = [source.take(6) for _ in range(10)]
    again = Source(docs, seed=3, in_pieces=False)
    again.seek(*state)
    assert all(np.array_equal(a, again.take(6)) for a in expected)
