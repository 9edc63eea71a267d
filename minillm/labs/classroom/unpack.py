"""Unpack a zip that a stranger made: nothing lands outside the folder, and nothing large is written.

Only lab files and zips inside are written. Sizes are counted while reading: the sizes in a zip's own table
can be wrong.
"""

from __future__ import annotations

import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

MAX_ENTRIES = 5000
MAX_FILE_BYTES = 1 << 20
MAX_ZIP_BYTES = 32 << 20  # of a zip inside, and of everything that is written
_SUFFIXES = {".py": MAX_FILE_BYTES, ".cu": MAX_FILE_BYTES, ".zip": MAX_ZIP_BYTES}


class BadZip(Exception):
    """The zip is damaged, encrypted or too large, or wants to write outside its folder."""


def unpack(archive: Path, folder: Path) -> None:
    """Write the lab files of `archive` to `folder`.

    Raises:
        BadZip: see the class; files that were written before stay.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            _extract(opened, folder)
    except BadZip:
        raise
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError) as error:
        # Not an OSError's whole text: it has paths of this machine, and students read the report.
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise BadZip(f"{archive.name} cannot be unpacked: {why}") from None
    except (RuntimeError, NotImplementedError) as error:  # a password, or an unknown compression
        raise BadZip(f"{archive.name} cannot be unpacked: {error}") from None


def _extract(opened: zipfile.ZipFile, folder: Path) -> None:
    entries = opened.infolist()
    if len(entries) > MAX_ENTRIES:
        raise BadZip(f"the zip has {len(entries)} entries; at most {MAX_ENTRIES} are read")
    left = MAX_ZIP_BYTES
    for entry in entries:
        place = _place(entry.filename)
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if entry.is_dir() or kind == stat.S_IFLNK or place.suffix.lower() not in _SUFFIXES:
            continue
        limit = _SUFFIXES[place.suffix.lower()]
        with opened.open(entry) as stream:
            data = stream.read(limit + 1)  # one byte more, so that `reading.py` sees that it is too large
        left -= len(data)
        if left < 0:
            raise BadZip(f"the files of the zip have more than {MAX_ZIP_BYTES >> 20} MiB")
        target = folder.joinpath(*place.parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def _place(name: str) -> PurePosixPath:
    """The path of an entry inside the folder.

    Raises:
        BadZip: it is absolute, or leads out of the folder.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or any(":" in part for part in path.parts[:1]):
        raise BadZip(f"the zip wants to write to {name!r}, outside its folder")
    return path
