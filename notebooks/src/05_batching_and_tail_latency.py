# %% [markdown]
# # 5. Batching, scheduling, tail latency
#
# A server has many requests at the same time. Their lengths are unknown, and they share one memory. Before
# every step the server must decide which requests run. This notebook shows the effect of these decisions on
# throughput, on waiting times, and on the slowest percent of the tokens.
#
# **Goals.** Afterwards you can
#
# * say how many rows static batching wastes, and why continuous batching does not waste them;
# * explain how the time of a step grows with requests and contexts;
# * read admission and preemption in the events, and explain the use of headroom;
# * explain how a long prompt delays the next token of all other requests, and what chunks change.
#
# **You need** notebook 2 (both loops, batching) and from notebook 3 the block map.
#
# **Read along** `minillm/engine/scheduler.py` (280 lines), `minillm/engine/stepping.py`,
# `minillm/worker/worker.py`, and `minillm/observe/metrics.py`, which computes such figures from events.
#
# The counts of steps, rows and tokens are the same on every machine. The times were measured in the last
# run, on some machine: **look at your own**.

# %%
import contextlib
import csv
import io
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from statistics import mean, median

import matplotlib.pyplot as plt
import torch
from IPython.display import display

from minillm import LLM, SamplingParams
from minillm.engine import scheduler
from minillm.errors import KVCapacityError, QueueFull

