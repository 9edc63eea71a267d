# %% [markdown]
# # 3. The KV cache is memory
#
# Weights are loaded once and do not change. The KV cache grows while a server runs: it holds the keys and
# values of every token of every running request until the request ends. So the number of requests that can
# run at the same time usually depends on how this memory is allocated.
#
# **Goals.** Afterwards you can
#
# * compute the cost of one token for any model, and the number of tokens that fit beside its weights;
# * compare contiguous allocation with paging on one list of requests, and count exactly the waste of each;
# * explain the difference between *internal* and *external* fragmentation;
# * read the block map of a running engine, and its events.
#
# **You need** notebook 2 up to 2.2: block tables and slots.
#
# **Read along** `minillm/memory/block_pool.py`, `block_table.py` and `budget.py`,
# `minillm/observe/events.py`.
#
# This notebook counts and measures no times. Its figures are the same on every machine.

# %%
import bisect
import contextlib
import csv
import io
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from IPython.display import display

from minillm import LLM, SamplingParams
from minillm.config.sizes import format_bytes
from minillm.errors import OutOfBlocks
from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import BlockTable, blocks_for
from minillm.model.families import parse_config

torch.set_num_threads(1)
plt.rcParams.update({"figure.dpi": 90, "font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#CCCCCC"  # safe for colour-blind readers


def show(fig, alt):
    """Display a picture with `alt`, a text for those who cannot see it."""
    display(fig, metadata={"image/png": {"alt": alt}})
    plt.close(fig)


# %% [markdown]
# ## 3.1 What one token costs
#
# A token has one key and one value in every layer, for every KV head:
#
# $$\text{bytes per token} = 2 \times \text{layers} \times \text{KV heads} \times \text{head dim} \times
# \text{bytes per number}$$
#
# Here are the shapes of some models with public weights, from their `config.json` files. Such a table may
# contain a wrong digit. So each line ends with the model's published number of parameters, and `parse_config`
# must compute the same number from the other columns.

# %%
TABLE = """
name           family  layers hidden inner heads kv_heads head_dim vocab  tied parameters
SmolLM2-135M   llama   30     576    1536  9     3        64       49152  1    134515008
Qwen2.5-0.5B   qwen2   24     896    4864  14    2        64       151936 1    494032768
Qwen3-0.6B     qwen3   28     1024   3072  16    8        128      151936 1    596049920
TinyLlama-1.1B llama   22     2048   5632  32    4        64       32000  0    1100048384
Llama-2-7B     llama   32     4096   11008 32    32       128      32000  0    6738415616
Mistral-7B-0.3 mistral 32     4096   14336 32    8        128      32768  0    7248023552
Qwen2.5-7B     qwen2   28     3584   18944 28    4        128      152064 0    7615616512
Llama-3.1-8B   llama   32     4096   14336 32    8        128      128256 0    8030261248
Qwen3-8B       qwen3   36     4096   12288 32    8        128      151936 0    8190735360
Llama-3.1-70B  llama   80     8192   28672 64    8        128      128256 0    70553706496
"""


def config_of(row):
    config = parse_config(
        {
            "model_type": row["family"],
            "num_hidden_layers": int(row["layers"]),
            "hidden_size": int(row["hidden"]),
            "intermediate_size": int(row["inner"]),
            "num_attention_heads": int(row["heads"]),
            "num_key_value_heads": int(row["kv_heads"]),
            "head_dim": int(row["head_dim"]),
            "vocab_size": int(row["vocab"]),
            "tie_word_embeddings": row["tied"] == "1",
        }
    )
    assert config.num_parameters == int(row["parameters"]), row["name"]
    return config


head, *lines = [line.split() for line in TABLE.strip().splitlines()]
models = {line[0]: config_of(dict(zip(head, line, strict=True))) for line in lines}

# %%
BF16 = 2  # bytes
GPU = int(80e9 * 0.9)  # bytes of a large GPU that an engine can have for weights and cache

print("model            weights   KV per token   tokens that weigh   tokens beside the")
print("                                          as much as it does  weights, 80 GB GPU")
for name, c in models.items():
    weights, token = c.num_parameters * BF16, c.kv_bytes_per_token(BF16)
    room = max(GPU - weights, 0) // token
    print(f"{name:15} {format_bytes(weights):>9} {format_bytes(token):>14} {weights // token:15,} {room:20,}")
assert models["Llama-2-7B"].kv_bytes_per_token(BF16) == 4 * models["Llama-3.1-8B"].kv_bytes_per_token(BF16)

# %% [markdown]
# Three things to see:
#
# * **The size of the model says little.** Llama 2 and Llama 3.1 8B have about the same size, but a token of
#   Llama 2 costs four times as much: it has one KV head for every query head, Llama 3.1 one for every four.
# * **Tokens of small models are not cheap.** Qwen3-0.6B has 14 times fewer parameters than the 8B model
#   beside it, but its tokens are only a little cheaper (nearly as many layers, the same KV heads).
# * If the weights do not fit (the last line), there is no room for a cache. Such a model is divided over
#   several GPUs, and its KV heads too.
#
# In sequences instead of tokens:

# %%
CONTEXT = 4096
fig, ax = plt.subplots(figsize=(9, 4), layout="constrained")
for y, c in enumerate(models.values()):
    weights, sequence = c.num_parameters * BF16, CONTEXT * c.kv_bytes_per_token(BF16)
    fits = max(GPU - weights, 0) // sequence
    ax.barh(y, min(weights, GPU) / 1e9, color=GREY, label="weights" if y == 0 else None)
    ax.barh(
        y, fits * sequence / 1e9, left=weights / 1e9, color=BLUE, label="cache, in whole sequences" * (y == 0)
    )
    ax.text(GPU / 1e9 + 1, y, f"{fits:,}" if fits else "weights do not fit", va="center")
ax.set_yticks(range(len(models)), models)
ax.invert_yaxis()
ax.set(xlim=(0, 100), xlabel="GB of a GPU with 80, 72 of them usable")
ax.set_title(f"How many sequences of {CONTEXT:,} tokens fit", loc="left", fontsize=11)
ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.3, -0.32), ncols=2)
show(
    fig,
    f"A bar for each of {len(models)} models: its weights in grey, then as many whole sequences of "
    f"{CONTEXT:,} tokens as fit into 72 GB, in blue, with their number. The last model has no blue "
    "part: its weights do not fit.",
)

