"""Task 12.7, the culprit of an incident: known mistakes of `diagnose`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from minillm.labs.grader.lab import Mistake
from minillm.observe.events import Event
from minillm.observe.incident import PATIENCE, Finding

Run = list[Event]


class Diagnoses:
    """The right method in small parts; subclasses change one of them."""

    def __call__(self, events: Iterable[Event]) -> Finding:
        self.trace = list(events)
        self.steps = [event for event in self.trace if event.kind == "step"]
        run = self.chosen(self.runs())
        if not self.is_long(run):
            return Finding("none")
        culprit = "burst" if self.is_burst(run) else "memory" if self.is_memory(run) else "batching"
        return Finding(culprit, self.begin(run), self.peak(run))  # type: ignore[arg-type]

    def waits(self, step: Event) -> bool:
        return bool(step["held"])

    def runs(self) -> list[Run]:
        found: list[Run] = [[]]
        for step in self.steps:
            if self.waits(step):
                found[-1].append(step)
            elif found[-1]:
                found.append([])
        return found

    def chosen(self, runs: list[Run]) -> Run:
        return max(runs, key=len)

    def is_long(self, run: Run) -> bool:
        return len(run) >= PATIENCE

    def waiting(self, step: Event) -> int:
        return sum(dict(step["held"]).values())

    def peak(self, run: Run) -> int:
        return max(map(self.waiting, run))

    def peak_step(self, run: Run) -> Event:
        return max(run, key=self.waiting)

    def begin(self, run: Run) -> Any:
        return run[0].step

    def place(self, event: Event) -> int:
        return next(i for i, other in enumerate(self.trace) if other is event)

    def first_event(self, run: Run) -> Event:
        before = [step for step in self.trace[: self.place(run[0])] if step.kind == "step"]
        return before[-1] if before else self.trace[0]

    def rate(self) -> float:
        arrivals = [event.time for event in self.trace if event.kind == "queue"]
        span = arrivals[-1] - arrivals[0] if arrivals else 0.0
        return len(arrivals) / span if span else 0.0

    def is_burst(self, run: Run) -> bool:
        first, last = self.first_event(run), self.peak_step(run)
        came = self.trace[self.place(first) : self.place(last)]
        usual = self.rate() * (last.time - first.time)
        return sum(event.kind == "queue" for event in came) - usual > self.part() * self.peak(run)

    def part(self) -> float:
        return 0.5

    def is_memory(self, run: Run) -> bool:
        lacking = ["blocks" in step["held"] for step in run]
        return 2 * sum(lacking) > len(lacking)


def changed(**others: Callable[..., Any]) -> Diagnoses:
    """The method with other parts."""
    kind: type[Diagnoses] = type("Diagnoses", (Diagnoses,), others)
    return kind()


def none_free(self: Diagnoses, run: Run) -> bool:
    """Whether no block is free in most steps."""
    full = [step for step in run if step["free"] == 0]
    return 2 * len(full) > len(run)


def any_preempted(self: Diagnoses, run: Run) -> bool:
    """Whether anything was preempted in the trace."""
    return any(event.kind == "preempt" for event in self.trace)


def rate_to_the_end(self: Diagnoses) -> float:
    """Over all seconds of the trace."""
    arrivals = sum(event.kind == "queue" for event in self.trace)
    span = self.trace[-1].time - self.trace[0].time
    return arrivals / span if span else 0.0


def rate_of_gaps(self: Diagnoses) -> float:
    """One request fewer, as if the gaps were counted."""
    arrivals = [event.time for event in self.trace if event.kind == "queue"]
    span = arrivals[-1] - arrivals[0] if arrivals else 0.0
    return (len(arrivals) - 1) / span if span else 0.0


def memory_first(self: Diagnoses, run: Run) -> bool:
    """A burst, unless something else explains the wait."""
    return Diagnoses.is_burst(self, run) and not Diagnoses.is_memory(self, run)


class ReadsAgain(Diagnoses):
    """Counts the arrivals before every step again."""

    def is_long(self, run: Run) -> bool:
        for step in self.steps:
            for event in self.trace:
                if event is step:
                    break
        return super().is_long(run)


INCIDENT_MISTAKES = (
    Mistake(
        "the burst is never found: look at the arrivals first, a crowd makes others wait for blocks too",
        changed(is_burst=lambda self, run: False),
    ),
    Mistake(
        "memory is looked at before the load: a crowd that fills a pool makes requests wait for blocks, too",
        changed(is_burst=memory_first),
    ),
    Mistake(
        "no free block is taken for short memory: cached blocks can be evicted. `held` says what is lacking",
        changed(is_memory=none_free),
    ),
    Mistake(
        "preemption is taken for the cause: count the steps in which the first that waits lacks blocks",
        changed(is_memory=any_preempted),
    ),
    Mistake(
        "one step that lacks blocks makes it memory: what was lacking in more steps decides",
        changed(is_memory=lambda self, run: any("blocks" in step["held"] for step in run)),
    ),
    Mistake(
        "what the first step lacks decides: count all steps of the incident",
        changed(is_memory=lambda self, run: "blocks" in run[0]["held"]),
    ),
    Mistake(
        "as many steps lack blocks as lack something else: then it is batching",
        changed(is_memory=lambda self, run: 2 * sum("blocks" in step["held"] for step in run) >= len(run)),
    ),
    Mistake(
        "every wait is an incident: one of fewer than PATIENCE steps is none",
        changed(is_long=lambda self, run: bool(run)),
    ),
    Mistake(
        "a wait of exactly PATIENCE steps is an incident",
        changed(is_long=lambda self, run: len(run) > PATIENCE),
    ),
    Mistake(
        "all steps with waiting sequences are counted together: an incident is one run of them",
        changed(runs=lambda self: [[step for step in self.steps if self.waits(step)]]),
    ),
    Mistake(
        "the first long wait is taken: the incident is the longest",
        changed(chosen=lambda self, runs: next((run for run in runs if len(run) >= PATIENCE), runs[-1])),
    ),
    Mistake(
        "of equally long waits the first is the incident",
        changed(chosen=lambda self, runs: max(reversed(runs), key=len)),
    ),
    Mistake(
        "the place in a list: the finding names the `step` of the event",
        changed(begin=lambda self, run: next(i for i, step in enumerate(self.steps) if step is run[0])),
    ),
    Mistake(
        "the requests that came just before the incident are not counted: begin at the step event before it",
        changed(first_event=lambda self, run: run[0]),
    ),
    Mistake(
        "requests that came after the peak are counted: the queue grew only until then",
        changed(peak_step=lambda self, run: run[-1]),
    ),
    Mistake(
        "the last step of the peak is taken: the queue stopped growing at the first",
        changed(peak_step=lambda self, run: max(reversed(run), key=self.waiting)),
    ),
    Mistake(
        "the usual rate is taken to the end of the trace: nobody comes any more while the queue empties",
        changed(rate=rate_to_the_end),
    ),
    Mistake(
        "any excess is called a burst: it must be more than half of the peak",
        changed(part=lambda self: 0.0),
    ),
    Mistake(
        "the number that waits at the beginning: the finding has the peak",
        changed(peak=lambda self, run: self.waiting(run[0])),
    ),
    Mistake("the whole trace is read again for every step: one walk is enough", ReadsAgain()),
    Mistake(
        "an excess of exactly half of the peak is taken for a burst: it must be more than half",
        changed(part=lambda self: 0.5 - 1e-9),
    ),
    Mistake(
        "the usual rate counts the gaps: it is the number of `queue` events, divided by the seconds",
        changed(rate=rate_of_gaps),
    ),
)
