# %% [markdown]
# # 9. Observing and operating
#
# A serving engine goes wrong in ways that look alike from outside: users wait. The cause may be memory, or
# batching, or a burst of arrivals, and each needs another cure. This notebook makes one engine go wrong in
# these three ways, and finds the cause each time from its signals alone.
#
# **Goals.** Afterwards you can
#
# * name the signals of a serving engine, and say what each one measures;
# * tell lack of memory, lack of places and lack of time from the same three signals;
# * say why a percentile is worth more than a mean, and a queue by reason more than its length;
# * explain why a load test must write down when each request was *meant* to start.
#
# **You need** notebooks 3 (blocks) and 5 (batching).
#
# **Read along** `minillm/observe/events.py`, whose head lists every event, `minillm/observe/metrics.py`, and
# `docs/observing.md`.
#
# The counts are the same on every machine. The times were measured in the last run, on some machine: **look
# at your own**.

# %%
import contextlib
import io
import itertools
from collections import Counter

import torch
from IPython.display import Image, display

from minillm import LLM, SamplingParams
from minillm.engine import scheduler
from minillm.observe import plots
from minillm.observe.metrics import percentile, summarize
from minillm.observe.online import EngineMetrics

torch.set_num_threads(1)  # steadier times
scheduler.AGING_SECONDS = float("inf")  # counts must not depend on the clock: see notebook 5


