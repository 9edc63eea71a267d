"""What a model is, how an engine is set up, how a request is sampled: three frozen records.

`ModelConfig` is the one description of a Transformer that the rest of the package reads. It is
built from a Hugging Face `config.json` by `minillm.model.families`, which knows each family's keys
and remembers where every value came from. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypedDict

from minillm.errors import UsageError

BACKENDS = ("auto", "reference", "native", "simt")
DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda")
VERIFICATIONS = ("coupled", "rejection")
MAX_PATHS = 64  # of a draft tree


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding: one of `default`, `linear`, `dynamic`, `llama3`, `yarn`.

    The fields below `theta` belong to the scaled kinds; `model/rope.py` says what each does.
    """

    kind: str = "default"
    theta: float = 10000.0
    factor: float = 1.0
    original_max_position: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True)
class ModelConfig:
    """A decoder Transformer, family differences resolved into plain fields.

    `layer_windows[i]` is layer i's sliding window in tokens (the token itself included), or None
    for full attention. `sources` maps each field to the config key it came from, or "default".
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeConfig
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    layer_windows: tuple[int | None, ...]
    dtype: str | None = None
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def context_limit(self) -> int:
        """The longest sequence the position embedding is defined for."""
        if self.rope.kind == "yarn":
            return max(self.max_position_embeddings, int(self.rope.factor * self.rope.original_max_position))
        return self.max_position_embeddings

    @property
    def q_size(self) -> int:
        """Columns of the query projection: num_attention_heads * head_dim."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Columns of the key (and of the value) projection: num_key_value_heads * head_dim."""
        return self.num_key_value_heads * self.head_dim

    @property
    def num_parameters(self) -> int:
        """Weights of the model, a tied embedding counted once."""
        h, m = self.hidden_size, self.intermediate_size
        attention = h * (self.q_size + 2 * self.kv_size) + self.q_size * h
        attention += self.qkv_bias * (self.q_size + 2 * self.kv_size) + self.o_bias * h
        attention += self.qk_norm * 2 * self.head_dim
        mlp = 3 * h * m + self.mlp_bias * (2 * m + h)
        embeddings = self.vocab_size * h * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * (attention + mlp + 2 * h) + h

    def kv_bytes_per_token(self, dtype_bytes: int) -> int:
        """Bytes one token occupies in the KV cache, all layers, K and V."""
        return 2 * self.num_hidden_layers * self.kv_size * dtype_bytes


@dataclass(frozen=True)
class EngineConfig:
    """How an engine is set up; every size is per engine, every limit is hard.

    `kv_memory` is in bytes, "256MiB"-like text, or "auto". `prefill_chunk` is the most prompt tokens
    of one request that enter a step, `max_num_batched_tokens` the most tokens of a whole step.

    `draft_model` is a folder, a hub id, "auto" (the draft that ships) or "ngram"; None does not speculate.
    A step drafts at most `num_draft_tokens` tokens for each sequence, fewer where they do not pay unless
    `adaptive_draft` is off. `draft_tree` (3, 1) drafts paths instead, here of two tokens: three candidates
    for the first, one behind each. `draft_verification` is "coupled" or "rejection".
    """

    dtype: str = "auto"
    device: str = "auto"
    backend: str = "auto"
    kv_memory: int | str = "auto"
    block_size: int = 16
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    prefill_chunk: int = 512
    max_queued_requests: int = 1024
    max_queued_tokens: int = 1 << 20
    prefix_caching: bool = True
    draft_model: str | Path | None = None
    num_draft_tokens: int = 5
    draft_verification: str = "coupled"
    draft_tree: Sequence[int] | None = None
    adaptive_draft: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        choices = {"dtype": DTYPES, "device": DEVICES, "backend": BACKENDS}
        choices["draft_verification"] = VERIFICATIONS
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                raise UsageError(f"{name}={value!r} is not known", f"use one of {', '.join(allowed)}")
        for name in (
            "block_size",
            "max_num_seqs",
            "max_num_batched_tokens",
            "prefill_chunk",
            "max_queued_requests",
            "max_queued_tokens",
        ):
            require_int(name, getattr(self, name), minimum=1)
        if self.max_model_len is not None:
            require_int("max_model_len", self.max_model_len, minimum=1)
        require_int("seed", self.seed)
        for name in ("prefix_caching", "adaptive_draft"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} must be True or False, not {getattr(self, name)!r}")
        self._check_draft()

    def _check_draft(self) -> None:
        if self.draft_model is not None and not isinstance(self.draft_model, str | Path):
            raise UsageError(
                f"draft_model must be a folder, a hub id, ngram, auto or None, not {self.draft_model!r}"
            )
        require_int("num_draft_tokens", self.num_draft_tokens, minimum=1)
        tree = self.draft_tree
        if tree is None:
            return
        if not isinstance(tree, list | tuple) or not tree or not all(type(n) is int and n > 0 for n in tree):
            raise UsageError(
                f"draft_tree={tree!r} is not known", "give the number of candidates at each depth, as (3, 1)"
            )
        if self.draft_verification == "rejection":
            raise UsageError("rejection sampling verifies chains, not trees", "leave draft_tree out")
        if math.prod(tree) > MAX_PATHS:
            raise UsageError(f"draft_tree={tree!r} has {math.prod(tree)} paths, more than {MAX_PATHS}")

    @property
    def draft_shape(self) -> tuple[int, ...]:
        """Candidates at each depth of a draft; a chain has one at each."""
        return (1,) * self.num_draft_tokens if self.draft_tree is None else tuple(self.draft_tree)


