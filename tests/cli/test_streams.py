"""stdin, stdout and stderr that are closed, full, of another encoding, or a pipe that nobody reads."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

RUN = [sys.executable, "-m", "minillm"]


def shell(command, **env):
    """Run a shell command; {run} is `python -m minillm`."""
    text = command.replace("{run}", shlex.join(RUN))
    return subprocess.run(["bash", "-c", text], capture_output=True, env={**os.environ, **env}, timeout=120)


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("{run} generate - -n 4 <&-", 2, "prompt is empty"),
        ("{run} chat storyteller-1m <&-", 0, ""),
        ("{run} generate storyteller-1m -p Once -n 4 >&-", 1, "stdout: it is closed"),
        ("{run} doctor >&-", 1, "stdout: it is closed"),
        ("{run} labs list >&-", 1, "stdout: it is closed"),
        ("{run} generate storyteller-1m -p Once -n 4 --json >/dev/full", 1, "No space left"),
        ("{run} inspect storyteller-1m >/dev/full", 1, "No space left"),
        (
            "{run} inspect storyteller-1m --json >/dev/full",
            1,
            "minillm: cannot write to stdout: No space left",
        ),
        ("{run} generate storyteller-1m -p Once -n 4 2>/dev/full", 0, ""),
        ("echo Once | {run} chat storyteller-1m -n 4 2>/dev/full", 0, ""),
        ("{run} chat storyteller-1m 0>/dev/null", 3, "stdin cannot be read: Bad file descriptor"),
        ("{run} generate -p '' 2>&-", 2, ""),
        ("{run} generate -p '' 2>/dev/full", 2, ""),
    ],
)
def test_a_stream_that_fails_is_one_line_and_an_exit_code(command, code, words):
    done = shell(command)
    err = done.stderr.decode()
    assert done.returncode == code and words in err
    assert "Traceback" not in err and "Error" not in err


def test_a_stderr_that_fails_loses_no_text():
    text = "{run} generate storyteller-1m -p Once -n 4 --temperature 0"
    assert shell(text).stdout == shell(text + " 2>&-").stdout == shell(text + " 2>/dev/full").stdout != b""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_error_that_is_not_of_stdout_is_not_called_so(unbuffered):
    """It is a fault of the program, and its traceback says where."""
    code = """
import errno, sys
from minillm.cli import models
from minillm.cli.main import main
def fail():
    print("x" * 100_000)
    raise OSError(errno.ENOSPC, "No space left on device")
models.collect = fail
sys.exit(main(["list"]))
"""
    command = shlex.join([sys.executable, "-c", code])
    done = shell(command, PYTHONUNBUFFERED=unbuffered)
    err = done.stderr.decode()
    assert done.returncode == 1 and "Traceback" in err and "cannot write to stdout" not in err
    full = shell(command + " >/dev/full", PYTHONUNBUFFERED=unbuffered).stderr.decode()
    assert full == "minillm: cannot write to stdout: No space left on device; redirect it to another place\n"


def test_a_letter_that_the_encoding_lacks_is_written_as_an_escape():
    assert shell("{run} labs list", PYTHONIOENCODING="ascii").stdout.isascii()
    code = "import sys; from minillm.cli import streams; streams.prepare(); print('\\u2019', file=sys.stdout)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={**os.environ, "PYTHONIOENCODING": "latin-1"}
    )
    assert (done.returncode, done.stdout) == (0, b"\\u2019\n")


@pytest.mark.parametrize("command", ["help", "generate --help", "labs list", "inspect storyteller-6m"])
def test_a_reader_that_stops_early_is_no_error(command):
    done = shell(f"{{run}} {command} 2>&1 | head -c 1; exit ${{PIPESTATUS[0]}}")
    assert done.returncode in (0, 2) and len(done.stdout) == 1 and done.stderr == b""


@pytest.mark.parametrize("command", ["inspect storyteller-1m", "labs list", "doctor", "list"])
def test_a_narrow_terminal_shows_every_letter(command):
    narrow, wide = (shell(f"{{run}} {command}", COLUMNS=width, TERM="dumb") for width in ("40", "400"))
    assert "…" not in narrow.stdout.decode() and max(map(len, narrow.stdout.decode().splitlines())) < 120
    letters = [sorted(re.findall("[A-Za-z]", done.stdout.decode())) for done in (narrow, wide)]
    assert letters[0] == letters[1] and len(letters[0]) > 100


@pytest.mark.slow
def test_ctrl_c_at_any_moment_prints_no_traceback():
    def listen() -> None:  # a test run in the background ignores Ctrl-C, and its children inherit this
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    for number in range(20):
        command = [*RUN, "generate", "storyteller-1m", "-p", "Once", "-n", "50"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=listen)
        # Not before 0.25 s: the interpreter itself is starting then, and no code of ours can help.
        time.sleep(0.25 + 0.1 * number)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert b"Traceback" not in err, f"after {0.25 + 0.1 * number:.2f} s: {err.decode()[-300:]}"
        assert process.returncode in (0, 130, -signal.SIGINT)


INTERRUPTED = """
import io, os, signal, sys, time
from minillm.cli import streams

def interrupt(frame, event, arg):
    if event == "c_return" and frame.f_code.co_name == "write" and arg.__name__ in ("write", "extend"):
        sys.setprofile(None)
        raise KeyboardInterrupt

signal.signal(signal.SIGINT, signal.default_int_handler)
reader, writer = os.pipe()
out = io.TextIOWrapper(io.BufferedWriter(streams._NamedOutput(writer, "w", closefd=False)), "utf-8")
sys.setprofile(interrupt)
try:
    out.write("a")
    out.flush()
    time.sleep(30)
except KeyboardInterrupt:
    out.write("b")
    out.flush()
os.close(writer)
print(os.read(reader, 9))
"""


def test_text_is_written_once_if_ctrl_c_comes_right_after_it():
    """The interrupt comes when the text is written, and before the buffer above knows it."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60)
    assert done.stdout == "b'ab'\n", done.stderr
