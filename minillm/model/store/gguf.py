"""A user's GGUF file into the cache, so that `--model file.gguf` converts once.

The folder's name holds a digest of the file's path, size and time of change: a file that was replaced is
converted again. The file itself is not copied; model.gguf in the folder is a link to it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from pathlib import Path

from minillm.config.files import unreadable
from minillm.model.gguf.convert import Conversion
from minillm.model.new_folder import new_folder
from minillm.model.store.folder import GGUF, Source, cached_model, discard, seal, store_lock
from minillm.progress import Bar

_log = logging.getLogger(__name__)


def folder_of_gguf(path: Path) -> Path:
    """The folder that was made, or is made now, of a GGUF file.

    Raises:
        MinillmError: the file cannot be converted; see `Conversion.of`.
        StorageError: the cache cannot be written.
    """
    name = _name(path)
    there = cached_model(name)
    if there and there.files and not there.is_outdated():
        return there.folder
    conversion = Conversion.of(path)
    with store_lock() as models:
        there = cached_model(name)  # another process may have made it in the meantime
        if there and there.files and not there.is_outdated():
            return there.folder
        _log.info("converting %s, once; minillm list shows it as %s", path.name, name)
        if conversion.unkept:
            stored = str(conversion.dtype).removeprefix("torch.")
            kinds = f"its blocks ({', '.join(conversion.unkept)}) become {stored}"
            _log.info("%s; minillm convert %s OUT --keep-quantized keeps them", kinds, path.name)
        with new_folder(models / name) as folder, Bar("converting", in_bytes=True) as bar:
            conversion.write(folder, bar)
            os.symlink(path.resolve(), folder / GGUF)
            license_name = str(conversion.file.metadata.get("general.license", ""))
            seal(folder, Source(f"made of {path.resolve()}", license_name, str(path.resolve())))
            discard(models / name)
    return models / name


def _name(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:
        raise unreadable(path, error) from None
    parts = (str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino)
    stem = re.sub(r"[^\w.+-]", "-", path.stem).lstrip(".+-")[:80] or "model"
    return f"{stem}-{hashlib.sha256(repr(parts).encode(errors='surrogateescape')).hexdigest()[:10]}"
