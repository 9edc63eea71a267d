"""`minillm demo pressure`: latency, memory and batching while only context and concurrency grow."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minillm.cli.demo.saved import prepare, save
from minillm.cli.options import add_engine_options, engine_options, load_llm, model_of
from minillm.cli.planned import planned_config
from minillm.config import require_number
from minillm.config.sizes import parse_bytes
from minillm.errors import UsageError

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from minillm.bench.pressure import Watcher
    from minillm.engine.engine import Engine
    from minillm.observe.online import EngineMetrics
    from minillm.observe.slo import Slo

NAME = "pressure"
REDRAW_SECONDS = 0.25  # drawing takes milliseconds, which are in the figures
TIMES = ("TTFT p50", "TTFT p99", "ITL p50", "ITL p99")
COLUMNS = ("requests x context", "tok/s", *TIMES, "blocks", "headroom", "waste", "preempted")


def add_command(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `pressure`."""
    parser = commands.add_parser(
        NAME,
        help="latency, memory and batching while only context and concurrency grow",
        description="Warm the engine, run clean, then let only context and concurrency grow, under one KV "
        "budget or several. The figures of each stage are drawn while it runs, and saved as one figure and "
        "one JSON file. With --slices: how many blocks each MIG slice of a GPU would hold of a model of this "
        "shape, and how a larger load would run in them; only config.json is read.",
    )
    parser.add_argument("--budget", metavar="A,B,C", help="KV budgets to compare, as 16MiB,32MiB,64MiB")
    parser.add_argument(
        "--slo-ttft", type=float, metavar="S", help="seconds to the first token that p99 must keep"
    )
    parser.add_argument(
        "--slo-itl", type=float, metavar="S", help="seconds between tokens that p99 must keep"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the figure and the JSON file go")
    parser.add_argument("--slices", metavar="GPU", help="plan the slices of a100-40, a100-80 or h100-80")
    add_engine_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Measure or plan, show, and save."""
    from minillm.observe.slo import Slo

    for name in ("slo_ttft", "slo_itl"):
        if getattr(args, name) is not None:
            require_number("--" + name.replace("_", "-"), getattr(args, name), 0, 3600, low_open=True)
    is_plan = args.slices is not None
    if is_plan:
        _require_unused(args)
    if args.out is not None:
        prepare(args.out)
    slo = Slo.of(ttft=args.slo_ttft, itl=args.slo_itl)
    report = _plan(args) if is_plan else _measure(args, slo)
    if args.json:
        print(json.dumps(report))
    elif is_plan:
        _print_slices(report)
    else:
        _print_verdict(report)
    if args.out is not None:
        save(report, args.out, has_figure=not is_plan)
    return 0


def _require_unused(args: argparse.Namespace) -> None:
    """Refuse options that a plan would not obey."""
    given = {name: getattr(args, name) for name in ("budget", "slo_ttft", "slo_itl", "max_model_len")}
    given["kv_memory"] = None if args.kv_memory == "auto" else args.kv_memory
    for name, value in given.items():
        if value is not None:
            option = "--" + name.replace("_", "-")
            raise UsageError(
                f"{option} has no meaning with --slices", "a plan measures nothing; leave it out"
            )
    engine_options(args)


# ---- measured -----------------------------------------------------------------------------------------


def _measure(args: argparse.Namespace, slo: Slo) -> dict[str, Any]:
    from rich.console import Console
    from rich.live import Live

    from minillm.bench.pressure import STAGES, run_pressure

    def load(**changes: Any) -> Any:
        return load_llm(args, **changes)

    budgets, console = _budgets(args, load), Console(stderr=True)
    if args.json or not console.is_terminal:
        return run_pressure(load, budgets, slo)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        return run_pressure(load, budgets, slo, STAGES, _watcher(live))


def _watcher(live: Live) -> Watcher:
    """Draws a row for each stage that has ended, and the state of the one that runs."""
    from rich.console import Group

    from minillm.bench.pressure import Watcher
    from minillm.observe.online import EngineMetrics

    class View(Watcher):
        def __init__(self) -> None:
            self.rows, self.number, self.metrics = list[list[str]](), 0, EngineMetrics()
            self.drawn = 0.0

        def begin(self, number: int, engine: Engine) -> None:
            self.number, self.metrics = number, EngineMetrics(engine)

        def step(self, engine: Engine) -> None:
            if time.monotonic() - self.drawn < REDRAW_SECONDS:
                return
            self.drawn = time.monotonic()
            table = _table("stages that have ended", COLUMNS, self.rows)
            now, times = _now(self.number, engine), _latencies(self.metrics)
            live.update(Group(table, now, times) if self.rows else Group(now, times), refresh=True)

        def end(self, row: dict[str, Any]) -> None:
            self.metrics.detach()
            self.rows.append(_row(row))

    return View()


def _latencies(metrics: EngineMetrics) -> str:
    """The percentiles of the stage so far."""
    figures, said = metrics.steady, list[str]()
    for name, histogram in (("to the first token", figures.ttft), ("between tokens", figures.itl)):
        if histogram.count:
            p50, p99 = (1e3 * histogram.percentile(share) for share in (0.5, 0.99))
            said.append(f"{name} p50 {p50:,.1f} ms, p99 {p99:,.1f} ms")
    return f"preemptions {figures.preemptions}; " + "; ".join(said or ["no latency yet"])


def _budgets(args: argparse.Namespace, load: Any) -> list[int | str]:
    from minillm.bench.pressure import STAGES, require_fitting, tight_budget

    if args.budget is not None:
        if args.kv_memory not in (None, "auto"):
            raise UsageError("--budget and --kv-memory both give the KV memory", "leave one of them out")
        budgets = [word.strip() for word in args.budget.split(",")]
        if not all(budgets):
            raise UsageError(f"--budget {args.budget} has an empty entry", "as 16MiB,32MiB,64MiB")
        for budget in budgets:  # before the first one is measured for minutes
            if budget != "auto":
                parse_bytes(budget)
        return list(budgets)
    if args.kv_memory not in (None, "auto"):
        return [args.kv_memory]
    engine = load(kv_memory="auto").engine
    config, size = engine.model.config, engine.config.block_size
    block_bytes = size * config.kv_bytes_per_token(engine.model.dtype.itemsize)
    return [tight_budget(require_fitting(STAGES, engine.model.max_model_len), size, block_bytes)]


def _now(stage: int, engine: Engine) -> str:
    stats = engine.stats()
    filled = round(40 * stats["used_blocks"] / stats["num_blocks"])
    bar = "#" * filled + "." * (40 - filled)
    return (
        f"stage {stage + 1}: {stats['waiting']} wait, {stats['running']} run, blocks {bar} "
        f"{stats['used_blocks']} of {stats['num_blocks']}"
    )


def _print_verdict(report: dict[str, Any]) -> None:
    from rich.console import Console

    from minillm.bench.pressure import holds_up_to

    console = Console()
    console.width = max(console.width, 110)  # a wrapped row of figures is hard to read
    for run in report["runs"]:
        title = f"KV budget {run['kv_memory']}: {run['num_blocks']} blocks"
        console.print(_table(title, COLUMNS, [_row(stage) for stage in run["stages"]]))
        for stage in run["too_large"]:
            console.print(
                f"{stage['requests']} x {stage['context']}: one request alone is larger than the pool"
            )
        if run["kept"] is not None:
            console.print(f"the service level holds up to {holds_up_to(run)} requests at once")


def _row(stage: dict[str, Any]) -> list[str]:
    ttft, itl = stage["ttft_s"], stage["itl_s"]
    times = [ttft["p50"], ttft["p99"], itl["p50"], itl["p99"]]
    return [
        f"{stage['requests']} x {stage['context']}",
        f"{stage['tokens_per_s']:,.0f}",
        *(f"{seconds:,.1f} s" if seconds >= 10 else f"{1e3 * seconds:,.0f} ms" for seconds in times),
        f"{stage['peak_used_blocks']}",
        f"{stage['headroom_blocks']}",
        f"{stage['fragmentation']:.1%}",
        f"{stage['preemptions']}",
    ]


# ---- planned ------------------------------------------------------------------------------------------


def _plan(args: argparse.Namespace) -> dict[str, Any]:
    from minillm.bench.slices import plan_slices
    from minillm.model.loader import pick_dtype
    from minillm.model.locate import find_model

    folder = find_model(model_of(args))
    config = planned_config(args, folder)
    dtype = pick_dtype(args.dtype, config)
    rows = plan_slices(config, dtype, args.slices)
    return {
        "gpu": args.slices,
        "model": folder.name,
        "dtype": str(dtype).removeprefix("torch."),
        "slices": rows,
    }


def _print_slices(report: dict[str, Any]) -> None:
    from rich.console import Console

    from minillm.config.sizes import format_bytes

    stages = [f"{s['requests']} x {s['context']}" for s in report["slices"][0]["stages"]]
    rows = [
        [
            row["slice"],
            format_bytes(row["fixed_bytes"]),
            f"{row['num_blocks']:,}",
            *map(_planned, row["stages"]),
        ]
        for row in report["slices"]
    ]
    title = f"{report['model']} in {report['dtype']} on slices of {report['gpu']}: requests that run at once"
    console = Console()
    console.width = max(console.width, 110)
    console.print(_table(title, ("slice", "weights, reserve", "KV blocks", *stages), rows))
    if not stages:
        console.print("no stage of the load fits the context of this model")
    console.print("counted with the scheduler and the block pool alone; no time is predicted")


def _planned(stage: dict[str, Any]) -> str:
    if not stage["fits"]:
        return "does not fit"
    preempted = f", {stage['preemptions']} preempted" if stage["preemptions"] else ""
    return f"{stage['at_once']}{preempted}"


# ---- tables -------------------------------------------------------------------------------------------


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table
