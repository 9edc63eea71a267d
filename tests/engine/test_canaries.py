"""Contract C8: no prompt, token id, stop string or tenant name in any log, event, file or foreign error.

A thousand random words go through everything that takes text. Then all that the engine has written is
searched for each of them, in the forms in which a program may write text.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import tiny

from minillm import LLM, MinillmError, SamplingParams
from minillm.config import TenantLimits

WORDS = 1000
TEMPLATE = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}"
)


def canaries(seed: int, count: int = WORDS) -> list[str]:
    chance = random.Random(seed)
    return ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=14)) for _ in range(count)]


def forms(word: str, ids: list[int]) -> list[bytes]:
    """Raw, UTF-16, hex, base64 at its three offsets, and the token ids as Python and JSON write them."""
    raw = word.encode()
    shifted = [base64.b64encode(b"\0" * k + raw)[4 if k else 0 : -4] for k in range(3)]
    numbers = [", ".join(map(str, ids)).encode(), ",".join(map(str, ids)).encode()]
    return [raw, word.encode("utf-16-le"), word.encode("utf-16-be"), raw.hex().encode(), *shifted, *numbers]


def found_in(data: bytes, words: list[str], llm: LLM) -> list[str]:
    ids = {word: llm.tokenizer.encode(word, add_special_tokens=False) for word in words}
    return [word for word in words if any(form in data for form in forms(word, ids[word]))]


@contextmanager
def everything_logged() -> Iterator[io.StringIO]:
    """All loggers at the level DEBUG, with tracebacks."""
    written, root = io.StringIO(), logging.getLogger()
    handler, level = logging.StreamHandler(written), root.level
    handler.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s %(args)s"))
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield written
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def _load(folder: Path, **more: Any) -> LLM:
    limits = {"known": TenantLimits(guaranteed_blocks=8, guaranteed_tokens_per_step=16)}
    return tiny.load(folder, kv_memory=tiny.blocks(40), tenant_limits=limits, **more)


def use(folder: Path, words: list[str], record: Path) -> tuple[LLM, list[str], list[Any]]:
    """Send the words through prompts, stops, tenants, tools and failures, in a run that is recorded.

    Returns:
        The engine, the errors that others get, and the events.
    """
    params, shown = SamplingParams(max_tokens=3, temperature=0.0), list[str]()

    def crash(event: Any) -> None:
        raise RuntimeError("a listener")

    class Stream:
        """A detokenizer that fails with the prompt in its message, in every fourth request."""

        made = 0

        def __init__(self, tokenizer: Any, stops: Any, ids: Any) -> None:
            Stream.made += 1
            self.text = f"{tokenizer.decode(list(ids))} {stops}" if Stream.made % 4 == 0 else ""
            self.stopped = False

        def push(self, token_id: int) -> str:
            if self.text:
                raise RuntimeError(self.text)
            return "x"

        def finish(self) -> str:
            return ""

    llm = _load(folder, parts={"detokenizer": Stream}, record=record)
    llm.engine.events.listeners.append(crash)
    with llm.engine.events.record() as trace:
        for i in range(0, len(words), 5):
            prompt, stop, tenant, tool, odd = words[i : i + 5]
            tools = [{"type": "function", "function": {"name": tool, "description": prompt}}]
            text = llm.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, tools=tools
            )
            own = SamplingParams(max_tokens=3, stop=(stop,))
            ids = {llm.engine.add_request(text, own, tenant)}
            others = {llm.engine.add_request("the cat", params, "known")}
            with suppress(MinillmError):
                llm.engine.add_request(odd * 60, own, tenant)  # longer than the context
            with suppress(MinillmError):
                llm.engine.abort_request(next(iter(ids)), odd)
            while llm.engine.has_unfinished_requests():
                with suppress(RuntimeError):
                    shown += [str(o.error) for o in llm.engine.step() if o.request_id in others and o.error]
    return llm, shown, [(e.kind, e.step, e.request_id, dict(e.data)) for e in trace]


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("canary") / "model"
    return tiny.make_folder(made, settings={"chat_template": TEMPLATE})


def test_nothing_private_is_written(
    chat_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    words = canaries(1)
    with everything_logged() as log:
        llm, shown, trace = use(chat_folder, words, tmp_path / "run.jsonl")
    printed = "".join(capfd.readouterr())
    files = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert b'"kind":"blocks"' in files
    everything = "\n".join([log.getvalue(), printed, repr(trace), json.dumps(trace, default=str), *shown])
    assert "a listener raised" in everything and len(trace) > 2000
    assert found_in(everything.encode() + files, words, llm) == []


def test_control_one_planted_word_is_found(chat_folder: Path) -> None:
    words = canaries(1)
    llm = _load(chat_folder)
    for form in forms(words[7], llm.tokenizer.encode(words[7], add_special_tokens=False)):
        assert found_in(b"some text " + form + b" and more", words[:20], llm) == [words[7]], form
    with everything_logged() as log:
        logging.getLogger("minillm.engine").debug("prompt %s", words[3])
    assert found_in(log.getvalue().encode(), words[:20], llm) == [words[3]]


CRASH = """
import sys
from minillm import LLM, SamplingParams
def failing(*args): raise RuntimeError("the sampler")
llm = LLM(sys.argv[1], device="cpu", kv_memory="1MiB", parts={"sampler": failing})
llm.generate(sys.stdin.read().split(), SamplingParams(max_tokens=2), tenant="%s")
"""


def test_a_crash_shows_no_prompt(chat_folder: Path, tmp_path: Path) -> None:
    words = canaries(2, 20)
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", CRASH % words[-1], str(chat_folder)],
        input=" ".join(words[:-1]),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 1 and "the sampler" in done.stderr
    written = done.stdout + done.stderr.replace(CRASH % words[-1], "")
    files = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert found_in(written.encode() + files, words, _load(chat_folder)) == []
