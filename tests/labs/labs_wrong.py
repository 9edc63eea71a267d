"""Wrong solutions of the labs, as edits of the right ones, and what the grader has to say of each.

`WRONG[lab]` is a table of slips; a slip changes one place of the finished file. Slips of different
tasks share a file, so that each file also shows that no task is blamed for another's mistake.
"""

from __future__ import annotations

from dataclasses import dataclass

from minillm.labs.lab import Lab
from minillm.labs.skeleton import solution


@dataclass(frozen=True)
class Slip:
    """`old` becomes `new`; `says` is the diagnosis of each task it costs (a part of its text)."""

    name: str
    old: str
    new: str
    says: dict[str, str]


def wrong_files(lab: Lab) -> list[tuple[str, list[Slip]]]:
    """Few files that together hold every slip, with no task twice in one."""
    groups: list[list[Slip]] = []
    for slip in WRONG[lab.number]:
        fits = (g for g in groups if all(not slip.says.keys() & other.says.keys() for other in g))
        group = next(fits, None)
        if group is None:
            groups.append(group := [])
        group.append(slip)
    return [(edited(solution(lab), group), group) for group in groups]


def edited(text: str, slips: list[Slip]) -> str:
    """`text` with the slips in it."""
    for slip in slips:
        assert text.count(slip.old) == 1, f"{slip.name}: the engine's source has changed, change the edit"
        text = text.replace(slip.old, slip.new)
    return text


def every(text: str, *tasks: str) -> dict[str, str]:
    """One diagnosis for several tasks."""
    return dict.fromkeys(tasks, text)


LAB_1 = [
    Slip(
        "penalty divides negative logits",
        "torch.where(picked > 0, picked / penalty, picked * penalty)",
        "picked / penalty",
        {"1.1": "applied to negative logits by dividing"},
    ),
    Slip(
        "penalty written into the argument",
        "return logits.index_copy(0",
        "return logits.index_copy_(0",
        {"1.1": "work on a copy"},
    ),
    Slip(
        "top-p drops the crossing token",
        "ordered[before >= top_p * mass.sum()]",
        "ordered[before + mass > top_p * mass.sum()]",
        {"1.2": "top-p drops the token that crosses"},
    ),
    Slip(
        "ties to the highest id",
        "ordered, ids = logits.sort(descending=True, stable=True)",
        "ordered, ids = (part.flip(0) for part in logits.sort(stable=True))",
        {"1.2": "ties go to the highest id"},
    ),
    Slip(
        "logits left in sorted order",
        "return torch.empty_like(logits).index_copy_(0, ids, ordered)",
        "return ordered",
        {"1.2": "sorted order"},
    ),
    Slip(
        "top-p before top-k",
        "    if top_k:\n        ordered[top_k:] = NEG_INF\n    if top_p < 1.0:",
        "    if top_p < 1.0 and top_k:\n        first = keep_top(logits, 0, top_p)\n"
        "        return keep_top(first, top_k, 1.0)\n"
        "    if top_k:\n        ordered[top_k:] = NEG_INF\n    if top_p < 1.0:",
        {"1.2": "taken of the whole distribution"},
    ),
    Slip(
        "temperature multiplied",
        "(logits - logits.max()) / _moderate(params.temperature)",
        "(logits - logits.max()) * params.temperature",
        {"1.3": "multiplied by the temperature"},
    ),
    Slip("no min-p", "if params.min_p > 0.0:", "if False:", {"1.3": "min-p is missing"}),
    Slip("no noise", "filtered.double() + noise", "filtered.double()", {"1.4": "no noise"}),
    Slip(
        "one key for all rows",
        "gumbel_noise([batch.keys[row] for row in drawn]",
        "gumbel_noise([batch.keys[0] for row in drawn]",
        {"1.4": "first row's key"},
    ),
    Slip(
        "ids without text are drawn",
        "    logits[:, batch.num_token_ids :] = NEG_INF\n    for",
        "    for",
        {"1.4": "ids the tokenizer lacks"},
    ),
    Slip(
        "stop string leaks between pieces",
        "keep = max((self._overlap(stop) for stop in self._stops), default=0)",
        "keep = 0",
        {"1.5": "text that could become one was let through"},
    ),
    Slip(
        "the stop string comes out",
        "self._held = self._held[: end - len(self.matched)]",
        "self._held = self._held[:end]",
        {"1.5": "the stop string itself is given out"},
    ),
    Slip(
        "the first listed stop string",
        "end = min(found)[0]",
        "end = found[0][0]",
        {"1.5": "the first in the list"},
    ),
    Slip(
        "half characters emitted",
        "text = self._stream.step(self._tokenizer, token_id)",
        "text = self._decode([token_id])",
        {"1.6": "half characters are emitted"},
    ),
    Slip(
        "the tail of the matcher lost",
        "return self._stop.push(self._tail()) + self._stop.flush()",
        "return self._stop.push(self._tail())",
        {"1.6": "flush it"},
    ),
    Slip(
        "a cut character comes out",
        "while cut > 0:",
        "while cut > 0 and False:",
        {"1.6": "comes out as U+FFFD"},
    ),
    Slip(
        "stop strings ignored",
        "self._stop = StopMatcher(stops)",
        "self._stop = StopMatcher(())",
        {"1.6": "stop strings are ignored"},
    ),
]

