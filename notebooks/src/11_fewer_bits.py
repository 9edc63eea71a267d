# %% [markdown]
# # 11. Fewer bits: what rounding does to a weight, a logit and a story
#
# A decode step reads every weight to make one token. If a weight takes 4 bits instead of 16, the step reads a
# quarter of the bytes. Two questions follow. What does the model lose? And what does the machine gain?
#
# **Goals.** Afterwards you can
#
# * quantise a group of weights by hand, with a scale and with a minimum;
# * say how many bits a weight takes in a scheme, its scales included;
# * follow a rounding error from a weight to a logit, and to a story;
# * measure bytes and speed on your machine, and say why they differ;
# * say why one scale for the activations of a batch breaks contract C2, and show it;
# * say what int8 keys and values cost, and save.
#
# **You need** notebook 2 (prefill and decode) and notebook 8 (determinism).
#
# **Read along** `minillm/ops/quantized.py`, `minillm/model/quantization/rounding.py`,
# `csrc/cpu/quantized.h` and `docs/quantization.md`.

# %%
import time

import matplotlib.pyplot as plt
import torch
from IPython.display import display

from minillm import LLM, SamplingParams
from minillm.config.quantization import QUANTIZATIONS, Form
from minillm.model.quantization.rounding import quantize_rows
from minillm.ops.quantized import numbers_of

