"""The models of the cache, shared by all processes of this user.

    <cache>/models/lock             held while a model is made or removed
    <cache>/models/NAME/            a model folder in Hugging Face layout, and beside the usual files:
        source.json                 where it came from, its licence, size and digest of each file
        model.gguf                  the file it was made from, or a link to it
    <cache>/models/.NAME.new-*/     being made; see `model/new_folder.py`

<cache> is that of compiled libraries: $MINILLM_CACHE, else ~/.cache/minillm. A folder is renamed to its name
when it is complete, so reading needs no lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from json import dumps
from pathlib import Path
from typing import Any

from minillm.config import shown
from minillm.config.files import exists, open_file, read_object
from minillm.errors import MinillmError, ModelNotFound, UnreadableFile
from minillm.model.new_folder import not_writable
from minillm.toolchain.cache import cache_folder, locked_cache
from minillm.version import __version__

SOURCE, GGUF = "source.json", "model.gguf"
FORMAT = 2  # of the folders that conversion writes: folders of a smaller number are made again
_NAME = re.compile(r"\w[\w.+-]*")


@dataclass(frozen=True)
class Source:
    """Where a model came from, for people; its licence ("" if unknown); the file it was made of, if any."""

    origin: str
    license: str = ""
    made_from: str = ""


@dataclass(frozen=True)
class CachedModel:
    """One model of the cache."""

    name: str
    folder: Path
    source: Source
    files: dict[str, list[Any]]
    format: int = FORMAT

    @property
    def num_bytes(self) -> int:
        """Bytes of its files."""
        return sum(size for size, _ in self.files.values())

    def is_outdated(self) -> bool:
        """Whether it was converted by an older minillm, which made another folder of the same file."""
        return self.format < FORMAT and _is_there(self.folder / GGUF)

    def is_whole(self) -> bool:
        """Whether every file is there and has the digest it was written with."""
        with contextlib.suppress(UnreadableFile):
            return all(file_digest(self.folder / name) == digest for name, (_, digest) in self.files.items())
        return False


def models_folder() -> Path:
    """Where the models are. The folder may not exist yet."""
    return cache_folder() / "models"


def cached_models() -> list[CachedModel]:
    """All models of the cache, by name. Folders that minillm did not write are left out."""
    try:
        names = sorted(path.name for path in models_folder().iterdir())
    except OSError:
        return []
    found = (cached_model(name) for name in names)
    return [model for model in found if model is not None]


def cached_model(name: str) -> CachedModel | None:
    """The model of this name, None where there is none."""
    folder = models_folder() / name
    if not _NAME.fullmatch(name) or not _is_there(folder / SOURCE):
        return None
    with contextlib.suppress(MinillmError):
        content = read_object(folder / SOURCE, ModelNotFound)
        source: Any = content.get("source")
        files: Any = content.get("files")
        number: Any = content.get("format", 1)
        if _is_source(source) and _are_files(files) and isinstance(number, int):
            return CachedModel(name, folder, Source(**source), files, number)
    return CachedModel(name, folder, Source("damaged: remove it"), {})


def _is_source(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and "origin" in content
        and content.keys() <= {"origin", "license", "made_from"}
        and all(isinstance(text, str) for text in content.values())
    )


def _are_files(content: Any) -> bool:
    """Whether it is {name: [size, digest]}, of names in the folder itself."""
    return isinstance(content, dict) and all(
        _NAME.fullmatch(name)
        and isinstance(pair, list)
        and len(pair) == 2
        and isinstance(pair[0], int)
        and 0 <= pair[0] < 1 << 63
        and isinstance(pair[1], str)
        for name, pair in content.items()
    )


def _is_there(path: Path) -> bool:
    with contextlib.suppress(UnreadableFile):
        return exists(path)
    return False


def seal(folder: Path, source: Source) -> None:
    """Write `source.json` for the files that are in `folder`."""
    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.is_symlink()]
    files = {path.name: [path.stat().st_size, file_digest(path)] for path in paths}
    content = {"minillm": __version__, "format": FORMAT, "source": asdict(source), "files": files}
    (folder / SOURCE).write_text(dumps(content, indent=2) + "\n", encoding="utf-8")


def remove(name: str) -> None:
    """Remove a model from the cache.

    Raises:
        ModelNotFound: there is none of this name.
        StorageError: it cannot be removed.
    """
    if cached_model(name) is None:
        known = ", ".join(model.name for model in cached_models()) or "none"
        raise ModelNotFound(f"the cache has no model {shown(name)}", f"in the cache: {known}")
    with store_lock() as models:
        discard(models / name)


def discard(folder: Path) -> None:
    """Remove a folder; its name is free at once, and incomplete is what is never found under it."""
    try:
        if folder.is_symlink():  # a user's own arrangement: what it leads to is not ours
            folder.unlink()
            return
        with contextlib.suppress(IsADirectoryError):
            (folder / SOURCE).unlink(missing_ok=True)
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise not_writable(folder, error) from None


@contextlib.contextmanager
def store_lock() -> Iterator[Path]:
    """Hold the lock of the models' folder, and make the folder if need be.

    Raises:
        StorageError: the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(locked_cache(models_folder()))
        except OSError as error:
            raise not_writable(models_folder(), error) from None
        for leftover in folder.glob(".*.new-*"):  # of dead processes: all others hold the lock
            shutil.rmtree(leftover, ignore_errors=True)
        yield folder


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
