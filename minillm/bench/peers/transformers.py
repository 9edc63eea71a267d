"""Hugging Face transformers as a peer: `generate`, greedy, with its own cache."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


class Transformers:
    """A model folder in transformers, with the weights in `dtype`."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        import transformers

        self._version: str = transformers.__version__
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    def describe(self) -> dict[str, Any]:
        """Its version."""
        return {"version": self._version}

    def prefill_rate(self, prompt: list[int]) -> float:
        """Prompt tokens per second, first token included."""
        return len(prompt) / self._seconds([prompt], 1)

    def decode_rate(self, prompts: Sequence[list[int]], num_tokens: int) -> float:
        """Tokens per second of all prompts together, without the time of the first token."""
        seconds = self._seconds(prompts, num_tokens + 1) - self._seconds(prompts, 1)
        return len(prompts) * num_tokens / seconds

    @torch.inference_mode()
    def _seconds(self, prompts: Sequence[list[int]], num_tokens: int) -> float:
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
