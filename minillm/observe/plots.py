"""Pictures of recorded runs and of measurements, in one style, for notebooks and benches.

    block_map(events)             owner of each block over the steps
    step_timeline(events)         rows, blocks, waiting requests and preemptions over the steps
    latency_distribution(values)  the share of values up to each latency, with p50, p90 and p99
    memory_bar(parts)             what takes the memory, in bytes
    roofline(points, ..)          kernels below the limits of a machine
    acceptance(events)            the share of draft tokens accepted, by position
    pressure_curve(rows, ..)      what a growing load does to each figure

Each returns a matplotlib `Figure` and changes no global setting. Colours are those of Okabe and Ito, which
colour-blind readers can tell apart. Where colour would be the only difference there is also a hatch, a marker
or a line style, so a print in black and white can be read.

matplotlib is the extra `plots`; it is imported when the first picture is drawn.

Papers: Okabe and Ito, "Color Universal Design" (2008); Williams et al., "Roofline" (CACM 2009).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from minillm.errors import UsageError
from minillm.observe.events import Event
from minillm.observe.metrics import percentile
from minillm.observe.speculation import summarize_speculation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
INK, SOFT, GREY, LIGHT = "#1C1F24", "#5A616B", "#4D5A6A", "#B9C4D0"
HATCHES = ("", "///", "...", "\\\\\\", "xx", "--", "oo")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")
SHARES = (0.5, 0.9, 0.99)
FREE, CACHED, PUBLIC, FIRST_OWNER = 0, 1, 2, 3  # the colours of a block map
OWNERS, PALE = PALETTE[:-1], "#DDE2E7"  # in grey, yellow would look like the prefix cache
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
}


class KernelPoint(NamedTuple):
    """A kernel in a roofline: FLOPs for each byte that it moves, and FLOPs per second."""

    name: str
    intensity: float
    flops: float


def _figure(width: float, height: float, rows: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure in the common style, and its axes: one, or an array of `rows`."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(f"pictures need matplotlib: {error}", 'pip install "minillm[plots]"') from None
    with ExitStack() as stack:
        stack.enter_context(mpl.rc_context(_STYLE))  # type: ignore[arg-type]
        figure = Figure(figsize=(width, height), layout="constrained", dpi=110)
        return figure, figure.subplots(rows, 1, **options)


def _steps(events: Iterable[Event]) -> list[Event]:
    steps = [event for event in events if event.kind == "step"]
    if not steps:
        raise UsageError("the run has no step to draw", "record a run with at least one request")
    return steps


# ---- runs -------------------------------------------------------------------------------------------


def block_map(events: Iterable[Event], num_blocks: int) -> Figure:
    """The owner of each block after each step, from the events `blocks` of a recorded run.

    Colours go round; neighbours in the queue differ. A shared block has the colour of its first owner.

    Raises:
        UsageError: there are no `blocks` events, or no matplotlib.
    """
    columns = _owners(events, num_blocks)
    if not columns:
        raise UsageError("the run has no block map", 'record it: LLM(record="run.jsonl")')
    figure, axes = _figure(8, min(6.0, 1.8 + num_blocks / 24))
    from matplotlib.colors import ListedColormap

    colours = ["#FFFFFF", PALE, INK, *OWNERS]
    grid = [[column[block] for column in columns] for block in range(num_blocks)]
    axes.imshow(
        grid,
        aspect="auto",
        interpolation="nearest",
        cmap=ListedColormap(colours),
        vmin=0,
        vmax=len(colours) - 1,
        extent=(0.5, len(columns) + 0.5, num_blocks - 0.5, -0.5),
    )
    _titled(axes, "KV blocks", xlabel="step", ylabel="block")
    _legend_below(figure, _owner_patches(has_public=any(PUBLIC in column for column in columns)))
    return figure


def _owner_patches(has_public: bool) -> list[Any]:
    from matplotlib.patches import Patch

    public = [Patch(facecolor=INK, label="public prefix")] if has_public else []
    return [
        Patch(facecolor=PALETTE[0], label="a request's (one colour each)"),
        Patch(facecolor=PALE, label="prefix cache only"),
        *public,
        Patch(facecolor="#FFFFFF", edgecolor=SOFT, label="free"),
    ]


def _owners(events: Iterable[Event], num_blocks: int) -> list[list[int]]:
    """For each `blocks` event the colour number of every block."""
    numbers: dict[str, int] = {}
    tables: dict[tuple[str, int], list[int]] = {}
    cached, columns = set[int](), list[list[int]]()
    for event in events:
        if event.kind == "queue":
            numbers.setdefault(event.request_id, len(numbers))
        if event.kind != "blocks":
            continue
        tables |= {(request_id, index): ids for request_id, index, ids in event["tables"]}
        cached = (cached | set(event["cached"])) - set(event["uncached"])
        column = [CACHED if block in cached else FREE for block in range(num_blocks)]
        for (request_id, _), ids in reversed(tables.items()):  # the oldest owner is drawn last
            for block in ids:
                column[block] = FIRST_OWNER + numbers.get(request_id, 0) % len(OWNERS)
        for block in tables.get(("", 0), []):
            column[block] = PUBLIC
        columns.append(column)
    return columns


def step_timeline(events: Iterable[Event]) -> Figure:
    """Rows of the batch, KV blocks, waiting requests and preemptions of every step."""
    events = list(events)
    steps = _steps(events)
    figure, (rows, blocks, waiting) = _figure(8, 5, 3, sharex=True)
    at = [step.step for step in steps]
    decode, prefill = ([step[name] for step in steps] for name in ("decode_rows", "prefill_tokens"))
    rows.bar(at, decode, width=1, color=PALETTE[1], label="decode")
    rows.bar(at, prefill, width=1, bottom=decode, color=PALETTE[0], label="prefill")
    used, cached = ([step[name] for step in steps] for name in ("used", "cached"))
    blocks.bar(at, used, width=1, color=GREY, label="used")
    blocks.bar(at, cached, width=1, bottom=used, color=LIGHT, label="prefix cache only")
    pool = steps[0]["used"] + steps[0]["cached"] + steps[0]["free"]
    blocks.axhline(pool, color=SOFT, linewidth=0.8, linestyle="--", label="all blocks")
    waiting.step(at, [step["waiting"] for step in steps], where="mid", color=PALETTE[5], label="waiting")
    preempted = [event.step for event in events if event.kind == "preempt"]
    waiting.plot(preempted, [0] * len(preempted), "v", color=INK, label="preemption", clip_on=False)
    _titled(rows, "rows in the step")
    _titled(blocks, "KV blocks", ylim=(0, pool * 1.08))
    _titled(waiting, "waiting requests", xlabel="step", ylim=(0, None))
    for axes in (rows, blocks, waiting):
        _legend_right(axes)
    return figure


def acceptance(source: Iterable[Event] | Sequence[float]) -> Figure:
    """The share of draft tokens accepted at each position: of a run's events, or shares from 0 to 1."""
    given = list(source)
    if given and isinstance(given[0], Event):
        shares = summarize_speculation(given).acceptance_by_position  # type: ignore[arg-type]
    else:
        shares = [float(share) for share in given]  # type: ignore[arg-type]
    if not shares:
        raise UsageError("the run has no draft", 'draft with LLM(draft_model="ngram")')
    figure, axes = _figure(4.5, 2.8)
    bars = axes.bar(range(1, len(shares) + 1), [100 * share for share in shares], 0.7, color=PALETTE[0])
    axes.bar_label(bars, [f"{100 * share:.0f} %" for share in shares], fontsize=8, color=INK)
    _titled(axes, "accepted draft tokens", xlabel="position in the draft", ylabel="%")
    axes.set_ylim(0, 109)
    axes.set_xticks(range(1, len(shares) + 1))
    return figure


