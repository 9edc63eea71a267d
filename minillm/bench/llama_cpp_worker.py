"""The process that runs llama.cpp: a GGUF file and a number of threads, then a line in, a line out.

    python -m minillm.bench.llama_cpp_worker FILE THREADS

A batch goes through llama.cpp's own batched decode: one `llama_batch` a step, with a token of each sequence.
All else is as llama.cpp has it by default: float16 keys and values, flash attention where it chooses so,
weights repacked for this processor. The next token is the largest logit, found by NumPy: llama.cpp's own
greedy sampler first copies all logits.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy

_CELLS = 256  # llama.cpp rounds the cells of a sequence up to this


class Worker:
    """A model, and the context of the last shape of work."""

    def __init__(self, path: str, threads: int) -> None:
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise SystemExit("it cannot load the file")
        self._threads = threads
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._shape: tuple[int, int] | None = None
        self._context: Any = None

    def describe(self) -> dict[str, Any]:
        """What belongs to the figures."""
        name = ctypes.create_string_buffer(128)
        llama_cpp.llama_model_desc(self._model, name, len(name))
        return {
            "version": llama_cpp.__version__,
            "model": name.value.decode(),
            "bytes": llama_cpp.llama_model_size(self._model),
            "threads": self._threads,
            "system": llama_cpp.llama_print_system_info().decode(),
        }

    def measure(self, prompts: Sequence[Sequence[int]], tokens: int) -> dict[str, float]:
        """Seconds until each prompt has its first token, and seconds of the other `tokens` - 1."""
        context = self._context_for(len(prompts), max(map(len, prompts)) + tokens)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
        batch = llama_cpp.llama_batch_init(sum(map(len, prompts)), 0, 1)
        try:
            start = time.perf_counter()
            now = self._step(context, batch, [(list(prompt), 0) for prompt in prompts])
            first = time.perf_counter()
            for i in range(tokens - 1):
                now = self._step(
                    context, batch, [([t], len(p) + i) for t, p in zip(now, prompts, strict=True)]
                )
            return {"first_s": first - start, "rest_s": time.perf_counter() - first}
        finally:
            llama_cpp.llama_batch_free(batch)

    def _context_for(self, num_seqs: int, length: int) -> Any:
        """A context with room for so many sequences; that of the last call where it fits."""
        shape = num_seqs, -(-length // _CELLS) * _CELLS
        if shape != self._shape:
            if self._context:
                llama_cpp.llama_free(self._context)
            params = llama_cpp.llama_context_default_params()
            params.n_seq_max, params.n_ctx = num_seqs, num_seqs * shape[1]
            params.n_batch = params.n_ctx
            params.n_threads = params.n_threads_batch = self._threads
            self._context, self._shape = llama_cpp.llama_init_from_model(self._model, params), shape
            if not self._context:
                raise SystemExit("it has no context of this size")
        return self._context

    def _step(self, context: Any, batch: Any, added: Sequence[tuple[list[int], int]]) -> list[int]:
        """Add to each sequence its tokens, from a position on; the next token of each."""
        last, n = list[int](), 0
        for sequence, (tokens, position) in enumerate(added):
            for i, token in enumerate(tokens):
                batch.token[n], batch.pos[n] = token, position + i
                batch.n_seq_id[n], batch.seq_id[n][0] = 1, sequence
                batch.logits[n] = i == len(tokens) - 1
                n += 1
            last.append(n - 1)
        batch.n_tokens = n
        if (code := llama_cpp.llama_decode(context, batch)) != 0:
            raise SystemExit(f"llama_decode returned {code}")
        return [self._largest(llama_cpp.llama_get_logits_ith(context, row)) for row in last]

    def _largest(self, logits: Any) -> int:
        return int(numpy.ctypeslib.as_array(logits, (self._vocab,)).argmax())


def main() -> None:
    """Answer every line of stdin."""
    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what llama.cpp prints is no answer
    worker = Worker(sys.argv[1], int(sys.argv[2]))
    print(json.dumps(worker.describe()), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(worker.measure(**json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
