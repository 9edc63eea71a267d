"""A pull or a conversion that is ended from outside leaves nothing: no folder, no pip."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ggufs
import pytest

from minillm.model.locate import find_model
from minillm.model.store.folder import cached_models, models_folder

pytest.importorskip("gguf", reason="the library gguf is not installed: pip install gguf")

# A test run in the background ignores Ctrl-C, and its children inherit this.
SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from minillm.model.gguf.convert import Conversion
from minillm.cli.main import main
write = Conversion.write
def slowly(self, folder, progress=None):
    (folder / "half").write_text("x")
    print("writing", flush=True)
    time.sleep(60)
Conversion.write = slowly
sys.exit(main(sys.argv[1:]))
"""


def write_other(tmp_path: Path) -> Path:
    """Another file than the one that was interrupted."""
    return ggufs.write(tmp_path / "other.gguf", *ggufs.model("llama_tied"))


def names_left() -> list[str]:
    return [path.name for path in models_folder().iterdir() if path.name != "lock"]


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return condition()


def ended_while_writing(signum: int, code: str, *args: str) -> str:
    """What a process said that got the signal in the middle of a conversion."""
    command = [sys.executable, "-c", code, *args]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "writing\n"
    process.send_signal(signum)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == (130 if signum == signal.SIGINT else -signum)
    return said


@pytest.mark.parametrize(
    ("signum", "command"),
    [
        (signal.SIGINT, "pull"),
        (signal.SIGTERM, "pull"),
        (signal.SIGHUP, "inspect"),
        (signal.SIGKILL, "inspect"),
    ],
)
def test_ended_by_a_signal(index: Path, tmp_path: Path, signum: int, command: str, content: bytes) -> None:
    """Nothing is left, however the process ended, and what was being made is not found."""
    file = tmp_path / "big.gguf"
    file.write_bytes(content)
    size, digest = len(content), hashlib.sha256(content).hexdigest()
    known = f"""
from minillm.model.store.published import PUBLISHED, Published, WheelFile
PUBLISHED["tiny"] = Published("T", "", WheelFile("t", "1", "m", {size}, "{digest}", 9))
"""
    words = {"inspect": ["inspect", str(file)], "pull": ["pull", "tiny", "--from", str(file)]}[command]
    said = ended_while_writing(signum, known + SLOW, *words)
    assert "Traceback" not in said and cached_models() == []
    assert wait_until(lambda: names_left() == [])


def test_what_a_power_failure_leaves_goes_with_the_next_call(
    index: Path, tmp_path: Path, content: bytes
) -> None:
    """Control, too: without the watching shell the folder stays."""
    file = tmp_path / "big.gguf"
    file.write_bytes(content)
    unwatched = "import minillm.toolchain.crew as c; c._WATCH = 'read -r line; exit'\n" + SLOW
    ended_while_writing(signal.SIGKILL, unwatched, "inspect", str(file))
    time.sleep(1.0)
    assert len(names_left()) == 1 and cached_models() == []
    made = find_model(write_other(tmp_path))
    assert names_left() == [made.name]


def test_convert_ended_by_a_signal(index: Path, tmp_path: Path, content: bytes) -> None:
    file, out = tmp_path / "big.gguf", tmp_path / "there" / "out"
    file.write_bytes(content)
    ended_while_writing(signal.SIGTERM, SLOW, "convert", str(file), str(out))
    assert wait_until(lambda: list(out.parent.iterdir()) == [])


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_pip_ends_with_the_process_that_started_it(index: Path, tmp_path: Path, signum: int) -> None:
    pid_file = tmp_path / "pid"
    endless = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from minillm.model.store import download
from minillm.cli.main import main
pip = "import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
download._command = lambda *_: [sys.executable, "-c", pip]
sys.exit(main(["pull", "smollm2"]))
"""
    process = subprocess.Popen([sys.executable, "-c", endless], stderr=subprocess.PIPE, text=True)
    assert wait_until(lambda: pid_file.exists() and pid_file.read_text() != "", 60)
    process.send_signal(signum)
    assert "Traceback" not in process.communicate(timeout=60)[1]
    assert wait_until(lambda: not is_running(int(pid_file.read_text())))
    assert wait_until(lambda: names_left() == [])


def is_running(pid: int) -> bool:
    """Whether a process is there and does something."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
