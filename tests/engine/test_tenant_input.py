"""`tenant_limits` and tenants of any kind: one typed line, or it works; a mapping is read exactly once."""

from __future__ import annotations

from collections import ChainMap, UserDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from tenant_worlds import load

from minillm import LLM, SamplingParams
from minillm.config import EngineConfig, TenantLimits
from minillm.errors import UsageError

LIMIT = TenantLimits(guaranteed_blocks=4, guaranteed_tokens_per_step=8)


class Changing(Mapping[str, Any]):
    """Answers with limits the first `right` times, and then with something else."""

    def __init__(self, right: int) -> None:
        self.left = right

    def __getitem__(self, key: str) -> Any:
        self.left -= 1
        return LIMIT if self.left >= 0 else 7

    def __iter__(self) -> Iterator[str]:
        return iter(["b"])

    def __len__(self) -> int:
        return 1


class Raising(Changing):
    def __getitem__(self, key: str) -> Any:
        raise RuntimeError("no such luck")


class Falsy(TenantLimits):
    def __bool__(self) -> bool:
        return False


@pytest.mark.parametrize(
    "bad",
    [Raising(0), Changing(0), {"b": Falsy}, {("b",): LIMIT}, "b", 3.5],
    ids=lambda value: type(value).__name__,
)
def test_a_mapping_that_cannot_be_used_is_one_typed_line(bad: Any) -> None:
    with pytest.raises(UsageError) as caught:
        EngineConfig(tenant_limits=bad)
    assert "\n" not in str(caught.value) and "tenant" in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "make",
    [dict, MappingProxyType, UserDict, ChainMap, lambda m: defaultdict(TenantLimits, m)],
    ids=["dict", "proxy", "UserDict", "ChainMap", "defaultdict"],
)
def test_any_mapping_is_copied(make: Callable[[dict[str, Any]], Mapping[Any, Any]]) -> None:
    given = {"b": LIMIT}
    config = EngineConfig(tenant_limits=make(given))
    given["b"], given["c"] = TenantLimits(), LIMIT
    assert config.tenant_limits == {"b": LIMIT} and type(config.tenant_limits) is dict


def test_what_was_checked_is_what_is_used() -> None:
    assert EngineConfig(tenant_limits=Changing(1)).tenant_limits == {"b": LIMIT}


def test_control_reading_it_twice_is_noticed() -> None:
    twice = Changing(1)
    assert dict(twice) != dict(twice)


def test_limits_count_whatever_their_truth_value(folder: Path) -> None:
    llm = load(folder, {"b": Falsy(max_queued_tokens=5)})
    llm.engine.add_request([5] * 5, SamplingParams(max_tokens=1), "b")
    with pytest.raises(Exception, match="queue is full"):
        llm.engine.add_request([5] * 5, SamplingParams(max_tokens=1), "b")


@pytest.mark.parametrize(
    "tenant", [3, True, b"b", [], {}, "\ud800", float("nan"), object], ids=lambda value: type(value).__name__
)
def test_stats_of_what_is_no_tenant(llm: LLM, tenant: Any) -> None:
    with pytest.raises(UsageError, match="tenant"):
        llm.engine.stats(tenant)