# ---- numbers ----------------------------------------------------------------------------------------


def latency_distribution(series: Mapping[str, Sequence[float]], title: str = "latency") -> Figure:
    """For each named series of seconds, the share of values up to each latency; p50, p90, p99 are marked."""
    empty = [name for name, values in series.items() if not values]
    if empty or not series:
        raise UsageError(f"there is no latency to draw: {', '.join(empty) or 'no series'}")
    figure, axes = _figure(6, 3.2)
    for i, (name, values) in enumerate(series.items()):
        ordered = sorted(1000 * value for value in values)
        shares = [100 * (n + 1) / len(ordered) for n in range(len(ordered))]
        colour, line = PALETTE[i % len(PALETTE)], LINES[i % len(LINES)]
        axes.step(ordered, shares, where="post", color=colour, linestyle=line, label=name)
        marked = [1000 * percentile(values, share) for share in SHARES]
        axes.plot(marked, [100 * share for share in SHARES], MARKERS[i % len(MARKERS)], color=colour)
    _titled(axes, title, xlabel="ms", ylabel="% of values", ylim=(0, 102), xlim=(0, None))
    axes.set_yticks([0, 25, 50, 75, 90, 99])
    axes.grid(axis="y", color=LIGHT, linewidth=0.5)
    _legend_right(axes)
    return figure


