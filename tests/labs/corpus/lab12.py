"""Lab 12: wrong parts in the words of other authors, and odd ones that are right."""

from corpus.variants import Rewrite, Slip

SLIPS = [
    Slip(
        "tokens only while the request is alone in the step",
        'in event["requests"]:\n                if request_id in requests:',
        'in event["requests"]:\n                if index == 0 and request_id in requests:',
        {"12.1": "only the tokens of the first sample"},
    ),
    Slip(
        "the first admission stays",
        'elif event.kind == "admit" and request:',
        'elif event.kind == "admit" and request and request.admitted is None:',
        {"12.1": "the first `admit` is kept"},
    ),
    Slip(
        "a resume is an admission",
        'elif event.kind == "admit" and request:',
        'elif event.kind in ("admit", "resume") and request:',
        {"12.1": "`resume` is read like `admit`"},
    ),
    Slip("divides by the tokens", "/ (len(first) - 1)", "/ len(first)", {"12.3": "one gap fewer"}),
    Slip(
        "from admission",
        "return self.tokens[0][0] - self.submitted if",
        "return self.tokens[0][0] - (self.admitted or 0.0) if",
        {"12.3": "ttft begins when the request is admitted"},
    ),
    Slip(
        "the end of a queue that never ended",
        "(self.latest if self.admitted is None else self.admitted)",
        "(self.submitted if self.admitted is None else self.admitted)",
        {"12.2": "never admitted has waited"},
    ),
    Slip(
        "rounds down",
        "math.ceil(share * len(values)) - 1",
        "math.floor(share * len(values)) - 1",
        {"12.4": "rounded down"},
    ),
    Slip(
        "the last for a share of zero",
        "[max(0, math.ceil(share * len(values)) - 1)]",
        "[math.ceil(share * len(values)) - 1]",
        {"12.4": "index -1 is the last"},
    ),
    Slip(
        "from the submission",
        "waited = times.submitted + times.ttft - intended",
        "waited = times.ttft",
        {"12.5": "counted from the submission"},
    ),
    Slip(
        "failures that were quick",
        "times = None if failed or request_id is None else",
        "times = None if request_id is None else",
        {"12.5": "a failure is a miss"},
    ),
    Slip(
        "needs two tokens",
        "(times.tpot is None or times.tpot <= promise.tpot)",
        "(times.tpot is not None and times.tpot <= promise.tpot)",
        {"12.5": "one token has no TPOT"},
    ),
    Slip(
        "free only",
        'room = event["cached"] + event["free"]',
        'room = event["free"]',
        {"12.6": "only free blocks are headroom"},
    ),
    Slip(
        "last of the worst",
        'event["waste"] / event["slots"] > worst:',
        'event["waste"] / event["slots"] >= worst:',
        {"12.6": "of equal shares the last"},
    ),
    Slip(
        "as many is memory",
        "lacking[True] > lacking[False]",
        "lacking[True] >= lacking[False]",
        {"12.7": "as many steps lack blocks"},
    ),
    Slip(
        "longer than patience",
        "if len(steps) < PATIENCE:",
        "if len(steps) <= PATIENCE:",
        {"12.7": "exactly PATIENCE"},
    ),
    Slip("any excess", "> peak / 2:", "> 0:", {"12.7": "any excess is called a burst"}),
    Slip(
        "the last of equals",
        "if length > longest:",
        "if length >= longest:",
        {"12.7": "of equally long waits"},
    ),
]
REWRITES = [
    Rewrite(
        "two walks over the trace",
        """
def request_times(events):
    made = {}
    for e in (trace := list(events)):
        if e.kind == "queue":
            made[e.request_id] = RequestTimes(submitted=e.time, prompt_tokens=e.data["prompt_tokens"])
    for e in trace:
        mine = made.get(e.request_id)
        if e.kind == "sample":
            for name, index in e.data["requests"]:
                if name in made:
                    made[name].tokens.setdefault(index, []).append(e.time)
        if mine is None:
            continue
        if e.kind == "admit":
            mine.admitted = e.time
            mine.cached_tokens = e.data["cached_tokens"]
        if e.kind == "finish":
            mine.ends[e.data["index"]] = e.time
    return made
""",
    ),
    Rewrite(
        "a match statement",
        """
def request_times(events):
    by_id = dict()
    for e in events:
        match e.kind:
            case "queue":
                by_id.update({e.request_id: RequestTimes(e.time, e["prompt_tokens"])})
            case "admit" if e.request_id in by_id:
                vars(by_id[e.request_id]).update(admitted=e.time, cached_tokens=e["cached_tokens"])
            case "finish" if e.request_id in by_id:
                by_id[e.request_id].ends.update({e["index"]: e.time})
            case "sample":
                for name, index in e["requests"]:
                    try:
                        by_id[name].tokens[index] += [e.time]
                    except KeyError:
                        pass
    return by_id
""",
    ),
    Rewrite(
        "a function for each kind",
        """
def request_times(events):
    found = {}
    def queue(e): found[e.request_id] = RequestTimes(e.time, e["prompt_tokens"])
    def admit(e):
        if e.request_id in found:
            found[e.request_id].admitted, found[e.request_id].cached_tokens = e.time, e["cached_tokens"]
    def sample(e): [found[r].tokens[i].append(e.time) for r, i in e["requests"] if r in found]
    def finish(e):
        if e.request_id in found: found[e.request_id].ends[e["index"]] = e.time
    known = {"queue": queue, "admit": admit, "sample": sample, "finish": finish}
    for e in events:
        if e.kind in known: known[e.kind](e)
    return found
""",
    ),
    Rewrite(
        "all requests that the trace names",
        """
def request_times(events):
    found = {}
    for e in events:
        if e.kind == "queue":
            found[e.request_id] = RequestTimes(e.time, e["prompt_tokens"])
        elif e.kind == "admit" and e.request_id in found:
            found[e.request_id].admitted, found[e.request_id].cached_tokens = e.time, e["cached_tokens"]
        elif e.kind == "sample":
            for name, index in e["requests"]:
                found[name].tokens[index].append(e.time)
        elif e.kind == "finish" and e.request_id in found:
            found[e.request_id].ends[e["index"]] = e.time
    return found
""",
        {"12.1": "a trace may begin in the middle"},
    ),
    Rewrite(
        "sums of gaps",
        """
def gaps(self): return [self.tokens[0][i + 1] - self.tokens[0][i] for i in range(len(self.tokens[0]) - 1)]
def mean(self): return sum(self.itl) / len(self.itl) if self.itl else None
RequestTimes.itl, RequestTimes.tpot = property(gaps), property(mean)
""",
    ),
    Rewrite(
        "the last event of all",
        """
def whole(self):
    return self.latest - self.submitted
def waited(self):
    return (self.admitted if self.admitted is not None else self.latest) - self.submitted
RequestTimes.e2e, RequestTimes.queue = property(whole), property(waited)
""",
    ),
    Rewrite(
        "lists of times",
        """
def whole(self):
    times = [time for found in self.tokens.values() for time in found]
    times.extend(self.ends.values())
    times.append(self.submitted)
    return sorted(times)[-1] - self.submitted
RequestTimes.e2e = property(whole)
""",
    ),
    Rewrite(
        "only what has ended",
        """
def whole(self):
    return max(self.ends.values()) - self.submitted if self.ends else 0.0
RequestTimes.e2e = property(whole)
""",
        {"12.2": "e2e needs an end"},
    ),
    Rewrite(
        "ends looked for by hand",
        """
def whole(self):
    last = self.submitted
    for times in self.tokens.values():
        for time in times:
            last = max(last, time)
    for time in self.ends.values():
        last = max(last, time)
    return last - self.submitted
def waited(self):
    if self.admitted is not None:
        return self.admitted - self.submitted
    return self.e2e
RequestTimes.e2e, RequestTimes.queue = property(whole), property(waited)
""",
    ),
    Rewrite(
        "the first by iteration",
        """
def quick(self):
    for time in self.tokens.get(0, ()):
        return time - self.submitted
RequestTimes.ttft = property(quick)
""",
    ),
    Rewrite(
        "pairs by zip",
        """
def gaps(self):
    times = self.tokens.get(0, [])
    return [b - a for a, b in zip(times, times[1:])]
RequestTimes.itl = property(gaps)
""",
    ),
    Rewrite(
        "the quickest sample",
        """
def quick(self):
    firsts = [times[0] for times in self.tokens.values() if times]
    return min(firsts) - self.submitted if firsts else None
RequestTimes.ttft = property(quick)
""",
        {"12.3": "not of the sample that was quickest"},
    ),
    Rewrite(
        "sorted from behind",
        """
def merged_percentile(workers, share):
    values = [value for worker in workers for value in worker]
    if len(values) == 0:
        raise ValueError("nothing")
    values.sort(reverse=True)
    above = math.floor(len(values) - share * len(values))
    return values[min(above, len(values) - 1)]
""",
    ),
    Rewrite(
        "a heap",
        """
import heapq

def merged_percentile(workers, share):
    values = list(heapq.merge(*map(sorted, workers)))
    place = next((i for i in range(len(values)) if i + 1 >= share * len(values)), None)
    if place is None:
        raise ValueError
    return values[place]
""",
    ),
    Rewrite(
        "a tensor of 64 bits",
        """
import torch

def merged_percentile(workers, share):
    values = [torch.tensor(list(worker), dtype=torch.float64) for worker in workers]
    if not values or not sum(map(len, values)):
        raise ValueError
    ordered = torch.cat(values).sort().values
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)].item()
""",
    ),
    Rewrite(
        "the mean of the means",
        """
def one(values, share):
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
def merged_percentile(workers, share):
    found = [one(worker, share) for worker in workers if len(worker)]
    if not found:
        raise ValueError
    return sum(found) / len(found)
""",
        {"12.4": "percentiles cannot be averaged"},
    ),
    Rewrite(
        "a sum over sets of ids",
        """
def goodput(sent, requests, promise, seconds):
    def kept(one):
        times = requests.get(one.request_id)
        if one.failed or times is None or not times.tokens[0]:
            return False
        is_quick = times.tokens[0][0] - one.intended <= promise.ttft
        return is_quick and (len(times.tokens[0]) == 1 or times.tpot <= promise.tpot)
    return sum(map(kept, sent)) / seconds
""",
    ),
    Rewrite(
        "misses are subtracted",
        """
def goodput(sent, requests, promise, seconds):
    sent = tuple(sent)
    good = len(sent)
    for one in sent:
        if one.failed or one.request_id not in requests:
            good -= 1
            continue
        times = requests[one.request_id]
        late = times.submitted - one.intended
        if times.ttft is None or late + times.ttft > promise.ttft or (times.tpot or 0) > promise.tpot:
            good -= 1
    return good / seconds
""",
    ),
    Rewrite(
        "exceptions for misses",
        """
def goodput(sent, requests, promise, seconds):
    good = []
    for start, name, failed in sent:
        try:
            times = requests[name]
            wait = times.tokens[0][0] - start
        except (KeyError, IndexError):
            continue
        gaps = times.itl
        good += [name] * (not failed and wait <= promise.ttft and sum(gaps) <= promise.tpot * max(len(gaps), 1))
    return len(good) / seconds
""",
    ),
    Rewrite(
        "a share of those that were sent",
        """
def goodput(sent, requests, promise, seconds):
    known = [(s, requests[s.request_id]) for s in sent if not s.failed and s.request_id in requests]
    good = [
        s for s, t in known
        if t.ttft is not None
        and t.submitted + t.ttft - s.intended <= promise.ttft
        and (t.tpot is None or t.tpot <= promise.tpot)
    ]
    return len(good) / max(1, len(known))
""",
        {"12.5": "the share of the requests"},
    ),
    Rewrite(
        "comprehensions",
        """
def memory_use(events):
    steps = [e for e in events if e.kind == "step"]
    if not steps:
        return MemoryUse()
    slots = sum(e["slots"] for e in steps)
    filled = [e for e in steps if e["slots"] > 0]
    worst = max(filled, key=lambda e: e["waste"] / e["slots"], default=None)
    return MemoryUse(
        sum(e["waste"] for e in steps) / slots if slots else 0.0,
        worst.step if worst else None,
        min(e["free"] + e["cached"] for e in steps),
    )
""",
    ),
    Rewrite(
        "exact fractions",
        """
from fractions import Fraction

def memory_use(events):
    total, waste, rooms, shares = 0, 0, [], {}
    for e in events:
        if e.kind == "step":
            total, waste = total + e["slots"], waste + e["waste"]
            rooms.append(e["cached"] + e["free"])
            if e["slots"]:
                shares.setdefault(Fraction(e["waste"], e["slots"]), e.step)
    first = shares[max(shares)] if shares else None
    return MemoryUse(waste / total if total else 0.0, first, min(rooms, default=None))
""",
    ),
    Rewrite(
        "a plain tuple",
        """
def memory_use(events):
    found, best = [0, 0, None, None], (0, 1)
    for e in events:
        if e.kind != "step": continue
        found[0] += e["waste"]; found[1] += e["slots"]
        room = e["cached"] + e["free"]
        found[3] = room if found[3] is None or room < found[3] else found[3]
        if e["slots"] and (found[2] is None or e["waste"] * best[1] > best[0] * e["slots"]):
            best, found[2] = (e["waste"], e["slots"]), e.step
    return found[0] / found[1] if found[1] else 0.0, found[2], found[3]
""",
    ),
    Rewrite(
        "the mean over steps",
        """
def memory_use(events):
    steps = [e for e in events if e.kind == "step"]
    filled = [e for e in steps if e["slots"]]
    shares = [e["waste"] / e["slots"] for e in filled]
    return MemoryUse(
        sum(shares) / len(shares) if shares else 0.0,
        filled[shares.index(max(shares))].step if shares else None,
        min((e["free"] + e["cached"] for e in steps), default=None),
    )
""",
        {"12.6": "the mean of the steps' shares"},
    ),
    Rewrite(
        "groups of steps",
        """
import itertools

def diagnose(events):
    trace = list(events)
    steps = [(i, e) for i, e in enumerate(trace) if e.kind == "step"]
    runs = [list(run) for waits, run in itertools.groupby(steps, lambda s: bool(s[1]["held"])) if waits]
    run = max(runs, key=len, default=[])
    if len(run) < PATIENCE:
        return Finding("none")
    counts = [sum(e["held"].values()) for _, e in run]
    peak = max(counts)
    to = run[counts.index(peak)][0]
    since = max([i for i, _ in steps if i < run[0][0]], default=0)
    queued = [e.time for e in trace if e.kind == "queue"]
    rate = 0.0
    if queued and queued[-1] > queued[0]:
        rate = len(queued) / (queued[-1] - queued[0])
    came = [e for e in trace[since:to] if e.kind == "queue"]
    if len(came) - rate * (trace[to].time - trace[since].time) > peak / 2:
        return Finding("burst", run[0][1].step, peak)
    blocks = sum("blocks" in e["held"] for _, e in run)
    return Finding("memory" if 2 * blocks > len(run) else "batching", run[0][1].step, peak)
""",
    ),
    Rewrite(
        "one walk that remembers",
        """
def diagnose(events):
    queued, times, before, run, best = 0, [], None, None, None
    for e in events:
        if before is None:
            before = (e.time, 0)
        if e.kind == "queue":
            queued += 1
            times.append(e.time)
        elif e.kind == "step":
            waits = sum(e["held"].values()) if e["held"] else 0
            if waits and run is None:
                run = {"step": e.step, "from": before, "peak": 0, "n": 0, "blocks": 0}
            if waits:
                run["n"] += 1
                run["blocks"] += "blocks" in e["held"]
                if waits > run["peak"]:
                    run["peak"], run["to"] = waits, (e.time, queued)
                if best is None or run["n"] > best["n"]:
                    best = run
            else:
                run = None
            before = (e.time, queued)
    if best is None or best["n"] < PATIENCE:
        return Finding("none")
    rate = queued / (times[-1] - times[0]) if times and times[-1] > times[0] else 0
    excess = best["to"][1] - best["from"][1] - rate * (best["to"][0] - best["from"][0])
    if excess > best["peak"] / 2:
        return Finding("burst", best["step"], best["peak"])
    return Finding("memory" if best["blocks"] * 2 > best["n"] else "batching", best["step"], best["peak"])
""",
    ),
    Rewrite(
        "a plain tuple and letters",
        """
def diagnose(events):
    trace = [*events]
    places = [i for i, e in enumerate(trace) if e.kind == "step"]
    letters = "".join("w" if trace[i]["held"] else "." for i in places)
    longest = max(letters.split("."), key=len)
    if len(longest) < PATIENCE:
        return "none", None, 0
    first = letters.index(longest)
    run = [trace[i] for i in places[first : first + len(longest)]]
    sizes = [sum(e["held"].values()) for e in run]
    begin = places[first - 1] if first else 0
    end = places[first + sizes.index(max(sizes))]
    queue = [i for i, e in enumerate(trace) if e.kind == "queue"]
    span = trace[queue[-1]].time - trace[queue[0]].time if queue else 0
    usual = (trace[end].time - trace[begin].time) * len(queue) / span if span else 0
    if sum(begin <= i < end for i in queue) - usual > max(sizes) / 2:
        return "burst", run[0].step, max(sizes)
    short = [e for e in run if "blocks" in e["held"]]
    return "memory" if len(short) > len(run) - len(short) else "batching", run[0].step, max(sizes)
""",
    ),
    Rewrite(
        "looks at free blocks",
        """
def diagnose(events):
    trace = list(events)
    begin, end = _longest_wait([i for i, event in enumerate(trace) if event.kind == "step"], trace)
    steps = [event for event in trace[begin:end] if event.kind == "step"]
    if len(steps) < PATIENCE:
        return Finding("none")
    waiting = [sum(event["held"].values()) for event in steps]
    peak = max(waiting)
    if _excess(trace, begin, steps[waiting.index(peak)]) > peak / 2:
        return Finding("burst", steps[0].step, peak)
    full = sum(event["free"] == 0 for event in steps)
    return Finding("memory" if 2 * full > len(steps) else "batching", steps[0].step, peak)
""",
        {"12.7": "cached blocks can be evicted"},
    ),
]
