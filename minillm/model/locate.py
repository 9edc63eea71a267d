"""Finds the folder of a model from the value of --model: a path, a model's name, or a hub id."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from minillm.config import shown
from minillm.errors import ModelNotFound, UsageError, is_interrupt
from minillm.model.gguf.header import is_gguf
from minillm.model.store.folder import CachedModel, cached_model, cached_models
from minillm.model.store.published import PUBLISHED

ZOO = Path(__file__).resolve().parent.parent / "zoo"
DEFAULT_MODEL = "storyteller-6m"
DEFAULT_DRAFT = "storyteller-1m"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja"]


def find_model(model: str | Path | None) -> Path:
    """The folder of `model`; None is the model that ships with the package.

    An existing folder or GGUF file wins over the name of a shipped model, that over the name of a model in
    the cache, and that over a hub id, which is fetched (or taken from its own cache) by huggingface_hub under
    its own rules. A GGUF file is converted into the cache when it is met for the first time.

    Raises:
        ModelNotFound: none of them, with the nearest names.
        MinillmError: a GGUF file that cannot be converted.
    """
    if model is None:
        return _shipped(DEFAULT_MODEL)
    if not isinstance(model, str | Path):
        raise UsageError(f"model must be a folder, a name or a hub id, not {shown(model)}")
    if not str(model):
        raise UsageError("the model's name is empty", "leave it out to have the model that ships")
    try:
        path = Path(model).expanduser()
        path.stat()
    except FileNotFoundError:
        pass
    except (OSError, RuntimeError, ValueError) as error:  # too long, no permission, no such ~user, a NUL
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise ModelNotFound(
            f"there is no model folder {shown(str(model))}: {reason}", "check the name"
        ) from None
    if path.is_dir():
        return path
    if path.exists():
        if path.is_file() and is_gguf(path):
            from minillm.model.store.gguf import folder_of_gguf  # slow to import, and rarely needed

            return folder_of_gguf(path)
        raise ModelNotFound(f"{path} is a file", "give the folder it lies in, or a GGUF file")
    name = str(model)
    if (ZOO / name).is_dir():
        return ZOO / name
    cached = cached_model(name)
    if cached is not None:
        return _up_to_date(cached)
    if name in PUBLISHED:
        raise ModelNotFound(f"the model {name} is not on this machine yet", f"get it: minillm pull {name}")
    if _HUB_ID.fullmatch(name) and not path.parent.is_dir():
        return _from_hub(name)
    raise ModelNotFound(f"there is no model folder {shown(name)}", _suggestion(path))


def find_draft(model: str | Path) -> Path:
    """The folder of a draft model, as `find_model`; "auto" is the draft that ships with the package."""
    return _shipped(DEFAULT_DRAFT) if model == "auto" else find_model(model)


def shipped_models() -> list[str]:
    """Names of the models in the package."""
    return sorted(p.parent.name for p in ZOO.glob("*/config.json"))


def _up_to_date(model: CachedModel) -> Path:
    if not model.is_outdated():
        return model.folder
    from minillm.model.store.pull import renewed  # slow to import, and rarely needed

    return renewed(model)


def _shipped(name: str) -> Path:
    folder = ZOO / name
    if not folder.is_dir():
        raise ModelNotFound(f"the shipped model {name} is not in this installation", "install minillm again")
    return folder


def _from_hub(repo_id: str) -> Path:
    from huggingface_hub import snapshot_download  # slow to import, and rarely needed

    try:
        return Path(snapshot_download(repo_id, allow_patterns=_HUB_FILES))
    except BaseException as error:  # huggingface_hub raises many types of errors, and panics too
        if is_interrupt(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelNotFound(
            f"{shown(repo_id)} is no folder here and cannot be had from the hub: {reason}",
            "check the name and the network, or give a folder",
        ) from None


def _suggestion(path: Path) -> str:
    try:
        beside = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    except OSError:
        beside = []
    known = [*shipped_models(), *(model.name for model in cached_models()), *PUBLISHED]
    near = difflib.get_close_matches(path.name, [*beside, *dict.fromkeys(known)], n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"give a folder, a hub id, or one of {', '.join(shipped_models())}"