class EngineOptions(TypedDict, total=False):
    """The options `LLM` takes, with `EngineConfig`'s meaning and defaults.

    The last two belong to features of the public surface that this version does not have yet.
    """

    dtype: str
    device: str
    backend: str
    kv_memory: int | str
    block_size: int
    max_model_len: int | None
    max_num_seqs: int
    max_num_batched_tokens: int
    prefill_chunk: int
    max_queued_requests: int
    max_queued_tokens: int
    prefix_caching: bool
    seed: int
    draft_model: str | Path | None
    num_draft_tokens: int
    draft_verification: str
    draft_tree: Sequence[int] | None
    adaptive_draft: bool
    public_prefixes: Sequence[str]
    tenant_limits: Mapping[str, Any] | None


# Accepted at the values that ask for nothing this version cannot do.
_LATER: Mapping[str, tuple[Any, ...]] = {
    "public_prefixes": ((), []),
    "tenant_limits": (None,),
}


def engine_config(options: EngineOptions) -> EngineConfig:
    """An `EngineConfig` of `LLM`'s keyword options.

    Raises:
        UsageError: an unknown option, or a value out of range.
    """
    for name, value in options.items():
        if name in _LATER and value not in _LATER[name]:
            raise UsageError(f"{name}={value!r} is not part of this version", f"leave {name} out")
        if name not in _LATER and name not in EngineConfig.__dataclass_fields__:
            known = ", ".join(EngineConfig.__dataclass_fields__)
            raise UsageError(f"LLM has no option {name}", f"options: {known}")
    return EngineConfig(**{name: value for name, value in options.items() if name not in _LATER})  # type: ignore[arg-type]


@dataclass(frozen=True)
class SamplingParams:
    """How one request is sampled. The order of the filters is fixed; see `ops/sampling.py`.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1, `min_p` 0 and `repetition_penalty` 1 are off.
    `logprobs=k` returns the k most likely ids beside the sampled one, from the raw logits.
    `deadline` is in seconds from submission; a request past it ends with what it has. Of waiting requests
    the one with the smallest `priority` goes first; waiting counts (`engine/scheduler.py`).
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    n: int = 1
    deadline: float | None = None
    priority: int = 0

    def __post_init__(self) -> None:
        require_int("max_tokens", self.max_tokens, minimum=1)
        require_number("temperature", self.temperature, low=0.0)
        require_int("top_k", self.top_k, minimum=0)
        require_number("top_p", self.top_p, low=0.0, high=1.0, low_open=True)
        require_number("min_p", self.min_p, low=0.0, high=1.0)
        require_number("repetition_penalty", self.repetition_penalty, low=0.0, low_open=True)
        require_int("n", self.n, minimum=1)
        require_int("priority", self.priority)
        if self.seed is not None:
            require_int("seed", self.seed)
        if self.logprobs is not None:
            require_int("logprobs", self.logprobs, minimum=0)
        if self.deadline is not None:
            require_number("deadline", self.deadline, low=0.0, low_open=True)
        if not isinstance(self.ignore_eos, bool):
            raise UsageError(f"ignore_eos must be True or False, not {self.ignore_eos!r}")
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        object.__setattr__(self, "stop_token_ids", _token_ids(self.stop_token_ids))

    def to_dict(self) -> dict[str, Any]:
        """The parameters as plain values, for `--json` and for the envelope."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def _stop_strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else stop
    if not isinstance(strings, list | tuple) or not all(isinstance(s, str) for s in strings):
        raise UsageError(f"stop must be a string or a list of strings, not {stop!r}")
    if "" in strings:
        raise UsageError("stop must not hold an empty string", "leave it out to have none")
    return tuple(strings)


def _token_ids(ids: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(ids, list | tuple):
        raise UsageError(f"stop_token_ids must be a list of integers, not {ids!r}")
    for token_id in ids:
        require_int("stop_token_ids", token_id, minimum=0)
    return tuple(ids)


def require_int(name: str, value: object, minimum: int | None = None) -> int:
    """Return `value` if it is an integer of at least `minimum`; a bool is not an integer here."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{name} must be an integer, not {value!r}")
    if minimum is not None and value < minimum:
        raise UsageError(f"{name} must be at least {minimum}, not {value}")
    return value


def require_number(
    name: str, value: object, low: float, high: float = math.inf, low_open: bool = False
) -> float:
    """Return `value` if it is a finite number in [low, high], or in (low, high] with `low_open`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{name} must be a number, not {value!r}")
    if not math.isfinite(value):
        raise UsageError(f"{name} must be finite, not {value}")
    if value < low or (low_open and value == low) or value > high:
        bounds = f"{'above' if low_open else 'at least'} {low:g}"
        bounds += f" and at most {high:g}" if math.isfinite(high) else ""
        raise UsageError(f"{name} must be {bounds}, not {value}")
    return float(value)