ALL_ATTENTION = ("2.3", "2.4", "2.5", "2.6")
LAB_2 = [
    Slip("positive exponents", "1.0 / theta**", "theta**", {"2.1": "the exponent is positive"}),
    Slip(
        "a frequency for each component",
        "torch.arange(0, head_dim, 2, dtype",
        "torch.arange(0, head_dim, dtype",
        {"2.1": "one frequency per component"},
    ),
    Slip(
        "interleaved rope",
        "a, b = x.float().chunk(2, dim=-1)\n    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)\n"
        "    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to",
        "a, b = x.float()[..., ::2], x.float()[..., 1::2]\n    cos, sin = cos[:, None], sin[:, None]\n"
        "    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).reshape(x.shape).to",
        {"2.2": "this is interleaved RoPE"},
    ),
    Slip("float32 comes back", "dim=-1).to(x.dtype)", "dim=-1)", {"2.2": "the result is float32"}),
    Slip(
        "no scale",
        "k.float()) * scale",
        "k.float())",
        every("softmax without scale", *ALL_ATTENTION),
    ),
    Slip(
        "mask aligned top-left",
        " + (kv_len - q_len)",
        "",
        every("aligned top-left", "2.4", "2.5", "2.6"),
    ),
    Slip(
        "tiled heads",
        "scores = torch.einsum",
        "k, v = (x.repeat(1, num_heads // num_kv_heads, 1) for x in (k, v))\n"
        "    grouped = q.unsqueeze(2)\n    scores = torch.einsum",
        {"2.5": "heads are tiled", "2.6": "heads are tiled"},
    ),
    Slip("window one too wide", "col <= row - window", "col < row - window", {"2.6": "one key too wide"}),
    Slip(
        "window one too narrow",
        "hidden |= col <= row - window",
        "hidden |= col <= row - window + 1",
        {"2.6": "one key too narrow"},
    ),
    Slip("window ignored", "if window is not None:", "if False:", {"2.6": "the window is ignored"}),
]

