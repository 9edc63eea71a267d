"""`minillm chat` as a person uses it, on a terminal, and from a pipe."""

import json
import os
import pty
import select
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from minillm import LLM
from minillm.cli import chat
from minillm.cli.chat import weights
from minillm.cli.chat.session import Session
from minillm.cli.main import _parser
from minillm.errors import PromptTooLong, UsageError

RUN = [sys.executable, "-m", "minillm", "chat", "storyteller-1m", "-n", "12", "--seed", "1"]
RUN += ["--backend", "reference"]  # nothing to compile in a cache folder of its own


@pytest.fixture(scope="module")
def llm():
    return LLM("storyteller-1m", kv_memory="96KiB")


@pytest.fixture
def session(llm):
    return Session(llm, llm.default_params, None)


def answer(session, text):
    stream, dropped = session.ask(text)
    session.keep(stream.result)
    return stream.result, dropped


class Terminal:
    """A chat on a pseudo-terminal."""

    def __init__(self, home, *args):
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            os.execve(
                sys.executable, [*RUN, *args], {**os.environ, "MINILLM_CACHE": str(home), "TERM": "dumb"}
            )
        self.seen = ""

    def wait_for(self, words):
        """Read until `words` come; return what came."""
        start, end = len(self.seen), time.monotonic() + 90
        while words not in self.seen[start:]:
            assert time.monotonic() < end, self.seen
            if select.select([self._fd], [], [], 1)[0]:
                self.seen += os.read(self._fd, 4096).decode(errors="replace")
        return self.seen[start:]

    def send(self, text, words="\n> "):
        os.write(self._fd, text.encode())
        return self.wait_for(words)

    def interrupt(self, words="\n> "):
        """Press Ctrl-C once the chat waits for a key: CPython holds an earlier signal back until then."""
        stat, end = Path(f"/proc/{self._pid}/stat"), time.monotonic() + 90
        while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "S":
            assert time.monotonic() < end, self.seen
            time.sleep(0.01)
        return self.send("\x03", words)

    def end(self):
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        os.close(self._fd)
        return code


def test_a_conversation_on_a_terminal(tmp_path):
    chat = Terminal(tmp_path)
    banner = chat.wait_for("> ")
    assert "storyteller-1m, context 4,096 tokens" in banner and "temperature 0.8" in banner
    assert "12 new tokens" in chat.send("Once upon\n")
    assert "new tokens" not in chat.send("\n", "> ")  # an empty line does nothing
    assert "/system" in chat.send("/help\n")
    assert "be kind" in chat.send("/system be kind\n")
    assert "12 new tokens" in chat.send('"""two\n', ". ") + chat.send('lines"""\n')
    assert "5 messages are in" in chat.send(f"/save {tmp_path / 'chat.json'}\n")
    assert "File exists" in chat.send(f"/save {tmp_path / 'chat.json'}\n")
    assert "there is no command '/rest'" in chat.send("/rest\n")
    chat.send("abc", "abc")
    assert "/bye ends the chat" in chat.interrupt()
    assert "forgotten" in chat.send("/reset\n")
    os.write(chat._fd, b"/bye\n")
    assert chat.end() == 0
    messages = json.loads((tmp_path / "chat.json").read_text())
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert messages[3]["content"] == "two\nlines"
    history = tmp_path / "chat_history"
    assert "Once upon" in history.read_text() and history.stat().st_mode & 0o077 == 0


def test_a_pipe_is_one_message_per_line(tmp_path):
    environment = {**os.environ, "MINILLM_CACHE": str(tmp_path)}
    text = "Once upon\n\nand then\n/reset\nOnce upon\n"
    done = subprocess.run(RUN, input=text, capture_output=True, text=True, env=environment)
    answers = done.stdout.splitlines()
    assert done.returncode == 0 and len(answers) == 3
    assert answers[0] == answers[2] != answers[1]  # the same seed, and the same conversation after /reset
    assert not (tmp_path / "chat_history").exists()


def test_a_message_that_is_too_long_does_not_end_the_session():
    done = subprocess.run(RUN, input=f"{'x' * 9000}\nOnce\n", capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stdout.splitlines()) == 1
    assert "the context holds 4096" in done.stderr


