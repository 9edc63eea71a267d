"""Which tests to run against a mutant: those that run its line, the quickest and most special first.

The map is measured file by file and kept in build/mutants, so that a test file that is new or changed is all
there is to measure again, as long as the package has not changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mutations import Mutant


@dataclass(frozen=True)
class Selection:
    """Tests for one mutant, file by file. `seconds` is what each takes without it."""

    tests: dict[str, float]
    num_covering: int  # that there are, before the limit on seconds

    @property
    def is_capped(self) -> bool:
        return len(self.tests) < self.num_covering


@dataclass
class CoverageMap:
    """Measured lines by test file. `key` of an entry says which sources it was measured with."""

    path: Path
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> CoverageMap:
        return cls(path, json.loads(path.read_text()) if path.is_file() else {})

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.files))

    def stale(self, keys: dict[str, str]) -> list[str]:
        """Test files that must be measured, those that took longest first."""
        missing = [f for f, key in keys.items() if self.files.get(f, {}).get("key") != key]
        return sorted(missing, key=lambda f: -_total(self.files.get(f, {}).get("tests", {})))

    def select(self, mutant: Mutant, test_files: Iterable[str], limit: float) -> Selection:
        """At most `limit` seconds of tests.

        A line that no test runs, as those that run at import, is left to the tests of the rest of its file.
        """
        own, others = dict[str, list[str]](), dict[str, list[str]]()
        for file in test_files:
            entry = self.files[file]
            in_setup = _runs(entry["setup"], mutant)
            for name, test in entry["tests"].items():
                if _runs(test["lines"], mutant):
                    own.setdefault(file, []).append(name)
                elif in_setup:
                    others.setdefault(file, []).append(name)
        if not own and not others:
            for file in test_files:
                found = [n for n, t in self.files[file]["tests"].items() if mutant.file in t["lines"]]
                if found:
                    others[file] = found
        chosen, spent = dict[str, float](), 0.0
        for group in (own, others):
            for name, seconds in self._in_order(group):
                if spent + seconds <= limit or not chosen:
                    chosen[name] = seconds
                    spent += seconds
        count = sum(map(len, own.values())) + sum(map(len, others.values()))
        return Selection(chosen, count)

    def is_run(self, mutant: Mutant, test_files: Iterable[str]) -> bool:
        """Whether any test or fixture runs the mutant's line."""
        return any(
            _runs(lines, mutant)
            for file in test_files
            for lines in (
                self.files[file]["setup"],
                *(t["lines"] for t in self.files[file]["tests"].values()),
            )
        )

    def _in_order(self, group: dict[str, list[str]]) -> list[tuple[str, float]]:
        """By file, as its tests share fixtures: cheap files first, in them the quick and special tests."""
        ordered = []
        for file, names in group.items():
            tests = self.files[file]["tests"]
            setup = max(tests[name]["setup"] for name in tests)
            names = sorted(
                names, key=lambda n: tests[n]["seconds"] * sum(map(len, tests[n]["lines"].values()))
            )
            costs = [(n, tests[n]["seconds"] + (setup if i == 0 else 0.0)) for i, n in enumerate(names)]
            ordered.append((sum(cost for _, cost in costs), costs))
        return [cost for _, costs in sorted(ordered) for cost in costs]


def keys(root: Path, sources: list[str], tests: list[str]) -> dict[str, str]:
    """Digest of package and test file, for each test file."""
    package = hashlib.sha256()
    for file in sorted(sources):
        package.update(file.encode() + (root / file).read_bytes())
    return {t: hashlib.sha256(package.digest() + (root / t).read_bytes()).hexdigest() for t in tests}


def _runs(lines: dict[str, list[int]], mutant: Mutant) -> bool:
    found = lines.get(mutant.file, ())
    return mutant.line in found or mutant.statement in found


def _total(tests: dict[str, Any]) -> float:
    return sum(test["seconds"] + test["setup"] for test in tests.values())
