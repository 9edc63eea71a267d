"""The pipeline: a killed build, two builds at once, no place to write, damaged files, odd paths, no compiler.

Each test builds a library of two small sources in separate processes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
COMPILER = shutil.which(os.environ.get("CXX", "c++"))

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")

BUILD = """
import ctypes, sys
from pathlib import Path
from minillm.toolchain.cache import release
from minillm.toolchain.library import Library, Unit
sources, *flags = sys.argv[1:]
include = Path(sources) / "include"
units = [Unit(path, ["-fPIC", *flags], ["-I", str(include)]) for path in Path(sources).glob("*.cpp")]
library = Library("answer", units, headers=[include])
path = library.find() or library.build()
answer = ctypes.CDLL(str(path)).answer
release(path)
print(path, answer())
"""
# A compiler that reports a full disk if it has to write into this folder.
FULL = """for last; do :; done
case "$*" in *" {folder}"*) echo "as: $last: No space left on device" >&2; exit 1;; esac
exec "{compiler}" "$@"
"""


class Builder:
    """A small library, a cache, and a compiler that logs its arguments."""

    def __init__(self, folder: Path) -> None:
        self.sources, self.cache, self.log = folder / "so urces", folder / "a cache", folder / "log"
        self.header = self.sources / "include" / "deep" / "number.h"
        self.header.parent.mkdir(parents=True)
        self.header.write_text("enum { kNumber = 42 };\n")
        (self.sources / "answer.cpp").write_text(
            'extern "C" int number(); extern "C" int answer() { return number(); }\n'
        )
        (self.sources / "number.cpp").write_text(
            '#include "deep/number.h"\nextern "C" int number() { return kNumber; }\n'
        )
        self.compiler = folder / "c++ wrapper"
        self.write_compiler(f'exec "{COMPILER}" "$@"')

    def write_compiler(self, script: str) -> None:
        self.compiler.write_text(f'#!/bin/sh\necho "$*" >>"{self.log}"\n{script}\n')
        self.compiler.chmod(0o755)

    @property
    def num_compiled(self) -> int:
        """The number of sources compiled so far."""
        return sum(" -c " in line for line in self.log.read_text().splitlines()) if self.log.exists() else 0

    def in_cache(self) -> list[str]:
        return sorted(path.name for path in self.cache.iterdir())

    def start(self, *flags: str, code: str = BUILD, **environment: str) -> subprocess.Popen[str]:
        own = {"CXX": str(self.compiler), "MINILLM_CACHE": str(self.cache), "PYTHONPATH": str(REPO)}
        return subprocess.Popen(
            [sys.executable, "-P", "-c", code, str(self.sources), *flags],
            env=os.environ | own | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *flags: str, **environment: str) -> tuple[Path, str]:
        """The library, and the text on stderr."""
        out, said = self.start(*flags, **environment).communicate(timeout=120)
        assert out.endswith(" 42\n"), said
        return Path(out.removesuffix(" 42\n")), said

    def build(self, *flags: str, **environment: str) -> Path:
        """The library, built or found without a message."""
        library, said = self.run(*flags, **environment)
        assert said == ""
        return library


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


def kept(library: Path) -> list[str]:
    """The files of a cache with only this library."""
    return [library.name, f"{library.name}.sha256", "lock"]


def test_built_once_and_found_again_in_a_path_with_spaces(builder: Builder) -> None:
    first = builder.build()
    assert first.parent == builder.cache
    assert builder.num_compiled == 2
    assert builder.build() == first
    assert builder.num_compiled == 2
    assert builder.in_cache() == kept(first)


def test_another_source_header_flag_or_compiler_is_another_library(builder: Builder) -> None:
    names = {builder.build()}
    for path in (builder.sources / "answer.cpp", builder.header):
        path.write_text(path.read_text() + "// changed\n")
        names.add(builder.build())
    names.add(builder.build("-DANY"))
    builder.write_compiler(f'[ "$1" = --version ] && echo newer && exit; exec "{COMPILER}" "$@"')
    names.add(builder.build())
    assert len(names) == 5


def test_the_same_sources_elsewhere_are_the_same_library(builder: Builder, tmp_path: Path) -> None:
    first = builder.build()
    builder.sources = builder.sources.rename(tmp_path / "moved")
    assert builder.build() == first
    assert builder.num_compiled == 2


def test_without_a_compiler_the_library_is_still_found(builder: Builder) -> None:
    assert builder.build() == builder.build(CXX="", PATH="/nonexistent")


def test_killed_half_way(builder: Builder) -> None:
    """The lock is released when its process is killed, and what the process left is removed, not used."""
    builder.write_compiler(f'[ "$1" = --version ] && exec "{COMPILER}" "$@"; sleep 600')
    victim = builder.start()
    while builder.num_compiled == 0:
        assert victim.poll() is None
        time.sleep(0.01)
    assert list(builder.cache.glob("build-*")), "control: it was killed while it was building"
    os.killpg(victim.pid, signal.SIGKILL)
    victim.communicate()
    builder.write_compiler(f'exec "{COMPILER}" "$@"')
    library = builder.build()
    assert builder.in_cache() == kept(library)


# A compiler that starts a process of its own, as gcc does, and never ends. Both can be asked to, in vain.
ENDLESS = """[ "$1" = --version ] && exec "{compiler}" "$@"
trap "" TERM INT HUP
sleep 600 &
echo $$ $! >>"{pids}"
wait; wait"""


def is_running(pid: int) -> bool:
    """Whether a process is there and does something."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return condition()


