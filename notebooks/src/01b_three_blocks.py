# %% [markdown]
# # 1b. Three blocks side by side
#
# Notebook 1 followed one token through a Llama. Most open models differ from Llama in few places: where the
# norms stand, how far a token sees, which MLP it uses. In this notebook you compute three blocks by hand,
# each in a few lines of PyTorch, and compare them with the engine:
#
# * **Llama**, again, as the measure;
# * **Gemma 3**: four norms, windows, two ropes, a scaled embedding;
# * **Mixtral**, a *mixture of experts*: eight MLPs, of which each token uses two.
#
# **Goals.** Afterwards you can
#
# * say what distinguishes Gemma 3 from Llama, and what each difference is for;
# * compute the choice of a router, and the weights of the experts;
# * say which matrices an MoE reads for one token, and for a batch.
#
# **You need** notebook 1. You need no download: the checkpoints are made here, tiny and random. Random
# weights write no stories, but a wrong sum is as wrong in a small model as in a large one.
#
# **Read along** `docs/families.md` (every family, with its picture), `minillm/model/blocks.py` (the parts of
# a layer), `minillm/model/families` (what each family says about itself).

# %%
import json
import math
import shutil
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from IPython.display import display
from safetensors.torch import load_file, save_file

from minillm import LLM, SamplingParams
from minillm.config import EngineConfig
from minillm.memory.kv_cache import KVCache
from minillm.model.costs import matmul_weights
from minillm.model.families import parse_config
from minillm.model.loader import load_model
from minillm.model.locate import find_model
from minillm.ops.reference import ReferenceOps
from minillm.worker.runner import ModelRunner
from minillm.worker.step import SequenceRows