LAB_3 = [
    Slip("rounded down", "-(-num_tokens // block_size)", "num_tokens // block_size", {"3.1": "rounded down"}),
    Slip(
        "a block too many",
        "-(-num_tokens // block_size)",
        "num_tokens // block_size + 1",
        {"3.1": "one block too many"},
    ),
    Slip(
        "slots ignore the block table",
        "return [block_table[pos // block_size] * block_size + pos % block_size for pos in positions]",
        "return list(positions)",
        {"3.2": "slot ignores the block table"},
    ),
    Slip(
        "block id as a slot",
        "[pos // block_size] * block_size + pos",
        "[pos // block_size] + pos",
        {"3.2": "not multiplied by block_size"},
    ),
    Slip(
        "grows by everything",
        " - len(self.block_ids)\n",
        "\n",
        {"3.3": "grow allocates for all tokens again"},
    ),
    Slip(
        "grows one by one",
        "self.block_ids += self._pool.allocate(missing)",
        "for _ in range(missing):\n                self.block_ids += self._pool.allocate(1)",
        {"3.3": "a failed grow keeps the blocks"},
    ),
    Slip(
        "grows a block early",
        "missing = blocks_for(num_tokens, self._pool",
        "missing = blocks_for(num_tokens + 1, self._pool",
        {"3.3": "as soon as the last one is full"},
    ),
    Slip(
        "fork shares the partial block",
        "num_full, rest = divmod(num_tokens, self._pool.block_size)",
        "num_full, rest = len(self.block_ids), 0",
        {"3.4": "the last, partly full block is shared"},
    ),
    Slip(
        "fork adds no owner",
        "        self._pool.share(self.block_ids[:num_full])\n",
        "",
        {"3.4": "no second owner"},
    ),
    Slip(
        "fork asks for no copy",
        "((self.block_ids[num_full], own[0]) if own else None)",
        "None",
        {"3.4": "the fork's own block is empty"},
    ),
    Slip(
        "positions restart in the second chunk",
        "SequenceRows(tokens, chunk.start, ",
        "SequenceRows(tokens, 0, ",
        {"3.5": "positions restart at 0"},
    ),
    Slip(
        "the prompt read from its beginning",
        "request.tokens(chunk.start, chunk.end)",
        "request.tokens(0, chunk.end - chunk.start)",
        {"3.5": "reads the prompt from its beginning"},
    ),
    Slip(
        "prefill notes no progress",
        "chunk.request.num_computed_tokens = chunk.end",
        "pass",
        {"3.5": "num_computed_tokens stays where it was"},
    ),
    Slip(
        "decode does not advance",
        "request.num_computed_tokens += 1",
        "pass",
        {"3.6": "num_computed_tokens does not grow"},
    ),
    Slip(
        "decode runs the first token again",
        "request.output_token_ids[-1:], position",
        "request.output_token_ids[:1], position",
        {"3.6": "the first output token"},
    ),
    Slip(
        "position one too high",
        "position = request.num_computed_tokens\n",
        "position = request.num_computed_tokens + 1\n",
        {"3.6": "the position is one too high"},
    ),
    Slip(
        "decode forgets to grow",
        "        request.block_table.grow(position + 1)\n",
        "",
        {"3.6": "the table does not grow"},
    ),
]