def ended_by(builder: Builder, number: int, code: str = BUILD) -> tuple[subprocess.Popen[str], list[int]]:
    """A builder that got the signal while it compiled, and the processes of its compilers."""
    pids = builder.log.with_name("pids")
    builder.write_compiler(ENDLESS.format(compiler=COMPILER, pids=pids))
    victim = builder.start(code=code)
    assert wait_until(lambda: pids.exists() and len(pids.read_text().split()) >= 4)
    os.kill(victim.pid, number)  # the builder alone, not its group
    victim.communicate(timeout=60)
    return victim, [int(pid) for pid in pids.read_text().split()]


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP])
def test_compilers_end_with_their_builder(builder: Builder, number: int) -> None:
    """However it ends; and of what they made nothing is left."""
    victim, pids = ended_by(builder, number)
    assert victim.returncode != 0
    assert wait_until(lambda: not any(map(is_running, pids)))
    assert wait_until(lambda: not list(builder.cache.glob("build-*")))
    builder.write_compiler(f'exec "{COMPILER}" "$@"')
    assert builder.in_cache() == ["lock"] and builder.build().parent == builder.cache


@needs_proc
def test_control_without_the_watch_they_go_on(builder: Builder) -> None:
    unwatched = "import minillm.toolchain.crew as c; c._WATCH = 'sleep 600'\n" + BUILD
    _, pids = ended_by(builder, signal.SIGTERM, unwatched)
    time.sleep(1.0)
    try:
        assert all(map(is_running, pids))
    finally:
        os.killpg(os.getpgid(pids[0]), signal.SIGKILL)


@needs_proc
def test_compilers_end_when_one_of_them_fails(builder: Builder) -> None:
    """Nobody waits for the others, which may take minutes."""
    pids = builder.log.with_name("pids")
    endless = ENDLESS.format(compiler=COMPILER, pids=pids)
    fails = f'case "$*" in *number.cpp*) while [ ! -s "{pids}" ]; do sleep 0.05; done; exit 1;; esac'
    builder.write_compiler(f'[ "$1" = --version ] && exec "{COMPILER}" "$@"\n{fails}\n{endless}')
    said = builder.start().communicate(timeout=60)[1]
    assert "BuildFailed" in said
    assert wait_until(lambda: not any(is_running(int(pid)) for pid in pids.read_text().split()))
    assert builder.in_cache() == ["lock"]


