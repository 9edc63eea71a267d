"""`minillm list` and `minillm rm`: the models on this machine."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from minillm.cli.parser import Parser
from minillm.cli.streams import say
from minillm.config import shown
from minillm.errors import ModelNotFound, UsageError

if TYPE_CHECKING:
    from minillm.model.store.folder import CachedModel


@dataclass(frozen=True)
class Row:
    """One model of the list. `num_bytes` 0: it is not here, only known."""

    name: str
    num_bytes: int
    license: str
    origin: str
    here: bool = True


def add_parser(subparsers: argparse._SubParsersAction[Parser]) -> None:
    """Register both commands."""
    listing = subparsers.add_parser(
        "list",
        help="show the models on this machine",
        description="The models that ship with minillm, those in the cache, and those that pull can bring.",
    )
    listing.add_argument("--json", action="store_true", help="print one JSON object")
    listing.set_defaults(func=run_list)
    removal = subparsers.add_parser("rm", help="remove a model from the cache")
    removal.add_argument("names", nargs="+", metavar="NAME")
    removal.add_argument("-y", "--yes", action="store_true", help="do not ask")
    removal.set_defaults(func=run_rm)


def run_list(args: argparse.Namespace) -> int:
    """Print the list."""
    from minillm.model.store.folder import models_folder

    rows = collect()
    if args.json:
        print(json.dumps({"cache": str(models_folder()), "models": [asdict(row) for row in rows]}))
    else:
        _print(rows)
        print(f"cache: {models_folder()}")
    return 0


def collect() -> list[Row]:
    """Shipped models, then the cache, then what could be pulled."""
    from minillm.model.locate import ZOO, shipped_models
    from minillm.model.store.folder import cached_models
    from minillm.model.store.published import PUBLISHED

    shipped = [
        Row(name, sum(p.stat().st_size for p in (ZOO / name).iterdir()), "MIT", "ships with minillm")
        for name in shipped_models()
    ]
    cached = [Row(m.name, m.num_bytes, m.source.license, m.source.origin) for m in cached_models()]
    names = {row.name for row in cached}
    known = [
        Row(name, 0, model.license, f"not here: minillm pull {name}", here=False)
        for name, model in PUBLISHED.items()
        if name not in names
    ]
    return shipped + cached + known


def run_rm(args: argparse.Namespace) -> int:
    """Ask, and remove; 1 if the answer was no."""
    from minillm.config.sizes import format_bytes
    from minillm.model.store.folder import remove

    models = [_removable(name) for name in dict.fromkeys(args.names)]  # all of them, before the first goes
    for model in models:
        if not args.yes and not _agrees(f"remove {model.name} ({format_bytes(model.num_bytes)})? [y/N] "):
            print(f"{model.name} was kept")
            return 1
        remove(model.name)
        print(f"{model.name} was removed")
    return 0


def _removable(name: str) -> CachedModel:
    from minillm.model.locate import shipped_models
    from minillm.model.store.folder import cached_model

    model = cached_model(name)
    if model is not None:
        return model
    if name in shipped_models():
        raise UsageError(f"{name} ships with minillm and cannot be removed", "minillm list shows the cache")
    raise ModelNotFound(f"the cache has no model {shown(name)}", "minillm list shows what there is")


def _agrees(question: str) -> bool:
    if not sys.stdin.isatty():
        raise UsageError("the question needs a terminal as input", "use --yes")
    say(question, end="")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _print(rows: list[Row]) -> None:
    """Two lines a model, so that a narrow terminal shows whole words."""
    from minillm.config.sizes import format_bytes

    width = max(len(row.name) for row in rows)
    for row in rows:
        size = format_bytes(row.num_bytes) if row.here else "-"
        print(f"{row.name:<{width}}  {size:>9}  {row.license}".rstrip())
        print(f"    {row.origin}")
