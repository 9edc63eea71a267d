# %% [markdown]
# # 1. One token by hand
#
# A language model is a function from a list of token ids to one score per token of its vocabulary. In this
# notebook you compute that function yourself, step by step. You use only `torch` arithmetic and the numbers
# in the weight file of the model that ships with minillm. After **every** step your result is compared with
# the result of the engine's own decoder.
#
# **Goals.** Afterwards you can
#
# * name every operation between a prompt and the next token, and the shapes of its input and output;
# * explain what rotary position embedding, grouped-query attention and SwiGLU compute;
# * turn scores into a token with temperature, top-p and Gumbel noise, and say why the draw is
#   reproducible.
#
# **You need** PyTorch and a rough idea of the Transformer. You need no GPU and no download.
#
# **Read along** `minillm/model/decoder.py` (300 lines, the whole model) and
# `minillm/ops/reference.py` (the arithmetic it calls).

# %%
import json

import matplotlib.pyplot as plt
import torch
from IPython.display import display
from safetensors.torch import load_file
from tokenizers import Tokenizer

from minillm import LLM, SamplingParams
from minillm.config import EngineConfig
from minillm.memory.kv_cache import KVCache
from minillm.model.loader import load_model
from minillm.model.locate import find_model
from minillm.ops.reference import ReferenceOps
from minillm.ops.sampling import filter_logits, gumbel_noise, noise_key, uniforms
from minillm.worker.runner import ModelRunner
from minillm.worker.step import SequenceRows

