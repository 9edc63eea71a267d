"""`minillm demo replay RUN.jsonl`: a recorded run as a page for the browser, or as a trace for Perfetto."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from minillm.config.files import shown_path
from minillm.config.sizes import format_bytes
from minillm.errors import StorageError, UsageError

NAME = "replay"


def add_command(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `replay`."""
    parser = commands.add_parser(
        NAME,
        help="a recorded run as a page for the browser",
        description="Make one HTML file of a run that was recorded with --record or LLM(record=...). It "
        "needs no network and no other file. With --chrome-trace, make a trace for ui.perfetto.dev or "
        "chrome://tracing instead.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the recorded run")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page (default: RUN with .html)")
    parser.add_argument("--chrome-trace", type=Path, metavar="FILE", help="write a trace in Chrome's format")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Read the run, write what was asked for, and say where it is."""
    from minillm.observe.chrome_trace import chrome_trace
    from minillm.observe.replay.data import replay_data
    from minillm.observe.replay.page import make_page
    from minillm.observe.trace_file import read_trace

    targets = [path for path in (args.out, args.chrome_trace) if path is not None] or [_beside(args.run)]
    for path in targets:
        _require_other(path, args.run, "the recorded run itself")
    if len(targets) == 2:
        _require_other(targets[0], targets[1], "the page and the trace at once")
    trace = read_trace(args.run)
    if args.chrome_trace is not None:
        _write(args.chrome_trace, json.dumps(chrome_trace(trace), allow_nan=False))
    if args.chrome_trace is None or args.out is not None:
        _write(targets[0], make_page(replay_data(trace)))
    if trace.is_cut:
        print("the last line of the file was cut, and is left out")
    return 0


def _beside(path: Path) -> Path:
    return path.with_suffix(".html") if path.name else path


def _require_other(path: Path, source: Path, what: str) -> None:
    """Never write over the recorded run, by whatever name, nor two things into one file."""
    try:
        same = path.resolve() == source.resolve() or (path.is_file() and _is_same_file(path, source))
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"{shown_path(path)} is no path: {error}", "name another file") from None
    if same:
        raise UsageError(f"{shown_path(path)} is {what}", "name another file with --out")


def _is_same_file(path: Path, source: Path) -> bool:
    """Whether both are names of one file (hard links)."""
    return source.exists() and path.samefile(source)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise StorageError(f"{shown_path(path)} cannot be written: {reason}", "name another file") from None
    print(f"{shown_path(path)}: {format_bytes(path.stat().st_size)}")
