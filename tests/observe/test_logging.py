"""Status goes to the logger `minillm`; the command line shows it on stderr, and bars beside it."""

from __future__ import annotations

import argparse
import io
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

from minillm import LLM, SamplingParams
from minillm.cli import chat, doctor, generate
from minillm.cli.main import main
from minillm.cli.options import dim
from minillm.progress import Bar

SECRET = "the secret cat"


class Terminal(io.StringIO):
    """Stands for a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """Makes stderr a terminal. Called by the test itself: pytest sets stderr anew when a test begins."""

    def replace() -> Terminal:
        terminal = Terminal()
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setattr(sys, "stderr", terminal)
        return terminal

    return replace


@pytest.fixture
def info() -> Iterator[None]:
    """The logger `minillm` at INFO, as a user sets it."""
    logger = logging.getLogger("minillm")
    logger.setLevel(logging.INFO)
    yield
    logger.setLevel(logging.NOTSET)


def say_all(args: argparse.Namespace) -> int:
    """A command that logs."""
    log = logging.getLogger("minillm.somewhere")
    log.debug("a detail")
    log.info("a status")
    log.warning("a warning")
    return 0


# ---- the command line -----------------------------------------------------------------------------


def test_the_command_line_shows_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "run", say_all)
    for _ in range(2):  # a second run in one process does not say it twice
        assert main(["doctor"]) == 0
        assert capsys.readouterr() == ("", "minillm: a status\nminillm: a warning\n")
    logger = logging.getLogger("minillm")
    assert (logger.handlers, logger.level) == ([], logging.NOTSET), "left as it was found"


@pytest.mark.parametrize(("command", "args"), [(generate, ["generate", "-p", "x"]), (chat, ["chat"])])
def test_quiet_leaves_warnings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: Any, args: list[str]
) -> None:
    monkeypatch.setattr(command, "run", say_all)
    assert main([*args, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "minillm: a warning\n")
    assert main(args) == 0
    assert "a status" in capsys.readouterr().err


def test_no_color(on_terminal: Callable[[], Terminal], monkeypatch: pytest.MonkeyPatch) -> None:
    on_terminal()
    assert dim("x") == "\033[2mx\033[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert dim("x") == "x"


# ---- the library ----------------------------------------------------------------------------------


def test_no_handler_is_added_for_the_user() -> None:
    """A handler of the library's own would print twice, or hide warnings where logging is not configured."""
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "minillm"]
    assert "minillm.toolchain.library" in names
    assert [name for name in names if logging.getLogger(name).handlers] == []


def test_no_prompt_text_is_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "minillm")
    llm = tiny.load(folder)

    def complain(event: Any) -> None:
        raise ValueError(SECRET)

    llm.engine.events.listeners.append(complain)
    llm.generate(SECRET, SamplingParams(max_tokens=2))
    logged = [record.getMessage() for record in caplog.records if record.name.startswith("minillm")]
    assert any("a listener raised ValueError" in line for line in logged), "the control: something is logged"
    assert not any("secret" in line for line in logged)


# ---- bars -----------------------------------------------------------------------------------------


def test_bars_of_loading_show_with_status(
    on_terminal: Callable[[], Terminal], folder: Path, info: None
) -> None:
    terminal = on_terminal()
    tiny.load(folder)
    assert "loading weights" in terminal.getvalue()


def test_without_logging_configured_nothing_is_shown(
    on_terminal: Callable[[], Terminal], folder: Path
) -> None:
    terminal = on_terminal()
    tiny.load(folder).generate("the cat", SamplingParams(max_tokens=2))
    assert terminal.getvalue() == ""


def test_the_bar_of_generate_shows_when_asked_for(
    on_terminal: Callable[[], Terminal], llm: LLM, info: None
) -> None:
    terminal = on_terminal()
    llm.generate("the cat", SamplingParams(max_tokens=2))
    assert "requests" not in terminal.getvalue(), "progress is off by default"
    llm.generate("the cat", SamplingParams(max_tokens=2), progress=True)
    assert "requests" in terminal.getvalue()


def test_there_is_no_bar_where_stderr_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, llm: LLM, info: None
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    llm.generate("the cat", SamplingParams(max_tokens=2), progress=True)
    with Bar("loading") as bar:
        bar.update(1, 2)
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]
