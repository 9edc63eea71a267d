# %% [markdown]
# # 4. Attention and memory: counting the bytes that tiling saves
#
# Attention compares every token with every earlier token. So the arithmetic grows with the square of the
# length. In a simple kernel the number of bytes *moved* also grows with the square, and on a GPU this costs
# more than the arithmetic. FlashAttention does the same arithmetic but moves far fewer bytes. In this
# notebook you run both kernels, in CUDA, without a GPU: a simulator runs the CUDA source on your CPU and
# counts every byte.
#
# **Goals.** Afterwards you can
#
# * read a small CUDA kernel, and say what coalesced access, shared memory and a barrier are;
# * predict the bytes that naive and tiled attention move, to the byte, and check the prediction;
# * say what tiling removes (the score matrix), what it reduces (the reads of K and V) and what it does not
#   change (the arithmetic, the cache);
# * say what limits prefill and decode, from their FLOPs and bytes;
# * say what the host asks of the GPU in a step of the engine;
# * predict a kernel's time on a GPU, and say what bounds it.
#
# **You need** notebook 2 (intensity and roofline) and a C++ compiler (`minillm doctor` looks for one).
#
# **Read along** `csrc/cuda/attention/attention_v1.cu`, `attention_v2.cu`, `csrc/simt/simt.h`, and for 4.8
# `csrc/cuda/model/pass.h`.
#
# The simulator does not measure time. Everything here is counted or computed from counts, so your figures
# will equal the printed ones. In 4.9 the counts become a time on a GPU.

# %%
import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from IPython.display import display
from matplotlib.patches import Rectangle

from minillm.bench.chips import H100
from minillm.bench.counts import linear_counts, tensor_tile
from minillm.bench.figures import decode, flops, prefill, product
from minillm.bench.predict import DRAM_EFFICIENCY, LOADED_LATENCY
from minillm.bench.traffic import Shape, minimum, naive, one_by_one, run_rung, tiled
from minillm.bench.works import estimate, work_of
from minillm.ops.simt import SimtError, compile_kernels, flavour, profile

