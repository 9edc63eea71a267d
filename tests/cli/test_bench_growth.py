"""`minillm bench growth`: every curve is measured and printed, and a slope means what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from minillm.bench import growth
from minillm.cli.bench_growth import CURVES, print_growth


def test_every_curve_is_measured_and_printed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"CONTEXTS": (16, 32), "BATCHES": (4, 8), "QUEUES": (10, 20), "CACHES": (64, 128)}
    for name, value in sizes.items():
        monkeypatch.setattr(growth, name, value)
    report = growth.run_growth(lambda **changes: tiny.load(folder, **changes), runs=3, served=600)
    assert set(report) == {*CURVES, "machine"}
    for name in ("context", "batch", "queue_add", "queue_step", "cache"):
        assert all(seconds > 0 for _, seconds in report[name]["points"]), name
    assert [x for x, _ in report["context"]["points"]] == [16, 32]
    assert [x for x, _ in report["requests"]["points"]] == [*range(60, 600, 60), 600]
    print_growth(report)
    printed = capsys.readouterr().out
    assert all(f"{report[name]['slope']:.2f}" in printed for name in CURVES)


@pytest.mark.parametrize(("power", "slope"), [(0, 0.0), (1, 1.0), (2, 2.0), (0.5, 0.5)])
def test_the_slope_is_that_of_the_last_two_points(power: float, slope: float) -> None:
    points = [(10, 7.0), (100, 100.0**power), (400, 400.0**power)]
    assert growth.curve("x, seconds", points)["slope"] == pytest.approx(slope)
