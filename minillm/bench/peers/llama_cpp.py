"""llama.cpp as a peer, through the package llama-cpp-python, in a process of its own.

    minillm --{"prompts": [[ids], ...], "tokens": n}-->  llama_cpp_worker.py
            <--{"first_s": seconds, "rest_s": seconds}--

It reads the GGUF file that the model was made of, as it was published. The worker measures the time itself,
so the pipe costs nothing.

Why another process: torch and llama.cpp both load libgomp.so.1, and a process has only one of that name.
Inside ours llama.cpp would run on torch's OpenMP threads, and no longer as its users run it. While the worker
waits for a line, its threads end their spinning and sleep. And an engine that ends its process does not end
the bench.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch

import minillm
from minillm.config.files import exists
from minillm.errors import BackendError, UsageError
from minillm.model.store.folder import GGUF


def gguf_of(folder: Path) -> Path:
    """The GGUF file that a folder of the cache was made of.

    Raises:
        UsageError: there is none.
    """
    if not exists(folder / GGUF):
        raise UsageError(
            f"{folder.name} was made of no GGUF file, and llama.cpp reads nothing else",
            "give a GGUF file as the model, or smollm2",
        )
    return folder / GGUF


@contextmanager
def opened(path: Path) -> Iterator[LlamaCpp]:
    """A GGUF file in llama.cpp, on as many threads as torch uses here.

    Raises:
        BackendError: llama.cpp cannot load it.
    """
    root = str(Path(minillm.__file__).resolve().parents[1])
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "minillm.bench.llama_cpp_worker",
                str(path),
                str(torch.get_num_threads()),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])},
        ) as process,
    ):
        try:
            yield LlamaCpp(process, errors)
        finally:
            process.kill()  # it holds nothing but memory
            with suppress(OSError):  # what was not sent is of no use
                if process.stdin is not None:
                    process.stdin.close()


class LlamaCpp:
    """The worker's process; `errors` is the file that has its stderr."""

    def __init__(self, process: subprocess.Popen[str], errors: IO[bytes]) -> None:
        self._process, self._errors = process, errors
        self._described = self._answer()

    def describe(self) -> dict[str, Any]:
        """Version, the model in llama.cpp's words, its bytes, threads, and the instructions that it uses."""
        return self._described

    def prefill_rate(self, prompt: list[int]) -> float:
        """Prompt tokens per second, first token included."""
        return len(prompt) / float(self._ask([prompt], 1)["first_s"])

    def decode_rate(self, prompts: Sequence[list[int]], num_tokens: int) -> float:
        """Tokens per second of all prompts together, without the time of the first token."""
        return len(prompts) * num_tokens / float(self._ask(prompts, num_tokens + 1)["rest_s"])

    def _ask(self, prompts: Sequence[list[int]], tokens: int) -> dict[str, Any]:
        with suppress(OSError):  # it has ended: its answer says why
            print(json.dumps({"prompts": prompts, "tokens": tokens}), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        """A line of the worker.

        Raises:
            BackendError: it has ended; the message has the last line that it wrote.
        """
        line = self._process.stdout.readline() if self._process.stdout else ""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        reason = said[-1] if said else f"exit code {self._process.wait()}"
        raise BackendError(f"llama.cpp ended: {reason}", "leave --peer out, or update llama-cpp-python")