LAB_4 = [
    Slip(
        "fewer than asked for",
        "        if count > len(self._free):",
        "        count = min(count, len(self._free))\n        if count > len(self._free):",
        {"4.1": "fewer blocks than asked for"},
    ),
    Slip(
        "the last block is refused",
        "if count > len(self._free):",
        "if count >= len(self._free) > 0 < count:",
        {"4.1": "the last free block is refused"},
    ),
    Slip(
        "a failed allocation keeps its blocks",
        "        if count > len(self._free):",
        "        while count > len(self._free) > 0:\n            self._ref_count[self._free.pop()] = 1\n"
        "        if count > len(self._free):",
        {"4.1": "a failed allocation keeps what it got"},
    ),
    Slip("a queue", "self._free.pop() for", "self._free.pop(0) for", {"4.1": "a stack, not a queue"}),
    Slip(
        "free blocks searched for",
        "taken = [self._free.pop() for _ in range(count)]",
        "taken = [self._free.pop() for _ in range(count)]\n        assert 0 in [*self._ref_count, 0]",
        {"4.1": "every block is looked at"},
    ),
    Slip(
        "two owners at most",
        "self._ref_count[block_id] += 1",
        "self._ref_count[block_id] = 2",
        {"4.2": "the count is set to two"},
    ),
    Slip(
        "a free block is shared",
        "        self._require_owners(set(ids), times={})\n",
        "",
        {"4.2": "a free block is given an owner"},
    ),
    Slip(
        "the first owner frees",
        "            self._ref_count[block_id] -= 1\n",
        "            self._ref_count[block_id] = 0\n",
        {"4.3": "when its first owner leaves"},
    ),
    Slip("first block first", "in reversed(ids):", "in ids:", {"4.3": "last block first"}),
    Slip(
        "the free list is searched",
        "            if self._ref_count[block_id] == 0:\n",
        "            if self._ref_count[block_id] == 0 and block_id not in self._free:\n",
        {"4.3": "the free list is searched"},
    ),
    Slip(
        "a double free in one call",
        "times.get(block_id, 1)",
        "1",
        {"4.4": "look at `times`"},
    ),
    Slip(
        "Python's negative indices",
        "self._ref_count[self._checked(block_id)] <",
        "self._ref_count[block_id] <",
        {"4.4": "a negative id counts from the end"},
    ),
    Slip(
        "a double free goes through",
        "[self._checked(block_id)] < times.get(block_id, 1):",
        "[self._checked(block_id)] < 0:",
        {"4.4": "a block without owners passes"},
    ),
    Slip(
        "nothing is shared",
        "shared = prompt_len // block_size",
        "shared = 0",
        {"4.5": "share the full blocks of their prompt"},
    ),
    Slip(
        "the partly full block is shared",
        "shared = prompt_len // block_size",
        "shared = blocks_for(prompt_len, block_size)",
        {"4.5": "every sample writes to its own"},
    ),
]
LAB_5 = [
    Slip(
        "a larger priority first",
        "        request.params.priority - int(",
        "        -request.params.priority - int(",
        {"5.1": "a larger priority goes first"},
    ),
    Slip(
        "no aging",
        "int((now - request.arrival) / AGING_SECONDS)",
        "0",
        {"5.1": "waiting does not age"},
    ),
    Slip(
        "fractions of an age",
        "int((now - request.arrival) / AGING_SECONDS)",
        "(now - request.arrival) / AGING_SECONDS",
        {"5.1": "age counts in whole priorities"},
    ),
    Slip(
        "the newest of a line",
        "heads = [line[0] for",
        "heads = [line[-1] for",
        {"5.2": "the newest of a line"},
    ),
    Slip("nobody is unexpected", ", default=None)", ")", {"5.2": "nobody may be waiting"}),
    Slip(
        "by the rank of long ago",
        "key=lambda r: rank(r, now)",
        "key=lambda r: r.rank",
        {"5.2": "from its last admission"},
    ),
    Slip(
        "no chunks",
        "size = min(self._config.prefill_chunk, budget, total - start)",
        "size = min(budget, total - start)",
        {"5.3": "the prompt is not cut"},
    ),
    Slip(
        "the prompt alone",
        "start, total = request.num_computed_tokens, request.num_tokens",
        "start, total = request.num_computed_tokens, len(request.prompt_token_ids)",
        {"5.3": "computes its answer so far again"},
    ),
    Slip(
        "a full chunk or nothing",
        "if room < size:",
        "if False:",
        {"5.3": "a shorter chunk would have fitted"},
    ),
    Slip(
        "no blocks for the copies",
        "self._copies(request) if is_last else 0",
        "0",
        {"5.3": "blocks for the copies of the other samples"},
    ),
    Slip(
        "the chunk's size kept secret",
        "        return size\n",
        "        return 0\n",
        {"5.3": "is not returned"},
    ),
    Slip(
        "the oldest goes",
        "newest = self.running[-1]",
        "newest = self.running[0]",
        {"5.4": "the oldest is preempted"},
    ),
    Slip(
        "no waiting",
        "if newest is request and request.is_prefilling and len(self.running) > 1:",
        "if False:",
        {"5.4": "it can wait and keep"},
    ),
    Slip(
        "blocks promised twice",
        "plan.num_blocks + needed >",
        "needed >",
        {"5.4": "blocks are promised twice"},
    ),
    Slip(
        "the cache's unused blocks left out",
        "needed > self._memory.available:",
        "needed > self._memory.pool.num_free:",
        {"5.4": "blocks that only the prefix cache holds"},
    ),
    Slip(
        "decode is free",
        "budget = self._config.max_num_batched_tokens - len(plan.decode)",
        "budget = self._config.max_num_batched_tokens",
        {"5.5": "not taken off the budget"},
    ),
    Slip(
        "the preempted runs on",
        "            if request not in plan.preempted and self._fits(",
        "            if self._fits(",
        {"5.5": "that an older one has preempted"},
    ),
    Slip(
        "static batches",
        "        self._admit(plan, budget, now)\n",
        "        if not self.running:\n            self._admit(plan, budget, now)\n",
        {"5.5": "this is static batching"},
    ),
    Slip(
        "no headroom",
        "if left < self._headroom() and (self.running or left < 0):",
        "if left < 0:",
        {"5.6": "no headroom"},
    ),
    Slip(
        "found blocks counted twice",
        "left = self._memory.available_without(found) -",
        "left = self._memory.available -",
        {"5.6": "`available_without`"},
    ),
    Slip(
        "the plan forgotten at the door",
        " - plan.num_blocks - needed",
        " - needed",
        {"5.6": "promised already are counted as available"},
    ),
    Slip(
        "found and not taken",
        "        self._memory.start_from(request, found)\n",
        "",
        {"5.6": "the found blocks are not taken"},
    ),
]
LAB_6 = [
    Slip(
        "no lengths",
        'parts += [tag, len(payload).to_bytes(8, "little"), payload]',
        "parts += [tag, payload]",
        {"6.1": "a separator or a tag is no length"},
    ),
    Slip("no types", "parts += [tag, len", "parts += [len", {"6.1": "fields have no type"}),
    Slip(
        "ids of 16 bits",
        'i.to_bytes(8, "little") for i in field',
        '(i % 65536).to_bytes(8, "little") for i in field',
        {"6.1": "ids are cut to 16 bits"},
    ),
    Slip(
        "no chain",
        "encode(SCHEMA, *scope, parent, token_ids)",
        "encode(SCHEMA, *scope, None, token_ids)",
        {"6.2": "the parent is missing"},
    ),
    Slip(
        "no scope",
        "encode(SCHEMA, *scope, parent, token_ids)",
        "encode(SCHEMA, parent, token_ids)",
        {"6.2": "the scope is missing"},
    ),
    Slip(
        "the hash is trusted",
        "            if block.scope == scope and block.parent is parent and block.token_ids == token_ids:",
        "            if block:",
        {"6.3": "the hash is trusted"},
    ),
    Slip("tenants share", "if block.scope == scope and ", "if ", {"6.3": "the scope is not compared"}),
    Slip(
        "the parent by its digest",
        "and block.parent is parent and",
        'and getattr(block.parent, "digest", 0) == getattr(parent, "digest", 0) and',
        {"6.3": "compare its identity"},
    ),
    Slip("silent", "self.false_matches += 1", "pass", {"6.3": "false matches are not counted"}),
    Slip(
        "no parents",
        "self._find(digest, scope, found[-1] if found else None, tuple(token_ids))",
        "self._find(digest, scope, None, tuple(token_ids))",
        {"6.4": "without its parent"},
    ),
    Slip(
        "a list is no tuple",
        "found[-1] if found else None, tuple(token_ids))",
        "found[-1] if found else None, token_ids)",
        {"6.4": "make tuples of them"},
    ),
    Slip(
        "match takes",
        "            found.append(block)\n        return found\n",
        "            found.append(block)\n        self.acquire(found)\n        return found\n",
        {"6.4": "the caller is made an owner"},
    ),
    Slip("no owner", "        self._pool.share([block_id])\n", "", {"6.5": "the cache is no owner"}),
    Slip(
        "published twice",
        "        if known is not None:\n            return known\n",
        "",
        {"6.5": "published again"},
    ),
    Slip(
        "one block for a digest",
        "self._index.setdefault(digest, []).append(block)",
        "self._index[digest] = [block]",
        {"6.5": "a block with the same digest is replaced"},
    ),
    Slip(
        "parents before children",
        "for block_id in reversed(block_ids):",
        "for block_id in block_ids:",
        {"6.6": "parents go before children"},
    ),
    Slip(
        "read and unused",
        "if block is not None and self._pool.ref_count(block_id) == 1:",
        "if block is not None:",
        {"6.6": "somebody still reads"},
    ),
    Slip(
        "every block is known",
        "block = self._by_block.get(block_id)\n",
        "block = self._by_block[block_id]\n",
        {"6.6": "not every block is known"},
    ),
    Slip(
        "the newest evicted", "popitem(last=False)", "popitem()", {"6.7": "the most recently used block goes"}
    ),
    Slip("findable for ever", "            bucket.remove(block)\n", "", {"6.7": "can still be found"}),
    Slip(
        "the bucket emptied",
        "            if not bucket:\n                del",
        "            if True:\n                del",
        {"6.7": "are forgotten with it"},
    ),
    Slip(
        "the pool not told", "            self._pool.free([block_id])\n", "", {"6.7": "the pool is not told"}
    ),
]
LAB_7 = [
    Slip(
        "reads a row too many",
        "tile[row][column] = first + row < n ?",
        "tile[row][column] = first + row <= n ?",
        {"7.1": ""},
    ),
    Slip(
        "a row does not see itself",
        "first_key + key <= first_row + row ?",
        "first_key + key < first_row + row ?",
        {"7.2": "the mask is <="},
    ),
    Slip("the sum keeps its scale", "s.sum * factor + sum", "s.sum + sum", {"7.3": "not shrunk"}),
    Slip("the output keeps its scale", "out[i] * factor;", "out[i];", {"7.4": "not shrunk"}),
    Slip(
        "V too early",
        "    __syncthreads();\n    load_tile(kv_tile, v",
        "    load_tile(kv_tile, v",
        {"7.5": "before or after V takes K's place"},
    ),
]
LAB_8 = [
    Slip(
        "pages ignored",
        "return table[key / block_size] * block_size + key % block_size;",
        "return key;",
        {"8.1": "not looked at"},
    ),
    Slip("half a dot product", "d < kDim; d += 4", "d < kDim / 2; d += 4", {"8.2": "left out"}),
    Slip(
        "one barrier too few",
        "  __syncthreads();\n  if (threadIdx.x % 32 == 0)",
        "  if (threadIdx.x % 32 == 0)",
        {"8.3": "barrier is missing"},
    ),
    Slip("the sum keeps its scale", "  sum *= factor;\n", "", {"8.4": "sum is not shrunk"}),
    Slip("a key too many", "key < keys)", "key <= keys)", {"8.5": "past kv_len"}),
]
LAB_9 = [
    Slip(
        "the first child by position",
        "if parent[n] == at - begin and draft[n] == target[at])",
        "if n == at + 1 and draft[n] == target[at])",
        {"9.1": "siblings and their children lie between"},
    ),
    Slip(
        "anybody's child",
        "if parent[n] == at - begin and draft[n] == target[at])",
        "if draft[n] == target[at])",
        {"9.1": "only children of this one"},
    ),
    Slip(
        "compared with the draft's own row",
        "draft[n] == target[at])",
        "draft[n] == target[n])",
        {"9.1": "was drawn behind its parent"},
    ),
    Slip(
        "drafts instead of draws",
        "tokens[depth], nodes[depth] = target[at],",
        "tokens[depth], nodes[depth] = draft[at],",
        {"9.1": "the drafted tokens are emitted"},
    ),
    Slip(
        "nodes over all requests",
        "target[at], at - begin\n",
        "target[at], at\n",
        {"9.1": "the nodes returned count from"},
    ),
    Slip(
        "the last child that fits",
        "at, depth = next(children, None), depth + 1",
        "at, depth = max(children, default=None), depth + 1",
        {"9.1": "the first is to be taken"},
    ),
    Slip(
        "residual not clamped",
        "weights = p if q is None else (p - q).clamp(min=0.0)\n    if weights.sum() == 0.0:",
        "weights = p if q is None else p - q\n    if weights.abs().sum() == 0.0:",
        {"9.2": "not clamped at 0"},
    ),
    Slip(
        "residual not normalised",
        "uniform * running[-1]",
        "uniform",
        {"9.2": "is not normalised"},
    ),
    Slip(
        "q instead of what is left of p",
        "(p - q).clamp(min=0.0)",
        "q",
        {"9.2": "drawn from q"},
    ),
    Slip(
        "p equals q",
        "    if weights.sum() == 0.0:\n        weights = p\n",
        "",
        {"9.2": "where p equals q"},
    ),
    Slip(
        "a border belongs to the id before",
        "(running > uniform",
        "(running >= uniform",
        {"9.2": "`>=` instead of `>`"},
    ),
    Slip(
        "accepted at equality",
        "if not uniforms[i, stands] * q[token_id] < p[token_id]:",
        "if not uniforms[i, stands] * q[token_id] <= p[token_id]:",
        {"9.3": "accepted with `<=`"},
    ),
    Slip(
        "p and q exchanged",
        "* q[token_id] < p[token_id]:",
        "* p[token_id] < q[token_id]:",
        {"9.3": "p and q are exchanged"},
    ),
    Slip(
        "everything accepted",
        "if not uniforms[i, stands] * q[token_id] < p[token_id]:",
        "if False:",
        {"9.3": "everything is accepted"},
    ),
    Slip(
        "no bonus token",
        "        tokens[i, stands] = draw_leftover(",
        "        if q is not None:\n            tokens[i, stands] = draw_leftover(",
        {"9.3": "no bonus token"},
    ),
    Slip(
        "the bonus from the last draft's row",
        "draw_leftover(target_probs[i, stands].double(), q,",
        "draw_leftover(target_probs[i, stands - (q is None and stands > 0)].double(), q,",
        {"9.3": "the last draft's row"},
    ),
    Slip(
        "the bonus from the padding",
        "draw_leftover(target_probs[i, stands].double(), q,",
        "draw_leftover(target_probs[i, k if q is None else stands].double(), q,",
        {"9.3": "padding where the draft is shorter"},
    ),
    Slip(
        "the replacement from q",
        "draw_leftover(target_probs[i, stands].double(), q,",
        "draw_leftover(target_probs[i, stands].double() if q is None else q, None,",
        {"9.3": "replaced by a draw from q"},
    ),
    Slip(
        "the replacement from p",
        "draw_leftover(target_probs[i, stands].double(), q,",
        "draw_leftover(target_probs[i, stands].double(), None,",
        {"9.3": "replaced by a draw from p"},
    ),
    Slip(
        "one uniform for two draws",
        "uniforms[i, k])",
        "uniforms[i, stands])",
        {"9.3": "is used once more"},
    ),
    Slip(
        "the drawn token counted as drafted",
        "accepted[i] = stands",
        "accepted[i] = stands + 1",
        {"9.3": "counts the last token"},
    ),
    Slip(
        "the refused draft counted",
        "accepted[i] = stands",
        "accepted[i] = stands + (q is not None)",
        {"9.3": "counts the refused draft"},
    ),
    Slip(
        "padding is a token",
        "            if token_id < 0:\n                break\n",
        "",
        {"9.3": "padding is taken for a token"},
    ),
    Slip(
        "a point mass is even",
        "q = _one_hot(token_id, p) if draft_probs is None",
        "q = torch.full_like(p, 1 / len(p)) if draft_probs is None",
        {"9.3": "could have been no other"},
    ),
    Slip(
        "the earliest place",
        "for start in reversed(self._next.get(tuple(self.tokens[-n:]), ())):",
        "for start in self._next.get(tuple(self.tokens[-n:]), ()):",
        {"9.4": "the earliest place is copied"},
    ),
    Slip(
        "short n-grams first",
        "for n in range(min(LONGEST, len(self.tokens)), SHORTEST - 1, -1):",
        "for n in range(SHORTEST, min(LONGEST, len(self.tokens)) + 1):",
        {"9.4": "short n-grams are asked first"},
    ),
    Slip(
        "the copy ends with the text",
        "[self.tokens[start + i % period] for i in range(length)]",
        "self.tokens[start : start + min(length, period)]",
        {"9.4": "a copy ends where the text ends"},
    ),
    Slip(
        "twins",
        "paths.setdefault(self.tokens[start], self._copy(start, length))",
        "paths.setdefault(start, self._copy(start, length))",
        {"9.4": "two paths begin with the same token"},
    ),
    Slip(
        "a path too many",
        "if len(paths) == count:",
        "if len(paths) > count:",
        {"9.4": "more paths than `count`"},
    ),
    Slip(
        "the partly full block given back",
        "keep = blocks_for(num_tokens, self._pool.block_size)",
        "keep = num_tokens // self._pool.block_size",
        {"9.5": "round up"},
    ),
    Slip(
        "a spare block kept",
        "keep = blocks_for(num_tokens, self._pool.block_size)",
        "keep = num_tokens // self._pool.block_size + 1",
        {"9.5": "exactly full"},
    ),
    Slip("rejected blocks leak", "        self._pool.free(behind)\n", "", {"9.5": "leak memory"}),
    Slip(
        "freed and still listed",
        "        self.block_ids = self.block_ids[:keep]\n",
        "",
        {"9.5": "still in the table"},
    ),
    Slip(
        "the block of the parting shared",
        "self._pool.allocate(blocks_for(num_tokens, size) - start // size)",
        "self._pool.allocate(blocks_for(num_tokens, size) - blocks_for(start, size))",
        {"9.6": "both will write to it"},
    ),
    Slip(
        "a position for an index",
        "shared = start // self._pool.block_size\n        before",
        "shared = start\n        before",
        {"9.6": "the table counts blocks"},
    ),
    Slip(
        "the losers freed twice",
        "        before, self.block_ids = self.block_ids[shared:], self.block_ids[:shared] + own\n",
        "        before, self.block_ids = self.block_ids[shared:], self.block_ids[:shared] + own\n"
        "        self._pool.free(before)\n",
        {"9.6": "freed twice"},
    ),
]
WRONG = {
    1: LAB_1,
    2: LAB_2,
    3: LAB_3,
    4: LAB_4,
    5: LAB_5,
    6: LAB_6,
    7: LAB_7,
    8: LAB_8,
    9: LAB_9,
}
