"""A comparison with another engine: the same weights, in the same process, measured in turns.

A machine's bandwidth and clock change from minute to minute, even more on a shared machine. So minillm and
the peer are measured in turns, several times, and the report has the ratio of each pair.
"""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from minillm.bench.engine import decode_rate, in_turns, make_prompt, prefill_rate
from minillm.llm import LLM

PEERS = ("transformers",)
_PROMPT = 32


def run_peer(
    llm: LLM, name: str, prompt_len: int, num_tokens: int, runs: int, batches: tuple[int, ...]
) -> dict[str, Any] | None:
    """Rates of both, in tokens per second, and their ratio; None if the peer is not installed."""
    if find_spec(name) is None:
        return None
    peer = Transformers(llm.engine.model.folder, llm.engine.model.dtype)
    rows = [
        in_turns(
            f"prefill {prompt_len}",
            lambda: prefill_rate(llm, prompt_len),
            lambda: peer.prefill_rate(make_prompt(llm, prompt_len, 0)),
            runs,
        )
    ]
    for batch in batches:
        prompts = [make_prompt(llm, _PROMPT, i) for i in range(batch)]
        rows.append(
            in_turns(
                f"decode, batch {batch}",
                lambda batch=batch: decode_rate(llm, batch, num_tokens),  # type: ignore[misc]
                lambda prompts=prompts: peer.decode_rate(prompts, num_tokens),  # type: ignore[misc]
                runs,
            )
        )
    return {"name": name, "version": peer.version, "rows": rows}


class Transformers:
    """Hugging Face transformers' `generate`, greedy, with its own cache."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        import transformers

        self.version: str = transformers.__version__
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    def prefill_rate(self, prompt: list[int]) -> float:
        """Prompt tokens per second, first token included."""
        return len(prompt) / self._seconds([prompt], 1)

    def decode_rate(self, prompts: list[list[int]], num_tokens: int) -> float:
        """Tokens per second of all prompts together, without the time of the first token."""
        seconds = self._seconds(prompts, num_tokens + 1) - self._seconds(prompts, 1)
        return len(prompts) * num_tokens / seconds

    @torch.inference_mode()
    def _seconds(self, prompts: list[list[int]], num_tokens: int) -> float:
        ids = torch.tensor(prompts)
        start = time.perf_counter()
        self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        return time.perf_counter() - start
