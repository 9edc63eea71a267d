# %% [markdown]
# # 6. Prefix caching: what a hit must prove, what it saves
#
# Many requests have the same beginning: one long story and many questions about it, one system prompt and
# many users, a conversation that grows. Without a cache, the same keys and values are computed again and
# again. A *prefix cache* finds the blocks that another request has already computed.
#
# Such a cache is dangerous. A wrong hit raises no error: the model then reads a wrong text, perhaps the
# text of another user.
#
# **Goals.** Afterwards you can
#
# * say what a block's keys and values depend on, and so what its cache key must contain;
# * produce a wrong hit with a bad key, and show that a good key is correct even with a constant hash
#   function;
# * predict which tokens of a request are found, and which are always computed;
# * measure what hits save: prefill tokens, time to the first token, memory;
# * read another user's prompt out of a cache that is shared, and say what closes this leak.
#
# **You need** notebook 2 (blocks), and from notebook 3 how to read events.
#
# **Read along** `minillm/memory/prefix_cache.py` (170 lines) and `minillm/engine/kv_manager.py`.
#
# Counts are the same on every machine, with one exception: in 6.4 digests are cut to a few bits, and keys
# contain the name of the machine's kernels. Times were measured in the last run, on some machine.

# %%
import contextlib
import io
import random
from statistics import median

import matplotlib.pyplot as plt
import torch
from IPython.display import display

from minillm import LLM, SamplingParams, TenantLimits
from minillm.memory.block_pool import BlockPool
from minillm.memory.block_table import BlockTable
from minillm.memory.prefix_cache import PrefixCache, Scope, encode, sha256
from minillm.worker.step import SequenceRows

