"""The long form: Chromium opens the page; what it shows is what the data say, and nothing fails in it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import recorded
import tiny

from minillm.observe.replay.data import replay_data
from minillm.observe.replay.page import make_page
from minillm.observe.trace_file import read_trace

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (1280, 480)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt install chromium"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A page, and its data."""
    place = tmp_path_factory.mktemp("run")
    recorded.run(recorded.load(tiny.make_folder(place / "m"), place / "run", "drafts"))
    data = replay_data(read_trace(place / "run"))
    (place / "page.html").write_text(make_page(data))
    return place / "page.html", json.loads(json.dumps(data))


def browse(page: Path, address: str, *options: str, width: int = 1280) -> tuple[str, list[str]]:
    """The page's elements after its program has run, and what it wrote to the console."""
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--enable-logging=stderr", f"--user-data-dir={page.parent / 'profile'}",
        f"--window-size={width},2400", *options, f"file://{page}#{address}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def shown(dom: str, table: str) -> dict[str, str]:
    """The texts of a table of the page, by the names of their cells."""
    (text,) = re.findall(rf'<table id="{table}">(.*?)</table>', dom, re.DOTALL)
    return {name: unescape(cell) for name, cell in re.findall(r'<td data-name="([^"]+)">(.*?)</td>', text)}


def seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f} s" if abs(value) >= 1 else f"{value * 1000:.2f} ms"


def near(text: str, value: float | None) -> bool:
    """Equal to the last digit shown: JavaScript and Python may round a tie differently."""
    if value is None:
        return text == "-"
    number, unit = text.split()
    last = 10.0 ** -len(number.partition(".")[2])
    return abs(float(number) - value * {"s": 1, "ms": 1000}[unit]) <= 0.51 * last


@pytest.mark.parametrize("position", [0.0, 0.4, 0.7, 1.0])
def test_the_numbers_shown_are_the_data_s(page: tuple[Path, Any], position: float) -> None:
    path, data = page
    columns = data["columns"]
    frame = round(position * (len(columns["step"]) - 1))
    number = round(position * (len(data["requests"]) - 1))
    dom, console = browse(path, f"step={columns['step'][frame]}&request={number + 1}", "--dump-dom")
    assert console == [] and 'data-ready="yes"' in dom
    facts, request = shown(dom, "facts"), data["requests"][number]
    for name in ("prefill", "decode", "output", "running", "waiting", "hits", "preempted", "used", "cached"):
        assert facts[name] == f"{columns[name][frame]:,}", name
    assert facts["drafts"] == f"{columns['accepted'][frame]:,} of {columns['drafted'][frame]:,}"
    assert facts["waste"] == f"{columns['waste'][frame]:,} of {columns['slots'][frame]:,}"
    assert near(facts["seconds"], columns["seconds"][frame])
    follow = shown(dom, "request")
    assert follow["id"] == request["id"] and follow["tenant"] == request["tenant"]
    for name in ("prompt_tokens", "cached_tokens", "samples", "output_tokens", "preemptions"):
        assert follow[name] == f"{request[name]:,}", name
    for name in ("submitted", "queue", "ttft", "tpot", "e2e"):
        assert near(follow[name], request[name]), name
    assert len(re.findall("<li[ >]", dom)) == len(request["life"])
    used, cached, free = (columns[name][frame] for name in ("used", "cached", "free"))
    drawn = f"KV blocks: {used} used, {cached} in the prefix cache only, {free} free"
    assert f'aria-label="{drawn}"' in dom  # counted in the tables that the page has put together


def test_the_summary_shown_is_the_data_s(page: tuple[Path, Any]) -> None:
    path, data = page
    dom, _ = browse(path, "", "--dump-dom")
    summary, said = data["summary"], shown(dom, "summary")
    for name in ("requests", "refused", "prompt_tokens", "prefill_tokens", "output_tokens", "preemptions"):
        assert said[name] == f"{summary[name]:,}", name
    assert all(map(near, said["ttft"].split(", "), summary["ttft"]))
    drafts = shown(dom, "acceptance")
    for i, (accepted, drafted) in enumerate(
        zip(summary["accepted_at"], summary["drafted_at"], strict=True), 1
    ):
        assert drafts[f"at-{i}"].endswith(f"{accepted:,} of {drafted:,}")


def test_control_an_error_of_the_program_is_noticed(page: tuple[Path, Any], tmp_path: Path) -> None:
    """Without its policy, which would refuse a changed program, a page with a wrong name in it complains."""
    text = re.sub(r"<meta http-equiv[^>]*>", "", page[0].read_text()).replace(
        "showAbout(run);", "showAbuot(run);"
    )
    (tmp_path / "bad.html").write_text(text)
    _, console = browse(tmp_path / "bad.html", "", "--dump-dom")
    assert any("showAbuot" in line for line in console)


def test_a_changed_program_does_not_run(page: tuple[Path, Any], tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text(page[0].read_text().replace("showAbout(run);", "showAbout(run );"))
    dom, console = browse(tmp_path / "bad.html", "", "--dump-dom")
    assert "data-ready" not in dom.partition(">")[0] + dom[:300] and any(
        "Content Security" in c for c in console
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_screenshots(page: tuple[Path, Any], tmp_path: Path, width: int) -> None:
    """Two widths, for a person to look at: MINILLM_SCREENSHOTS names a folder that keeps them."""
    folder = Path(os.environ.get("MINILLM_SCREENSHOTS", tmp_path))
    picture = folder / f"replay-{width}.png"
    _, console = browse(page[0], "step=40&request=4", f"--screenshot={picture}", width=width)
    assert console == [] and picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000