torch.set_num_threads(1)  # steadier times
scheduler.AGING_SECONDS = float("inf")  # counts must not depend on the clock: see the end
plt.rcParams.update({"figure.dpi": 90, "font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#CCCCCC"  # safe for colour-blind readers

SIZE = 16  # tokens in a block


def show(figure, alt):
    """Display a figure; `alt` describes it for readers who do not see it."""
    display(figure, metadata={"image/png": {"alt": alt}})
    plt.close(figure)


def new_engine(name=None, **options):
    """No prefix cache by default, so that the work depends only on lengths."""
    defaults = {"kv_memory": "64MiB", "block_size": SIZE, "prefix_caching": False}
    with contextlib.redirect_stderr(io.StringIO()):  # it says when it compiles, or cannot
        return LLM(name, device="cpu", **defaults | options)


llm = new_engine()
model = llm.engine.model
kv_token = model.config.kv_bytes_per_token(model.dtype.itemsize)
text = model.tokenizer.encode("Once upon a time there was a small bird who lived in a tall tree. ") * 100
print(f"backend: {model.decoder.ops.name}, {model.dtype}, {kv_token:,} bytes of cache per token")


def ask(answer):
    return SamplingParams(temperature=0.0, max_tokens=answer, ignore_eos=True)


# %% [markdown]
# The requests: lengths from a production chat service, every ninth of `data/azure_conversation_lengths.csv`
# (see notebook 3). Prompts are divided by 16, answers by 8. Only lengths matter here, so all prompts are
# parts of one text.

# %%
with Path("data/azure_conversation_lengths.csv").open() as file:
    rows = csv.DictReader(line for line in file if not line.startswith("#"))
    lengths = [(-(-int(row["prompt"]) // 16), -(-int(row["answer"]) // 8)) for row in rows]
requests = lengths[::9][:24]
prompts = [text[:prompt] for prompt, answer in requests]
answers = [answer for prompt, answer in requests]
print(f"{len(requests)} requests, prompts of {min(map(len, prompts))} to {max(map(len, prompts))} tokens")
print("answers:", answers)

# %% [markdown]
# ## 5.1 Static against continuous
#
# Eight sequences may run at once. Three ways to serve 24 requests:
#
# * **static, padded**: eight at a time. Prompts and answers are padded to the longest of the eight, as in one
#   rectangular tensor;
# * **static, ragged**: no padding. A finished sequence is not computed any more, but its place stays empty
#   until all eight have finished;
# * **continuous**: a free place is used in the next step. The engine works this way.
#
# For the static ways we give the engine eight requests at a time; for the padded way, requests of the padded
# lengths.

# %%
PLACES = 8
SERVED = sum(answers)  # requested tokens, without padding


def serve(batches):
    """Serve lists of (prompt, answer length) one after the other; returns the trace and the seconds."""
    llm = new_engine(max_num_seqs=PLACES, max_num_batched_tokens=8192)
    llm.generate([text[:20]] * PLACES, ask(3))  # warm up
    with llm.engine.events.record() as trace:
        started = time.perf_counter()
        for batch in batches:
            llm.generate([prompt for prompt, _ in batch], [ask(answer) for _, answer in batch])
        return trace, time.perf_counter() - started


work = list(zip(prompts, answers, strict=True))
eights = [work[i : i + PLACES] for i in range(0, len(work), PLACES)]
padded = [
    [(text[: max(len(p) for p, _ in batch)], max(a for _, a in batch))] * len(batch) for batch in eights
]
runs = {
    "static, padded": serve(padded),
    "static, ragged": serve(eights),
    "continuous": serve([work]),
}


def first_token_times(trace):
    """Seconds from the start of the trace to each request's first token."""
    first = {}
    for event in trace:
        if event.kind == "sample":
            for request_id, _ in event["requests"]:
                first.setdefault(request_id, event.time - trace[0].time)
    return list(first.values())


print("                          rows      places       wanted tokens   first token after (ms)")
print("                steps   computed   in use     a step  a second     median     worst")
for name, (trace, seconds) in runs.items():
    steps = [event for event in trace if event.kind == "step"]
    tokens = sum(len(event["requests"]) for event in trace if event.kind == "sample")
    computed = sum(event["prefill_tokens"] + event["decode_rows"] for event in steps)
    used = tokens / (PLACES * len(steps))
    first = [1e3 * t for t in first_token_times(trace)]
    print(
        f"{name:15} {len(steps):5} {computed:10,} {used:9.0%} {SERVED / len(steps):10.1f}"
        f" {SERVED / seconds:9.0f} {median(first):10.0f} {max(first):9.0f}"
    )

num_steps = {name: sum(event.kind == "step" for event in trace) for name, (trace, _) in runs.items()}
assert (
    num_steps["static, padded"]
    == num_steps["static, ragged"]
    == sum(max(answer for _, answer in batch) for batch in eights)
)
assert num_steps["continuous"] < 0.7 * num_steps["static, ragged"]


# %%
def bars(trace):
    """(place, first step, length) of each request, in the first place that is free when it starts."""
    begin, end = {}, {}
    for event in trace:
        if event.kind == "sample":
            for request_id, _ in event["requests"]:
                begin.setdefault(request_id, event.step - trace[-1].step)
                end[request_id] = event.step - trace[-1].step + 1
    free, found, zero = [float("-inf")] * PLACES, [], min(begin.values())
    for request_id in begin:
        place = next(i for i, until in enumerate(free) if until <= begin[request_id])
        free[place] = end[request_id]
        found.append((place, begin[request_id] - zero, end[request_id] - begin[request_id]))
    return found


fig, axes = plt.subplots(2, 1, figsize=(9.5, 4.4), sharex=True, layout="constrained")
for ax, name in zip(axes, ("static, ragged", "continuous"), strict=True):
    for number, (place, begin, length) in enumerate(bars(runs[name][0])):
        ax.barh(place, length, left=begin, color=plt.get_cmap("tab20")(number % 20), edgecolor="white")
    ax.axvline(num_steps[name], color="black", linestyle=":", label="the last step")
    ax.set(ylabel="place", yticks=range(PLACES))
    ax.set_title(f"{name}: {num_steps[name]} steps", loc="left", fontsize=11)
axes[-1].set_xlabel("engine step")
axes[-1].legend(frameon=False, loc="lower right")
show(
    fig,
    "Two time lines of eight places. Static batches leave white gaps while all places wait for the "
    "longest request. In the continuous one the next request begins at once, and it ends after fewer "
    "steps.",
)

# %% [markdown]
# A bar is a request; its colour only separates it from its neighbours. In the upper picture all places wait
# for the longest of eight requests; the white area is lost. In the lower picture a free place is used again
# at once. There is white only at the end, when no request waits. A service that never stops has no such
# end.
#
# Padding does not need more *steps*, but it is worse: the empty places are computed too.
#
# Static batches also make waiting times longer. A request of the second batch waits for the longest answer
# of the first batch before it gets its first token. The last two columns show this.
#
# ## 5.2 Adding requests and context, step by step
#
# We use one engine, after a warm-up. We change the number of sequences that decode together and the length
# of their contexts, and measure the processor time of a step, which other programs disturb less than the
# clock. Each number is the median of five rounds, and in each round the median of eight steps. To save time
# the prefix cache is on: contexts are prefilled once and shared. (Attention still reads them for each
# sequence.)

# %%
contexts, crowds = [64, 256, 1024], [1, 2, 4, 8, 16]
warm = new_engine(prefix_caching=True)
for context in contexts:
    warm.generate([text[: context + 1]], ask(1))


def step_time(context, crowd):
    """Median processor time (ms) of the steps in which `crowd` sequences decode after `context` tokens."""
    engine, times = warm.engine, []
    for i in range(crowd):
        engine.add_request(text[:context] + [100 + i], ask(9))
    while engine.has_unfinished_requests():
        with engine.events.record() as trace:
            before = time.process_time()
            engine.step()
            seconds = time.process_time() - before
        rows = {(e["decode_rows"], e["prefill_tokens"]) for e in trace if e.kind == "step"}
        times += [seconds] if rows == {(crowd, 0)} else []
    assert len(times) == 8
    return 1e3 * median(times)


rounds = [
    {(context, crowd): step_time(context, crowd) for context in contexts for crowd in crowds}
    for _ in range(5)  # in turns: noise affects all
]
times = {
    context: [median(one_round[context, crowd] for one_round in rounds) for crowd in crowds]
    for context in contexts
}
print("ms per step     sequences" + "".join(f"{crowd:8}" for crowd in crowds))
for context, row in times.items():
    print(f"context {context:5} {'':11}" + "".join(f"{t:8.1f}" for t in row))
weights = model.config.num_parameters * model.dtype.itemsize
print(
    f"\ncontexts of {weights // kv_token:,} tokens, all sequences together, are as many bytes as the weights"
)

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
for (context, row), style, colour in zip(
    times.items(), ("o-", "s-", "^-"), (BLUE, GREEN, ORANGE), strict=True
):
    left.plot(crowds, row, style, color=colour, label=f"context {context:,}")
    right.plot(crowds, [1e3 * n / t for n, t in zip(crowds, row, strict=True)], style, color=colour)
left.set(xlabel="sequences in the batch", ylabel="time of a step (ms)", ylim=(0, None))
right.set(xlabel="sequences in the batch", ylabel="tokens per second, all together", ylim=(0, None))
left.legend(frameon=False)
for ax in (left, right):
    ax.set_xticks(crowds, crowds)
    ax.grid(color="#EEEEEE")
show(
    fig,
    "Left: time of a step against the number of sequences, one curve for each context; the longest "
    "context is the steepest. Right: tokens per second, all sequences together; with the longest "
    "context they rise least.",
)

# %% [markdown]
# Look at the left picture. At short contexts the time should grow much more slowly than the batch, because
# the weights are shared. At long contexts it grows faster, because keys and values are not shared. The
# right picture shows the same as throughput: with longer contexts a larger batch helps less.
#
# A scheduler could stop adding sequences when a curve on the right becomes flat (with batches of 16 yours
# may still rise). Mostly it must stop earlier, because memory is full.
#
# ## 5.3 Three memory sizes
#
# A large GPU can be divided into slices (NVIDIA's MIG: an eighth, a quarter, half of the memory). For an
# engine a slice means a smaller `kv_memory`. We run the first 16 requests of the list on three pools. (Only
# counts matter here, so this section runs the smaller of the two models that ship.)

# %%
sixteen = lengths[:16]
necessary = sum(prompt + answer - 1 for prompt, answer in sixteen)  # an answer's last token is not computed


TINY = "storyteller-1m"
tiny_token = new_engine(TINY).engine.model.config.kv_bytes_per_token(model.dtype.itemsize)


def pool_of(blocks):
    return blocks * SIZE * tiny_token


def serve_all(blocks, **options):
    """Outputs and trace of `sixteen` on a pool of so many blocks."""
    llm = new_engine(TINY, kv_memory=pool_of(blocks), **options)
    with llm.engine.events.record() as trace:
        outputs = llm.generate(
            [text[:prompt] for prompt, _ in sixteen], [ask(answer) for _, answer in sixteen]
        )
    return outputs, trace


def computed_tokens(trace):
    steps = [event for event in trace if event.kind == "step"]
    return sum(event["prefill_tokens"] + event["decode_rows"] for event in steps)


pools = [20, 40, 80]
by_pool = {blocks: serve_all(blocks) for blocks in pools}
print("blocks   memory    steps   most at once   preemptions   tokens computed twice")
for blocks, (_, trace) in by_pool.items():
    steps = [event for event in trace if event.kind == "step"]
    most, preemptions = max(e["running"] for e in steps), sum(e.kind == "preempt" for e in trace)
    twice = computed_tokens(trace) - necessary
    print(f"{blocks:6} {pool_of(blocks) // 1024:5} KiB {len(steps):7} {most:14} {preemptions:13} {twice:12}")
    assert (twice > 0) == (preemptions > 0)
texts = [[output.token_ids for output in outputs] for outputs, _ in by_pool.values()]
if model.decoder.ops.name == "native":
    assert texts[0] == texts[1] == texts[2]
    print("the answers are the same")

# %%
fig, axes = plt.subplots(3, 1, figsize=(9.5, 5.4), sharex=True, sharey=True, layout="constrained")
for ax, (blocks, (_, trace)) in zip(axes, by_pool.items(), strict=True):
    steps = [event for event in trace if event.kind == "step"]
    xs = [event.step for event in steps]
    ax.step(xs, [event["running"] for event in steps], color=BLUE, label="running")
    memory = ax.twinx()  # an axis of its own on the right
    memory.fill_between(
        xs, [100 * event["used"] / blocks for event in steps], color=GREY, alpha=0.4, step="pre"
    )
    memory.set(ylim=(-12, 105), yticks=(0, 50, 100), ylabel="memory used (%)")
    memory.spines["right"].set_visible(True)
    for kind, marker, colour in (("admit", "^", GREEN), ("preempt", "v", ORANGE), ("resume", "^", "black")):
        at = Counter(event.step for event in trace if event.kind == kind)
        ax.plot(list(at), [-2] * len(at), marker, color=colour, label=kind, markersize=6)  # below 0
    ax.fill_between([], [], [], color=GREY, alpha=0.4, label="memory in use (right axis)")
    ax.set(ylabel="running", ylim=(-3.5, 17), yticks=(0, 8, 16))
    ax.set_title(f"{blocks} blocks", loc="left", fontsize=11)
axes[0].legend(frameon=False, ncols=5, loc="lower right", bbox_to_anchor=(1, 0.98), fontsize=10)
axes[-1].set_xlabel("engine step")
show(
    fig,
    "Three time lines, for 20, 40 and 80 blocks: the number of running requests, the used share of the "
    "memory, and marks for admissions, preemptions and resumptions. With more blocks more requests run "
    "at once, and fewer steps are needed.",
)

# %% [markdown]
# The blue line counts the requests that run, the grey area is the used share of the memory. The marks below
# 0 are events. The green triangles are **admissions**. With much memory, many requests are admitted early;
# with little memory, one after the other. With fewer requests at a time, the same answers need more steps.
#
# The orange triangles are **preemptions**: a running sequence needed a block, no block was free, and the
# newest sequence was preempted. It loses its blocks but keeps its tokens. When it resumes, it computes
# their keys and values again. Here are the events of one such request:

# %%
_, trace = by_pool[pools[0]]
victim = next(event.request_id for event in trace if event.kind == "preempt")
decoded = 0
for event in trace:
    if event.kind == "sample":
        decoded += any(request_id == victim for request_id, _ in event["requests"])
    if event.request_id == victim and event.kind not in ("alloc", "free"):
        details = {name: round(v, 3) if isinstance(v, float) else v for name, v in event.data.items()}
        print(f"step {event.step:4}  {event.kind:14} answer so far: {decoded:3}   {details}")

# %% [markdown]
# Preemption costs arithmetic, so it should be rare. **Headroom** makes it rare: a request is admitted only
# if enough blocks stay free for the next 32 tokens (`headroom_tokens`) of the running sequences. The
# scheduler is a part of the engine that can be replaced. Here is one without headroom.


# %%
class Eager(scheduler.Scheduler):
    """Admits every request that fits at this moment."""

    headroom_tokens = 0


eager = {blocks: serve_all(blocks, parts={"scheduler": Eager}) for blocks in pools}
print(f"          headroom {scheduler.Scheduler.headroom_tokens} tokens:              none:")
print("blocks    preempted  computed twice  steps    preempted  computed twice  steps")
for blocks in pools:
    line = f"{blocks:6} "
    for _, trace in (by_pool[blocks], eager[blocks]):
        preemptions = sum(event.kind == "preempt" for event in trace)
        steps = sum(event.kind == "step" for event in trace)
        line += f"{preemptions:12} {computed_tokens(trace) - necessary:15} {steps:6}"
    print(line)
assert sum(event.kind == "preempt" for event in by_pool[pools[0]][1]) > 0


def total(runs):
    return sum(computed_tokens(trace) for _, trace in runs.values())


assert total(by_pool) < total(eager)

# %% [markdown]
# Without headroom more requests run at the same time, so there are slightly fewer steps. But they preempt
# each other, and keys and values are computed twice. The best headroom depends on the cost of a row: it is
# low while the batch is small, and high when arithmetic is the bottleneck.
#
# Some requests must be rejected at once: a request that can never fit, and a request that arrives when the
# queue is full. Both are rejected before any work, with an error.

# %%
llm = new_engine(TINY, kv_memory=pool_of(4), max_queued_requests=2)
try:
    llm.engine.add_request(text[:100], ask(1))
except KVCapacityError as error:
    print("KVCapacityError:", error)
for _ in range(2):
    llm.engine.add_request(text[:10], ask(1))
try:
    llm.engine.add_request(text[:10], ask(1))
except QueueFull as error:
    print("QueueFull:", error)
while llm.engine.has_unfinished_requests():
    llm.engine.step()

# %% [markdown]
# ## 5.4 A long prompt arrives
#
# Six answers are streaming. Then a prompt of 800 tokens arrives. If it is prefilled in one step, six
# streams stop for the time of that step. `prefill_chunk` limits the number of prompt tokens in one step:
# the prompt is computed in chunks, and every stream gets a token between two chunks.
#
# First look at the steps themselves. The scheduler's plan becomes a `StepInput`, which is plain data, and the
# worker runs it (notebook 2, section 2.2). So we record the calls of `worker.execute`:

# %%
engine = new_engine(TINY, prefill_chunk=128).engine
execute = engine.worker.execute


def listen(step):
    parts = [f"{len(chunk.token_ids)} prompt tokens from position {chunk.start}" for chunk in step.prefill]
    parts += [f"{len(step.decode)} decode rows"] if step.decode else []
    print("  ", ", ".join(parts))
    return execute(step)


engine.worker.execute = listen
for i in range(3):
    engine.add_request(text[: 20 + i], ask(6))
engine.step()
engine.step()
print("a prompt of 300 tokens arrives")
engine.add_request(text[:300], ask(2))
while engine.has_unfinished_requests():
    engine.step()

# %% [markdown]
# A step has up to two passes: the prefill chunks, then one decode row for each running stream. The chunks
# of the new request are in the same steps as the streams' rows, so no stream waits for the whole prompt.
# Now we measure the times, with six streams and 800 tokens.

# %%
STREAMS, LONG = 6, 800


def long_prompt(chunk):
    """Gaps of the streams (time since arrival, ms), TTFT (ms), and the steps with the long prompt.

    Every stream gets a token in each step, so a gap is the time of a step: here its processor time, as on a
    machine on which nothing else runs.
    """
    engine = new_engine(prefill_chunk=chunk).engine
    for i in range(STREAMS):
        engine.add_request(text[: 20 + i], ask(400))
    for _ in range(5):
        engine.step()
    at = [time.process_time()]  # when each step ended
    with engine.events.record() as trace:
        for _ in range(5):
            engine.step()
            at.append(time.process_time())
        newcomer = engine.add_request(text[:LONG], ask(20))
        arrival, first = at[-1], None
        while first is None:
            engine.step()
            at.append(time.process_time())
            has_first = any(e.kind == "sample" and (newcomer, 0) in e["requests"] for e in trace)
            first = at[-1] if has_first else None
        for _ in range(5):
            engine.step()
            at.append(time.process_time())
    gaps = [(1e3 * (b - arrival), 1e3 * (b - a)) for a, b in pairwise(at)]
    busy = [event for event in trace if event.kind == "step" and event["prefill_tokens"]]
    assert all(event["decode_rows"] == STREAMS for event in busy), "nobody is left out"
    return gaps, 1e3 * (first - arrival), busy


chunks = [32, 128, 1024]
rounds = [{chunk: long_prompt(chunk) for chunk in chunks} for _ in range(3)]  # in turns: noise hits all
print("            steps with    most prompt tokens   gap of a stream (ms)   first token of the")
print("chunk       the prompt    between two tokens     median   worst       long prompt (ms)")
for chunk in chunks:
    tries = [one_round[chunk] for one_round in rounds]
    busy = tries[0][2]
    quiet = median(gap for gaps, _, _ in tries for _, gap in gaps)
    worst = median(max(gap for _, gap in gaps) for gaps, _, _ in tries)
    ttft = median(ttft for _, ttft, _ in tries)
    most = max(event["prefill_tokens"] for event in busy)
    print(f"{chunk:5} {len(busy):12} {most:20} {quiet:16.1f} {worst:7.1f} {ttft:17.0f}")
    assert most == min(chunk, LONG) and len(busy) == -(-LONG // chunk)

# %%
fig, ax = plt.subplots(figsize=(9, 3.8), layout="constrained")
shown = rounds[-1]
styles = zip(("o", "s", "^"), (BLUE, GREEN, ORANGE), strict=True)
for (chunk, (gaps, ttft, _)), (style, colour) in zip(shown.items(), styles, strict=True):
    xs, ys = zip(*gaps, strict=True)
    label = f"chunks of {chunk}" if chunk < LONG else "in one piece"
    ax.plot(xs, ys, style + "-", color=colour, label=label, markersize=5, linewidth=1)
    ax.axvline(ttft, color=colour, linestyle=":")
ax.plot([], [], ":", color="black", label="first token of the long prompt")
ax.set(xlabel="processor time since the long prompt arrived (ms)", ylabel="gap before this token (ms)")
ax.set(yscale="log")
ax.yaxis.set_major_formatter("{x:g}")
ax.legend(frameon=False)
ax.grid(color="#EEEEEE")
show(
    fig,
    "Gaps between the tokens of one stream, on a logarithmic axis, for three chunk sizes. In one piece "
    "there is one large gap; with chunks there are several smaller ones. Dotted lines show the first "
    "token of the long prompt.",
)

# %% [markdown]
# Each point is a token of one running stream. Without chunks one point should be far above all others: the
# step with the whole prompt. With chunks many points are a little higher than before.
#
# This is a compromise. With smaller chunks the streams have shorter gaps, but the new request gets its first
# token later, because every step also decodes and every pass has a fixed cost. No chunk size is best for all
# services. But the engine can promise a bound: **a gap is the time of one step, and `prefill_chunk` limits a
# step**. (The budget of the whole step, for several prompts together, is `max_num_batched_tokens`.)
#
# ## 5.5 Why the tail, not the mean
#
# The mean of a stream's gaps hides the one long gap that the user notices. High percentiles show it:


# %%
def show(values):
    ordered = sorted(values)
    at = {q: ordered[min(int(q * len(ordered)), len(ordered) - 1)] for q in (0.5, 0.9, 0.99)}
    return "".join(f"{v:9.1f}" for v in (mean(values), *at.values(), ordered[-1]))


print("gaps (ms)           mean      p50      p90      p99    worst")
for chunk in chunks:
    label = f"chunks of {chunk}" if chunk < LONG else "in one piece"
    # Add 200 normal gaps, as they were before the prompt arrived.
    calm = [gap for one_round in rounds for at, gap in one_round[chunk][0] if at <= 0]
    gaps = [gap for at, gap in rounds[-1][chunk][0] if at > 0] + (calm * 200)[:200]
    print(f"{label:15}" + show(gaps))

# %% [markdown]
# Without chunks there is only one long gap in two hundred. Even the 99th percentile of one stream may not
# show it, but each of the six users saw it. With thousands of streams and a long prompt every few seconds,
# users complain about such gaps. Choose the percentile by how often a user sees such a gap.
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
# **1 (think).** The engine preempts the *newest* sequence. What would go wrong if it preempted the sequence
# with the most blocks? Or the oldest? Can two sequences preempt each other for ever?
#
# **2 (think).** A service promises a gap of at most 50 ms between tokens. Steps take 20 ms without a prompt,
# and 0.1 ms more for each prompt token. Which chunk size do you choose? What is then the shortest time for a
# prompt of 4,000 tokens? What would it be without the promise?
#
# **3 (code).** Compute the number of steps without running the engine. In continuous batching a request
# with an answer of `a` tokens keeps its place for `a` steps (its prefill gives the first token). A free
# place is used in the next step. How many steps do these answers take, in order of arrival?


# %%
def steps_needed(answers, places):
    """An int: the step in which the last answer ends."""
    raise NotImplementedError


# %%
def check_steps():
    for case, places, expected in (([3], 8, 3), ([1, 1, 1], 1, 3), ([5, 1, 1, 5], 2, 7), ([2, 9, 2], 2, 9)):
        mine = steps_needed(list(case), places)
        assert mine == expected, f"answers {case} in {places} places: {expected} steps, not {mine}"
    mine = steps_needed(list(answers), PLACES)
    assert mine == num_steps["continuous"], f"the engine took {num_steps['continuous']} steps, not {mine}"


attempt(check_steps)

# %% [markdown]
# **4 (code).** The exact percentile: the smallest value such that at least a share `q` of all values is less
# than or equal to it.


# %%
def percentile(values, q):
    """The q-quantile of a list by nearest rank, 0 < q <= 1."""
    raise NotImplementedError


# %%
def check_percentile():
    hundred = [(37 * i) % 100 + 1 for i in range(100)]  # 1 to 100, shuffled
    for values, q, expected in (
        (hundred, 0.99, 99),
        (hundred, 0.5, 50),
        ([2, 1], 0.5, 1),
        ([1, 2, 3], 0.5, 2),
        ([7], 0.01, 7),
        (hundred, 1.0, 100),
    ):
        mine = percentile(list(values), q)
        assert mine == expected, f"q={q} of {len(values)} values: {expected}, not {mine}"


attempt(check_percentile)

# %% [markdown]
# **5 (code).** Use only the events: how many tokens were computed *again* because of preemptions? With a
# prefix cache a sequence that resumes may find some of its blocks (`cached_tokens` of `resume`).


# %%
def computed_again(trace):
    """An int. `preempt` says how many computed tokens were lost."""
    raise NotImplementedError


# %%
def check_again():
    def check(trace, case):
        found = sum(event["cached_tokens"] for event in trace if event.kind == "admit")
        expected = computed_tokens(trace) + found - necessary
        mine = computed_again(trace)
        assert mine == expected, f"{case}: {expected} tokens, not {mine}"

    for blocks in pools:
        check(by_pool[blocks][1], f"{blocks} blocks")
        check(eager[blocks][1], f"{blocks} blocks, no headroom")
    _, cached = serve_all(pools[0], prefix_caching=True, parts={"scheduler": Eager})
    check(cached, f"{pools[0]} blocks, no headroom, prefix cache")


attempt(check_again)

# %% [markdown]
# ## What we left out
#
# * **Priorities and aging**: a smaller `priority` goes first, and waiting improves the rank (`scheduler.py`,
#   `rank`). We switched aging off, so that counts are the same on slow machines.
# * **Arrivals.** All our requests arrived at the start. With random arrivals, queues grow before the
#   machine is fully used. A load test needs an arrival process and a limit on latency; throughput is not
#   enough.
# * **Two machines.** Large services run prefill and decode on different GPUs, so that they do not disturb
#   each other.
# * **Swapping** blocks to main memory instead of computing them again.
#
# **Next.** Notebook 6 (sharing blocks). `minillm labs start 5`: write the scheduler yourself, inside the
# running engine.
