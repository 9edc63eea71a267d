"""Which draft belongs to which target: found, checked, loaded.

A drafted token is a number, so both models must mean the same by every number: the whole vocabularies are
compared, by digest. Weights, sizes and the padding of the vocabulary may differ; so may the context, and
sequences longer than the draft's are not drafted for.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from minillm.config import EngineConfig
from minillm.config.files import exists
from minillm.errors import MinillmError, TokenizerError
from minillm.model.families import load_model_config
from minillm.model.loader import LoadedModel, load_model
from minillm.model.locate import find_draft
from minillm.model.weights import Progress
from minillm.text.tokenizer import FILE, Tokenizer

NGRAM = "ngram"


def load_draft(
    target: LoadedModel, config: EngineConfig, progress: Progress | None = None
) -> LoadedModel | None:
    """The draft model that `config.draft_model` names, on the target's device and in its dtype.

    Returns:
        None where no model drafts.

    Raises:
        TokenizerError: its vocabulary is not the target's.
        MinillmError: as for any model; the message says that it is about the draft.
    """
    if config.draft_model is None or config.draft_model == NGRAM:
        return None
    try:
        folder = find_draft(config.draft_model)
        _require_same_vocabulary(folder, target)
        context = min(target.max_model_len, load_model_config(folder).context_limit)
        dtype = str(target.dtype).removeprefix("torch.")
        return load_model(folder, replace(config, dtype=dtype, max_model_len=context), progress=progress)
    except MinillmError as error:
        raise type(error)(f"draft model: {error.message}", error.hint) from None


def _require_same_vocabulary(folder: Path, target: LoadedModel) -> None:
    theirs = (
        Tokenizer(folder).vocabulary_digest
        if exists(folder / FILE)
        else _ids(load_model_config(folder).vocab_size)
    )
    mine = target.tokenizer.vocabulary_digest if target.tokenizer else _ids(target.config.vocab_size)
    if theirs != mine:
        raise TokenizerError(
            f"{folder.name} has another vocabulary than {target.folder.name}",
            'use a draft with the same tokenizer, or draft_model "ngram", which needs none',
        )


def _ids(vocab_size: int) -> str:
    """Stands for the vocabulary of a model without a tokenizer: ids that mean nothing."""
    return f"{vocab_size} ids"
