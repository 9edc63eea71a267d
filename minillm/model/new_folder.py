"""A folder that appears complete or not at all.

    .NAME.new-<random>/     filled here, under a lock that ends with the process
    NAME/                   the same folder, renamed when everything in it is written

If the process is interrupted or killed, the folder is removed (`toolchain/crew.py`). After a power failure
the next process that makes NAME removes it; the lock tells a dead process from a running one.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from minillm.config.files import exists, shown_path
from minillm.config.sizes import format_bytes
from minillm.errors import MinillmError, StorageError, UsageError
from minillm.toolchain.crew import Crew


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill; it becomes `target` at the end of the block, if nothing is raised in it.

    Raises:
        StorageError: something cannot be written, or `target` exists and holds something.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
    except OSError as error:
        raise not_writable(target.parent, error) from None
    folder = target.with_name(_prefix(target) + secrets.token_hex(4))
    try:
        with Crew(folder), _made(folder), _locked(folder):
            yield folder
            os.chmod(folder, 0o755)
            _flush(folder)
            os.rename(folder, target)
    except MinillmError:
        raise
    except OSError as error:  # what is read reports its own errors, so this is about writing
        raise not_writable(target, error) from None


def require_absent(out: Path) -> None:
    """Refuse what exists (an empty folder may), what can be no new folder's name, and where none can be made.

    Raises:
        UsageError, StorageError: as said; before any work whose result would be lost.
    """
    if out.name in ("", ".."):
        raise UsageError(f"{shown_path(out)} is no name for a new folder", "give another one, as my-model")
    try:
        if os.path.islink(out) or (exists(out) and not (out.is_dir() and not any(out.iterdir()))):
            raise UsageError(f"{shown_path(out)} exists", "give the name of a new folder, or remove it first")
    except PermissionError as error:
        raise StorageError(
            f"{shown_path(out)} cannot be read: {error.strerror}", "check its permissions"
        ) from None
    above = next(parent for parent in out.absolute().parents if os.path.exists(parent))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        reason = "Permission denied" if above.is_dir() else "Not a directory"
        raise StorageError(f"{shown_path(above)} cannot be written: {reason}", "choose another folder")


def remove_leftovers(target: Path) -> None:
    """Remove what dead processes left of `target`."""
    for leftover in target.parent.glob(f"{glob.escape(_prefix(target))}*"):
        with contextlib.suppress(OSError), _locked(leftover):
            shutil.rmtree(leftover, ignore_errors=True)


def require_space(folder: Path, num_bytes: int) -> None:
    """Refuse before anything is written into a new folder.

    Raises:
        StorageError: the file system of `folder` has less than `num_bytes` free.
    """
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        there, needed = format_bytes(free), format_bytes(num_bytes)
        raise StorageError(
            f"{shown_path(folder.parent)} has {there} free and {needed} are needed",
            "free some space, or choose another folder",
        )


def not_writable(path: Path, error: OSError) -> StorageError:
    """The error of a folder that the system does not let be written."""
    return StorageError(
        f"{shown_path(path)} cannot be written: {error.strerror or error}",
        "check its permissions and free space",
    )


def _prefix(target: Path) -> str:
    return f".{target.name}.new-"


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(mode=0o700)
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's own lock; BlockingIOError where a running process holds it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _flush(folder: Path) -> None:
    """Bring the files to the disk: otherwise a power failure could leave names without content."""
    for path in folder.iterdir():
        if path.is_file() and not path.is_symlink():
            with open(path, "rb") as written:
                os.fsync(written.fileno())