def test_a_refused_message_leaves_no_trace(session):
    answer(session, "Once upon")
    before = session.messages
    with pytest.raises(PromptTooLong):
        session.ask("x" * 9000)
    assert session.messages == before
    result, _ = answer(session, "and then")
    assert result.finish_reason in ("length", "stop")


def test_room_for_the_answer_is_kept_and_the_beginning_stays_the_same(llm):
    """Many turns: each prompt leaves room for its answer, and most prompts begin as the one before."""
    session = Session(llm, llm.default_params, "be kind")
    pool = llm.engine.memory.pool
    room = min(llm.engine.model.max_model_len, pool.num_blocks * pool.block_size)
    drops, prompts = 0, []
    for number in range(24):
        result, dropped = answer(session, f"{number} and the little dog and the cat went to the park")
        prompts.append(result.prompt_token_ids)
        assert len(prompts[-1]) <= room - llm.default_params.max_tokens
        assert session.messages[0]["role"] == "system"
        drops += dropped > 0
    assert 0 < drops <= 24 * 40 / (room / 2) + 1  # a turn has less than 40 tokens
    kept = sum(later[: len(earlier)] == earlier for earlier, later in pairwise(prompts))
    assert kept == 23 - drops


@pytest.fixture
def pulled(monkeypatch, tmp_path):
    """A cache that has both published models."""
    monkeypatch.setattr(weights, "cached_model", lambda name: name)
    monkeypatch.setattr(weights, "_has_kernels", lambda backend, device: (backend, device) == ("auto", "cpu"))
    monkeypatch.chdir(tmp_path)


def test_only_a_model_that_was_published_in_4_bits_gets_them_unasked(pulled, tmp_path, monkeypatch):
    assert weights.default_quantization("smollm2", "auto", "cpu") == "int4"
    assert weights.default_quantization("smollm2", "reference", "cpu") is None
    for other in (None, "smollm2-bf16", "storyteller-6m", "/models/llama", "someone/smollm2"):
        assert weights.default_quantization(other, "auto", "cpu") is None
    (tmp_path / "smollm2").mkdir()  # a folder wins over the cache
    assert weights.default_quantization("smollm2", "auto", "cpu") is None
    (tmp_path / "smollm2").rmdir()
    monkeypatch.setattr(weights, "cached_model", lambda name: None)
    assert weights.default_quantization("smollm2", "auto", "cpu") is None


@pytest.mark.parametrize(
    ("words", "used"),
    [
        ([], "int4"),
        (["smollm2"], "int4"),
        (["--quantization", "int8"], "int8"),
        (["storyteller-1m"], None),
        (["smollm2-bf16"], None),
    ],
)
def test_the_weights_of_a_chat(pulled, monkeypatch, words, used):
    """What the command loads, up to the moment when it would load it."""
    loaded = []
    monkeypatch.setattr(chat, "pulled_model", lambda: "smollm2")
    monkeypatch.setattr(chat, "load_llm", lambda args, **more: loaded.append(args.quantization) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        chat.run(_parser()[0].parse_args(["chat", "--device", "cpu", *words]))
    assert loaded == [used]


def test_commands_are_told_from_messages():
    assert Session.is_command("/bye", from_terminal=False) and Session.is_command("/bee", from_terminal=True)
    assert not Session.is_command("/bee", from_terminal=False)
    assert not Session.is_command("/usr/bin is a folder", from_terminal=True)


def test_a_file_that_cannot_be_written_is_an_error(session, tmp_path):
    for name in ("", str(tmp_path), str(tmp_path / "no" / "file"), "\0"):
        with pytest.raises(UsageError, match="/save" if not name else "cannot write"):
            session.command(f"/save {name}")


def test_ctrl_c_stops_an_answer_and_not_the_chat(tmp_path):
    chat = Terminal(tmp_path, "-n", "3000", "--temperature", "1.5")
    chat.wait_for("> ")
    chat.send("Once upon a time\n", "\n")  # the echo of the terminal; the answer has not begun
    assert "new tokens" not in chat.send("\x03") or "cancelled" in chat.seen
    chat.send("Once upon a time\n", "\n")
    chat.wait_for(" ")  # the answer has begun
    assert "cancelled" in chat.send("\x03")
    os.write(chat._fd, b"\x04")
    assert chat.end() == 0