torch.set_num_threads(1)
torch.set_grad_enabled(False)
plt.rcParams.update({"figure.dpi": 90, "font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#CCCCCC"  # safe for colour-blind readers


def show(fig, alt):
    """Display a picture with `alt`, a text for those who cannot see it."""
    display(fig, metadata={"image/png": {"alt": alt}})
    plt.close(fig)


SIZE = 16  # tokens in a block


def new_engine(**options):
    with contextlib.redirect_stderr(io.StringIO()):  # it says when it compiles, or cannot
        return LLM(device="cpu", dtype="float32", **{"kv_memory": "64MiB", "block_size": SIZE} | options)


llm = new_engine()
engine, tokenizer = llm.engine, llm.engine.model.tokenizer
backend = engine.model.decoder.ops.name
print(f"backend: {backend}, {engine.pool.num_blocks} blocks of {SIZE} tokens")


def greedy(tokens):
    return SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, logprobs=4)


# %% [markdown]
# ## 6.1 What a block depends on
#
# Take 16 tokens `y`, which are one block. Compute their keys three times: after the 16 tokens `x`, after 16
# other tokens `z`, and at the beginning. Then compare them, layer by layer.


# %%
def block_of(text):
    ids = tokenizer.encode(text)
    assert len(ids) >= SIZE, len(ids)
    return ids[:SIZE]


x = block_of("Lily was a little girl who had a red ball and a blue kite, and she liked to sing songs.")
z = block_of("Ben was an old farmer who had a big brown dog and a cart, and he liked to dig in mud.")
y = block_of("One sunny day, after breakfast, they went to the park and looked for the little house.")


def keys_of_last_block(ids):
    """Keys of every layer for the last 16 of `ids` [layer, token, kv head, head dim]."""
    table = BlockTable(engine.pool)
    table.grow(len(ids))
    engine.worker.runner.forward([SequenceRows(ids, 0, table.block_ids)])
    keys = torch.stack([k[table.block_ids[-1]] for k in engine.worker.runner.cache.k]).clone()
    table.release()
    return keys


after_x = keys_of_last_block(x + y)
far = {
    "behind another block": keys_of_last_block(z + y),
    "at another position": keys_of_last_block(y),
}
difference = {
    name: ((keys - after_x).flatten(1).norm(dim=1) / after_x.flatten(1).norm(dim=1)).tolist()
    for name, keys in far.items()
}
print("layer" + "".join(f"{i:7}" for i in range(len(after_x))))
for name, values in difference.items():
    print(f"{name:22}" + "".join(f"{v:7.2f}" for v in values))
assert difference["behind another block"][0] < 1e-5 < 0.01 < difference["behind another block"][1]
assert difference["at another position"][0] > 0.1

# %%
fig, ax = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
for shift, (name, values), colour in zip((-0.2, 0.2), difference.items(), (BLUE, ORANGE), strict=True):
    ax.bar([i + shift for i in range(len(values))], values, width=0.4, color=colour, label=name)
ax.set(xlabel="layer", ylabel="relative difference of the keys", ylim=(0, 1.3))
ax.set_title("The same 16 tokens, but ...", loc="left", fontsize=11)
ax.legend(frameon=False, ncols=2, loc="upper left")
show(
    fig,
    "Relative difference of the keys for each layer, two bars a layer. Behind another block it is 0 in "
    "the first layer and more than 0 in all later ones; at another position it is more than 0.1 in the "
    "first layer too.",
)

# %% [markdown]
# In layer 0 a key depends only on its own token and position, so it is the same after `z` as after `x`.
# From layer 1 on it also depends on the tokens before it. So **equal token ids are not enough**: a block
# may be used again only if all tokens before it are equal too. Then its position is equal as well.
#
# The numbers depend on more than the tokens: on the weights, their precision, the kernels and the rope
# settings (together: the *envelope*), and, in models with pictures, on the picture. Finally, sharing must
# be *allowed*: a block belongs to one user or customer (the *tenant*).
#
# ## 6.2 The key is a chain
#
# So the key of a block contains the scope (envelope, tenant, conditioning), its token ids, and **the key of
# its parent**. That key contains the key of its own parent, and so on to the beginning. Equal keys mean
# equal prefixes. Hashing keeps the key short: each digest is an input of the next digest.

# %%
cache = PrefixCache(BlockPool(64, SIZE))
scope = Scope("model and kernels", tenant="ann")


def digests(ids, scope=scope):
    """The chain of digests of the full blocks of `ids`."""
    chain = []
    for start in range(0, len(ids) - SIZE + 1, SIZE):
        chain.append(cache.digest(scope, chain[-1] if chain else None, ids[start : start + SIZE]))
    return chain


for name, ids in {"x y": x + y, "x z": x + z, "z y": z + y, "x y z": x + y + z}.items():
    print(f"{name:6}", " -> ".join(digest.hex()[:8] for digest in digests(ids)))
assert digests(x + y)[0] == digests(x + z)[0] and digests(x + y + z)[:2] == digests(x + y)
assert digests(x + y)[1] != digests(z + y)[1], "the same block y behind another one has another digest"

# %% [markdown]
# Sequences with the same beginning have the same digests up to the first different block, and different
# digests after it. So the blocks form a tree.
#
# What happens without the parent? Put `x y` and `z w` into a cache that finds blocks only by their token
# ids. Then request `z y`. Both of its blocks are found, but the second was computed after `x`.


# %%
class TokensOnly(PrefixCache):
    """WRONG: ignores the tokens before a block."""

    def digest(self, scope, parent, token_ids):
        return self._hash(encode(token_ids))

    def _find(self, digest, scope, parent, token_ids):
        return next(iter(self._index.get(digest, ())), None)


def with_cache(make):
    """An engine whose prefix cache is `make(pool)`, or none. NaN in its memory: a stray read would show."""
    other = new_engine(parts={"prefix_cache": make}) if make else new_engine(prefix_caching=False)
    for tensor in (*other.engine.worker.runner.cache.k, *other.engine.worker.runner.cache.v):
        tensor.fill_(float("nan"))
    return other


w = block_of("It was a cold and rainy night, and the wind blew the leaves over the old stone wall.")
tail = tokenizer.encode(" Then")
prompts = [x + y + tail, z + w + tail, z + y + tail]
answers = {}
for name, make in (("right", PrefixCache), ("tokens only", TokensOnly)):
    other = with_cache(make)
    for prompt in prompts:
        answers[name] = other.generate([prompt], greedy(12))[0]  # the last one stays
    print(f"{name:12} found {answers[name].metrics.cached_tokens:2} tokens: {answers[name].text!r}")
right, wrong = (answers[name].logprobs[0] for name in ("right", "tokens only"))
gap = max(abs(right[t] - wrong[t]) for t in right.keys() & wrong.keys())
print(f"log-probabilities of the first token are off by {gap:.2f}")
assert [answer.metrics.cached_tokens for answer in answers.values()] == [SIZE, 2 * SIZE]
assert gap > 0.01

# %% [markdown]
# There is no error, no NaN, and the text is fluent. But it was computed from a prefix that was never sent.
#
# ## 6.3 A value moved to another field
#
# A key has several fields, but a hash function takes one string of bytes. So the encoding of the fields is
# important: different fields must always give different bytes. Users choose some of these values. So it is
# wrong to assume that a strange value never occurs.


# %%
def glued(*fields):
    return "".join(map(str, fields)).encode()


def separated(*fields):
    return "|".join(map(str, fields)).encode()


pairs = {  # (tenant, conditioning, token ids), twice
    "a letter moves over": (("ann", "b", [1]), ("an", "nb", [1])),
    "a value moves over": (("", "ann", [1]), ("ann", "", [1])),
    "a separator as value": (("a|", "b", [1]), ("a", "|b", [1])),
    "no tenant, or one named None": ((None, "b", [1]), ("None", "b", [1])),
    "a list, or text that looks like it": (("a", "b", [1]), ("a", "b", "[1]")),
}
print(f"{'':36}{'glued':>10}{'separated':>10}{'encode':>10}")
for name, (one, other) in pairs.items():
    verdicts = ["COLLIDE" if make(*one) == make(*other) else "-" for make in (glued, separated, encode)]
    print(f"{name:36}" + "".join(f"{v:>10}" for v in verdicts))
    assert "COLLIDE" in verdicts[:2] and verdicts[2] == "-"

print("\nencode('a', None, [1]) =", encode("a", None, [1]))

# %% [markdown]
# `encode` writes for each field its type, its length, then its value. Such bytes can be decoded again, so two
# different keys never have the same bytes.
#
# Now we test the whole cache. One block is published. Only a request that is equal in *every* field may
# find it:

# %%
base = dict(envelope="m", tenant="ann", conditioning="", before=x, tokens=y)
variants = {
    "all equal": {},
    "other model or kernel": {"envelope": "n"},
    "other tenant": {"tenant": "ben"},
    "no tenant": {"tenant": None},
    "other conditioning": {"conditioning": "picture 7"},
    "tenant moved to conditioning": {"tenant": "", "conditioning": "ann"},
    "tenant moved to envelope": {"tenant": None, "envelope": "mann"},
    "one token differs": {"tokens": [*y[:-1], y[-1] + 1]},
    "one token before it differs": {"before": [x[0] + 1, *x[1:]]},
    "nothing before it": {"before": []},
}


def lookup(cache, envelope, tenant, conditioning, before, tokens):
    """Scope and (digest, token ids) of each block: the arguments of `match` and `publish`."""
    scope, chain, parent = Scope(envelope, tenant, conditioning), [], None
    for ids in filter(None, (before, tokens)):
        parent = cache.digest(scope, parent, ids)
        chain.append((parent, ids))
    return scope, chain


def partition(cache, pool):
    """Publish `base`, then search every variant: was its last block found?"""
    scope, chain = lookup(cache, **base)
    parent = None
    for digest, ids in chain:
        parent = cache.publish(scope, parent, ids, digest, pool.allocate(1)[0])
    found = {}
    for name, change in variants.items():
        scope, chain = lookup(cache, **base | change)
        found[name] = len(cache.match(scope, chain)) == len(chain)
    return found


pool = BlockPool(8, SIZE)
found = partition(PrefixCache(pool), pool)
for name, hit in found.items():
    print(f"{name:30} {'hit' if hit else '-'}")
assert [name for name, hit in found.items() if hit] == ["all equal"]

# %% [markdown]
# ## 6.4 What if the hash function fails?
#
# Two different keys could have the same digest. No example is known for SHA-256. But the cache does not
# rely on this: the digest only finds *candidates*, and then every field is compared, the parent by
# identity. So we use the worst possible hash function: it always returns the same digest.

# %%
pool = BlockPool(8, SIZE)
bad = PrefixCache(pool, hash_function=lambda data: b"always the same")
assert partition(bad, pool) == found
print(f"the same hits and misses; {bad.false_matches} candidates had the right digest and another key")

# %% [markdown]
# Now we test running engines, with five caches. There are sixteen prompts in pairs; the two prompts of a pair
# share only their first block. The last cache trusts a digest of only four bits.


# %%
class Believing(PrefixCache):
    """WRONG: a digest that is known is a hit, whatever else differs."""

    def _find(self, digest, scope, parent, token_ids):
        return next(iter(self._index.get(digest, ())), None)


def four_bits(data):
    return bytes([sha256(data)[0] % 16])


caches = {
    "none": None,
    "SHA-256, compared": PrefixCache,
    "four bits, compared": lambda pool: PrefixCache(pool, four_bits),
    "constant, compared": lambda pool: PrefixCache(pool, lambda data: b""),
    "four bits, believed": lambda pool: Believing(pool, four_bits),
}
generator = torch.Generator().manual_seed(5)
words = torch.randint(100, 4000, (16, 40), generator=generator).tolist()
prompts = [words[i - i % 2][:SIZE] + words[i][SIZE:] for i in range(16)]
texts, lines = {}, []
print("cache                 tokens found   candidates rejected   wrong answers")
for name, make in caches.items():
    other = with_cache(make)
    outputs = [other.generate([prompt], greedy(3))[0] for prompt in prompts]
    texts[name] = [output.token_ids for output in outputs]
    hits = sum(output.metrics.cached_tokens for output in outputs)
    rejected = other.engine.memory.cache.false_matches if other.engine.memory.cache else 0
    errors = sum(a != b for a, b in zip(texts["none"], texts[name], strict=True))
    print(f"{name:22} {hits:11} {rejected:21} {errors:15}")
    if "compared" in name:
        assert hits == 8 * SIZE and errors == 0
        assert (rejected > 0) == ("SHA" not in name)
assert hits > 8 * SIZE and errors > 0, "believing a short digest gives wrong answers"

# %% [markdown]
# A bad hash function costs time, because more candidates are compared. But the answers stay correct. An
# engine that only compares digests depends on the hash function: it is wrong as soon as a user finds two
# inputs with the same digest. The comparison is cheap: it costs less than one layer of one token.
#
# ## 6.5 Which tokens are found
#
# There are three rules. All are visible in `cached_tokens`:
#
# * only **full blocks** are found;
# * **at least one token is computed**, because the model must compute the logits of the next token;
# * a block can be found only **after the step that wrote it**, never in the same step.

# %%
print("prompt of   found when it is sent again")
for length in (15, 16, 17, 31, 32, 33, 48, 49):
    prompt, tenant = (words[0] + words[3])[:length], f"length {length}"
    twice = [llm.generate([prompt], greedy(1), tenant=tenant)[0] for _ in range(2)]
    first, second = (output.metrics.cached_tokens for output in twice)
    assert first == 0 and second == (length - 1) // SIZE * SIZE
    assert twice[0].token_ids == twice[1].token_ids
    print(f"{length:9} {second:8}")

# %%
together = llm.generate([words[1]] * 3, greedy(1), tenant="together")
later = llm.generate([words[1]], greedy(1), tenant="together")[0]
print("three equal prompts in one step:", [output.metrics.cached_tokens for output in together])
print("once more, a step later:        ", [later.metrics.cached_tokens])
assert [output.metrics.cached_tokens for output in together] == [0, 0, 0]

for tenant in (None, None, "ann", "ann", "ben"):
    output = llm.generate([words[2]], greedy(1), tenant=tenant)[0]
    print(f"tenant {tenant!s:5} found {output.metrics.cached_tokens}")

# %% [markdown]
# A hit proves that the text is the same. Why are tenants needed, then? Because a hit is *fast*, and time
# can be measured. Suppose that Ben's request is fast because Ann has sent the same text. Then Ben can try
# texts until one is fast, and so learn Ann's text. Separate tenants share no blocks, so there is nothing to
# measure. Section 6.8 makes this attack.
#
# ## 6.6 What it saves: one story, many questions
#
# The model that ships writes the story. (It only tells stories and does not answer questions, but the
# *work* is the same.) Every prompt is the whole story and one short question.

# %%
opening = tokenizer.encode("Once upon a time there was a little mouse who wanted to see the sea.")
telling = SamplingParams(temperature=0.7, top_p=0.9, seed=3, max_tokens=240 - len(opening), ignore_eos=True)
story = opening + llm.generate([opening], telling)[0].token_ids
print(tokenizer.decode(story)[:400], "...")
ASKED = """Who was the little mouse? Where did the mouse want to go? What did the mouse see first?
Who helped the mouse? Why was the mouse sad? What did they eat? Was it a sunny day?
Who was afraid? Was the mouse happy? What will they do tomorrow? How does the story end?"""
questions = [tokenizer.encode(f" {question.strip()}?") for question in ASKED.split("?") if question.strip()]
prompts = [story + question for question in questions]
print(f"\n{len(prompts)} prompts of {min(map(len, prompts))} to {max(map(len, prompts))} tokens")


# %%
def run(caching, batches):
    """Serve lists of prompts one after the other: outputs, prefill tokens computed, most blocks in use."""
    llm = new_engine(prefix_caching=caching)
    llm.generate([words[5]], greedy(2), tenant="warm-up")
    outputs = []
    with llm.engine.events.record() as trace:
        for batch in batches:
            outputs += llm.generate(batch, greedy(4))
    computed = sum(event["end"] - event["start"] for event in trace if event.kind == "prefill_chunk")
    return outputs, computed, max(event["used"] for event in trace if event.kind == "step")


one_by_one = [[prompt] for prompt in prompts]
runs = {
    "one by one, no cache": run(False, one_by_one),
    "one by one, cache": run(True, one_by_one),
    "at once, no cache": run(False, [prompts]),
    "at once, cold cache": run(True, [prompts]),
    "one, then the rest at once": run(True, [prompts[:1], prompts[1:]]),
}
print("                             prefill   found in   most blocks   TTFT, median")
print("                             tokens    the cache   in use        and worst (ms)")
for name, (outputs, computed, used) in runs.items():
    hits, ttft = sum(o.metrics.cached_tokens for o in outputs), [1e3 * o.metrics.ttft for o in outputs]
    assert computed + hits == sum(map(len, prompts))
    print(f"{name:28} {computed:7,} {hits:10,} {used:13} {median(ttft):13.0f} {max(ttft):9.0f}")

computed = {name: row[1] for name, row in runs.items()}
assert computed["one by one, no cache"] > 5 * computed["one by one, cache"]
assert computed["one by one, cache"] == computed["one, then the rest at once"]
assert computed["at once, no cache"] > computed["at once, cold cache"] > computed["one by one, cache"]
assert runs["at once, no cache"][2] > 5 * runs["one, then the rest at once"][2]

tokens = {name: [output.token_ids for output in row[0]] for name, row in runs.items()}
assert all(found == tokens["one by one, no cache"] for found in tokens.values())
if backend == "native":  # not only the tokens: the log-probabilities are the same bits
    bits = {name: [output.logprobs for output in row[0]] for name, row in runs.items()}
    assert all(found == bits["one by one, no cache"] for found in bits.values())
print("\nall five gave the same answers")

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=[2, 3], layout="constrained")
total = sum(map(len, prompts))
for y, (_, computed_tokens, _) in enumerate(runs.values()):
    left.barh(y, computed_tokens, color=ORANGE, label="computed" if y == 0 else None)
    left.barh(y, total - computed_tokens, left=computed_tokens, color=GREY, label="found" if y == 0 else None)
