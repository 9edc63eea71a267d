"""llama.cpp as a peer, through the package llama-cpp-python, in a process of its own.

    minillm --{"prompts": [[ids], ...], "tokens": n}-->  llama_cpp_worker.py
            <--{"first_s": seconds, "rest_s": seconds}--

It reads the GGUF file that the model was made of, as it was published. The worker measures the time itself,
so the pipe costs nothing.

Why another process: torch and llama.cpp both load libgomp.so.1, and a process has only one of that name.
Inside ours llama.cpp would run on torch's OpenMP threads, and no longer as its users run it. While the worker
waits for a line, its threads end their spinning and sleep. An engine that ends its process does not end the
bench, and a bench that is killed ends the worker, whatever it does (`Crew`).
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch

from minillm.config.checks import shortened
from minillm.config.files import exists
from minillm.config.line_files import json_object
from minillm.errors import BackendError, UsageError
from minillm.model.store.folder import GGUF
from minillm.toolchain.crew import Crew
from minillm.toolchain.python import module_command, module_environment

_SECONDS_TO_END = 5.0


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
    with (
        tempfile.TemporaryDirectory() as scratch,
        tempfile.TemporaryFile() as errors,
        Crew(Path(scratch)) as crew,
        subprocess.Popen(
            module_command("minillm.bench.llama_cpp_worker", str(path), str(torch.get_num_threads())),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=module_environment(),
            process_group=crew.group,
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

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self._process, self._errors = process, errors
        self._described = self._answer("version", "model", "bytes", "threads")

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
        if self._process.stdin:
            with suppress(OSError):  # it has ended: its answer says why
                self._process.stdin.write(json.dumps({"prompts": prompts, "tokens": tokens}).encode() + b"\n")
                self._process.stdin.flush()
        return self._answer("first_s", "rest_s")

    def _answer(self, *keys: str) -> dict[str, Any]:
        """The worker's next object with these keys.

        Other lines are skipped: a module may print while the worker imports it.

        Raises:
            BackendError: it has ended; the message has the last line that it wrote.
        """
        for line in self._process.stdout or ():
            answer = json_object(line)
            if answer is not None and answer.keys() >= set(keys):
                return answer
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        reason = shortened(said[-1]) if said else self._end()
        raise BackendError(f"llama.cpp ended: {reason}", "leave --peer out, or update llama-cpp-python")

    def _end(self) -> str:
        """The exit code, in words. A process that has closed its output may go on."""
        try:
            return f"exit code {self._process.wait(_SECONDS_TO_END)}"
        except subprocess.TimeoutExpired:
            return "it has closed its output"
