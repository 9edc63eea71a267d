"""Texts to calibrate on and to measure with: windows of token ids of one length.

    a file      read, encoded, cut into windows that lie evenly over the text
    no file     written by the model itself: sampled at temperature 1 from the beginning of a text on

What a model writes itself has the distribution that its own inputs will have, whatever it was trained on, and
needs no data (Williams & Aletras, "Self-calibration", arXiv 2410.17170). As a text to measure with it has one
more property: the ratio of two perplexities is then exp of the Kullback-Leibler divergence. It says nothing
about how good the model is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minillm.config import ModelConfig
from minillm.config.files import TOKENIZER_LIMIT, read_file
from minillm.errors import UsageError, WeightsError
from minillm.model.decoder import Decoder
from minillm.model.loader import LoadedModel
from minillm.ops.contract import AttentionMetadata, LayerCache

SELF = "self"
LENGTH = 512  # tokens of a window, or the model's context where that is shorter
_CALIBRATION, _EVALUATION = 32, 16  # windows, at most
_BLOCK = 16  # tokens of a cache block while the model writes


@dataclass(frozen=True, eq=False)
class Windows:
    """`ids`: int64 [num_windows, length]. `source`: what the text is, for people."""

    ids: Tensor
    source: str

    @property
    def num_tokens(self) -> int:
        """Tokens in all windows."""
        return self.ids.numel()

    def metadata(self) -> AttentionMetadata:
        """A step that prefills all windows, each in a cache block of its own."""
        count, length = self.ids.shape
        return AttentionMetadata(
            positions=torch.arange(length).repeat(count),
            slot_mapping=torch.arange(count * length),
            block_table=torch.arange(count, dtype=torch.int32).unsqueeze(1),
            query_start=torch.arange(0, count * length + 1, length, dtype=torch.int32),
            kv_len=torch.full((count,), length, dtype=torch.int32),
        )

    def cache(self, config: ModelConfig) -> LayerCache:
        """An empty float32 cache of one layer for such a step."""
        shape = (*self.ids.shape, config.num_key_value_heads, config.head_dim)
        return LayerCache(torch.empty(shape), torch.empty(shape))


@dataclass(frozen=True)
class Texts:
    """Where texts come from: a file, `SELF`, or None.

    calibrate   None: no calibration
    evaluate    None: the last fifth of the file to calibrate on, or else `SELF`
    """

    calibrate: str | None = None
    evaluate: str | None = None

    def windows(self, model: LoadedModel) -> tuple[Windows | None, Windows]:
        """The windows to calibrate on, and those to measure with.

        Raises:
            UsageError: a text is too short, or not UTF-8.
            UnreadableFile, TokenizerError: a file cannot be read, or the model has no tokenizer for it.
        """
        length = _length(model)
        if self.calibrate in (None, SELF):
            calibration = None if self.calibrate is None else _written(model, _CALIBRATION, seed=0)
            return calibration, self._evaluation(model)
        ids = _read(model, str(self.calibrate))
        whole = len(ids) if self.evaluate else len(ids) * 4 // 5
        calibration = cut(ids[:whole], _CALIBRATION, length, str(self.calibrate))
        if self.evaluate:
            return calibration, self._evaluation(model)
        return calibration, cut(ids[whole:], _EVALUATION, length, f"the last fifth of {self.calibrate}")

    def _evaluation(self, model: LoadedModel) -> Windows:
        if self.evaluate in (None, SELF):
            return _written(model, _EVALUATION, seed=1)
        ids = _read(model, str(self.evaluate))
        return cut(ids, _EVALUATION, _length(model), str(self.evaluate))


def _length(model: LoadedModel) -> int:
    """Tokens of a window.

    Raises:
        UsageError: one token, after which nothing can be predicted.
    """
    length = min(LENGTH, model.max_model_len)
    if length < 2:
        raise UsageError("the model's context is one token: it predicts nothing", "take another model")
    return length


def _read(model: LoadedModel, path: str) -> list[int]:
    """The token ids of a file."""
    try:
        text = read_file(Path(path), TOKENIZER_LIMIT).decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8: {error.reason}", "give a plain text") from None
    if not text:
        raise UsageError(f"{path} is empty", "give a longer text")
    return model.token_ids(text)


def _written(model: LoadedModel, count: int, seed: int) -> Windows:
    tokenizer, config = model.tokenizer, model.config
    first = tokenizer.bos_token_id if tokenizer else config.bos_token_id
    if first is not None and first >= model.num_token_ids:
        first = None  # a config may name an id that the model does not have
    return written_by(model.decoder, count, _length(model), first, model.num_token_ids, seed)


def cut(ids: Sequence[int], most: int, length: int, source: str) -> Windows:
    """At most `most` windows of `length` tokens, evenly over `ids`.

    Raises:
        UsageError: `ids` are less than one window.
    """
    whole = len(ids) // length
    if not whole:
        raise UsageError(
            f"the text of {source} is too short: {len(ids)} tokens, a window has {length}",
            "give a longer text",
        )
    count = min(whole, most)
    starts = [i * whole // count * length for i in range(count)]
    return Windows(torch.tensor([list(ids[s : s + length]) for s in starts]), source)


@torch.no_grad()
def written_by(
    decoder: Decoder, count: int, length: int, first: int | None, num_token_ids: int, seed: int
) -> Windows:
    """`count` windows that the model samples at temperature 1.

    Args:
        first: the token that begins a text; None: a random one for each window.
        num_token_ids: ids below this are sampled.
    """
    generator = torch.Generator().manual_seed(seed)
    config, rows = decoder.config, torch.arange(count)
    blocks = -(-length // _BLOCK)  # of a window: a step reads those that it has filled, and no others
    shape = (count * blocks, _BLOCK, config.num_key_value_heads, config.head_dim)
    k_cache, v_cache = ([torch.zeros(shape) for _ in config.layers] for _ in "kv")
    ids = torch.empty(count, length, dtype=torch.long)
    random = torch.randint(num_token_ids, (count,), generator=generator)
    ids[:, 0] = random if first is None else first
    for position in range(length - 1):
        meta = AttentionMetadata(
            positions=torch.full((count,), position),
            slot_mapping=rows * blocks * _BLOCK + position,
            block_table=torch.arange(count * blocks, dtype=torch.int32).view(count, blocks),
            query_start=torch.arange(count + 1, dtype=torch.int32),
            kv_len=torch.full((count,), position + 1, dtype=torch.int32),
        )
        hidden = decoder.forward(ids[:, position], k_cache, v_cache, meta)
        logits = require_finite(decoder.logits(hidden)[:, :num_token_ids].float())
        chances = logits.softmax(-1)
        ids[:, position + 1] = torch.multinomial(chances, 1, generator=generator)[:, 0]
    return Windows(ids, "written by the model itself")


def require_finite(logits: Tensor) -> Tensor:
    """Return `logits`.

    Raises:
        WeightsError: one is NaN or infinite, so nothing can be measured.
    """
    if not torch.isfinite(logits).all():
        raise WeightsError(
            "the model's logits are NaN or infinite", "its weights are damaged: check the checkpoint"
        )
    return logits
