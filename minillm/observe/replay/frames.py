"""A run in frames: one column of numbers for each thing that the page draws over time.

    events    queue queue | step 1 blocks | sample step 2 blocks | sample step 3 blocks | queue
    frames    [          0               ][        1            ][        2                    ]

A frame is a step and everything since the step before; what follows the last step belongs to the last frame.
A run of more than `MAX_FRAMES` steps has frames of `every` steps. Then amounts (seconds, rows, tokens,
preemptions) are sums over the frame, and levels (waiting, used, tables) are those at its end. So the sum over
a column is always that of the whole run.

Block tables are kept as changes: `[request, sample, keep, ids]` says that a table keeps its first `keep`
blocks, which `ids` follow. A request is its place in the list of requests, `PUBLIC` or `UNLISTED`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from minillm.observe.events import Event

MAX_FRAMES = 2000
PUBLIC, UNLISTED = -1, -2
PHASES = ("schedule", "reserve", "run", "commit")
HELD = ("blocks", "seqs", "tokens", "quota")
LEVELS = ("waiting", "running", "used", "cached", "free", "slots", "waste")
AMOUNTS = (
    *("seconds", "prefill", "decode", "output", "drafted", "accepted"),
    *("queued", "finished", "hits", "preempted", "evicted", "refused"),
)
_ONE = {"queue": "queued", "finish": "finished", "preempt": "preempted", "refuse": "refused"}
Key = tuple[str, int]  # a sequence: request id, sample index


def framed(events: Sequence[Event]) -> tuple[int, list[tuple[int, Event]]]:
    """The steps of a frame, and every event with the number of its frame."""
    steps = sum(event.kind == "step" for event in events)
    every, last = max(1, -(-steps // MAX_FRAMES)), max(0, steps - 1)
    return every, [(min(step, last) // every, event) for step, event in _numbered(events)]


def _numbered(events: Iterable[Event]) -> Iterator[tuple[int, Event]]:
    """Each event with the number of `step` events before the one that ends its step."""
    step, has_ended = 0, False
    for event in events:
        if has_ended and event.kind != "blocks":  # `blocks` is the last event of a step
            step, has_ended = step + 1, False
        yield step, event
        has_ended = has_ended or event.kind == "step"


def columns(frames: Iterable[tuple[int, Event]], clock: float) -> dict[str, Any]:
    """The columns of all frames. `clock`: the time that counts as 0."""
    made: dict[str, Any] = {name: [] for name in ("first", "step", "time", *AMOUNTS, *LEVELS)}
    made["phases"] = {name: [] for name in PHASES}
    made["held"] = {name: [] for name in HELD}
    for number, event in frames:
        while len(made["step"]) <= number:
            _open_frame(made)
        _count(made, event)
        if event.kind == "step":
            _end_step(made, event, clock)
    return made


def _open_frame(made: dict[str, Any]) -> None:
    for name in ("first", "step", "time", *LEVELS):
        made[name].append(0)
    for column in (*(made[name] for name in AMOUNTS), *made["phases"].values(), *made["held"].values()):
        column.append(0)


def _count(made: dict[str, Any], event: Event) -> None:
    for name, amount in _amounts(event):
        made[name][-1] += amount


def _amounts(event: Event) -> Iterator[tuple[str, float]]:
    """What an event adds to its frame."""
    kind = event.kind
    if kind == "step":
        yield "seconds", event["seconds"]
        yield "prefill", event["prefill_tokens"]
        yield "decode", event["decode_rows"]
    elif kind == "sample":
        yield "output", len(event["requests"])
    elif kind == "speculate":
        yield "drafted", sum(drafted for drafted, _, _ in event["outcomes"])
        yield "accepted", sum(accepted for _, _, accepted in event["outcomes"])
    elif kind in ("admit", "resume"):
        yield "hits", event["cached_tokens"]
    elif kind == "evict":
        yield "evicted", event["blocks"]
    elif kind in _ONE:
        yield _ONE[kind], 1


def _end_step(made: dict[str, Any], event: Event, clock: float) -> None:
    made["first"][-1] = made["first"][-1] or event.step
    made["step"][-1], made["time"][-1] = event.step, event.time - clock
    for name in LEVELS:
        made[name][-1] = event[name]
    for name in PHASES:
        made["phases"][name][-1] += event["phases"].get(name, 0)
    for name in HELD:
        made["held"][name][-1] = event["held"].get(name, 0)


def tables(
    frames: Iterable[tuple[int, Event]], numbers: Mapping[str, int], count: int
) -> list[dict[str, Any]]:
    """The changes of the block tables in each of `count` frames. `numbers`: request id -> its place.

    `t`: the tables that changed; `c`: blocks that the prefix cache alone owns from now on; `u`: no longer.
    """
    changes: list[dict[Key, list[int]]] = [{} for _ in range(count)]
    cached: list[dict[int, bool]] = [{} for _ in range(count)]
    for number, event in frames:
        if event.kind == "blocks":  # of several steps in a frame only the last state counts
            changes[number] |= {(request_id, index): ids for request_id, index, ids in event["tables"]}
            cached[number] |= dict.fromkeys(event["cached"], True) | dict.fromkeys(event["uncached"], False)
    encoder = _Encoder(numbers)
    return [
        {
            "t": [encoder.change(key, ids) for key, ids in changed.items()],
            "c": sorted(block for block, is_cached in flags.items() if is_cached),
            "u": sorted(block for block, is_cached in flags.items() if not is_cached),
        }
        for changed, flags in zip(changes, cached, strict=True)
    ]


class _Encoder:
    """Encodes tables as changes of what they were before."""

    def __init__(self, numbers: Mapping[str, int]) -> None:
        self._numbers = numbers
        self._before: dict[Key, list[int]] = {}
        self._unlisted: dict[Key, int] = {}

    def change(self, key: Key, ids: list[int]) -> list[Any]:
        """[request, sample, keep, new ids]; tables of unlisted requests have a number as sample."""
        old, self._before[key] = self._before.get(key, []), ids
        pairs = enumerate(zip(old, ids, strict=False))
        keep = next((i for i, (was, now) in pairs if was != now), min(len(old), len(ids)))
        return [*self._name(key), keep, ids[keep:]]

    def _name(self, key: Key) -> tuple[int, int]:
        request_id, index = key
        if not request_id:
            return PUBLIC, index
        if request_id in self._numbers:
            return self._numbers[request_id], index
        return UNLISTED, self._unlisted.setdefault(key, len(self._unlisted))