left.set_yticks(range(len(runs)), runs)
left.invert_yaxis()
left.set(xlabel="prompt tokens")
left.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.3, -0.45), ncols=2)
for name, style, colour in (
    ("one by one, no cache", "o-", ORANGE),
    ("one by one, cache", "s-", BLUE),
):
    ttft = [1e3 * output.metrics.ttft for output in runs[name][0]]
    right.plot(range(1, len(ttft) + 1), ttft, style, color=colour, label=name)
right.set(xlabel="question", ylabel="time to the first token (ms)", ylim=(0, None))
right.legend(frameon=False)
right.grid(color="#EEEEEE")
show(
    fig,
    f"Left, {total:,} prompt tokens for each of five ways to ask: computed or found. Only the ways with "
    "a cache find tokens. Right, time to the first token of each question: without a cache it is about "
    "the same for each question, with one it falls after the first.",
)

# %% [markdown]
# * The **first** question always computes the whole story. With the cache all other questions should start
#   several times sooner. They compute only the question, and the part of the story after its last full block.
# * **All at once with an empty cache** finds less than possible: requests that start in the same step cannot
#   share blocks that are not written yet. It helps to send one request first.
# * **Memory.** A shared block exists once, for any number of requests. So hits also let more requests run
#   at the same time.
#
# ## 6.7 When memory is short
#
# A block that no running request uses can be found until its memory is needed. The least recently used
# block is evicted first. The end of a chain is evicted before its beginning, because a block without its
# parent could never be found. So the *order* of requests decides how many blocks they find. We use four
# stories, three questions each, and pools of three sizes: first story by story, then in turns.

