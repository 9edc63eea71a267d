"""Times calls on the GPU, and writes a report that is not lost if a later call crashes.

A kernel of ten microseconds takes less time than the Python code that launches it. So calls are recorded in
a CUDA graph, and the graph is timed with events. A call that waits for the GPU cannot be recorded; it is
timed call by call, and its row says so. Inputs smaller than the L2 cache would be read from the cache the
second time: pass several sets, which are used in turns.

With the simulator (`--simulate`) a call is run once, and its time has no meaning.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Run = Callable[[], Any]
SAMPLES = 10
SAMPLE_SECONDS = 0.01  # the calls of one sample take about this long


def timed(runs: list[Run], record: bool = True) -> dict[str, Any]:
    """Seconds of one call: median, lowest and highest of ten samples. `runs` are called in turns."""
    if not torch.cuda.is_available():
        start = time.perf_counter()
        runs[0]()
        return {"median_s": time.perf_counter() - start, "timed": "simulated"}
    for run in runs:
        run()
    once = _between_events(runs[0])
    calls = max(len(runs), min(200, int(SAMPLE_SECONDS / max(once, 1e-6))))
    turns = [runs[i % len(runs)] for i in range(calls)]
    again, how = _recorded(turns) if record and once < 0.1 else (_in_turn(turns[: len(runs)]), "calls")
    calls = calls if how == "graph" else len(runs)
    again()
    times = [_between_events(again) / calls for _ in range(SAMPLES)]
    return {"median_s": statistics.median(times), "low_s": min(times), "high_s": max(times), "timed": how}


def _recorded(turns: list[Run]) -> tuple[Run, str]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in turns:
            run()
    return graph.replay, "graph"


def _in_turn(turns: list[Run]) -> Run:
    def run_all() -> None:
        for run in turns:
            run()

    return run_all


def _between_events(run: Run) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


class Report:
    """Rows in a JSON file that is complete after every row: {"machine": ..., "rows": [...]}.

    Sections run in separate processes, one after another, and add to the same file.
    """

    def __init__(self, path: Path | None, machine: dict[str, Any]) -> None:
        self._path, self._content = path, {"machine": machine, "rows": []}
        if path and path.is_file():
            self._content["rows"] = json.loads(path.read_text())["rows"]
        self._write()

    def measure(self, what: str, by: str, run: Callable[[], dict[str, Any]]) -> None:
        """Add the row that `run` returns, or its error."""
        row = {"what": what, "by": by}
        try:
            row |= run()
        except Exception as error:  # one kernel's error must not lose the rows of the others
            row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        self._content["rows"].append(row)
        self._write()
        print(json.dumps(row), flush=True)

    def failed(self, ours: set[str]) -> bool:
        """Whether one of our rows is an error; a peer that refuses a shape is no failure."""
        return any("error" in row and row["by"] in ours for row in self._content["rows"])

    def _write(self) -> None:
        if self._path:
            whole = self._path.with_suffix(".part")
            whole.write_text(json.dumps(self._content, indent=1) + "\n")
            os.replace(whole, self._path)
