"""Notices that a running engine's weights or tokenizer were changed. Such an engine is refused from then on.

The prefix cache holds keys and values of the weights the engine was made with, and every output names them in
its envelope. With other weights both would be wrong: cached blocks of the old model would be read by the new
one. So there is no way to replace the weights of an engine; who needs others makes a new `LLM`.

Python lets anybody write to a tensor. Each way is looked for where it is cheap to do so:

    way                                     noticed
    engine.model = other                    at once: `FixedAttributes`
    weight.copy_(other), weight.data = x    in the next step, before its tokens are used
    weight.data.copy_(other)                when a request enters or ends: PyTorch counts no version here,
                                            so a few bytes of each such tensor are compared
    layer.norm = other, tokenizer settings  when a request enters

Requests in flight end with `ModelChanged`. The check is no defence against code that wants to deceive it.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter, is_not
from typing import Any

import torch
from torch import Tensor, nn

from minillm.engine.request import Request
from minillm.errors import ModelChanged, own_copy
from minillm.model.loader import LoadedModel
from minillm.ops.contract import PackedWeight
from minillm.ops.quantized import QuantizedMatrix
from minillm.text.tokenizer import Tokenizer

_SAMPLE = 16  # bytes of each tensor that are compared
_version = attrgetter("_version")


class FixedAttributes:
    """Refuses to replace the attributes named in `_fixed` once they are set."""

    _fixed: frozenset[str] = frozenset()

    def __setattr__(self, name: str, value: object) -> None:
        if name in self._fixed and name in self.__dict__:
            raise ModelChanged(f"{name} of a running engine cannot be replaced")
        super().__setattr__(name, value)


class LiveChange:
    """What the models and the tokenizer were when the engine was made.

    Args:
        models: the target, which has the tokenizer, and the draft model or None.
    """

    def __init__(self, *models: LoadedModel | None) -> None:
        decoders = [model.decoder for model in models if model is not None]
        self._tokenizer = models[0].tokenizer if models and models[0] else None
        self._settings = _settings(self._tokenizer)
        holders = [held for decoder in decoders for held in _holders(decoder)]
        self._holders = [place for place, *_ in holders]
        self._names, self._held = [name for _, name, _ in holders], [value for *_, value in holders]
        found = [pair for value in self._held for pair in _tensors(value)]
        plain = {id(tensor): tensor for tensor, is_packed in found if not is_packed}
        self._tensors = [*plain.values(), *(tensor for tensor, is_packed in found if is_packed)]
        self._places = self._where()
        self._samples = [_sample(tensor) for tensor in plain.values() if tensor.numel()]
        self._content = self._read()

    def check_step(self) -> None:
        """Check that no weight was written to or replaced, as far as PyTorch keeps count.

        Raises:
            ModelChanged: one was.
        """
        if self._where() != self._places:
            raise _changed("weights")

    def check_content(self) -> None:
        """Also compare a few bytes of each weight that can be written to without a count.

        Raises:
            ModelChanged: they differ.
        """
        self.check_step()
        if not torch.equal(self._read(), self._content):
            raise _changed("weights")

    def check(self) -> None:
        """Check everything: content, the modules that hold the weights, and the tokenizer.

        Raises:
            ModelChanged: something has changed.
        """
        self.check_content()
        if any(map(is_not, map(dict.get, self._holders, self._names), self._held)):
            raise _changed("weights")
        if _settings(self._tokenizer) != self._settings:
            raise _changed("tokenizer")

    def check_end(self, request: Request) -> None:
        """If the request has ended, check the content; if that has changed, its answers are errors."""
        if not request.is_finished:
            return
        try:
            self.check_content()
        except ModelChanged as error:
            for sequence in request.sequences:
                if sequence.finish_reason in ("stop", "length"):
                    sequence.finish_reason, sequence.error = "error", own_copy(error)

    def _where(self) -> tuple[list[int], list[int]]:
        return list(map(_version, self._tensors)), list(map(Tensor.data_ptr, self._tensors))

    def _read(self) -> Tensor:
        return torch.cat(self._samples).cpu() if self._samples else torch.empty(0)


def _holders(decoder: nn.Module) -> Iterator[tuple[dict[str, Any], str, object]]:
    """Every (dictionary, key, value) of the decoder that holds weights or modules, or decides arithmetic."""
    for module in decoder.modules():
        for place in (module.__dict__, module._parameters, module._buffers, module._modules):
            for name, value in place.items():
                if isinstance(value, nn.Module) or name in ("ops", "config", "spec") or [*_tensors(value)]:
                    yield place, name, value


def _tensors(value: object) -> Iterator[tuple[Tensor, bool]]:
    """The tensors in an attribute, and whether each is a packed weight.

    A packed weight's `data` is the tensor itself, so every write to it is counted.
    """
    if isinstance(value, PackedWeight):
        yield value.data, True
    elif isinstance(value, QuantizedMatrix):
        for tensor in (value.codes, value.scales, value.minima):
            yield from _tensors(tensor)
    elif isinstance(value, Tensor):
        yield value, False
    elif isinstance(value, tuple):  # a matrix with its bias, the tables of a rope
        for item in value:
            yield from _tensors(item)


def _sample(tensor: Tensor) -> Tensor:
    """A view of a few bytes all over `tensor` [numel]; it reads the tensor's memory as it is later."""
    flat = tensor.detach().view(-1).view(torch.uint8)
    return flat[:: max(1, flat.numel() // _SAMPLE) | 1]  # an odd step meets every byte of a number


def _settings(tokenizer: Tokenizer | None) -> tuple[object, ...]:
    """What can be changed in a tokenizer and decides its ids or the text of a chat."""
    if tokenizer is None:
        return ()
    rust = tokenizer.rust
    return (
        id(rust),
        rust.get_vocab_size(with_added_tokens=True),
        rust.encode_special_tokens,
        rust.truncation,
        rust.padding,
        *(_state(getattr(rust, name)) for name in ("normalizer", "pre_tokenizer", "post_processor")),
        dict(tokenizer.chat_templates),
        dict(tokenizer.special_tokens),
        tokenizer.bos_token_id,
        tokenizer.eos_token_ids,
    )


def _state(component: object) -> object:
    return None if component is None else component.__getstate__()


def _changed(what: str) -> ModelChanged:
    return ModelChanged(f"the {what} of a running engine changed", "make a new LLM for the changed model")
