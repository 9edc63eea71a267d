"""Contract C8: an error that a tenant gets holds nothing of another tenant, not even in its frames.

A traceback keeps the local variables of every frame, and crash reporters write them out. So the frames of the
errors that tenant "a" gets are searched for requests, prompts and names of the tenant that waits beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny

from minillm import LLM, MinillmError, SamplingParams
from minillm.config import TenantLimits
from minillm.engine.engine import Engine
from minillm.engine.registry import Registry
from minillm.model.loader import LoadedModel

OTHER = "the-other-tenant"
SECRET = [211, 212, 213, 214, 215] * 3
SHOWN = ("211, 212, 213", OTHER)
PARAMS = SamplingParams(max_tokens=4, temperature=0.0)
LIMITS: dict[str, Any] = {
    "no limits": None,
    "a limit of its own": {"a": TenantLimits(max_queued_tokens=12)},
    "guaranteed to the other": {OTHER: TenantLimits(guaranteed_blocks=4, guaranteed_tokens_per_step=16)},
    "guaranteed to both": {t: TenantLimits(4, None, 16) for t in ("a", OTHER)},
}


def chained(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_foreign(value: object, depth: int = 4) -> bool:
    """Whether a value is the other tenant's, or holds something of it in lists, dicts and dataclasses."""
    if getattr(value, "tenant", None) == OTHER or (
        isinstance(value, list | str) and value in (SECRET, OTHER)
    ):
        return True
    if depth == 0:
        return False
    inner: list[Any] = []
    if isinstance(value, Mapping):
        inner = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set):
        inner = list(value)
    elif is_dataclass(value) and type(value).__module__.startswith("minillm.engine"):
        inner = [getattr(value, field.name, None) for field in fields(value)]
    return any(is_foreign(each, depth - 1) for each in inner)


def leaks(error: BaseException) -> list[str]:
    """The frames of the engine with a variable that is the other tenant's, or that shows it in its repr."""
    found = []
    for each in chained(error):
        assert not any(text in str(each) for text in SHOWN)
        traceback = each.__traceback__
        while traceback is not None:
            frame = traceback.tb_frame
            if "minillm" in frame.f_globals["__name__"]:
                named = {
                    n: v for n, v in frame.f_locals.items() if not isinstance(v, Engine | LLM | LoadedModel)
                }
                named.pop("self", None)  # the engine's own objects show nothing in their repr
                shown = [name for name, value in named.items() if any(s in repr(value) for s in SHOWN)]
                held = [name for name, value in named.items() if is_foreign(value)]
                found += [f"{frame.f_code.co_name}: {name}" for name in {*shown, *held}]
            traceback = traceback.tb_next
    return found


def load(folder: Path, limits: Any) -> tuple[LLM, list[str]]:
    """An engine in which the other tenant has a request that runs and three that wait."""
    llm = tiny.load(folder, tenant_limits=limits, max_queued_requests=4, max_queued_tokens=70)
    ids = [llm.engine.add_request(SECRET, PARAMS, OTHER)]
    llm.engine.step()
    return llm, ids + [llm.engine.add_request(SECRET, PARAMS, OTHER) for _ in range(3)]


def errors_of(llm: LLM, ids: list[str]) -> list[MinillmError]:
    """All errors that tenant "a" can get while the other's requests are there."""
    engine, caught = llm.engine, list[MinillmError]()
    add = engine.add_request
    tries: list[Callable[[], Any]] = [lambda: add([5] * 9, PARAMS, "a")] * 5
    tries += [
        lambda: add([5] * 9, PARAMS, "a"),
        lambda: add([6] * 900, PARAMS, "a"),
        lambda: add([], PARAMS, "a"),
    ]
    tries += [lambda i=i: engine.abort_request(i, "a") for i in (*ids, "req-0")]  # type: ignore[misc]
    tries += [
        lambda: llm.generate([[5] * 900], PARAMS, tenant="a"),
        lambda: llm.stream([5] * 9, PARAMS, tenant="a"),
    ]
    for attempt in tries:
        try:
            attempt()
        except MinillmError as error:
            caught.append(error)
    return caught


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_no_frame_of_an_error_holds_another_tenant(folder: Path, limits: Any) -> None:
    errors = errors_of(*load(folder, limits))
    assert {"QueueFull", "UnknownRequest", "PromptTooLong", "UsageError"} <= {
        type(e).__name__ for e in errors
    }
    assert [leak for error in errors for leak in leaks(error)] == []


def test_control_a_frame_with_a_request_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was: `find` held the foreign request when it raised."""
    right = Registry.find

    def careless(self: Registry, request_id: str, tenant: str | None) -> Any:
        request = self.live.get(request_id)
        return right(self, request_id, tenant) if request is None or request.tenant != tenant else request

    monkeypatch.setattr(Registry, "find", careless)
    monkeypatch.setitem(globals(), "__name__", "minillm.planted")  # so that its frames are searched
    found = [leak for error in errors_of(*load(folder, None)) for leak in leaks(error)]
    assert "careless: request" in found


def test_a_repr_shows_no_content(folder: Path) -> None:
    llm, _ = load(folder, {OTHER: TenantLimits(guaranteed_blocks=4, guaranteed_tokens_per_step=16)})
    running = llm.engine.scheduler.running[0]
    held = [running, running.block_table, running.cached.last, llm.engine.config, llm.engine._stepper.step]
    held += llm.engine._registry.requests()
    assert not [text for value in held for text in SHOWN if text in repr(value)]
    assert running.request_id in repr(running), "it is named all the same"


def test_an_error_of_a_failed_step_has_no_frames(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm, _ = load(folder, None)

    def fails(*_: Any) -> Any:
        raise RuntimeError("an op")

    llm.engine.add_request([5] * 9, PARAMS, "a")
    monkeypatch.setattr(llm.engine.worker, "execute", fails)
    with pytest.raises(RuntimeError):
        llm.engine.step()
    monkeypatch.undo()
    ended = [output.error for output in llm.engine.step() if output.error]
    assert len(ended) == 5
    assert all(e.__traceback__ is e.__cause__ is e.__context__ is None for e in ended)


class Broken(RuntimeError):
    """What a part raises, with what it was given."""


@pytest.mark.parametrize("other", [OTHER, "a"])
def test_the_caller_whose_thread_runs_the_step_gets_nothing_of_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    """`generate` of one tenant runs the steps of all. Its control: one tenant alone gets the exception."""
    llm = tiny.load(folder)
    stream = llm.stream(SECRET, PARAMS, tenant=other)
    next(stream)

    def fails(step: Any) -> Any:
        rows = [row.block_table for row in step.decode] or [SECRET]
        raise Broken(f"{SECRET} of {OTHER} in {len(rows)} rows")

    monkeypatch.setattr(llm.engine.worker, "execute", fails)
    with pytest.raises(Exception) as caught:
        llm.generate([[5] * 9], PARAMS, tenant="a")
    shown, frames = isinstance(caught.value, Broken), [entry.name for entry in caught.traceback]
    assert shown == ("fails" in frames) == (other == "a")
    if not shown:
        assert leaks(caught.value) == [] and "Broken" in str(caught.value)
        assert caught.value.__cause__ is caught.value.__context__ is None
