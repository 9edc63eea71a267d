"""Draws mutants of the package, runs each against the tests that run its line, and lists those that survive.

    python scripts/dev/mutants                      100 mutants, seed 0
    python scripts/dev/mutants -n 100 --seed 7
    python scripts/dev/mutants --line minillm/engine/scheduler.py:120      every mutant of one line

A mutant that survives is a hole in the tests, or the same program in other words. The second kind is listed
with a reason in equivalent.toml. More than five survivors without one: exit code 1.

The first run measures which tests run which lines (build/mutants/), which takes a while; later ones measure
only what has changed. Nothing is written into the checkout otherwise: everything runs in a temporary copy.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import covering
import running
from mutations import Mutant, draw, mutants_of
from tracing import LineTracer, Recorder

ROOT = Path(__file__).resolve().parents[3]
SOURCES = """
minillm/engine/*.py minillm/memory/*.py minillm/speculation/*.py minillm/ops/sampling.py
minillm/ops/verification.py minillm/model/loader.py minillm/model/weights.py minillm/model/checkpoint.py
minillm/model/config_reader.py minillm/model/rope_config.py
""".split()
TESTS = [
    f"tests/{name}/**/test_*.py" for name in "engine memory model observe ops speculation text worker".split()
]
PRELOAD = """
torch numpy scipy hypothesis safetensors.torch tokenizers jinja2 jinja2.sandbox huggingface_hub rich xdist
""".split()
MOST_WITHOUT_REASON = 5


@dataclass
class Verdict:
    """What became of a mutant. `by` names the test that failed, or why it was never asked."""

    mutant: Mutant
    selection: covering.Selection
    outcome: str  # killed, hung, survived
    by: str
    seconds: float


@dataclass(frozen=True)
class Project:
    """The tree, the files that are mutated, and the tests that are asked."""

    root: Path
    sources: list[str]
    tests: list[str]

    @classmethod
    def find(cls, root: Path, sources: list[str], tests: list[str]) -> Project:
        def files(patterns: list[str]) -> list[str]:
            return sorted({str(p.relative_to(root)) for pattern in patterns for p in root.glob(pattern)})

        return cls(root, files(sources), files(tests))

    @property
    def package(self) -> str:
        return self.sources[0].split("/")[0]

    @property
    def package_files(self) -> list[str]:
        return [str(p.relative_to(self.root)) for p in sorted((self.root / self.package).rglob("*.py"))]


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    project = Project.find(args.root.resolve(), args.sources, args.tests)
    if args.line:
        file, _, line = args.line.rpartition(":")
        mutants = [m for m in mutants_of(project.root, file) if m.line == int(line)]
    else:
        mutants = draw(project.root, project.sources, args.n, args.seed)
    running.preload(args.preload)
    started = time.monotonic()
    with running.slots(project.root, args.jobs) as slots:
        found = _measured(project, slots)
        measured = time.monotonic()
        verdicts = list(_judged(project, mutants, found, slots, args))
    judged = time.monotonic() - measured
    print(
        f"\nmeasured the tests in {measured - started:.0f} s, judged in {judged:.0f} s on the clock, ", end=""
    )
    print(f"{sum(v.seconds for v in verdicts):.0f} s of processor time")
    return _report(verdicts, _reasons(args.equivalent))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("mutants", description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("-n", type=int, default=100, help="how many mutants (100)")
    parser.add_argument("--seed", type=int, default=0, help="which mutants are drawn (0)")
    parser.add_argument("--line", metavar="FILE:LINE", help="all mutants of this line instead")
    parser.add_argument(
        "--jobs", type=int, default=min(os.cpu_count() or 1, 8), help="at once (one per core)"
    )
    parser.add_argument("--seconds", type=float, default=60, help="most seconds of tests for a mutant (60)")
    parser.add_argument(
        "--patience", type=float, default=5, help="seconds after which a test hangs, at least (5)"
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="another project")
    parser.add_argument("--sources", nargs="+", default=SOURCES, help="files that are mutated")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="test files that are asked")
    parser.add_argument("--preload", nargs="*", default=PRELOAD, help="modules imported once for all mutants")
    parser.add_argument("--equivalent", type=Path, default=Path(__file__).with_name("equivalent.toml"))
    return parser


