"""The folder of compiled libraries, shared by all processes of this user.

    lock                                      held while a library is compiled
    build-<random>/                           a running build: objects, and the library until it is complete
    cpu-<key>-<key>.so, simt-<key>-<key>.so   libraries
    cpu-<key>-<key>.so.sha256                 the digest of each

The lock is a `flock`. It prevents two processes from compiling the same library at once, and the operating
system releases it if a process is killed. The next build removes what a killed process left in build-*. A
complete library is renamed to its final name, so no process finds an incomplete one. The digest detects
later damage: a truncated library would not fail to load, it would end the process with SIGBUS.

If the folder cannot be written or the disk is full, this is no error. The library is then compiled into a
temporary folder, for this process only.

Left out: a size limit. Libraries of old sources stay until the user empties the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from minillm.config import shown
from minillm.config.files import open_file, read_file
from minillm.errors import UsageError

_temporary: dict[str, tempfile.TemporaryDirectory[str]] = {}  # key: the name of the library in the folder


def cache_folder() -> Path:
    """$MINILLM_CACHE, else $XDG_CACHE_HOME/minillm, else ~/.cache/minillm. The folder may not exist yet.

    Raises:
        UsageError: $MINILLM_CACHE begins with the home folder of an unknown user, such as ~nobody.
    """
    own = os.environ.get("MINILLM_CACHE")
    if own:
        try:
            return Path(own).expanduser()
        except RuntimeError:
            raise UsageError(
                f"MINILLM_CACHE is {shown(own)}: there is no such user", "give a folder"
            ) from None
    home = os.environ.get("XDG_CACHE_HOME")
    with contextlib.suppress(RuntimeError):  # a user without a home directory
        return (Path(home) if home else Path("~/.cache").expanduser()) / "minillm"
    return Path(tempfile.gettempdir()) / f"minillm-{os.getuid()}"


@contextlib.contextmanager
def locked_cache(folder: Path) -> Iterator[Path]:
    """Hold the folder's lock. It is released when its process ends, in every case."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w", opener=_open_at_once) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def clear_leftovers(folder: Path) -> None:
    """Remove what a killed build left. The caller holds the lock, so no build is running."""
    for leftover in folder.glob("build-*"):
        shutil.rmtree(leftover, ignore_errors=True)


# ---- complete libraries ---------------------------------------------------------------------------


def install(built: Path, target: Path) -> None:
    """Move a finished library to its final name, after its digest: a library always has its digest.

    Both paths must be on one file system.
    """
    note = _note(built)
    note.write_text(f"{_digest(built)}  {target.name}\n")  # the format of sha256sum -c
    for path in (note, built):
        with open(path, "rb") as written:
            os.fsync(written)  # otherwise a power failure could leave the name without the content
    for path in (_note(target), target):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)  # a file cannot take its place
    os.replace(note, _note(target))
    os.replace(built, target)


def is_whole(library: Path) -> bool:
    """Whether the library exists and is undamaged."""
    with contextlib.suppress(OSError):
        return read_file(_note(library)).startswith(_digest(library).encode())
    return False


def remove(library: Path) -> None:
    """Remove a library, if it exists."""
    library.unlink(missing_ok=True)
    _note(library).unlink(missing_ok=True)


def _note(library: Path) -> Path:
    return library.with_name(f"{library.name}.sha256")


def _digest(library: Path) -> str:
    with open_file(library) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting: there may be a pipe in place of the lock."""
    return os.open(path, flags | os.O_NONBLOCK, 0o666)


# ---- for one process only -------------------------------------------------------------------------


def temporary_folder(name: str) -> Path:
    """The temporary folder for the library of this name; `release` or the end of the process removes it."""
    if name not in _temporary:
        _temporary[name] = tempfile.TemporaryDirectory(prefix="minillm-")
    return Path(_temporary[name].name)


def release(library: Path) -> None:
    """Remove the file of a loaded library, if it is in a temporary folder: it is no longer needed."""
    folder = _temporary.get(library.name)
    if folder is not None and library.parent == Path(folder.name):
        _temporary.pop(library.name).cleanup()
