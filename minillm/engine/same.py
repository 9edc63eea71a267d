"""Were two saved answers answers to the same request, of the same engine? If not: what differed first?

    prompt bytes -> prompt token ids -> weights, config, ... -> kernels, ... -> sampling, seed -> answer
    what was asked                      which model             whose sums      what was drawn

The aspects stand in the order in which they take effect. So the first difference is the one to look at; later
ones may follow from it. Three pairs are easily taken for each other, and each is an aspect of its own: the
same text is not the same token ids, the same model name is not the same weights, dtype and rope, and the same
call is not the same serialized prompt.

An aspect that cannot have an effect does not count: the seed of two greedy answers, top_k at temperature 0,
the number of logprobs. The engine's seed does not count either; the seed of the request says what it gave.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from minillm.config import SamplingParams, shown
from minillm.engine.saved import SavedOutput
from minillm.memory.encoding import digest

# Component of the envelope -> its name, and what it means if it differs.
COMPONENTS = {
    "weights": ("weights", "the models have other numbers"),
    "tokenizer": ("tokenizer", "it cuts text into other tokens, or names other special tokens"),
    "chat_templates": ("chat template", "it makes other text of the same messages"),
    "end_of_text": ("ends of text", "other token ids end an answer"),
    "config": ("config", "the models compute other things: shapes, rope, norms or windows"),
    "allowed_config_keys": ("allowed config keys", "other unknown keys of config.json were let through"),
    "dtype": ("dtype", "numbers are rounded in another way"),
    "kv_dtype": ("kv dtype", "keys and values are stored in another way"),
    "quantization": ("quantization", "matrices are stored in another way"),
    "backend": ("backend", "another implementation computed"),
    "device": ("device", "another kind of device computed"),
    "kernels": ("kernels", "sums have another order, or the build was another"),
    "torch": ("torch", "the versions of PyTorch differ"),
    "block_size": ("block layout", "blocks hold another number of tokens"),
    "block_parts": ("parts that write blocks", "other parts of the engine were replaced"),
    "parts": ("other parts", "other parts of the engine were replaced"),
    "speculation": ("speculation", "rejection sampling drew with other drafts"),
    "minillm": ("minillm", "the versions of minillm differ"),
    "sampling_defaults": ("sampling defaults", "generation_config.json gives other parameters"),
}
_IRRELEVANT = ("seed", "logprobs", "deadline", "priority", "n")  # the seed is an aspect of its own
_UNUSED_IF_GREEDY = ("top_k", "top_p", "min_p")
_PARTS = ("block_parts", "parts")
_BY_NAME = "replaced parts are compared by their names only"
_EARLY = ("cancelled", "deadline", "error")


@dataclass(frozen=True)
class Aspect:
    """One thing that two answers have in common, or not. `a`, `b`: short values. `note`: in plain words."""

    name: str
    same: bool
    a: str
    b: str
    note: str = ""


def compare(a: SavedOutput, b: SavedOutput) -> list[Aspect]:
    """All aspects, in the order in which they take effect; the last one is the answer."""
    before = [
        _aspect(
            "prompt bytes", a.prompt_digest, b.prompt_digest, "other text, or ids, went to the tokenizer"
        ),
        _aspect("prompt token ids", a.prompt_token_digest, b.prompt_token_digest, _token_note(a, b)),
        *_envelope(a, b),
        _sampling(a.sampling, b.sampling),
        _seed(a, b),
    ]
    return [*before, _answer(a, b, all(aspect.same for aspect in before))]


def first_difference(aspects: list[Aspect]) -> Aspect | None:
    """The first aspect that differs, or None."""
    return next((aspect for aspect in aspects if not aspect.same), None)


def _aspect(name: str, a: str, b: str, note: str) -> Aspect:
    return Aspect(name, a == b, _short(a), _short(b), "" if a == b else note)


def _short(value: str) -> str:
    """The beginning of a digest; any other value as it is."""
    return value[:12] if len(value) == 64 else value


def _token_note(a: SavedOutput, b: SavedOutput) -> str:
    if a.prompt_digest == b.prompt_digest:
        return "the same text became other tokens"
    return "the model read other tokens"


def _envelope(a: SavedOutput, b: SavedOutput) -> Iterator[Aspect]:
    for key, (name, note) in COMPONENTS.items():
        if key == "weights" and a.model == b.model:
            note = f"the models have other numbers, although both are called {shown(a.model)}"
        compared = _aspect(name, a.components[key], b.components[key], note)
        note = compared.note or (_BY_NAME if _has_replaced(a, key) else "")
        values = [str(each.readable[key]) if key in each.readable else "" for each in (a, b)]
        yield Aspect(name, compared.same, values[0] or compared.a, values[1] or compared.b, note)


def _has_replaced(saved: SavedOutput, component: str) -> bool:
    """Whether the component is a list of replaced parts that is not empty."""
    return component in _PARTS and saved.components[component] != digest({})


def _sampling(a: SamplingParams, b: SamplingParams) -> Aspect:
    first, second = deciding(a), deciding(b)
    names = [name for name in first if name not in second or first[name] != second[name]]
    names += [name for name in second if name not in first]
    shown_a, shown_b = (", ".join(f"{n}={shown(getattr(p, n))}" for n in names) for p in (a, b))
    note = "the draws, or the end of the answer, follow other rules" if names else ""
    return Aspect("sampling", not names, shown_a, shown_b, note)


def deciding(params: SamplingParams) -> dict[str, Any]:
    """The parameters that can change a token. The order of stops has no effect."""
    left_out = {*_IRRELEVANT, *(_UNUSED_IF_GREEDY if params.temperature == 0 else ())}
    values = {name: value for name, value in params.to_dict().items() if name not in left_out}
    return values | {name: frozenset(values[name]) for name in ("stop", "stop_token_ids")}


def _seed(a: SavedOutput, b: SavedOutput) -> Aspect:
    if a.sampling.temperature == b.sampling.temperature == 0:
        return Aspect("seed", True, str(a.seed), str(b.seed), "not used: both answers are greedy")
    return _aspect("seed", str(a.seed), str(b.seed), "other random numbers were drawn")


def _answer(a: SavedOutput, b: SavedOutput, same_before: bool) -> Aspect:
    pairs = zip(a.token_ids, b.token_ids, strict=False)
    equal = min(len(a.token_ids), len(b.token_ids))
    at = next((i for i, (left, right) in enumerate(pairs) if left != right), equal)
    size_a, size_b = (f"{len(each.token_ids)} tokens" for each in (a, b))
    is_same = a.token_ids == b.token_ids
    note = "" if is_same else f"they part at token {at}{_reason(a, b, same_before)}"
    return Aspect("answer token ids", is_same, size_a, size_b, note)


def _reason(a: SavedOutput, b: SavedOutput, same_before: bool) -> str:
    early = [each.finish_reason for each in (a, b) if each.finish_reason in _EARLY]
    if early:
        return f"; an answer ended early ({early[0]})"
    if not same_before:
        return ""
    if any(_has_replaced(a, component) for component in _PARTS):
        return f"; {_BY_NAME}"
    if a.readable["backend"] == "reference":
        return "; the reference backend promises a tolerance only, not the same bits"
    return "; all that decides it was the same: please report it"
