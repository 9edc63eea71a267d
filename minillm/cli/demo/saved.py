"""What `minillm demo pressure --out DIR` writes: the report as JSON, and a picture for each KV budget."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from minillm.cli.streams import say
from minillm.config.files import shown_path
from minillm.errors import StorageError


def prepare(folder: Path) -> None:
    """Make the folder, and find out whether it can be written, before minutes are spent on a measurement."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        raise _cannot_write(folder, error) from None


def _cannot_write(folder: Path, error: OSError | ValueError) -> StorageError:
    reason = (isinstance(error, OSError) and error.strerror) or str(error)
    return StorageError(f"cannot write to {shown_path(folder)}: {reason}", "choose another --out")


def save(report: dict[str, Any], folder: Path, has_figure: bool) -> None:
    """Write the report, and with `has_figure` its pictures, into a folder that was prepared."""
    try:
        (folder / "pressure.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        if has_figure:
            _draw(report, folder)
    except OSError as error:
        raise _cannot_write(folder, error) from None
    say(f"minillm: saved in {folder}")


def _draw(report: dict[str, Any], folder: Path) -> None:
    """One picture for each KV budget."""
    from minillm.observe.plots import pressure_curve

    for number, run in enumerate(report["runs"], 1):
        stages = run["stages"]
        if not stages:
            continue
        figures = {
            "time to the first token, p99, s": [stage["ttft_s"]["p99"] for stage in stages],
            "time between tokens, p99, s": [stage["itl_s"]["p99"] for stage in stages],
            "tokens per second": [stage["tokens_per_s"] for stage in stages],
            "blocks without an owner": [stage["headroom_blocks"] for stage in stages],
            "allocated slots without a token, share": [stage["fragmentation"] for stage in stages],
            "preemptions": [stage["preemptions"] for stage in stages],
        }
        tokens = [stage["requests"] * (stage["context"] + report["new_tokens"]) for stage in stages]
        label = f"tokens wanted at once, with {run['num_blocks']} KV blocks"
        name = "pressure.png" if len(report["runs"]) == 1 else f"pressure-{number}.png"
        pressure_curve(tokens, figures, label).savefig(folder / name, bbox_inches="tight")