torch.set_num_threads(1)
torch.set_grad_enabled(False)
plt.rcParams.update({"figure.dpi": 90, "font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"  # safe for colour-blind readers


def show(fig, alt):
    """Display a picture with `alt`, a text for those who cannot see it."""
    display(fig, metadata={"image/png": {"alt": alt}})
    plt.close(fig)


plain = LLM(backend="reference", dtype="float32")
matrix = plain.engine.model.decoder.layers[0].mlp.down.weight.float()
print(f"one matrix of the model: {list(matrix.shape)}, {matrix.numel():,} weights")

# %% [markdown]
# ## 11.1 One group of weights
#
# Take 32 weights that lie side by side. Eight bits give 256 codes, four bits give 16. A code stands for a
# number on a grid, and a *scale* says how wide the grid is:
#
#     symmetric        weight = scale * (code - 8)         codes 0 ... 15
#     with a minimum   weight = scale * code + minimum     the grid begins at the smallest weight
#
# A weight inside the grid has an error of at most half a step. So a group with a wide range has large errors.
# The symmetric grid has 8 steps on one side of zero and 7 on the other. The largest weight gets the side with
# 8; if that weight is positive, the scale is negative. A weight at the other end may be cut off. `fp8` (e4m3)
# is no even grid: it has 4 bits of exponent and 3 of fraction, so small numbers lie closer together.
#
# **Predict.** All weights of a group are between 0.02 and 0.05. Which of the two grids is better?

# %%
group = matrix[:1, :32]
forms = {
    "int8": Form("int8", 32),
    "int4": Form("int4", 32),
    "int4, minimum": Form("uint4", 32, minimum=True),
    "fp8": Form("fp8", 32, wide=True),
}
for name, form in forms.items():
    made = quantize_rows(group, form)
    step = float(made.scales[0, 0])
    error = (made.dequantize() - group).abs()
    print(
        f"{name:14} scale {step:+.5f}, largest error {float(error.max()):.5f}, mean {float(error.mean()):.5f}"
    )

shifted = torch.linspace(0.02, 0.05, 32).view(1, -1)
for name in ("int4", "int4, minimum"):
    error = (quantize_rows(shifted, forms[name]).dequantize() - shifted).abs().mean()
    print(f"weights from 0.02 to 0.05, {name}: mean error {float(error):.5f}")

# %%
made = quantize_rows(group, forms["int4, minimum"])
scale, minimum = float(made.scales[0, 0]), float(made.minima[0, 0])
fig, ax = plt.subplots(figsize=(7.5, 2.6), layout="constrained")
for code in numbers_of("uint4").tolist():
    ax.axvline(scale * code + minimum, color="#DDDDDD", linewidth=1)
ax.plot(group[0], torch.ones(32), "o", color=BLUE, label="weights")
ax.plot(made.dequantize()[0], torch.zeros(32), "s", color=ORANGE, label="on the grid")
for before, after in zip(group[0].tolist(), made.dequantize()[0].tolist(), strict=True):
    ax.plot([before, after], [1, 0], color=GREY, linewidth=0.7)
ax.set(yticks=[], xlabel="weight", ylim=(-0.4, 1.4))
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
show(
    fig,
    "32 weights above, the same weights on a grid of 16 numbers below. Each weight moves to the nearest line "
    "of the grid; the first and the last line are the smallest and the largest weight.",
)

# %% [markdown]
# ## 11.2 The size of a group
#
# A scale costs bits too. With groups of 32 and a scale of 16 bits, each weight pays half a bit more.
#
# **Predict.** Can small groups make up for four bits less? For the same bits, is a minimum worth its bytes?


# %%
def bits(form, size=640):
    """Bits of one weight, its share of scales and minima included."""
    return 8 * form.nbytes(1, size) / size


def relative_error(form):
    """The size of the error against the size of the weights."""
    return float((quantize_rows(matrix, form).dequantize() - matrix).norm() / matrix.norm())


rows = [
    (f"{codes}{' min' if minimum else ''}", size, Form(codes, size, minimum=minimum))
    for codes, minimum in (("int8", False), ("int4", False), ("uint4", True))
    for size in (0, 128, 64, 32, 16)
]
print("codes      group     bits   error")
for name, size, form in rows:
    print(f"{name:10} {size or 'all':>5} {bits(form):8.2f} {relative_error(form):7.2%}")

# %%
fig, ax = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
for name, colour, style in (("int8", BLUE, "o-"), ("int4", ORANGE, "s-"), ("uint4 min", GREEN, "^-")):
    own = [form for label, _, form in rows if label == name]
    ax.plot([bits(f) for f in own], [100 * relative_error(f) for f in own], style, color=colour, label=name)
ax.set(xlabel="bits of a weight, scales included", ylabel="error (%)", yscale="log")
ax.set_yticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
ax.minorticks_off()
ax.legend(frameon=False)
show(
    fig,
    "Error of the matrix against bits of a weight. Smaller groups help a little at each width; going from "
    "eight bits to four makes the error about sixteen times larger.",
)
eight, four = relative_error(Form("int8", 64)), relative_error(Form("int4", 64))
assert 10 < four / eight < 25

# %% [markdown]
# Four bits less make the grid sixteen times coarser, and the error sixteen times larger. No size of a group
# makes up for that. A minimum helps where weights are not centred around 0. Here they are: for the same
# 5 bits, the symmetric grid with groups of 16 has the smaller error.
#
# ## 11.3 From a weight to a logit
#
# A logit is a sum of many products, after many layers. Errors of single weights point in all directions, so
# much of them cancels. What is left?

# %%
text = "Once upon a time there was a little dog who wanted to see the sea. He walked all day."
ids = plain.tokenizer.encode(text)
exact = plain.logits(ids)
models = {name: LLM(quantization=name, backend="reference", dtype="float32") for name in QUANTIZATIONS}
print("scheme        bytes a step   error of the logits   KL divergence   same best token")
found = {}
for name, llm in models.items():
    logits = llm.logits(ids)
    error = float((logits - exact).norm() / exact.norm())
    log_p, log_q = exact.log_softmax(-1), logits.log_softmax(-1)
    divergence = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    same = float((logits.argmax(-1) == exact.argmax(-1)).float().mean())
    found[name] = divergence
    size = llm.engine.model.decoder.step_bytes()
    print(f"{name:13} {size:12,} {error:18.2%} {divergence:18.5f} {same:14.0%}")
assert found["int8"] < found["int4"]

# %% [markdown]
# The exact model draws a token. The KL divergence is the extra surprise of the rounded model about that
# token, on average, in nats. It tells more than the best token: two models can choose the same token and be
# sure of it to different degrees.
#
# ## 11.4 From a logit to a story
#
# Notebook 8 said: there is no small error of an answer. As soon as one token differs, the rest is another
# text. That does not mean a worse text. **Read them.**

# %%
greedy = SamplingParams(max_tokens=40, temperature=0)
for name, llm in {"as it is": plain, **models}.items():
    print(f"{name:13}|", llm.generate("Once upon a time", greedy)[0].text.replace("\n", " "))

# %% [markdown]
# ## 11.5 Bytes against speed
#
# We time one product: a row of activations times a large matrix, as a decode step does, and 64 rows, as a
# prompt does. Copies of the matrix take turns. Together they are larger than the caches, so the
# weights come from memory.
#
# **Predict.** Four bits are a quarter of sixteen. Is the product four times as fast?

# %%
try:
    from minillm.ops.cpu import CpuOps

    ops = CpuOps()
except Exception as error:  # no compiler: the reference has no packed matrices
    ops = None
    print("no native kernels here:", error)


CACHES = 128 << 20  # bytes; more than the caches of most processors
big = torch.randn(4096, 2048)


def copies(form):
    """So many copies of the matrix that the caches cannot hold them all."""
    made = []
    rounded = quantize_rows(big, form) if form else None
    while sum(weight.nbytes for weight in made) < CACHES:
        if rounded:
            made.append(ops.begin_quantized((4096, 2048), form, torch.bfloat16))
            ops.put_quantized(made[-1], 0, rounded)
        else:
            made.append(ops.prepare_weight(big.bfloat16()))
    return made


def seconds(rows, weights, runs=3):
    """The time of one product: the shortest of some runs over all copies."""
    x, best = torch.randn(rows, 2048).bfloat16(), float("inf")
    for _ in range(runs):
        start = time.perf_counter()
        for weight in weights:
            ops.linear(x, weight)
        best = min(best, (time.perf_counter() - start) / len(weights))
    return best


if ops:
    forms = {"int8": Form("int8", 64), "int4": Form("int4", 64), "w8a8": Form("int8", 64, int8_x=True)}
    packed = {name: copies(form) for name, form in {"bfloat16": None, **forms}.items()}
    for rows_of_x in (1, 64):
        times = {name: seconds(rows_of_x, weights) for name, weights in packed.items()}
        for name, weights in packed.items():
            share, faster = weights[0].nbytes / packed["bfloat16"][0].nbytes, times["bfloat16"] / times[name]
            print(f"{rows_of_x:3} rows, {name:9} {share:4.0%} of the bytes, {faster:.2f} x the speed")
    del packed

# %% [markdown]
# With one row, fewer bytes help until unpacking takes as long as reading. With 64 rows the weights are read
# once for all rows: arithmetic is the limit. That is the difference between decode and prefill again
# (notebook 2). If the codes become floats there, fewer bytes hardly help. They help if whole numbers are
# multiplied, which the processor does two to four at a time. For that the activations must be whole numbers
# too. `w8a8` rounds them to 8 bits. On a processor with AVX2 and without AVX-512, `int8` and `int4` make
# fixed-point numbers of 16 bits of them (`csrc/cpu/codes_int16.h`), so they gain at 64 rows as well.
#
# ## 11.6 A scale for the activations
#
# Whole numbers of 8 bits are multiplied faster than floats. For that the *activations* must be rounded, too.
# They need a scale. The simplest way is one scale for the whole batch.
#
# **Predict.** You send a prompt alone, and in a batch with others. Are its logits the same?


# %%
def int8_product(scale_of):
    """A product of rounded activations and rounded weights. Sums of whole numbers are exact here."""

    def linear(x, weight, bias=None):
        of_x = scale_of(x.double()).clamp_min(1e-30) / 127
        of_weight = weight.double().abs().amax(dim=1) / 127
        codes_x, codes_w = (x.double() / of_x).round(), (weight.double() / of_weight[:, None]).round()
        y = codes_x @ codes_w.T * of_x * of_weight
        return (y if bias is None else y + bias).to(x.dtype)

    return linear


def by_batch(x):
    return x.abs().amax()


def by_row(x):
    return x.abs().amax(dim=1, keepdim=True)


prompts = ["Once upon a time", "The dog", "A bird sat on a tree and sang a song about"]
asked = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, logprobs=5)
for name, scale_of in (("a scale for the batch", by_batch), ("a scale for each row", by_row)):
    llm = LLM(
        backend="native" if ops else "reference", dtype="float32", parts={"linear": int8_product(scale_of)}
    )
    alone = [llm.generate(prompt, asked)[0].logprobs for prompt in prompts]
    together = [output.logprobs for output in llm.generate(prompts, asked)]
    changed = sum(a != b for a, b in zip(alone, together, strict=True))
    print(f"{name}: {changed} of {len(prompts)} answers have other logprobs in company")
    if scale_of is by_batch:
        assert changed > 0
    elif ops:  # the reference promises no bits: its attention may round otherwise in company
        assert changed == 0

# %% [markdown]
# With one scale for the batch, a neighbour with a large number makes your grid coarser: your answer depends
# on who else is served. That breaks contract C2, and with it prefix caching and speculation. A scale for each
# row (and group) keeps the contract, because a row's grid follows from that row alone. This is what
# `quantization="w8a8"` and `"w4a8"` do.
#
# ## 11.7 Keys and values
#
# Keys and values can take 8 bits, too. The same thought decides how: a token's key must not depend on other
# tokens, or a cached prefix would not be the prefix any more. So each token and head gets a scale of its own.

# %%
generator = torch.Generator().manual_seed(0)
keys = torch.randn(256, 64, generator=generator)  # 256 tokens, one head
keys[:, 7] *= 8  # one dimension of a head is often much larger than the others
query = torch.randn(64, generator=generator)


def rounded(x, scale):
    return (x / scale).round().clamp(-127, 127) * scale


per_token = rounded(keys, keys.abs().amax(dim=1, keepdim=True) / 127)
scores, other = keys @ query / 8, per_token @ query / 8
print(f"largest error of a score: {float((scores - other).abs().max()):.4f}")
drift = float((scores.softmax(0) - other.softmax(0)).abs().max())
print(f"largest error of an attention weight: {drift:.5f}")
print(
    f"bytes of a token and head: {2 * 64} in bfloat16, {64 + 4} in int8 with a scale: {128 / 68:.2f} x less"
)

# %% [markdown]
# `LLM(kv_dtype="int8")` stores them so. **Predict.** How many more tokens fit the same memory? Will the story
# change?

# %%
for kv_dtype in (None, "int8"):
    llm = LLM(backend="reference", dtype="bfloat16", kv_dtype=kv_dtype, kv_memory="1MiB")
    pool = llm.engine.memory.pool
    story = llm.generate("Once upon a time", greedy)[0].text.replace("\n", " ")
    print(f"{kv_dtype or 'plain':5} {pool.num_blocks * pool.block_size:5} tokens in 1 MiB | {story}")

# %% [markdown]
# ## Exercises
#
# `attempt` runs a check and says what it found. Replace `raise NotImplementedError`.


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
# **1 (think).** A matrix has one column that is 100 times larger than the others. Which groups suffer: those
# of a scale for each output, or those of 32 inputs? What would you do with that column?
#
# **2 (think).** Your server runs at batch 64 most of the time. Is int4 worth it? Name two reasons for, and
# one against.
#
# **3 (code).** Quantise a group with a minimum, by hand: codes 0 to 15.


# %%
def by_hand(weights):
    """`weights` float32 [n]. Returns (codes, scale, minimum); codes are whole numbers from 0 to 15."""
    raise NotImplementedError


# %%
def check_by_hand():
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        weights = torch.randn(32, generator=generator) * 0.1 + 0.05 * seed
        codes, scale, minimum = by_hand(weights)
        codes = torch.as_tensor(codes).float()
        assert codes.min() >= 0 and codes.max() <= 15, "codes are from 0 to 15"
        assert torch.equal(codes, codes.round()), "codes are whole numbers"
        error = (codes * float(scale) + float(minimum) - weights).abs().max()
        best = (weights.max() - weights.min()) / 30
        assert error <= best * 1.001, f"seed {seed}: an error of {error:.4f}, {best:.4f} is possible"
    codes, scale, minimum = by_hand(torch.full((8,), 0.25))
    assert torch.allclose(torch.as_tensor(codes) * scale + minimum, torch.tensor(0.25)), "equal weights"


attempt(check_by_hand)

# %% [markdown]
# **4 (code).** How many blocks of a KV cache fit a budget, with int8 keys and values? Each token and head has
# one scale of 4 bytes for its key and one for its value.


# %%
def blocks_that_fit(budget, layers, kv_heads, head_dim, block_size):
    """The number of whole blocks in `budget` bytes."""
    raise NotImplementedError


# %%
def check_blocks():
    for budget, shape, expected in (
        (1 << 20, (4, 2, 64, 16), 60),
        (1 << 24, (30, 3, 64, 16), 85),
        (1000, (1, 1, 8, 4), 10),
    ):
        mine = blocks_that_fit(budget, *shape)
        assert mine == expected, f"{shape} in {budget} bytes: {expected}, not {mine}"


attempt(check_blocks)

# %% [markdown]
# ## What we left out
#
# * **Calibration.** Rounding each weight alone is not the best that 4 bits can do. GPTQ rounds one column
#   after the other and lets the next ones make up for the error (Frantar et al. 2210.17323).
#   `minillm quantize --calibrate` does it (`minillm/model/compress/gptq.py`).
# * **Training for few bits.** Models that were trained with rounded weights lose less.
# * **Fewer than four bits**, and grids that are chosen from the data.
#
# **Next.** `minillm labs start 14`: write the product with weights of 4 bits yourself, in C++ and in CUDA.
# `minillm bench --quantization int4` measures your machine; `docs/quantization.md` says which published
# formats are read.
