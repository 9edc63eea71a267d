"""A comparison with another engine: the same prompts, the same number of tokens and threads, in turns.

    transformers    the same weights and dtype, in the same process, on torch's threads
    llama.cpp       the GGUF file that the model was made of, in a process of its own (`llama_cpp.py`)

A machine's bandwidth and clock change from minute to minute, even more on a shared machine. So minillm and
the peer are measured in turns, several times, and the report has the ratio of each pair. With
`--quantization`, minillm without it takes its turn too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.util import find_spec
from typing import Any, Protocol

from minillm.bench.engine import decode_rate, in_turns, make_prompt, prefill_rate
from minillm.bench.peers import llama_cpp, transformers
from minillm.errors import UsageError
from minillm.llm import LLM
from minillm.model.loader import LoadedModel

_PROMPT = 32
Prompt = list[int]


class Peer(Protocol):
    """Another engine."""

    def describe(self) -> dict[str, Any]:
        """Its version, and what else belongs to its figures."""

    def prefill_rate(self, prompt: Prompt) -> float:
        """Prompt tokens per second, first token included."""

    def decode_rate(self, prompts: Sequence[Prompt], num_tokens: int) -> float:
        """Tokens per second of all prompts together, without the time of the first token."""


def require_peer(name: str, model: LoadedModel) -> None:
    """Refuse what cannot be compared, before anything is measured.

    Raises:
        UsageError: llama.cpp is not installed, the model was made of no GGUF file, or it is on a GPU.
    """
    if name != "llama.cpp":
        return
    if not _is_installed(name):
        raise UsageError("llama-cpp-python is not installed", 'pip install "minillm[llama-cpp]"')
    if model.device.type != "cpu":
        raise UsageError("llama.cpp is compared on the CPU", "use --device cpu")
    llama_cpp.gguf_of(model.folder)


def run_peer(
    engines: Mapping[str, LLM], name: str, prompt_len: int, num_tokens: int, runs: int, batches: Sequence[int]
) -> dict[str, Any] | None:
    """Rates of minillm and the peer, in tokens per second, and their ratio; None if it is not installed.

    Args:
        engines: minillm, or more of it that load the same model in other ways: each is compared.

    Raises:
        UsageError, BackendError: the peer cannot run this model, or ends.
    """
    if not _is_installed(name):
        return None
    first, *_ = engines.values()
    with _opened(name, first.engine.model) as peer:
        prompt = make_prompt(first, prompt_len, 0)
        rows = in_turns(
            f"prefill {prompt_len}",
            {own: partial(prefill_rate, llm, prompt_len) for own, llm in engines.items()},
            partial(peer.prefill_rate, prompt),
            runs,
        )
        for batch in batches:
            prompts = [make_prompt(first, _PROMPT, i) for i in range(batch)]
            rows += in_turns(
                f"decode, batch {batch}",
                {own: partial(decode_rate, llm, batch, num_tokens) for own, llm in engines.items()},
                partial(peer.decode_rate, prompts, num_tokens),
                runs,
            )
        return {"name": name, **peer.describe(), "rows": rows}


def _is_installed(name: str) -> bool:
    return find_spec(name.replace(".", "_")) is not None


def _opened(name: str, model: LoadedModel) -> AbstractContextManager[Peer]:
    if name == "llama.cpp":
        return llama_cpp.opened(llama_cpp.gguf_of(model.folder))
    return nullcontext(transformers.Transformers(model.folder, model.dtype))