# %%
stories = {
    name: tokenizer.encode(f"{name} was walking in the wood one day.") + story[i * 30 : i * 30 + 140]
    for i, name in enumerate(("Anna", "Boris", "Clara", "David"))
}
by_story = [(name, i) for name in stories for i in range(3)]
in_turn = [(name, i) for i in range(3) for name in stories]
block_bytes = SIZE * engine.model.config.kv_bytes_per_token(4)


def share_found(order, num_blocks):
    """Share of the prompt tokens found in the cache, and blocks evicted."""
    llm = new_engine(kv_memory=num_blocks * block_bytes)
    with llm.engine.events.record() as trace:
        outputs = [llm.generate([stories[name] + questions[i]], greedy(1))[0] for name, i in order]
    found = sum(output.metrics.cached_tokens for output in outputs)
    evicted = sum(event["blocks"] for event in trace if event.kind == "evict")
    return found / sum(len(output.prompt_token_ids) for output in outputs), evicted


sizes = [14, 28, 44]
shares = {
    label: [share_found(order, size) for size in sizes]
    for label, order in (("story by story", by_story), ("in turn", in_turn))
}
print("blocks in the pool    " + "".join(f"{size:12}" for size in sizes))
for label, values in shares.items():
    print(f"{label:15} found " + "".join(f"{share:12.0%}" for share, _ in values))
    print(f"{'':15} evicted" + "".join(f"{evicted:11}" for _, evicted in values))

