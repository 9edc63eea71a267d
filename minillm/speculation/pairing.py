"""Finds, checks and loads the draft model of a target model.

Both models must give every token id the same meaning, so their whole vocabularies are compared, by digest.
Weights, sizes and the padding of the vocabulary may differ. The context lengths may differ too: a sequence
longer than the draft model's context gets no draft.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

from minillm.config import Dtype, EngineConfig, ModelConfig
from minillm.config.files import exists
from minillm.errors import MinillmError, TokenizerError
from minillm.model.families import load_model_config
from minillm.model.loader import LoadedModel, load_model
from minillm.model.locate import find_draft
from minillm.model.rope import short_length
from minillm.model.weights import Progress
from minillm.text.tokenizer import FILE, Tokenizer

NGRAM = "ngram"


def load_draft(
    target: LoadedModel, config: EngineConfig, progress: Progress | None = None
) -> LoadedModel | None:
    """Load the draft model that `config.draft_model` names, on the target's device and in its dtype.

    Returns:
        The model, or None if `config.draft_model` is None or "ngram".

    Raises:
        TokenizerError: its vocabulary is not the target's.
        MinillmError: as for any model; the message begins with "draft model".
    """
    if config.draft_model is None or config.draft_model == NGRAM:
        return None
    try:
        folder = find_draft(config.draft_model)
        draft = load_model_config(folder, config.allow_config_keys)
        _require_same_vocabulary(folder, draft.vocab_size, target)
        context = _context(draft, target)
        dtype = cast(Dtype, str(target.dtype).removeprefix("torch."))
        options = replace(config, dtype=dtype, max_model_len=context, quantization=None)
        return load_model(folder, options, progress=progress)
    except MinillmError as error:
        raise type(error)(f"draft model: {error.message}", error.hint) from None


def _context(draft: ModelConfig, target: LoadedModel) -> int:
    """The draft model's context length. A draft with longrope drafts for long sequences only if the target,
    with the same original length, decides which sequences are long."""
    context = min(target.max_model_len, draft.context_limit)
    short = short_length(draft, context)
    return context if short in (None, target.short_length) else short


def _require_same_vocabulary(folder: Path, vocab_size: int, target: LoadedModel) -> None:
    theirs = Tokenizer(folder).vocabulary_digest if exists(folder / FILE) else _ids(vocab_size)
    mine = target.tokenizer.vocabulary_digest if target.tokenizer else _ids(target.config.vocab_size)
    if theirs != mine:
        raise TokenizerError(
            f"{folder.name} does not have the same vocabulary as {target.folder.name}",
            'use a draft with the same tokenizer, or draft_model "ngram", which needs none',
        )


def _ids(vocab_size: int) -> str:
    """The vocabulary of a model without a tokenizer: only its size is known."""
    return f"{vocab_size} ids"