# %% [markdown]
# ## 3.2 The length of an answer is unknown
#
# If each sequence needed 4,096 tokens, the picture above would be complete. But sequences are shorter. The
# file `data/azure_conversation_lengths.csv` holds the lengths of 303 requests to a production chat service:
# every 64th row of the public trace *AzureLLMInferenceTrace_conv* (Microsoft, CC BY 4.0; described in Patel
# et al., "Splitwise", ISCA 2024). We divide them by four, as for a service with shorter texts and a context
# of 4,096.

# %%
with Path("data/azure_conversation_lengths.csv").open() as file:
    rows = csv.DictReader(line for line in file if not line.startswith("#"))
    lengths = [(-(-int(row["prompt"]) // 4), -(-int(row["answer"]) // 4)) for row in rows]


def spread(values):
    values = sorted(values)
    return [values[0], values[len(values) // 2], values[int(0.9 * len(values))], values[-1]]


print(f"{len(lengths)} requests      shortest  median   90 %  longest")
for name, values in (
    ("prompt", [p for p, a in lengths]),
    ("answer", [a for p, a in lengths]),
    ("together", [p + a for p, a in lengths]),
):
    print(f"{name:20}" + "".join(f"{v:8}" for v in spread(values)))
assert max(p + a for p, a in lengths) < CONTEXT

# %% [markdown]
# The length of the prompt is known when a request arrives. The length of the answer is known only at its
# end: it may be 3 tokens or 165. Memory must be allocated before that.
#
# ## 3.3 Contiguous against paged
#
# We compare two allocators. The first gives each sequence one **contiguous** range of slots, like an ordinary
# tensor. It uses the first hole that is large enough (first fit), and a rule gives the length. The second is
# minillm's: a `BlockPool`, and a `BlockTable` for each sequence.


# %%
@dataclass(eq=False)
class Open:
    """A request being served; `live` counts its tokens in the cache."""

    prompt: int
    answer: int
    live: int = 0
    place: object = None


class Contiguous:
    """One range of slots for each sequence, in the first hole that is long enough."""

    def __init__(self, capacity, stretch):
        self.capacity, self.stretch = capacity, stretch
        self.taken = []  # (start, length), by start

    def begin(self, request, running):
        length, at = self.stretch(request), 0
        for start, taken in [*self.taken, (self.capacity, 0)]:
            if start - at >= length:
                request.place = (at, length)
                bisect.insort(self.taken, request.place)
                return True
            at = start + taken
        return False

    def grow(self, request):
        return True  # the range is long enough for the whole sequence

    def end(self, request):
        self.taken.remove(request.place)

    @property
    def allocated(self):
        return sum(length for start, length in self.taken)


class Paged:
    """Blocks, allocated one by one while sequences grow."""

    def __init__(self, capacity, block_size=16):
        self.pool = BlockPool(capacity // block_size, block_size)

    def begin(self, request, running):
        needed = blocks_for(request.live + 1, self.pool.block_size)
        headroom = 2 * running  # two free blocks for each running request, so that it can grow
        if needed + headroom > self.pool.num_free:
            return False
        request.place = BlockTable(self.pool)
        request.place.grow(request.live)
        return True

    def grow(self, request):
        try:
            request.place.grow(request.live + 1)
        except OutOfBlocks:
            return False
        return True

    def end(self, request):
        request.place.release()

    @property
    def allocated(self):
        return self.pool.num_used * self.pool.block_size


# %% [markdown]
# All requests are waiting at the start. They are admitted in order of arrival while there is room. Every
# step adds one token to each running request. If a block is missing, the newest request is preempted: it
# goes back to the queue and will be computed again (the engine does the same; see notebook 5).


# %%
def serve(memory, lengths):
    """A row for each step (requests, slots allocated, slots live, does a request wait); the preemptions."""
    waiting, running = deque(Open(prompt, answer, live=prompt) for prompt, answer in lengths), []
    log, preemptions = [], 0
    while waiting or running:
        while waiting and memory.begin(waiting[0], len(running)):
            running.append(waiting.popleft())
        for request in list(running):
            while request in running and not memory.grow(request):
                memory.end(running[-1])
                waiting.appendleft(running.pop())
                preemptions += 1
            if request in running:
                request.live += 1
        log.append((len(running), memory.allocated, sum(r.live for r in running), bool(waiting)))
        for request in [r for r in running if r.live == r.prompt + r.answer]:
            running.remove(request)
            memory.end(request)
    return log, preemptions


SLOTS = 16384
LIMIT = max(answer for prompt, answer in lengths)  # assume that this is the limit of max_tokens
allocators = {
    "contiguous: the whole context": Contiguous(SLOTS, lambda r: CONTEXT),
    "contiguous: prompt + limit": Contiguous(SLOTS, lambda r: r.prompt + LIMIT),
    "contiguous: the true length": Contiguous(SLOTS, lambda r: r.prompt + r.answer),
    "paged: blocks of 16": Paged(SLOTS),
}
results = {name: serve(memory, lengths) for name, memory in allocators.items()}


def means(log):
    """Means over the steps in which a request waits: requests; shares live, allocated but empty, free."""
    full = [row for row in log if row[3]]
    held, allocated, live = (sum(row[i] for row in full) / len(full) for i in range(3))
    return held, live / SLOTS, (allocated - live) / SLOTS, (SLOTS - allocated) / SLOTS


print("                                held   live  empty  not out  waste of what is     steps")
print("                             at once      (% of memory)      allocated       (preemptions)")
for name, (log, preemptions) in results.items():
    held, live, empty, out = means(log)
    waste = empty / (live + empty)
    shares = f"{live:6.1%} {empty:6.1%} {out:7.1%} {waste:13.1%}"
    print(f"{name:30} {held:5.1f} {shares} {len(log):12,} ({preemptions})")

# %%
fig, ax = plt.subplots(figsize=(9, 2.8), layout="constrained")
for y, (log, _) in enumerate(results.values()):
    left = 0
    for value, colour, label in zip(
        means(log)[1:],
        (BLUE, ORANGE, GREY),
        ("live tokens", "allocated, empty", "free, and yet somebody waits"),
        strict=True,
    ):
        ax.barh(y, 100 * value, left=left, color=colour, label=label if y == 0 else None)
        left += 100 * value
    ax.text(101, y, f"{means(log)[0]:.0f} at once", va="center")
ax.set_yticks(range(len(results)), results)
ax.invert_yaxis()
ax.set(xlim=(0, 118), xlabel="% of the cache, mean over the steps in which somebody waits")
ax.set_xticks(range(0, 101, 20))
ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.35, -0.62), ncols=3)
show(
    fig,
    f"Three shares of the cache for each of {len(results)} allocators: live tokens, allocated but empty "
    "slots, free slots. Beside each bar stands how many requests run at once. Paging has the largest "
    "share of live tokens.",
)

held = {name: means(log)[0] for name, (log, _) in results.items()}
paged_waste = means(results["paged: blocks of 16"][0])
assert held["paged: blocks of 16"] > held["contiguous: the true length"] > held["contiguous: prompt + limit"]
assert held["paged: blocks of 16"] > 10 * held["contiguous: the whole context"]
assert paged_waste[2] / (paged_waste[1] + paged_waste[2]) < 0.03

# %% [markdown]
# Two kinds of waste:
#
# * **Internal fragmentation** (orange): empty slots inside the memory of a sequence. A contiguous range
#   must have room for the end of an answer from the beginning on, even if the length is known. A paged
#   sequence has at most 15 empty slots, all in its last block.
# * **External fragmentation** (grey): free memory in pieces that are each too small. Contiguous ranges of
#   different lengths leave holes. Paging leaves no holes, because every free block can be used. The free
#   memory of paging here is the headroom that `begin` keeps, so that running sequences can grow.
#
# The rule of the third line is impossible in practice, because it needs the length of the answer in advance.
# Paging is better and does not need to know the length.
#
# ## 3.4 The block map of a running engine
#
# Now the engine itself, with the model that ships. Its pool has 64 blocks. 24 requests of the same list, with
# shorter lengths, need them. `engine.events` records every decision; a listener gets the events of a step as
# soon as the step is over. Our listener then reads the block tables. Sharing (notebook 6) is off.

# %%
NUM_BLOCKS, BLOCK_SIZE = 64, 16
with contextlib.redirect_stderr(io.StringIO()):  # it says when it compiles, or cannot
    llm = LLM(device="cpu", kv_memory="64MiB")
config, token_bytes = llm.engine.model.config, llm.engine.model.dtype.itemsize
block_bytes = BLOCK_SIZE * config.kv_bytes_per_token(token_bytes)
llm = LLM(device="cpu", block_size=BLOCK_SIZE, kv_memory=NUM_BLOCKS * block_bytes, prefix_caching=False)
engine = llm.engine
print("backend:", engine.model.decoder.ops.name)
print(
    f"a block takes {format_bytes(block_bytes)}, the pool {format_bytes(engine.worker.runner.cache.nbytes)}"
)
assert engine.pool.num_blocks == NUM_BLOCKS

# %%
small = [(-(-prompt // 4), answer) for prompt, answer in lengths[:24]]
story = (
    engine.model.tokenizer.encode("Once upon a time there was a small bird who lived in a tall tree. ") * 40
)
prompts = [story[:prompt] for prompt, answer in small]
params = [SamplingParams(temperature=0.0, max_tokens=answer, ignore_eos=True) for prompt, answer in small]

frames = []  # after each step: the owner of each block; -1 means free


def look(event):
    if event.kind == "step":
        frame = [-1] * NUM_BLOCKS
        for sequence in engine.scheduler.running:
            for block_id in sequence.block_table.block_ids:
                frame[block_id] = sequence.order
        frames.append(frame)


engine.events.listeners.append(look)
with engine.events.record() as trace:
    llm.generate(prompts, params)
engine.events.listeners.remove(look)
for kind, count in sorted(Counter(event.kind for event in trace).items()):
    print(f"{kind:14} {count:5}")

# %% [markdown]
# The events must agree with the tables: in every step, the number of blocks in use is the number of
# allocated blocks minus the number of freed blocks. `waste` of the `step` event is exact too: it is the
# number of slots in blocks with an owner, minus the number of tokens in the cache.

# %%
owned, step_events = 0, []
for event in trace:
    owned += event["blocks"] if event.kind == "alloc" else -event["blocks"] if event.kind == "free" else 0
    if event.kind == "step":
        frame = frames[len(step_events)]
        in_tables = sum(owner >= 0 for owner in frame)
        assert owned == event["used"] == in_tables
        assert 0 <= event["waste"] <= (BLOCK_SIZE - 1) * event["running"]
        step_events.append(event)
assert owned == 0, "every block came back"
waste = sum(e["waste"] for e in step_events) / sum(e["used"] * BLOCK_SIZE for e in step_events)
print(f"{len(step_events)} steps: events and tables agree; {waste:.1%} of the allocated slots were empty")

# %%
preempted = [(event.step, event.request_id) for event in trace if event.kind == "preempt"]
first_step = step_events[0].step
colours = plt.get_cmap("tab20")(range(20))[:, :3]
picture = torch.ones(NUM_BLOCKS, len(frames), 3)
for x, frame in enumerate(frames):
    for block_id, owner in enumerate(frame):
        if owner >= 0:
            picture[block_id, x] = torch.tensor(colours[owner % 20])

fig, (top, bottom) = plt.subplots(
    2, 1, figsize=(9.5, 5), sharex=True, height_ratios=[3, 1], layout="constrained"
)
top.imshow(picture, aspect="auto", interpolation="nearest", origin="lower")
top.set_ylabel("block")
top.set_title("Who owns which block: one colour a request, white is free", loc="left", fontsize=11)
for step, _ in preempted:
    top.axvline(step - first_step, color="black", linewidth=1, linestyle=":")
bottom.step(range(len(frames)), [e["running"] for e in step_events], color=BLUE, label="running")
bottom.step(range(len(frames)), [e["waiting"] for e in step_events], color=ORANGE, label="waiting to start")
bottom.set(xlabel="engine step", ylabel="requests", ylim=(0, None))
bottom.legend(frameon=False)
show(
    fig,
    "Above, the owner of each block at each engine step: the colours of a request lie scattered over "
    "the pool, and white blocks are rare while requests wait. Dotted lines mark preemptions. Below, "
    "running and waiting requests at each step.",
)
print(f"dotted: {len(preempted)} preemptions")

# %% [markdown]
# Each horizontal line of the picture is a block; its colour is its owner. A request starts with the blocks of
# its prompt and then allocates one more block every 16 steps, at any free place. After a while its blocks are
# scattered, and this costs nothing. Another request soon gets a freed block. At a dotted line no block was
# free, and the newest sequence was preempted. It resumes later in other blocks, with the same colour.
#
# ## 3.5 How large should a block be?
#
# A smaller block wastes less. On average half a block per sequence is empty. So the waste of a list of
# requests can be computed from their lengths:


# %%
def waste_of(lengths, block_size):
    """Share of allocated slots that is empty when all these requests have their full length."""
    live = sum(prompt + answer for prompt, answer in lengths)
    allocated = sum(blocks_for(prompt + answer, block_size) * block_size for prompt, answer in lengths)
    return (allocated - live) / allocated


sizes = [1, 2, 4, 8, 16, 32, 64, 128, 256]
served = {size: serve(Paged(SLOTS, size), lengths)[0] for size in sizes if size <= 64}
print("block size   empty slots, final lengths   a table of 4,096 tokens")
for size in sizes:
    print(f"{size:10} {waste_of(lengths, size):20.1%} {blocks_for(CONTEXT, size):21,} entries")
assert waste_of(lengths, 1) == 0 and 0.015 < waste_of(lengths, 16) < 0.03

fig, ax = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
ax.plot(
    sizes, [100 * waste_of(lengths, s) for s in sizes], "o-", color=BLUE, label="by arithmetic, final lengths"
)
measured = [means(log)[2] / (means(log)[1] + means(log)[2]) for log in served.values()]
ax.plot(list(served), [100 * m for m in measured], "s", color=ORANGE, label="counted, while served")
ax.set(xscale="log", xlabel="block size (tokens)", ylabel="% of allocated slots empty")
ax.set_xticks(sizes, sizes)
ax.minorticks_off()
ax.legend(frameon=False)
ax.grid(color="#EEEEEE")
show(
    fig,
    "Empty slots in percent over the block size from 1 to 256 tokens. The curve rises with the block "
    "size, from 0 at blocks of one token. The points that were counted while requests were served lie "
    "near the curve.",
)

# %% [markdown]
# Why not use blocks of one token? Because a block is also
#
# * **an entry of a table** that attention reads for every query, and a contiguous range of memory: many short
#   ranges are slow to read;
# * **the unit of sharing**: only full blocks can be found again (notebook 6). Large blocks share less;
# * **the unit of allocation**: one call every 16 steps instead of one call per step.
#
# With 16 tokens per block, the waste is small and the tables are small too. Other engines use 16 to 64 for
# the same reasons.
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
# **1 (think).** A GPU with 24 GB runs Llama-3.1-8B in bfloat16. How many tokens of cache are left at
# 90 % use? How many with the weights in 4 bits? And with the cache in 8 bits too? Which of the two
# helps long contexts more? Which helps short contexts more?
#
# **2 (think).** An operating system writes pages to disk when memory is full. The engine drops the blocks
# of a preempted sequence and computes them again. Take Llama-3.1-8B, 2,000 tokens, a bus of 25 GB/s to main
# memory, and a GPU that does 300 TFLOP/s at 2 FLOPs per parameter and token. What does each way cost? Which
# other reasons are there for each way?
#
# **3 (code).** `n` samples of one prompt share its full blocks. A partly filled last block is copied for
# each sample, because each sample will write to it. How many blocks do the samples need together, if each
# answer has `answer` tokens?


# %%
def blocks_of_samples(prompt, answer, n, block_size):
    """Blocks of n sequences of prompt + answer tokens over one shared prompt: an int."""
    raise NotImplementedError


# %%
def check_samples():
    for prompt, answer, n, block_size in ((32, 5, 3, 16), (33, 5, 3, 16), (7, 20, 4, 8), (40, 1, 1, 16)):
        mine = blocks_of_samples(prompt, answer, n, block_size)
        trial = BlockPool(1000, block_size)
        first = BlockTable(trial)
        first.grow(prompt)
        tables = [first] + [first.fork(prompt)[0] for _ in range(n - 1)]
        for table in tables:
            table.grow(prompt + answer)
        case = f"{n} answers of {answer} to a prompt of {prompt}, blocks of {block_size}"
        assert mine == trial.num_used, f"{case}: {trial.num_used} blocks, not {mine}"


attempt(check_samples)

# %% [markdown]
# **4 (code).** The longest request that a contiguous allocator can still accept.


# %%
def longest_fit(taken, capacity):
    """`taken` is a list of (start, length), in no order; returns the length of the longest hole."""
    raise NotImplementedError


# %%
def check_longest():
    for taken, capacity, expected in (
        ([], 10, 10),
        ([(0, 4), (6, 1)], 10, 3),
        ([(7, 3), (2, 2)], 10, 3),
        ([(5, 5), (0, 5)], 10, 0),
    ):
        mine = longest_fit(list(taken), capacity)
        assert mine == expected, f"{taken} of {capacity}: {expected}, not {mine}"


attempt(check_longest)

# %% [markdown]
# **5 (code).** Use only the events: for each request, find the largest number of blocks that it held at the
# same time. (A preempted request frees all its blocks and gets others later.)


# %%
def most_held(trace):
    """{request id: the most blocks it held at any time}, from `alloc` and `free` events."""
    raise NotImplementedError


# %%
def check_held():
    mine = most_held(trace)
    ids = [event.request_id for event in trace if event.kind == "queue"]
    for number, (prompt, answer) in enumerate(small):
        # The last token of an answer is never computed, because no token follows it.
        expected = blocks_for(prompt + answer - 1, BLOCK_SIZE)
        found = mine.get(ids[number])
        assert found == expected, f"request {number} held {expected} blocks at most, not {found}"


attempt(check_held)

# %% [markdown]
# ## What we left out
#
# * **Sliding windows.** A layer with a window could free blocks outside the window. minillm keeps them,
#   because other requests may share this prefix.
# * **Smaller numbers.** A cache in 8 or 4 bits holds two or four times as many tokens, but is less exact.
# * **Other layouts.** Some models cache a compressed vector instead of heads (multi-head latent attention).
#   Then the factors in 3.1 are different; the rest is the same.
# * **Workspace.** An engine also needs memory for intermediate results. So on a GPU not all of the free
#   memory is used for the cache (`minillm/memory/budget.py`).
#
# **Next.** Notebook 5 (scheduling: which request gets blocks) and notebook 6 (sharing). `minillm labs start
# 4`: write the pool yourself, inside the running engine.