fig, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
for (label, values), style, colour in zip(shares.items(), ("s-", "o-"), (BLUE, ORANGE), strict=True):
    ax.plot(sizes, [100 * share for share, _ in values], style, color=colour, label=label)
needed = sum(len(ids) // SIZE for ids in stories.values())
ax.axvline(needed, color=GREY, linestyle="--")
ax.text(needed + 0.5, 3, "all stories fit", color="#666666")
ax.set(xlabel="blocks in the pool", ylabel="prompt tokens found (%)", ylim=(0, 100))
ax.set_xticks(sizes)
ax.legend(frameon=False, loc="center left")
ax.grid(color="#EEEEEE")
show(
    fig,
    "Prompt tokens found, in percent, over pools of 14, 28 and 44 blocks. Story by story, more than "
    "half are found in the smallest pool; in turn, nothing is found in pools of 14 and 28. A dashed "
    "line marks the size at which all stories fit; there both orders find the same.",
)
assert shares["story by story"][0][0] > 0.5 > 0.1 > shares["in turn"][0][0]
assert shares["in turn"][1][0] == 0 and shares["in turn"][-1] == shares["story by story"][-1]

# %% [markdown]
# If the questions come in turns and not all stories fit, each story is evicted just before it is needed
# again. So the cache evicts many blocks and finds few. This is the known worst case of "least recently
# used". The change is sudden: a pool with room for two of the four stories finds nothing at all.
#
# ## 6.8 What a hit tells a stranger
#
# In 6.5 we said that time can be measured. Now we attack. Ann sends prompts of 128 random tokens. Ben sends
# the same prompts, and others that nobody has sent. He knows only his own times to the first token.
#
# We do it twice. First both use the same tenant, so the key is the same for both. Then each has a tenant of
# his or her own.
#
# **Predict.** Draw the two histograms of Ben's times, for known and for new prompts, in both cases.


# %%
def times_of_ben(ben, count=40):
    """Ben's times to the first token (ms) for prompts that Ann has sent (True) and for new ones (False)."""
    llm, chance = new_engine(kv_memory="128MiB"), random.Random(3)
    times = {True: [], False: []}
    for i in range(2 * count):
        prompt, other = ([chance.randrange(100, 4000) for _ in range(128)] for _ in range(2))
        was_sent = i % 2 == 0
        llm.generate([prompt if was_sent else other], greedy(1), tenant="ann")
        output = llm.generate([prompt], greedy(1), tenant=ben)[0]
        times[was_sent].append(1e3 * output.metrics.ttft)
        assert output.metrics.cached_tokens == (112 if was_sent and ben == "ann" else 0)
    return times


def guesses_right(times):
    """Ben gets a known and a new prompt and says that the faster one is known: how often is he right?"""
    pairs = [(known, new) for known in times[True] for new in times[False]]
    return sum(known < new for known, new in pairs) / len(pairs)


readers = {"a tenant for both": times_of_ben("ann"), "a tenant for each": times_of_ben("ben")}
for name, times in readers.items():
    medians = f"median of known {median(times[True]):5.1f} ms, of new {median(times[False]):5.1f} ms"
    print(f"{name}: {medians}; Ben is right in {guesses_right(times):.0%} of all pairs")

# %%
fig, axes = plt.subplots(2, 1, figsize=(7.5, 4), sharex=True, layout="constrained")
most = 1.3 * max(median(times[False]) for times in readers.values())  # a few slow ones are left out
for ax, (name, times) in zip(axes, readers.items(), strict=True):
    for was_sent, colour, label in ((True, ORANGE, "Ann has sent it"), (False, BLUE, "new")):
        ax.hist(times[was_sent], bins=40, range=(0, most), color=colour, alpha=0.6, label=label)
    ax.set_title(name, loc="left", fontsize=11)
    ax.set(ylabel="prompts")
axes[0].legend(frameon=False, loc="upper center")
axes[1].set(xlabel="Ben's time to the first token (ms)")
show(
    fig,
    "Two histograms of Ben's times to the first token, one over the other. With one tenant for both, known "
    "prompts are much faster than new ones, and the two groups do not overlap. With a tenant for each, the "
    "two groups lie over each other.",
)

# %% [markdown]
# With one tenant there are two separate groups, and one request is enough to tell them apart. With separate
# tenants there is one group, and 50% is the result of guessing. (With forty prompts of each kind, chance
# alone often moves this share by six points, and sometimes by twelve.)
#
# ## 6.9 Guessing a secret
#
# Knowing *whether* a text was sent may seem harmless. But a hit has a *length*. So a secret can be guessed
# piece by piece. Ann's prompt is a sentence that Ben knows, and then eight digits that he does not know. Ben
# tries ten digits for the first place and looks which one has the longest hit, then he goes on with the
# second place. For a clear picture a block has one token, and Ben reads `cached_tokens`. (Many services
# show this number in their answer. If not, there is the time.)
#
# **Predict.** There are 100,000,000 possible secrets. How many requests does Ben need?

# %%
DIGITS = [tokenizer.encode(digit)[-1] for digit in "0123456789"]
assert len(set(DIGITS)) == 10
known_text = tokenizer.encode("Ann has a red box. The number of the box is ")
END = tokenizer.encode(".")[-1]


def attack(ben, seed, places=8):
    """Ben's guess, Ann's secret, and the number of requests that Ben sent."""
    chance = random.Random(seed)
    secret = [chance.randrange(10) for _ in range(places)]
    llm = new_engine(block_size=1, kv_memory="16MiB")
    llm.generate([known_text + [DIGITS[digit] for digit in secret] + [END]], greedy(1), tenant="ann")
    guess, requests = [], 0
    for _ in range(places):
        hits = []
        for digit in range(10):
            tried = known_text + [DIGITS[d] for d in (*guess, digit)] + [END]
            hits.append(llm.generate([tried], greedy(1), tenant=ben)[0].metrics.cached_tokens)
            requests += 1
        best = [digit for digit in range(10) if hits[digit] == max(hits)]
        guess.append(chance.choice(best))  # if all hits are equal, he can only guess
    return guess, secret, requests


found = {}
for name, ben in (("a tenant for both", "ann"), ("a tenant for each", "ben")):
    results = [attack(ben, seed) for seed in range(2)]
    guess, secret, requests = results[0]
    found[name] = sum(g == s for guess, secret, _ in results for g, s in zip(guess, secret, strict=True))
    print(f"{name}: secret {''.join(map(str, secret))}, guessed {''.join(map(str, guess))}; ", end="")
    print(f"{requests} requests; in two attacks {found[name]} of 16 digits")
assert found["a tenant for both"] == 16 and found["a tenant for each"] <= 8

# %% [markdown]
# Eighty requests instead of a hundred million. With blocks of 16 tokens it is harder, because Ben must guess
# a whole block at once. But many prompts are forms: all is known but one name or one number.
#
# What closes the leak is one field. The tenant is part of the scope, so it is part of every key
# (`Scope` in `minillm/memory/prefix_cache.py`). Ben cannot form a key of Ann's. There is nothing to configure
# and nothing to forget: without a tenant, all callers are one tenant, `None`.
#
# ## 6.10 What is public may be shared
#
# Separate tenants have a price. Sixteen tenants send the same system prompt, and each computes it again. But
# a system prompt is no secret. The owner of the engine can name it: `public_prefixes` are computed once, at
# the start, and every tenant finds them. A request cannot make anything public.

# %%
SYSTEM = story[:96]  # stands for a system prompt
asking = [SYSTEM + questions[i % len(questions)] for i in range(16)]
computed = {}
for name, options, tenants in (
    ("one tenant for all", {}, ["all"] * 16),
    ("a tenant for each", {}, [f"tenant {i}" for i in range(16)]),
    ("a tenant for each, public prefix", {"public_prefixes": [SYSTEM]}, [f"tenant {i}" for i in range(16)]),
):
    other = new_engine(**options)
    with other.engine.events.record() as trace:
        for prompt, tenant in zip(asking, tenants, strict=True):
            other.generate([prompt], greedy(1), tenant=tenant)
    computed[name] = sum(event["end"] - event["start"] for event in trace if event.kind == "prefill_chunk")
    print(f"{name:34} {computed[name]:5,} of {sum(map(len, asking)):,} prompt tokens computed")
one, each, public = computed.values()
assert each == sum(map(len, asking)) and public == each - 16 * 96 and public <= one

# %% [markdown]
# (The public prefix itself was computed at the start, before the count: 96 tokens, once.) So the tenants lose
# almost nothing, and what they send of their own stays private.
#
# ## 6.11 A flood
#
# Tenants share more than the cache: they share the memory and the steps. If Ben sends many requests, Ann
# waits. Her waiting tells her what Ben does, and his flood pushes her blocks out. `tenant_limits` reserves a
# part of the pool and of every step for Ann. We count the steps until the first token and the last token of
# her three requests.


# %%
def steps_of_ann(limits, flood):
    """For each of Ann's requests: the steps until its first token, and until its end."""
    options = {"max_num_batched_tokens": 64, "prefill_chunk": 32, "max_num_seqs": 8}
    engine = new_engine(tenant_limits=limits, **options).engine
    if flood:
        for i in range(24):
            engine.add_request(words[i % 16] + words[i % 7], greedy(16), tenant="ben")
    asked = [engine.add_request(words[i][: 20 + 10 * i], greedy(8), tenant="ann") for i in range(3)]
    first, last, step = {}, {}, 0
    while len(last) < len(asked):
        step += 1
        for output in engine.step():
            if output.request_id in asked:
                first.setdefault(output.request_id, step)
                if output.finished:
                    last[output.request_id] = step
    return [(first[request], last[request]) for request in asked]


reserved = {"ann": TenantLimits(guaranteed_blocks=32, guaranteed_tokens_per_step=32)}
waits = {}
for name, limits in (("no limits", None), ("reserved for Ann", reserved)):
    waits[name] = [steps_of_ann(limits, flood) for flood in (False, True)]
    print(f"{name:17} alone {waits[name][0]}, in Ben's flood {waits[name][1]}")
quiet, flooded = waits["reserved for Ann"]
assert quiet == flooded, "Ann sees nothing of the flood"
assert waits["no limits"][1][0][0] > 2 * waits["no limits"][0][0][0], "without limits she waits"

# %% [markdown]
# With a reservation, Ann's steps are the same numbers, whatever Ben does. The price is that nobody else uses
# her part while she is idle. And a step can still take longer in seconds: `docs/tenants.md` says what remains
# to be measured.
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
# **1 (think).** A service puts the date and time at the *beginning* of its system prompt of 2,000 tokens, and
# the user's question at the end. What does the cache save? What would you change?
#
# **2 (think).** A sequence frees its last block first. Suppose that it freed its first block first. Which
# blocks would the cache contain after the eviction of half of a long chain? Which of them could be found?
#
# **3 (code).** Write your own `encode`: fields are text, None, integers or lists of integers. Different
# fields must give different bytes.


# %%
def my_encode(*fields):
    """Bytes that are different for different fields."""
    raise NotImplementedError


# %%
def check_encode():
    values = ["", "a", "ab", "b", "|", "a|", ",", "'", "None", "1", "[1]", None, 1, 11, [1], [11], [1, 1], []]
    seen = {}
    for one in values:
        for other in values:
            for fields in ((one, other), (one, other, ""), (one, "", other)):
                data = my_encode(*fields)
                assert isinstance(data, bytes), f"bytes, not {type(data).__name__}"
                before = seen.setdefault(data, fields)
                assert repr(before) == repr(fields), f"{before} and {fields} give the same bytes"


attempt(check_encode)

# %% [markdown]
# **4 (code).** Predict the cache. Prompts are served one after the other. Each answer has one token, and
# there is memory for all. How many tokens of each prompt are found?


# %%
def predicted_hits(prompts, block_size):
    """`cached_tokens` of each prompt: a list of ints."""
    raise NotImplementedError


# %%
def check_hits():
    a, b, c = words[7], words[8], words[9]
    served = [a, a, a[:32], a[:33], a[:16] + b[16:], b, b[:20] + a[20:], c[:16], c[:16], c, a + b, a + b + c]
    mine = predicted_hits([list(ids) for ids in served], SIZE)
    fresh = new_engine()
    for number, ids in enumerate(served):
        found = fresh.generate([ids], greedy(1))[0].metrics.cached_tokens
        assert mine[number] == found, f"prompt {number}: {found} tokens found, not {mine[number]}"


attempt(check_hits)

# %% [markdown]
# **5 (code).** Several requests wait. Each is about one of several stories, and the pool has room for one
# story. In which order do the requests find the most tokens? (An engine may choose the order if no request
# waits too long. It knows token ids, not names.)


# %%
def best_order(prompts):
    """Indices of `prompts` (lists of token ids) in the order in which to serve them."""
    raise NotImplementedError


# %%
def check_order():
    waiting = [stories[name] + questions[i] for name, i in in_turn[:8]]
    mine = best_order([list(ids) for ids in waiting])
    assert sorted(mine) == list(range(len(waiting))), "each exactly once"
    small = new_engine(kv_memory=14 * block_bytes)
    outputs = [small.generate([waiting[i]], greedy(2))[0] for i in mine]
    found = [output.metrics.cached_tokens > 0 for output in outputs]
    assert sum(found) == 4, f"{sum(found)} of 8 requests find their story, it could be 4"


attempt(check_order)

# %% [markdown]
# ## What we left out
#
# * **Parts of a block.** A radix tree (SGLang) shares every equal token; blocks share only whole blocks.
# * **Disk, and other machines.** If blocks are kept longer than the process, their keys must stay valid
#   too. Our keys have a schema number and the digest of the weights for this use (`SCHEMA`,
#   `minillm/engine/envelope.py`).
# * **Sharing in the middle.** The same text *after* different beginnings has different keys and values (6.1).
#   Using them again is an approximation.
#
# **Next.** `minillm labs start 6`: write the cache yourself, inside the running engine.