def _measured(project: Project, slots: list[running.Slot]) -> covering.CoverageMap:
    """The coverage map, brought up to date."""
    found = covering.CoverageMap.read(project.root / "build" / "mutants" / "coverage.json")
    keys = covering.keys(project.root, project.package_files, project.tests)

    def start(slot: running.Slot, file: str) -> None:
        def work() -> int:
            recorder = Recorder(LineTracer(slot.tree, project.sources))
            code = running.run_pytest(slot.tree, project.root, [file], recorder, project.package)
            slot.log.with_suffix(".json").write_text(json.dumps(recorder.result()))
            return code

        running.fork(slot, work)

    for slot, file, status, seconds in running.run_all(found.stale(keys), slots, start):
        if status not in (0, 1, 5):  # 1: a test failed, 5: there is none
            sys.exit(f"{file} cannot be measured, exit code {status}:\n{slot.log.read_text()[-2000:]}")
        entry = json.loads(slot.log.with_suffix(".json").read_text())
        found.files[file] = {"key": keys[file], **entry}
        print(f"measured {file}: {len(entry['tests'])} tests, {seconds:.0f} s", flush=True)
        found.write()
    return found


def _judged(project, mutants, found, slots, args):
    """A verdict for each mutant, as they come."""
    selections = {m: found.select(m, project.tests, args.seconds) for m in mutants}

    def start(slot: running.Slot, mutant: Mutant) -> None:
        tests = selections[mutant].tests
        slot.write(mutant.file, mutant.apply(project.root))

        def work() -> int:
            plugin = running.Chosen(tests, args.patience)
            files = dict.fromkeys(name.split("::")[0] for name in tests)
            code = running.run_pytest(slot.tree, project.root, ["-x", *files], plugin, project.package)
            if plugin.missing:
                print(
                    f"tests that were measured are not there, have their names changed? {plugin.missing[:2]}"
                )
            return running.MISSING_TEST if plugin.missing else code

        running.fork(slot, work)

    asked = [m for m in mutants if selections[m].tests]
    for mutant in mutants:
        if not selections[mutant].tests:
            yield _told(Verdict(mutant, selections[mutant], "survived", "no test runs its file", 0.0))
    for slot, mutant, status, seconds in running.run_all(asked, slots, start):
        log = slot.log.read_text(errors="replace")
        slot.restore()
        if status in running.NO_VERDICT:
            sys.exit(log[-2000:])
        outcome = "hung" if status in (None, -signal.SIGPROF) else "killed" if status else "survived"
        by = _first_failure(log) if status else ""
        if not status and not found.is_run(mutant, project.tests):
            by = "no test runs its line"
        yield _told(Verdict(mutant, selections[mutant], outcome, by, seconds))


def _first_failure(log: str) -> str:
    """The summary line of the test that failed."""
    lines = [line for line in log.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return lines[0][:110] if lines else log.strip().splitlines()[-1][:110] if log.strip() else "no output"


def _told(verdict: Verdict) -> Verdict:
    m = verdict.mutant
    print(f"{verdict.outcome:8} {verdict.seconds:5.1f} s  {m.file}:{m.line}  {verdict.by}", flush=True)
    return verdict


def _reasons(path: Path) -> dict[tuple[str, str, str], str]:
    """Reasons by `Mutant.key`."""
    if not path.is_file():
        return {}
    entries = tomllib.loads(path.read_text(encoding="utf-8")).get("mutant", [])
    return {(e["file"], e["old"], e["new"]): e["reason"] for e in entries}


def _report(verdicts: list[Verdict], reasons: dict[tuple[str, str, str], str]) -> int:
    """Print the survivors; the exit code."""
    without = 0
    for v in sorted(verdicts, key=lambda v: (v.mutant.file, v.mutant.line)):
        if v.outcome != "survived":
            continue
        m = v.mutant
        reason = reasons.get(m.key)
        without += reason is None
        asked = f"{len(v.selection.tests)} tests"
        if v.selection.is_capped:
            asked += f" of {v.selection.num_covering}, capped"
        print(f"\n{m.file}:{m.line}  ({asked}{', ' + v.by if v.by else ''})")
        print(f"  - {m.old.strip()}\n  + {m.new.strip()}\n  {reason or 'NO REASON'}")
    counts = Counter(v.outcome for v in verdicts)
    print(f"\n{len(verdicts)} mutants: {dict(counts)}; {without} survived without a reason")
    return int(without > MOST_WITHOUT_REASON)


if __name__ == "__main__":
    sys.exit(main())