torch.set_num_threads(1)  # a small model: a second thread costs more than it brings
torch.set_grad_enabled(False)
plt.rcParams.update({"figure.dpi": 90, "font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#CCCCCC"  # safe for colour-blind readers


def show(fig, alt):
    """Display a picture with `alt`, a text for those who cannot see it."""
    display(fig, metadata={"image/png": {"alt": alt}})
    plt.close(fig)


# %% [markdown]
# ## 1.1 What is in a model folder
#
# Three files matter: `config.json` says which Transformer this is, `model.safetensors` holds the
# numbers, `tokenizer.json` turns text into ids and back.

# %%
folder = find_model(None)
config = json.loads((folder / "config.json").read_text())
keys = """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
num_key_value_heads head_dim rms_norm_eps rope_theta tie_word_embeddings""".split()
for key in keys:
    print(f"{key:22} {config[key]}")

# %% [markdown]
# The weights are stored as bfloat16. We convert them to float32, which is exact, and compute in
# float32 throughout.

# %%
weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
for name, tensor in weights.items():
    if name.startswith("model.layers.0.") or ".layers." not in name:
        print(f"{name:50} {list(tensor.shape)}")

num_layers, num_heads = config["num_hidden_layers"], config["num_attention_heads"]
num_kv_heads, head_dim = config["num_key_value_heads"], config["head_dim"]
eps = config["rms_norm_eps"]
print(f"\n{sum(t.numel() for t in weights.values()):,} parameters, the same nine tensors in each layer")

# %% [markdown]
# A linear layer's weight is stored as `[out, in]`, so applying it is `x @ weight.T`. There is no
# output matrix: `tie_word_embeddings` says that the embedding is used a second time at the end.
#
# ## 1.2 From text to token ids
#
# The tokenizer cuts text into pieces of its vocabulary. It writes the space before a word as `Ġ`; we
# print it as `␣`.

# %%
text = "Lily had a red ball. Tom wanted the ball, so Lily gave it to"
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
ids = torch.tensor(tokenizer.encode(text).ids)
labels = [tokenizer.id_to_token(i).replace("Ġ", "␣") for i in ids.tolist()]
num_tokens = len(ids)
for i, label in zip(ids.tolist(), labels, strict=True):
    print(f"{i:6} {label}")
assert tokenizer.decode(ids.tolist()) == text

# %% [markdown]
# ## 1.3 Record the decoder
#
# minillm's decoder does no arithmetic of its own: every step is a call of a method of an object called `ops`
# (the contract is `minillm/ops/contract.py`). So we can record all steps. `Recorder` passes each call to the
# reference implementation and stores the result.


# %%
class Recorder:
    """Ops that keep (name, result) of every call."""

    name = "recorder"

    def __init__(self):
        self.calls, self.inner = [], ReferenceOps()

    def __getattr__(self, op):
        method = getattr(self.inner, op)

        def recorded(*arguments):
            result = method(*arguments)
            self.calls.append((op, result))
            return result

        return recorded


recorder = Recorder()
model = load_model(folder, EngineConfig(dtype="float32", device="cpu"), ops=recorder)
cache = KVCache.allocate(model.config, num_blocks=4, block_size=16, dtype=torch.float32, device=model.device)
runner = ModelRunner(model.decoder, cache, block_size=16)

recorder.calls.clear()  # drop the calls made by loading, which asks the backend how to store the matrices
hidden = runner.forward([SequenceRows(ids.tolist(), start=0, block_table=[0, 1, 2, 3])])
model.decoder.logits(hidden)
print(f"{len(recorder.calls)} calls, the first eleven:")
print(*[op for op, _ in recorder.calls[:11]], sep="\n")

# %% [markdown]
# `expect` takes the next recorded call. It checks that the call is the expected operation, and that our
# numbers equal the recorded numbers. The tolerance is 1e-4 of the largest number: two correct programs that
# add the same float32 numbers in different orders differ in the last digits.


# %%
def agree(mine, theirs, what, quiet=False):
    assert mine.shape == theirs.shape, f"{what}: {list(mine.shape)}, expected {list(theirs.shape)}"
    worst, scale = (mine - theirs).abs().max().item(), theirs.abs().max().item()
    assert worst <= 1e-4 * scale, f"{what}: differs by {worst:.2g}, numbers are up to {scale:.2g}"
    if not quiet:
        print(f"ok  {what:38} {list(mine.shape)!s:14} differs by at most {worst:.0e}")


def expect(op, mine, what, quiet=False):
    """Compare with the decoder's next call. add_rms_norm returns two tensors: give a tuple."""
    recorded_op, theirs = next(witness)
    assert recorded_op == op, f"the decoder called {recorded_op} here, not {op}"
    if isinstance(mine, tuple):
        agree(mine[0], theirs[0], f"{what}: norm", quiet)
        agree(mine[1], theirs[1], f"{what}: sum", quiet)
    else:
        agree(mine, theirs, what, quiet)


witness = iter(recorder.calls)

# %% [markdown]
# ## 1.4 Embedding
#
# Row `i` of the embedding matrix is the vector of token `i`. From here on each token is one row of
# `hidden_size` numbers. This running state is the *residual stream*: layers add to it.

# %%
embedding = weights["model.embed_tokens.weight"]
residual = embedding[ids]
expect("embedding", residual, "embedding")

# %% [markdown]
# ## 1.5 RMSNorm
#
# Before each sublayer a row is divided by its root mean square, then scaled by a learnt weight:
#
# $$\mathrm{norm}(x) = \frac{x}{\sqrt{\frac1n\sum_i x_i^2 + \varepsilon}} \odot w$$
#
# It is LayerNorm without the mean and the bias.


# %%
def rms_norm(x, weight):
    return x / torch.sqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight


layer0 = {name.removeprefix("model.layers.0."): t for name, t in weights.items() if ".layers.0." in name}
x = rms_norm(residual, layer0["input_layernorm.weight"])
expect("rms_norm", x, "input norm")

# %% [markdown]
# ## 1.6 Queries, keys, values
#
# These are three linear maps. There are fewer key and value heads than query heads. This is called
# *grouped-query attention*; it makes the KV cache smaller.
#
# The file stores three matrices; the decoder stacks them into one, `qkv`, and reads the input
# once instead of three times. Stacking rows of a matrix stacks columns of the result, so we
# concatenate ours to compare.

# %%
q = x @ layer0["self_attn.q_proj.weight"].T
k = x @ layer0["self_attn.k_proj.weight"].T
v = x @ layer0["self_attn.v_proj.weight"].T
expect("linear", torch.cat([q, k, v], dim=-1), "q, k and v, side by side")

q = q.view(num_tokens, num_heads, head_dim)
k = k.view(num_tokens, num_kv_heads, head_dim)
v = v.view(num_tokens, num_kv_heads, head_dim)
print("q", list(q.shape), " k", list(k.shape), " v", list(v.shape), " = [token, head, component]")

# %% [markdown]
# ## 1.7 Rotary position embedding
#
# So far no number depends on the position of its token. RoPE makes pairs of the components of a head and
# rotates each pair by an angle proportional to the token's position. Pair $i$ turns by
# $\theta^{-2i/d}$ radians per position, with $d$ = `head_dim`. The first pairs turn quickly, the
# last pairs very slowly.
#
# In Llama's layout component $i$ is paired with component $i + d/2$, so a head is split into two
# halves $a$ and $b$:
#
# $$a' = a\cos\alpha - b\sin\alpha \qquad b' = b\cos\alpha + a\sin\alpha$$
#
# In the engine: `apply_rope` in `minillm/ops/reference.py`, the angles in `minillm/model/rope.py`.

# %%
pair = torch.arange(head_dim // 2)
radians_per_position = config["rope_theta"] ** (-2.0 * pair / head_dim)
angle = torch.arange(num_tokens)[:, None] * radians_per_position  # [token, pair]
cos, sin = angle.cos()[:, None], angle.sin()[:, None]  # [token, 1, pair]: the same for all heads


def rotate(x):
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


raw_q = q
q, k = rotate(q), rotate(k)
expect("rope_and_cache", q, "rotated q")

# %% [markdown]
# The decoder has also written the rotated `k`, and `v`, into its *KV cache*: every later token needs them
# again. The cache is made of blocks of 16 slots; we gave it the blocks 0, 1, 2, 3,
# so our tokens lie in order from slot 0. (Notebook 2 shows other orders.)

# %%
agree(k, cache.k[0].flatten(0, 1)[:num_tokens], "k in the cache of layer 0")
agree(v, cache.v[0].flatten(0, 1)[:num_tokens], "v in the cache of layer 0")

# %% [markdown]
# Why rotate? The dot product of two rotated vectors depends only on the *difference* of their
# positions. Take any query and key, and put them three positions apart, at different places of the text:


# %%
def at(x, position):
    a, b = x.chunk(2)
    c, s = (position * radians_per_position).cos(), (position * radians_per_position).sin()
    return torch.cat([a * c - b * s, b * c + a * s])


any_q, any_k = q[5, 0], k[2, 0]
scores_3_apart = torch.stack([at(any_q, p + 3) @ at(any_k, p) for p in (0, 1, 10, 100, 1000)])
print("3 apart:", [f"{s:.3f}" for s in scores_3_apart.tolist()])
print("4 apart:", f"{at(any_q, 4) @ at(any_k, 0):.3f}")
assert torch.allclose(scores_3_apart, scores_3_apart[0], atol=1e-3 * any_q.norm() * any_k.norm())

# %% [markdown]
# ## 1.8 Attention: scores, mask, softmax, values
#
# Query head `h` uses key/value head `h // group`, where `group` is the number of query heads that
# share one. We repeat the keys and values so that each query head sees its own; the engine indexes
# instead of copying.

# %%
group = num_heads // num_kv_heads
k_shared = k.repeat_interleave(group, dim=1)  # [token, num_heads, head_dim]
v_shared = v.repeat_interleave(group, dim=1)
print("kv head of query head 0, 1, ...:", [h // group for h in range(num_heads)])

scores = torch.einsum("qhd,khd->hqk", q, k_shared) / head_dim**0.5  # [head, query, key]
print("scores", list(scores.shape))

# %% [markdown]
# A token may see itself and earlier tokens, but no later ones: in training the model must predict the next
# token. Masked scores become $-\infty$, so their weight is exactly 0. Softmax turns each row into weights
# that sum to 1.

# %%
future = torch.arange(num_tokens)[None, :] > torch.arange(num_tokens)[:, None]  # [query, key]
attention = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
assert torch.allclose(attention.sum(-1), torch.ones(num_heads, num_tokens))
assert attention[:, future].max() == 0

mixed = torch.einsum("hqk,khd->qhd", attention, v_shared)  # weighted means of value rows
expect("paged_attention", mixed, "attention output")

# %% [markdown]
# In the engine: `grouped_query_attention` (the same arithmetic) and `attend_pages` (which first
# collects the keys from the blocks of the cache), both in `minillm/ops/reference.py`.
#
# The heads are concatenated again, one more matrix mixes them, and the result is **added** to the
# residual stream. The decoder does this addition together with the next norm, because both
# read the same numbers: `add_rms_norm` returns the norm and the sum.

# %%
attended = mixed.flatten(1) @ layer0["self_attn.o_proj.weight"].T
expect("linear", attended, "output projection")

residual = residual + attended
x = rms_norm(residual, layer0["post_attention_layernorm.weight"])
expect("add_rms_norm", (x, residual), "after attention")
# %% [markdown]
# ## 1.9 SwiGLU
#
# Attention moves information between tokens. The MLP works on each token alone. Two maps go up to
# `intermediate_size`, and one map goes back down. The first one goes through
# $\mathrm{silu}(z) = z \cdot \mathrm{sigmoid}(z)$ and is then multiplied with the second: it *gates* it.

# %%
gate = x @ layer0["mlp.gate_proj.weight"].T
up = x @ layer0["mlp.up_proj.weight"].T
expect("linear", torch.cat([gate, up], dim=-1), "gate and up, side by side")

activated = gate * torch.sigmoid(gate) * up
expect("act_and_mul", activated, "silu(gate) * up")

down = activated @ layer0["mlp.down_proj.weight"].T
expect("linear", down, "down projection")

residual = residual + down
x = rms_norm(residual, weights["model.layers.1.input_layernorm.weight"])
expect("add_rms_norm", (x, residual), "after the MLP")

# %% [markdown]
# That was one layer. Does the check find mistakes? Pair neighbouring components (0 with 1, 2 with 3, ...)
# instead of halves. This is a common mistake, because some models use that layout. The check must find it.


# %%
def rotate_neighbours(x):
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


try:
    agree(rotate_neighbours(raw_q), q, "rotated q")
except AssertionError as error:
    print("noticed:", error)
else:
    raise AssertionError("the check let a wrong rotation pass")

# %% [markdown]
# ## 1.10 All layers
#
# The other layers repeat the first with their own weights. The loop starts again from the
# embedding; every operation of every layer is compared, and the attention weights are kept for a
# picture.


# %%
def layer(i, x, residual, next_norm_weight):
    """One layer: x is the normed residual. Returns both for the next layer, and the attention weights."""
    w = {name.removeprefix(f"model.layers.{i}."): t for name, t in weights.items() if f".layers.{i}." in name}
    q, k, v = (x @ w[f"self_attn.{name}_proj.weight"].T for name in "qkv")
    expect("linear", torch.cat([q, k, v], dim=-1), f"layer {i}: qkv", quiet=True)
    q = rotate(q.view(num_tokens, num_heads, head_dim))
    k = rotate(k.view(num_tokens, num_kv_heads, head_dim)).repeat_interleave(group, dim=1)
    v = v.view(num_tokens, num_kv_heads, head_dim).repeat_interleave(group, dim=1)
    expect("rope_and_cache", q, f"layer {i}: rope", quiet=True)
    scores = torch.einsum("qhd,khd->hqk", q, k) / head_dim**0.5
    attention = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
    mixed = torch.einsum("hqk,khd->qhd", attention, v)
    expect("paged_attention", mixed, f"layer {i}: attention", quiet=True)
    attended = mixed.flatten(1) @ w["self_attn.o_proj.weight"].T
    expect("linear", attended, f"layer {i}: o_proj", quiet=True)

    residual = residual + attended
    x = rms_norm(residual, w["post_attention_layernorm.weight"])
    expect("add_rms_norm", (x, residual), f"layer {i}: after attention", quiet=True)

    gate, up = x @ w["mlp.gate_proj.weight"].T, x @ w["mlp.up_proj.weight"].T
    expect("linear", torch.cat([gate, up], dim=-1), f"layer {i}: gate and up", quiet=True)
    activated = gate * torch.sigmoid(gate) * up
    expect("act_and_mul", activated, f"layer {i}: silu", quiet=True)
    down = activated @ w["mlp.down_proj.weight"].T
    expect("linear", down, f"layer {i}: down", quiet=True)

    residual = residual + down
    x = rms_norm(residual, next_norm_weight)
    expect("add_rms_norm", (x, residual), f"layer {i}: after the MLP")
    return x, residual, attention


witness = iter(recorder.calls)
residual = embedding[ids]
expect("embedding", residual, "embedding")
norms = [weights[f"model.layers.{i}.input_layernorm.weight"] for i in range(num_layers)]
norms.append(weights["model.norm.weight"])  # after the last layer comes the final norm
x = rms_norm(residual, norms[0])
expect("rms_norm", x, "input norm")
attentions, residuals = [], []
for i in range(num_layers):
    x, residual, attention = layer(i, x, residual, norms[i + 1])
    attentions.append(attention)
    residuals.append(residual)

# %% [markdown]
# ## 1.11 What the heads look at
#
# A row of an attention matrix shows how one token (the *query*) divides its attention between the
# tokens before it (the *keys*). The upper triangle is the mask. Here are three heads, selected by their
# behaviour: the head that looks most at the previous token, the head that looks most at the first token, and
# the head with the most even attention. A head that puts its weight on the first token does not need that
# token. The weights of softmax must sum to 1, and models put them on position 0 if no other token is useful
# (an "attention sink").

# %%
maps = torch.stack(attentions).flatten(0, 1)  # [layer * head, query, key]
later = maps[:, 1:]  # row 0 has one key only
looks_back = later.diagonal(dim1=1, dim2=2).mean(dim=1)
looks_first = later[:, :, 0].mean(dim=1)
spread = -(later * later.clamp_min(1e-9).log()).sum(dim=-1).mean(dim=1)  # entropy
picked = {
    "previous token": looks_back.argmax().item(),
    "first token": looks_first.argmax().item(),
    "most even": spread.argmax().item(),
}

fig, axes = plt.subplots(1, 3, figsize=(11, 4.6), sharey=True, layout="constrained")
for ax, (title, which) in zip(axes, picked.items(), strict=True):
    shown = maps[which].masked_fill(future, float("nan"))
    image = ax.imshow(shown, cmap="cividis", vmin=0, vmax=1)
    ax.set_title(f"{title}: layer {which // num_heads}, head {which % num_heads}", fontsize=11)
    ax.set_xticks(range(num_tokens), labels, rotation=90, fontsize=9)
    ax.set_yticks(range(num_tokens), labels, fontsize=9)
    ax.set_xlabel("key (looked at)")
axes[0].set_ylabel("query (looking)")
fig.colorbar(image, ax=axes, label="attention weight", shrink=0.8)
show(
    fig,
    "Three square maps of attention weights from 0 to 1, query down and key across: "
    f"{', '.join(picked)}. Above the diagonal they are empty. The first is bright just below the "
    "diagonal, the second in column 0, the third spreads over all earlier keys.",
)

# %% [markdown]
# ## 1.12 Scores for the next token
#
# After the final norm, the dot product of each row with every row of the embedding gives one *logit* per
# token of the vocabulary. Row `i` scores the tokens that may follow token `i`, so only the last row matters
# now. (During training all rows are used.)

# %%
all_logits = x @ embedding.T
expect("linear", all_logits, "logits")
assert next(witness, None) is None, "the decoder did something we have not computed"
logits = all_logits[-1]
probabilities = logits.softmax(dim=-1)

print(f"\n{text} ...")
top = probabilities.topk(8)
for p, i in zip(top.values.tolist(), top.indices.tolist(), strict=True):
    print(f"{p:8.3f}  {tokenizer.id_to_token(i).replace('Ġ', '␣')}")

# %% [markdown]
# That is the whole model: every call the decoder made has been reproduced.
#
# ## 1.13 From scores to a token
#
# *Greedy* decoding takes the largest logit. To sample instead, minillm applies, in this order:
#
# 1. **temperature** $T$: logits are divided by $T$. Below 1, likely tokens get likelier; above 1, unlikely
#    ones.
# 2. **top-p**: keep the smallest number of most likely tokens whose probabilities sum to at least $p$.
# 3. **a draw** from the tokens that are left.
#
# (The full order, with penalties, top-k and min-p, is in `minillm/ops/sampling.py`.)

# %%
params = SamplingParams(temperature=1.3, top_p=0.95, seed=7, max_tokens=1)  # hot, so that there is a choice


def filtered(logits, params):
    scaled = (logits - logits.max()) / params.temperature
    ordered, order = scaled.sort(descending=True, stable=True)
    probs = ordered.double().softmax(dim=-1)
    reached_before = probs.cumsum(dim=-1) - probs  # the sum over the likelier tokens
    ordered[reached_before >= params.top_p] = float("-inf")
    return torch.empty_like(scaled).index_copy(0, order, ordered)


kept = filtered(logits, params)
theirs = filter_logits(model.decoder.logits(hidden)[-1], params)
assert torch.equal(kept.isfinite(), theirs.isfinite())
agree(kept[kept.isfinite()], theirs[theirs.isfinite()], "logits that survive")
print(f"{kept.isfinite().sum()} of {len(kept)} tokens survive")

# %% [markdown]
# The draw uses a fact about the Gumbel distribution: add independent noise $g_i = -\ln(-\ln u_i)$,
# with $u_i$ uniform in $(0, 1)$, to the logits, and the **argmax** is a sample from their softmax.
#
# Where does $u_i$ come from? It does not come from a generator with hidden state. It is a *hash* of the
# request's seed, the sample's index, the position in the output and the token id. So a request draws the same
# tokens in every batch. Here is that hash, in plain Python integers.

# %%
MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(x):  # SplitMix64: every input bit changes about half of the output bits
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def key_of(seed, sample_index, position):
    key = 0
    for field in (seed, sample_index, position, 0):
        key = mix((key + GOLDEN + field) & MASK)
    return key


def uniform(key, token_id):
    bits = mix((key + (token_id + 1) * GOLDEN) & MASK) >> 12  # 52 bits and the half fit in a float64
    return (bits + 0.5) / 2**52  # never 0, never 1


key = key_of(params.seed, 0, 0)
assert key == noise_key(params.seed, 0, 0)
u = torch.tensor([uniform(key, i) for i in range(len(logits))], dtype=torch.float64)
assert torch.equal(u, uniforms([key], len(logits))[0])
noise = -torch.log(-torch.log(u))
assert torch.allclose(noise, gumbel_noise([key], len(logits))[0])

token = int((kept.double() + noise).argmax())
print(f"key {key:#018x}  ->  token {token}: {tokenizer.decode([token])!r}")

# %% [markdown]
# Now the engine, called in the ordinary way with the same seed:

# %%
llm = LLM(dtype="float32", device="cpu", backend="reference", kv_memory="16MiB")
answer = llm.generate(text, params)[0]
assert answer.prompt_token_ids == ids.tolist()
assert answer.token_ids == [token]
print(f"by hand {tokenizer.decode([token])!r}, by the engine {answer.text!r}")

# %% [markdown]
# Does the noise really give samples of the softmax? Draw 2,000 times, with 2,000 seeds, and count. Top-p has
# dropped the tokens without a blue bar.

# %%
draws = 2000
survivors = kept.isfinite().nonzero().flatten()
counts = torch.zeros(len(kept))
for seed in range(draws):
    g = gumbel_noise([key_of(seed, 0, 0)], len(kept))[0]
    counts[(kept + g).argmax()] += 1
frequency, probability = counts / draws, kept.softmax(dim=-1)
assert counts[survivors].sum() == draws, "a token was drawn that top-p had dropped"

shown = probabilities.topk(12).indices
fig, ax = plt.subplots(figsize=(8.5, 3.6), layout="constrained")
ax.bar(range(len(shown)), probabilities[shown], width=0.7, color=GREY, label="softmax of the logits")
ax.bar(range(len(shown)), probability[shown], width=0.4, color=BLUE, label="after temperature and top-p")
error = (probability[shown] * (1 - probability[shown]) / draws).sqrt() * 2
label = f"frequency in {draws:,} draws (± 2 standard errors)"
ax.errorbar(range(len(shown)), frequency[shown], error, fmt="o", color=ORANGE, capsize=3, label=label)
ax.set_xticks(
    range(len(shown)), [tokenizer.id_to_token(int(i)).replace("Ġ", "␣") for i in shown], rotation=45
)
ax.set_ylabel("probability")
ax.set_xlabel("next token")
ax.legend(frameon=False)
show(
    fig,
    "Bars of the 12 most probable next tokens, highest first: wide grey bars for softmax, narrow blue "
    "bars after temperature and top-p. Tokens without a blue bar are never drawn; on the others the "
    "points of the frequency lie on the top of the blue bars.",
)

# %% [markdown]
# ## 1.14 A sentence
#
# Append the token, compute everything again, and draw again with the noise of the next position. The result
# is text. `llm.logits` is the forward pass that you have just written. It stores nothing between steps, so
# step 20 repeats the work of the 19 steps before it. Notebook 2 shows how to avoid this.

# %%
params = SamplingParams(temperature=0.8, top_p=0.9, seed=7, max_tokens=20, ignore_eos=True)
sequence = ids.tolist()
for position in range(params.max_tokens):
    kept = filtered(llm.logits(sequence)[-1], params)
    noise = gumbel_noise([key_of(params.seed, 0, position)], len(kept))[0]
    sequence.append(int((kept + noise).argmax()))
assert sequence[num_tokens:] == llm.generate(text, params)[0].token_ids
print(tokenizer.decode(sequence))

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
# **1 (think).** Remove the mask and change nothing else. Layer 0's attention output for the *last* token
# stays the same, but the logits of the last token change. Why? What would go wrong in generation with a KV
# cache if early tokens could see later ones?
#
# **2 (think).** Which part of the model holds most of the parameters: embedding, attention or MLP?
# Compute it from the shapes in 1.1, then for a model with `hidden_size` 4096, `intermediate_size`
# 11008, 32 layers and a vocabulary of 32,000. Which part of a small model takes most time, then?
#
# **3 (code).** A rotation in the plane is a multiplication of complex numbers. Write RoPE that way:
# no `sin`, no `cos`, one multiplication by `torch.polar(ones, angle)`.


# %%
def rope_complex(x, angle):
    """x [token, head, head_dim], angle [token, head_dim / 2] -> rotated x, halves paired."""
    raise NotImplementedError


# %%
def check_rope():
    sample = torch.randn(num_tokens, num_heads, head_dim, generator=torch.Generator().manual_seed(0))
    agree(rope_complex(sample, angle), rotate(sample), "rope_complex", quiet=True)


attempt(check_rope)

# %% [markdown]
# **4 (code).** The *logit lens*: apply the final norm and the tied head to the residual stream after each
# layer, as if that layer were the last. After which layer does the model's final choice first have the
# largest logit? (`residuals[i]` is the stream after layer `i`.)


# %%
def logit_lens(residuals):
    """The most likely next token id after each layer: a list of ints."""
    raise NotImplementedError


# %%
def check_lens():
    seen = logit_lens(residuals)
    assert len(seen) == num_layers, f"{len(seen)} answers for {num_layers} layers"
    assert seen[-1] == int(logits.argmax()), "after the last layer it must be the model's own choice"
    normed = rms_norm(residuals[2], weights["model.norm.weight"])
    assert seen[2] == int((normed[-1] @ embedding.T).argmax()), "layer 2 differs: is the norm applied?"


attempt(check_lens)

# %% [markdown]
# **5 (code).** The main idea of notebook 2. Given the rotated keys and the values of all tokens of one
# layer, compute attention for the **last** token only: its query is `q_last`
# `[num_heads, head_dim]`. Why is no mask needed?


# %%
def attend_last(q_last, k, v):
    """q_last [num_heads, head_dim], k and v [token, num_kv_heads, head_dim] -> [num_heads, head_dim]."""
    raise NotImplementedError


# %%
def check_last():
    keys, values = (t[0].flatten(0, 1)[:num_tokens] for t in (cache.k, cache.v))
    q_last, expected = recorder.calls[3][1][-1], recorder.calls[4][1][-1]
    agree(attend_last(q_last, keys, values), expected, "attend_last", quiet=True)


attempt(check_last)

# %% [markdown]
# ## What we left out
#
# * **Variants**: biases, norms on q and k (Qwen3), sliding windows (Mistral), stretched RoPE (Llama 3,
#   YaRN). `docs/families.md` lists which family has what; notebook 1b computes
#   two other blocks by hand.
# * **Lower precision**: in bfloat16 two correct implementations agree to 2 to 3 digits, not 6.
# * **Speed**: every matrix was read for every token, and everything was recomputed for each.
# * **Training**: how the numbers in the file were found.
#
# **Next.** Notebook 2, *prefill and decode*. To write parts of this yourself, inside the running
# engine: `minillm labs start 1` (sampling and streaming text) and `minillm labs start 2` (RoPE and
# grouped-query attention).
