"""The one definition of a service level: its limits, and that no other module defines one."""

import math
import re
from pathlib import Path

import pytest

import minillm
from minillm.bench.pressure import is_kept
from minillm.errors import UsageError
from minillm.observe.slo import Slo

PACKAGE = Path(minillm.__file__).parent
DEFINITION = re.compile(r"^class (?:\w*Slo|SLO|Promise|ServiceLevel)\b", re.MULTILINE)


def test_there_is_one_definition():
    found = [
        path.relative_to(PACKAGE).as_posix()
        for path in sorted(PACKAGE.rglob("*.py"))
        if DEFINITION.search(path.read_text())
    ]
    assert found == ["observe/slo.py"]
    assert DEFINITION.search("x = 1\nclass Promise(NamedTuple):")  # control: a second one would be found


def test_only_given_limits_are_limits():
    assert Slo().limits == Slo.of(ttft=None, tpot=None).limits == {}
    assert Slo.of(ttft=1.0, itl=None).limits == {"ttft": 1.0}
    assert Slo(ttft=1.0).tpot == math.inf


@pytest.mark.parametrize("value", [0, -1.0, math.nan, -math.inf, "1", True])
@pytest.mark.parametrize("name", ["ttft", "tpot", "itl"])
def test_a_limit_that_is_none(name, value):
    with pytest.raises(UsageError, match=f"slo-{name}"):
        Slo(**{name: value})


@pytest.mark.parametrize(
    ("limits", "kept"), [({}, 1), ({"ttft": 2.0}, 1), ({"ttft": 1.9}, 0), ({"itl": 0.4}, 0)]
)
def test_a_stage_keeps_the_limits_that_there_are(limits, kept):
    assert is_kept(Slo(**limits), {"ttft_s": {"p99": 2.0}, "itl_s": {"p99": 0.5}}) == kept
