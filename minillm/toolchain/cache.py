"""The folder of compiled libraries, shared by every process of this user.

    lock                                      held while a library is compiled
    build-<random>/                           a build under way: objects, and the library until it is whole
    cpu-<key>-<key>.so, simt-<key>-<key>.so   libraries
    cpu-<key>-<key>.so.sha256                 the digest of each

The lock is one that the kernel holds for the process (`flock`): it keeps two first uses from compiling
twice, and vanishes with a process that is killed. What such a process left in build-* is removed by the
next build. A library is renamed into its place when it is finished, so that nobody finds half of one.
What a disk does to it afterwards is found by its digest: a truncated library would not fail to load, it
would end the process with SIGBUS.

A folder that cannot be written, or is full, is no error. The library then lies in a temporary folder, for
one process alone.

Left out: a limit on its size. Libraries of old sources stay until somebody empties the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from minillm.config.files import open_file, read_file

_temporary: dict[str, tempfile.TemporaryDirectory[str]] = {}  # by the name of the library in it


def cache_folder() -> Path:
    """$MINILLM_CACHE, else $XDG_CACHE_HOME/minillm, else ~/.cache/minillm; it need not exist."""
    own = os.environ.get("MINILLM_CACHE")
    if own:
        return Path(own).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    with contextlib.suppress(RuntimeError):  # a user without a home directory
        return (Path(home) if home else Path("~/.cache").expanduser()) / "minillm"
    return Path(tempfile.gettempdir()) / f"minillm-{os.getuid()}"


@contextlib.contextmanager
def locked_cache(folder: Path) -> Iterator[Path]:
    """Hold the folder's lock. The lock dies with its process, however that ends."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w", opener=_open_at_once) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def clear_leftovers(folder: Path) -> None:
    """Remove what a killed build left; the lock is held, so nobody is building in there."""
    for leftover in folder.glob("build-*"):
        shutil.rmtree(leftover, ignore_errors=True)


# ---- whole or not there ---------------------------------------------------------------------------


def install(built: Path, target: Path) -> None:
    """Move a finished library to its place, its digest first: who sees the library sees its digest.

    Both paths are on one file system.
    """
    note = _note(built)
    note.write_text(f"{_digest(built)}  {target.name}\n")  # as sha256sum -c reads it
    for path in (note, built):
        with open(path, "rb") as written:
            os.fsync(written)  # or a power cut could leave the name without the content
    for path in (_note(target), target):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)  # a file cannot take its place
    os.replace(note, _note(target))
    os.replace(built, target)


def is_whole(library: Path) -> bool:
    """Whether the library is there, as it was compiled."""
    with contextlib.suppress(OSError):
        return read_file(_note(library)).startswith(_digest(library).encode())
    return False


def remove(library: Path) -> None:
    """Remove a library, if it is there."""
    library.unlink(missing_ok=True)
    _note(library).unlink(missing_ok=True)


def _note(library: Path) -> Path:
    return library.with_name(f"{library.name}.sha256")


def _digest(library: Path) -> str:
    with open_file(library) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open_at_once(path: str, flags: int) -> int:
    """A pipe in place of the lock would be waited for."""
    return os.open(path, flags | os.O_NONBLOCK, 0o666)


# ---- for one process alone ------------------------------------------------------------------------


def temporary_folder(name: str) -> Path:
    """The temporary folder for the library of this name; it goes with `release` or with the process."""
    if name not in _temporary:
        _temporary[name] = tempfile.TemporaryDirectory(prefix="minillm-")
    return Path(_temporary[name].name)


def release(library: Path) -> None:
    """Remove a loaded library, if it lies in a temporary folder: loaded, it needs no file any more."""
    folder = _temporary.get(library.name)
    if folder is not None and library.parent == Path(folder.name):
        _temporary.pop(library.name).cleanup()
