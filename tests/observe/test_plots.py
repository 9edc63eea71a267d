"""The pictures: what is drawn, read back from the axes, equals the table that was given."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import recorded
import tiny

from minillm.errors import UsageError
from minillm.observe import plots
from minillm.observe.metrics import percentile
from minillm.observe.plots import KernelPoint
from minillm.observe.speculation import summarize_speculation
from minillm.observe.trace_file import Trace, read_trace

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module", params=["drafts", "tenants"])
def trace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    place = tmp_path_factory.mktemp("run")
    recorded.run(recorded.load(tiny.make_folder(place / "m"), place / "run", request.param))
    return read_trace(place / "run")


def heights(container: Any) -> list[float]:
    return [bar.get_height() for bar in container]


def is_drawn(figure: Any) -> bool:
    """A PNG can be made of it; what is odd in it raises there."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=40)
    return file.getvalue().startswith(b"\x89PNG")


def test_block_map_is_the_engine_s(trace: Trace) -> None:
    """Each column has as many used, cached and free blocks as the step says."""
    figure = plots.block_map(trace.events, trace.header["num_blocks"])
    (picture,) = figure.axes[0].get_images()
    steps = [event for event in trace.events if event.kind == "step"]
    columns = picture.get_array().T.tolist()
    assert len(columns) == len(steps)
    for column, step in zip(columns, steps, strict=True):
        cached, free = column.count(plots.CACHED), column.count(plots.FREE)
        assert (cached, free, len(column) - cached - free) == (step["cached"], step["free"], step["used"])
    assert (plots.PUBLIC in columns[0]) == trace.header["options"]["tenant_limits"] and is_drawn(figure)


def test_step_timeline_is_the_run(trace: Trace) -> None:
    steps = [event for event in trace.events if event.kind == "step"]
    figure = plots.step_timeline(trace.events)
    rows, blocks, waiting = figure.axes
    drawn = [heights(container) for axes in (rows, blocks) for container in axes.containers]
    names = ("decode_rows", "prefill_tokens", "used", "cached")
    assert drawn == [[step[name] for step in steps] for name in names]
    assert [bar.get_y() for bar in rows.containers[1]] == drawn[0]  # prefill stands on decode
    line, marks = waiting.get_lines()
    assert line.get_ydata().tolist() == [step["waiting"] for step in steps]
    assert line.get_xdata().tolist() == [step.step for step in steps]
    preempted = [event.step for event in trace.events if event.kind == "preempt"]
    assert list(marks.get_xdata()) == preempted != [] and is_drawn(figure)


def test_acceptance_is_the_run_s(trace: Trace) -> None:
    expected = summarize_speculation(trace.events).acceptance_by_position
    if not expected:
        with pytest.raises(UsageError, match="no draft"):
            plots.acceptance(trace.events)
        return
    for source in (trace.events, expected):
        figure = plots.acceptance(source)
        assert heights(figure.axes[0].containers[0]) == [100 * share for share in expected]
        assert is_drawn(figure)


def test_latency_distribution_is_that_of_the_values() -> None:
    series = {"a": [0.003, 0.001, 0.002, 0.010], "b": [0.5] * 7}
    figure = plots.latency_distribution(series)
    lines = figure.axes[0].get_lines()
    for (name, values), curve, marks in zip(series.items(), lines[::2], lines[1::2], strict=True):
        assert curve.get_label() == name
        assert curve.get_xdata().tolist() == sorted(1000 * value for value in values)
        assert curve.get_ydata().tolist() == [100 * (i + 1) / len(values) for i in range(len(values))]
        assert list(marks.get_xdata()) == [1000 * percentile(values, share) for share in (0.5, 0.9, 0.99)]
    assert len({line.get_linestyle() for line in lines[::2]}) == 2 and is_drawn(figure)


def test_memory_bar_is_the_parts() -> None:
    parts = {"weights": 300, "KV": 120, "buffers": 0}
    figure = plots.memory_bar(parts, total=512)
    bars = [container[0] for container in figure.axes[0].containers]
    assert [bar.get_width() for bar in bars] == [300, 120, 0, 92]
    assert [bar.get_x() for bar in bars] == [0, 300, 420, 420]
    assert len({bar.get_hatch() for bar in bars[:3]}) == 3 and is_drawn(figure)  # readable without colour


def test_roofline_has_the_points_and_the_limits() -> None:
    points = [KernelPoint("decode", 0.5, 8e9), KernelPoint("prefill", 100.0, 90e9)]
    figure = plots.roofline(points, bandwidth=20e9, peak=130e9)
    limit, *drawn = figure.axes[0].get_lines()
    assert [(p.get_label(), p.get_xdata()[0], p.get_ydata()[0] * 1e9) for p in drawn] == points
    for x, y in zip(limit.get_xdata(), limit.get_ydata(), strict=True):
        assert y * 1e9 == pytest.approx(min(130e9, 20e9 * x))
    assert len({p.get_marker() for p in drawn}) == 2 and is_drawn(figure)


def test_pressure_curve_is_the_table() -> None:
    table = {"tokens/s": [10.0, 19.0, 20.0], "preemptions": [0, 0, 5]}
    figure = plots.pressure_curve([1, 2, 4], table, "requests")
    for axes, (name, values) in zip(figure.axes, table.items(), strict=True):
        (line,) = axes.get_lines()
        assert axes.get_title(loc="left") == name
        assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 2, 4], list(values))
    assert is_drawn(figure)


WRONG: dict[str, Any] = {
    "no step": lambda: plots.step_timeline([]),
    "no block map": lambda: plots.block_map([], 4),
    "no draft": lambda: plots.acceptance([]),
    "no latency": lambda: plots.latency_distribution({"a": []}),
    "parts of 0 bytes": lambda: plots.memory_bar({"a": -1}),
    "points and limits": lambda: plots.roofline([KernelPoint("a", 0.0, 1.0)], 1.0, 1.0),
    "a value for each load": lambda: plots.pressure_curve([1, 2], {"a": [1]}),
    "a growing load": lambda: plots.pressure_curve([2, 1], {"a": [1, 2]}),
}


@pytest.mark.parametrize("text", WRONG)
def test_what_cannot_be_drawn_is_one_line(text: str) -> None:
    with pytest.raises(UsageError, match=text):
        WRONG[text]()


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"minillm\[plots\]"):
        plots.acceptance([0.5])


def test_no_setting_of_the_caller_changes() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    plots.memory_bar({"a": 1})
    assert dict(mpl.rcParams) == before and "matplotlib.pyplot" not in _loaded_by_plots()


def _loaded_by_plots() -> str:
    return Path(plots.__file__).read_text(encoding="utf-8")
