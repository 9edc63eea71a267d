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
        "ordered[before >= top_p]",
        "ordered[before + probs > top_p]",
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
    Slip("no noise", "(scores + noise).argmax", "scores.argmax", {"1.4": "no noise"}),
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
        "blocks_for(num_tokens, self._pool",
        "blocks_for(num_tokens + 1, self._pool",
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
        "prompt_token_ids[chunk.start : chunk.end]",
        "prompt_token_ids[: chunk.end - chunk.start]",
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
WRONG = {1: LAB_1, 2: LAB_2, 3: LAB_3, 7: LAB_7, 8: LAB_8}