def show(figure, alt):
    """Display a figure; `alt` describes it for readers who do not see it."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=80)
    display(Image(picture.getvalue()), metadata={"image/png": {"alt": alt}})


def new_engine(**options):
    sizes = {"max_num_seqs": 32, "kv_memory": "24MiB", "prefix_caching": False, "max_num_batched_tokens": 512}
    with contextlib.redirect_stderr(io.StringIO()):  # it says when it compiles, or cannot
        return LLM(device="cpu", **sizes | options)


llm = new_engine()
text = llm.tokenizer.encode("Once upon a time there was a small bird who lived in a tall tree. ") * 40
print(f"{llm.engine.pool.num_blocks} blocks of {llm.config.block_size} tokens")

# %% [markdown]
# ## 9.1 A healthy run
#
# The load: 24 requests with prompts of 60 to 180 tokens and answers of 80. One arrives in every fifth step.
# In this notebook time is counted in steps, so that all of us see the same. An operator sees seconds.
#
# The engine tells what it does in events, and it never reads them. Everything below is computed from these
# events: nothing asks the engine.

# %%
ANSWER = 80
PROMPTS = [60 + 24 * (i % 6) for i in range(24)]


def serve(llm, arrivals, prompts=PROMPTS, answer=ANSWER):
    """Run a load; `arrivals` has the step in which each request comes. Returns the events."""
    params = SamplingParams(temperature=0.0, max_tokens=answer, ignore_eos=True)
    llm.generate([text[:40]], params)  # first calls are slow: they are no part of the run
    coming = list(zip(arrivals, prompts, strict=True))
    with llm.engine.events.record() as trace:
        for step in itertools.count():
            while coming and coming[0][0] <= step:
                _, length = coming.pop(0)
                llm.engine.add_request(text[:length], params)
            if not coming and not llm.engine.has_unfinished_requests():
                return trace
            llm.engine.step()


STEADY = [5 * i for i in range(24)]
healthy = serve(llm, STEADY)
print(Counter(event.kind for event in healthy).most_common(6))

# %% [markdown]
# ### The signals
#
# | signal | question |
# | --- | --- |
# | **TTFT**: time to the first token | does an answer begin soon? |
# | **ITL**: time between tokens | does it go on smoothly? |
# | **waiting**, by what the first one lacks | who is stopped by what: `blocks`, `seqs`, `tokens`? |
# | **headroom**: blocks without an owner | is there memory for one more? |
# | **preemptions**, and tokens computed twice | is memory taken back from running requests? |
# | **batch**: rows in a step | is the machine used? |
#
# Percentiles, not means: p99 is the time that the slowest percent of the tokens took, or more.


# %%
def signals(name, trace):
    summary = summarize(trace)
    steps = [event for event in trace if event.kind == "step"]
    held = Counter()
    for event in steps:
        held.update(event["held"])
    wanted = sum(request.prompt_tokens for request in summary.requests.values())
    first = {}  # in steps: the same on every machine
    begin = {event.request_id: event.step for event in trace if event.kind == "queue"}
    for event in trace:
        if event.kind == "sample":
            for request_id, _ in event["requests"]:
                first.setdefault(request_id, event.step - begin[request_id])
    return {
        "run": name,
        "TTFT p50, steps": percentile(list(first.values()), 0.5),
        "TTFT p99, steps": percentile(list(first.values()), 0.99),
        "ITL p99, ms": round(1000 * percentile(summary.itl, 0.99), 1),
        "held": dict(held),
        "least headroom": min(event["free"] + event["cached"] for event in steps),
        "preemptions": summary.preemptions,
        "computed twice": summary.prefill_tokens - wanted,
        "rows a step": round(sum(e["prefill_tokens"] + e["decode_rows"] for e in steps) / len(steps), 1),
        "steps": len(steps),
    }


def table(*rows):
    for key in rows[0]:
        print(f"{key:16}" + "".join(f"{row[key]!s:>34}" for row in rows))


table(signals("healthy", healthy))

# %%
show(
    plots.step_timeline(healthy),
    "Three charts over the steps of the healthy run: rows of each step, KV blocks in use well below the "
    "pool, and a queue that is nearly always empty.",
)

# %% [markdown]
# Nobody waits for more than a step or two, headroom never ends, nothing is computed twice. Remember three
# numbers: **held**, **headroom**, **computed twice**. They are enough for what follows.
#
# ## 9.2 Incident one
#
# The same load. Somebody has changed one option of the engine. Users say that answers begin late and stop in
# the middle.

# %%
one = serve(new_engine(kv_memory="5MiB"), STEADY)
table(signals("healthy", healthy), signals("incident one", one))

# %%
show(
    plots.step_timeline(one),
    "The same charts for incident one: the blocks reach the line of the pool, requests wait, and preemptions "
    "are marked.",
)

# %% [markdown]
# **Diagnosis: memory.** Headroom has come to an end. The requests that wait lack `blocks`. Running requests
# were preempted and computed their tokens again, so the machine works more for the same answers.
#
# **Cure:** a larger `kv_memory`, fewer requests at once, shorter contexts, or fewer bits in the cache. More
# compute would not help: a step has fewer rows than in the healthy run, because there are no blocks for more.
#
# ## 9.3 Incident two
#
# The same load again, another option. Answers begin even later. But once they have begun they are smooth.

# %%
two = serve(new_engine(max_num_seqs=2), STEADY)
table(signals("healthy", healthy), signals("incident two", two))

# %%
show(
    plots.step_timeline(two),
    "The same charts for incident two: two rows in nearly every step, most blocks free, and a queue that "
    "grows to the end of the arrivals.",
)

# %% [markdown]
# **Diagnosis: batching.** Headroom is nearly the whole pool, nothing is preempted, nothing is computed twice.
# The requests that wait lack `seqs`: places in the batch. The steps are almost empty. A step with two rows
# reads all weights, as a step with sixteen does (notebook 2), so the machine is paid for and not used.
#
# **Cure:** a larger `max_num_seqs`. Memory would not help, although users wait.
#
# ## 9.4 Incident three
#
# The engine is the healthy one, and no option has changed. This time the load is another one: eight requests
# as before, then sixteen within one step.

# %%
BURST = [5 * i for i in range(8)] + [40] * 16
three = serve(new_engine(), BURST)
table(signals("healthy", healthy), signals("incident three", three))

# %%
show(
    plots.step_timeline(three),
    "The same charts for incident three: calm until step 40, then a queue that jumps and drains over the "
    "next steps, with full steps of prefill.",
)

# %% [markdown]
# **Diagnosis: a burst.** Until step 40 all is well. Then the queue jumps within one step and drains. The
# requests lack `tokens`: the steps are full of prefill. Memory and places were there. The requests are those
# of the healthy run, only their starts differ: a count of them hides it. The timeline and p99 do not.
#
# **Cure:** none in the engine that is free. Chunks already bound how long the running answers stall: ITL has
# grown, but no step is longer than a full one. Admission control refuses what cannot be served in time; more
# replicas take the peak.
#
# | | waiting lacks | headroom | computed twice | batch |
# | --- | --- | --- | --- | --- |
# | memory | `blocks` | none | yes | smaller |
# | batching | `seqs` | plenty | no | empty |
# | burst | `tokens`, for a while | some | no | full of prefill |
#
# ## 9.5 Latencies, and who writes them down
#
# The distribution of the time to the first token in the four runs, in seconds of this machine:

# %%
runs = {"healthy": healthy, "memory": one, "batching": two, "burst": three}
show(
    plots.latency_distribution(
        {name: summarize(trace).ttft for name, trace in runs.items()}, "time to the first token"
    ),
    "Four curves of the time to the first token, with marks at p50, p90 and p99; the run with two places is "
    "slowest at every percentile.",
)

# %% [markdown]
# A load generator that waits for an answer before it sends the next request (a *closed loop*) slows down
# together with the engine. A stall of two seconds then delays one request, and p99 does not show it. Real
# users do not wait for each other. So a generator must decide **before the run** when each request starts,
# and count its latency from that moment. Here is the same stall, both ways, with times made up so that you
# can check them by hand: a service time of 10 ms, 200 requests meant to start every 20 ms, and one stall of
# 2 s.


# %%
def stalled(open_loop):
    """Latencies in ms of 200 requests served one at a time; the server stalls for 2,000 ms at request 50."""
    now, found = 0.0, []
    for i in range(200):
        meant = 20.0 * i
        start = max(now, meant)
        now = start + 10.0 + (2000.0 if i == 50 else 0.0)
        found.append(now - (meant if open_loop else start))
    return found


for name, is_open in (("closed loop", False), ("open loop", True)):
    latencies = stalled(is_open)
    shown = ", ".join(f"p{int(100 * q)} {percentile(latencies, q):,.0f} ms" for q in (0.5, 0.9, 0.95, 0.99))
    print(f"{name:12} {shown}")

# %% [markdown]
# The name of the mistake is *coordinated omission* (Gil Tene). `minillm bench serving --workload poisson` is
# an open loop, and it declares its own run void if it could not keep the starts.
#
# ## 9.6 While it runs
#
# Above we kept every event. A server cannot: it must answer "what is p99 now" in constant memory. So
# `EngineMetrics` puts each time into a histogram whose buckets grow with the value. What it gives up is a
# known share of the value, not of the tail:

# %%
online = EngineMetrics().replay(three)
exact = summarize(three)
for name, values in (("ttft", exact.ttft), ("itl", exact.itl)):
    histogram = getattr(online.steady, name)
    worst = max(
        abs(histogram.percentile(q) - percentile(values, q)) / percentile(values, q)
        for q in (0.5, 0.9, 0.95, 0.99)
    )
    print(f"{name}: {len(values)} values, {histogram.count} counted, worst percentile off by less than 1 %:",
          worst < 0.01)  # fmt: skip

# %% [markdown]
# A program that watches many servers reads the same numbers from Prometheus (`docs/observing.md` has the
# names, which are vLLM's where it has one). And `LLM(record="run.jsonl")` with
# `minillm demo replay run.jsonl` makes one page out of a run, with every block and every step to look at.
#
# ## Exercises


# %%
def attempt(check):
    try:
        check()
    except NotImplementedError:
        print("not attempted yet")
    except AssertionError as error:
        print("not right yet:", error)
    else:
        print("right")


# %% [markdown]
# **1 (think).** In incident one, which of the two would help more: twice the memory, or fewer requests at
# once (`max_num_seqs=4`)? Say what you expect of TTFT and of "computed twice". Then run both.
#
# **2 (think).** In incident two the mean of the rows is small. Find a load in which the mean is large and
# requests still wait for `seqs`.
#
# **3 (code).** Goodput: the share of the requests that kept a service level. A request that failed counts as
# one that did not.


# %%
def goodput(requests, ttft):
    """`requests`: dicts with `ttft` (steps, or None if it got no token). The share with ttft <= `ttft`."""
    raise NotImplementedError


# %%
def check_goodput():
    requests = [{"ttft": 3}, {"ttft": 8}, {"ttft": 5}, {"ttft": None}]
    for limit, expected in ((5, 0.5), (8, 0.75), (2, 0.0)):
        mine = goodput(requests, limit)
        assert mine == expected, f"limit {limit}: {expected}, not {mine}"


attempt(check_goodput)

# %% [markdown]
# **4 (code).** The culprit, from the signals of a run (a dict as `signals` makes it).


# %%
def culprit(row):
    """Return "memory", "batching", "burst" or "none"."""
    raise NotImplementedError


# %%
def check_culprit():
    expected = {"healthy": "none", "memory": "memory", "batching": "batching", "burst": "burst"}
    for name, trace in runs.items():
        mine = culprit(signals(name, trace))
        assert mine == expected[name], f"{name}: not {mine}"


attempt(check_culprit)

# %% [markdown]
# ## What we left out
#
# * **Alerts.** A signal is not yet an alarm. An alarm needs a level that users feel, and a time.
# * **Traces across services** (OpenTelemetry). `docs/observing.md` maps our names to theirs.
# * **The GPU.** Occupancy and memory clocks are other signals, of another layer.
#
# **Next.** `minillm labs start 12`: compute these signals from a trace yourself, and find the culprit in
# incidents that you have not seen. `minillm demo pressure`: an engine under growing load, live.