def test_started_twice_at_once(builder: Builder) -> None:
    """One compiles, the other waits for it."""
    builder.write_compiler(f'[ "$1" = --version ] || sleep 0.5; exec "{COMPILER}" "$@"')
    both = [builder.start() for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert outputs[0] == outputs[1] and outputs[0].endswith(" 42\n")
    assert builder.num_compiled == 2


def truncate(library: Path) -> None:
    os.truncate(library, library.stat().st_size // 2)  # loading it would end the process with SIGBUS


def flip(library: Path) -> None:
    content = bytearray(library.read_bytes())
    content[len(content) // 2] ^= 1
    library.write_bytes(content)


def forget(library: Path) -> None:
    library.with_name(f"{library.name}.sha256").unlink()


def spoil(library: Path) -> None:
    library.with_name(f"{library.name}.sha256").write_bytes(b"\xff\0")


def empty(library: Path) -> None:
    os.truncate(library, 0)


def cut_the_last_byte(library: Path) -> None:
    os.truncate(library, library.stat().st_size - 1)


def add_a_byte(library: Path) -> None:
    library.write_bytes(library.read_bytes() + b"\0")


def lock_up(library: Path) -> None:
    library.chmod(0)  # root reads it all the same, and finds it whole


def replace_by_a_folder(library: Path) -> None:
    library.unlink()
    (library / "not empty").mkdir(parents=True)


def replace_the_note_by_a_folder(library: Path) -> None:
    note = library.with_name(f"{library.name}.sha256")
    note.unlink()
    (note / "not empty").mkdir(parents=True)


def replace_by_a_pipe(library: Path) -> None:
    library.unlink()
    os.mkfifo(library)


def replace_by_a_link_to_nowhere(library: Path) -> None:
    library.unlink()
    library.symlink_to("gone")


DAMAGES = [truncate, flip, forget, spoil, Path.unlink, empty, cut_the_last_byte, add_a_byte,
           replace_by_a_folder, replace_the_note_by_a_folder, replace_by_a_pipe, replace_by_a_link_to_nowhere,
           *([lock_up] if os.getuid() else [])]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_library_is_compiled_again(builder: Builder, damage: Callable[[Path], None]) -> None:
    library = builder.build()
    content = library.read_bytes()
    damage(library)
    assert builder.build() == library
    assert (library.read_bytes(), builder.in_cache()) == (content, kept(library))
    assert builder.num_compiled == 4


def test_a_cache_that_cannot_be_written(builder: Builder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file" / "cache", Path("/proc/minillm")):
        library, said = builder.run(MINILLM_CACHE=str(cache))
        assert said.startswith(f"kernels cannot be kept in {cache} (") and said.count("\n") == 1
        assert said.endswith("): compiling for this process only\n")
        assert not library.parent.exists(), "a library for one process is removed with it"
    if os.getuid():  # root can write everywhere
        builder.cache.mkdir(mode=0o500)
        assert builder.run()[0].parent != builder.cache


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_a_lock_that_cannot_be_held(builder: Builder, make: Callable[[Path], None]) -> None:
    """It is not waited for."""
    builder.cache.mkdir()
    make(builder.cache / "lock")
    library, said = builder.run()
    assert library.parent != builder.cache and said.endswith(": compiling for this process only\n")


def test_a_cache_that_is_full(builder: Builder) -> None:
    builder.write_compiler(FULL.format(folder=builder.cache, compiler=COMPILER))
    library, said = builder.run()
    why = "No space left on device"
    assert said == f"kernels cannot be kept in {builder.cache} ({why}): compiling for this process only\n"
    assert library.parent != builder.cache and builder.in_cache() == ["lock"]


def test_no_room_anywhere_is_a_build_that_failed(builder: Builder) -> None:
    builder.write_compiler(FULL.format(folder="/", compiler=COMPILER))
    last = builder.start().communicate(timeout=120)[1].splitlines()[-1]
    full = "No space left on device"
    assert last.endswith(
        f"BuildFailed: {builder.cache} cannot be written: {full}; "
        f"a temporary folder cannot be written either: {full}"
    )


def test_a_read_only_cache_serves_what_it_has(builder: Builder) -> None:
    library = builder.build()
    (builder.cache / "lock").unlink()
    (builder.cache / "lock").mkdir()  # a directory cannot be opened as a lock, not even by root
    assert builder.build() == library


def test_a_compiler_that_fails_is_quoted(builder: Builder) -> None:
    (builder.sources / "answer.cpp").write_text("int answer( { }\n")
    complaint = builder.start(LC_ALL="de_DE.UTF-8").communicate(timeout=120)[1]
    assert "BuildFailed" in complaint and "answer.cpp" in complaint and "error" in complaint
    assert builder.in_cache() == ["lock"]


@pytest.mark.skipif(shutil.which("readelf") is None, reason="there is no readelf")
def test_a_compiler_that_links_its_runtime_statically(builder: Builder) -> None:
    """A second copy of libstdc++ in one process crashes where an error message prints a number."""
    builder.write_compiler(f'exec "{COMPILER}" -static-libstdc++ "$@"')
    body = "std::ostringstream out; out << 42; return std::stoi(out.str());"
    text = f'#include <sstream>\n#include <string>\nextern "C" int number() {{ {body} }}\n'
    (builder.sources / "number.cpp").write_text(text)
    library, _ = builder.run()
    assert "libstdc++.so.6" in needed(library)
    # Control: without the shared one in the link command the library brings its own.
    own = library.with_name("own.so")
    objects = sorted(map(str, builder.sources.glob("*.cpp")))
    include = ["-I", str(builder.sources / "include")]
    command = [str(builder.compiler), "-shared", "-fPIC", *include, *objects, "-o", str(own)]
    subprocess.run(command, check=True)
    assert "libstdc++.so.6" not in needed(own)


def needed(library: Path) -> str:
    """The libraries that the dynamic linker loads with this one."""
    shown = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True, check=True)
    return "\n".join(line for line in shown.stdout.splitlines() if "NEEDED" in line)