def memory_bar(parts: Mapping[str, int], total: int | None = None) -> Figure:
    """What takes the memory: one bar of parts in bytes; `total` also draws what is left of it."""
    from minillm.config.sizes import format_bytes

    if not parts or any(size < 0 for size in parts.values()):
        raise UsageError("a memory bar needs parts of 0 bytes or more")
    figure, axes = _figure(8, 1.9)
    left, whole = 0, max(total or 0, sum(parts.values()), 1)
    for i, (name, size) in enumerate(parts.items()):
        colour, hatch = PALETTE[i % len(PALETTE)], HATCHES[i % len(HATCHES)]
        label = f"{name}: {format_bytes(size)}"
        axes.barh(0, size, left=left, color=colour, hatch=hatch, edgecolor="white", label=label)
        left += size
    if total is not None and total > left:
        free = f"free: {format_bytes(total - left)}"
        axes.barh(0, total - left, left=left, color="white", edgecolor=SOFT, label=free)
    _titled(axes, f"memory: {format_bytes(whole)}", xlim=(0, whole), yticks=[], xticks=[])
    for side in axes.spines.values():
        side.set_visible(False)
    handles, _ = axes.get_legend_handles_labels()
    _legend_below(figure, handles)
    return figure


def roofline(points: Sequence[KernelPoint], bandwidth: float, peak: float, title: str = "roofline") -> Figure:
    """Kernels below the limits of a machine: `bandwidth` in bytes/s, `peak` in FLOP/s."""
    if not points or min(bandwidth, peak, *(min(p.intensity, p.flops) for p in points)) <= 0:
        raise UsageError("a roofline needs points and limits above 0")
    figure, axes = _figure(6, 3.8)
    ridge = peak / bandwidth
    low = min(ridge, *(p.intensity for p in points)) / 2
    high = max(ridge, *(p.intensity for p in points)) * 4
    limit = [min(peak, bandwidth * x) / 1e9 for x in (low, ridge, high)]
    axes.loglog([low, ridge, high], limit, color=INK, linewidth=1.5, label="limit of the machine")
    for i, point in enumerate(points):
        colour, marker = PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]
        style = {"color": colour, "marker": marker, "linestyle": "none", "markeredgecolor": INK}
        axes.plot([point.intensity], [point.flops / 1e9], label=point.name, **style)
    _titled(axes, title, xlabel="FLOPs for each byte", ylabel="GFLOP/s")
    axes.grid(color=LIGHT, linewidth=0.4)
    _legend_right(axes)
    return figure


def pressure_curve(
    load: Sequence[float], figures: Mapping[str, Sequence[float]], label: str = "load"
) -> Figure:
    """One chart for each named figure over a growing load; all share the load's axis."""
    wrong = [name for name, values in figures.items() if len(values) != len(load)]
    if wrong or not figures or not load:
        what = ", ".join(wrong) or "nothing given"
        raise UsageError(f"a pressure curve needs a value for each load: {what}")
    if any(later <= earlier for earlier, later in pairwise(load)):
        raise UsageError("a pressure curve needs a growing load", "sort the measurements by load")
    figure, axes = _figure(6, 0.7 + 1.5 * len(figures), len(figures), sharex=True, squeeze=False)
    for i, (name, values) in enumerate(figures.items()):
        one = axes[i][0]
        colour, marker = PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]
        one.plot(load, values, marker=marker, color=colour, clip_on=False)
        _titled(one, name, ylim=(0, max(*values, 1e-12) * 1.12))
        one.grid(axis="y", color=LIGHT, linewidth=0.5)
    axes[-1][0].set(xlabel=label)
    return figure


# ---- titles and legends -----------------------------------------------------------------------------


def _titled(axes: Axes, title: str, **options: Any) -> None:
    axes.set(**options)
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")


def _legend_right(axes: Axes) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)


def _legend_below(figure: Figure, handles: Sequence[Any]) -> None:
    figure.legend(handles=handles, loc="outside lower left", ncols=4, fontsize=8, frameon=False)