torch.set_num_threads(1)  # small models: a second thread costs more than it brings
torch.set_grad_enabled(False)
plt.rcParams.update({"figure.dpi": 90, "font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#CCCCCC"  # safe for colour-blind readers


def show(figure, alt):
    """Display a figure; `alt` describes it for readers who do not see it."""
    display(figure, metadata={"image/png": {"alt": alt}})
    plt.close(figure)


# %% [markdown]
# ## 1b.1 Three blocks
#
# A box is a step, an arrow is data. The line on the left of each column is the *residual stream*: steps read
# it, and their results are added to it. Orange boxes are those that Llama does not have, or has in another
# form.

# %%
COLUMNS = {
    "Llama": [
        *("norm", "q, k, v", "rope", "attention", "output matrix", "add"),
        *("norm", "gated MLP, silu", "add"),
    ],
    "Gemma 3": [
        *(
            "norm *",
            "q, k, v",
            "norm of q, of k *",
            "rope: one of two *",
            "attention, window *",
            "output matrix",
        ),
        *("norm *", "add", "norm *", "gated MLP, gelu *", "norm *", "add"),
    ],
    "Mixtral": [
        *("norm", "q, k, v", "rope", "attention", "output matrix", "add"),
        *("norm", "router: 2 of 8 *", "2 gated MLPs, silu *", "weighted sum *", "add"),
    ],
}

fig, axes = plt.subplots(1, 3, figsize=(10, 5.6), sharey=True, layout="constrained")
for ax, (family, steps) in zip(axes, COLUMNS.items(), strict=True):
    height = 12 / len(steps)  # all columns are equally tall
    ax.plot([0.35, 0.35], [0.3, -12.2], color="black", linewidth=2)
    for i, step in enumerate(steps):
        y, is_new = -height * (i + 0.5), step.endswith("*")
        edge = {"add": GREY}.get(step, ORANGE if is_new else BLUE)
        box = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": edge, "linewidth": 1.8}
        ax.text(2.6, y, step.removesuffix(" *"), ha="center", va="center", fontsize=10, bbox=box)
        if i > 0 and steps[i - 1] != "add":
            above = (2.6, y + height - 0.35)
            ax.annotate(
                "", (2.6, y + 0.3), above, arrowprops={"arrowstyle": "->", "color": "black"}, zorder=0
            )
        if step == "add":  # the result goes back to the stream
            ax.annotate("", (0.4, y), (2.1, y), arrowprops={"arrowstyle": "->", "color": "black"})
        elif i == 0 or steps[i - 1] == "add":  # a part begins: it reads the stream
            ax.annotate("", (1.0, y), (0.4, y), arrowprops={"arrowstyle": "->", "color": "black"})
    ax.set_title(family)
    ax.set(xlim=(0, 4.4), ylim=(-12.5, 0.6))
    ax.axis("off")
show(
    fig,
    "Three block diagrams side by side. Llama: norm, attention with rope, add, norm, gated MLP, add. "
    "Gemma 3 has norms on both sides of attention and of the MLP, norms on q and k, one of two ropes, and "
    "a window. Mixtral has a router and two of eight MLPs where Llama has one.",
)

# %% [markdown]
# ## 1b.2 Three tiny checkpoints
#
# All three have two layers, 32 numbers per token, four query heads and two key/value heads. The configs have
# the keys of real ones. The tensors have the names of real ones; the loader refuses a checkpoint in which one
# is missing or left over. Gemma stores the weights of its norms around 0, the others around 1.

# %%
HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, EPS = 32, 64, 4, 2, 8, 1e-5
EXPERTS, PER_TOKEN, WINDOW = 8, 2, 4
SHAPE = {
    "vocab_size": 4096,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "rms_norm_eps": EPS,
    "max_position_embeddings": 128,
    "eos_token_id": 0,
}
CONFIGS = {
    "Llama": SHAPE
    | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_theta": 10_000.0}
    | {"tie_word_embeddings": True},
    "Gemma 3": SHAPE
    | {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"}
    | {"rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0, "query_pre_attn_scalar": 16}
    | {"sliding_window": WINDOW, "sliding_window_pattern": 2},  # layer 0 has a window, layer 1 has none
    "Mixtral": SHAPE
    | {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "rope_theta": 10_000.0}
    | {"num_local_experts": EXPERTS, "num_experts_per_tok": PER_TOKEN, "sliding_window": None}
    | {"tie_word_embeddings": True},
}


def layer_shapes(family):
    """The tensors of one layer: name -> shape."""
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes = {"input_layernorm": [HIDDEN], "post_attention_layernorm": [HIDDEN]}
    shapes |= {"self_attn.q_proj": [q, HIDDEN], "self_attn.k_proj": [kv, HIDDEN]}
    shapes |= {"self_attn.v_proj": [kv, HIDDEN], "self_attn.o_proj": [HIDDEN, q]}
    if family == "Gemma 3":
        shapes |= {"pre_feedforward_layernorm": [HIDDEN], "post_feedforward_layernorm": [HIDDEN]}
        shapes |= {"self_attn.q_norm": [HEAD_DIM], "self_attn.k_norm": [HEAD_DIM]}
    if family == "Mixtral":
        shapes["block_sparse_moe.gate"] = [EXPERTS, HIDDEN]  # the router
        for e in range(EXPERTS):  # w1 is the gate, w3 is up, w2 is down
            expert = f"block_sparse_moe.experts.{e}"
            shapes |= {f"{expert}.w1": [INNER, HIDDEN], f"{expert}.w3": [INNER, HIDDEN]}
            shapes |= {f"{expert}.w2": [HIDDEN, INNER]}
    else:
        shapes |= {"mlp.gate_proj": [INNER, HIDDEN], "mlp.up_proj": [INNER, HIDDEN]}
        shapes |= {"mlp.down_proj": [HIDDEN, INNER]}
    return shapes


def random_weights(family):
    """Random tensors; so large that every part matters."""
    shapes = {"model.embed_tokens": [4096, HIDDEN], "model.norm": [HIDDEN]}
    for i in range(2):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer_shapes(family).items()}
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, shape in shapes.items():
        numbers = torch.randn(shape, generator=generator)
        is_norm, around = len(shape) == 1, 0 if family == "Gemma 3" else 1
        tensors[f"{name}.weight"] = around + numbers / 3 if is_norm else numbers * 1.5 / shape[1] ** 0.5
    return tensors


here = tempfile.TemporaryDirectory()
storyteller = find_model("storyteller-1m")


def write(name, config, tensors):
    """A model folder with the storyteller's tokenizer."""
    folder = Path(here.name) / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    shutil.copy(storyteller / "tokenizer.json", folder)
    return folder


weights = {family: random_weights(family) for family in CONFIGS}
folders = {family: write(family, CONFIGS[family], weights[family]) for family in CONFIGS}
for family, tensors in weights.items():
    print(f"{family:8} {sum(t.numel() for t in tensors.values()):9,} parameters in {len(tensors)} tensors")

# %% [markdown]
# ## 1b.3 What the engine computes
#
# As in notebook 1 a recorder keeps the result of each operation of the decoder. `steps[op]` is the list of
# the results of one operation, in the order of the calls.

# %%
text = "Lily had a red ball. Tom wanted the ball, so Lily gave it to"
OPTIONS = {"device": "cpu", "dtype": "float32", "backend": "reference", "kv_memory": "16MiB"}
llms = {family: LLM(folder, **OPTIONS) for family, folder in folders.items()}
tokenizer = llms["Llama"].tokenizer
ids = torch.tensor(tokenizer.encode(text))
labels = [tokenizer.decode([i]).replace(" ", "␣") or "<start>" for i in ids.tolist()]
num_tokens = len(ids)
print(num_tokens, "tokens:", *labels)


class Recorder:
    """Ops that keep the results of every call, by the name of the operation."""

    name = "recorder"

    def __init__(self):
        self.steps, self.inner = {}, ReferenceOps()

    def __getattr__(self, op):
        method = getattr(self.inner, op)

        def recorded(*arguments, **named):
            result = method(*arguments, **named)
            self.steps.setdefault(op, []).append(result)
            return result

        return recorded


def record(folder, ids):
    """The steps of the decoder over the tokens `ids`."""
    recorder = Recorder()
    model = load_model(folder, EngineConfig(dtype="float32", device="cpu"), ops=recorder)
    cache = KVCache.allocate(
        model.config, num_blocks=8, block_size=16, dtype=torch.float32, device=model.device
    )
    runner = ModelRunner(model.decoder, cache, block_size=16)
    runner.forward([SequenceRows(ids.tolist(), start=0, block_table=list(range(8)))])
    return recorder.steps


steps = {family: record(folder, ids) for family, folder in folders.items()}
for family, found in steps.items():
    counts = {
        op: len(results) for op, results in found.items() if op not in ("prepare_weight", "finite_rows")
    }
    print(f"{family:8}", ", ".join(f"{count} {op}" for op, count in counts.items()))

# %% [markdown]
# Look at the counts: Gemma 3 has more norms than the others, and Mixtral calls `route` and `experts`
# where the others call `act_and_mul`, once in each layer.
#
# `agree` compares two results. As in notebook 1 the tolerance is 1e-4 of the largest number.


# %%
def difference(mine, theirs):
    return ((mine - theirs).abs().max() / theirs.abs().max()).item()


def agree(mine, theirs, what, quiet=False):
    assert mine.shape == theirs.shape, f"{what}: {list(mine.shape)}, expected {list(theirs.shape)}"
    worst = difference(mine, theirs)
    assert worst <= 1e-4, f"{what}: differs by {worst:.2g} of the largest number"
    if not quiet:
        print(f"ok  {what:44} {list(mine.shape)!s:14} differs by at most {worst:.0e}")


# %% [markdown]
# ## 1b.4 Llama
#
# The four tools of notebook 1, and the block. `attend` already has a `window`, which Llama does not use.


# %%
def norm(x, weight):
    return x / torch.sqrt(x.square().mean(dim=-1, keepdim=True) + EPS) * weight


def rotate(x, theta):
    """x [token, head, component]: component i is paired with component i + half."""
    angle = torch.arange(len(x))[:, None] * theta ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def visible(window=None):
    """[query, key]: whether the token sees the key: itself and earlier ones, at most `window` of them."""
    query, key = torch.arange(num_tokens)[:, None], torch.arange(num_tokens)[None, :]
    return (key <= query) & (key > query - (window or num_tokens))


def attention_weights(q, k, scale, window=None):
    """[head, query, key]"""
    scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(HEADS // KV_HEADS, dim=1)) * scale
    return scores.masked_fill(~visible(window), float("-inf")).softmax(dim=-1)


def attend(q, k, v, scale, window=None):
    mixed = torch.einsum(
        "hqk,khd->qhd", attention_weights(q, k, scale, window), v.repeat_interleave(HEADS // KV_HEADS, dim=1)
    )
    return mixed.flatten(1)


def silu(x):
    return x * torch.sigmoid(x)


def heads(x, matrix):
    return (x @ matrix.T).unflatten(-1, (-1, HEAD_DIM))


def layer_of(family, i):
    """The tensors of layer i without the words that all share."""
    prefix = f"model.layers.{i}."
    found = {name: t for name, t in weights[family].items() if name.startswith(prefix)}
    return {name.removeprefix(prefix).removesuffix(".weight"): t for name, t in found.items()}


# %% [markdown]
# One token through the block: `x` has a row for each token of the prompt. A row reads other rows in one place
# only, in `attend`.


# %%
def llama_attention(x, w):
    a = norm(x, w["input_layernorm"])
    q, k, v = (heads(a, w[f"self_attn.{name}_proj"]) for name in "qkv")
    q, k = rotate(q, theta=10_000), rotate(k, theta=10_000)
    return attend(q, k, v, scale=HEAD_DIM**-0.5) @ w["self_attn.o_proj"].T


def llama_block(x, w):
    x = x + llama_attention(x, w)
    a = norm(x, w["post_attention_layernorm"])
    gated = silu(a @ w["mlp.gate_proj"].T) * (a @ w["mlp.up_proj"].T)
    return x + gated @ w["mlp.down_proj"].T


embedding = weights["Llama"]["model.embed_tokens.weight"]
x = embedding[ids]
for i in range(2):
    x = llama_block(x, layer_of("Llama", i))
logits = norm(x, weights["Llama"]["model.norm.weight"]) @ embedding.T
agree(logits, llms["Llama"].logits(ids.tolist()), "Llama: the logits of all tokens")

# %% [markdown]
# ## 1b.5 Gemma 3
#
# Nine things differ. Each is one line below, with its number:
#
# 1. norms on both sides: what attention and MLP *add* is normed, too, so it has a known size;
# 2. a norm multiplies by `1 + weight`;
# 3. the embedding is multiplied by $\sqrt{\text{hidden size}}$;
# 4. q and k are normed, each head apart, before rope;
# 5. most layers have a *window*: a token sees the last few tokens only (here 4, in Gemma 3 1B 512);
# 6. these layers have a rope of their own, with a smaller theta;
# 7. the gate's activation is gelu:
#    $\mathrm{gelu}(z) \approx \tfrac z2 (1 + \tanh(\sqrt{2/\pi}\,(z + 0.044715 z^3)))$;
# 8. scores are divided by $\sqrt{\text{query\_pre\_attn\_scalar}}$, which need not be the head's size;
# 9. the head is always the embedding.
#
# `without` leaves one of them out. We need it in a moment.


# %%
def gelu(x):
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gemma_qkv(a, w, theta, without):
    q, k, v = (heads(a, w[f"self_attn.{name}_proj"]) for name in "qkv")
    if without != "norm of q, k":
        q, k = (
            gemma_norm(q, w["self_attn.q_norm"], without),
            gemma_norm(k, w["self_attn.k_norm"], without),
        )  # 4
    return rotate(q, theta), rotate(k, theta), v


def gemma_norm(x, weight, without=None):
    return norm(x, weight if without == "1 + weight" else 1 + weight)  # 2


def gemma_block(x, w, has_window, without=None):
    def after(y, weight):
        return y if without == "norms after" else gemma_norm(y, weight, without)  # 1

    theta = 10_000 if has_window and without != "second rope" else 1_000_000  # 6
    scale = HEAD_DIM**-0.5 if without == "own scale" else 16**-0.5  # 8
    window = WINDOW if has_window and without != "window" else None  # 5
    q, k, v = gemma_qkv(gemma_norm(x, w["input_layernorm"], without), w, theta, without)
    attended = attend(q, k, v, scale, window) @ w["self_attn.o_proj"].T
    x = x + after(attended, w["post_attention_layernorm"])
    a = gemma_norm(x, w["pre_feedforward_layernorm"], without)
    act = silu if without == "gelu" else gelu  # 7
    gated = act(a @ w["mlp.gate_proj"].T) * (a @ w["mlp.up_proj"].T)
    return x + after(gated @ w["mlp.down_proj"].T, w["post_feedforward_layernorm"])


def gemma(ids, without=None):
    embedding = weights["Gemma 3"]["model.embed_tokens.weight"]
    x = embedding[ids] * (1 if without == "embedding scale" else HIDDEN**0.5)  # 3
    for i in range(2):
        x = gemma_block(x, layer_of("Gemma 3", i), has_window=i == 0, without=without)
    return gemma_norm(x, weights["Gemma 3"]["model.norm.weight"], without) @ embedding.T  # 9


theirs = llms["Gemma 3"].logits(ids.tolist())
agree(gemma(ids), theirs, "Gemma 3: the logits of all tokens")

# %% [markdown]
# Would the comparison notice a forgotten line? Leave out one at a time. Each bar must be far to the right of
# the tolerance, or the check would have looked at nothing.

# %%
PARTS = [
    *("norms after", "1 + weight", "embedding scale", "norm of q, k"),
    *("window", "second rope", "gelu", "own scale"),
]
moved = {part: difference(gemma(ids, without=part), theirs) for part in PARTS}
assert min(moved.values()) > 100 * 1e-4, moved

fig, ax = plt.subplots(figsize=(8, 3.4), layout="constrained")
ax.barh(list(moved), list(moved.values()), color=ORANGE)
ax.axvline(1e-4, color="black", linestyle="--", label="tolerance of agree")
ax.set_xscale("log")
ax.set_xlim(5e-5, 5)
ax.invert_yaxis()
ax.set_xlabel("largest change of a logit, as a part of the largest logit")
ax.set_ylabel("left out")
ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1))
show(
    fig,
    "Horizontal bars on a logarithmic scale: how far the logits move if one of eight parts of Gemma 3 is "
    "left out. Every bar is more than a hundred times the tolerance of 0.0001.",
)

# %% [markdown]
# What a window does to attention: the weights of one head, in the layer with a window and in the layer
# without. With a window of 4 a row has at most four weights. The token can still learn of earlier ones,
# because the keys and values that it reads in layer 1 were computed from layer 0's outputs.

# %%
maps = []
x = weights["Gemma 3"]["model.embed_tokens.weight"][ids] * HIDDEN**0.5
for i, (window, theta) in enumerate([(WINDOW, 10_000), (None, 1_000_000)]):
    w = layer_of("Gemma 3", i)
    q, k, v = gemma_qkv(gemma_norm(x, w["input_layernorm"]), w, theta, None)
    agree(q, steps["Gemma 3"]["rope_and_cache"][i], f"layer {i}: rotated q")
    agree(
        attend(q, k, v, 16**-0.5, window),
        steps["Gemma 3"]["paged_attention"][i].flatten(1),
        f"layer {i}: attention",
    )
    maps.append(attention_weights(q, k, 16**-0.5, window)[0].masked_fill(~visible(window), float("nan")))
    x = gemma_block(x, w, has_window=i == 0)

fig, axes = plt.subplots(1, 2, figsize=(10, 4.8), sharey=True, layout="constrained")
for ax, shown, title in zip(axes, maps, ["layer 0: window 4", "layer 1: all earlier tokens"], strict=True):
    image = ax.imshow(shown, cmap="cividis", vmin=0, vmax=1)
    ax.set_title(title, fontsize=11)
    ax.set_xticks(range(num_tokens), labels, rotation=90, fontsize=9)
    ax.set_yticks(range(num_tokens), labels, fontsize=9)
    ax.set_xlabel("key (looked at)")
axes[0].set_ylabel("query (looking)")
fig.colorbar(image, ax=axes, label="attention weight", shrink=0.8)
show(
    fig,
    "Two maps of attention weights, query by key. In layer 0 only a band of four keys below the diagonal "
    "has weights. In layer 1 the whole lower triangle has.",
)

# %% [markdown]
# Why two ropes? Far positions look different only to pairs that turn slowly: less than once over all that the
# layer sees. With theta 10,000 half of the pairs are that slow in a window of 512 tokens, but only a few are
# in 32,768 tokens. A larger theta gives the layers without a window more of them. The figure has the 128
# pairs of Gemma 3 1B, whose heads have 256 components.

# %%
pair = torch.arange(128)
fig, ax = plt.subplots(figsize=(8, 3.6), layout="constrained")
for theta, reach, style, name in [
    (10_000.0, 512, {"color": BLUE}, "theta 10,000 in a window of 512 (Gemma's layers with a window)"),
    (1_000_000.0, 32_768, {"color": ORANGE}, "theta 1,000,000 in 32,768 tokens (the other layers)"),
    (10_000.0, 32_768, {"color": BLUE, "linestyle": ":"}, "theta 10,000 in 32,768 tokens (not in Gemma)"),
]:
    turns = reach * theta ** (-pair / 128) / (2 * math.pi)
    ax.plot(pair, turns, label=name, **style)
    print(f"{int((turns < 1).sum()):3} of 128 pairs make less than one turn: {name}")
ax.axhline(1, color="black", linestyle="--", linewidth=1)
ax.set_yscale("log")
ax.set_xlabel("pair of components")
ax.set_ylabel("turns over what is seen")
ax.legend(frameon=False, fontsize=9)
show(
    fig,
    "Three falling lines on a logarithmic scale: the turns that each of 128 pairs makes. With theta 10,000 "
    "over 512 tokens the line falls below one turn at pair 62, with theta 1,000,000 over 32,768 tokens at "
    "pair 80, with theta 10,000 over 32,768 tokens only at pair 119.",
)

# %% [markdown]
# ## 1b.6 Mixtral: a router and eight MLPs
#
# Attention is Llama's. In the place of the MLP stand eight *experts*, each an MLP of the same form, and a
# *router*: one matrix that gives a score for each expert. Take the last token of the prompt, alone, through
# layer 0.

# %%
embedding = weights["Mixtral"]["model.embed_tokens.weight"]
w = layer_of("Mixtral", 0)
x = embedding[ids] + llama_attention(embedding[ids], w)
a = norm(x, w["post_attention_layernorm"])

token = a[-1]  # the row of one token: from here on it needs no other row
scores = w["block_sparse_moe.gate"] @ token
best = scores.topk(PER_TOKEN).indices
shares = scores[best].softmax(dim=-1)  # the same numbers as: softmax over all, then scaled to sum to 1
print("scores ", " ".join(f"{s:6.2f}" for s in scores.tolist()))
print("experts", {int(e): round(float(s), 3) for e, s in zip(best, shares, strict=True)})


def expert(e, a, w):
    w = {name: w[f"block_sparse_moe.experts.{e}.{name}"] for name in ("w1", "w2", "w3")}
    return (silu(a @ w["w1"].T) * (a @ w["w3"].T)) @ w["w2"].T


output = sum(share * expert(int(e), token, w) for e, share in zip(best, shares, strict=True))
agree(output, steps["Mixtral"]["experts"][0][-1], "layer 0: the experts' sum for the last token")

# %% [markdown]
# For all tokens we write the choice as a matrix `[token, expert]` with a zero for each expert that a token
# does not use. If two scores are equal, the expert with the lower number wins: `sort` with `stable=True`
# keeps their order. A router that broke ties by the place in the batch would give a request other tokens in
# another batch.


# %%
def route(scores, per_token):
    """scores [token, expert] -> weights [token, expert], `per_token` of them above 0 in each row."""
    best = scores.sort(dim=-1, descending=True, stable=True).indices[:, :per_token]
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(1, best, True)
    return scores.masked_fill(~chosen, float("-inf")).softmax(dim=-1)


def mixtral_block(x, w):
    x = x + llama_attention(x, w)
    a = norm(x, w["post_attention_layernorm"])
    shares = route(a @ w["block_sparse_moe.gate"].T, PER_TOKEN)
    outputs = torch.stack([expert(e, a, w) for e in range(EXPERTS)], dim=1)  # [token, expert, hidden]
    return x + torch.einsum("te,teh->th", shares, outputs), shares


x, routed = embedding[ids], []
for i in range(2):
    x, shares = mixtral_block(x, layer_of("Mixtral", i))
    chosen, parts = steps["Mixtral"]["route"][
        i
    ]  # the engine's: the numbers of the experts, and their weights
    agree(shares, torch.zeros_like(shares).scatter(1, chosen, parts), f"layer {i}: weights of the experts")
    routed.append(shares)
logits = norm(x, weights["Mixtral"]["model.norm.weight"]) @ embedding.T
agree(logits, llms["Mixtral"].logits(ids.tolist()), "Mixtral: the logits of all tokens")

tied = route(torch.tensor([[0.5, 2.0, 2.0, 2.0]]), per_token=2)
assert tied.tolist() == [[0.0, 0.5, 0.5, 0.0]], "of equal scores the lower numbers win"

# %% [markdown]
# We computed all eight experts and multiplied six of them by zero. The engine does not: it collects the
# tokens of each expert and runs the expert on these rows. The result is the same; the work and the bytes are
# a quarter.
#
# The router's choice, for each token and layer. The router reads a token after attention, so the same word in
# two places may get other experts.

# %%
fig, axes = plt.subplots(1, 2, figsize=(8.5, 4.8), sharey=True, layout="constrained")
for i, (ax, shares) in enumerate(zip(axes, routed, strict=True)):
    image = ax.imshow(
        shares.masked_fill(shares == 0, float("nan")), cmap="cividis", vmin=0, vmax=1, aspect="auto"
    )
    ax.set_title(f"layer {i}", fontsize=11)
    ax.set_xticks(range(EXPERTS))
    ax.set_yticks(range(num_tokens), labels, fontsize=9)
    ax.set_xlabel("expert")
axes[0].set_ylabel("token")
fig.colorbar(image, ax=axes, label="weight of the expert", shrink=0.8)
show(
    fig,
    "Two maps, token by expert, one for each layer. Each row has two coloured cells, whose weights sum to "
    "one. Some experts are used by many tokens, some by few or none.",
)

# %% [markdown]
# ## 1b.7 What an MoE reads
#
# Decoding is limited by the bytes that are read (notebook 2). One token of Mixtral 8x7B reads 2 of 8 experts
# in each layer. `matmul_weights` counts what takes part in the matrix products of one token; `minillm
# inspect` shows it.

# %%
MIXTRAL_8X7B = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
mixtral = parse_config(MIXTRAL_8X7B)
active = matmul_weights(mixtral)
print(f"{mixtral.num_parameters / 1e9:.1f} billion parameters,")
print(f"{active / 1e9:.1f} billion of them are read for one token")

# %% [markdown]
# All of them must be in memory, because the next token may use any expert. And a batch reads more than one
# token does: each token brings its own two experts. The figure counts the experts of a layer that a step of
# `n` tokens reads, measured with the tiny model, and expected if every token picked two of eight at random:
# $8\,(1 - (1 - \tfrac28)^n)$.

# %%
generator = torch.Generator().manual_seed(2)
many = torch.randint(2, 4096, (128,), generator=generator)
chosen = record(folders["Mixtral"], many)["route"][0].chosen
sizes = [1, 2, 3, 4, 6, 8, 12, 16]
read = [
    sum(len(part.unique()) for part in chosen.split(n) if len(part) == n) / (len(chosen) // n) for n in sizes
]
expected = [EXPERTS * (1 - (1 - PER_TOKEN / EXPERTS) ** n) for n in sizes]
print(*(f"{n} tokens: {r:.1f}" for n, r in zip(sizes, read, strict=True)), sep="   ")

fig, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
ax.plot(sizes, read, "o-", color=BLUE, label="measured")
ax.plot(sizes, expected, "--", color=ORANGE, label="if the choice were random")
ax.axhline(EXPERTS, color=GREY)
ax.set(xlabel="tokens in the step", ylabel="experts read in a layer", ylim=(0, EXPERTS + 0.5))
ax.legend(frameon=False, loc="lower right")
show(
    fig,
    "A line that rises from 2 experts for one token towards all 8 for sixteen tokens, close to the line "
    "that is expected if every token picked two experts at random.",
)

# %% [markdown]
# So an MoE is fast for one user, and a server with a large batch reads nearly all experts in each step. It
# still computes less than a dense model of that size.
#
# ## 1b.8 A storyteller with eight experts
#
# Random weights prove that sums are right, but they tell nothing. Here is a real model as an MoE. We write
# the shipped storyteller down as a Mixtral: each of eight experts is a copy of its MLP, and the router is
# random. Two experts with weights that sum to 1 then add up to the one MLP, whatever the router picks. So the
# text must be the same.
#
# This is how some MoE models are begun: copy a trained MLP, then train the copies and the router further
# (*sparse upcycling*, Komatsuzaki et al. 2212.05055).

# %%
config = json.loads((storyteller / "config.json").read_text())
dense = load_file(storyteller / "model.safetensors")
generator = torch.Generator().manual_seed(3)
names = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
moe = {}
for name, tensor in dense.items():
    layer, is_mlp, rest = name.partition(".mlp.")
    if not is_mlp:
        moe[name] = tensor
        continue
    for e in range(EXPERTS):
        short = names[rest.removesuffix(".weight")]
        moe[f"{layer}.block_sparse_moe.experts.{e}.{short}.weight"] = tensor.clone()
    router = torch.randn(EXPERTS, config["hidden_size"], generator=generator)
    moe[f"{layer}.block_sparse_moe.gate.weight"] = router.to(tensor.dtype)

as_moe = config | {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "sliding_window": None}
as_moe |= {"num_local_experts": EXPERTS, "num_experts_per_tok": PER_TOKEN}
teller = LLM("storyteller-1m", **OPTIONS)
upcycled = LLM(write("upcycled", as_moe, moe), **OPTIONS)
agree(upcycled.logits(ids.tolist()), teller.logits(ids.tolist()), "logits of the storyteller, as an MoE")

greedy = SamplingParams(temperature=0, max_tokens=24)
story, same = (llm.generate(text, greedy)[0] for llm in (teller, upcycled))
assert story.token_ids == same.token_ids
before, after = (parse_config(c) for c in (config, as_moe))
print(text + same.text)
print(f"\n{before.num_parameters:,} parameters became {after.num_parameters:,};")
print(f"{matmul_weights(before):,} read for one token became {matmul_weights(after):,}")

# %% [markdown]
# ## Exercises
#
# Fill in the functions. The cell below each function checks it. `attempt` treats `NotImplementedError` as
# "not tried yet".


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
# **1 (think).** Gemma stores the weight of a norm around 0 and multiplies by `1 + weight`. The arithmetic is
# the same as with weights around 1. What differs in training, when *weight decay* pulls every number towards
# 0? And what differs in bfloat16, whose numbers lie closer together near 0 than near 1?
#
# **2 (think).** Gemma 3 1B has 22 layers with a window of 512 and 4 without. How many bytes of keys and
# values does it read for a token at position 32,768, as a part of what it would read without windows? Which
# memory would an engine save that kept only the last 512 keys of the 22 layers, and what would it lose?
# (minillm keeps them all.)
#
# **3 (code).** How far back can information come? In each layer a token reads the last `window` tokens, its
# own included. `windows` lists one number for each layer. Return how many of the last tokens can change the
# logits of the last one.


# %%
def reach(windows):
    """windows: a list of integers, one for each layer -> the number of tokens, the last one included."""
    raise NotImplementedError


# %%
def check_reach():
    for windows in ([1], [4], [4, 4], [2, 3, 4], [512] * 26):
        seen = {0}  # how many positions back
        for window in windows:
            seen = {back + more for back in (min(seen), max(seen)) for more in (0, window - 1)}
        assert reach(windows) == max(seen) + 1, f"windows {windows[:4]}: {reach(windows)}"


attempt(check_reach)

# %% [markdown]
# **4 (code).** OLMoE takes the softmax over *all* experts and uses the weights of the chosen ones as they
# are, so they sum to less than 1. Write its router. `scores` is `[token, expert]`; return a matrix of the
# same shape with a zero for each expert that a token does not use.


# %%
def olmoe_route(scores, per_token):
    """scores [token, expert] -> weights [token, expert]."""
    raise NotImplementedError


# %%
def check_olmoe():
    generator = torch.Generator().manual_seed(4)
    for per_token in (1, 3, 8):
        scores = torch.randn(50, EXPERTS, generator=generator)
        chosen, parts = ReferenceOps().route(scores, per_token, False)
        found = olmoe_route(scores.clone(), per_token)
        agree(found, torch.zeros_like(scores).scatter(1, chosen, parts), "olmoe_route", quiet=True)


attempt(check_olmoe)

# %% [markdown]
# **5 (code).** A decode step runs one token of each of several requests. Given each layer's choice,
# `chosen[layer]` of shape `[token, per_token]`, return how many experts' matrices the step reads, in all
# layers together. Each layer has its own experts.


# %%
def experts_read(chosen):
    """chosen: a list of integer tensors [token, per_token], one for each layer -> an integer."""
    raise NotImplementedError


# %%
def check_read():
    one_layer = [torch.tensor([[0, 1], [1, 2], [0, 2]])]
    assert experts_read(one_layer) == 3, "three tokens share three experts"
    assert experts_read(one_layer * 4) == 12, "each layer has its own experts"
    found = [routing.chosen for routing in steps["Mixtral"]["route"]]
    assert experts_read(found) == sum(int((shares > 0).any(dim=0).sum()) for shares in routed)


attempt(check_read)

# %% [markdown]
# ## What we left out
#
# * **Other families**: norms only after (OLMo 2), layers without rope (SmolLM3), sinks (gpt-oss), four
#   multipliers (Granite), learned positions (GPT-2). `docs/families.md` has ten lines and a picture of each.
# * **Training a router**: a loss that spreads the tokens over the experts, so that none is idle.
# * **Bits**: why a token's experts and their order must not depend on the batch is contract C2,
#   `docs/contracts.md`.
#
# **Next.** Notebook 2, *prefill and decode*. `minillm inspect MODEL` names the parts of any model on your
# disk, layer by layer; `docs/extending.md` shows how a family is added.

# %%
here.cleanup()