plt.rcParams.update({"figure.dpi": 90, "font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"  # safe for colour-blind readers
folder = Path(tempfile.mkdtemp())


def show(fig, alt):
    """Display a picture with `alt`, a text for those who cannot see it."""
    display(fig, metadata={"image/png": {"alt": alt}})
    plt.close(fig)


def cuda(name, source):
    """Compile CUDA source for the simulator."""
    (folder / name).write_text('#include "dialect.h"\n' + source)
    return compile_kernels(folder / name)


# %% [markdown]
# ## 4.1 A kernel, and the bytes it moves
#
# A kernel is a function that thousands of threads run at once, each with its own index. Threads come in
# *blocks*; every 32 threads of a block are a *warp*, which executes one instruction together. When the 32
# lanes load neighbouring addresses, the hardware fetches a few 32-byte *sectors* for all of them
# (*coalesced*). When they load scattered addresses, it fetches one sector for each lane.
#
# (With `LAUNCH` and the include, two compilers can compile the same source. For nvcc, `LAUNCH` becomes
# `kernel<<<grid, block>>>(...)`. The rest is standard CUDA.)

# %%
copies = cuda(
    "copies.cu",
    """
__global__ void strided(const float* x, float* y, int stride) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;   // which thread am I?
  y[i] = x[i * stride];
}
extern "C" void run(const float* x, float* y, int n, int stride) {
  LAUNCH(strided, n / 128, 128, 0, 0, x, y, stride);   // n / 128 blocks of 128 threads
}
""",
)
x, y = torch.randn(128 * 32), torch.zeros(128)
print("stride   bytes wanted   bytes fetched, in sectors of 32")
for stride in (1, 2, 8, 32):
    with profile() as p:
        copies.run("run", x=x, y=y, n=128, stride=stride)
    assert torch.equal(y, x[::stride][:128])
    print(f"{stride:6} {p.global_read_bytes:14} {32 * p.global_read_sectors:15}")

# %% [markdown]
# The kernel reads 512 bytes every time. With a stride of 8, each float costs a whole sector. The picture
# shows the first eight lanes of a warp:

# %%
fig, ax = plt.subplots(figsize=(8, 2.6), layout="constrained")
for y, stride in enumerate((1, 2, 8)):
    wanted = {lane * stride for lane in range(8)}
    for word in range(64):
        fetched = word // 8 in {w // 8 for w in wanted}
        colour = BLUE if word in wanted else "#F0C9A8" if fetched else "white"
        ax.add_patch(
            Rectangle((word, y - 0.35), 1, 0.7, facecolor=colour, edgecolor="#CCCCCC", linewidth=0.5)
        )
    for lane in range(8):
        ax.text(lane * stride + 0.5, y, str(lane), ha="center", va="center", color="white", fontsize=8)
for word in range(0, 65, 8):
    ax.plot((word, word), (-0.5, 2.6), color="black", linewidth=1.2)
legend = [Rectangle((0, 0), 1, 1, facecolor=c) for c in (BLUE, "#F0C9A8")]
ax.legend(legend, ["read by lane 0 .. 7", "fetched, not used"], ncols=2, frameon=False, loc="upper right")
ax.set(xlim=(0, 64), ylim=(2.6, -1.1), xticks=range(4, 64, 8), xticklabels=[f"sector {i}" for i in range(8)])
ax.set(
    yticks=(0, 1, 2),
    yticklabels=(1, 2, 8),
    xlabel="global memory: 64 floats, eight in each sector of 32 bytes",
    ylabel="stride",
)
ax.tick_params(length=0)
show(
    fig,
    "Three rows of 64 memory words, divided into eight sectors. With stride 1 eight lanes read all words of "
    "one sector; with stride 2 every second word of two sectors; with stride 8 one word of each sector.",
)

# %% [markdown]
# The simulator also finds what a kernel must *not* do, and names the line. A GPU would report "illegal memory
# access", or nothing at all.

# %%
try:
    copies.run("run", x=x, y=y, n=256, stride=1)
except SimtError as error:
    print(error)

# %% [markdown]
# ## 4.2 Shared memory, barriers, races
#
# The threads of a block share some tens of KiB of fast memory. So a number that is read once from global
# memory can be used many times. If one thread writes a number there, another thread may read it only after
# a *barrier*, where all threads of the block wait for each other. Without a barrier, the result depends on
# which thread was faster: a *race*.

# %%
REVERSE = """
__global__ void reverse(const float* x, float* y) {
  SHARED(float, buffer, [64]);                       // __shared__ float buffer[64];
  buffer[threadIdx.x] = 0;
  __syncthreads();
  buffer[threadIdx.x] = x[threadIdx.x];
  __syncthreads();                                   // everybody has written
  y[threadIdx.x] = buffer[63 - threadIdx.x];
}
extern "C" void run(const float* x, float* y) { LAUNCH(reverse, 1, 64, 0, 0, x, y); }
"""
x, y = torch.arange(64.0), torch.zeros(64)
cuda("reverse.cu", REVERSE).run("run", x=x, y=y)
assert torch.equal(y, x.flip(0))

hasty = cuda(
    "hasty.cu",
    REVERSE.replace("  __syncthreads();                                   // everybody has written\n", ""),
)
hasty.run("run", x=x, y=y)
print("right without the barrier:", torch.equal(y, x.flip(0)))
try:
    with flavour("check"):  # records which thread used each byte, and the barriers in between
        hasty.run("run", x=x, y=y)
except SimtError as error:
    print(error)

# %% [markdown]
# Shared memory has 32 *banks*: word w lies in bank w mod 32. In one *wavefront* each bank delivers one word.
# So the time of an access depends on the banks that its lanes read:

# %%
fig, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained", sharey=True)
for ax, title, is_read in (
    (axes[0], "lanes read a row: 1 wavefront", lambda row, bank: row == 2),
    (axes[1], "lanes read a column: 8 wavefronts", lambda row, bank: bank == 5),
):
    for row in range(8):
        for bank in range(32):
            colour = BLUE if is_read(row, bank) else "white"
            ax.add_patch(Rectangle((bank, row), 1, 1, facecolor=colour, edgecolor="#CCCCCC", linewidth=0.5))
    ax.set(xlim=(0, 32), ylim=(8, 0), xlabel="bank = word mod 32", title=title)
    ax.set(xticks=(0.5, 8.5, 16.5, 24.5, 31.5), xticklabels=(0, 8, 16, 24, 31))
axes[0].set(ylabel="row (32 words)", yticks=[i + 0.5 for i in range(8)], yticklabels=range(8))
legend = Rectangle((0, 0), 1, 1, facecolor=BLUE)
fig.legend([legend], ["words that the lanes read"], frameon=False, loc="outside lower center")
show(
    fig,
    "Two grids of 8 rows and 32 banks. Left: one row is read, one word in each bank. Right: one column is "
    "read, all eight words in bank 5.",
)

# %% [markdown]
# Eight words of one bank are a *bank conflict*: the lanes wait for eight wavefronts. (Lanes that read the
# *same* word do not wait.) In exercise 3 you remove such a conflict.
#
# ## 4.3 The budgets of attention
#
# For one head, with $N$ tokens and head size $D$, causal:
#
# | | grows as | |
# | --- | --- | --- |
# | arithmetic | $4 D \cdot N^2/2$ FLOPs | two multiply-adds of length $D$ for each visible pair |
# | scores | $N^2$ numbers | only if they are stored |
# | cache | $2 D N$ numbers | keys and values: what decode reads for every new token |
#
# The minimum of bytes for *any* kernel: read q, K and V once, and write the output once.

# %%
print("tokens   GFLOP per head   score matrix   q, K, V, out    intensity at best")
for n in (1024, 4096, 16384):
    shape = Shape(n, n, num_heads=1, num_kv_heads=1, head_dim=128, dtype=torch.bfloat16)
    work, least = 4 * 128 * sum(shape.visible), minimum(shape)
    print(
        f"{n:6} {work / 1e9:15.2f} {4 * n * n / 2**20:10.0f} MiB {least / 2**20:10.1f} MiB "
        f"{work / least:12.0f} FLOP/byte"
    )

# %% [markdown]
# A GPU that computes 300 TFLOP/s and reads 2 TB/s needs 150 FLOP for each byte to use its full arithmetic.
# Attention over a thousand tokens *could* reach this if the kernel moved only the minimum. The score matrix
# alone is many times the minimum.
#
# ## 4.4 The naive kernel
#
# `attention_v1.cu` is the formula in three kernels: scores, softmax, weighted sum. Scores and weights go
# through global memory. We run it and count the reads and writes of each array.

# %%
shape = Shape(128, 128)  # 2 query heads of 64 over 1 kv head, float32
v1 = run_rung("v1", shape)
print(f"minimum {minimum(shape):,} bytes")
print("tensor          read    written")
for tensor, (read, written) in sorted(v1.tensors.items(), key=lambda item: -sum(item[1])):
    print(f"{tensor:11} {read:9,} {written:9,}")
print(
    f"all in all {v1.global_read_bytes + v1.global_write_bytes:10,} bytes, "
    f"{(v1.global_read_bytes + v1.global_write_bytes) / minimum(shape):.0f} times the minimum"
)
assert v1.tensors["scores"] == naive(shape)["scores"]

# %% [markdown]
# Two things are important. The scores are written twice and read three times. And K and V are read many
# times: each row reads every key that it sees. (A GPU's caches would serve some of these reads. They are
# not simulated: we count the bytes that the kernel requests.)
#
# ## 4.5 The tiled kernel
#
# `attention_v2.cu` takes 32 rows at a time and loops over the keys in tiles of 32. A tile of K, then of V,
# is in shared memory, where all 32 rows use it. The 32 x 32 scores are only in registers and shared memory,
# and only until the next tile. This needs a softmax that is computed tile by tile: when a larger score
# appears, the sums so far are scaled down (*online softmax*).

# %%
v2 = run_rung("v2", shape)
print("tensor          naive      tiled")
for tensor in ("scores", "k_cache", "v_cache", "q", "out"):
    print(f"{tensor:11} {sum(v1.tensors[tensor]):10,} {sum(v2.tensors.get(tensor, (0, 0))):10,}")

tiles = [min(32 * (i + 1), shape.kv_len) for i in range(4)]  # the number of keys that each tile of rows reads
assert v2.tensors["k_cache"][0] == shape.num_heads * sum(tiles) * shape.row == tiled(shape)["k_cache"][0]
print("keys visited by the four tiles of rows:", tiles)

# %% [markdown]
# The walk over the tiles. Each tile of rows belongs to one block of threads; the blocks run independently.

# %%
fig, ax = plt.subplots(figsize=(6.4, 4), layout="constrained")
for row in range(4):
    for key in range(4):
        colour = "white" if key > row else "#F0C9A8" if key == row else "#9CC7E2"
        ax.add_patch(Rectangle((32 * key, 32 * row), 32, 32, facecolor=colour, edgecolor="#888888"))
        if key <= row:
            ax.text(32 * key + 21, 32 * row + 6, f"step {key + 1}", ha="center", va="center", fontsize=9)
    ax.annotate(
        "",
        (32 * row + 29, 32 * row + 22),
        (3, 32 * row + 22),
        arrowprops={"arrowstyle": "->", "color": BLUE, "lw": 2},
    )
ax.plot((0, 128), (0, 128), color="black", linewidth=1)
legend = [Rectangle((0, 0), 1, 1, facecolor=c, edgecolor="#888888") for c in ("#9CC7E2", "#F0C9A8", "white")]
legend += [plt.Line2D([], [], color="black"), plt.Line2D([], [], color=BLUE, lw=2)]
names = [
    "all pairs visible",
    "visible up to the diagonal",
    "never loaded",
    "the diagonal",
    "walk of one block",
]
ax.legend(legend, names, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
ax.set(xlim=(0, 128), ylim=(128, 0), xlabel="keys", ylabel="rows", aspect="equal")
ax.set(xticks=range(0, 129, 32), yticks=range(0, 129, 32))
show(
    fig,
    "A grid of four by four tiles of 32 rows and 32 keys. Each block walks from the first tile of keys to "
    "the tile on the diagonal: one to four steps. Tiles right of the diagonal are never loaded.",
)

# %% [markdown]
# There is no score matrix now. K and V are read once per *tile* of rows instead of once per row: about 32
# times less (diagonal tiles read some keys that are hidden). Most of the traffic is now in shared memory:

# %%
print(f"shared memory: {v2.shared_read_bytes:,} bytes read in {v2.shared_wavefronts:,} wavefronts")
print(f"barriers: {v2.barriers}, of which {v2.barriers // v2.blocks} per block on average")

# %% [markdown]
# ## 4.6 How the traffic grows
#
# The points are counted. The lines are the formulas of `minillm/bench/traffic.py`; a test compares both, for
# each tensor and to the byte. (The lines leave out block tables and lengths.)

# %%
counted = (16, 64, 160)
lengths = [16, 32, 64, 128, 256, 512, 1024, 2048]
fig, ax = plt.subplots(figsize=(8, 4.2), layout="constrained")


def total(traffic):
    return sum(read + written for read, written in traffic.values())


for rung, formula, colour, label in (("v1", naive, ORANGE, "naive"), ("v2", tiled, BLUE, "tiled")):
    ax.plot(lengths, [total(formula(Shape(n, n))) for n in lengths], color=colour, label=label)
    points = [run_rung(rung, Shape(n, n)) for n in counted]
    moved = [p.global_read_bytes + p.global_write_bytes for p in points]
    ax.plot(counted, moved, "o", color=colour, label=f"{label}, counted")
ax.plot(
    lengths,
    [sum(naive(Shape(n, n))["scores"]) for n in lengths],
    ":",
    color=ORANGE,
    label="naive: scores alone",
)
ax.plot(lengths, [minimum(Shape(n, n)) for n in lengths], "--", color="black", label="minimum")
ax.set(xscale="log", yscale="log", xlabel="tokens", ylabel="bytes of global memory")
ax.xaxis.set_major_formatter("{x:g}")
ax.legend(frameon=False)
ax.grid(color="#EEEEEE")
show(
    fig,
    "Bytes of global memory over 16 to 2048 tokens, both axes logarithmic. The naive line rises with the "
    "square of the length; the tiled line is much lower and in the end as steep; the minimum rises in "
    "proportion to the length.",
)

# %% [markdown]
# The tiled line has the slope of the naive line. It is still a square, but about 32 times lower, because K
# and V are read once for every 32 rows. Larger tiles make it lower still; 64 or 128 rows are common if
# there are enough registers. The arithmetic is the same for both.
#
# ## 4.7 What limits each kernel
#
# FLOPs over bytes, for the kernels as they are, in bfloat16 with heads of 128:


# %%
def intensity(formula, q_len, kv_len):
    shape = Shape(q_len, kv_len, num_heads=8, num_kv_heads=8, head_dim=128, dtype=torch.bfloat16)
    return 4 * 128 * shape.num_heads * sum(shape.visible) / total(formula(shape))


print("tokens   naive   tiled   decode of one token   FLOP/byte")
for n in (256, 1024, 4096):
    print(
        f"{n:6} {intensity(naive, n, n):7.2f} {intensity(tiled, n, n):7.1f} "
        f"{intensity(one_by_one, 1, n):12.2f}"
    )
assert intensity(naive, 1024, 1024) < 2 < 20 < intensity(tiled, 1024, 1024)

# %% [markdown]
# * **Naive** prefill does less than one FLOP per byte: memory limits it on every machine.
# * **Tiled** prefill with 32 rows reaches about 30, with 64 rows twice as much, and so on: the intensity is
#   proportional to the tile size. Beyond the ridge, arithmetic is the limit, and the next kernels make the
#   arithmetic faster (tensor cores).
# * **Decode** does one FLOP per byte in every kernel, because a single row cannot share K and V with other
#   rows. Tiling does not help. Only fewer bytes per row help: grouped-query attention (heads share a kv
#   head), smaller numbers, or several rows at once (speculative decoding).
#
# ## 4.8 A whole step: launches, copies, waits
#
# A step of the engine is not one kernel. Each layer has nine launches, and the host has to start every one.
# It also sends token ids and block tables to the GPU, and it fetches the drawn tokens, since it decides
# what the next step is. A launch takes the host a few microseconds. A wait stops it until the GPU is done,
# and then the GPU has nothing to do until the next launch arrives.
#
# The simulator counts these calls too. Two sequences, three steps: their prompts, then two decode steps. The
# model has one layer only.

# %%
from minillm import LLM, SamplingParams

llm = LLM("storyteller-1m", device="cpu", backend="simt", kv_memory="4MiB")
layers = llm.engine.model.decoder.config.num_hidden_layers
prompts, params = [[5, 6, 7], [8, 9]], SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)
with profile() as p:
    llm.generate(prompts, params)
steps = 3
print(f"a step with {layers} layer: {p.launches / steps:.0f} launches,", end=" ")
print(f"{p.copies_to_device // steps} copy there, {p.copies_to_host // steps} back, {p.waits // steps} wait")
for name, counters in sorted(p.kernels.items(), key=lambda pair: -pair[1].launches):
    print(f"  {name:16} {counters.launches / steps:5.1f} launches a step")
assert (p.copies_to_device, p.copies_to_host, p.waits) == (steps, steps, steps)

# %% [markdown]
# One copy there, one back, one wait: the index tensors of a step lie in one piece of memory, and everything
# between them, the draw included, stays on the GPU. Calling the same kernels one by one from PyTorch takes
# ten copies and two waits a step, and a call from Python for each launch.
#
# The launches remain. A decode step has the same ones each time, with other numbers. So on a GPU the engine
# records them once, as a *CUDA graph*, and then starts all of them with a single call
# (`csrc/cuda/model/bucket.h`). A graph repeats its kernels with fixed sizes. A batch of three sequences is
# therefore filled up to four; the fourth row has no keys and writes nothing.
#
# ## 4.9 Tensor cores, and a time without a GPU
#
# The later rungs multiply on tensor cores: one instruction of a warp, `mma`, multiplies 16 x 16 by 16 x 8
# numbers. Its operands come from shared memory. So the question is how many wavefronts an `mma` needs. An SM
# serves one wavefront a cycle, and an H100's tensor cores take an `mma` of this kind in 1.6 cycles.

# %%
print("                                     wavefronts         mma  per mma")
tile = tensor_tile(128)
print(f"v3, d3: 16 rows, 64 keys of 128 {tile.wavefronts:15} {tile.mma:11} {tile.wavefronts / tile.mma:8.2f}")
for rows in (8, 64, 4096):  # tiles of 8, of 64 and of 128 tokens
    n = linear_counts("l5", rows, 4096, 4096)
    print(f"l5: {rows:4} rows of 4096 x 4096 {n.wavefronts:18,} {n.mma:11,} {n.wavefronts / n.mma:8.2f}")

counted = run_rung("v3", Shape(16, 64, num_heads=1, num_kv_heads=1, head_dim=64, dtype=torch.bfloat16))
print(f"counted: v3, a block of 8 warps, 64 keys of 64: {counted.mma} mma")
assert counted.mma == 8 * tensor_tile(64).mma  # seven warps repeat the last row

# %% [markdown]
# In `v3` a warp reads 2 wavefronts for each `mma`: more than the 1.6 cycles, so shared memory
# is its limit, not the tensor cores. In the largest tile of `l5` a warp uses what it read for 64 x 64
# outputs, and 1.5 are enough.
#
# Now the time. Each unit alone gives a limit, its work over its rate. A kernel takes at least the longest
# limit, and more if few warps are there to overlap them (`minillm/bench/predict.py`):

# %%
for rung, job, what in (
    ("v3", prefill(8192), "8192 tokens"),
    ("d1", decode(1, 4096), "1 x 4096 keys"),
    ("d3", decode(32, 4096), "32 x 4096 keys"),
    ("l5", product(1), "1 row"),
    ("l5", product(4096), "4096 rows"),
):
    e = estimate(rung, job, H100)
    longest = sorted(e.parts.items(), key=lambda part: -part[1])[:3]
    print(f"{rung}, {what:15} {e.seconds * 1e6:7.1f} us = ", end="")
    print(", ".join(f"{name} {seconds * 1e6:.1f}" for name, seconds in longest), "...")

# %% [markdown]
# `d1` with one sequence is bound by none of the chip's rates. It waits for *bytes in flight*.
# Little's law: to read at bandwidth $B$ with latency $L$, $B \cdot L$ bytes must be on their way at any
# time.

# %%
latency = LOADED_LATENCY * H100.dram_latency / H100.clock
needed = H100.bandwidth * latency
print(f"{H100.bandwidth / 1e12:.2f} TB/s x {latency * 1e9:.0f} ns = {needed / 1e6:.2f} MB in flight")
print(f"32 blocks with one tile of V each, 11 rows of 256 bytes: {32 * 11 * 256 / 1e6:.2f} MB")
print(f"64 blocks of d3 with one tile of K and V each: {64 * 2 * 64 * 256 / 1e6:.2f} MB")

# %% [markdown]
# The roofline of an H100, with the predicted rate of each kernel and the rate that an H100
# measured (`benchmarks/2026-11-27-h100`). The bytes are those that the kernel asks for, so a kernel whose
# data is in the L2 cache can lie above the line of the DRAM.

# %%
measured = {}
for file, names in (("after.json", {"tile": "l2", "mma": "l5"}), ("tensor-cores.json", {"d2": "d3"})):
    for row in json.loads((Path("../benchmarks/2026-11-27-h100") / file).read_text())["rows"]:
        measured[names.get(row["by"], row["by"]), row["what"].split(",")[0]] = row.get("median_s")

fig, ax = plt.subplots(figsize=(8, 4.6), layout="constrained")
x = [0.1, 2000]
mma_roof = H100.tensor_flops * H100.sms * H100.clock / 1e12
fp32_roof = 2 * H100.fp32 * H100.sms * H100.clock / 1e12
for roof, label in ((mma_roof, "mma.sync"), (fp32_roof, "float32")):
    edge = roof * 1e12 / (DRAM_EFFICIENCY * H100.bandwidth)
    ax.plot([edge, x[1]], [roof, roof], color=GREY)
    ax.text(x[1], roof * 1.1, label, ha="right", color="#555555")
edge = mma_roof * 1e12 / (DRAM_EFFICIENCY * H100.bandwidth)
ax.plot([x[0], edge], [i * DRAM_EFFICIENCY * H100.bandwidth / 1e12 for i in (x[0], edge)], color=GREY)
ax.text(0.14, 0.6, "DRAM", color="#555555", rotation=32)
for rung, job, name, colour in (
    ("v2", prefill(8192), "prefill 8192", BLUE),
    ("v3", prefill(8192), "prefill 8192", BLUE),
    ("d1", decode(1, 4096), "decode 1 x 4096", ORANGE),
    ("d1", decode(32, 4096), "decode 32 x 4096", ORANGE),
    ("d3", decode(32, 4096), "decode 32 x 4096", ORANGE),
    ("l2", product(1), "linear 1 x 4096 x 4096", GREEN),
    ("l5", product(1), "linear 1 x 4096 x 4096", GREEN),
    ("l2", product(4096), "linear 4096 x 4096 x 4096", GREEN),
    ("l5", product(4096), "linear 4096 x 4096 x 4096", GREEN),
):
    asked = sum(work.requested for work, _ in work_of(rung, job, H100.arch))
    intensity_of, rate = flops(job) / asked, flops(job) / 1e12
    ax.plot(intensity_of, rate / estimate(rung, job, H100).seconds, "o", color=colour, markersize=6)
    ax.plot(intensity_of, rate / measured[rung, name], "o", color=colour, markersize=12, fillstyle="none")
    size = name.split(" ", 1)[1].removesuffix(" x 4096 x 4096")
    left = rung in ("l5", "d3")
    ax.annotate(
        f"{rung}, {size}",
        (intensity_of, rate / measured[rung, name]),
        (-10, 4) if left else (10, -10),
        textcoords="offset points",
        ha="right" if left else "left",
    )
ax.plot([], [], "o", color=GREY, markersize=6, label="predicted")
ax.plot([], [], "o", color=GREY, markersize=12, fillstyle="none", label="measured")
ax.set(xscale="log", yscale="log", xlim=x, ylim=(0.02, 2000), ylabel="TFLOP/s")
ax.set(xlabel="FLOP per byte that the kernel asks for (counted)")
ax.legend(frameon=False, loc="upper left")
show(
    fig,
    "Roofline of an H100, both axes logarithmic: a slope for DRAM, a roof for mma.sync and one for float32. "
    "For nine kernels a dot for the predicted rate lies in a circle for the measured one.",
)

# %% [markdown]
# The dots lie in their circles, or touch them. `csrc/README.md` (Predictions) says where the
# model was wrong, and what it cannot see.
#
# ## Exercises


# %%
def attempt(check):
    try:
        check()
    except NotImplementedError:
        print("not attempted yet")
    except (AssertionError, SimtError) as error:
        print("not right yet:", error)
    else:
        print("right")


# %% [markdown]
# **1 (think).** With a Mistral-like window (each row sees its last 4096 keys), which lines of the
# table in 4.3 stay quadratic? Which of v2's loops gets shorter?
#
# **2 (code).** How many bytes of K does the tiled kernel read when a *chunk* of `q_len` rows is added to a
# sequence that has `kv_len` tokens with them? Tiles are 32 rows and 32 keys; one head, `row` bytes per key.


# %%
def k_bytes(q_len, kv_len, row):
    """An int."""
    raise NotImplementedError


# %%
def check_bytes():
    for q_len, kv_len in ((1, 1), (32, 32), (33, 40), (5, 100), (40, 129)):
        shape = Shape(q_len, kv_len, num_heads=1, head_dim=32)
        counted, mine = run_rung("v2", shape).tensors["k_cache"][0], k_bytes(q_len, kv_len, shape.row)
        assert mine == counted, f"{q_len} rows, {kv_len} keys: {counted} bytes were counted, not {mine}"


attempt(check_bytes)

# %% [markdown]
# **3 (code).** This kernel transposes a 32 x 32 matrix through shared memory. All its column reads use the
# same bank: 1024 wavefronts, but 32 would be enough. Change one number. (Row r begins at word 32 r, and
# word w is in bank w mod 32.)

# %%
TRANSPOSE = """
__global__ void transpose(const float* x, float* y) {
  SHARED(float, tile, [32][32]);
  for (int row = 0; row < 32; row++) tile[row][threadIdx.x] = x[row * 32 + threadIdx.x];
  __syncthreads();
  for (int row = 0; row < 32; row++) y[row * 32 + threadIdx.x] = tile[threadIdx.x][row];
}
extern "C" void run(const float* x, float* y) { LAUNCH(transpose, 1, 32, 0, 0, x, y); }
"""


def my_transpose():
    """CUDA source: TRANSPOSE, with one number changed."""
    raise NotImplementedError


# %%
def check_transpose():
    x, y = torch.randn(32, 32), torch.zeros(32, 32)
    library = cuda("mine.cu", my_transpose())
    with flavour("check"), profile() as p:
        library.run("run", x=x, y=y)
    assert torch.equal(y, x.T), "that is not the transpose"
    assert p.shared_wavefronts == 64, f"{p.shared_wavefronts} wavefronts; 32 writes and 32 reads are enough"


attempt(check_transpose)

# %% [markdown]
# ## What we left out
#
# * **Measuring.** Times here are predictions, and figures of one GPU; `scripts/gpu_check.sh` measures yours.
# * **Caches.** L1 and L2 serve some of the repeated reads of the naive kernel.
# * **Hopper's copy engine and `wgmma`**, which reads its operands from shared memory without a warp's loads.
#
# **Next.** In [lab 7](labs/lab7_attention/README.md) you write the tiled kernel yourself, part by part, and
# the grader counts its bytes, wavefronts and barriers. In [lab 8](labs/lab8_decode/README.md) you write the
# kernel of decode, over the pages of a cache, and an engine generates text with it.
#
#     minillm labs start 7
#     minillm labs start 8
#
# `minillm bench kernels --backend simt` prints the traffic of the kernels for any length, and a predicted
# time.
